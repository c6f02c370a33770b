"""TensorRT engines of this board: built by trtexec from an ONNX file, kept, checked, repaired; and calls of trtexec.

An engine lies in `STATE/engines`, under a digest of what it depends on: the artifact, the board, L4T, the version of
TensorRT that trtexec prints, the precision. Its note (`.json`) has its size and its sha256.
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from typing import Any

from edgesdk.harness.worker import blocks, gpu, memory, store
from edgesdk.harness.worker.kept import Kept
from edgesdk.harness.worker.system import device_tree, read_text

PLACES = ("/usr/src/tensorrt/bin/trtexec",)
LIBRARIES = ("/usr/lib/*-linux-gnu/libnvinfer.so.*", "/usr/lib/libnvinfer.so.*")
# TF32 has 10 bits: an engine that is called fp32 must not use it.
PRECISIONS = {"fp32": ["--noTF32"], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}
# One inference: every version of trtexec knows these, the names of "build only" changed.
QUICKLY = ["--warmUp=0", "--duration=0", "--iterations=1"]
BUILD_SECONDS, RUN_SECONDS, ASK_SECONDS = 3600.0, 300.0, 60.0
KILL_SECONDS = 30.0  # a process that the GPU's driver holds may not die at once
LOOK_SECONDS = 0.5
# A log may be long: its head has the version, its tail the summary.
HEAD_BYTES, TAIL_BYTES = 1 << 16, 1 << 20
VERSION = re.compile(r"\[TensorRT v([0-9]{4,7})\]")
LIBRARY = re.compile(r"libnvinfer\.so\.([0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3})$")


class Failed(Exception):
    """trtexec did not do what was asked; the text is for people."""


def program() -> "str | None":
    """Where trtexec is; JetPack does not put it on the path."""
    found = shutil.which("trtexec")
    return found or next((place for place in PLACES if os.access(place, os.X_OK)), None)


def installed_version() -> "str | None":
    """Version of TensorRT by the name of its library, where trtexec is; the program is not started."""
    if program() is None:
        return None
    names = [name for place in LIBRARIES for name in glob.glob(place)]
    versions = [match.group(1) for match in map(LIBRARY.search, names) if match]
    return max(versions, key=lambda text: [int(part) for part in text.split(".")]) if versions else "unknown"


def parse_version(text: str) -> "str | None":
    """`8.5.2` of `[TensorRT v8502]`, `10.3.0` of `[TensorRT v100300]`."""
    found = VERSION.search(text)
    if found is None:
        return None
    number = int(found.group(1))
    base = 10000 if number >= 100000 else 1000
    major, rest = divmod(number, base)
    return f"{major}.{rest // 100}.{rest % 100}"


class Call:
    """One call of trtexec that passed: its log, and what was seen of its process (`memory.seen_of`, the largest)."""

    def __init__(self, log: str, seen: "dict[str, int]", cpu_s: float) -> None:
        self.log = log
        self.seen = seen
        self.cpu_s = cpu_s


def call(path: str, options: "list[str]", limit_s: float, check: bool = True) -> Call:
    """Run trtexec (at `path`) with a file of the current folder for its log.

    Raises:
        Failed: it did not end in time, or (`check`) did not pass.
    """
    seen = {}  # type: dict[str, int]
    log = os.path.abspath("trtexec.log")
    with open(log, "wb") as out:
        process = subprocess.Popen([path] + options, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    before, deadline = os.times(), time.monotonic() + limit_s
    while True:
        for name, value in memory.seen_of(process.pid).items():
            seen[name] = max(value, seen.get(name, 0))
        try:
            code = process.wait(min(LOOK_SECONDS, max(0.01, deadline - time.monotonic())))
            break
        except subprocess.TimeoutExpired as problem:
            if time.monotonic() < deadline:
                continue
            process.kill()
            try:
                process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                raise Failed(f"trtexec does not end, even when killed, {limit_s:.0f} s after its start") from problem
            raise Failed(f"trtexec did not end within {limit_s:.0f} s") from problem
    after = os.times()
    text = _ends_of(log)
    os.unlink(log)
    if check and (code or "&&&& PASSED" not in text[-4096:]):
        errors = [line for line in text.splitlines() if "[E]" in line][-3:]
        raise Failed(f"trtexec failed: {(' / '.join(errors) or f'exit {code}')[:600]}")
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    return Call(text, seen, cpu_s)


def _ends_of(path: str) -> str:
    """The head and the tail of a log, whole where it is short."""
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        data = stream.read(HEAD_BYTES)
        if size > HEAD_BYTES:
            start = max(HEAD_BYTES, size - TAIL_BYTES)
            stream.seek(start)
            data += (b"\n" if start > HEAD_BYTES else b"") + stream.read(TAIL_BYTES)
    return data.decode("utf-8", "replace")


class Engine:
    """The engine of an artifact (`folder`, `document`) on this board: `prepare` builds it, `call` runs it."""

    def __init__(self, folder: str, document: "dict[str, Any]") -> None:
        self.document = document
        found = program()
        if found is None:
            raise Failed("trtexec is not here: apt-get install libnvinfer-bin")
        self.program = found
        runtime = document["runtime"]
        self.options = PRECISIONS[runtime.get("precision", "fp16")]
        self.model = os.path.join(folder, *store.safe_parts(runtime["model"]))
        self.version = parse_version(call(found, ["--help"], ASK_SECONDS, check=False).log) or installed_version()
        if self.version in (None, "unknown"):
            raise Failed("neither trtexec nor its library says which TensorRT this is: an engine could not be kept")
        board = device_tree("serial-number") or read_text("/etc/machine-id") or ""
        folder = os.path.abspath(folder)
        depends = "\n".join([os.path.basename(folder), board, gpu.release() or "", str(self.version)] + self.options)
        name = hashlib.sha256(depends.encode()).hexdigest() + ".plan"
        self.plan = os.path.join(os.path.dirname(os.path.dirname(folder)), "engines", name)
        self.kept = Kept(self.plan)

    def prepare(self) -> None:
        """Build the engine where there is none, or what lies there is not whole or does not load any more."""
        if not self.kept.fault():
            try:
                self.call(QUICKLY, RUN_SECONDS)
                self.kept.used()
                return
            except Failed as problem:
                sys.stderr.write(f"the engine is built anew: {problem}\n")
        self.kept.forget()
        self._build()

    def call(self, options: "list[str]", limit_s: float) -> Call:
        """Run trtexec with the engine (Failed)."""
        if not os.path.exists(self.plan):
            raise Failed("the engine is gone: measure again, it will be built")
        return call(self.program, ["--loadEngine=" + self.plan] + options, limit_s)

    def inputs(self, data: bytes, n: int, row: int, folder: str) -> str:
        """The option that loads a row of a raw block; its tensors become files of `folder`."""
        rest, pairs = blocks.take_rows(data, self.document["inputs"], n, [row]), []
        for number, tensor in enumerate(self.document["inputs"]):
            size = blocks.row_bytes(tensor)
            path = os.path.join(folder, f"input{number}.bin")
            with open(path, "wb") as stream:
                stream.write(rest[:size])
            rest = rest[size:]
            pairs.append("{}:{}".format(tensor["name"], path))
        return "--loadInputs=" + ",".join(pairs)

    def _build(self) -> None:
        """Minutes: TensorRT tries its kernels on this GPU."""
        os.makedirs(os.path.dirname(self.plan), exist_ok=True)
        part = self.plan + ".part"
        started = time.monotonic()
        try:
            call(self.program, ["--onnx=" + self.model, "--saveEngine=" + part] + self.options + QUICKLY, BUILD_SECONDS)
            if not os.path.exists(part) or not os.path.getsize(part):
                raise Failed("trtexec said that it passed and wrote no engine")
            self.kept.keep(part, {"seconds": round(time.monotonic() - started, 3), "tensorrt": self.version})
        finally:
            if os.path.exists(part):
                os.unlink(part)
