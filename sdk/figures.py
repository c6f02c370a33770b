"""The figures that goals and the ranking judge, why one is missing, and how they are written."""

from __future__ import annotations

import math

from edgesdk import units
from edgesdk.record import BuildRecord, CandidateRecord

LABELS = {
    "accuracy": "accuracy", "latency_p50": "p50", "latency_p90": "p90", "size": "size", "peak_rss": "peak RSS",
    "energy": "energy", "instructions": "instructions",
}
NEVER_EMULATED = ("latency_p50", "latency_p90")
_KEYS = {"peak_rss": "peak_rss_bytes", "energy": "energy_mj", "instructions": "instructions"}
_UNITS = {"latency_p50": units.milliseconds, "latency_p90": units.milliseconds, "size": units.size}
_UNITS |= {"peak_rss": units.size, "energy": units.millijoules, "instructions": units.count}


def judged(candidate: CandidateRecord, metric: str, record: BuildRecord) -> float | None:
    """The figure by which a candidate is judged, in the unit of `Goal.limit`; None where it was not measured.

    Latency is an upper bound: p50 or p90, or the upper end of the median's 95 % interval where that is higher; an
    emulated board has no time, whatever its document says; energy it has where recorded readings are replayed on it.
    Accuracy is the point estimate, a fraction.
    """
    value: float | None
    if metric == "accuracy":
        return None if candidate.accuracy is None else candidate.accuracy.value
    if metric == "size":
        return candidate.bytes
    if record.emulated and metric in NEVER_EMULATED:
        return None
    if metric in ("latency_p50", "latency_p90"):
        value = candidate.figure("latency_ms", metric.removeprefix("latency_"))
        high = candidate.figure("latency_ms", "ci95", 1)
        if value is None:
            return None
        return float(value) if high is None else float(max(value, high))
    if candidate.figure(_KEYS[metric], "provenance") == "unmeasured":
        return None
    value = candidate.figure(_KEYS[metric], "value")
    return None if value is None else float(value)


def missing(candidate: CandidateRecord, metric: str, record: BuildRecord) -> str:
    """Why a figure is missing, in the words of the measurement where it has some."""
    if record.emulated and metric in NEVER_EMULATED:
        return "an emulated board measures no time"
    if metric == "instructions" and not record.emulated:
        return "instructions are counted on emulated boards only"
    reason = candidate.figure(_KEYS.get(metric, ""), "reason")
    return str(reason) if reason else f"{LABELS[metric]} not measured"


def show(metric: str, *values: float) -> list[str]:
    """Figures with their unit, with as many digits as it takes to tell them apart."""
    for digits in range(3, 10):
        texts = [_UNITS[metric](value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def paired_ratio(one: CandidateRecord, other: CandidateRecord) -> tuple[float, float] | None:
    """95 % interval of the ratio of two candidates' latencies: Student's t on the log ratios of the medians of their
    interleaved rounds. None with fewer than two common rounds."""
    import numpy as np
    from scipy import stats

    left, right = (
        {entry["index"]: entry["p50_ns"] for entry in candidate.figure("rounds") or () if entry.get("p50_ns")}
        for candidate in (one, other)
    )
    common = sorted(left.keys() & right.keys())
    if len(common) < 2:
        return None
    ratios = np.log([left[index] / right[index] for index in common])
    half = stats.t.ppf(0.975, len(ratios) - 1) * ratios.std(ddof=1) / math.sqrt(len(ratios))
    return math.exp(ratios.mean() - half), math.exp(ratios.mean() + half)
