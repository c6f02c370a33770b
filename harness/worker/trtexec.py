"""The runtime `trtexec`: an engine that was built here from an ONNX file (`engine`), run and timed by NVIDIA's program.

Answers to rows come from `--exportOutput`, samples from `--exportTimes`; the median that the log claims must be that of
the samples. Each call times one input: trtexec knows no others.
"""

import argparse
import array
import json
import math
import os
import re
import sys
from typing import Any

from edgesdk.harness.worker import blocks, store, timing
from edgesdk.harness.worker.child import INTERNAL
from edgesdk.harness.worker.engine import QUICKLY, RUN_SECONDS, Engine, Failed

# What a value of a type may be; the largest float32 may be printed a little above what it is.
LARGEST = {"float32": 3.4028235e38, "int32": (1 << 31) - 1, "int64": (1 << 63) - 1}
AGREE = 0.02  # the log rounds, and its percentiles are not interpolated
LATENCY = re.compile(r"\[I\] Latency: (.{1,400})$", re.MULTILINE)
PAIR = re.compile(r"(min|max|mean|median|percentile\([0-9]{1,2}%\)) = ([0-9.]{1,20}) ms")
OLD_BLOCK = re.compile(r"\[I\] Host Latency\s*\n((?:.{0,200}\n){1,8})")
OLD_PAIR = re.compile(r"\[I\] (min|max|mean|median): ([0-9.]{1,20}) ms")
OLD_PERCENTILE = re.compile(r"\[I\] percentile: ([0-9.]{1,20}) ms at ([0-9]{1,2})%")
LOADED = re.compile(r"\[I\] Engine (?:deserialized|loaded) in ([0-9.]{1,20}) sec")


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
        values = [entry[key] for key in keys if type(entry.get(key)) in (int, float)]
        if len(values) != len(keys) or not all(0 <= value < 1e7 for value in values) or not sum(values) > 0:
            raise ValueError(f"the exported times hold something else than times: {entry!r:.80}")
        samples.append(max(1, int(round(sum(values) * 1e6))))
    return samples


def parse_output(data: "Any", tensors: "list[dict[str, Any]]") -> "list[bytes]":
    """The raw row of each output of a file of `--exportOutput` (ValueError)."""
    if not isinstance(data, list):
        raise ValueError("the exported output is malformed")
    found = {entry.get("name"): entry.get("values") for entry in data
             if isinstance(entry, dict) and isinstance(entry.get("name"), str)}
    rows = []
    for tensor in tensors:
        values = found.get(tensor["name"])
        if not isinstance(values, list) or len(values) != blocks.row_elements(tensor):
            raise ValueError("the exported output has no {} values of {}".format(
                blocks.row_elements(tensor), tensor["name"]
            ))
        # A NaN is exported as text, or as a name that JSON does not know; JSON's whole numbers have no largest one.
        most = LARGEST[tensor["dtype"]]
        if not all(type(value) in (int, float) and -most <= value <= most for value in values):
            raise ValueError("the exported output of {} holds something else than {} numbers".format(
                tensor["name"], tensor["dtype"]
            ))
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


def main(arguments: argparse.Namespace) -> int:
    """`build`, `run` and `bench` of a trtexec artifact; exit codes as of `runner`."""
    try:
        engine = Engine(arguments.artifact, store.read_json(os.path.join(arguments.artifact, "artifact.json")))
        if arguments.action == "build":
            engine.prepare()
            return 0
        with open(arguments.inputs, "rb") as stream:
            data = stream.read()
        (_run_rows if arguments.action == "run" else _bench)(engine, arguments, data)
    except (Failed, OSError, ValueError, KeyError) as problem:
        sys.stderr.write(f"{problem}\n")
        return INTERNAL
    return 0


def _run_rows(engine: Engine, arguments: argparse.Namespace, data: bytes) -> None:
    tensors = engine.document["outputs"]
    rows = [[] for _ in tensors]  # type: list[list[bytes]]
    path = os.path.abspath("exported.json")
    for row in range(arguments.n):
        inputs = engine.inputs(data, arguments.n, row, os.getcwd())
        engine.call([inputs, "--exportOutput=" + path] + QUICKLY, RUN_SECONDS)
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
    ended = engine.call(options, 2 * (arguments.warmup_seconds + arguments.window_seconds) + RUN_SECONDS)
    samples = array.array("q", parse_times(store.read_json(path)))
    os.unlink(path)
    p50 = timing.median(list(samples))
    claimed = parse_latency(ended.log).get("median")
    if claimed is None:
        raise Failed("the log claims no median that the exported times could be checked against")
    if abs(claimed * 1e6 - p50) > AGREE * p50:
        raise Failed(f"the log claims a median of {claimed} ms, the exported times have {p50 / 1e6:.6g} ms")
    loaded = LOADED.search(ended.log)
    found = {
        "format": "edgesdk.round", "version": 1, "count": len(samples), "batch": 1, "p50_ns": int(round(p50)),
        "cold_load_ns": int(float(loaded.group(1)) * 1e9) if loaded else None, "first_inference_ns": None,
        # Warm-up happens inside of trtexec: whether it was enough shows in the first samples.
        "steady": timing.is_steady(list(samples[: 2 * timing.BLOCK]), timing.BLOCK, arguments.steady_percent),
        "peak_rss_bytes": ended.seen.get("peak_rss"), "memory": ended.seen, "cpu_ns": int(ended.cpu_s * 1e9),
    }
    if sys.byteorder == "big":
        samples.byteswap()
    store.write_atomic(arguments.samples, samples.tobytes())
    print("\n" + json.dumps(found, sort_keys=True))
