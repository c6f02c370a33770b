"""How long energy is measured: windows and idle stretches of each profile.

A window takes at least 10 s with a sensor of 100 Hz, 60 s at 10 Hz, 5 minutes with a meter of 1 Hz; `smoke` takes less,
and its figure says so (`short_windows`, `short_idle`, `few_windows`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

WINDOWS, IDLE_SECONDS, FEWEST_SAMPLES = 5, 30.0, 100
FAST_SECONDS, SLOW_SECONDS, METER_SECONDS = 10.0, 60.0, 300.0


@dataclass(frozen=True)
class EnergyPlan:
    """A window lasts `window_seconds`, or as long as `window_samples` of the sensor's samples take, up to
    `longest_seconds`. `bare_seconds`: length of the windows without a sampler, for its intrusion; `tries`: of the whole
    run, where idle before and after differ; `external_period_s`: the period of a meter that the host reads (0: the
    board's own sensor); `least_period_s`: no sensor is read more often."""

    windows: int
    window_seconds: float
    window_samples: int
    longest_seconds: float
    idle_seconds: float
    warmup_seconds: float
    bare_seconds: float
    tries: int
    external_period_s: float = 0.0
    least_period_s: float = 0.0

    def worker_numbers(self) -> dict[str, Any]:
        """For the job document."""
        return asdict(self)


PLANS = {
    "smoke": EnergyPlan(3, 3, 0, 3, 3, 0.5, 2, 2),
    "nightly": EnergyPlan(5, 10, 600, 60, 30, 2, 5, 3),
    "publish": EnergyPlan(5, 60, 600, 60, 30, 5, 10, 3),
    "quick": EnergyPlan(2, 0.4, 0, 0.4, 0.3, 0.02, 0.1, 1),
}


# A replayed sensor: short windows, since the speed means nothing, and few readings, since each is slow in an emulator.
EMULATED = EnergyPlan(3, 3, 0, 3, 1, 0.02, 0, 1, least_period_s=0.1)


def energy_plan(profile: str, meter_period_s: float = 0.0) -> EnergyPlan:
    """The plan of a profile; with a meter on the host, windows as long as that meter needs (profiles without a plan
    of their own take that of `smoke`)."""
    plan = PLANS.get(profile, PLANS["smoke"])
    if not meter_period_s:
        return plan
    values = asdict(plan) | {"external_period_s": meter_period_s, "bare_seconds": 0.0}
    if plan.window_samples:
        values["longest_seconds"] = METER_SECONDS
    elif profile != "quick":
        # A smoke window holds at least a dozen readings of the meter.
        values |= {"window_samples": 12, "longest_seconds": METER_SECONDS, "idle_seconds": max(3.0, 6 * meter_period_s)}
    return EnergyPlan(**values)


def needed_seconds(period_s: float) -> float:
    """The window that a sensor of this period asks for: 10 s at 100 Hz, 60 s at 10 Hz, 300 s at 1 Hz; between those
    in proportion to the number of samples (600, at most 300 s)."""
    if period_s >= 1.0:
        return METER_SECONDS
    if period_s > 0.1:
        return SLOW_SECONDS + (METER_SECONDS - SLOW_SECONDS) * (period_s - 0.1) / 0.9
    return max(FAST_SECONDS, 600 * period_s)
