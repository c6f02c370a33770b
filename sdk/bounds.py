"""Bounds: what a figure is at least or at most, as far as its rows prove it.

The two `*_lower95` are approximations for reports. The rest hold for every number of rows and every distribution, and
carry promises: p-values of the hypothesis "the risk is above `risk`", from independent rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Z95 = 1.6448536269514722


def wilson_lower95(fraction: float, rows: int) -> float:
    """One-sided lower 95 % bound of an accuracy (Wilson's score interval): `fraction` right of `rows`."""
    if rows <= 0:
        return 0.0
    square = Z95 * Z95 / rows
    spread = math.sqrt(fraction * (1 - fraction) * square + square * square / 4)
    return max(0.0, (fraction + square / 2 - spread) / (1 + square))


def mean_lower95(values: NDArray[np.float64]) -> float:
    """One-sided 95 % lower bound of a mean, by the normal approximation."""
    if len(values) < 2:
        return float(values.mean())
    return float(values.mean() - Z95 * values.std(ddof=1) / math.sqrt(len(values)))


def clopper_pearson_upper(losses: int, rows: int, delta: float) -> float:
    """Upper bound of a probability that holds with confidence 1 − `delta`: `losses` events in `rows` independent rows
    (Clopper and Pearson 1934: the probability under which so few events have probability `delta`)."""
    if losses >= rows:
        return 1.0
    return float(stats.beta.ppf(1.0 - delta, losses + 1, rows - losses))


def binomial_p_value(losses: int, rows: int, risk: float) -> float:
    """p-value of "a row's loss is 1 with a probability above `risk`, else 0": the chance of at most `losses` events
    in `rows` where the probability is `risk`; at most the chance under every larger probability too."""
    return float(stats.binom.cdf(losses, rows, risk))


def betting_p_value(worse: int, better: int, rows: int, risk: float, stake: float) -> float:
    """p-value of "the mean of a loss in {−1, 0, 1} is above `risk`", from `worse` rows of loss 1 and `better` of −1.

    Somebody bets against the hypothesis: capital 1, multiplied for each row by 1 − stake · (loss − risk), which is
    never negative for a stake in [0, 1 / (1 − risk)]. Where the hypothesis holds, the mean of every factor is at most
    1, so is that of the capital, and by Markov's inequality it reaches 1 / p with probability p at most
    (Waudby-Smith and Ramdas 2023, arXiv:2010.09686). The stake must not depend on these rows. With no `better` rows and
    the largest stake it is the binomial p-value of no losses, (1 − risk)^rows.
    """
    stake = min(max(stake, 0.0), 1.0 / (1.0 - risk))
    logs = 0.0
    for loss, count in ((1, worse), (-1, better), (0, rows - worse - better)):
        factor = 1.0 - stake * (loss - risk)
        if count:
            logs += count * math.log(factor) if factor > 1e-12 else -math.inf
    return min(1.0, math.exp(min(0.0, -logs))) if logs > 0 else 1.0


def best_stake(worse: float, better: float, rows: float, risk: float) -> float:
    """The stake under which rows like these would make the capital of `betting_p_value` grow fastest; for rows other
    than those that are tested. One event of each kind is added, so that a stake never bets everything on never
    seeing one."""
    grid = np.linspace(0.0, 1.0 / (1.0 - risk), 201)[:-1]
    growth = (worse + 1.0) * np.log1p(-grid * (1.0 - risk)) + (better + 1.0) * np.log1p(grid * (1.0 + risk))
    growth += max(0.0, rows - worse - better) * np.log1p(grid * risk)
    return float(grid[growth.argmax()])


def rows_needed(risk: float, delta: float) -> int:
    """Rows without any loss that prove a risk of at most `risk` with confidence 1 − `delta`."""
    return math.ceil(math.log(delta) / math.log1p(-risk))
