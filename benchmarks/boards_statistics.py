"""Simulated rounds with the noise of the protocol's section 3.0: does the interval keep its promise?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.harness.compare import compare_rounds
from edgesdk.harness.protocol import interval

BETWEEN, WITHIN = 0.01, 0.02  # standard deviations of rounds, and of samples within a round, as shares
WITHIN_AB = 0.03
TRIES, PAIRS = 1000, 200


def medians(random: np.random.Generator, rounds: int, samples: int, within: float) -> NDArray[np.float64]:
    """Medians [rounds] of a latency of 1."""
    centers = np.exp(random.normal(0, BETWEEN, rounds))
    values = centers[:, None] * np.exp(random.normal(0, within, (rounds, samples)))
    return np.asarray(np.median(values, axis=1))


def run(names: list[str]) -> dict[str, Any]:
    """Coverage of the interval at 5 rounds of 40 samples; false alarms of the comparison of equal artifacts."""
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(TRIES):
        _, low, high = interval([float(value) for value in medians(random, 5, 40, WITHIN)])
        covered += low <= 1.0 <= high
    changed = 0
    for _ in range(PAIRS):
        first, second = (medians(random, 5, 40, WITHIN_AB).tolist() for _ in range(2))
        changed += compare_rounds(first, second).changed
    share, alarms = 100 * covered / TRIES, 100 * changed / PAIRS
    model = {"note": f"rounds sd {BETWEEN:.0%}, samples sd {WITHIN:.0%} (A/B: {WITHIN_AB:.0%}), seed 4"}
    return {
        names[0]: (share, 93 <= share <= 97, "predicted", model),
        names[1]: (alarms, alarms <= 1, "predicted", model),
    }
