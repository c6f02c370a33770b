"""`share.layers` and `share.kv_heads`: stored once, exact where what is shared is equal, refused where it cannot be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgesdk.evaluate import run_graph
from edgesdk.heads import aligned, extended, grouped, rotation, similarity
from edgesdk.package import Package
from edgesdk.stages import Stage, run_stage
from edgesdk.stages.share_kv_heads import ShareKvHeads, ShareKvHeadsOptions, arrange
from edgesdk.stages.share_layers import ShareLayers, ShareLayersOptions
from edgesdk.testing.models import BERT, VIT, random_context, random_inputs, random_package, with_weights
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.module import build, run
from edgesdk.transformer.spec import Exit, Layer, TransformerSpec

LAYER = Layer(4, 4, 4, 32)
DEEP = dataclasses.replace(BERT, layers=(LAYER,) * 4)
DEEP_VIT = dataclasses.replace(VIT, layers=(Layer(4, 2, 4, 24),) * 3)
LOW = dataclasses.replace(LAYER, ranks={"attention.query": 3, "attention.key": 3, "attention.output": 3, "ffn.up": 4})
HEADS = dataclasses.replace(BERT, layers=(LAYER, Layer(8, 4, 2, 20), dataclasses.replace(LAYER, share=0)))
HEADS_LOW = dataclasses.replace(VIT, layers=(LOW, LAYER))


def _reasons(stage: Stage, spec: TransformerSpec) -> list[str]:
    package = random_package(dataclasses.replace(spec, sparse={}))
    outline = random_context(package).outline(package)
    return stage.requires(dataclasses.replace(outline, spec=spec))


def _layers(**options: Any) -> ShareLayers:
    return ShareLayers(ShareLayersOptions(**options))


def _heads(kv_heads: int, **options: Any) -> ShareKvHeads:
    return ShareKvHeads(ShareKvHeadsOptions(kv_heads=kv_heads, **options))


def _apply(stage: Stage, package: Package) -> Package:
    return run_stage(stage, package, random_context(package))


class TestLayersConformance(StageTestCase):
    def stage(self) -> Stage:
        return _layers(distinct=2)

    def packages(self) -> list[Package]:
        return [random_package(DEEP), random_package(DEEP_VIT)]


class TestHeadsConformance(StageTestCase):
    def stage(self) -> Stage:
        return _heads(2)

    def packages(self) -> list[Package]:
        return [random_package(HEADS), random_package(HEADS_LOW)]


class TestNeighboursConformance(StageTestCase):
    def stage(self) -> Stage:
        return _heads(1, grouping="neighbours")


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "owners"), [
    ({"distinct": 2}, [None, 0, None, 2]),
    ({"distinct": 3}, [None, 0, None, None]),
    ({"groups": "0,1,0,1"}, [None, None, 0, 1]),
    ({"groups": "7,7,7,7"}, [None, 0, 0, 0]),
])
def test_groups(options: dict[str, Any], owners: list[int | None]) -> None:
    made = _apply(_layers(**options), random_package(DEEP))
    assert [layer.share for layer in made.spec.layers] == owners
    assert {name.split(".")[1] for name in made.weights if name.startswith("layers.")} == {
        str(index) for index, owner in enumerate(owners) if owner is None}


@pytest.mark.parametrize("init", ["mean", "first", "last"])
def test_equal_layers_share_without_loss(init: str) -> None:
    package = random_package(DEEP)
    copies = {
        name.replace("layers.0.", f"layers.{index}."): value
        for name, value in package.weights.items() for index in (1, 2, 3) if name.startswith("layers.0.")
    }
    package = with_weights(package, **copies)
    made = _apply(_layers(distinct=1, init=init), package)
    layer = sum(value.nbytes for name, value in package.weights.items() if name.startswith("layers.0."))
    assert len(package.graph) - len(made.graph) > 3 * layer, "the graph must hold them once"
    inputs = random_inputs(DEEP, 5, 9)
    np.testing.assert_allclose(run_graph(made.graph, inputs), run_graph(package.graph, inputs), atol=1e-6)


def test_where_the_weights_come_from() -> None:
    package = random_package(DEEP)
    for name in ("ffn.up.weight", "attention.norm.bias"):
        values = [package.weights[f"layers.{index}.{name}"] for index in range(4)]
        for init, expected in {"first": values[0], "last": values[1], "mean": (values[0] + values[1]) / 2}.items():
            made = _apply(_layers(groups="0,0,1,2", init=init), package)
            np.testing.assert_allclose(made.weights[f"layers.0.{name}"], expected, atol=1e-7)
            np.testing.assert_array_equal(made.weights[f"layers.3.{name}"], values[3])


def test_gates_and_exits_stay_their_own() -> None:
    layers = tuple(dataclasses.replace(LAYER, gate=True, exit=Exit() if index < 3 else None) for index in range(4))
    package = random_package(dataclasses.replace(DEEP, layers=layers))
    made = _apply(_layers(distinct=1), package)
    for index in range(4):
        names = [f"layers.{index}.gate.weight"] + ([f"layers.{index}.exit.bias"] if index < 3 else [])
        for name in names:
            np.testing.assert_array_equal(made.weights[name], package.weights[name])
    assert [(layer.gate, layer.exit) for layer in made.spec.layers] == [(layer.gate, layer.exit) for layer in layers]


def test_what_is_shared_can_be_shared_further() -> None:
    package = random_package(DEEP)
    once = _apply(_layers(groups="0,1,1,1", init="last"), package)
    twice = _apply(_layers(groups="0,0,0,0", init="last"), once)
    np.testing.assert_array_equal(twice.weights["layers.0.ffn.up.weight"], package.weights["layers.3.ffn.up.weight"])
    assert _reasons(_layers(groups="0,1,2,2"), once.spec) == [
        "no layer would share weights that it does not share already"]


def test_layers_that_cannot_share() -> None:
    unlike = dataclasses.replace(DEEP, layers=(LAYER, LAYER, dataclasses.replace(LAYER, ffn=20), LAYER))
    assert _reasons(_layers(distinct=2), unlike) == ["layers 2 and 3 differ in ffn and cannot share weights"]
    low = dataclasses.replace(DEEP, layers=(LOW, LOW, LAYER, LAYER))
    assert "low-rank" in _reasons(_layers(distinct=2), low)[0]
    assert _reasons(_layers(distinct=2, init="first"), low) == []
    sparse = dataclasses.replace(DEEP, sparse={f"layers.{index}.ffn.up": "unstructured" for index in (0, 1, 2)})
    reasons = _reasons(_layers(distinct=2), sparse)
    assert "are sparse" in reasons[0] and reasons[1] == "layers 2 and 3 differ in what is sparse"
    assert "5 layers" in _reasons(_layers(groups="0,0"), dataclasses.replace(DEEP, layers=(LAYER,) * 5))[0]
    assert "distinct is 5" in _reasons(_layers(distinct=5), DEEP)[0]
    assert "no layer would share" in _reasons(_layers(distinct=4), DEEP)[0]
    assert "before the quantize" in _layers(distinct=2).requires(
        dataclasses.replace(random_context(random_package(DEEP)).outline(random_package(DEEP)), scheme="w8a8"))[0]


@pytest.mark.parametrize("options", [{}, {"groups": "0,0", "distinct": 1}, {"groups": "a,b"}, {"distinct": 0}])
def test_layer_options_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ShareLayersOptions(**options)


def test_a_sparse_owner_keeps_its_pattern() -> None:
    sparse = dataclasses.replace(DEEP, sparse={f"layers.{index}.ffn.up": "unstructured" for index in (0, 1)})
    package = random_package(DEEP)
    outline = dataclasses.replace(random_context(package).outline(package), spec=sparse)
    made = _layers(groups="0,0,1,2", init="first").ensures(outline)
    assert made.spec.sparse == {"layers.0.ffn.up": "unstructured"}


# --- key/value heads ------------------------------------------------------------------------------------------------


def _with_equal_heads(spec: TransformerSpec, same: list[list[int]], turn: bool) -> Package:
    """Key/value heads of each group made equal (turned at random where `turn`); of layer 0."""
    package, random = random_package(spec), np.random.default_rng(5)
    layer, changed = spec.layers[0], {}
    for part in ("key", "value"):
        for suffix in ("weight", "bias"):
            name = f"layers.0.attention.{part}.{suffix}"
            changed[name] = package.weights[name].copy()
    size = layer.head_size
    for group in same:
        for head in group:
            place, source = slice(head * size, (head + 1) * size), slice(group[0] * size, (group[0] + 1) * size)
            turns = [np.linalg.qr(random.normal(size=(size, size)))[0] if turn else np.eye(size) for _ in range(2)]
            for part, rotated in (("key", turns[0]), ("value", turns[1])):
                for suffix in ("weight", "bias"):
                    old = package.weights[f"layers.0.attention.{part}.{suffix}"]
                    changed[f"layers.0.attention.{part}.{suffix}"][place] = rotated @ old[source]
    return with_weights(package, **changed)


@pytest.mark.parametrize("turn", [False, True], ids=["equal", "turned"])
@pytest.mark.parametrize("grouping", ["similar", "neighbours"])
def test_equal_heads_merge_without_loss(grouping: str, turn: bool) -> None:
    """Groups of neighbours that are turned, or that lie apart, only `similar` finds."""
    spec = dataclasses.replace(BERT, layers=(LAYER,))
    inputs = random_inputs(spec, 6, 9)
    for same, apart in (([[0, 1], [2, 3]], False), ([[0, 3], [1, 2]], True)):
        package = _with_equal_heads(spec, same, turn)
        made = _apply(_heads(2, grouping=grouping), package)
        assert made.weights["layers.0.attention.key.weight"].shape == (8, 16)
        difference = np.abs(run_graph(made.graph, inputs) - run_graph(package.graph, inputs)).max()
        if grouping == "similar" or not (turn or apart):
            assert difference < 1e-4
        else:
            assert difference > 1e-2


@pytest.mark.parametrize("spec", [HEADS, HEADS_LOW], ids=["shared", "low_rank"])
def test_arranging_heads_changes_nothing(spec: TransformerSpec) -> None:
    package = random_package(spec)
    weights = {name: value.copy() for name, value in package.weights.items()}
    random = np.random.default_rng(1)
    for index in (0, 1):
        sample = np.c_[random.normal(size=(40, 16)), np.ones(40)]
        groups = arrange(spec, weights, index, 2, sample.T @ sample / 40)
        assert sorted(head for group in groups for head in group) == [0, 1, 2, 3]
    key = "layers.1.attention.key.weight"
    assert not np.array_equal(weights[key], package.weights[key])
    inputs = random_inputs(spec, 6, 9)
    expected = run(build(spec, package.weights), inputs)
    np.testing.assert_allclose(run(build(spec, weights), inputs), expected, atol=1e-4)


def test_neighbours_are_plain_means() -> None:
    package = random_package(dataclasses.replace(BERT, layers=(LAYER,)))
    made = _apply(_heads(2, grouping="neighbours"), package)
    for part in ("key", "value"):
        name = f"layers.0.attention.{part}.weight"
        old = package.weights[name].reshape(2, 2, 4, 16)
        np.testing.assert_allclose(made.weights[name].reshape(2, 4, 16), old.mean(1), atol=1e-7)
    for part in ("query", "output"):
        name = f"layers.0.attention.{part}.weight"
        np.testing.assert_array_equal(made.weights[name], package.weights[name])


def test_merging_once_or_twice_gives_heads_that_are_left() -> None:
    package = random_package(dataclasses.replace(BERT, layers=(LAYER,)))
    twice = _apply(_heads(1, grouping="neighbours"), _apply(_heads(2, grouping="neighbours"), package))
    once = _apply(_heads(1, grouping="neighbours"), package)
    name = "layers.0.attention.value.weight"
    np.testing.assert_allclose(twice.weights[name], once.weights[name], atol=1e-6)


def test_heads_that_cannot_be_shared() -> None:
    assert "4 key/value heads cannot become 3" in _reasons(_heads(3), DEEP)[0]
    assert "4 heads" not in _reasons(_heads(8), DEEP)[0]
    assert "already" in _reasons(_heads(4), DEEP)[0]
    sparse = dataclasses.replace(DEEP, sparse={"layers.1.attention.key": "unstructured"})
    assert "is sparse" in _reasons(_heads(2), sparse)[0]
    with pytest.raises(ValidationError):
        ShareKvHeadsOptions(kv_heads=0)


def test_rotations_are_orthogonal_and_found_again() -> None:
    random = np.random.default_rng(0)
    head, turn = random.normal(size=(4, 7)), np.linalg.qr(random.normal(size=(4, 4)))[0]
    covariance = np.eye(7) * np.linspace(0.1, 2, 7)
    np.testing.assert_allclose(rotation(head, turn @ head, covariance), turn, atol=1e-8)
    turns = aligned([head, turn @ head, random.normal(size=(4, 7))], covariance)
    for found in turns:
        np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-8)
    assert similarity([head, turn @ head], covariance)[0, 1] == pytest.approx(1.0)
    assert similarity([head, random.normal(size=(4, 7))], covariance)[0, 1] < 0.9


def test_extended_moments_hold_the_bias() -> None:
    random = np.random.default_rng(0)
    rows, head = random.normal(size=(30, 5)), random.normal(size=(3, 6))
    outputs = rows @ head[:, :5].T + head[:, 5]
    covariance = extended(rows.T @ rows / 30, rows.mean(0))
    np.testing.assert_allclose(head @ covariance @ head.T, outputs.T @ outputs / 30)


def test_groups_put_like_to_like() -> None:
    labels = np.array([0, 1, 2, 1, 0, 2])
    alike = (labels[:, None] == labels).astype(float)
    assert grouped(alike, 3) == [[0, 4], [1, 3], [2, 5]]
    assert grouped(np.eye(4), 4) == [[0], [1], [2], [3]]
    # The best pair first leaves the worst pair behind; an exchange mends it.
    trap = np.array([[1, 1.0, 0.9, 0], [1.0, 1, 0, 0.9], [0.9, 0, 1, 0], [0, 0.9, 0, 1]])
    assert grouped(trap, 2) == [[0, 2], [1, 3]]
