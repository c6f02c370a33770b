"""The measuring protocol in numbers: profiles, the interval of the median, rejection codes and labels.

The unit of statistics is the round (a fresh process), not the sample: a t interval on the logarithms of round medians
covers the truth as promised, a bootstrap over samples does so half of the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from edgesdk.errors import ConfigError
from edgesdk.harness.board import Board
from edgesdk.harness.worker import codes as worker_codes
from edgesdk.harness.worker.codes import (
    E_BIMODAL,
    E_BOARD_CHANGED,
    E_DRIFT,
    E_FREQ_DRIFT,
    E_IMPLAUSIBLE,
    E_LOAD,
    E_NOISY,
    E_NOT_STEADY,
    E_OVERCURRENT,
    E_SHARED_MACHINE,
    E_SWAP,
    E_TEMP_RISE,
    E_THROTTLED,
    E_UNDERVOLT,
)

E_ACCURACY, E_CRASH, E_OOM, E_TIMEOUT, E_PREFLIGHT = "E_ACCURACY", "E_CRASH", "E_OOM", "E_TIMEOUT", "E_PREFLIGHT"
E_CLOCK, E_REBOOTED = "E_CLOCK", "E_REBOOTED"
# What a code is called where it does not refuse the measurement.
LABELS = {
    E_NOISY: "noisy", E_DRIFT: "drift", E_LOAD: "load", E_NOT_STEADY: "not_steady", E_THROTTLED: "throttled",
    E_BIMODAL: "bimodal", E_SWAP: "swap", E_BOARD_CHANGED: "board_changed", E_UNDERVOLT: "undervolt",
    E_OVERCURRENT: "overcurrent", E_FREQ_DRIFT: "freq_drift", E_TEMP_RISE: "temp_rise",
    E_IMPLAUSIBLE: "implausible", E_CLOCK: "clock", E_REBOOTED: "rebooted", "E_RESTARTED": "restarted",
    E_SHARED_MACHINE: "shared_machine",
    "E_BACKGROUND_LOAD": "background_load", "E_TOO_HOT": "too_hot", "E_DISK_FULL": "disk_full", "E_MEMORY": "memory",
}
# Said, but never a reason to refuse: two modes are shown, a wrong wall clock touches no duration, and rounds of before
# a restart are as good as those after it.
NEVER_REFUSE = (E_BIMODAL, E_CLOCK, E_REBOOTED, "E_RESTARTED")
# Never only a label: such samples are not times.
ALWAYS_REFUSE = (E_IMPLAUSIBLE,)
BUSY_LOAD = 0.2
WRONG_CLOCK_SECONDS = 0.4


@dataclass(frozen=True)
class Profile:
    """Numbers of one profile. `min_samples` counts all rounds together; `ci_half_width` is relative to the median: a
    candidate whose interval is wider gets up to `extra_rounds` more, and then the label `wide_ci`; warm-up ends when
    the medians of two blocks differ by less than `steady_percent`; a micro-probe of `probe_seconds` runs before and
    after each round; the board is watched for `idle_seconds` before the job, and given `idle_wait_seconds` to become
    idle and `cool_wait_seconds` to cool down; a model is loaded `warm_loads` times more. `lenient` profiles label
    faults on `host` and emulated boards instead of refusing, waiting and repeating rounds."""

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
    probe_seconds: float = 0.2
    idle_seconds: float = 5.0
    idle_wait_seconds: float = 120.0
    cool_wait_seconds: float = 300.0
    warm_loads: int = 5
    lenient: bool = False

    def worker_numbers(self) -> dict[str, Any]:
        """What the worker needs for rounds on the board."""
        numbers = asdict(self)
        numbers["min_samples"] = -(-self.min_samples // self.rounds)
        for key in ("name", "lenient", "rounds"):
            del numbers[key]
        return numbers


PROFILES = {
    "smoke": Profile("smoke", 3, 10, 2, 20, 3, 64, 0.05, 2, 5.0, idle_seconds=1, lenient=True),
    "nightly": Profile("nightly", 5, 30, 10, 60, 12, 200, 0.02, 5, 2.0),
    "publish": Profile("publish", 10, 30, 30, 120, 60, 662, 0.01, 10, 1.0),
    # For EdgeSDK's own tests: the whole path in a second; its figures mean nothing, so they carry the label `quick`.
    "quick": Profile("quick", 2, 2, 0.02, 0.5, 0.05, 8, 1.0, 0, 5.0, 0.005, 0, 0, 0, 1, lenient=True),
}


def refuses(profile: Profile, board: Board) -> bool:
    """Do faults of this board make a measurement invalid? On this machine and on emulated boards a lenient profile
    labels them instead."""
    return not (profile.lenient and (board.host is None or board.emulated))


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


def round_codes(
    samples: NDArray[np.int64], batch: int, steady: bool, work: str, inputs: int, environment: Mapping[str, Any]
) -> list[str]:
    """Rejection codes of one round, by the same functions as on the board.

    Args:
        samples: nanoseconds of each sample of `batch` calls.
        work: `constant`, or `per_input`: full passes over the inputs are then compared instead of samples.
        inputs: number of inputs that are cycled.
        environment: what was seen of the board around the round; see `answer_types.Environment`.
    """
    values: list[float] = samples.tolist()
    return worker_codes.round_codes(values, batch, steady, work, inputs, dict(environment))


def clock_is_wrong(clock: Mapping[str, Any] | None) -> bool:
    """Is the board's clock more than 400 ms off (MLPerf's limit), beyond what the round trip and `date` leave open?"""
    if not clock or clock["skew_s"] is None:
        return False
    open_s = float(clock["rtt_s"]) / 2 + (float(clock["resolution_s"]) / 2 if clock["resolution_s"] >= 1 else 0)
    return bool(abs(float(clock["skew_s"])) - open_s > WRONG_CLOCK_SECONDS)
