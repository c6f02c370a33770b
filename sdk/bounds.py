"""One-sided 95 % lower bounds: what a figure is at least, as far as its rows prove it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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
