"""Executed aarch64 instructions under qemu-user with the product's counting plugin: our binaries, and ONNX Runtime and
LiteRT from their arm64 wheels in the root file system of the emulated boards."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.cli.output import say
from edgesdk.files import canonical_json, sha256_bytes, sha256_file, write_atomic
from edgesdk.harness.emulate.device import device_files
from edgesdk.harness.emulate.layers import build_layers, cache_folder, qemu_folder, rootfs_folder
from edgesdk.harness.worker.blocks import take_rows
from edgesdk.harness.worker.count import CLASSES, parse_counts
from edgesdk.targets import load_target

LIMIT_SECONDS = 1800
BATCH = 3  # artifacts that are counted between two writes of what is remembered
STEP = 100  # the first step's marker in `model profile`
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
        return parse_counts(self.lines(*_ours("count", artifact, Path(self.temporary.name))))[-1]

    def steps(self, artifact: Path) -> list[Counts]:
        """One inference by an artifact of the NEON build: the counts of each step of its plan, in their order."""
        lines = self.lines(*_ours("profile", artifact, Path(self.temporary.name))).splitlines()
        marks = [entry for entry in map(json.loads, lines) if entry["edgecount"] == "mark" and entry["tag"] >= STEP]
        assert [entry["tag"] for entry in marks] == list(range(STEP, STEP + len(marks))), "a step was skipped"
        return [{key: entry[key] for key in CLASSES} for entry in marks]

    def peers(self, artifacts: Sequence[Path]) -> list[Counts]:
        """One inference by ONNX Runtime or LiteRT of each artifact, less the call of a model that does next to nothing;
        all in one process, whose start takes longer than an inference."""
        words = [str(self.root / "usr/bin/python3.11"), str(GUEST)]
        for index, artifact in enumerate(artifacts):
            kind = next(name for name in EMPTY if (artifact / f"model.{name}").exists())
            empty = Path(self.temporary.name) / f"empty-{index}.{kind}"
            empty.write_bytes(EMPTY[kind](json.loads((artifact / "artifact.json").read_bytes())))
            words += [str(artifact), str(empty)]
        counts = parse_counts(self.lines(*words))
        pairs = zip(counts[::2], counts[1::2], strict=True)
        return [{key: found[key] - nothing[key] for key in found} for nothing, found in pairs]


def _ours(command: str, artifact: Path, folder: Path) -> list[str]:
    """The command that works on the first golden row alone."""
    document = json.loads((artifact / "artifact.json").read_text())
    data = (artifact / "golden/in.bin").read_bytes()
    (folder / "in.bin").write_bytes(take_rows(data, document["inputs"], document["golden"]["n"], [0]))
    return [str(artifact / "model"), command, "--inputs", str(folder / "in.bin"), "--n", "1"]


def _empty_onnx(document: dict[str, Any]) -> bytes:
    """A graph with the artifact's inputs that only asks for the shape of the first one."""
    from onnx import TensorProto, helper

    kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(t["name"], kinds[t["dtype"]], t["shape"]) for t in document["inputs"]]
    node = helper.make_node("Shape", [document["inputs"][0]["name"]], ["shape"])
    output = helper.make_tensor_value_info("shape", TensorProto.INT64, [len(document["inputs"][0]["shape"])])
    graph = helper.make_graph([node], "empty", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def _empty_tflite(document: dict[str, Any]) -> bytes:
    """A model with the artifact's inputs that only makes a row of the first one's numbers."""
    from edgesdk.converters.tflite.flatbuffer import FlatbufferWriter

    writer = FlatbufferWriter()
    inputs = [writer.tensor(t["shape"], t["dtype"], None, t["name"]) for t in document["inputs"]]
    shape, dtype = document["inputs"][0]["shape"], document["inputs"][0]["dtype"]
    output = writer.tensor((math.prod(shape),), dtype, None, "row")
    writer.operator("RESHAPE", [inputs[0], writer.constant(np.array([math.prod(shape)], np.int32))], [output])
    return writer.finish(inputs, [output])


EMPTY: dict[str, Callable[[dict[str, Any]], bytes]] = {"onnx": _empty_onnx, "tflite": _empty_tflite}


def remembered(artifacts: Sequence[Path], cpu: str) -> list[Counts]:
    """The counts of artifacts, all ours or all of peers, made once for each content: counts do not change with the
    machine."""
    store = cache_folder() / "neon-counts.json"
    known: dict[str, Counts] = json.loads(store.read_text()) if store.exists() else {}
    keys = [f"{cpu} {digest(artifact)}" for artifact in artifacts]
    absent = [artifact for artifact, key in zip(artifacts, keys, strict=True) if key not in known]
    for start in range(0, len(absent), BATCH):
        some = absent[start : start + BATCH]
        say(f"{cpu}: counting {', '.join(artifact.name for artifact in some)}")
        with Counter(cpu) as counter:
            ours = (some[0] / "model").exists()
            found = [counter.ours(artifact) for artifact in some] if ours else counter.peers(some)
        new = {f"{cpu} {digest(artifact)}": counts for artifact, counts in zip(some, found, strict=True)}
        known = (json.loads(store.read_text()) if store.exists() else {}) | new
        write_atomic(store, canonical_json(known))
    return [known[key] for key in keys]


def digest(artifact: Path) -> str:
    """Of the files that run, the first golden rows, and what runs them."""
    files = sorted(path for path in artifact.iterdir() if path.name.startswith("model"))
    parts = [sha256_file(path) for path in (*files, artifact / "golden/in.bin")]
    layers = [qemu_folder(shutil.which("qemu-aarch64") or "qemu-aarch64").name, rootfs_folder().name]
    return sha256_bytes(canonical_json([parts, layers, sha256_file(GUEST)]))[:24]
