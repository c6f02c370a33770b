"""The ONNX writer: equal to torch in float, equal to slow numpy where quantized, and fast forms that really fuse."""

from __future__ import annotations

import collections
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from edgesdk.encodings import ActivationEncoding, Encodings, WeightEncoding
from edgesdk.evaluate import run_graph, sqnr_db
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.testing.models import (
    BERT,
    BERT_MEAN,
    FEATURES,
    SPECS,
    VIT,
    VIT_MEAN,
    random_context,
    random_inputs,
    random_package,
    random_weights,
    staged,
    with_weights,
)
from edgesdk.transformer import graph_parts as graph_module
from edgesdk.transformer import module as module_module
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.module import build, run
from edgesdk.transformer.quantize import quantize_rows, row_scales
from edgesdk.transformer.spec import FeatureEmbedding, Layer, TransformerSpec

VARIANTS: dict[str, TransformerSpec] = SPECS | {
    "vit_post_3_channels": dataclasses.replace(
        VIT_MEAN, norm="post", activation="gelu_tanh", pooling="cls", final_norm=False
    ),
    "vit_encoder": dataclasses.replace(VIT, classes=None, pooling="none"),
    "vit_pooler": dataclasses.replace(VIT, pooler=True, activation="gelu_tanh"),
    "bert_pre_mean_classes": dataclasses.replace(BERT, norm="pre", pooling="mean", pooler=False, final_norm=True),
    "bert_tokens_out": dataclasses.replace(BERT_MEAN, pooling="none"),
    "bert_embedding_by_pooler": dataclasses.replace(BERT, classes=None),
    "features_mean_classes": dataclasses.replace(FEATURES, pooling="mean", classes=2, activation="gelu"),
    "features_pre_cls": dataclasses.replace(
        FEATURES, norm="pre", pooling="cls", embedding=FeatureEmbedding(12, norm=True)
    ),
    "grouped_pre": dataclasses.replace(BERT, norm="pre", layers=(Layer(4, 2, 4, 8), Layer(6, 1, 2, 12))),
    "one_head_one_class": dataclasses.replace(FEATURES, pooling="mean", classes=1, layers=(Layer(1, 1, 3, 5),)),
}


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
def test_onnx_equals_torch(spec: TransformerSpec) -> None:
    weights, inputs = random_weights(spec), random_inputs(spec, 3)
    graph = write_graph(spec, weights)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    expected = run(build(spec, weights), inputs)
    for optimize in (False, True):
        for batch in (1, 3):
            outputs = run_graph(graph, inputs, optimize=optimize, batch=batch)
            np.testing.assert_allclose(outputs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_quantized_graph_is_near_the_float_one(spec: TransformerSpec, scheme: Any) -> None:
    package = random_package(spec)
    context = random_context(package)
    change = QuantizePtq(QuantizePtqOptions(scheme=scheme, calibrator="minmax")).apply(package, context)
    graph = write_graph(spec, package.weights, change.encodings)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    inputs = context.calibration.inputs
    expected = run(build(spec, package.weights), inputs)
    for optimize in (False, True):
        assert sqnr_db(expected, run_graph(graph, inputs, optimize=optimize, batch=1)) > 20


@pytest.mark.parametrize("spec", [VIT, BERT, FEATURES], ids=["vit", "bert", "features"])
def test_equal_inputs_give_equal_bytes(spec: TransformerSpec) -> None:
    weights = random_weights(spec)
    shuffled = dict(reversed(weights.items()))
    assert write_graph(spec, weights) == write_graph(spec, shuffled)
    weights["layers.0.ffn.up.bias"] = weights["layers.0.ffn.up.bias"] + np.float32(1)
    assert write_graph(spec, weights) != write_graph(spec, shuffled)


@pytest.mark.parametrize("optimize", [False, True])
def test_padding_changes_nothing(optimize: bool) -> None:
    for spec in (BERT, BERT_MEAN):
        graph = write_graph(spec, random_weights(spec))
        ids = random_inputs(spec, 3)["input_ids"]
        mask = np.concatenate([np.ones((3, 5), np.int64), np.zeros((3, 3), np.int64)], 1)
        padded = run_graph(graph, {"input_ids": ids, "attention_mask": mask}, optimize=optimize)
        short = run_graph(graph, {"input_ids": ids[:, :5], "attention_mask": mask[:, :5]}, optimize=optimize)
        np.testing.assert_allclose(padded, short, atol=1e-6)


def test_masks_of_torch_and_onnx_are_one_number() -> None:
    assert graph_module.MASK == module_module.MASK


class _Exported(torch.nn.Module):
    """The module with plain tensors as inputs, as torch's exporter wants it."""

    def __init__(self, spec: TransformerSpec, weights: Any, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = build(spec, weights), names

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.module(dict(zip(self.names, values, strict=True)))
        return output


@pytest.mark.parametrize("spec", [VIT, BERT], ids=["vit", "bert"])
@pytest.mark.filterwarnings("ignore")
def test_torchs_own_exporter_agrees(spec: TransformerSpec, tmp_path: Path) -> None:
    """A second way to ONNX, which shares no line with the writer."""
    weights, inputs = random_weights(spec), random_inputs(spec, 2)
    names, file = list(inputs), tmp_path / "exported.onnx"
    torch.onnx.export(
        _Exported(spec, weights, names), tuple(torch.from_numpy(value) for value in inputs.values()), file,
        input_names=names, output_names=[spec.output], opset_version=17, dynamo=False,
    )
    expected = run_graph(file.read_bytes(), inputs)
    np.testing.assert_allclose(run_graph(write_graph(spec, weights), inputs), expected, atol=1e-5)


# --- quantized linear layers against slow numpy -----------------------------------------------------------------------


SMALL = TransformerSpec(FeatureEmbedding(4), 6, (Layer(1, 1, 4, 5),), "pre", 1e-5, "relu", "none")


def _tensors(graph: bytes, inputs: dict[str, NDArray[Any]], names: list[str]) -> list[NDArray[Any]]:
    """Values of inner tensors, computed node by node as the file says."""
    model = onnx.load_from_string(graph)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return list(session.run(names, inputs))


def _weight_encodings(spec: TransformerSpec, weights: dict[str, NDArray[Any]]) -> dict[str, WeightEncoding]:
    return {name: WeightEncoding(8, 0, row_scales(value)) for name, value in weights.items() if value.ndim == 2}


def _fake(value: NDArray[Any], encoding: ActivationEncoding) -> NDArray[np.float64]:
    """Fake quantization of a float tensor: round half to even, saturate to int8."""
    result = np.empty(value.shape, np.float64)
    for index in np.ndindex(value.shape):
        steps = np.rint(np.float32(value[index]) / np.float32(encoding.scale))
        integer = min(127, max(-128, int(steps) + encoding.zero_point))
        result[index] = encoding.scale * (integer - encoding.zero_point)
    return result


def test_static_linear_equals_slow_fake_quantization() -> None:
    weights, inputs = random_weights(SMALL), random_inputs(SMALL, 2)
    weights["layers.0.ffn.up.bias"] *= 20  # beyond the range of the output: saturation is part of the contract
    activations = {
        "layers.0.ffn.input": ActivationEncoding(0.02, -7), "layers.0.ffn.up": ActivationEncoding(0.015, 11),
        "layers.0.ffn.hidden": ActivationEncoding(0.012, -128), "layers.0.ffn.down": ActivationEncoding(0.03, 0),
    }
    encodings = Encodings("w8a8", "minmax", 2, activations, _weight_encodings(SMALL, weights))
    graph = write_graph(SMALL, weights, encodings)
    for part, source, expected_name in (("up", "normed", "input"), ("down", "active", "hidden")):
        x, y = _tensors(graph, inputs, [f"layers.0.ffn.{source}", f"layers.0.ffn.{part}.dq"])
        weight, bias = weights[f"layers.0.ffn.{part}.weight"], weights[f"layers.0.ffn.{part}.bias"]
        scale = row_scales(weight)
        integers = quantize_rows(weight, scale).astype(np.float64)
        entry = activations[f"layers.0.ffn.{expected_name}"]
        bias_scale = scale.astype(np.float64) * entry.scale
        fake_bias = np.rint(bias / bias_scale) * bias_scale
        plain = _fake(x, entry) @ (integers * scale[:, None]).T + fake_bias
        output = activations[f"layers.0.ffn.{part}"]
        error = np.abs(y - _fake(plain, output))
        assert error.max() <= output.scale * 1.01  # float sums may round one step the other way …
        assert (error > output.scale * 0.1).mean() < 0.02  # … at a tie, which is rare


def test_bias_beyond_int32_saturates_towards_its_sign() -> None:
    weights = random_weights(SMALL)
    weights["layers.0.ffn.up.weight"] = weights["layers.0.ffn.up.weight"] * np.float32(1e-12)
    weights["layers.0.ffn.up.bias"] = np.array([1, -1, 2, -2, 3], np.float32)
    activations = {"layers.0.ffn.input": ActivationEncoding(0.02, 0), "layers.0.ffn.up": ActivationEncoding(0.03, 0)}
    encodings = Encodings("w8a8", "minmax", 2, activations, _weight_encodings(SMALL, weights))
    model = onnx.load_from_string(write_graph(SMALL, weights, encodings))
    bias = next(t for t in model.graph.initializer if t.name == "layers.0.ffn.up.bias")
    assert np.sign(numpy_helper.to_array(bias)).tolist() == [1, -1, 1, -1, 1]


def test_ptq_keeps_biases_of_rows_with_tiny_weights() -> None:
    package = random_package(FEATURES)
    weights = dict(package.weights)
    weights["layers.0.ffn.up.weight"] = weights["layers.0.ffn.up.weight"].copy()
    weights["layers.0.ffn.up.weight"][3] *= 1e-12
    package = with_weights(package, **{"layers.0.ffn.up.weight": weights["layers.0.ffn.up.weight"]})
    quantized = staged(package, QuantizePtq(QuantizePtqOptions()))
    (up,) = _tensors(quantized.graph, dict(package.samples.golden_inputs), ["layers.0.ffn.up.dq"])
    np.testing.assert_allclose(up[:, 3], weights["layers.0.ffn.up.bias"][3], atol=0.05)


def test_dynamic_linear_equals_slow_numpy() -> None:
    weights, inputs = random_weights(SMALL), random_inputs(SMALL, 1)
    encodings = Encodings("w8a8-dynamic", None, 0, {}, _weight_encodings(SMALL, weights))
    x, y = _tensors(
        write_graph(SMALL, weights, encodings), inputs, ["layers.0.ffn.normed", "layers.0.ffn.up.output"]
    )
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (high - low) / 255
    zero_point = min(255, max(0, round(-low / scale)))
    weight, bias = weights["layers.0.ffn.up.weight"], weights["layers.0.ffn.up.bias"]
    rows = row_scales(weight)
    integers = quantize_rows(weight, rows).astype(np.int64)
    expected = np.empty(y.shape)
    for row in range(len(x)):
        quantized = [min(255, max(0, int(np.rint(value / scale)) + zero_point)) - zero_point for value in x[row]]
        for column in range(len(weight)):
            total = sum(int(a) * int(b) for a, b in zip(quantized, integers[column], strict=True))
            expected[row, column] = total * scale * float(rows[column]) + float(bias[column])
    np.testing.assert_allclose(y, expected, atol=2e-3)
    assert np.abs(y - (x @ weight.T + bias)).max() > 1e-4  # it did quantize


def test_quantized_table_gathers_int8_rows() -> None:
    package = staged(random_package(BERT), QuantizePtq(QuantizePtqOptions()))
    initializers = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(package.graph).graph.initializer}
    for name in ("embedding.tokens.weight", "embedding.positions.weight"):
        table, scale = initializers[name], initializers[f"{name}.scale"]
        assert table.dtype == np.int8
        assert scale.shape == (len(table), 1)
        np.testing.assert_allclose(table * scale, package.weights[name], atol=float(scale.max()) * 0.51)
    ids = package.samples.golden_inputs["input_ids"]
    rows = _tensors(package.graph, dict(package.samples.golden_inputs), ["embedding.tokens.weight.rows"])[0]
    table = initializers["embedding.tokens.weight"] * initializers["embedding.tokens.weight.scale"]
    np.testing.assert_array_equal(rows, table[ids])


def test_classifier_of_a_static_package_is_weight_only() -> None:
    package = staged(random_package(VIT), QuantizePtq(QuantizePtqOptions()))
    nodes = onnx.load_from_string(package.graph).graph.node
    (classifier,) = [node for node in nodes if node.op_type == "Gemm" and node.input[1] == "classifier.weight.dq"]
    makers = {name: node.op_type for node in nodes for name in node.output}
    assert makers[classifier.input[0]] != "DequantizeLinear"
    assert classifier.input[2] not in makers
    assert classifier.output[0] == "logits"


def test_int8_weights_leave_out_minus_128() -> None:
    for scheme in ("w8a8", "w8a8-dynamic"):
        options = QuantizePtqOptions.model_validate({"scheme": scheme})
        package = staged(random_package(BERT), QuantizePtq(options))
        for tensor in onnx.load_from_string(package.graph).graph.initializer:
            value = numpy_helper.to_array(tensor)
            if value.dtype == np.int8:
                assert value.min() >= -127, tensor.name


# --- what ONNX Runtime makes of it ------------------------------------------------------------------------------------

WIDE = TransformerSpec(
    SPECS["vit"].embedding, 32, (Layer(4, 4, 8, 64), Layer(4, 2, 8, 64)), "pre", 1e-6, "gelu", "cls", True, False, 5
)
WIDE_BERT = dataclasses.replace(BERT, hidden=32, layers=(Layer(4, 4, 8, 64), Layer(2, 1, 8, 48)))
INTEGER = {"w8a8": {"QGemm", "QLinearMatMul"}, "w8a8-dynamic": {
    "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger"}}


@pytest.mark.parametrize("spec", [WIDE, WIDE_BERT], ids=["vit", "bert"])
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_onnxruntime_runs_linear_layers_in_integers(spec: TransformerSpec, scheme: Any, tmp_path: Path) -> None:
    package = staged(random_package(spec), QuantizePtq(QuantizePtqOptions(scheme=scheme)))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(package.graph, options)
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in optimized.initializer}
    macs: collections.Counter[str] = collections.Counter()
    for node in optimized.node:
        if node.op_type in INTEGER[scheme] | {"Gemm", "FusedGemm", "MatMul", "FusedMatMul"}:
            # Rows are the same for all but the classifier and pooler, which have one: weights count in their place.
            rows = 1 if any(name.startswith(("classifier", "pooler")) for name in node.input) else package.sequence
            macs[node.op_type] += rows * max((sizes.get(name, 0) for name in node.input), default=0)
    total = sum(
        inputs * outputs * (1 if name in ("classifier", "pooler") else package.sequence)
        for name, inputs, outputs in spec.linears()
    )
    integer = sum(count for kind, count in macs.items() if kind in INTEGER[scheme])
    assert integer >= 0.95 * total, dict(macs)
