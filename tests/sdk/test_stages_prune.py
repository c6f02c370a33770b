"""`prune.neurons`: exactly the least important go, for good, and nothing else changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from edgesdk.data import Dataset
from edgesdk.errors import StageError
from edgesdk.evaluate import run_graph
from edgesdk.package import Package
from edgesdk.stages import Stage, outline_of, run_stage
from edgesdk.stages.prune_neurons import PruneNeurons, PruneNeuronsOptions
from edgesdk.testing.models import BERT, FEATURES, VIT, random_context, random_inputs, random_package, with_weights
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.module import build, run
from edgesdk.transformer.spec import Layer

IMPORTANCE = ["activation", "magnitude", "taylor", "fisher", "obs"]
DEEP = dataclasses.replace(VIT, layers=(Layer(2, 2, 8, 32), Layer(2, 2, 8, 32)))


class TestPruneNeuronsBySecondOrder(StageTestCase):
    def stage(self) -> Stage:
        return PruneNeurons(PruneNeuronsOptions(keep=0.5, importance="obs"))

    def packages(self) -> list[Package]:
        return [random_package(VIT), random_package(BERT)]


def _prune(package: Package, **options: Any) -> Package:
    return run_stage(PruneNeurons(PruneNeuronsOptions(**options)), package, random_context(package))


def _with_dead(package: Package, index: int, dead: list[int]) -> Package:
    """Neurons that never fire: no weights in, no weights out, no bias."""
    changed = {}
    for part, rows in (("up.weight", True), ("up.bias", True), ("down.weight", False)):
        name = f"layers.{index}.ffn.{part}"
        changed[name] = package.weights[name].copy()
        if rows:
            changed[name][dead] = 0
        else:
            changed[name][:, dead] = 0
    return with_weights(package, **changed)


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("spec", [VIT, BERT, FEATURES], ids=["vit", "bert", "features"])
def test_dead_neurons_go_and_the_function_stays(spec: Any, importance: str) -> None:
    dead = [0, 3, 4, 9, 17, 18, 30, 31]
    package = _with_dead(random_package(spec), 0, dead)
    pruned = _prune(package, keep=0.75, scope="layers.0.ffn", importance=importance)
    assert pruned.spec.layers[0].ffn == 24
    kept = [neuron for neuron in range(32) if neuron not in dead]
    for part in ("up.weight", "up.bias"):
        name = f"layers.0.ffn.{part}"
        np.testing.assert_array_equal(pruned.weights[name], package.weights[name][kept])
    down, inputs = "layers.0.ffn.down.weight", random_inputs(spec, 5, 9)
    # obs refits under damping, which pulls a hair away from the exact fit.
    limit = 1e-3 if importance == "obs" else 0
    np.testing.assert_allclose(pruned.weights[down], package.weights[down][:, kept], atol=limit, rtol=0)
    expected = run_graph(package.graph, inputs)
    np.testing.assert_allclose(run_graph(pruned.graph, inputs), expected, atol=1e-6 + 2 * limit)


def test_magnitude_is_the_product_of_both_norms() -> None:
    package = random_package(VIT)
    up, down = np.ones((32, 16), np.float32), np.ones((16, 32), np.float32)
    up *= np.linspace(1, 2, 32, dtype=np.float32)[:, None]
    down *= np.linspace(3, 1, 32, dtype=np.float32)[None]
    package = with_weights(package, layers__0__ffn__up__weight=up, layers__0__ffn__down__weight=down)
    pruned = _prune(package, keep=0.5, scope="layers.0.ffn", importance="magnitude", multiple=1)
    product = np.linspace(1, 2, 32) * np.linspace(3, 1, 32)
    expected = np.sort(np.argsort(product)[16:])
    np.testing.assert_array_equal(pruned.weights["layers.0.ffn.up.weight"], up[expected])


def test_activation_counts_what_the_data_uses() -> None:
    """A neuron with large weights that no input wakes goes before a small one that always fires."""
    package = random_package(FEATURES)
    up, down, bias = np.zeros((32, 16), np.float32), np.zeros((16, 32), np.float32), np.zeros(32, np.float32)
    down[0, :] = 1
    bias[:16] = np.linspace(0.1, 0.2, 16)
    bias[16:] = -1
    up[16:] = 1e-3
    down[:, 16:] = 50
    weights = {"up.weight": up, "up.bias": bias, "down.weight": down}
    package = with_weights(package, **{f"layers.0.ffn.{name}": value for name, value in weights.items()})
    by_data = _prune(package, keep=0.5)
    np.testing.assert_array_equal(by_data.weights["layers.0.ffn.up.bias"], bias[:16])
    by_weights = _prune(package, keep=0.5, importance="magnitude")
    np.testing.assert_array_equal(by_weights.weights["layers.0.ffn.up.bias"], bias[16:])


def test_padding_has_no_say() -> None:
    package = random_package(BERT)
    inputs = random_inputs(BERT, 12, 5)
    behind = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], (inputs["input_ids"] + 13) % 50)
    stage = PruneNeurons(PruneNeuronsOptions(keep=0.5))
    context = random_context(package)
    changes = [
        stage.apply(package, dataclasses.replace(context, calibration=Dataset(inputs | {"input_ids": ids}, None)))
        for ids in (inputs["input_ids"], behind)
    ]
    assert changes[0].weights is not None and changes[1].weights is not None
    for name, value in changes[0].weights.items():
        np.testing.assert_array_equal(value, changes[1].weights[name])


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_keeping_all_changes_nothing(importance: str) -> None:
    package = random_package(VIT)
    pruned = _prune(package, keep=1, importance=importance, multiple=64)
    assert pruned.spec == package.spec
    assert pruned.graph == package.graph
    for name, value in package.weights.items():
        np.testing.assert_array_equal(pruned.weights[name], value)


@pytest.mark.parametrize(
    ("ffn", "keep", "multiple", "width"),
    [(32, 0.5, 4, 16), (32, 0.5, 1, 16), (32, 0.3, 4, 8), (32, 0.33, 4, 12), (32, 0.01, 4, 4), (32, 0.01, 1, 1),
     (20, 0.99, 8, 16), (20, 1, 8, 20), (22, 0.99, 8, 22), (6, 0.5, 8, 6), (24, 0.7, 8, 16), (32, 1, 64, 32),
     (33, 0.5, 16, 16)],
)
def test_widths_are_rounded_to_multiples(ffn: int, keep: float, multiple: int, width: int) -> None:
    spec = dataclasses.replace(VIT, layers=(Layer(2, 2, 8, ffn),))
    stage = PruneNeurons(PruneNeuronsOptions(keep=keep, multiple=multiple))
    promised = stage.ensures(outline_of(random_package(spec), False))
    assert promised.spec.layers[0].ffn == width


def test_scope_chooses_layers() -> None:
    package = random_package(VIT)
    pruned = _prune(package, keep=0.5, scope="layers.1.*")
    assert [layer.ffn for layer in pruned.spec.layers] == [32, 12]
    for name, value in package.weights.items():
        if not name.startswith("layers.1.ffn"):
            np.testing.assert_array_equal(pruned.weights[name], value)


@pytest.mark.parametrize("scope", ["layers.7.ffn", "encoder.*", "", "layers.0.attention"])
def test_scope_that_matches_nothing_is_refused_before_any_work(scope: str) -> None:
    package = random_package(VIT)
    stage = PruneNeurons(PruneNeuronsOptions(keep=0.5, scope=scope))
    (reason,) = stage.requires(outline_of(package, False))
    assert "matches nothing" in reason
    assert "layers.0.ffn" in reason
    with pytest.raises(StageError, match="matches nothing"):
        run_stage(stage, package, random_context(package))


def test_equal_importance_keeps_the_lower_index() -> None:
    package = random_package(FEATURES)
    up, down = np.ones((32, 16), np.float32), np.ones((16, 32), np.float32)
    bias = np.arange(32, dtype=np.float32)
    weights = {"up.weight": up, "up.bias": bias, "down.weight": down}
    package = with_weights(package, **{f"layers.0.ffn.{name}": value for name, value in weights.items()})
    pruned = _prune(package, keep=0.5, importance="magnitude")
    np.testing.assert_array_equal(pruned.weights["layers.0.ffn.up.bias"], bias[:16])


def test_needs_no_training_data() -> None:
    package = random_package(VIT)
    context = random_context(package, training=False)
    assert run_stage(PruneNeurons(PruneNeuronsOptions(keep=0.5)), package, context).spec.layers[0].ffn == 16


def test_second_order_makes_up_for_what_goes() -> None:
    """Neurons that copy others: their work moves over, and the function stays."""
    package = random_package(FEATURES)
    up, bias = package.weights["layers.0.ffn.up.weight"].copy(), package.weights["layers.0.ffn.up.bias"].copy()
    up[16:], bias[16:] = up[:16], bias[:16]
    package = with_weights(package, layers__0__ffn__up__weight=up, layers__0__ffn__up__bias=bias)
    inputs = random_inputs(FEATURES, 5, 9)
    expected = run_graph(package.graph, inputs)
    by_error = run_graph(_prune(package, keep=0.5, importance="obs").graph, inputs)
    by_size = run_graph(_prune(package, keep=0.5, importance="magnitude").graph, inputs)
    assert np.square(by_error - expected).mean() < 1e-2 * np.square(by_size - expected).mean()


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_global_allocation_takes_from_the_layer_that_needs_least(importance: str) -> None:
    dead = list(range(1, 29))
    package = _with_dead(random_package(DEEP), 0, dead)
    pruned = _prune(package, keep=0.5, allocate="global", importance=importance)
    first, second = (layer.ffn for layer in pruned.spec.layers)
    assert first + second == 32
    assert first == 4
    inputs = random_inputs(DEEP, 5, 9)
    if importance != "obs":
        kept = package.weights["layers.0.ffn.up.bias"][[0, 29, 30, 31]]
        np.testing.assert_array_equal(pruned.weights["layers.0.ffn.up.bias"], kept)
    assert run_graph(pruned.graph, inputs).shape == (5, 5)


def test_layers_that_share_weights_are_pruned_once_and_together() -> None:
    spec = dataclasses.replace(DEEP, layers=(DEEP.layers[0], dataclasses.replace(DEEP.layers[0], share=0)))
    package = random_package(spec)
    pruned = _prune(package, keep=0.5, scope="layers.1.ffn")
    assert [layer.ffn for layer in pruned.spec.layers] == [16, 16]
    assert pruned.weights["layers.0.ffn.up.weight"].shape == (16, 16)


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_low_rank_parts_lose_rows_of_u_and_columns_of_v(importance: str) -> None:
    """Dead neurons of a low-rank pair: the function stays."""
    layer = Layer(2, 2, 8, 32, ranks={"ffn.up": 6, "ffn.down": 7})
    package = random_package(dataclasses.replace(VIT, layers=(layer,)))
    changed = {name: package.weights[f"layers.0.ffn.{name}"].copy() for name in ("up.u.weight", "up.u.bias")}
    changed["up.u.weight"][8:24] = 0
    changed["up.u.bias"][8:24] = 0
    down = package.weights["layers.0.ffn.down.v.weight"].copy()
    down[:, 8:24] = 0
    named = {f"layers.0.ffn.{name}": value for name, value in changed.items()}
    package = with_weights(package, **named, layers__0__ffn__down__v__weight=down)
    pruned = _prune(package, keep=0.5, importance=importance)
    shapes = {name: value.shape for name, value in pruned.weights.items()}
    assert shapes["layers.0.ffn.up.u.weight"] == (16, 6)
    assert shapes["layers.0.ffn.up.v.weight"] == (6, 16)
    assert shapes["layers.0.ffn.down.v.weight"] == (7, 16)
    inputs = random_inputs(package.spec, 5, 9)
    expected = run(build(package.spec, package.weights), inputs)
    found = run(build(pruned.spec, pruned.weights), inputs)
    np.testing.assert_allclose(found, expected, atol=5e-3 if importance == "obs" else 1e-5)


def test_zeros_stay_structural() -> None:
    sparse = {"layers.0.ffn.up": "2:4", "layers.1.ffn.up": "4x4", "layers.1.ffn.down": "2:4", "classifier": "4x4"}
    package = random_package(dataclasses.replace(VIT, sparse=sparse))
    assert _prune(package, keep=0.5).spec.sparse == {
        "layers.0.ffn.up": "2:4", "layers.1.ffn.up": "unstructured", "layers.1.ffn.down": "unstructured",
        "classifier": "4x4",
    }
    stage = PruneNeurons(PruneNeuronsOptions(keep=0.5, importance="obs"))
    (reason,) = stage.requires(outline_of(package, True))
    assert "layers.1.ffn.down" in reason
    assert "before prune.weights" in reason
