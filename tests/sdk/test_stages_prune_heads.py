"""`prune.heads`: heads go with everything that belongs to them; what stays computes what it did."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages import Stage, outline_of, run_stage
from edgesdk.stages.prune_heads import PruneHeads, PruneHeadsOptions
from edgesdk.testing.models import (
    BERT_MEAN,
    VIT,
    VIT_MEAN,
    random_context,
    random_inputs,
    random_package,
    with_weights,
)
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.module import build, run
from edgesdk.transformer.spec import Layer, TransformerSpec

IMPORTANCE = ["activation", "magnitude", "taylor", "fisher", "obs"]
FOUR = dataclasses.replace(VIT, layers=(Layer(4, 4, 4, 32), Layer(4, 4, 4, 24)))
GROUPED = dataclasses.replace(BERT_MEAN, layers=(Layer(6, 3, 4, 32), Layer(4, 2, 8, 24)))


class TestPruneHeads(StageTestCase):
    def stage(self) -> Stage:
        return PruneHeads(PruneHeadsOptions(keep=2))

    def packages(self) -> list[Package]:
        return [random_package(FOUR), random_package(GROUPED)]


class TestPruneHeadsBySecondOrder(StageTestCase):
    def stage(self) -> Stage:
        return PruneHeads(PruneHeadsOptions(keep=0.5, importance="obs"))

    def packages(self) -> list[Package]:
        return [random_package(VIT), random_package(dataclasses.replace(VIT_MEAN, layers=(Layer(4, 2, 4, 32),)))]


def _prune(package: Package, **options: Any) -> Package:
    return run_stage(PruneHeads(PruneHeadsOptions(**options)), package, random_context(package))


def _with_dead(package: Package, index: int, units: list[int]) -> Package:
    """Key/value heads whose values are nothing: no rows of `value`, no bias; and nobody reads them either."""
    layer = package.spec.layers[index]
    size, group = layer.head_size, layer.heads // layer.kv_heads
    prefix = f"layers.{index}.attention"
    value, bias = package.weights[f"{prefix}.value.weight"].copy(), package.weights[f"{prefix}.value.bias"].copy()
    output = package.weights[f"{prefix}.output.weight"].copy()
    for unit in units:
        value[unit * size : (unit + 1) * size] = 0
        bias[unit * size : (unit + 1) * size] = 0
        output[:, unit * size * group : (unit + 1) * size * group] = 0
    changed = {f"{prefix}.value.weight": value, f"{prefix}.value.bias": bias, f"{prefix}.output.weight": output}
    return with_weights(package, **changed)


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("spec", [FOUR, GROUPED], ids=["plain", "grouped"])
def test_dead_heads_go_and_the_function_stays(spec: TransformerSpec, importance: str) -> None:
    dead = 1
    package = _with_dead(random_package(spec), 0, [dead])
    layer = spec.layers[0]
    group = layer.heads // layer.kv_heads
    pruned = _prune(package, keep=layer.heads - group, scope="layers.0.attention", importance=importance)
    after = pruned.spec.layers[0]
    assert (after.heads, after.kv_heads) == (layer.heads - group, layer.kv_heads - 1)
    assert pruned.spec.layers[1:] == spec.layers[1:]
    kept = [unit for unit in range(layer.kv_heads) if unit != dead]
    for part, width in (("query", group * layer.head_size), ("key", layer.head_size), ("value", layer.head_size)):
        name = f"layers.0.attention.{part}.weight"
        old = package.weights[name].reshape(layer.kv_heads, width, -1)
        np.testing.assert_array_equal(pruned.weights[name], old[kept].reshape(-1, spec.hidden))
    inputs = random_inputs(spec, 5, 9)
    # obs refits under damping, which pulls a hair away from the exact fit.
    limit = 1e-3 if importance == "obs" else 1e-5
    expected = run(build(package.spec, package.weights), inputs)
    np.testing.assert_allclose(run(build(pruned.spec, pruned.weights), inputs), expected, atol=limit)


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_keeping_all_changes_nothing(importance: str) -> None:
    package = random_package(FOUR)
    pruned = _prune(package, keep=1.0, importance=importance)
    assert pruned.graph == package.graph


def test_global_allocation_takes_heads_where_they_cost_least() -> None:
    package = _with_dead(_with_dead(random_package(FOUR), 0, [0, 2, 3]), 1, [3])
    pruned = _prune(package, keep=2, allocate="global", importance="fisher")
    assert [layer.heads for layer in pruned.spec.layers] == [1, 3]
    inputs = random_inputs(FOUR, 5, 9)
    expected = run(build(package.spec, package.weights), inputs)
    np.testing.assert_allclose(run(build(pruned.spec, pruned.weights), inputs), expected, atol=1e-5)


def test_layers_that_share_weights_are_pruned_once_and_together() -> None:
    spec = dataclasses.replace(FOUR, layers=(FOUR.layers[0], dataclasses.replace(FOUR.layers[0], share=0)))
    package = random_package(spec)
    pruned = _prune(package, keep=2, scope="layers.1.attention")
    assert [layer.heads for layer in pruned.spec.layers] == [2, 2]
    assert pruned.weights["layers.0.attention.query.weight"].shape == (8, 16)


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_low_rank_parts_lose_rows_of_u_and_columns_of_v(importance: str) -> None:
    ranks = {"attention.query": 3, "attention.value": 5, "attention.output": 6}
    spec = dataclasses.replace(FOUR, layers=(dataclasses.replace(FOUR.layers[0], ranks=ranks), FOUR.layers[1]))
    pruned = _prune(random_package(spec), keep=2, importance=importance)
    shapes = {name: value.shape for name, value in pruned.weights.items()}
    assert shapes["layers.0.attention.query.u.weight"] == (8, 3)
    assert shapes["layers.0.attention.query.v.weight"] == (3, 16)
    assert shapes["layers.0.attention.output.u.weight"] == (16, 6)
    assert shapes["layers.0.attention.output.v.weight"] == (6, 8)


def test_zeros_stay_structural() -> None:
    sparse = {
        "layers.0.attention.query": "4x4", "layers.0.attention.key": "2:4", "layers.0.attention.output": "2:4",
        "layers.1.ffn.up": "4x4",
    }
    pruned = _prune(random_package(dataclasses.replace(FOUR, sparse=sparse)), keep=2)
    assert pruned.spec.sparse == {
        "layers.0.attention.query": "unstructured", "layers.0.attention.key": "2:4",
        "layers.0.attention.output": "unstructured", "layers.1.ffn.up": "4x4",
    }


@pytest.mark.parametrize(("keep", "found"), [(5, "keep 5, but a layer has 4 heads"), (3, None)])
def test_more_heads_than_there_are(keep: int, found: str | None) -> None:
    package = random_package(FOUR)
    stage = PruneHeads(PruneHeadsOptions(keep=keep))
    reasons = stage.requires(outline_of(package, True))
    if found is None:
        assert reasons == []
        return
    (reason,) = reasons
    assert found in reason
    with pytest.raises(StageError, match=r"prune\.heads.*keep 5"):
        run_stage(stage, package, random_context(package))


def test_half_a_group_is_refused() -> None:
    (reason,) = PruneHeads(PruneHeadsOptions(keep=3)).requires(outline_of(random_package(GROUPED), True))
    assert "2 heads of a layer share one key/value head" in reason
    assert "multiple of 2" in reason


@pytest.mark.parametrize("keep", [0, 0.0, -1, 1.5, True, "6", None])
def test_keep_is_a_number_of_heads_or_a_share(keep: Any) -> None:
    with pytest.raises(ValidationError, match="keep"):
        PruneHeadsOptions(keep=keep)


def test_obs_comes_before_sparsity() -> None:
    spec = dataclasses.replace(FOUR, sparse={"layers.1.attention.output": "4x4"})
    (reason,) = PruneHeads(PruneHeadsOptions(keep=2, importance="obs")).requires(outline_of(random_package(spec), True))
    assert "layers.1.attention.output" in reason
    assert "before prune.weights" in reason
