"""Executed aarch64 instructions under qemu-user with the product's counting plugin: our binaries, and ONNX Runtime and
LiteRT from their arm64 wheels in the root file system of the emulated boards."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgesdk.cli.output import say
from edgesdk.converters.neon.build import kernel_sources
from edgesdk.files import canonical_json, sha256_bytes, write_atomic
from edgesdk.harness.emulate.device import device_files
from edgesdk.harness.emulate.layers import WHEELS, build_layers, cache_folder
from edgesdk.harness.worker.count import parse_counts
from edgesdk.targets import load_target

LIMIT_SECONDS = 900
Counts = dict[str, int]
GUEST = Path(__file__).with_name("neon_guest.py")
BOARDS = {"cortex-a76": "raspberry-pi/5", "cortex-a72": "raspberry-pi/4"}


class Counter:
    """Runs programs under qemu-user as one CPU; use it as a context."""

    def __init__(self, cpu: str) -> None:
        self.cpu = cpu
        self.program = shutil.which("qemu-aarch64") or "qemu-aarch64"
        emulator, self.rootfs = build_layers(self.program, print)
        self.plugin = emulator / "qemu/libedgecount.so"
        self.temporary = tempfile.TemporaryDirectory(prefix="edgesdk-count-")
        self.root = Path(self.temporary.name) / "root"
        self._fill_root()

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self.temporary.cleanup()

    def _fill_root(self) -> None:
        """The guest's view of absolute paths: the board's files, with an ARM `/proc/cpuinfo` and CPU tree, without
        which the runtimes do not find the CPU's features."""
        target = load_target(BOARDS.get(self.cpu, "raspberry-pi/5"))
        assert target.emulate is not None
        if self.cpu.startswith("max"):
            features = [*target.cpu.features, "i8mm"]
            target = target.model_copy(update={"cpu": target.cpu.model_copy(update={"features": features})})
        self.root.mkdir()
        for entry in self.rootfs.iterdir():
            if entry.name not in ("proc", "sys", "dev", "tmp"):
                (self.root / entry.name).symlink_to(entry)
        for path, content in device_files(target, target.emulate, "benchmark").items():
            if path == "qemu/cpuinfo":
                path = "proc/cpuinfo"
            if path.startswith(("proc/", "sys/")):
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).write_bytes(content)

    def lines(self, *command: str) -> str:
        """The plugin's output for one run of a guest program."""
        out = Path(self.temporary.name) / "counts"
        out.unlink(missing_ok=True)
        plugin = f"{self.plugin},out={out}"
        words = [self.program, "-cpu", self.cpu, "-L", str(self.root), "-plugin", plugin, *command]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.packages()), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} under {self.cpu}: {done.stderr[-800:]}")
        return out.read_text()

    def packages(self) -> Path:
        return self.root / "usr/local/lib/python3.11/dist-packages"

    def ours(self, artifact: Path) -> Counts:
        """One inference of the first golden row by an artifact of the NEON build."""
        return parse_counts(self.lines(*_ours(artifact, Path(self.temporary.name))))[-1]

    def peer(self, artifact: Path) -> Counts:
        """One inference by ONNX Runtime or LiteRT, less an empty call's cost."""
        python = self.root / "usr/bin/python3.11"
        counts = parse_counts(self.lines(str(python), str(GUEST), str(artifact)))
        empty, last = counts[0], counts[-1]
        return {key: last[key] - empty[key] for key in last}


def _ours(artifact: Path, folder: Path) -> list[str]:
    """The command that counts the first golden row alone."""
    document = json.loads((artifact / "artifact.json").read_text())
    data, rows, at, first = (artifact / "golden/in.bin").read_bytes(), document["golden"]["n"], 0, b""
    for tensor in document["inputs"]:
        size = math.prod(tensor["shape"]) * {"int64": 8, "float32": 4}[tensor["dtype"]]
        first += data[at : at + size]
        at += size * rows
    (folder / "in.bin").write_bytes(first)
    return [str(artifact / "model"), "count", "--inputs", str(folder / "in.bin"), "--n", "1"]


def remembered(kind: str, scheme: str, cpu: str, sequence: int, build: Callable[[], Path]) -> Counts:
    """The count of an artifact, made once for each state of what makes it: counts do not change with the machine."""
    store = cache_folder() / "neon-counts.json"
    known: dict[str, Counts] = json.loads(store.read_text()) if store.exists() else {}
    key = f"{cpu} {kind} {scheme} {sequence} {_digest(kind)}"
    if key not in known:
        artifact = build()
        with Counter(cpu) as counter:
            found = counter.ours(artifact) if kind == "neon" else counter.peer(artifact)
        known = (json.loads(store.read_text()) if store.exists() else {}) | {key: found}
        write_atomic(store, canonical_json(known))
        say(f"{cpu} {kind} {scheme} S={sequence}: {found['total']:,} instructions")
    return known[key]


def _digest(kind: str) -> str:
    """Of the kernels, where they are ours; of the peers' versions."""
    text = json.dumps(WHEELS).encode()
    if kind == "neon":
        text = b"".join(content for _, content in sorted(kernel_sources().items()))
    return sha256_bytes(text)[:16]
