"""Low-rank factors against known truths: exact ranks, the data's norm, break-even, and a slow search for budgets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.lowrank import decompose, rank_of_energy, rank_of_share, ranks_of_budget, saves

RANDOM = np.random.default_rng(0)


def _matrix(outputs: int, inputs: int, rank: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(outputs, rank)) @ random.normal(size=(rank, inputs))


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
@pytest.mark.parametrize("method", ["plain", "activation", "fisher"])
def test_full_rank_is_the_matrix_and_a_matrix_of_rank_r_needs_r(shape: tuple[int, int], method: str) -> None:
    rows = np.linspace(0.1, 5, shape[0]) if method == "fisher" else None
    samples = np.random.default_rng(1).normal(size=(50, shape[1])) * np.linspace(0.1, 3, shape[1])
    covariance = samples.T @ samples / 50 if method == "activation" else None
    for rank in (2, min(shape)):
        weight = _matrix(*shape, rank)
        u, v = decompose(weight, rows, covariance).factors(rank)
        assert (u.shape, v.shape) == ((shape[0], rank), (rank, shape[1]))
        np.testing.assert_allclose(u.astype(np.float64) @ v, weight, atol=1e-4)


def test_activations_give_a_smaller_error_of_outputs_and_the_plain_svd_of_weights() -> None:
    random = np.random.default_rng(2)
    weight = random.normal(size=(24, 32))
    turn = np.linalg.qr(random.normal(size=(32, 32)))[0]
    inputs = random.normal(size=(400, 32)) @ np.diag(np.logspace(-2, 1, 32)) @ turn
    covariance = inputs.T @ inputs / len(inputs)
    errors = {}
    for name, value in {"plain": decompose(weight), "activation": decompose(weight, None, covariance)}.items():
        u, v = value.factors(6)
        rest = weight - u.astype(np.float64) @ v
        errors[name] = (np.linalg.norm(inputs @ rest.T), np.linalg.norm(rest))
    assert errors["activation"][0] < 0.5 * errors["plain"][0]
    assert errors["plain"][1] < errors["activation"][1]


def test_energies_are_the_error_that_is_left() -> None:
    weight, rows = RANDOM.normal(size=(10, 14)), np.linspace(0.5, 2, 10)
    inputs = RANDOM.normal(size=(60, 14))
    covariance = inputs.T @ inputs / 60
    found = decompose(weight, rows, covariance)
    for rank in (1, 4, 9):
        u, v = found.factors(rank)
        rest = rows[:, None] * (weight - u.astype(np.float64) @ v)
        error = np.trace(rest @ covariance @ rest.T)
        np.testing.assert_allclose(error, found.energies[rank:].sum(), rtol=0.02)


def test_a_covariance_without_rank_is_damped() -> None:
    inputs = RANDOM.normal(size=(3, 14))
    u, v = decompose(RANDOM.normal(size=(10, 14)), None, inputs.T @ inputs / 3).factors(4)
    assert np.isfinite(u).all() and np.isfinite(v).all()
    u, v = decompose(RANDOM.normal(size=(10, 14)), None, np.zeros((14, 14))).factors(4)
    assert np.isfinite(u).all() and np.isfinite(v).all()


def test_equal_inputs_give_equal_bytes() -> None:
    weight = RANDOM.normal(size=(10, 14))
    for one, other in zip(decompose(weight).factors(4), decompose(weight.copy()).factors(4), strict=True):
        assert one.tobytes() == other.tobytes()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_break_even(rank: int, outputs: int, inputs: int) -> None:
    assert saves(rank, outputs, inputs) == (rank * outputs + rank * inputs < outputs * inputs)


def test_ranks_by_share_and_energy() -> None:
    assert rank_of_share(0.5, 384, 384, 8) == 96
    assert rank_of_share(0.001, 384, 384, 8) == 8
    energies = np.array([8.0, 4.0, 2.0, 1.0, 1.0])
    assert [rank_of_energy(energies, share, 1) for share in (0.5, 0.51, 0.75, 0.9, 1.0)] == [1, 2, 2, 4, 5]
    assert rank_of_energy(energies, 0.51, 4) == 4
    assert rank_of_energy(energies, 1.0, 4) == 5


def _cost(rank: int | None, shape: tuple[int, int]) -> int:
    return shape[0] * shape[1] if rank is None else rank * sum(shape)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.floats(0.3, 0.95), st.sampled_from([1, 2]))
def test_a_budget_is_kept_and_little_is_left(seed: int, share: float, multiple: int) -> None:
    random = np.random.default_rng(seed)
    shapes = {name: (int(random.integers(6, 16)), int(random.integers(6, 16))) for name in "abc"}
    energies = {name: np.sort(random.exponential(size=min(shape)))[::-1] for name, shape in shapes.items()}
    ranks = ranks_of_budget(energies, shapes, share, multiple, relative=False)
    spent = sum(_cost(ranks[name], shapes[name]) for name in shapes)
    budget = share * sum(outputs * inputs for outputs, inputs in shapes.values())
    least = sum(_cost(multiple, shape) for shape in shapes.values())
    assert spent <= max(budget, least)
    for name, rank in ranks.items():
        if rank is not None:
            assert rank % multiple == 0 and saves(rank, *shapes[name])


def test_a_budget_goes_where_the_energy_is() -> None:
    """Against all choices: the greedy one is the best where every step costs the same."""
    shapes = {name: (16, 16) for name in "abc"}
    energies = {"a": np.r_[9.0, 8, 7, np.full(13, 0.01)], "b": np.r_[5.0, np.full(15, 0.01)], "c": np.full(16, 1.0)}
    share = 7 * 32 / (3 * 256)
    found = ranks_of_budget(energies, shapes, share, 1, relative=False)

    def kept(ranks: tuple[int, ...]) -> float:
        return sum(float(energies[name][:rank].sum()) for name, rank in zip("abc", ranks, strict=True))

    best = max((c for c in itertools.product(range(1, 8), repeat=3) if sum(c) <= 7), key=kept)
    assert kept(tuple(rank or 0 for rank in found.values())) == kept(best)
    assert found["a"] == 3
    # Counted as shares of each matrix' own energy, a scale changes nothing.
    scaled = {**energies, "c": energies["c"] * 1000}
    plain, other = (ranks_of_budget(values, shapes, share, 1, relative=True) for values in (energies, scaled))
    assert plain == other
