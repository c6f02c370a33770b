"""Energy per inference, from the raw file of an energy run alone: measuring and verifying call the same function.

gross = what the boundary took while inferences ran back to back, per inference; net = gross less what it takes when
idle. `value` is gross: it is what was read, and needs no idle power. One board's gross is never another's net.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgesdk.errors import MeasureError
from edgesdk.harness.energy.integrate import Series, energy_between, median_power, series
from edgesdk.harness.energy.log import PowerLog, Segment, Stretch, finite, read_log
from edgesdk.harness.energy.plan import FEWEST_SAMPLES, IDLE_SECONDS, WINDOWS, needed_seconds
from edgesdk.harness.protocol import LABELS
from edgesdk.harness.worker.codes import E_SHARED_MACHINE
from edgesdk.harness.worker.machine import NO_LOCK, OVERDUE
from edgesdk.harness.worker.power_window import IDLE_SHIFT, IDLE_SHIFT_UW

# (relative, watts): standard error of a sensor's gain, from data sheets and from what users compared.
GAINS = {
    "ina3221": (0.015, 0.0), "ina3221x": (0.015, 0.0), "tegrastats": (0.015, 0.0), "ina238": (0.01, 0.0),
    "ina2xx": (0.01, 0.0), "pmic": (0.2, 0.0), "rapl": (0.05, 0.0),
}
UNCALIBRATED = ("pmic",)
UNKNOWN_GAIN = (0.1, 0.0)
INTRUSIVE = 0.01
OTHER_LATENCY = 0.02
DRAWS = 2000


def unmeasured(reason: str, **more: Any) -> dict[str, Any]:
    """The `energy_mj` part of a measurement without a figure."""
    return {"value": None, "boundary": None, "provenance": "unmeasured", "reason": reason, **more}


def energy_figure(
    data: bytes, profile: str, provenance: str, lenient: bool, latency_p50_ms: float | None = None
) -> dict[str, Any]:
    """The `energy_mj` part of a measurement.

    Args:
        data: the raw file of the energy run (see `log.py`).
        provenance: `measured`, or `emulated` for a sensor that is fed.
        lenient: label a shift of the idle power instead of refusing.
        latency_p50_ms: median of the timed rounds, which the windows should repeat.

    Returns:
        a figure in millijoules per inference, or `unmeasured` with a reason that starts with its code. Never raises for
        what is in the file.
    """
    try:
        log = read_log(data, "energy samples")
        return _figure(log, profile, provenance, lenient, latency_p50_ms)
    except (MeasureError, ArithmeticError, ValueError) as problem:
        return unmeasured(problem.message if isinstance(problem, MeasureError) else f"no figure: {problem!r}"[:300])


def _figure(log: PowerLog, profile: str, provenance: str, lenient: bool, latency: float | None) -> dict[str, Any]:
    windows = log.of("window")
    if not windows or not log.segments:
        return unmeasured("E_SAMPLE_GAP: the energy run has no windows" if not windows else "E_SAMPLE_GAP: no samples")
    kind = log.segments[0].kind
    all_series = [series(segment) for segment in log.segments]
    entries, faults, powers, edges = [], [], [], []
    for window in windows:
        chosen = _covering(log.segments, all_series, window)
        if chosen is None:
            faults.append(f"E_SAMPLE_GAP: window {window.values['index']}: no samples cover it")
            continue
        segment, found = log.segments[chosen], all_series[chosen]
        energy = energy_between(found, *window.edges)
        fault = energy.fault or ("E_SAMPLE_GAP: the set of rails changed" if segment.kind != kind else "")
        if fault:
            faults.append(fault.replace(": ", f": window {window.values['index']}: ", 1))
            continue
        entries.append(_window(window, energy.joules, energy.samples))
        powers.append(energy.joules / _seconds(window))
        edges.append(powers[-1] * found.period_s / math.sqrt(6) / window.values["inferences"])
    head = log.segments[0]
    base = {
        "sensor": head.sensor, "rails": list(head.total), "attempts": log.attempts, "windows_run": log.count("window"),
        "windows": entries, "lenient": lenient,
    }
    before, after = (_idle(log, all_series, when) for when in ("before", "after"))
    shift = _shift(before, after)
    if shift and not lenient:
        faults.append(shift)
    if faults:
        return unmeasured(faults[0], faults=faults, **base)
    idle = None if before is None or after is None else (before + after) / 2
    gross = np.array([entry["gross_mj"] for entry in entries])
    net = None
    if idle is not None:
        ratios = [_seconds(window) / window.values["inferences"] for window in windows]
        net = float(np.median(gross - 1e3 * idle * np.array(ratios)))
    value = float(np.median(gross))
    labels = _labels(log, entries, windows, profile, head, net, latency)
    if shift:
        labels.add("idle_shift")
    intrusion = _intrusion(log)
    if intrusion["value"] is not None and intrusion["value"] > INTRUSIVE:
        labels.add("sampler_intrusive")
    power = float(np.median(powers))
    if any(segment.replayed for segment in log.segments):
        provenance = "emulated"
    if provenance == "emulated":
        labels.add("replayed")
    return {
        "value": value, "boundary": head.boundary, "provenance": provenance, "reason": None, "kind": "gross",
        "net": net, "idle_mw": None if idle is None else 1e3 * idle,
        "idle_before_mw": None if before is None else 1e3 * before,
        "idle_after_mw": None if after is None else 1e3 * after, "power_mw": 1e3 * power,
        "ci95": _bootstrap(gross), "uncertainty": _uncertainty(gross, head, power, value, 1e3 * float(np.mean(edges))),
        "period_ms": head.period_ns / 1e6, "sampler": intrusion, "labels": sorted(labels), **base,
    }


def _seconds(window: Stretch) -> float:
    start, end = window.edges
    return (end - start) / 1e9


def _window(window: Stretch, joules: float, samples: int) -> dict[str, Any]:
    values = window.values
    return {
        "index": values["index"], "start_ns": values["start_ns"], "end_ns": values["end_ns"],
        "inferences": values["inferences"], "p50_ns": values["p50_ns"], "samples": samples, "joules": joules,
        "gross_mj": 1e3 * joules / values["inferences"],
    }


def _covering(segments: Sequence[Segment], all_series: Sequence[Series], stretch: Stretch) -> int | None:
    """The segment that has most of its samples inside a stretch (None where none has one)."""
    start, end = stretch.edges
    counts = [
        int(np.count_nonzero((found.seconds >= found.at(start)) & (found.seconds <= found.at(end))))
        for found in all_series
    ]
    best = int(np.argmax(counts))
    return best if counts[best] else None


def _idle(log: PowerLog, all_series: Sequence[Series], when: str) -> float | None:
    """Median idle power in watts before or after the windows."""
    for stretch in log.of("idle"):
        if stretch.values["when"] == when:
            chosen = _covering(log.segments, all_series, stretch)
            if chosen is None or log.segments[chosen].kind != log.segments[0].kind:
                return None
            return None if all_series[chosen].fault else median_power(all_series[chosen], *stretch.edges)
    return None


def _shift(before: float | None, after: float | None) -> str:
    """E_IDLE_SHIFT where idle before and after differ by more than 5 % or 0.1 W, or one is missing."""
    if before is None or after is None:
        return "E_IDLE_SHIFT: the idle power before or after the windows is missing"
    change = abs(after - before)
    if change > IDLE_SHIFT_UW / 1e6 or change > IDLE_SHIFT * min(abs(before), abs(after)):
        return f"E_IDLE_SHIFT: idle power was {before:.4g} W before and {after:.4g} W after the windows"
    return ""


def _labels(
    log: PowerLog, entries: Sequence[Mapping[str, Any]], windows: Sequence[Stretch], profile: str, head: Segment,
    net: float | None, latency: float | None,
) -> set[str]:
    labels = set()
    # A window ends with an inference, so it may be short by the length of the clock's grain only.
    if min(_seconds(window) for window in windows) < 0.999 * needed_seconds(head.period_ns / 1e9):
        labels.add("short_windows")
    if min(entry["samples"] for entry in entries) < FEWEST_SAMPLES:
        labels.add("few_samples")
    if len(windows) < WINDOWS:
        labels.add("few_windows")
    if min((_seconds(stretch) for stretch in log.of("idle")), default=0.0) < 0.999 * IDLE_SECONDS:
        labels.add("short_idle")
    turns = {stretch.values["turn"] for event in ("idle", "window", "bare") for stretch in log.of(event)}
    if OVERDUE in turns:
        labels.add(LABELS[E_SHARED_MACHINE])
    if NO_LOCK in turns:
        labels.add("unserialized")
    if head.sensor in UNCALIBRATED:
        labels.add("uncalibrated")
    if net is not None and net <= 0:
        labels.add("net_not_positive")
    if latency:
        p50 = float(np.median([entry["p50_ns"] for entry in entries])) / 1e6
        if abs(p50 / latency - 1) > OTHER_LATENCY:
            labels.add("latency_differs")
    if profile == "quick":
        labels.add("quick")
    return labels


def _intrusion(log: PowerLog) -> dict[str, Any]:
    """What the sampler costs: median ratio, less 1, of a window's latency to that of its neighbour without sampler;
    `worst` and `best` of all pairs. None where no window was bare."""
    bare = {stretch.values["index"]: stretch.values["p50_ns"] for stretch in log.of("bare")}
    ratios = [
        window.values["p50_ns"] / bare[window.values["index"]] - 1 for window in log.of("window")
        if window.values["index"] in bare
    ]
    if not ratios:
        return {"value": None, "best": None, "worst": None, "pairs": 0}
    return {"value": float(np.median(ratios)), "best": min(ratios), "worst": max(ratios), "pairs": len(ratios)}


def _bootstrap(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    """95 % interval of the median by a seeded bootstrap over windows; [None, None] for fewer than three."""
    if len(values) < 3:
        return [None, None]
    draws = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return [finite(float(low)), finite(float(high))]


def _uncertainty(
    gross: np.ndarray[Any, np.dtype[np.float64]], head: Segment, power: float, value: float, edge: float
) -> float:
    """Standard uncertainty in mJ: between windows, the sensor's gain, and the edges of a window."""
    relative, watts = GAINS.get(head.sensor) or head.gain or UNKNOWN_GAIN
    gain = value * max(relative, watts / power if power > 0 else relative)
    between = float(np.std(gross, ddof=1)) / math.sqrt(len(gross)) if len(gross) > 1 else 0.0
    return math.sqrt(between**2 + gain**2 + edge**2)

