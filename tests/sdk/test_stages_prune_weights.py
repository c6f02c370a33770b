"""`prune.weights`: the least weights become zero, in the pattern that was asked for, and nothing else changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages import Stage, outline_of, run_stage
from edgesdk.stages.gradual import RISES, rises, share
from edgesdk.stages.masks import Pattern, cell_scores, choose, largest_of_groups, parse, together
from edgesdk.stages.prune_weights import PruneWeights, PruneWeightsOptions, input_norms
from edgesdk.testing.models import (
    BERT,
    BERT_MEAN,
    FEATURES,
    VIT,
    random_context,
    random_package,
)
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.spec import Layer

SHARED = dataclasses.replace(VIT, layers=(Layer(2, 2, 8, 32), Layer(2, 2, 8, 32, share=0)))
LOW_RANK = dataclasses.replace(VIT, layers=(Layer(2, 2, 8, 32, ranks={"ffn.up": 6, "attention.query": 4}),))


class TestPruneWeights(StageTestCase):
    def stage(self) -> Stage:
        return PruneWeights(PruneWeightsOptions(sparsity=0.5))

    def packages(self) -> list[Package]:
        return [random_package(VIT), random_package(BERT), random_package(LOW_RANK)]


class TestPruneBlocksBySecondOrder(StageTestCase):
    def stage(self) -> Stage:
        return PruneWeights(PruneWeightsOptions(sparsity=0.5, pattern="4x4", score="obs"))

    def packages(self) -> list[Package]:
        return [random_package(SHARED), random_package(FEATURES)]


class TestPruneWeightsGradually(StageTestCase):
    def stage(self) -> Stage:
        return PruneWeights(PruneWeightsOptions(pattern="2:4", schedule="gradual", batch=8))

    def packages(self) -> list[Package]:
        return [random_package(VIT), random_package(BERT)]


def _prune(package: Package, block: tuple[int, int] | None = None, **options: Any) -> Package:
    context = dataclasses.replace(random_context(package), sparse_block=block)
    return run_stage(PruneWeights(PruneWeightsOptions(**options)), package, context)


def _matrices(package: Package) -> dict[str, NDArray[np.float32]]:
    return {name: package.weights[f"{name}.weight"] for name in package.spec.sparse}


@pytest.mark.parametrize("score", ["magnitude", "activation", "obs"])
def test_share_of_zeros_is_what_was_asked_for(score: str) -> None:
    package = random_package(BERT_MEAN)
    pruned = _prune(package, sparsity=0.75, score=score)
    assert set(pruned.spec.sparse.values()) == {"unstructured"}
    assert set(pruned.spec.sparse) == {name for name, _, _ in package.spec.linears() if name.startswith("layers.")}
    for name, matrix in _matrices(pruned).items():
        assert np.count_nonzero(matrix) == matrix.size - round(0.75 * matrix.size), name


def test_magnitude_keeps_the_largest_as_they_were() -> None:
    package = random_package(VIT)
    pruned = _prune(package, sparsity=0.6)
    for name, matrix in _matrices(pruned).items():
        before = package.weights[f"{name}.weight"]
        kept = matrix != 0
        np.testing.assert_array_equal(matrix[kept], before[kept])
        assert np.abs(before[kept]).min() >= np.abs(before[~kept]).max()
    others = set(package.weights) - {f"{name}.weight" for name in pruned.spec.sparse}
    for name in others:
        np.testing.assert_array_equal(pruned.weights[name], package.weights[name])


def test_activation_weighs_by_the_norm_of_the_input() -> None:
    package = random_package(FEATURES)
    pruned = _prune(package, sparsity=0.5, score="activation", scope="layers.0.ffn.up")
    norms = input_norms(package, random_context(package), ["layers.0.ffn.up"])["layers.0.ffn.input"]
    before = package.weights["layers.0.ffn.up.weight"]
    score = np.abs(before) * norms
    kept = pruned.weights["layers.0.ffn.up.weight"] != 0
    assert score[kept].min() >= score[~kept].max()
    assert (kept != (np.abs(before) >= np.median(np.abs(before)))).any()
    assert list(pruned.spec.sparse) == ["layers.0.ffn.up"]


@pytest.mark.parametrize("score", ["magnitude", "activation", "obs"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8", "2:5"])
def test_n_of_m_neighbouring_inputs_stay(pattern: str, score: str) -> None:
    kept, group = map(int, pattern.split(":"))
    pruned = _prune(random_package(VIT), pattern=pattern, score=score)
    for matrix in _matrices(pruned).values():
        for start in range(0, matrix.shape[1], group):
            part = matrix[:, start : start + group]
            assert (np.count_nonzero(part, axis=1) == min(kept, part.shape[1])).all()


@pytest.mark.parametrize("score", ["magnitude", "activation", "obs"])
@pytest.mark.parametrize("block", [(4, 4), (3, 5), (16, 1), (12, 4)])
def test_blocks_are_all_or_nothing_and_smaller_at_the_edges(block: tuple[int, int], score: str) -> None:
    pruned = _prune(random_package(VIT), sparsity=0.5, pattern=f"{block[0]}x{block[1]}", score=score)
    for name, matrix in _matrices(pruned).items():
        assert pruned.spec.sparse[name] == f"{block[0]}x{block[1]}"
        zero = whole = 0
        for row in range(0, matrix.shape[0], block[0]):
            for column in range(0, matrix.shape[1], block[1]):
                part = matrix[row : row + block[0], column : column + block[1]]
                whole += 1
                zero += int(not part.any())
                assert part.all() or not part.any()
        assert zero == round(0.5 * whole)


def test_target_means_the_blocks_of_its_kernels() -> None:
    package = random_package(VIT)
    pruned = _prune(package, (12, 4), sparsity=0.5, pattern="target")
    assert set(pruned.spec.sparse.values()) == {"12x4"}
    same = _prune(package, sparsity=0.5, pattern="12x4")
    assert same.graph == pruned.graph
    stage = PruneWeights(PruneWeightsOptions(sparsity=0.5, pattern="target"))
    (reason,) = stage.requires(outline_of(package, True))
    assert "pattern target needs a target" in reason


def test_global_takes_more_where_it_matters_less() -> None:
    """The total is what was asked for; no matrix loses everything."""
    package = random_package(VIT)
    scaled = dict(package.weights)
    name = "layers.0.ffn.up.weight"
    scaled[name] = np.where(np.abs(scaled[name]) > 0.4, scaled[name], scaled[name] * np.float32(1e-3))
    from edgesdk.testing.models import with_weights

    pruned = _prune(with_weights(package, **scaled), sparsity=0.8, allocate="global")
    matrices = _matrices(pruned)
    total = sum(matrix.size for matrix in matrices.values())
    assert sum(np.count_nonzero(matrix) for matrix in matrices.values()) == total - round(0.8 * total)
    shares = {name: 1 - np.count_nonzero(matrix) / matrix.size for name, matrix in matrices.items()}
    assert max(shares, key=lambda key: shares[key]) == "layers.0.ffn.up"
    assert all(value < 1 for value in shares.values())


def test_shared_weights_are_pruned_once_whichever_layer_is_named() -> None:
    package = random_package(SHARED)
    by_user = _prune(package, sparsity=0.5, scope="layers.1.*")
    by_owner = _prune(package, sparsity=0.5, scope="layers.0.*")
    assert by_user.spec == by_owner.spec
    assert by_user.graph == by_owner.graph
    assert all(name.startswith("layers.0.") for name in by_user.spec.sparse)


def test_gradual_ends_at_the_sparsity_and_trains() -> None:
    package = random_package(VIT)
    pruned = _prune(package, sparsity=0.7, schedule="gradual", epochs=2, batch=4, learning_rate=1e-3)
    for name, matrix in _matrices(pruned).items():
        assert np.count_nonzero(matrix) == matrix.size - round(0.7 * matrix.size), name
        kept = matrix != 0
        assert (matrix[kept] != package.weights[f"{name}.weight"][kept]).any()


def test_schedule_is_cubic() -> None:
    """s(t) = s (1 − (1 − t)³): an eighth of what is missing is left at half of the way."""
    assert share(RISES) == 1
    assert share(RISES // 2) == pytest.approx(1 - 0.5**3)
    assert rises(0, 100) == 0
    assert rises(60, 100) == RISES
    assert rises(1, 1) == RISES
    done = [rises(step, 1000) for step in range(1001)]
    assert done == sorted(done)
    assert set(range(RISES + 1)) <= set(done)


def test_parse_reads_patterns() -> None:
    assert parse("unstructured") == Pattern(1, 1)
    assert parse("2:4") == Pattern(1, 4, 2)
    assert parse("12x4") == Pattern(12, 4)


@pytest.mark.parametrize(
    "text", ["", "dense", "4:4", "4:2", "0:4", "0x4", "4x", ":4", "1000x1", "-1x4", "2:4:8", "²:4"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        parse(text)


def test_masks_break_ties_by_position() -> None:
    same = np.ones((4, 8))
    np.testing.assert_array_equal(largest_of_groups(same, 1, 4)[:, ::4], np.ones((4, 2), bool))
    mask = choose({"a": same}, Pattern(1, 1), 0.5, "uniform")["a"]
    np.testing.assert_array_equal(mask, np.arange(32).reshape(4, 8) < 16)


def test_scores_of_blocks_are_mean_squares() -> None:
    scores = np.random.default_rng(0).normal(size=(7, 9))
    cells = cell_scores(scores, Pattern(3, 4))
    expected = [
        [np.mean(scores[row : row + 3, column : column + 4] ** 2) for column in (0, 4, 8)] for row in (0, 3, 6)
    ]
    np.testing.assert_allclose(cells, expected)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"pattern": "unstructured"}, "needs sparsity"), ({}, "needs sparsity"),
        ({"pattern": "2:4", "sparsity": 0.75}, "own sparsity"), ({"pattern": "4:4"}, "removes nothing"),
        ({"sparsity": 1.0}, "less than 1"), ({"sparsity": 0}, "greater than 0"), ({"pattern": "4by4"}, "expected"),
        ({"sparsity": 0.5, "keep": 0.5}, "keep"), ({"sparsity": 0.5, "schedule": "slow"}, "schedule"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        PruneWeightsOptions.model_validate(options)


@pytest.mark.parametrize("options", [{"pattern": "2:4", "sparsity": 0.5}, {"pattern": "1:3", "sparsity": 2 / 3}])
def test_sparsity_of_n_of_m_may_be_said(options: dict[str, Any]) -> None:
    assert PruneWeightsOptions.model_validate(options).pattern == options["pattern"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"sparsity": 0.5, "schedule": "gradual"}, "labelled training data"),
        ({"sparsity": 0.5, "score": "obs", "allocate": "global"}, "same share from every matrix"),
        ({"pattern": "2:4", "allocate": "global"}, "same everywhere"),
        ({"sparsity": 0.5, "scope": "layers.9.*"}, "matches nothing"),
        ({"sparsity": 0.5, "scope": "*.gate"}, "matches nothing"),
    ],
)
def test_reasons_come_before_the_work(options: dict[str, Any], found: str) -> None:
    package = random_package(VIT)
    stage = PruneWeights(PruneWeightsOptions.model_validate(options))
    (reason,) = stage.requires(outline_of(package, False))
    assert found in reason
    with pytest.raises(StageError, match=r"prune\.weights"):
        run_stage(stage, package, random_context(package, training=False))


def test_obs_does_not_fill_zeros_that_are_there() -> None:
    package = _prune(random_package(VIT), sparsity=0.5, scope="layers.0.ffn.up")
    stage = PruneWeights(PruneWeightsOptions(sparsity=0.5, score="obs"))
    (reason,) = stage.requires(outline_of(package, True))
    assert "layers.0.ffn.up" in reason


@pytest.mark.parametrize(
    ("before", "after", "holds"),
    [
        (None, "2:4", "2:4"), ("2:4", "unstructured", "2:4"), ("2:4", "4x4", "2:4"), ("unstructured", "2:4", "2:4"),
        ("4x4", "2:4", "2:4"), ("1:4", "2:4", "1:4"), ("2:4", "1:4", "1:4"), ("2:4", "4:8", "4:8"),
        ("4x4", "unstructured", "unstructured"), ("unstructured", "4x4", "unstructured"), ("4x4", "8x8", "4x4"),
        ("8x8", "4x4", "4x4"), ("4x4", "6x4", "unstructured"), ("4x2", "2x4", "unstructured"), ("4x4", "4x4", "4x4"),
    ],
)
def test_what_holds_of_zeros_that_come_together(before: str | None, after: str, holds: str) -> None:
    assert together(before, after) == holds


@pytest.mark.parametrize("again", [{"sparsity": 0.7}, {"sparsity": 0.5, "pattern": "4x4"}])
def test_two_of_four_is_still_said_after_more_zeros(again: dict[str, Any]) -> None:
    """`verify` holds the matrices against what is said."""
    once = _prune(random_package(VIT), pattern="2:4", scope="layers.0.*")
    twice = _prune(once, **again)
    for name, pattern in twice.spec.sparse.items():
        assert pattern == ("2:4" if name.startswith("layers.0.") else again.get("pattern", "unstructured"))


def test_pruning_again_keeps_the_zeros() -> None:
    once = _prune(random_package(VIT), sparsity=0.3)
    twice = _prune(once, pattern="2:4")
    for name, matrix in _matrices(twice).items():
        assert not matrix[once.weights[f"{name}.weight"] == 0].any()
    assert set(twice.spec.sparse.values()) == {"2:4"}
