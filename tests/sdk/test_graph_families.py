"""What compression makes of a model, as a graph: every form against torch, and the bytes that it takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest

from edgesdk.encodings import WeightEncoding
from edgesdk.errors import PackageError
from edgesdk.evaluate import run_graph
from edgesdk.package import Encodings
from edgesdk.testing.models import BERT, BERT_MEAN, FEATURES, SPECS, VIT, random_inputs, random_weights
from edgesdk.transformer.dynamic import choose
from edgesdk.transformer.graph import write_graph, write_trace_graph
from edgesdk.transformer.module import build, run
from edgesdk.transformer.quantize import dequantized, four_bits, integers, row_scales
from edgesdk.transformer.spec import Exit, Layer, TransformerSpec
from edgesdk.transformer.spec_check import MOST_EXITS
from edgesdk.transformer.spec_json import from_json, to_json

replace = dataclasses.replace
RANKS = {"attention.query": 4, "attention.value": 3, "attention.output": 5, "ffn.up": 6, "ffn.down": 2}


def layered(spec: TransformerSpec, count: int, **changes: Any) -> TransformerSpec:
    return replace(spec, layers=(replace(spec.layers[0], **changes),) * count)


def shared(spec: TransformerSpec) -> TransformerSpec:
    first = spec.layers[0]
    return replace(spec, layers=(first, replace(first, share=0), spec.layers[-1], replace(first, share=0)))


def exiting(spec: TransformerSpec, criterion: Any, threshold: float) -> TransformerSpec:
    layer = spec.layers[0]
    leaving = replace(layer, exit=Exit(criterion, threshold))
    return replace(spec, layers=(leaving, replace(layer, exit=Exit(criterion, None)), leaving, leaving, layer))


FORMS = {
    "low rank": layered(VIT, 2, ranks=RANKS),
    "low rank, grouped": layered(BERT_MEAN, 2, ranks={"attention.key": 2, **RANKS}),
    "shared, pre-norm": shared(VIT),
    "shared, post-norm": shared(BERT),
    "shared, low rank": shared(replace(BERT, layers=(replace(BERT.layers[0], ranks=RANKS), BERT.layers[1]))),
    "factorized table": replace(BERT, embedding=replace(BERT.embedding, width=6)),
    "narrow embedding": replace(BERT_MEAN, embedding=replace(BERT_MEAN.embedding, width=6, project="all")),
    "distillation token": replace(VIT, embedding=replace(VIT.embedding, distillation=True)),
    "gates": layered(BERT, 3, gate=True),
    "gates, pre-norm": layered(VIT, 3, gate=True),
    "gates, no pooling": layered(FEATURES, 2, gate=True),
    "causal": replace(BERT_MEAN, causal=True, norm="pre", final_norm=True),
    "causal features": replace(FEATURES, causal=True),
    "decoder": replace(BERT_MEAN, causal=True, pooling="none", lm_head=True, norm="pre", final_norm=True),
    "confidence": exiting(BERT, "confidence", 0.5),
    "entropy": exiting(VIT, "entropy", 0.9),
    "patience 0": exiting(BERT, "patience", 0.0),
    "patience 1": exiting(BERT, "patience", 1.0),
    "patience, too long": exiting(BERT, "patience", 9.0),
    "all at once": replace(
        exiting(BERT, "confidence", 0.45),
        layers=(
            replace(BERT.layers[0], ranks=RANKS, exit=Exit("confidence", 0.45)),
            replace(BERT.layers[0], ranks=RANKS, share=0, gate=True, exit=Exit("confidence", 0.45)),
            replace(BERT.layers[0], ranks=RANKS, share=0, gate=True),
        ),
    ),
}


def row_by_row(graph: bytes, inputs: dict[str, Any]) -> Any:
    return run_graph(graph, inputs, batch=1)


@pytest.mark.parametrize("spec", FORMS.values(), ids=FORMS)
def test_graph_equals_torch(spec: TransformerSpec) -> None:
    weights, inputs = random_weights(spec), random_inputs(spec, 6)
    graph = write_graph(spec, weights)
    onnx.checker.check_model(graph, full_check=True)
    expected = run(build(spec, weights), inputs)
    np.testing.assert_allclose(row_by_row(graph, inputs), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", FORMS.values(), ids=FORMS)
def test_json_keeps_every_form(spec: TransformerSpec) -> None:
    assert from_json(to_json(spec)) == spec


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic", "w4a8", "w4a8-dynamic"])
@pytest.mark.parametrize("spec", FORMS.values(), ids=FORMS)
def test_quantized_graph_runs_near_its_float_model(spec: TransformerSpec, scheme: str) -> None:
    weights = random_weights(spec)
    # Exits and gates turn noise into other answers: here the arithmetic is looked at, so nothing leaves or skips.
    spec = replace(spec, layers=tuple(replace(layer, exit=None) for layer in spec.layers))
    weights = {name: value for name, value in weights.items() if name in spec.weight_shapes()}
    for name in weights:
        if name.endswith("gate.bias"):
            weights[name] = np.full(1, 9.0, np.float32)
    weights, encodings = quantized(spec, weights, scheme)
    inputs = random_inputs(spec, 6)
    outputs = row_by_row(write_graph(spec, weights, encodings), inputs)
    expected = run(build(spec, weights), inputs)
    assert np.square(outputs - expected).sum() < 0.02 * np.square(expected).sum()


def quantized(spec: TransformerSpec, weights: dict[str, Any], scheme: str) -> tuple[dict[str, Any], Encodings]:
    """Weights put on the grid of generous encodings, with activations that cover what is seen."""
    from edgesdk.encodings import static_activations
    from edgesdk.stages.quantize_ptq import encode

    limits: dict[str, float] = {}

    def tap(name: str, value: Any) -> Any:
        limits[name] = max(limits.get(name, 0.0), float(value.abs().max()))
        return value

    encodings = {}
    for name, value in list(weights.items()):
        if value.ndim == 2:
            bits = 4 if scheme.startswith("w4") and not name.startswith("classifier") else 8
            encodings[name] = four_bit_encoding(value) if bits == 4 else WeightEncoding(8, 0, row_scales(value))
            weights[name] = dequantized(value, encodings[name])
    run(build(spec, weights), random_inputs(spec, 6), tap)
    static = not scheme.endswith("-dynamic")
    activations = {name: encode(-limits[name], limits[name]) for name in static_activations(spec)} if static else {}
    return weights, Encodings(scheme, "minmax" if static else None, 6 if static else 0, activations, encodings)


def four_bit_encoding(weight: Any) -> WeightEncoding:
    """Groups of 1 to 4 inputs, steps of a fifteenth."""
    group = next(size for size in (4, 3, 2, 1) if weight.shape[1] % size == 0)
    largest = np.abs(weight).reshape(len(weight), -1, group).max(-1)
    scale = np.maximum(largest.max(1) / (7 * 15), 1e-6).astype(np.float32)
    multiplier = np.clip(np.ceil(largest / 7 / scale[:, None] - 1e-4), 1, 15).astype(np.uint8)
    return WeightEncoding(4, 0, scale, group, multiplier)


def test_four_bits_are_what_the_encoding_says() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    encoding = four_bit_encoding(weight)
    assert encoding.multiplier is not None and encoding.group == 4
    small = four_bits(weight, encoding)
    assert small.min() >= -8 and small.max() <= 7
    for row in range(5):
        for column in range(12):
            multiplier = int(encoding.multiplier[row, column // 4])
            step = float(encoding.scale[row]) * multiplier
            assert small[row, column] == np.clip(np.rint(weight[row, column] / step), -8, 7)
            assert integers(weight, encoding)[row, column] == small[row, column] * multiplier
    again = dequantized(weight, encoding)
    np.testing.assert_array_equal(four_bits(again, encoding), small)


@pytest.mark.parametrize("count", [0, 1, 63, 64])
@pytest.mark.parametrize("scheme", ["fp32", "w8a8-dynamic", "w4a8-dynamic"])
def test_sparse_weights_come_back_whole(scheme: str, count: int) -> None:
    """`count` of the 512 weights of one layer are left, wherever they are."""
    spec = replace(VIT, sparse={"layers.0.ffn.up": "unstructured"})
    weights = random_weights(VIT)
    flat = weights["layers.0.ffn.up.weight"].reshape(-1)
    flat[np.random.default_rng(count).permutation(flat.size)[count:]] = 0.0
    dense = replace(spec, sparse={})
    encodings = None if scheme == "fp32" else quantized(dense, weights, scheme)[1]
    inputs = random_inputs(VIT, 3)
    small, large = write_graph(spec, weights, encodings), write_graph(dense, weights, encodings)
    np.testing.assert_array_equal(row_by_row(small, inputs), row_by_row(large, inputs))


def test_bytes_of_the_file() -> None:
    """4 bits: half a byte a weight and half a byte a group; half of them zero: a bit a weight and the others."""
    spec = replace(VIT, hidden=256, layers=(Layer(4, 4, 64, 1024),))
    weights = random_weights(spec)
    up = "layers.0.ffn.up.weight"
    flat = weights[up].reshape(-1)
    flat[: flat.size // 2] = 0.0
    sparse = replace(spec, sparse={"layers.0.ffn.up": "unstructured"})
    size = {"fp32": len(write_graph(spec, weights)), "fp32 sparse": len(write_graph(sparse, weights))}
    eight = Encodings("w8a8-dynamic", None, 0, {}, {up: WeightEncoding(8, 0, row_scales(weights[up]))})
    four = Encodings("w4a8-dynamic", None, 0, {}, {up: WeightEncoding(
        4, 0, (row_scales(weights[up]) * 1.2).astype(np.float32), 32, np.full((1024, 8), 15, np.uint8))})
    for name, encodings in {"8": eight, "4": four}.items():
        size[name] = len(write_graph(spec, weights, encodings))
        size[f"{name} sparse"] = len(write_graph(sparse, weights, encodings))
    count = flat.size
    left = np.count_nonzero(four_bits(weights[up], four.weights[up]))  # small weights round to zero too
    expected = {
        "fp32 sparse": 4 * count / 2 + count / 8, "8": count, "8 sparse": count / 2 + count / 8,
        "4": count / 2 + count / 64, "4 sparse": left / 2 + count / 8 + count / 64,
    }
    for name, value in expected.items():
        overhead = len(weights[up]) * 4 + 5000  # scales of rows, names of nodes
        assert 0 <= size[name] - (size["fp32"] - 4 * count + value) < overhead, name


def test_shared_layers_are_stored_once() -> None:
    one = layered(BERT, 1)
    many = replace(one, layers=(one.layers[0],) + (replace(one.layers[0], share=0),) * 5)
    assert many.parameters() == one.parameters()
    assert many.macs(8) - one.macs(8) == 5 * one.layer_macs(0, 8)
    weights = random_weights(one)
    assert len(write_graph(many, weights)) - len(write_graph(one, weights)) < 5 * 6000


@pytest.mark.parametrize("name", ["confidence", "entropy", "patience 1", "all at once"])
def test_exit_says_where_a_row_left(name: str) -> None:
    import onnxruntime
    import torch

    spec = FORMS[name]
    weights, inputs = random_weights(spec), random_inputs(spec, 40)
    module = build(spec, weights)
    with torch.inference_mode():
        trace = module.trace({key: torch.from_numpy(value) for key, value in inputs.items()})
    expected = choose(spec, trace)[1].numpy()
    session = onnxruntime.InferenceSession(write_graph(spec, weights), providers=["CPUExecutionProvider"])
    rows = [{key: value[i : i + 1] for key, value in inputs.items()} for i in range(40)]
    found = np.concatenate([session.run(["exit"], row)[0] for row in rows])
    np.testing.assert_array_equal(found, expected)
    assert len(set(found)) > 1


def test_batch_leaves_when_all_rows_may() -> None:
    spec = FORMS["confidence"]
    weights, inputs = random_weights(spec), random_inputs(spec, 12)
    import onnxruntime

    session = onnxruntime.InferenceSession(write_graph(spec, weights), providers=["CPUExecutionProvider"])
    single = [session.run(["exit"], {k: v[i : i + 1] for k, v in inputs.items()})[0][0] for i in range(12)]
    together = session.run(["exit"], inputs)[0]
    assert (together == max(single)).all()


@pytest.mark.parametrize("base", [BERT, VIT])
def test_as_many_exits_as_are_allowed_can_be_read_and_run(base: TransformerSpec) -> None:
    """Every branch lies inside the one before, and a gated layer inside the last: the deepest graph that can be."""
    layer = replace(base.layers[0], gate=True)
    stays = replace(layer, exit=Exit("confidence", 2.0))
    spec = replace(base, layers=(stays,) * MOST_EXITS + (layer,))
    weights = random_weights(spec)
    onnx.checker.check_model(onnx.load_from_string(write_graph(spec, weights)))
    inputs = random_inputs(spec, 1)
    expected = run(build(spec, weights), inputs)
    np.testing.assert_allclose(run_graph(write_graph(spec, weights), inputs, batch=1), expected, atol=1e-4)
    with pytest.raises(PackageError, match="25 exits, at most 24"):
        replace(base, layers=(stays,) * (MOST_EXITS + 1) + (layer,))


def test_trace_graph_gives_every_exit() -> None:
    import onnxruntime
    import torch

    spec = FORMS["entropy"]
    weights, inputs = random_weights(spec), random_inputs(spec, 5)
    session = onnxruntime.InferenceSession(write_trace_graph(spec, weights), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    assert names == ["logits", *(f"layers.{i}.exit" for i in range(4))]
    with torch.inference_mode():
        trace = build(spec, weights).trace({key: torch.from_numpy(value) for key, value in inputs.items()})
    expected = [trace.output, *trace.exits.values()]
    for found, wanted in zip(session.run(None, inputs), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


def test_skipped_layer_is_not_computed() -> None:
    """A gate that is shut hides a layer whose weights would overflow."""
    spec = layered(BERT, 2, gate=True)
    weights = random_weights(spec)
    weights["layers.1.gate.weight"][:] = 0
    weights["layers.1.gate.bias"][:] = -1
    weights["layers.1.ffn.down.weight"][:] = 3e38
    inputs = random_inputs(spec, 2)
    assert np.isfinite(row_by_row(write_graph(spec, weights), inputs)).all()
    weights["layers.1.gate.bias"][:] = 1
    assert not np.isfinite(row_by_row(write_graph(spec, weights), inputs)).all()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_weights_of_shared_and_plain_models_survive_a_module(spec: TransformerSpec) -> None:
    from edgesdk.transformer.module import weights_of

    many = replace(spec, layers=(*spec.layers, replace(spec.layers[0], share=0)))
    weights = random_weights(many)
    again = weights_of(build(many, weights))
    assert again.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(again[name], value)
