"""Joules between two instants, from samples: trapezoid with interpolated edges, or the difference of a counter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesdk.harness.energy.log import Segment
from edgesdk.harness.worker.power_window import GAP_PERIODS, lost_too_many

# A counter that fell was full just before: it stood in the last part of its range. Else it was reset.
NEAR_FULL = 0.9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Energy:
    """Joules over a window, the number of samples inside, and what is wrong ("" when nothing is)."""

    joules: float
    samples: int
    fault: str = ""


@dataclass(frozen=True)
class Series:
    """One segment as numbers: seconds since `origin_ns`, and watts (`unit` uW) or joules since the first sample (uJ);
    `fault` says why a counter cannot be used."""

    origin_ns: int
    seconds: Floats
    values: Floats
    unit: str
    period_s: float
    fault: str = ""

    def at(self, time_ns: int) -> float:
        """Seconds since the origin."""
        return (time_ns - self.origin_ns) / 1e9


def series(segment: Segment) -> Series:
    """The sum of the segment's total over time; samples out of order are dropped."""
    times, values = segment.columns()
    if len(times):
        keep = np.concatenate([[True], np.diff(np.maximum.accumulate(times)) > 0])
        times, values = times[keep], values[keep]
    origin = int(times[0]) if len(times) else 0
    seconds = (times - origin).astype(np.float64) / 1e9
    period = segment.period_ns / 1e9
    if segment.unit == "uW":
        watts = values.astype(np.float64).sum(axis=1) / 1e6
        return Series(origin, seconds, watts, "uW", period)
    assert segment.ranges is not None
    ranges = [segment.ranges[segment.rails.index(name)] for name in segment.total]
    counted, fault = unwrap(values, ranges)
    return Series(origin, seconds, counted.sum(axis=1) / 1e6, "uJ", period, fault)


def unwrap(values: NDArray[np.int64], ranges: list[int]) -> tuple[Floats, str]:
    """Counters [n, rails] as what they counted since the first sample, wraps added.

    Returns:
        (float64 [n, rails], fault): a counter that falls and was not near its range was reset.
    """
    steps = np.diff(values, axis=0)
    fault = ""
    for column, limit in enumerate(ranges):
        fell = np.flatnonzero(steps[:, column] < 0)
        full = values[fell, column] >= NEAR_FULL * limit
        if not full.all() or (values[:, column] > limit).any() or (values[:, column] < 0).any():
            fault = "E_SAMPLE_GAP: the energy counter was reset"
        steps[fell, column] += limit + 1
    total = np.concatenate([np.zeros((min(1, len(values)), len(ranges))), np.cumsum(steps, axis=0, dtype=np.float64)])
    return total, fault


def gap_fault(found: Series, start_ns: int, end_ns: int) -> str:
    """E_SAMPLE_GAP where the sensor was silent for more than 3 periods, or more than 2 % of its samples are lost (one,
    where there are few), in a window or at its edges."""
    start, end = found.at(start_ns), found.at(end_ns)
    if not len(found.seconds) or found.seconds[0] > start or found.seconds[-1] < end:
        return "E_SAMPLE_GAP: the samples do not cover the window"
    first = int(np.searchsorted(found.seconds, start, "right")) - 1
    last = int(np.searchsorted(found.seconds, end, "left"))
    gaps = np.diff(found.seconds[first : last + 1])
    longest = float(gaps.max()) if len(gaps) else 0.0
    if longest > GAP_PERIODS * found.period_s:
        return f"E_SAMPLE_GAP: no sample for {longest:.3g} s, one is due every {found.period_s:.3g} s"
    lost = float(np.maximum(0.0, np.round(gaps / found.period_s) - 1).sum())
    if lost_too_many(lost, len(gaps)):
        return f"E_SAMPLE_GAP: {lost:.0f} of {lost + len(gaps):.0f} samples are lost"
    return ""


def energy_between(found: Series, start_ns: int, end_ns: int) -> Energy:
    """Joules from start to end; 0 with a fault where the samples do not allow it."""
    fault = found.fault or gap_fault(found, start_ns, end_ns)
    start, end = found.at(start_ns), found.at(end_ns)
    inside = (found.seconds > start) & (found.seconds < end)
    count = int(inside.sum())
    if fault:
        return Energy(0.0, count, fault)
    edges = np.interp([start, end], found.seconds, found.values)
    if found.unit == "uJ":
        return Energy(float(edges[1] - edges[0]), count)
    times = np.concatenate([[start], found.seconds[inside], [end]])
    watts = np.concatenate([edges[:1], found.values[inside], edges[1:]])
    return Energy(float(np.trapezoid(watts, times)), count)


def median_power(found: Series, start_ns: int, end_ns: int) -> float | None:
    """Median watts of the samples between two instants (of a counter: of its steps); None without samples."""
    start, end = found.at(start_ns), found.at(end_ns)
    inside = (found.seconds >= start) & (found.seconds <= end)
    seconds, values = found.seconds[inside], found.values[inside]
    if found.unit == "uJ":
        values = np.diff(values) / np.diff(seconds)
    return float(np.median(values)) if len(values) else None
