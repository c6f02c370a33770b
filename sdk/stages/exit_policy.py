"""Thresholds of exits under a promise: paths of ever bolder thresholds, and how far along one the promise is proven.

Why the promise holds (Learn then Test: Angelopoulos et al. 2021, arXiv:2110.01052; risk control after Bates et al.
2021, arXiv:2101.02703): each point of a path is a hypothesis "with these thresholds the risk is above R". The path is
made without looking at the rows that test it, and the points are tested in its order, each at level δ, up to the first
that is not rejected. A false rejection needs the first true hypothesis of the path to be rejected, and that happens
with probability δ at most, because its p-value is valid for any distribution and any number of rows. So with
probability 1 − δ over the draw of the test rows *every* point before the stop has a risk of at most R, and any of
them may be chosen, by any rule. Nothing is assumed of the model; the rows must be independent draws of what the model
will see.

N rows, E exits, P points of a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesdk.bounds import best_stake, betting_p_value, binomial_p_value

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
LossKind = Literal["gross", "net"]

# Limits are multiples of 1 / PLACES, so that a threshold is the same number in a test, in JSON and in a graph.
PLACES = 1e6
FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class ExitTable:
    """What the exits say of N rows.

    Attributes:
        doubt: [N, E], 1 − confidence, entropy, or minus the number of exits before that agree; an input leaves at the
            first exit whose doubt is at most the exit's limit.
        answers: int [N, E + 1], the class that each exit answers; last the full model's.
        right: bool [N, E + 1], whether that is the label; without labels, whether it is the full model's answer.
        macs: [N, E + 1], the cost of leaving at each exit; last of going through.
    """

    doubt: Floats
    answers: Integers
    right: NDArray[np.bool_]
    macs: Floats

    def __len__(self) -> int:
        return len(self.doubt)

    def take(self, rows: NDArray[Any]) -> ExitTable:
        """Some of the rows."""
        return ExitTable(self.doubt[rows], self.answers[rows], self.right[rows], self.macs[rows])

    def leave(self, limits: Floats) -> Integers:
        """Where each row leaves, int [N]: an exit, or E for none. `limits` [E]; −∞ never lets leave."""
        ready = self.doubt <= limits
        return np.asarray(np.where(ready.any(1), ready.argmax(1), ready.shape[1]), np.int64)

    def changes(self, limits: Floats) -> tuple[int, int]:
        """(rows that the full model has right and the early answer wrong, rows the other way round)."""
        early = np.take_along_axis(self.right, self.leave(limits)[:, None], 1)[:, 0]
        full = self.right[:, -1]
        return int((full & ~early).sum()), int((~full & early).sum())

    def mean_macs(self, limits: Floats) -> float:
        """Mean cost of a row under these limits."""
        return float(np.take_along_axis(self.macs, self.leave(limits)[:, None], 1).mean())


def agreement(answers: Integers) -> Integers:
    """[N, E + 1] answers → [N, E], the number of exits just before each that agree with it."""
    rows, exits = answers[:, :-1].shape
    found = np.zeros((rows, exits), np.int64)
    for index in range(1, exits):
        found[:, index] = np.where(answers[:, index] == answers[:, index - 1], found[:, index - 1] + 1, 0)
    return found


def common_path(table: ExitTable, points: int = 200) -> Floats:
    """Limits [P, E], equal for all exits, from the one that lets nothing leave to the largest doubt of the table:
    quantiles of the doubt of its rows."""
    levels = np.quantile(table.doubt, np.linspace(0.0, 1.0, points), method="lower")
    levels = np.concatenate([[-np.inf], np.unique(np.ceil(levels * PLACES) / PLACES)])
    return np.repeat(levels[:, None], table.doubt.shape[1], 1)


def patience_path(exits: int) -> Floats:
    """Limits [P, E] of patience: nothing leaves; then exits − 1 earlier ones must agree, and so on down to none."""
    levels = np.concatenate([[-np.inf], -np.arange(exits - 1, -1, -1.0)])
    return np.repeat(levels[:, None], exits, 1)


def separate_path(table: ExitTable, points: int = 200) -> Floats:
    """Limits [P, E] that belong together: point by point a higher price of work against risk.

    At a price, leaving at an exit pays where the chance that this loses a right answer is below price × the work that
    is saved there (the Lagrangian of mean MACs against risk, one exit at a time). That chance is fitted to log doubt
    by a logistic curve for each exit, so that a path also has points between those at which rows were lost.
    """
    exits = table.doubt.shape[1]
    saved = 1.0 - table.macs[:, :-1].mean(0) / table.macs[:, -1].mean()
    known = np.log(np.maximum(table.doubt, 0.0) + FLOOR)
    curves = [fit_logistic(known[:, e], table.right[:, -1] & ~table.right[:, e]) for e in range(exits)]
    path = [np.full(exits, -np.inf)]
    for price in np.geomspace(1e-5, 1.0, points):
        path.append(np.array([_limit(price * share, *curve) for share, curve in zip(saved, curves, strict=True)]))
    return np.array(path)


def _limit(chance: float, offset: float, slope: float) -> float:
    """The doubt up to which the chance of a loss stays below `chance`, rounded; −∞ where there is none."""
    if slope <= 0 or chance <= 0:
        return -np.inf
    chance = min(chance, 1 - 1e-9)
    logarithm = (np.log(chance / (1 - chance)) - offset) / slope
    limit = np.exp(min(logarithm, 0.0)) - FLOOR
    return float(np.floor(limit * PLACES) / PLACES) if limit >= 0 else -np.inf


def fit_logistic(values: Floats, events: NDArray[np.bool_]) -> tuple[float, float]:
    """(a, b) of P(event | value) = 1 / (1 + exp(−a − b · value)), by Newton's method with a small ridge, which keeps
    the curve finite where the events are separated; b is 0 where values [N] do not vary."""
    centre, spread = float(values.mean()), float(values.std())
    if spread < 1e-12:
        return 0.0, 0.0
    design = np.stack([np.ones(len(values)), (values - centre) / spread], 1)
    # Half an event and half a non-event, spread over the rows: no events at all still give a curve.
    target = (events.astype(np.float64) * len(events) + 0.5) / (len(events) + 1.0)
    found = np.zeros(2)
    for _ in range(50):
        chance = 1.0 / (1.0 + np.exp(-np.clip(design @ found, -30, 30)))
        gradient = design.T @ (chance - target) + 0.01 * found
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design + 0.01 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        found = found - np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    return float(found[0] - found[1] * centre / spread), float(found[1] / spread)


def proven(
    path: Floats, table: ExitTable, risk: float, delta: float, kind: LossKind = "gross", tuning: ExitTable | None = None
) -> int:
    """How many points from the start of `path` the rows of `table` prove: with probability 1 − `delta` the risk of all
    of them is at most `risk`. `table` must have had no part in making the path.

    Args:
        kind: `gross`: risk = P(the full model is right and the early answer wrong), tested by the binomial p-value;
            `net`: that minus P(the other way round), what accuracy loses, tested by betting.
        tuning: rows that choose the stake of the bets; not those of `table`.
    """
    for count, limits in enumerate(path):
        worse, better = table.changes(limits)
        if kind == "gross":
            p_value = binomial_p_value(worse, len(table), risk)
        else:
            lost, won, rows = (0, 0, 0) if tuning is None else (*tuning.changes(limits), len(tuning))
            share = len(table) / rows if rows else 0.0
            stake = best_stake(lost * share, won * share, len(table), risk)
            p_value = betting_p_value(worse, better, len(table), risk, stake)
        if p_value > delta:
            return count
    return len(path)
