"""The runtime `trtexec`: an engine built here from an ONNX file by NVIDIA's own program, run and timed by it.

The engine lies beside the artifact, under a digest of what it depends on beyond the artifact: the board, the version of
TensorRT, the precision. Answers to rows come from `--exportOutput`, samples from `--exportTimes`; the median that the
log claims must be that of the samples. Each call times one input: trtexec knows no others.
"""

import argparse
import array
import glob
import hashlib
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

from edgesdk.harness.worker import blocks, store, timing
from edgesdk.harness.worker.system import device_tree, read_text

PLACES = ("/usr/src/tensorrt/bin/trtexec",)
LIBRARIES = ("/usr/lib/*-linux-gnu/libnvinfer.so.*", "/usr/lib/libnvinfer.so.*")
# TF32 has 10 bits: an engine that is called fp32 must not use it.
PRECISIONS = {"fp32": ["--noTF32"], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}
BUILD_SECONDS = 3600.0
RUN_SECONDS = 300.0
LOG_BYTES = 1 << 20
AGREE = 0.02  # the log rounds, and its percentiles are not interpolated
VERSION = re.compile(r"\[TensorRT v([0-9]{4,7})\]")
LIBRARY = re.compile(r"libnvinfer\.so\.([0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3})$")
LATENCY = re.compile(r"\[I\] Latency: (.{1,400})$", re.MULTILINE)
PAIR = re.compile(r"(min|max|mean|median|percentile\([0-9]{1,2}%\)) = ([0-9.]{1,20}) ms")
OLD_BLOCK = re.compile(r"\[I\] Host Latency\s*\n((?:.{0,200}\n){1,8})")
OLD_PAIR = re.compile(r"\[I\] (min|max|mean|median): ([0-9.]{1,20}) ms")
OLD_PERCENTILE = re.compile(r"\[I\] percentile: ([0-9.]{1,20}) ms at ([0-9]{1,2})%")
LOADED = re.compile(r"\[I\] Engine (?:deserialized|loaded) in ([0-9.]{1,20}) sec")


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


def parse_latency(text: str) -> "dict[str, float]":
    """Milliseconds by name (`median`, `percentile(99%)` …) of a log: the one line of TensorRT 8 and later, or the block
    `Host Latency` of older ones; {} where there is neither. "End-to-End Host Latency" is something else."""
    lines = LATENCY.findall(text)
    if lines:
        return _numbers(PAIR.findall(lines[-1]))
    block = OLD_BLOCK.search(text)
    if block is None:
        return {}
    pairs = OLD_PAIR.findall(block.group(1))
    pairs += [(f"percentile({share}%)", value) for value, share in OLD_PERCENTILE.findall(block.group(1))]
    return _numbers(pairs)


def parse_times(data: "Any") -> "list[int]":
    """Nanoseconds of each inference, copies to and from the GPU included, of a file of `--exportTimes` (ValueError)."""
    if not isinstance(data, list) or not data:
        raise ValueError("the exported times hold no inference")
    samples = []
    for entry in data:
        if not isinstance(entry, dict):
            raise ValueError("the exported times are malformed")
        keys = ["latencyMs"] if entry.get("latencyMs") is not None else ["inMs", "computeMs", "outMs"]
        values = [float(entry[key]) for key in keys if type(entry.get(key)) in (int, float)]
        if len(values) != len(keys) or not all(0 <= value < 1e7 for value in values) or not sum(values) > 0:
            raise ValueError(f"the exported times hold something else than times: {entry!r:.80}")
        samples.append(max(1, int(round(sum(values) * 1e6))))
    return samples


def parse_output(data: "Any", tensors: "list[dict[str, Any]]") -> "list[bytes]":
    """The raw row of each output of a file of `--exportOutput` (ValueError)."""
    if not isinstance(data, list):
        raise ValueError("the exported output is malformed")
    found = {entry.get("name"): entry.get("values") for entry in data if isinstance(entry, dict)}
    rows = []
    for tensor in tensors:
        values = found.get(tensor["name"])
        if not isinstance(values, list) or len(values) != blocks.row_elements(tensor):
            raise ValueError("the exported output has no {} values of {}".format(
                blocks.row_elements(tensor), tensor["name"]
            ))
        # A NaN is exported as text, or as a name that JSON does not know.
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise ValueError("the exported output of {} holds something else than numbers".format(tensor["name"]))
        whole = tensor["dtype"] != "float32"
        row = array.array(blocks.CODES[tensor["dtype"]], [int(value) if whole else value for value in values])
        if sys.byteorder == "big":
            row.byteswap()
        rows.append(row.tobytes())
    return rows


def _numbers(pairs: "list[tuple[str, str]]") -> "dict[str, float]":
    found = {}
    for name, text in pairs:
        try:
            found[name] = float(text)
        except ValueError:
            continue
    return found


class Failed(Exception):
    """trtexec did not do what was asked; the text is for people."""


class Engine:
    """The engine of an artifact (`folder`, `document`) on this board, built on first use."""

    def __init__(self, folder: str, document: "dict[str, Any]") -> None:
        self.document = document
        found = program()
        if found is None:
            raise Failed("trtexec is not here: apt-get install libnvinfer-bin")
        self.program = found
        runtime = document["runtime"]
        self.options = PRECISIONS[runtime.get("precision", "fp16")]
        self.model = os.path.join(folder, *store.safe_parts(runtime["model"]))
        board = device_tree("serial-number") or read_text("/etc/machine-id") or ""
        release = read_text("/etc/nv_tegra_release", 400) or ""
        depends = "\n".join([board, release, str(installed_version())] + self.options)
        self.plan = os.path.join(folder, "engines", hashlib.sha256(depends.encode()).hexdigest()[:16] + ".plan")
        if not os.path.exists(self.plan):
            self._build()

    def call(self, options: "list[str]", limit_s: float) -> str:
        """Run trtexec with the engine; returns its log."""
        return self._run(["--loadEngine=" + self.plan] + options, limit_s)

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
        """Minutes: TensorRT tries its kernels on this GPU. The engine gets its name when it is whole."""
        os.makedirs(os.path.dirname(self.plan), exist_ok=True)
        part = self.plan + ".part"
        started = time.monotonic()
        build = ["--onnx=" + self.model, "--saveEngine=" + part, "--skipInference"]
        log = self._run(build + self.options, BUILD_SECONDS)
        if not os.path.exists(part) or not os.path.getsize(part):
            raise Failed("trtexec said that it passed and wrote no engine")
        note = {"seconds": round(time.monotonic() - started, 3), "tensorrt": parse_version(log)}
        store.write_json(self.plan + ".json", note)
        os.replace(part, self.plan)

    def _run(self, options: "list[str]", limit_s: float) -> str:
        process = subprocess.Popen(
            [self.program] + options, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            data = process.communicate(timeout=limit_s)[0]
        except subprocess.TimeoutExpired as problem:
            process.kill()
            process.communicate()
            raise Failed(f"trtexec did not end within {limit_s:.0f} s") from problem
        log = data[:LOG_BYTES].decode("utf-8", "replace")
        if process.returncode or "&&&& PASSED" not in data[-4096:].decode("utf-8", "replace"):
            errors = [line for line in log.splitlines() if "[E]" in line][-3:]
            text = " / ".join(errors) or f"exit {process.returncode}"
            raise Failed(f"trtexec failed: {text[:600]}")
        return log


def main(arguments: argparse.Namespace) -> int:
    """`run`, `bench` and `info` of a trtexec artifact; exit codes as of `runner`."""
    try:
        document = store.read_json(os.path.join(arguments.artifact, "artifact.json"))
        if arguments.action == "info":
            print(json.dumps({key: document[key] for key in ("name", "inputs", "outputs")}))
            return 0
        if arguments.action not in ("run", "bench"):
            raise Failed("a GPU executes no instructions that qemu could count")
        engine = Engine(arguments.artifact, document)
        with open(arguments.inputs, "rb") as stream:
            data = stream.read()
        (_run_rows if arguments.action == "run" else _bench)(engine, arguments, data)
    except (Failed, OSError, ValueError, KeyError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 70
    return 0


def _run_rows(engine: Engine, arguments: argparse.Namespace, data: bytes) -> None:
    tensors = engine.document["outputs"]
    rows = [[] for _ in tensors]  # type: list[list[bytes]]
    path = os.path.abspath("exported.json")
    quickly = ["--warmUp=0", "--duration=0", "--iterations=1", "--exportOutput=" + path]
    for row in range(arguments.n):
        engine.call([engine.inputs(data, arguments.n, row, os.getcwd())] + quickly, RUN_SECONDS)
        for block, value in zip(rows, parse_output(store.read_json(path), tensors)):  # noqa: B905
            block.append(value)
        os.unlink(path)
    store.write_atomic(arguments.outputs, b"".join(b"".join(block) for block in rows))


def _bench(engine: Engine, arguments: argparse.Namespace, data: bytes) -> None:
    row = timing.seeded_order(arguments.n, arguments.seed)[0]
    path = os.path.abspath("times.json")
    options = [
        engine.inputs(data, arguments.n, row, os.getcwd()), f"--warmUp={math.ceil(1000 * arguments.warmup_seconds)}",
        f"--duration={math.ceil(arguments.window_seconds)}", f"--iterations={arguments.min_samples}",
        "--useSpinWait", "--exportTimes=" + path,
    ]
    log = engine.call(options, 2 * (arguments.warmup_seconds + arguments.window_seconds) + RUN_SECONDS)
    samples = array.array("q", parse_times(store.read_json(path)))
    os.unlink(path)
    p50 = timing.median(list(samples))
    claimed = parse_latency(log).get("median")
    if claimed is not None and abs(claimed * 1e6 - p50) > AGREE * p50:
        raise Failed(f"the log claims a median of {claimed} ms, the exported times have {p50 / 1e6:.6g} ms")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = LOADED.search(log)
    found = {
        "format": "edgesdk.round", "version": 1, "count": len(samples), "batch": 1, "p50_ns": int(round(p50)),
        "cold_load_ns": int(float(loaded.group(1)) * 1e9) if loaded else None, "first_inference_ns": None,
        # Warm-up happens inside of trtexec: whether it was enough shows in the first samples.
        "steady": timing.is_steady(list(samples[: 2 * timing.BLOCK]), timing.BLOCK, arguments.steady_percent),
        "peak_rss_bytes": children.ru_maxrss * 1024, "cpu_ns": int((children.ru_utime + children.ru_stime) * 1e9),
    }
    if sys.byteorder == "big":
        samples.byteswap()
    store.write_atomic(arguments.samples, samples.tobytes())
    print("\n" + json.dumps(found, sort_keys=True))
