"""`prune.layers`: whole layers go; what is left is numbered anew and computes what it did."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages import Stage, outline_of, run_stage
from edgesdk.stages.prune_layers import PruneLayers, PruneLayersOptions, distances, greedy, kept_spec, kept_weights
from edgesdk.testing.models import (
    BERT,
    VIT,
    random_context,
    random_inputs,
    random_package,
    random_weights,
    with_weights,
)
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.module import build, run
from edgesdk.transformer.spec import Exit, Layer, TransformerSpec

IMPORTANCE = ["first", "last", "uniform", "cosine", "taylor", "fisher", "greedy"]
ONE = Layer(2, 2, 8, 16)
DEEP_VIT = dataclasses.replace(VIT, layers=(ONE,) * 4)
DEEP_BERT = dataclasses.replace(BERT, layers=(ONE,) * 3)


class TestPruneLayers(StageTestCase):
    def stage(self) -> Stage:
        return PruneLayers(PruneLayersOptions(keep=2))

    def packages(self) -> list[Package]:
        return [random_package(DEEP_VIT), random_package(DEEP_BERT)]


def _prune(package: Package, **options: Any) -> Package:
    return run_stage(PruneLayers(PruneLayersOptions(**options)), package, random_context(package))


@pytest.mark.parametrize(
    ("importance", "keep", "expected"),
    [("first", 2, [0, 1]), ("last", 2, [4, 5]), ("uniform", 3, [0, 2, 5]), ("uniform", 2, [0, 5]),
     ("uniform", 1, [0]), ("uniform", 6, [0, 1, 2, 3, 4, 5]), ("fisher", "1,4", [1, 4]), ("last", "0", [0])],
)
def test_which_layers_stay_by_place(importance: Any, keep: int | str, expected: list[int]) -> None:
    package = random_package(dataclasses.replace(VIT, layers=(ONE,) * 6))
    pruned = _prune(package, keep=keep, importance=importance)
    assert len(pruned.spec.layers) == len(expected)
    for index, old in enumerate(expected):
        for part in ("attention.query.weight", "ffn.down.bias", "ffn.norm.weight"):
            np.testing.assert_array_equal(
                pruned.weights[f"layers.{index}.{part}"], package.weights[f"layers.{old}.{part}"]
            )
    np.testing.assert_array_equal(pruned.weights["classifier.weight"], package.weights["classifier.weight"])


def _idle(package: Package, index: int) -> Package:
    """Layer `index` of a pre-norm model adds nothing to what comes in."""
    parts = ("attention.output.weight", "attention.output.bias", "ffn.down.weight", "ffn.down.bias")
    names = [f"layers.{index}.{part}" for part in parts]
    return with_weights(package, **{name: np.zeros_like(package.weights[name]) for name in names})


@pytest.mark.parametrize(
    ("importance", "training"),
    [("cosine", True), ("taylor", True), ("taylor", False), ("fisher", True), ("fisher", False), ("greedy", False)],
)
def test_layers_that_do_nothing_go_and_the_function_stays(importance: str, training: bool) -> None:
    """Greedy measures: with the random labels of these data a layer that does something may do harm."""
    package = _idle(_idle(random_package(DEEP_VIT), 1), 2)
    stage = PruneLayers(PruneLayersOptions.model_validate({"keep": 2, "importance": importance}))
    pruned = run_stage(stage, package, random_context(package, training=training))
    inputs = random_inputs(DEEP_VIT, 5, 9)
    expected = run(build(package.spec, package.weights), inputs)
    np.testing.assert_allclose(run(build(pruned.spec, pruned.weights), inputs), expected, atol=1e-6)


@pytest.mark.parametrize("importance", ["cosine", "taylor", "fisher", "greedy"])
def test_encoders_need_no_labels(importance: str) -> None:
    spec = dataclasses.replace(DEEP_VIT, classes=None)
    package = _idle(random_package(spec), 2)
    pruned = _prune(package, keep=3, importance=importance)
    inputs = random_inputs(spec, 5, 9)
    expected = run(build(package.spec, package.weights), inputs)
    np.testing.assert_allclose(run(build(pruned.spec, pruned.weights), inputs), expected, atol=1e-6)


def test_distance_is_one_minus_cosine_of_input_and_output() -> None:
    """Against the hidden states of the module one by one, without the padding."""
    package = random_package(DEEP_BERT)
    context = random_context(package)
    data = context.calibration.inputs
    results: list[Any] = []

    def tap(name: str, value: Any) -> Any:
        if name == "layers.0.attention.input" or name.endswith(".result"):
            results.append(value.numpy().astype(np.float64))
        return value

    run(build(package.spec, package.weights), data, tap, batch=1000)
    kept = data["attention_mask"].astype(bool)
    expected = []
    for before, after in zip(results, results[1:], strict=False):
        dots = (before * after).sum(-1) / np.linalg.norm(before, axis=-1) / np.linalg.norm(after, axis=-1)
        expected.append((1 - dots)[kept].mean())
    np.testing.assert_allclose(distances(package, context), expected, rtol=1e-5)


def test_greedy_finds_the_best_single_removal() -> None:
    package = random_package(DEEP_VIT, 3)
    context = random_context(package)
    assert context.train is not None and context.train.labels is not None
    losses = []
    for gone in range(4):
        kept = [index for index in range(4) if index != gone]
        spec = kept_spec(package.spec, kept)
        logits = run(build(spec, kept_weights(package.spec, spec, package.weights, kept)), context.train.inputs)
        shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
        picked = shifted[np.arange(len(logits)), context.train.labels]
        losses.append(np.mean(np.log(np.exp(shifted).sum(1)) - picked))
    assert greedy(package, context, 3, 1000) == [index for index in range(4) if index != int(np.argmin(losses))]


SHARED = dataclasses.replace(
    DEEP_VIT,
    layers=(
        dataclasses.replace(ONE, exit=Exit()), dataclasses.replace(ONE, gate=True),
        dataclasses.replace(ONE, share=0, exit=Exit(threshold=0.9)), dataclasses.replace(ONE, share=1),
        dataclasses.replace(ONE, share=0, gate=True),
    ),
    sparse={"layers.0.ffn.up": "2:4", "layers.1.ffn.down": "4x4"},
)


@pytest.mark.parametrize(
    ("kept", "shares", "sparse"),
    [
        ([0, 1, 2], [None, None, 0], {"layers.0.ffn.up": "2:4", "layers.1.ffn.down": "4x4"}),
        ([2, 3, 4], [None, None, 0], {"layers.0.ffn.up": "2:4", "layers.1.ffn.down": "4x4"}),
        ([1, 2, 3, 4], [None, None, 0, 1], {"layers.1.ffn.up": "2:4", "layers.0.ffn.down": "4x4"}),
        ([3], [None], {"layers.0.ffn.down": "4x4"}),
        ([4], [None], {"layers.0.ffn.up": "2:4"}),
    ],
)
def test_who_shares_whose_weights_follows(kept: list[int], shares: list[int | None], sparse: dict[str, str]) -> None:
    spec = kept_spec(SHARED, kept)
    assert [layer.share for layer in spec.layers] == shares
    assert [layer.gate for layer in spec.layers] == [SHARED.layers[old].gate for old in kept]
    exits = [SHARED.layers[old].exit for old in kept[:-1]] + [None]
    assert [layer.exit for layer in spec.layers] == exits
    assert dict(spec.sparse) == sparse
    weights = random_weights(SHARED)
    changed = kept_weights(SHARED, spec, weights, kept)
    assert {name: value.shape for name, value in changed.items()} == spec.weight_shapes()
    module = build(spec, changed)
    whole = build(SHARED, weights)
    for index, old in enumerate(kept):
        for (name, found), (other, expected) in zip(
            module.layers[index].attention.state_dict().items(),  # type: ignore[union-attr, operator]
            whole.layers[old].attention.state_dict().items(),  # type: ignore[union-attr, operator]
            strict=True,
        ):
            assert name == other
            assert (found == expected).all()
        for part in ("exit", "gate"):
            if f"layers.{index}.{part}.weight" in changed:
                np.testing.assert_array_equal(
                    changed[f"layers.{index}.{part}.weight"], weights[f"layers.{old}.{part}.weight"]
                )


def test_layers_of_different_sizes_are_an_estimate_before_the_work() -> None:
    spec = dataclasses.replace(DEEP_VIT, layers=(ONE, dataclasses.replace(ONE, ffn=8), ONE))
    package = _idle(random_package(spec), 0)
    pruned = _prune(package, keep=2, importance="fisher")
    assert [layer.ffn for layer in pruned.spec.layers] == [8, 16]


@pytest.mark.parametrize("keep", [0, -1, 1.5, True, None, "", "1;2", "1,", "-1", "1, 2"])
def test_keep_is_a_number_or_a_text_of_numbers(keep: Any) -> None:
    with pytest.raises(ValidationError, match="keep"):
        PruneLayersOptions(keep=keep)


@pytest.mark.parametrize(
    ("spec", "keep", "found"),
    [(DEEP_VIT, 5, "keep 5, but the model has 4 layers"), (DEEP_VIT, "0,4", "keep '0,4': expected ascending"),
     (DEEP_VIT, "2,0", "ascending layers from 0 to 3"), (DEEP_VIT, "1,1", "ascending")],
)
def test_layers_that_are_not_there_are_refused(spec: TransformerSpec, keep: int | str, found: str) -> None:
    package = random_package(spec)
    stage = PruneLayers(PruneLayersOptions(keep=keep))
    (reason,) = stage.requires(outline_of(package, True))
    assert found in reason
    with pytest.raises(StageError, match=r"prune\.layers"):
        run_stage(stage, package, random_context(package))
