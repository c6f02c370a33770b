"""The energy run of one candidate, after its timed rounds: idle, windows of inferences back to back, idle again.

Everything goes into one file of lines (see `sampler.py`): the sensor's samples, and events with their edges on the same
clock. The host computes the figure from that file alone. Between the windows that are sampled lie shorter ones that
are not (`bare`): their medians show what the sampler costs.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any

from edgesdk.harness.worker import machine, probe, rounds, sampler, sensors, store, timed
from edgesdk.harness.worker.timing import median, now_ns

IDLE_SHIFT, IDLE_SHIFT_UW = 0.05, 100000
EDGE_PERIODS = 3
# A sensor may be silent for three periods, and lose 2 % of its samples (one, where a window has few); a window that
# lost more is run again, and the last try counts.
GAP_PERIODS, LOST_SHARE = 3.0, 0.02
WINDOW_TRIES = 3


class EnergyRun:
    """One candidate's energy run.

    Args:
        candidate: a `rounds.Candidate`.
        plan: numbers of the job document's `energy` (see `harness/energy/plan.py`).
        profile: numbers for rounds; those that an energy window does not need are taken over.
        path: the file to write; its name gives the names of scratch files.
        per_inference_s: seconds of one inference, for deadlines.
    """

    def __init__(
        self, candidate: "rounds.Candidate", plan: "dict[str, Any]", profile: "dict[str, Any]", path: str, seed: int,
        per_inference_s: float, tick: "Callable[[], None]",
    ) -> None:
        self.candidate = candidate
        self.plan = plan
        self.profile = profile
        self.path = path
        self.seed = seed
        self.per_inference_s = per_inference_s
        self.tick = tick
        self.threads = int(candidate.document["runtime"].get("threads", 1))
        self.external = float(plan["external_period_s"])
        self.least_period = float(plan["least_period_s"])
        self.seconds = 0.0

    def run(self) -> "dict[str, Any]":
        """Do it; returns {"file", "sha256"}, or {"reason"} where there is no energy to be had."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        period = self.external
        if not period:
            sensor, reason = sensors.discover()
            if sensor is None:
                return {"reason": reason}
            period = max(sensor.period_s, self.least_period)
            sensor.close()
        self.seconds = window_seconds(self.plan, period)
        try:
            for attempt in range(int(self.plan["tries"])):
                self._event("attempt", {"attempt": attempt})
                before = self._idle("before", period)
                for index in range(int(self.plan["windows"])):
                    self._pair(index, period)
                after = self._idle("after", period)
                if before is None or after is None or not shifted(before, after):
                    break
        except rounds.RoundFailed as problem:
            return {"reason": f"the energy run failed: {problem.code}: {problem.reason}"}
        except NoSamples as problem:
            return {"reason": str(problem)}
        self._event("end", {})
        return {"file": os.path.basename(self.path), "sha256": store.sha256_file(self.path)}

    def _pair(self, index: int, period: float) -> None:
        """A sampled window and a bare one; which of them comes first alternates."""
        bare = float(self.plan["bare_seconds"]) if not self.external else 0.0
        if bare and index % 2:
            self._bench("bare", index, bare)
        for _ in range(WINDOW_TRIES):
            offset = os.path.getsize(self.path)
            with _Segment(self, period):
                start, end = self._bench("window", index, self.seconds)
            if self.external or not has_gap(sample_times(self.path, offset), start, end):
                break
        if bare and not index % 2:
            self._bench("bare", index, bare)

    def _bench(self, event: str, index: int, seconds: float) -> "tuple[int, int]":
        """Run inferences and note the window; returns its edges (0, 0 for a bare window of a runner without them)."""
        plan = self.plan
        numbers = dict(
            self.profile, warmup_iterations=1, warmup_seconds=plan["warmup_seconds"], warm_loads=0, probe_seconds=0,
            max_warmup_seconds=plan["warmup_seconds"], window_seconds=seconds, min_samples=2,
        )
        scratch = self.path + ".samples"
        timer = timed.Timer(numbers, self.threads)
        record = timer.round(self.candidate, self.seed + index, scratch, self.per_inference_s)
        os.unlink(scratch)
        start, end = record.get("window_start_ns"), record.get("window_end_ns")
        if event == "window" and (start is None or end is None or end <= start):
            raise NoSamples("the runner does not say when its window starts and ends: build the artifact again")
        self._event(event, {
            "index": index, "start_ns": start, "end_ns": end, "inferences": record["count"] * record["batch"],
            "p50_ns": record["p50_ns"], "turn": record["environment"]["turn"],
        })
        return start or 0, end or 0

    def _idle(self, when: str, period: float) -> "float | None":
        """Watch the board do nothing; returns the median power in microwatts (None where a meter elsewhere sees it)."""
        offset = os.path.getsize(self.path)
        with machine.turn(self.tick) as turn, _Segment(self, period):
            start = now_ns()
            deadline = time.monotonic() + float(self.plan["idle_seconds"])
            while time.monotonic() < deadline:
                time.sleep(max(0.0, min(1.0, deadline - time.monotonic())))
                self.tick()
            end = now_ns()
        self._event("idle", {"when": when, "start_ns": start, "end_ns": end, "turn": turn.kind})
        return None if self.external else idle_power(self.path, offset, start, end)

    def _event(self, event: str, values: "dict[str, Any]") -> None:
        with open(self.path, "a") as stream:
            stream.write(json.dumps(dict(values, event=event), sort_keys=True) + "\n")


class _Segment:
    """The sampler around one stretch; with a meter elsewhere only the pauses at its edges."""

    def __init__(self, run: EnergyRun, period: float) -> None:
        self.pause = min(2.0, EDGE_PERIODS * period)
        self.sampler = None if run.external else sampler.Sampler(run.path, sampler_core(run.threads), run.least_period)

    def __enter__(self) -> None:
        if self.sampler is not None:
            reason = self.sampler.start()
            if reason:
                raise NoSamples(reason)
        time.sleep(self.pause)

    def __exit__(self, kind: "Any", *_: "Any") -> None:
        if kind is None:
            time.sleep(self.pause)
        if self.sampler is not None:
            self.sampler.stop()


class NoSamples(Exception):
    """No energy, and why."""


def sampler_core(threads: int) -> "int | None":
    """The core for the sampler: the first one, which inferences leave to interrupts; None where it could be one of
    theirs."""
    try:
        cores = sorted(os.sched_getaffinity(0))
    except (OSError, AttributeError):
        return None
    free = [core for core in cores if core not in probe.work_cores(threads)]
    return free[0] if len(cores) > 1 and free else None


def window_seconds(plan: "dict[str, Any]", period_s: float) -> float:
    """How long a window must be with a sensor of this period: `window_samples` samples, within the plan's bounds."""
    wanted = float(plan["window_samples"]) * period_s
    return max(float(plan["window_seconds"]), min(float(plan["longest_seconds"]), wanted))


def shifted(before: float, after: float) -> bool:
    """Do two idle powers (microwatts) differ by more than 5 %, or by more than 0.1 W?"""
    change = abs(after - before)
    return change > IDLE_SHIFT_UW or change > IDLE_SHIFT * min(abs(before), abs(after))


def sample_times(path: str, offset: int) -> "tuple[list[int], int]":
    """(times in ns of the samples whose total could be read, period in ns) of the segment at byte `offset`."""
    header = {}  # type: dict[str, Any]
    times = []  # type: list[int]
    with open(path) as stream:
        stream.seek(offset)
        for line in stream:
            entry = json.loads(line)
            if isinstance(entry, dict):
                if "format" in entry:
                    # Another set of rails: what was read before is of no use to this window.
                    header, times = entry, []
            elif None not in [entry[1 + header["rails"].index(rail)] for rail in header["total"]]:
                times.append(entry[0])
    return times, int(header.get("period_ns", 0))


def has_gap(samples: "tuple[list[int], int]", start_ns: int, end_ns: int) -> bool:
    """Do the samples leave out too much of a window? (The host asks the same question, see `energy/integrate.py`.)"""
    times, period = samples
    before = [moment for moment in times if moment <= start_ns]
    after = [moment for moment in times if moment >= end_ns]
    if not before or not after:
        return True
    inside = [before[-1]] + [moment for moment in times if start_ns < moment < end_ns] + [after[0]]
    gaps = [(new - old) / float(period) for old, new in zip(inside, inside[1:])]  # noqa: B905
    return max(gaps) > GAP_PERIODS or lost_too_many(sum(max(0, round(gap) - 1) for gap in gaps), len(gaps))


def lost_too_many(lost: float, gaps: int) -> bool:
    """Are so many samples lost, of so many stretches between samples?"""
    return lost > max(1.0, LOST_SHARE * (lost + gaps))


def idle_power(path: str, offset: int, start_ns: int, end_ns: int) -> "float | None":
    """Median power in microwatts of the samples of a segment that starts at byte `offset` of the file."""
    header = None
    powers = []  # type: list[float]
    last = None
    with open(path) as stream:
        stream.seek(offset)
        for line in stream:
            entry = json.loads(line)
            if isinstance(entry, dict):
                header = entry if entry.get("format") == sampler.FORMAT else header
                continue
            if header is None or not start_ns <= entry[0] <= end_ns:
                continue
            values = [entry[1 + header["rails"].index(rail)] for rail in header["total"]]
            if None in values:
                continue
            if header["unit"] == "uW":
                powers.append(sum(values))
            else:
                if last is not None and all(new >= old for new, old in zip(values, last[1])):  # noqa: B905
                    powers.append((sum(values) - sum(last[1])) * 1e9 / (entry[0] - last[0]))
                last = (entry[0], values)
    return median(powers) if powers else None  # type: ignore[arg-type]


