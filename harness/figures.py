"""Figures of a measurement, computed from its raw files. Measuring fills them in; verifying computes them again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import MeasureError
from edgesdk.files import inside, sha256_bytes
from edgesdk.harness.protocol import (
    BUSY_LOAD,
    E_CLOCK,
    E_REBOOTED,
    LABELS,
    PROFILES,
    clock_is_wrong,
    interval,
    round_codes,
)
from edgesdk.harness.worker.codes import E_LOAD, E_THROTTLED
from edgesdk.harness.worker.count import mean_counts, parse_counts
from edgesdk.harness.worker.machine import NO_LOCK

REPEATABLE = 0.01
FEWEST_INPUTS = 32
MEMORY = ("peak_rss", "anon", "file", "pss", "arena", "cgroup_peak", "nvmap")


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
    # Documents of before `environment` have the load alone.
    environment = entry.get("environment") or {"other_cpu": entry.get("other_cpu")}
    codes = round_codes(samples, entry["batch"], entry["steady"], work, inputs, environment)
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
    half_width = float(document.get("protocol", {}).get("ci_half_width", profile.ci_half_width))
    codes = [*board_codes(document["facts"]), *(code for entry in rounds for code in entry["codes"])]
    labels = {LABELS[code] for code in codes}
    if not high - low <= 2 * half_width * p50:
        labels.add("wide_ci")
    if sum(entry["count"] for entry in rounds) < profile.min_samples:
        labels.add("few_samples")
    if document["golden"]["n"] < FEWEST_INPUTS:
        labels.add("few_inputs")
    if document["facts"].get("agent") == "shell":
        labels.add("unsampled")  # nothing was looked at while the rounds ran
    if any((entry.get("environment") or {}).get("turn") == NO_LOCK for entry in rounds):
        labels.add("unserialized")  # other boards of this machine may have been timed beside it
    if any(entry.get("other_cpu", 0.0) is None for entry in rounds):
        labels.add("load_unknown")
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


def memory(document: Mapping[str, Any], provenance: str) -> dict[str, Any]:
    """`memory_bytes`: the largest of the timed rounds, by name.

    `peak_rss` the whole process with its runtime (VmHWM), `anon` what cannot be taken away from it, `file` mapped
    files (the model's too; the kernel may drop them), `pss` with shared pages divided, `arena` the buffers that the
    artifact's own binary names, `cgroup_peak` of the job's control group, `nvmap` what a Jetson's GPU holds.
    `peak_total` is `anon` + `nvmap` where there is one.
    """
    found: dict[str, Any] = {"provenance": provenance}
    for key in MEMORY:
        values = [entry["memory"][key] for entry in document["rounds"] if (entry.get("memory") or {}).get(key)]
        found[key] = max(values, default=None)
    if found["arena"] is None:
        found["arena"] = document.get("arena_bytes")
    whole = found["nvmap"] is not None and found["anon"] is not None
    found["peak_total"] = found["anon"] + found["nvmap"] if whole else None
    return found


def loading(document: Mapping[str, Any]) -> dict[str, Any]:
    """`loading_ms`: medians of `cold_load` (files of the model put out of the cache where the kernel lets), `warm_load`
    (loaded again in the same process; null where the runner does not report it) and `first_inference`."""
    rounds = document["rounds"]
    warm = [value for entry in rounds for value in entry.get("warm_load_ns") or ()]
    evicted = all((entry.get("environment") or {}).get("file_evicted") for entry in rounds)
    return {
        "cold_load": _median_ms([entry["cold_load_ns"] for entry in rounds]), "file_evicted": evicted,
        "warm_load": _median_ms(warm), "warm_loads": len(warm),
        "first_inference": _median_ms([entry["first_inference_ns"] for entry in rounds]), "provenance": "measured",
    }


def exits(folder: Path, document: Mapping[str, Any]) -> dict[str, Any] | None:
    """`exits`: how many inputs of the evaluation left after which layer, by the artifact's output `exit` (int64, one
    for each input); None for models that inputs do not leave early."""
    evaluation = document["evaluation"]
    if evaluation is None or evaluation.get("exit_offset") is None:
        return None
    data = read_raw(folder, evaluation["outputs"], evaluation["sha256"])
    left = np.frombuffer(data, "<i8", evaluation["n"], evaluation["exit_offset"])
    depths, counts = np.unique(left, return_counts=True)
    found = {str(depth): int(count) for depth, count in zip(depths, counts, strict=True)}
    return {"n": evaluation["n"], "left": found, "provenance": evaluation["provenance"]}


def board_codes(facts: Mapping[str, Any]) -> list[str]:
    """Codes from the facts around the job: what the checks before it found, a wrong wall clock, restarts, load before
    it, throttling while it ran."""
    codes = [fault["code"] for fault in facts.get("ready") or ()]
    codes += [E_CLOCK] * clock_is_wrong(facts.get("clock"))
    boots = [start["boot_id"] for start in facts.get("starts") or ()]
    if len(boots) > 1:
        codes.append(E_REBOOTED if len(set(boots)) > 1 else "E_RESTARTED")
    load, cpus = facts.get("loadavg1"), facts.get("cpus")
    if load is not None and cpus is not None and float(load) > BUSY_LOAD * float(cpus):
        codes.append(E_LOAD)
    before, after = facts.get("throttle_count"), (facts.get("after") or {}).get("throttle_count")
    if before is not None and after is not None and int(after) > int(before):
        codes.append(E_THROTTLED)
    return codes


def _median_ms(values: Sequence[int | None]) -> float | None:
    values = [value for value in values if value is not None]
    return float(np.median(np.asarray(values, dtype=np.float64))) / 1e6 if values else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
