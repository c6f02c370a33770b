"""Small artifacts for tests: an ONNX model, and runners that are scripts or C programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save_model

from edgesdk.converters.artifact import Artifact, ArtifactFile, Golden, Tensor, write_artifact
from edgesdk.harness.board import Board
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.verify import verify_measurement
from edgesdk.targets.target import Target

INPUTS, OUTPUTS = 6, 3
QUICK = load_profile("quick")


def measure_one(board: Board, target: Target, folder: Path, artifact: Path, **changes: Any) -> dict[str, Any]:
    """Measure one artifact; the document verifies."""
    values: dict[str, Any] = {"evaluation": None, "profile": QUICK, "seed": 0, "workdir": folder / "work", **changes}
    (document,) = measure(board, target, [artifact], **values)
    verify_measurement(folder / "work" / document["artifact"])
    return document


# A runner that obeys the command line of the NEON binaries, in Python; FAULT is code that runs first.
RUNNER = """#!{python}
import argparse, array, json, os, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("action")
for name in ("inputs", "outputs", "samples"):
    parser.add_argument("--" + name)
for name in ("n", "seed", "warmup-iterations", "min-samples"):
    parser.add_argument("--" + name, type=int)
for name in ("warmup-seconds", "window-seconds", "max-warmup-seconds"):
    parser.add_argument("--" + name, type=float)
options = parser.parse_args()
{fault}
rows = array.array("f")
rows.frombytes(open(options.inputs, "rb").read())
assert len(rows) == 6 * options.n
weights = {weights}
def infer(row):
    x = rows[6 * row : 6 * row + 6]
    return [sum(a * w[column] for a, w in zip(x, weights)) for column in range(3)]
if options.action == "run":
    out = array.array("f", [value for row in range(options.n) for value in infer(row)])
    open(options.outputs, "wb").write(out.tobytes())
elif options.action == "bench":
    samples = array.array("q")
    row = total = 0
    while row < max(20, options.min_samples) or total < options.window_seconds * 1e9:
        start = time.monotonic_ns()
        for _ in range(4):
            infer(row % options.n)
        samples.append(time.monotonic_ns() - start)
        total += samples[-1] if samples[-1] > 0 else 1000000
        row += 1
    open(options.samples, "wb").write(samples.tobytes())
    ordered = sorted(samples)
    p50 = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2 // 4
    print(json.dumps({{"format": "edgesdk.round", "version": 1, "count": len(samples), "batch": 4, "p50_ns": p50,
        "cold_load_ns": 5, "first_inference_ns": 7, "warmup": {{"iterations": 2, "seconds": 0.1}}, "steady": True,
        "peak_rss_bytes": 4096, "cpu_ns": 11}}))
elif options.action == "count":
    out = open(os.environ["QEMU_PLUGIN"].split(",out=")[1], "a")
    for row in range(options.n):
        for tag in (1, 2):
            out.write(json.dumps({{"edgecount": "mark", "tag": tag, "total": 1000 * tag + row, "dot": 16}}) + chr(10))
"""


def runner(fault: str = "") -> bytes:
    """The runner's bytes; `fault` is one line of Python, run before anything else."""
    return RUNNER.format(python=sys.executable, fault=fault, weights=weights().tolist()).encode()


def golden_rows(n: int = 32, seed: int = 0) -> NDArray[np.float32]:
    """Input rows [n, 6]."""
    return np.random.default_rng(seed).standard_normal((n, INPUTS)).astype(np.float32)


def weights() -> NDArray[np.float32]:
    """[6, 3]."""
    return (np.arange(INPUTS * OUTPUTS, dtype=np.float32).reshape(INPUTS, OUTPUTS) - 8) / 10


def describe(name: str, runtime: dict[str, Any], files: Sequence[str], **changes: Any) -> Artifact:
    """An artifact with one float input [1, 6] and one float output [1, 3]."""
    values: dict[str, Any] = {
        "name": name, "converter": "onnx", "scheme": "fp32", "target": "host", "package": "0" * 64, "runtime": runtime,
        "files": tuple(ArtifactFile(file, "", 0) for file in files),
        "inputs": (Tensor("features", "float32", (1, INPUTS)),),
        "outputs": (Tensor("logits", "float32", (1, OUTPUTS)),), "golden": Golden(32, "max_abs", 1e-4), **changes,
    }
    return Artifact(**values)


def onnx_artifact(folder: Path, name: str = "tiny-fp32-onnx", wrong: bool = False) -> Path:
    """logits = features @ weights; `wrong` makes golden outputs that the model does not give."""
    folder.mkdir(parents=True)
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", INPUTS])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", OUTPUTS])
    node = helper.make_node("MatMul", ["features", "w"], ["logits"])
    graph = helper.make_graph([node], "g", [features], [logits], [numpy_helper.from_array(weights(), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_model(model, str(folder / "model.onnx"))
    rows = golden_rows()
    expected = rows @ weights() + (1.0 if wrong else 0.0)
    write_artifact(folder, describe(name, {"name": "onnxruntime"}, ["model.onnx"]), [rows], [expected])
    return folder


def runner_artifact(folder: Path, program: bytes, name: str = "tiny-neon", **changes: Any) -> Path:
    """An artifact whose executable is `program` (a script or a binary)."""
    folder.mkdir(parents=True)
    (folder / "model").write_bytes(program)
    values: dict[str, Any] = {"runtime": {"name": "neon"}, "executable": "model", "converter": "neon", **changes}
    artifact = describe(name, values.pop("runtime"), ["model"], **values)
    rows = golden_rows()
    write_artifact(folder, artifact, [rows], [rows @ weights()])
    return folder


LOAD_CODES = ("E_LOAD", "E_NOISY", "E_DRIFT", "E_NOT_STEADY", "E_BIMODAL", "E_BOARD_CHANGED", "E_BACKGROUND_LOAD")


def assert_measured(document: dict[str, Any]) -> None:
    """A measurement over SSH that came to its end: right outputs, and nothing wrong with it but that this machine was
    busy, which strict profiles refuse."""
    assert document["golden"]["passed"], document["reasons"]
    codes = {code for reason in document["reasons"] for code in reason.partition(":")[0].split(", ")}
    assert codes <= set(LOAD_CODES), document["reasons"]
