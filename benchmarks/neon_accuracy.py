"""What `w8a8` loses of the accuracy of fp32 in the NEON build, on real tasks: the part `accuracy` of `neon.py`.

The program of this machine's kernels answers every test row: the digits of the demo (a ViT), and CLINC150 with the
fine-tuned MiniLM of `neon_trained.py`. The float model answers the same rows in ONNX Runtime. Int8 layers are bit-exact
between kernel sets; what stays in float differs in the last bits.
"""

from __future__ import annotations

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
from edgesdk.importing import import_job
from edgesdk.package import Package, read_package
from edgesdk.recipe import load_recipes
from edgesdk.targets import load_target

SCHEMES = {"w8a8": "int8", "w8a8-dynamic": "int8-dynamic"}
GOAL = 0.3
TASKS = ("digits ViT", "MiniLM on CLINC150")
PROMISED = tuple((f"accuracy lost by w8a8, {task}", f"≤ {GOAL} points") for task in TASKS)
Inputs = Mapping[str, NDArray[Any]]


def run(trained: Path) -> Found:
    """Both tasks in both schemes; the goal is that of `w8a8`."""
    figures: Entries = []
    with tempfile.TemporaryDirectory(prefix="edgesdk-accuracy-") as place:
        folder = Path(place)
        job = import_job(None, None, None)
        rows, labels = demo.test_data().inputs, demo.test_data().labels
        quantized = {}
        for scheme, preset in SCHEMES.items():
            (recipe,) = load_recipes(preset)
            quantized[scheme] = compress(job.package, recipe, job.context(0, _quiet), folder / "cache").package
        figures += _task(TASKS[0], job.package, quantized, rows, labels, folder)
        with np.load(trained / "test.npz") as arrays:
            tests = {name: arrays[name] for name in arrays.files}
        labels = tests.pop("labels")
        quantized = {scheme: read_package(trained / f"{scheme}.edgepkg") for scheme in SCHEMES}
        figures += _task(TASKS[1], read_package(trained / "fp32.edgepkg"), quantized, tests, labels, folder)
    return figures, []


def _quiet(what: str, done: int, total: int) -> None:
    """No progress."""


def _task(
    task: str, single: Package, quantized: Mapping[str, Package], rows: Inputs, labels: NDArray[np.int64] | None,
    folder: Path,
) -> Entries:
    """Accuracy of fp32, and for each scheme what it loses and how many answers change."""
    assert labels is not None
    count = len(labels)
    expected = np.asarray(run_rows(single, rows)).argmax(-1)
    right = expected == labels
    figures = [figure(f"accuracy of fp32, {task} (n = {count})", 100 * float(right.mean()), "%")]
    for scheme, package in quantized.items():
        path = folder / f"{task}-{scheme}".replace(" ", "-")
        path.mkdir()
        answers = neon_outputs(package, rows, path).argmax(-1)
        now = answers == labels
        lost = 100 * float(right.mean() - now.mean())
        # Paired: only rows that one side gets right and the other does not tell them apart.
        spread = 100 * float(norm.ppf(0.975)) * float(np.std(right.astype(float) - now)) / count**0.5
        goal, met = (f"≤ {GOAL} points", lost <= GOAL) if scheme == "w8a8" else (None, None)
        entry = figure(
            f"accuracy lost by {scheme}, {task}", lost, "points", goal, met, interval=(lost - spread, lost + spread)
        )
        kernels, changed = choose(load_target("host")).name, int((answers != expected).sum())
        figures.append(entry | {"note": f"n = {count}, {changed} answers change, kernels {kernels}"})
    return figures


def neon_outputs(package: Package, rows: Inputs, folder: Path) -> NDArray[np.float32]:
    """Outputs [N, …] of the program that the NEON build makes of a package for this machine."""
    artifact = converter("neon").convert(package, load_target("host"), folder)
    count = len(next(iter(rows.values())))
    (folder / "in.bin").write_bytes(b"".join(
        np.ascontiguousarray(rows[tensor.name], tensor.dtype).tobytes() for tensor in artifact.inputs
    ))
    words = ["run", "--inputs", "in.bin", "--n", str(count), "--outputs", "out.bin"]
    subprocess.run([str(folder / "model"), *words], cwd=folder, check=True, timeout=1800)
    return np.fromfile(folder / "out.bin", "<f4").reshape(count, *artifact.outputs[0].shape[1:])
