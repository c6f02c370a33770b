"""A fresh process of the NEON build's binary against fresh processes of ONNX Runtime on x86: time from its start to the
first result, and peak memory. MiniLM-L6 shape with the whole vocabulary, w8a8, 128 tokens, one thread.

The part `process` of `neon.py` (about a minute).

ONNX Runtime runs the same package's u8 graph, by its C API (a program compiled here against the library in the wheel)
and by its Python API. All three must give the golden outputs; then processes take turns. Files are in the page cache
for all of them, so what is timed is work, not the disk. Peak memory is VmHWM, read by the process itself at its end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import neon_models as models
import numpy as np
from _results import cpu_model, figure
from neon_x86_worker import golden
from numpy.typing import NDArray

from edgesdk.converters import converter
from edgesdk.converters.neon.toolchain import Toolchain, find
from edgesdk.evaluate import sqnr_db
from edgesdk.targets import load_target
from edgesdk.transformer.spec import TokenEmbedding

SEQUENCE, VOCABULARY, ROUNDS, LEAST_DB = 128, 30522, 15, 30.0
PAGE = 4096
OURS, C_API, PYTHON = "NEON build", "ONNX Runtime's C API", "ONNX Runtime's Python API"
# Goals: CPU time to the first result, and peak RSS, of each peer's; our peak RSS, and what is in it beyond the model.
START, GOALS, RSS_MB, SLACK_MB = 0.10, {C_API: 0.50, PYTHON: 0.25}, 30.0, 3.0
RSS = "x86, w8a8, peak RSS"
SLACK = f"{RSS} beyond packed weights touched and arena"
STARTS = {peer: f"x86, w8a8, CPU time to the first result of {peer}" for peer in GOALS}
PROMISED = (
    *((name, f"≤ {START:.2f}×") for name in STARTS.values()), (RSS, f"≤ {RSS_MB:g} MB"), (SLACK, f"≤ {SLACK_MB:g} MB"),
    *((f"{RSS} of {peer}", f"≤ {goal:.2f}×") for peer, goal in GOALS.items()),
)
# Words of `model bench` that make it run no more than a few inferences.
FEW = (
    "--warmup-iterations", "1", "--warmup-seconds", "0", "--max-warmup-seconds", "0", "--window-seconds", "0",
    "--min-samples", "1",
)
LIBRARY = "libonnxruntime.so.1"  # the name that the library has in its dynamic section
PYTHON_PROGRAM = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = dict(zip(("input_ids", "attention_mask"), (numpy.fromfile(path, "<i8")[None] for path in sys.argv[2:4])))
session.run(None, feeds)[0].tofile(sys.argv[4])
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def c_program(toolchain: Toolchain, library: Path, folder: Path, flags: Sequence[str]) -> Path:
    """`folder/ort`: ONNX Runtime by its C API. It is linked against `library` of a wheel by the link `folder/LIBRARY`,
    and finds it as the `flags` say."""
    (folder / LIBRARY).symlink_to(library)
    source = Path(__file__).with_name("neon_process_ort.c")
    toolchain.run(("-O2", str(source), LIBRARY, *flags, "-o", "ort"), folder)
    return folder / "ort"


class Processes:
    """The three commands, each of which writes its first result to a file of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        spec = dataclasses.replace(models.SPEC, embedding=TokenEmbedding(VOCABULARY, 512))
        package = models.package(models.random_weights(spec), "w8a8", SEQUENCE, spec)
        for kind in ("neon", "onnx"):
            (folder / kind).mkdir()
            converter(kind).convert(package, load_target("host"), folder / kind)
        inputs, outputs = golden(folder / "neon")
        self.wanted, self.ids = outputs[0], inputs["input_ids"][0]
        blocks = {"ids": inputs["input_ids"][:1], "mask": inputs["attention_mask"][:1]}
        for name, block in blocks.items():
            (folder / name).write_bytes(block.tobytes())
        (folder / "in").write_bytes(blocks["ids"].tobytes() + blocks["mask"].tobytes())
        model, onnx = folder / "neon/model", folder / "onnx/model.onnx"
        feeds = [str(onnx), str(folder / "ids"), str(folder / "mask")]
        self.commands = {
            OURS: [str(model), "run", "--inputs", str(folder / "in"), "--n", "1", "--outputs", self.out(OURS)],
            C_API: [str(self._c_program()), *feeds, self.out(C_API)],
            PYTHON: [sys.executable, "-c", PYTHON_PROGRAM, *feeds, self.out(PYTHON)],
        }
        self.model = model

    def out(self, name: str) -> str:
        return str(self.folder / f"out-{name[:6]}-{len(name)}")

    def _c_program(self) -> Path:
        import onnxruntime

        (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*.*")
        return c_program(find("x86_64-linux-gnu"), library, self.folder, [f"-Wl,-rpath,{self.folder}"])

    def run(self, name: str) -> tuple[float, float, str]:
        """Wall and CPU milliseconds of a fresh process, and what it printed."""
        printed = self.folder / "printed"
        start = time.monotonic_ns()
        with printed.open("wb") as stream:
            command = self.commands[name]
            actions = [(os.POSIX_SPAWN_DUP2, stream.fileno(), 1)]
            pid = os.posix_spawn(command[0], command, {**os.environ, "OMP_NUM_THREADS": "1"}, file_actions=actions)
            _, status, usage = os.wait4(pid, 0)
        wall = (time.monotonic_ns() - start) * 1e-6
        if status:
            raise RuntimeError(f"{' '.join(command)}: ended with {status}")
        return wall, (usage.ru_utime + usage.ru_stime) * 1e3, printed.read_text()

    def check(self, name: str) -> None:
        """The first result is the package's.

        Raises:
            RuntimeError: it is not.
        """
        found = sqnr_db(self.wanted, np.fromfile(self.out(name), np.float32))
        if not found >= LEAST_DB:
            raise RuntimeError(f"{name}: {found:.1f} dB, expected {LEAST_DB} or more")

    def our_memory(self) -> dict[str, int]:
        """Of one fresh process that runs a few inferences: peak RSS, arena, and packed weights that are touched (all
        but the rows of the token table that no token names, in whole pages)."""
        command = [str(self.model), "bench", "--inputs", str(self.folder / "in"), "--n", "1", "--samples",
                   str(self.folder / "samples"), *FEW]
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        info = json.loads(subprocess.run([str(self.model), "info"], capture_output=True, text=True, check=True).stdout)
        row = models.SPEC.hidden
        pages = {at // PAGE for token in set(self.ids.tolist()) for at in (token * row, token * row + row - 1)}
        return {
            "peak": answer["peak_rss_bytes"], "arena": info["arena_bytes"],
            "weights": info["weight_bytes"] - VOCABULARY * row + len(pages) * PAGE,
        }


def figures(folder: Path) -> list[dict[str, Any]]:
    """Start and memory of fresh processes; artifacts are built in `folder`."""
    processes = Processes(folder)
    for name in processes.commands:
        processes.run(name)
        processes.check(name)
    runs = {name: list[tuple[float, float, str]]() for name in processes.commands}
    for _ in range(ROUNDS):
        for name, found in runs.items():
            found.append(processes.run(name))
    wall = {name: np.array([entry[0] for entry in found]) for name, found in runs.items()}
    cpu = {name: np.array([entry[1] for entry in found]) for name, found in runs.items()}
    entries = [_start(name, wall[name], cpu[name]) for name in runs]
    entries += [_ratio(cpu, peer) | {"wall": _median(wall, peer)} for peer in GOALS]
    return entries + _memory(processes, {peer: int(runs[peer][0][2]) for peer in GOALS})


def _start(name: str, wall: NDArray[np.float64], cpu: NDArray[np.float64]) -> dict[str, Any]:
    entry = figure(f"x86, w8a8, {name}, fresh process to first result, CPU time (median)", float(np.median(cpu)), "ms")
    best = {"best": _short(cpu.min()), "wall": _short(np.median(wall)), "wall_best": _short(wall.min())}
    return entry | best | _machine()


def _ratio(cpu: dict[str, NDArray[np.float64]], peer: str) -> dict[str, Any]:
    value, name = float(np.median(cpu[OURS] / cpu[peer])), STARTS[peer]
    return figure(name, value, "×", dict(PROMISED)[name], value <= START) | _machine()


def _median(wall: dict[str, NDArray[np.float64]], peer: str) -> float:
    """The same ratio in wall time."""
    return _short(np.median(wall[OURS] / wall[peer]))


def _memory(processes: Processes, peers: dict[str, int]) -> list[dict[str, Any]]:
    ours = processes.our_memory()
    peak, goals = ours["peak"], dict(PROMISED)
    whole, slack = peak / 2**20, (peak - ours["weights"] - ours["arena"]) / 2**20
    entries = [
        figure(RSS, whole, "MB", goals[RSS], whole <= RSS_MB),
        figure(SLACK, slack, "MB", goals[SLACK], slack <= SLACK_MB)
        | {"weights": ours["weights"], "arena": ours["arena"]},
    ]
    for peer, bytes_used in peers.items():
        name, ratio = f"{RSS} of {peer}", peak / bytes_used
        entries.append(figure(name, ratio, "×", goals[name], ratio <= GOALS[peer]) | {"peer_bytes": bytes_used})
    return [entry | _machine() for entry in entries]


def _short(value: Any) -> float:
    return float(f"{float(value):.4g}")


def _machine() -> dict[str, Any]:
    return {"cpu": cpu_model(), "threads": 1, "versions": {"onnxruntime": version("onnxruntime")}}
