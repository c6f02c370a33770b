"""Peak memory on arm64: the NEON build and ONNX Runtime, each in a fresh process of the emulated full board: the part
`vm` of `neon.py`.

Under qemu-user a process's memory would hold the emulator; the full board is a machine of its own, whose kernel counts
(VmHWM). Everybody runs one inference of MiniLM in w8a8, S = 128, one thread; ONNX Runtime by its C API (the library of
the wheel, a program compiled here) and by its Python API. Answers are held against the float model's: as far from them
as int8 is anyway.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from _parts import Entries, Found, Missing
from _results import figure
from neon_peers import A76, TARGETS, Builder
from neon_process import C_API, FEW, GOALS, LIBRARY, OURS, PYTHON, PYTHON_PROGRAM, c_program
from numpy.typing import NDArray

from edgesdk.cli.output import say
from edgesdk.converters.neon.kernel_sets import AARCH64
from edgesdk.converters.neon.toolchain import find
from edgesdk.errors import EdgeSDKError
from edgesdk.evaluate import sqnr_db
from edgesdk.harness import emulate
from edgesdk.harness.emulate.layers import rootfs_folder
from edgesdk.harness.session import Session
from edgesdk.targets import load_target

SEQUENCE, PROCESSES, SECONDS = 128, 3, 900
# An answer may be farther from the float model than the package's own by so much: decision 26, for one row.
SLACK_DB = 6.0
PROMISED = tuple((f"peak RSS, w8a8, aarch64 VM, of {peer}'s", f"≤ {goal}×") for peer, goal in GOALS.items())
PLACE, PACKAGES = "neon-bench", "/usr/local/lib/python3.11/dist-packages"


def run(builder: Builder) -> Found:
    """Peak RSS of each, in the VM, and the ratios."""
    lacks = emulate.missing(full=True)
    if lacks:
        raise Missing("; ".join(lacks))
    with tempfile.TemporaryDirectory(prefix="edgesdk-vm-") as place:
        folder = Path(place)
        commands = _prepare(builder, folder)
        samples = builder.model.package("w8a8", SEQUENCE).samples
        try:
            peaks = _measure(folder, commands, samples.golden_float[0], samples.golden_outputs[0])
        except EdgeSDKError as problem:
            raise Missing(f"the emulated full board failed: {problem}") from problem
    figures: Entries = []
    for name, values in peaks.items():
        megabytes = float(np.median(values)) / 2**20
        entry = figure(f"peak RSS, w8a8, aarch64 VM, {name}", megabytes, "MB", provenance="emulated")
        spread = f"{min(values) / 2**20:.1f} to {max(values) / 2**20:.1f} MB"
        figures.append(entry | {"note": f"{len(values)} processes, {spread}"})
    for (name, _), (peer, goal) in zip(PROMISED, GOALS.items(), strict=True):
        ratio = float(np.median(peaks[OURS]) / np.median(peaks[peer]))
        figures.append(figure(name, ratio, "×", f"≤ {goal}×", ratio <= goal, "emulated"))
    return figures, []


def _prepare(builder: Builder, folder: Path) -> dict[str, list[str]]:
    """Fill a folder with what the board needs; gives the commands there, whose last word is the file of the answer."""
    neon, onnx = (builder.artifact(kind, "w8a8", A76, SEQUENCE) for kind in ("neon", "onnx"))
    rows = builder.model.inputs(SEQUENCE)
    blocks = {"ids": rows["input_ids"][:1].tobytes(), "mask": rows["attention_mask"][:1].tobytes()}
    files = {
        "model": (neon / "model").read_bytes(), "model.onnx": (onnx / "model.onnx").read_bytes(), **blocks,
        "in.bin": blocks["ids"] + blocks["mask"], "ort.py": PYTHON_PROGRAM.encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    feeds = ["model.onnx", "ids", "mask"]
    (library,) = (rootfs_folder() / PACKAGES[1:] / "onnxruntime/capi").glob("libonnxruntime.so.*.*")
    c_program(find(AARCH64), library, folder, ["-Wl,--allow-shlib-undefined", "-Wl,-rpath,."])
    (folder / LIBRARY).unlink()  # the board has its own
    return {
        OURS: ["./model", "run", "--inputs", "in.bin", "--n", "1", "--outputs", "ours.bin"],
        PYTHON: ["python3", "ort.py", *feeds, "python.bin"],
        C_API: ["./ort", *feeds, "c.bin"],
    }


class Guest:
    """The board in one session, in a folder of its own."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.said(f"rm -rf {PLACE}; mkdir {PLACE}", "")

    def said(self, script: str, place: str = f"cd {PLACE} && ") -> str:
        """What a shell line prints.

        Raises:
            Missing: it failed.
        """
        done = self.session.step(lambda to: to.run(["sh", "-c", place + script], SECONDS))
        if done.returncode:
            raise Missing(f"{script} on {self.session.board.name}: {done.error_text}")
        return done.text

    def put(self, path: Path) -> None:
        """Copy a file there."""
        self.session.step(lambda to: to.put(path, f"{PLACE}/{path.name}"))

    def floats(self, name: str, folder: Path) -> NDArray[np.float32]:
        """A file of floats from there."""
        self.session.step(lambda to: to.get(f"{PLACE}/{name}", folder / name))
        return np.fromfile(folder / name, np.float32)

    def peak(self, words: list[str]) -> int:
        """VmHWM of one process in bytes, which it prints at its end. Our program tells its own in `bench`, which does
        what `run` does a few times."""
        line = " ".join(words)
        if words[0] != "./model":
            return int(self.said(f"OMP_NUM_THREADS=1 {line}").split()[-1])
        self.said(line)
        bench = self.said(f"./model bench --inputs in.bin --n 1 --samples samples.bin {' '.join(FEW)}")
        return int(json.loads(bench)["peak_rss_bytes"])


def _measure(
    folder: Path, commands: dict[str, list[str]], single: NDArray[np.float32], own: NDArray[np.float32]
) -> dict[str, list[int]]:
    """Peak RSS in bytes of each fresh process of each command; `single` and `own` are answers of the float model
    and of the package."""
    peaks: dict[str, list[int]] = {}
    with emulate.emulated(load_target(TARGETS[A76]), print, full=True) as board, Session(board) as session:
        guest = Guest(session)
        for path in sorted(folder.iterdir()):
            guest.put(path)
        guest.said(f"chmod +x model ort; ln -s {PACKAGES}/onnxruntime/capi/libonnxruntime.so.*.* {LIBRARY}")
        for name, words in commands.items():
            peaks[name] = [guest.peak(words) for _ in range(PROCESSES)]
            found, least = sqnr_db(single, guest.floats(words[-1], folder)), sqnr_db(single, own) - SLACK_DB
            say(f"{name}: {peaks[name]} bytes, {found:.1f} dB to the float model")
            if found < least:
                raise Missing(f"{name}: {found:.1f} dB to the float model, expected {least:.1f} or more")
        guest.said(f"rm -rf {PLACE}", "")
    return peaks
