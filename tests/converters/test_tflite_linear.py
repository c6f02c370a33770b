"""The four forms of a linear layer in TFLite against a slow reference in numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from litert_runtime import operators, run_once
from numpy.typing import NDArray

from edgesdk.converters.front import Encoding, Graph, Linear, Operator
from edgesdk.converters.tflite.model import translate
from edgesdk.errors import UnsupportedOp
from edgesdk.transformer.quantize import quantize_rows, row_scales

SHAPES = [(1, 4, 1), (1, 64, 10), (7, 33, 5), (20, 64, 48)]


def problem(shape: tuple[int, int, int], form: str, seed: int = 0) -> tuple[Linear, NDArray[np.float32]]:
    """A random layer y [rows, N] and its input x [rows, K]."""
    rows, k, n = shape
    random = np.random.default_rng(seed)
    weight, bias = random.normal(size=(n, k)).astype(np.float32), random.normal(size=n).astype(np.float32)
    x = (random.normal(size=(rows, k)) + 0.7).astype(np.float32)
    if form == "fp32":
        return Linear("layer", "fp32", "x", "y", weight, bias), x
    scale = row_scales(weight)
    integers = quantize_rows(weight, scale)
    if form != "w8a8":
        return Linear("layer", form, "x", "y", integers, bias, scale), x  # type: ignore[arg-type]
    source, result = encoding(x), encoding(x @ weight.T + bias)
    bias = np.rint(bias / (np.float32(source.scale) * scale)).astype(np.int32)
    return Linear("layer", "w8a8", "x", "y", integers, bias, scale, source, result), x


def encoding(values: NDArray[np.float32]) -> Encoding:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = float(np.float32(max(high - low, 1e-3) / 255))
    return Encoding(scale, int(np.rint(-128 - low / scale)))


def quantize(values: NDArray[Any], by: Encoding) -> NDArray[Any]:
    return np.asarray(np.clip(np.rint(values / by.scale) + by.zero_point, -128, 127).astype(np.int64))


def reference(layer: Linear, x: NDArray[np.float32]) -> NDArray[Any]:
    """The layer in float64, or in integers where the form says so."""
    if layer.form == "fp32":
        return np.asarray(x.astype(np.float64) @ layer.weight.T + layer.bias)
    assert layer.weight_scale is not None
    if layer.form != "w8a8":
        weight = layer.weight * layer.weight_scale[:, None].astype(np.float64)
        return np.asarray(x.astype(np.float64) @ weight.T + layer.bias)
    assert layer.input is not None and layer.output is not None
    accumulator = (quantize(x, layer.input) - layer.input.zero_point) @ layer.weight.T.astype(np.int64) + layer.bias
    integers = quantize(accumulator * (layer.input.scale * layer.weight_scale.astype(np.float64)), layer.output)
    return np.asarray((integers - layer.output.zero_point) * layer.output.scale)


def graph(nodes: tuple[Linear | Operator, ...], x: NDArray[np.float32], output: str) -> Graph:
    shapes = {"x": x.shape}
    for node in nodes:
        if isinstance(node, Linear):
            shapes[node.result] = (len(x), len(node.weight))
        else:
            shapes[node.outputs[0]] = shapes[node.inputs[0]]
    return Graph(nodes, {}, shapes, ("x",), (output,), {"x": "float32", output: "float32"})


@pytest.mark.parametrize("xnnpack", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["fp32", "w8"])
def test_float_forms(shape: tuple[int, int, int], form: str, xnnpack: bool) -> None:
    layer, x = problem(shape, form)
    data = translate(graph((layer,), x, "y"))
    expected = reference(layer, x)
    np.testing.assert_allclose(run_once(data, {"x": x}, xnnpack), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("xnnpack", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_static_int8_is_within_one_quantum(shape: tuple[int, int, int], xnnpack: bool) -> None:
    layer, x = problem(shape, "w8a8")
    data = translate(graph((layer,), x, "y"))
    assert layer.output is not None
    quanta = np.abs(run_once(data, {"x": x}, xnnpack) - reference(layer, x)) / layer.output.scale
    assert quanta.max() < 1.01
    assert (quanta > 0.01).mean() <= 0.06  # near ties only, which fixed-point kernels round the other way


def test_static_int8_saturates_as_the_reference_does() -> None:
    """Inputs beyond the input's range, and results beyond a quarter of the output's."""
    layer, x = problem((7, 33, 5), "w8a8")
    assert layer.output is not None
    narrow = Encoding(layer.output.scale / 4, layer.output.zero_point)
    layer = dataclasses.replace(layer, output=narrow)
    data = translate(graph((layer,), x, "y"))
    ends = [(end - narrow.zero_point) * narrow.scale for end in (-128, 127)]
    for values in (x, 3 * x):
        expected = reference(layer, values)
        assert np.isclose(expected, ends[0]).any() and np.isclose(expected, ends[1]).any()
        assert np.abs(run_once(data, {"x": values}) - expected).max() <= 1.01 * narrow.scale


@pytest.mark.parametrize("xnnpack", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_dynamic_int8(shape: tuple[int, int, int], xnnpack: bool) -> None:
    """The runtime chooses one scale per row of x: at most half a quantum of error for each input."""
    layer, x = problem(shape, "w8a8-dynamic")
    found = run_once(translate(graph((layer,), x, "y")), {"x": x}, xnnpack)
    assert layer.weight_scale is not None
    step = (np.maximum(x.max(1), 0) - np.minimum(x.min(1), 0)) / 255
    largest = np.abs(layer.weight * layer.weight_scale[:, None]).sum(1)
    assert (np.abs(found - reference(layer, x)) <= 0.51 * step[:, None] * largest + 1e-4).all()


@pytest.mark.parametrize("form", ["fp32", "w8", "w8a8", "w8a8-dynamic"])
def test_relu_becomes_part_of_the_layer(form: str) -> None:
    layer, x = problem((9, 16, 12), form)
    relu = Operator("Relu", "relu", ("y",), ("z",))
    data = translate(graph((layer, relu), x, "z"))
    plain = run_once(translate(graph((layer,), x, "y")), {"x": x})
    assert (plain < 0).any()
    np.testing.assert_allclose(run_once(data, {"x": x}), np.maximum(plain, 0), atol=1e-6)
    assert "RELU" not in [name for name, _ in operators(data)]


def test_relu_is_not_merged_where_the_layer_has_another_reader() -> None:
    layer, x = problem((9, 16, 12), "fp32")
    nodes = (layer, Operator("Relu", "relu", ("y",), ("z",)), Operator("Sub", "sub", ("z", "y"), ("d",)))
    data = translate(graph(nodes, x, "d"))
    np.testing.assert_allclose(run_once(data, {"x": x}), np.maximum(-reference(layer, x), 0), atol=1e-5)


def test_layers_share_one_quantized_input() -> None:
    layer, x = problem((9, 16, 12), "w8a8")
    second = dataclasses.replace(layer, name="second", result="w")
    nodes = (layer, second, Operator("Sub", "sub", ("y", "w"), ("d",)))
    data = translate(graph(nodes, x, "d"))
    assert [name for name, _ in operators(data)].count("QUANTIZE") == 1
    assert not run_once(data, {"x": x}).any()


@pytest.mark.parametrize(
    ("form", "version"), [("fp32", 1), ("w8", 1), ("w8a8", 4), ("w8a8-dynamic", 12)]
)
def test_versions_of_the_layer(form: str, version: int) -> None:
    """Version 12 keeps runtimes away that know per-tensor hybrid layers only and would answer wrongly."""
    layer, x = problem((9, 16, 12), form)
    assert ("FULLY_CONNECTED", version) in operators(translate(graph((layer,), x, "y")))


def test_input_of_another_rank_is_refused() -> None:
    layer, x = problem((9, 16, 12), "fp32")
    wrong = graph((layer,), x, "y")
    wrong.shapes["x"] = (1, 9, 16)
    with pytest.raises(UnsupportedOp, match="'layer'.*rank 3"):
        translate(wrong)
