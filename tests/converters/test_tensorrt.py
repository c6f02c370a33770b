"""The tensorrt converter: what it refuses, and that its ONNX file answers as the package does (by ONNX Runtime)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from sample_graphs import LLAMA

from edgesdk.converters import converter, tensorrt
from edgesdk.converters.artifact import read_artifact, tolerance
from edgesdk.evaluate import golden_outputs, sqnr_db
from edgesdk.files import atomic_folder
from edgesdk.package import Samples
from edgesdk.targets import load_target
from edgesdk.testing.converters import golden_block, sample_package
from edgesdk.testing.models import SPECS, random_inputs, random_package, random_weights
from edgesdk.transformer.graph import write_graph

TARGET = load_target("jetson/orin-nano")


def outputs(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """(found, golden) outputs of an artifact's file, row by row."""
    artifact = read_artifact(folder)
    inputs = golden_block(folder / artifact.golden.inputs, artifact.golden.n, artifact.inputs)
    (expected,) = golden_block(folder / artifact.golden.outputs, artifact.golden.n, artifact.outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    rows = []
    for row in range(artifact.golden.n):
        feeds = {t.name: value[row : row + 1] for t, value in zip(artifact.inputs, inputs, strict=True)}
        rows.append(session.run([artifact.outputs[0].name], feeds)[0])
    return np.concatenate(rows), expected


def half(model: bytes, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs with every intermediate in float16, by numpy: ONNX Runtime's CPU computes float16 in float32."""
    found: list[NDArray[Any]] = ReferenceEvaluator(onnx.load_from_string(model)).run(None, feeds)  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0, 2e4])
def test_rms_norm_of_large_and_small_rows(size: float) -> None:
    """In float16 the squares of what is above 255 would be infinite, those below 2e-4 zero. A row of zeros stays."""
    parts = [("Mul", ["x", "x"], "square"), ("ReduceMean", ["square", "axes"], "mean"),
             ("Add", ["mean", "epsilon"], "shifted"), ("Sqrt", ["shifted"], "root"), ("Div", ["x", "root"], "normal"),
             ("Mul", ["normal", "weight"], "y")]
    nodes = [onnx.helper.make_node(kind, inputs, [out], name=out) for kind, inputs, out in parts]
    constants = {"axes": np.array([-1]), "epsilon": np.array(1e-6, np.float32), "weight": np.ones(64, np.float32)}
    values = [onnx.helper.make_tensor_value_info(text, onnx.TensorProto.FLOAT, [3, 64]) for text in ("x", "y")]
    initializers = [onnx.numpy_helper.from_array(value, text) for text, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    rows = (size * np.random.default_rng(0).normal(size=(3, 64))).clip(-6e4, 6e4).astype(np.float32)
    rows[2] = 0
    (found,) = half(tensorrt.lowered(model.SerializeToString(), 1), {"x": rows})
    wanted = rows / np.sqrt((rows.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6)
    assert np.isfinite(found).all() and sqnr_db(wanted, found) > 50 and not found[2].any()


def test_a_llama_with_large_activations(tmp_path: Path) -> None:
    """A first layer that puts out thousands, as real models of this kind do: answers stay those of the float model."""
    weights = random_weights(LLAMA)
    weights["layers.0.ffn.down.weight"] *= 1000
    golden = random_inputs(LLAMA, 3, 1)
    graph = write_graph(LLAMA, weights)
    reference, _ = golden_outputs(LLAMA, weights, graph, False, golden)
    package = dataclasses.replace(
        random_package(LLAMA), weights=weights, graph=graph,
        samples=Samples(random_inputs(LLAMA, 8, 2), golden, reference, reference, reference),
    )
    assert not tensorrt.check(package, TARGET)
    with atomic_folder(tmp_path / "a") as folder:
        tensorrt.convert(package, TARGET, folder)
    model = (tmp_path / "a/model.onnx").read_bytes()
    rows = [half(model, {name: value[row : row + 1].astype(np.int32) for name, value in golden.items()})[0]
            for row in range(3)]
    found, expected = np.concatenate(rows), reference
    assert np.isfinite(found).all() and sqnr_db(expected, found) > 40


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_it_answers_as_the_package(kind: str, tmp_path: Path) -> None:
    """Half precision inside, float32 outside, 30 dB and far more against the float model."""
    package = sample_package(kind, "fp32")
    assert not tensorrt.check(package, TARGET)
    with atomic_folder(tmp_path / "a") as folder:
        artifact = tensorrt.convert(package, TARGET, folder)
    assert (artifact.scheme, artifact.runtime["name"], artifact.work) == ("fp16", "trtexec", "constant")
    golden = artifact.golden
    assert (golden.kind, golden.limit, golden.labels_equal, golden.noise_db) == tolerance("fp16")
    found, expected = outputs(tmp_path / "a")
    assert found.dtype == np.float32 and sqnr_db(expected, found) > 40
    model = onnx.load(tmp_path / "a/model.onnx")
    assert {entry.version for entry in model.opset_import} == {17}
    assert not {"Gelu", "If"} & {node.op_type for node in model.graph.node}
    for value in (*model.graph.input, *model.graph.output):
        assert all(extent.dim_value > 0 for extent in value.type.tensor_type.shape.dim)
        assert value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32)
    assert onnx.TensorProto.FLOAT not in {entry.data_type for entry in model.graph.initializer}


def test_gelu_with_tanh() -> None:
    """Both forms against the operator itself."""
    for approximate in ("none", "tanh"):
        node = onnx.helper.make_node("Gelu", ["x"], ["y"], approximate=approximate)
        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 64])
        y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 64])
        graph = onnx.helper.make_graph([node], "g", [x], [y])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        data = np.linspace(-6, 6, 64, dtype=np.float32)[None]
        results = [
            onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"]).run(None, {"x": data})[0]
            for text in (model.SerializeToString(), tensorrt.lowered(model.SerializeToString(), 1))
        ]
        assert np.abs(results[0] - results[1]).max() < 8e-3


@pytest.mark.parametrize(
    ("scheme", "words"), [("w8a8", "zero point 0 only"), ("w8a8-dynamic", "no dynamic quantization")]
)
def test_quantized_packages_are_refused_with_the_reason(scheme: str, words: str) -> None:
    """No second calibration behind the user's back."""
    (reason,) = tensorrt.check(sample_package("vit", scheme), TARGET)
    assert words in reason and scheme in reason


def test_other_targets_are_refused() -> None:
    """A Raspberry Pi has no TensorRT."""
    reasons = converter("tensorrt").check(sample_package("vit", "fp32"), load_target("rpi4"))
    assert len(reasons) == 2 and all("raspberry-pi/4" in reason for reason in reasons)
