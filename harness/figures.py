"""Figures of a measurement, computed from its raw files. Measuring fills them in; verifying computes them again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import MeasureError
from edgesdk.files import inside, sha256_bytes
from edgesdk.harness.protocol import BUSY_LOAD, E_LOAD, E_THROTTLED, LABELS, PROFILES, interval, round_codes
from edgesdk.harness.worker.count import mean_counts, parse_counts

REPEATABLE = 0.01
FEWEST_INPUTS = 32


def read_raw(folder: Path, name: str, digest: str) -> bytes:
    """Bytes of a raw file whose digest is right (MeasureError)."""
    path = inside(folder, name, MeasureError)
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise MeasureError(f"{path}: {problem.strerror}") from problem
    if sha256_bytes(data) != digest:
        raise MeasureError(f"{path}: sha256 differs from the measurement's")
    return data


def read_samples(folder: Path, entry: Mapping[str, Any]) -> NDArray[np.int64]:
    """Samples of a timed round: int64 nanoseconds, each of `batch` calls."""
    data = read_raw(folder, entry["samples"], entry["sha256"])
    if len(data) != 8 * entry["count"] or not data:
        raise MeasureError(f"{folder / entry['samples']}: {len(data)} bytes for a count of {entry['count']}")
    samples = np.frombuffer(data, "<i8")
    if samples.min() <= 0:
        raise MeasureError(f"{folder / entry['samples']}: has samples that are not positive")
    return samples


def round_figures(folder: Path, entry: Mapping[str, Any], work: str, inputs: int) -> dict[str, Any]:
    """`p50_ns` of one inference, and `codes`, of a timed round."""
    samples = read_samples(folder, entry)
    p50 = round(float(np.median(samples)) / entry["batch"])
    codes = round_codes(samples, entry["batch"], entry["steady"], entry.get("other_cpu") or 0.0, work, inputs)
    return {"p50_ns": p50, "codes": codes}


def latency(folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """`latency_ms` of timed rounds: p50 and its interval over round medians, p90 over all samples together."""
    rounds = document["rounds"]
    medians = []
    pooled = []
    for entry in rounds:
        milliseconds = read_samples(folder, entry) / (1e6 * entry["batch"])
        medians.append(float(np.median(milliseconds)))
        pooled.append(milliseconds)
    p50, low, high = interval(medians)
    profile = PROFILES[document["profile"]]
    codes = [*board_codes(document["facts"]), *(code for entry in rounds for code in entry["codes"])]
    labels = {LABELS[code] for code in codes}
    if not high - low <= 2 * profile.ci_half_width * p50:
        labels.add("wide_ci")
    if sum(entry["count"] for entry in rounds) < profile.min_samples:
        labels.add("few_samples")
    if document["golden"]["n"] < FEWEST_INPUTS:
        labels.add("few_inputs")
    if profile.name == "quick":
        labels.add("quick")
    return {
        "p50": p50, "p90": float(np.percentile(np.concatenate(pooled), 90)), "ci95": [_finite(low), _finite(high)],
        "rounds": len(rounds), "provenance": "measured", "labels": sorted(labels),
    }


def instructions(folder: Path, document: Mapping[str, Any], provenance: str) -> dict[str, Any]:
    """`instructions` of a measurement with counted rounds: means per inference over all rounds; `n` inputs each."""
    counts = []
    for entry in document["rounds"]:
        text = read_raw(folder, entry["samples"], entry["sha256"]).decode("utf-8", "replace")
        inferences = parse_counts(text)
        if len(inferences) != entry["count"]:
            found = f"{len(inferences)} inferences, expected {entry['count']}"
            raise MeasureError(f"{folder / entry['samples']}: {found}")
        counts.append(mean_counts(inferences))
    means = mean_counts(counts)
    totals = [entry["total"] for entry in counts]
    value = means.pop("total")
    n = min(entry["count"] for entry in document["rounds"])
    labels = []
    # Where the work depends on the input, the mean of few of them is a rough one.
    if document["work"] == "per_input" and n < FEWEST_INPUTS:
        labels.append("few_inputs")
    if max(totals) - min(totals) > REPEATABLE * max(1, value):
        labels.append("not_repeatable")
    return {
        "value": value, "provenance": provenance, "classes": means, "rounds": totals, "n": n, "labels": labels,
    }


def peak_rss(document: Mapping[str, Any], provenance: str) -> dict[str, Any]:
    """`peak_rss_bytes`: the largest of the timed rounds (the whole process, its runtime included)."""
    peaks = [entry["peak_rss_bytes"] for entry in document["rounds"] if entry.get("peak_rss_bytes")]
    if not peaks:
        return {"value": None, "provenance": "unmeasured", "reason": "no round reported it"}
    return {"value": max(peaks), "provenance": provenance, "reason": None}


def board_codes(facts: Mapping[str, Any]) -> list[str]:
    """Codes from the facts before and after the job: busy before it started, throttled while it ran."""
    codes = []
    load, cpus = facts.get("loadavg1"), facts.get("cpus")
    if load is not None and cpus is not None and float(load) > BUSY_LOAD * float(cpus):
        codes.append(E_LOAD)
    before, after = facts.get("throttle_count"), (facts.get("after") or {}).get("throttle_count")
    if before is not None and after is not None and int(after) > int(before):
        codes.append(E_THROTTLED)
    return codes


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
