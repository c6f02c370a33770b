"""Paths of thresholds and the proof along them: by hand, and by simulation over draws of the held-out rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgesdk.stages.exit_policy import (
    ExitTable,
    LossKind,
    agreement,
    common_path,
    fit_logistic,
    patience_path,
    proven,
    separate_path,
)

EXITS = 3


def draw(rows: int, seed: int, answers: int = 4) -> ExitTable:
    """Exits that are the surer the righter, deeper ones more so; the full model is right on nine rows of ten."""
    random = np.random.default_rng(seed)
    ease = random.normal(size=(rows, 1)) + 1.0
    labels = random.integers(0, answers, rows)
    strength = ease * np.array([2.0, 3.0, 4.0]) + 1.5
    right = np.concatenate([
        random.random((rows, EXITS)) < 1 / (1 + np.exp(-strength)), random.random((rows, 1)) < 0.97,
    ], 1)
    given = np.where(right, labels[:, None], (labels[:, None] + 1) % answers)
    doubt = 1 / (1 + np.exp(strength + random.normal(size=strength.shape)))
    macs = np.repeat(np.array([[25.0, 50.0, 75.0, 100.0]]), rows, 0)
    return ExitTable(doubt, given, right, macs)


def test_leaving_by_hand() -> None:
    doubt = np.array([[0.1, 0.5], [0.3, 0.2], [0.9, 0.9]])
    right = np.array([[True, True, True], [True, False, True], [False, False, True]])
    table = ExitTable(doubt, np.zeros((3, 3), np.int64), right, np.array([[1.0, 2.0, 4.0]] * 3))
    limits = np.array([0.1, 0.2])
    assert table.leave(limits).tolist() == [0, 1, 2]
    assert table.changes(limits) == (1, 0)
    assert table.mean_macs(limits) == pytest.approx(7 / 3)
    assert table.leave(np.full(2, -np.inf)).tolist() == [2, 2, 2]
    assert table.take(np.array([1])).changes(limits) == (1, 0)


def test_rows_that_only_the_early_answer_has_right_count_apart() -> None:
    right = np.array([[True, False], [False, True], [True, True], [False, False]])
    table = ExitTable(np.zeros((4, 1)), np.zeros((4, 2), np.int64), right, np.ones((4, 2)))
    assert table.changes(np.zeros(1)) == (1, 1)


def test_agreement_counts_the_exits_before() -> None:
    answers = np.array([[1, 1, 1, 9], [1, 2, 2, 9], [1, 2, 1, 9]])
    assert agreement(answers).tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0]]
    assert patience_path(3)[:, 0].tolist() == [-np.inf, -2.0, -1.0, 0.0]


@pytest.mark.parametrize("path_of", [common_path, separate_path])
def test_paths_begin_with_nothing_and_grow_bolder(path_of: object) -> None:
    table = draw(2000, 0)
    path = path_of(table)  # type: ignore[operator]
    assert np.isneginf(path[0]).all()
    assert (np.diff(np.nan_to_num(path, neginf=-1.0), axis=0) >= 0).all()
    shares = [float((table.leave(limits) < EXITS).mean()) for limits in path]
    assert shares[0] == 0.0
    assert shares[-1] > 0.9


def test_separate_limits_are_wider_where_an_exit_is_safer() -> None:
    """The second exit errs less at the same doubt, so the same price lets more doubt pass there."""
    random = np.random.default_rng(0)
    doubt = random.random((4000, 2))
    right = np.stack([random.random(4000) > doubt[:, 0], random.random(4000) > 0.05 * doubt[:, 1]], 1)
    right = np.concatenate([right, np.ones((4000, 1), bool)], 1)
    macs = np.repeat(np.array([[50.0, 50.1, 100.0]]), 4000, 0)
    path = separate_path(ExitTable(doubt, np.zeros((4000, 3), np.int64), right, macs))
    first, second = path[int(0.8 * len(path))]
    assert second > 2 * first > 0


def test_logistic_fit_finds_the_curve_that_made_the_events() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=20_000) * 3 - 4
    events = random.random(20_000) < 1 / (1 + np.exp(-(0.5 + 0.8 * values)))
    offset, slope = fit_logistic(values, events)
    assert offset == pytest.approx(0.5, abs=0.15)
    assert slope == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("chance", [False, True])
def test_logistic_fit_of_nothing_or_everything_is_finite(chance: bool) -> None:
    assert np.isfinite(fit_logistic(np.linspace(0, 1, 50), np.full(50, chance))).all()
    assert fit_logistic(np.ones(50), np.arange(50) > 25) == (0.0, 0.0)


def test_proof_stops_at_the_first_point_that_is_not_proven() -> None:
    """200 rows; at a limit of k / 200 the first k rows leave, and every twentieth of them is lost."""
    doubt = np.arange(1, 201)[:, None] / 200
    right = np.stack([np.arange(1, 201) % 20 != 0, np.ones(200, bool)], 1)
    table = ExitTable(doubt, np.zeros((200, 2), np.int64), right, np.ones((200, 2)))
    path = np.array([[-np.inf], [0.05], [0.1], [0.2], [0.9], [0.05]])
    # Losses 0, 0, 1, 2, 9, 0: P(Binomial(200, 0.04) ≤ 2) = 0.0125, ≤ 9: 0.72; what comes behind it is not looked at.
    assert proven(path, table, 0.04, 0.05) == 4
    assert proven(path, table, 0.04, 0.01) == 3
    assert proven(path, table, 0.001, 0.05) == 0


@pytest.mark.parametrize("kind", ["gross", "net"])
@pytest.mark.parametrize("path_of", [common_path, separate_path])
def test_the_promise_is_kept_over_draws_of_the_rows(kind: LossKind, path_of: object) -> None:
    """Over 300 draws of tuning and held-out rows the true risk of the chosen thresholds, known from many rows, is
    above what was promised in at most delta of them (three standard errors of chance allowed)."""
    world, risk, delta, draws = draw(30_000, 999), 0.03, 0.1, 300
    broken, leaving = 0, 0.0
    for seed in range(draws):
        tuning, held = draw(300, 2 * seed), draw(600, 2 * seed + 1)
        path = path_of(tuning, 30)  # type: ignore[operator]
        count = proven(path, held, risk, delta, kind, tuning)
        if count == 0:
            continue
        limits = path[int(np.argmin([held.mean_macs(point) for point in path[:count]]))]
        worse, better = world.changes(limits)
        true_risk = (worse - (better if kind == "net" else 0)) / len(world)
        broken += true_risk > risk
        leaving += float((world.leave(limits) < EXITS).mean()) / draws
    assert broken <= draws * delta + 3 * math.sqrt(draws * delta * (1 - delta))
    assert leaving > 0.1  # a promise that nobody uses would be kept too
