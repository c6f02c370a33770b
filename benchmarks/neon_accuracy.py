"""What `w8a8` loses of the accuracy of fp32 in the NEON build, on real tasks: the part `accuracy` of `neon.py`.

Programs answer every test row: the digits of the demo (a ViT), and CLINC150 with the fine-tuned MiniLM of
`neon_trained.py`. One has this machine's kernels, one those of the Cortex-A76 and runs under qemu-user, for attention
is not the same in both. The float model answers the same rows in ONNX Runtime. Answers under qemu-user take minutes;
they are kept by the content of program and rows.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _parts import Entries, Found
from _results import figure
from numpy.typing import NDArray
from scipy.stats import norm

from edgesdk import demo
from edgesdk.compress import compress
from edgesdk.converters import converter
from edgesdk.converters.neon.kernel_sets import choose
from edgesdk.evaluate import run_rows
from edgesdk.files import sha256_bytes, sha256_file, write_atomic
from edgesdk.importing import import_job
from edgesdk.package import Package, read_package
from edgesdk.recipe import load_recipes
from edgesdk.targets import load_target

SCHEMES = {"w8a8": "int8", "w8a8-dynamic": "int8-dynamic"}
GOAL = 0.3
TASKS = ("digits ViT", "MiniLM on CLINC150")
CPUS = {"host": None, "raspberry-pi/5": "cortex-a76"}
PROMISED = tuple(
    (f"accuracy lost by w8a8, {task}, kernels of {target}", f"≤ {GOAL} points") for task in TASKS for target in CPUS
)
CHUNK = 250
Inputs = Mapping[str, NDArray[Any]]


def run(trained: Path, cache: Path) -> Found:
    """Both tasks in both schemes; the goal is that of `w8a8`. `cache` keeps answers of emulated programs."""
    figures: Entries = []
    with tempfile.TemporaryDirectory(prefix="edgesdk-accuracy-") as place:
        folder = Path(place)
        job = import_job(None, None, None)
        rows, labels = demo.test_data().inputs, demo.test_data().labels
        quantized: dict[str, Package] = {}
        for scheme, preset in SCHEMES.items():
            (recipe,) = load_recipes(preset)
            quantized[scheme] = compress(job.package, recipe, job.context(0, _quiet), folder / "cache").package
        figures += _task(TASKS[0], job.package, quantized, rows, labels, folder, cache)
        with np.load(trained / "test.npz") as arrays:
            tests = {name: arrays[name] for name in arrays.files}
        labels = tests.pop("labels")
        quantized = {scheme: read_package(trained / f"{scheme}.edgepkg") for scheme in SCHEMES}
        figures += _task(TASKS[1], read_package(trained / "fp32.edgepkg"), quantized, tests, labels, folder, cache)
    return figures, []


def _quiet(what: str, done: int, total: int) -> None:
    """No progress."""


def _task(
    task: str, single: Package, quantized: Mapping[str, Package], rows: Inputs, labels: NDArray[np.int64] | None,
    folder: Path, cache: Path,
) -> Entries:
    """Accuracy of fp32, and for each scheme what it loses and how many answers change."""
    assert labels is not None
    count = len(labels)
    expected = np.asarray(run_rows(single, rows)).argmax(-1)
    right = expected == labels
    figures = [figure(f"accuracy of fp32, {task} (n = {count})", 100 * float(right.mean()), "%")]
    for scheme, target in itertools.product(quantized, CPUS):
        if scheme != "w8a8" and target != "host":
            continue
        path = folder / f"{task}-{scheme}-{target}".replace(" ", "-")
        path.mkdir(parents=True)
        answers = neon_outputs(quantized[scheme], rows, path, target, cache).argmax(-1)
        now = answers == labels
        lost = 100 * float(right.mean() - now.mean())
        # Paired: only rows that one side gets right and the other does not tell them apart.
        spread = 100 * float(norm.ppf(0.975)) * float(np.std(right.astype(float) - now)) / count**0.5
        goal, met = (f"≤ {GOAL} points", lost <= GOAL) if scheme == "w8a8" else (None, None)
        entry = figure(
            f"accuracy lost by {scheme}, {task}, kernels of {target}", lost, "points", goal, met,
            "emulated" if CPUS[target] else "measured", (lost - spread, lost + spread),
        )
        kernels, changed = choose(load_target(target)).name, int((answers != expected).sum())
        figures.append(entry | {"note": f"n = {count}, {changed} answers change, {kernels}"})
    return figures


def neon_outputs(package: Package, rows: Inputs, folder: Path, target: str, cache: Path) -> NDArray[np.float32]:
    """Outputs [N, …] of the program that the NEON build makes of a package for a target, under qemu-user if need be."""
    artifact = converter("neon").convert(package, load_target(target), folder)
    emulated = ["qemu-aarch64", "-cpu", str(CPUS[target])] if CPUS[target] else []
    program, chunks = sha256_file(folder / "model"), []
    for start in range(0, len(next(iter(rows.values()))), CHUNK):
        chunk = slice(start, start + CHUNK)
        blocks = [np.ascontiguousarray(rows[tensor.name][chunk], tensor.dtype) for tensor in artifact.inputs]
        data, count = b"".join(block.tobytes() for block in blocks), len(blocks[0])
        kept = cache / f"{sha256_bytes(program.encode() + data)[:24]}.bin"
        if not kept.exists():
            (folder / "in.bin").write_bytes(data)
            words = ["run", "--inputs", "in.bin", "--n", str(count), "--outputs", "out.bin"]
            subprocess.run([*emulated, str(folder / "model"), *words], cwd=folder, check=True, timeout=1800)
            write_atomic(kept, (folder / "out.bin").read_bytes())
        chunks.append(np.fromfile(kept, "<f4").reshape(count, *artifact.outputs[0].shape[1:]))
    return np.concatenate(chunks)
