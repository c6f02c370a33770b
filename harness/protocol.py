"""The measuring protocol in numbers: profiles, the interval of the median, rejection codes and labels.

The unit of statistics is the round (a fresh process), not the sample: a t interval on the logarithms of round medians
covers the truth as promised, a bootstrap over samples does so half of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from edgesdk.errors import ConfigError

E_NOISY, E_DRIFT, E_LOAD, E_NOT_STEADY = "E_NOISY", "E_DRIFT", "E_LOAD", "E_NOT_STEADY"
E_THROTTLED, E_ACCURACY, E_CRASH, E_OOM, E_TIMEOUT = "E_THROTTLED", "E_ACCURACY", "E_CRASH", "E_OOM", "E_TIMEOUT"
E_PREFLIGHT = "E_PREFLIGHT"
# What a code is called where it does not refuse the measurement.
LABELS = {E_NOISY: "noisy", E_DRIFT: "drift", E_LOAD: "load", E_NOT_STEADY: "not_steady", E_THROTTLED: "throttled"}

NOISY_CV = 0.10
NOISY_P90 = 1.5
DRIFT = 0.03
DRIFT_P = 0.002
OTHER_CPU = 0.05
BUSY_LOAD = 0.2


@dataclass(frozen=True)
class Profile:
    """Numbers of one profile. `min_samples` counts all rounds together; `ci_half_width` is relative to the median: a
    candidate whose interval is wider gets up to `extra_rounds` more, and then the label `wide_ci`; warm-up ends when
    the medians of two blocks differ by less than `steady_percent`; `lenient` profiles label faults on `host` and
    emulated boards instead of refusing."""

    name: str
    rounds: int
    warmup_iterations: int
    warmup_seconds: float
    max_warmup_seconds: float
    window_seconds: float
    min_samples: int
    ci_half_width: float
    extra_rounds: int
    steady_percent: float
    lenient: bool = False

    def worker_numbers(self) -> dict[str, Any]:
        """What the worker needs for rounds on the board."""
        numbers = asdict(self)
        numbers["min_samples"] = -(-self.min_samples // self.rounds)
        for key in ("name", "lenient", "rounds"):
            del numbers[key]
        return numbers


PROFILES = {
    "smoke": Profile("smoke", 3, 10, 2, 20, 3, 64, 0.05, 2, 5.0, lenient=True),
    "nightly": Profile("nightly", 5, 30, 10, 60, 12, 200, 0.02, 5, 2.0),
    "publish": Profile("publish", 10, 30, 30, 120, 60, 662, 0.01, 10, 1.0),
    # For EdgeSDK's own tests: the whole path in a second; its figures mean nothing, so they carry the label `quick`.
    "quick": Profile("quick", 2, 2, 0.02, 0.5, 0.05, 8, 1.0, 0, 5.0, lenient=True),
}


def load_profile(name: str) -> Profile:
    """A profile by name (ConfigError)."""
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name!r}", "one of " + ", ".join(sorted(PROFILES)))
    return PROFILES[name]


def interval(round_medians: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): geometric mean of round medians and its t interval on their logarithms.

    One round gives no interval: low and high are then NaN.
    """
    logs = np.log(np.asarray(round_medians, dtype=np.float64))
    center = float(np.mean(logs))
    if len(logs) < 2:
        return math.exp(center), math.nan, math.nan
    error = float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(logs) - 1)) * error
    return math.exp(center), math.exp(center - half), math.exp(center + half)


def passes(samples: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Sums over full passes of n samples; what is left over at the end is dropped."""
    whole = len(samples) // n * n
    sums: NDArray[np.float64] = samples[:whole].reshape(-1, n).sum(axis=1)
    return sums


def round_codes(
    samples: NDArray[np.int64], batch: int, steady: bool, other_cpu: float, work: str, inputs: int
) -> list[str]:
    """Rejection codes of one round.

    Args:
        samples: nanoseconds of each sample of `batch` calls.
        other_cpu: share of one core that other processes used.
        work: `constant`, or `per_input`: full passes over the inputs are then compared instead of samples.
        inputs: number of inputs that are cycled.
    """
    values = samples.astype(np.float64)
    comparable = work == "constant"
    if not comparable and batch == 1 and len(values) >= 6 * inputs:
        values, comparable = passes(values, inputs), True
    codes = []
    if comparable and len(values) >= 6:
        median = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - median)))
        if spread > NOISY_CV * median or float(np.percentile(values, 90)) > NOISY_P90 * median:
            codes.append(E_NOISY)
        third = len(values) // 3
        first, last = values[:third], values[-third:]
        change = abs(float(np.median(last)) - float(np.median(first))) / float(np.median(first))
        if change > DRIFT and float(stats.mannwhitneyu(first, last).pvalue) < DRIFT_P:
            codes.append(E_DRIFT)
    if other_cpu > OTHER_CPU:
        codes.append(E_LOAD)
    if not steady:
        codes.append(E_NOT_STEADY)
    return codes
