"""Sensitivity to 4 bits: a fragile layer comes first; mixed precision keeps its budgets."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from edgesdk.data import Dataset
from edgesdk.encodings import Encodings
from edgesdk.errors import StageError
from edgesdk.evaluate import evaluate_package, run_graph, run_rows
from edgesdk.files import canonical_json
from edgesdk.package import Package
from edgesdk.stages import Context, quantize_ptq, run_stage
from edgesdk.stages import sensitivity as sensitivity_module
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.stages.sensitivity import Sensitivity, lowerable, order, points_lost, sensitivity, to_json, to_markdown
from edgesdk.testing.models import (
    BERT,
    BERT_MEAN,
    FEATURES,
    VIT,
    random_context,
    random_dataset,
    random_package,
    with_weights,
)
from edgesdk.transformer.module import build, run
from edgesdk.transformer.quantize import dequantized
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

# Wide enough that 4 bits save more than the nodes that unpack them.
WIDE = TransformerSpec(
    TokenEmbedding(200, max_length=12), 128, (Layer(4, 4, 32, 256), Layer(4, 4, 32, 192)), "post", 1e-12, "gelu",
    "cls", classes=4,
)
FRAGILE = "layers.0.attention.output.weight"


def _fragile(spec: TransformerSpec) -> Package:
    """The function of a random model, written so that one matrix has a column 60 times as large as the others in every
    group of 16, on inputs that are as much smaller: 4 bits cannot hold both."""
    package = random_package(spec)
    large = np.where(np.arange(spec.layers[0].heads * spec.layers[0].head_size) % 16 == 3, 60.0, 1.0).astype(np.float32)
    value = "layers.0.attention.value"
    weights = {
        FRAGILE: package.weights[FRAGILE] * large,
        f"{value}.weight": package.weights[f"{value}.weight"] / large[:, None],
        f"{value}.bias": package.weights[f"{value}.bias"] / large,
    }
    return with_weights(package, **{name.replace(".", "__"): array for name, array in weights.items()})


def _mixed(package: Package, context: Context | None = None, **options: Any) -> Package:
    context = context or random_context(package)
    return run_stage(QuantizePtq(QuantizePtqOptions(**options)), package, context)


def _low(made: Package) -> set[str]:
    assert made.encodings is not None
    return {name for name, entry in made.encodings.weights.items() if entry.bits == 4}


def test_fragile_layer_comes_first() -> None:
    package = _fragile(BERT)
    rows = sensitivity(package, random_context(package), group=16)
    assert rows[0].name == FRAGILE
    assert {row.name for row in rows} == set(lowerable(BERT))
    assert [row.divergence for row in rows] == sorted((row.divergence for row in rows), reverse=True)
    assert rows[0].sqnr_db < min(row.sqnr_db for row in rows[2:])


def test_numbers_are_those_of_a_model_with_one_matrix_changed() -> None:
    package = random_package(BERT)
    context = random_context(package)
    (row,) = sensitivity(package, context, names=["layers.1.ffn.down.weight"], samples=10)
    encoding = QuantizePtq(QuantizePtqOptions(scheme="w4a8")).apply(package, context).encodings
    assert encoding is not None
    (judged,) = sensitivity(package, context, names=[row.name], encodings=encoding, samples=10)
    weight = dequantized(package.weights[row.name], encoding.weights[row.name])
    data = context.calibration.sample(10, context.seed)
    reference = run(build(BERT, package.weights), data.inputs).astype(np.float64)
    outputs = run(build(BERT, {**package.weights, row.name: weight}), data.inputs).astype(np.float64)

    def log_softmax(x: Any) -> Any:
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(outputs)
    assert judged.divergence == pytest.approx(float((np.exp(p) * (p - q)).sum(1).mean()), rel=1e-3)
    noise = np.square(outputs - reference).sum()
    assert judged.sqnr_db == pytest.approx(10 * math.log10(np.square(reference).sum() / noise), abs=0.01)
    assert data.labels is not None
    rows = np.arange(10)
    assert judged.loss == pytest.approx(float((p - q)[rows, data.labels].mean()), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("spec", [VIT, BERT_MEAN, FEATURES], ids=["vit", "encoder", "hidden_states"])
def test_every_kind_of_output_is_judged(spec: TransformerSpec) -> None:
    package = random_package(spec)
    rows = sensitivity(package, random_context(package))
    assert {row.name for row in rows} == set(lowerable(spec))
    assert all(row.divergence > 0 and 0 < row.sqnr_db < 60 for row in rows)
    assert all((row.loss is None) == (spec.classes is None) for row in rows)


def test_weights_that_lie_on_the_grid_lose_nothing() -> None:
    package = random_package(BERT)
    encodings = QuantizePtq(QuantizePtqOptions(scheme="w4a8")).apply(package, random_context(package))
    assert isinstance(encodings.encodings, Encodings) and encodings.weights is not None
    weight = encodings.weights[FRAGILE]
    exact = with_weights(package, layers__0__attention__output__weight=weight)
    (row,) = sensitivity(exact, random_context(exact), names=[FRAGILE], encodings=encodings.encodings)
    assert (row.divergence, row.sqnr_db, row.loss) == (0.0, 200.0, 0.0)


def test_sensitivity_leaves_the_package_and_repeats() -> None:
    package = random_package(VIT)
    context = random_context(package)
    assert sensitivity(package, context) == sensitivity(package, context)


def test_bad_input_is_refused() -> None:
    package = random_package(VIT)
    with pytest.raises(StageError, match="no matrix"):
        sensitivity(package, random_context(package), names=["layers.9.ffn.up.weight"])
    with pytest.raises(StageError, match="no matrix"):
        sensitivity(package, random_context(package), names=["layers.0.ffn.up.bias"])
    made = _mixed(package, scheme="w8a8")
    with pytest.raises(StageError, match="already"):
        sensitivity(made, random_context(package))


def test_order_is_least_divergence_for_each_byte_first() -> None:
    rows = [
        Sensitivity("a", 100, 1.0, 20, None), Sensitivity("b", 1000, 1.0, 20, None),
        Sensitivity("c", 10, 0.001, 50, None), Sensitivity("d", 0, 0.0, 50, None), Sensitivity("e", -5, 0.0, 50, None),
    ]
    assert order(rows) == ["c", "b", "a"]


def test_report_as_json_and_markdown() -> None:
    package = random_package(VIT)
    rows = sensitivity(package, random_context(package))
    document = json.loads(canonical_json(to_json(rows)))
    assert (document["format"], document["version"]) == ("edgesdk.sensitivity", 1)
    assert [row["name"] for row in document["rows"]] == [row.name for row in rows]
    lines = to_markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert f"`{rows[0].name}`" in lines[2]
    assert len({line.count("|") for line in lines}) == 1
    assert "–" in to_markdown([dataclasses.replace(rows[0], loss=None)])


# --- mixed precision ---


@pytest.mark.parametrize("scheme", ["w4a8", "w4a8-dynamic"])
def test_size_goal_is_kept_with_as_few_matrices_as_needed(scheme: str) -> None:
    package = random_package(WIDE)
    all_low = len(_mixed(package, scheme=scheme, group=16).graph)
    none_low = len(_mixed(package, scheme=scheme.replace("w4", "w8")).graph)
    limit = (all_low + none_low) // 2
    made = _mixed(package, scheme=scheme, group=16, max_bytes=limit)
    assert len(made.graph) <= limit
    assert set() < _low(made) < set(lowerable(WIDE))
    share = _mixed(package, scheme=scheme, group=16, max_bytes=limit / package.baseline.bytes)
    assert len(share.graph) <= limit + 1
    loose = _mixed(package, scheme=scheme, group=16, max_bytes=none_low + 1)
    assert _low(loose) == set()
    assert loose.scheme == scheme


def test_size_goal_spares_the_fragile_layer() -> None:
    fragile = _fragile(WIDE)
    limit = len(_mixed(fragile, scheme="w4a8-dynamic", group=16).graph) + 20_000
    assert FRAGILE not in _low(_mixed(fragile, scheme="w4a8-dynamic", group=16, max_bytes=limit))


def test_size_goal_out_of_reach_is_an_error_with_numbers() -> None:
    package = random_package(WIDE)
    with pytest.raises(StageError, match=r"bytes with every matrix at 4 bits, max_bytes allows"):
        _mixed(package, scheme="w4a8", max_bytes=0.01)


@pytest.mark.parametrize("scheme", ["w4a8", "w4a8-dynamic"])
def test_accuracy_goal_is_kept_on_validation(scheme: str) -> None:
    package = random_package(WIDE)
    context = random_context(package)
    # Labels that the model knows: what it says itself.
    labels = run_graph(package.graph, context.validation.inputs).argmax(-1).astype(np.int64)
    known = dataclasses.replace(context, validation=dataclasses.replace(context.validation, labels=labels))
    free = _mixed(package, known, scheme=scheme, max_loss=100.0)
    assert _low(free) == set(lowerable(WIDE))
    made = _mixed(package, known, scheme=scheme, max_loss=9.0)
    accuracy = evaluate_package(made, known.validation)
    assert accuracy is not None
    assert 100 * (1 - accuracy) <= 9.0


def test_accuracy_goal_out_of_reach_is_an_error_with_numbers() -> None:
    package = random_package(VIT)
    context = random_context(package)
    outputs = run_graph(package.graph, context.validation.inputs)
    eight = _mixed(package, scheme="w8a8")
    labels = outputs.argmax(-1)
    wrong = run_graph(eight.graph, context.validation.inputs).argmax(-1) != labels
    if not wrong.any():  # the encoder's cosine is never 1
        package = random_package(BERT_MEAN)
        context = random_context(package)
    else:
        context = dataclasses.replace(context, validation=dataclasses.replace(context.validation, labels=labels))
    with pytest.raises(StageError, match="points are lost with every matrix at 8 bits"):
        _mixed(package, context, scheme="w4a8", max_loss=0.0)


def _knows_itself(package: Package, rows: int = 48) -> Context:
    """A context whose validation labels are what the package says itself, row by row as a board runs it."""
    data = random_dataset(package.spec, rows, 7)
    labels = run_rows(package, data.inputs).argmax(-1).astype(np.int64)
    return dataclasses.replace(random_context(package), validation=dataclasses.replace(data, labels=labels))


def _points(made: Package, context: Context) -> float:
    accuracy = evaluate_package(made, context.validation)
    assert accuracy is not None
    return 100 * (1 - accuracy)


@pytest.mark.parametrize("scheme", ["w4a8", "w4a8-dynamic"])
def test_accuracy_goal_of_a_gated_model_is_kept_row_by_row(scheme: str) -> None:
    """In a batch the layer would run for all rows where one wants it."""
    layers = (WIDE.layers[0], dataclasses.replace(WIDE.layers[1], gate=True))
    package = random_package(dataclasses.replace(WIDE, layers=layers))
    context = _knows_itself(package)
    batched = run_graph(package.graph, context.validation.inputs)
    assert not np.allclose(batched, run_rows(package, context.validation.inputs), atol=0.1)
    free = _mixed(package, context, scheme=scheme, max_loss=100.0)
    limit = _points(free, context) / 2
    made = _mixed(package, context, scheme=scheme, max_loss=limit)
    assert _points(made, context) <= limit
    assert _low(made) < _low(free)


def test_accuracy_goal_is_measured_after_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding that spoils what has 4 bits leaves 8; where it spoils all, the goal is out of reach."""
    package = random_package(WIDE)
    context = _knows_itself(package)
    goal = {"scheme": "w4a8", "rounding": "gptq", "max_loss": 10.0}
    assert len(_low(_mixed(package, context, **goal))) > 1

    def spoilt(weight: Any, encoding: Any, *others: Any) -> Any:
        return np.zeros_like(weight) if encoding.bits == 4 else weight

    with monkeypatch.context() as patch:
        patch.setattr(quantize_ptq, "gptq", spoilt)
        made = _mixed(package, context, **goal)
        assert _points(made, context) <= 10.0
    monkeypatch.setattr(quantize_ptq, "gptq", lambda weight, *others: np.zeros_like(weight))
    with pytest.raises(StageError, match=r"points are lost after rounding \(gptq\).*max_loss allows 10"):
        _mixed(package, context, **goal)


def test_rows_of_all_classes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sorted by class: the last class alone has large inputs."""
    package = random_package(VIT)
    context = random_context(package)
    labels = np.sort(np.arange(24) % 5)
    pixels = context.calibration.inputs["pixel_values"] * np.where(labels == 4, 10.0, 1.0)[:, None, None, None]
    data = Dataset({"pixel_values": pixels.astype(np.float32)}, labels)
    context = dataclasses.replace(context, calibration=data)
    made = _mixed(package, context, scheme="w8a8", calibrator="minmax", samples=10)
    whole = _mixed(package, context, scheme="w8a8", calibrator="minmax")
    assert made.encodings is not None and whole.encodings is not None
    name = "embedding.patches.input"
    assert made.encodings.activations[name].scale > 0.5 * whole.encodings.activations[name].scale
    seen: list[set[int]] = []
    outputs = sensitivity_module._outputs

    def watched(module: Any, rows: Dataset) -> Any:
        assert rows.labels is not None
        seen.append(set(rows.labels.tolist()))
        return outputs(module, rows)

    monkeypatch.setattr(sensitivity_module, "_outputs", watched)
    sensitivity(package, context, names=["layers.0.ffn.up.weight"], samples=10)
    assert seen == [{0, 1, 2, 3, 4}] * 2


def test_points_of_accuracy_agreement_and_cosine() -> None:
    package, encoder = random_package(VIT), random_package(BERT_MEAN)
    data = random_context(package).validation.head(4)
    reference, outputs = np.eye(5)[[0, 1, 2, 3]], np.eye(5)[[0, 1, 2, 4]]
    labelled = dataclasses.replace(data, labels=np.array([0, 1, 4, 4]))
    assert points_lost(package, labelled, reference, outputs) == pytest.approx(-25.0)
    assert points_lost(package, dataclasses.replace(data, labels=None), reference, outputs) == pytest.approx(25.0)
    assert points_lost(encoder, data, reference, outputs) == pytest.approx(25.0)
