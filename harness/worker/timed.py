"""Timed rounds: alone on the machine, on fixed cores, between two micro-probes, watched, repeated where a code asks."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from edgesdk.harness.worker import codes, machine, probe, rounds, timing
from edgesdk.harness.worker.condition import Watch

NICE = -5
PROBE_AGE_NS = 1000000000


class Timer:
    """Runs timed rounds of candidates one after another; keeps the last probe, which is the first of the next round."""

    def __init__(self, profile: "dict[str, Any]", threads: int) -> None:
        self.profile = profile
        self.cores = probe.work_cores(threads)
        self.probe = probe.Probe(float(profile.get("probe_seconds", 0)), self.cores)
        self.last = None  # type: int | None
        self.last_at = 0

    def round(
        self, candidate: "rounds.Candidate", seed: int, samples: str, per_inference_s: float
    ) -> "dict[str, Any]":
        """One round in a fresh process, when the machine is free; `samples` is the file for its raw samples.

        Returns:
            the round's record (`answers._TimedRound`).

        Raises:
            RoundFailed: it gave no figures.
        """
        with machine.turn(candidate.tick) as turn:
            record = self._round(candidate, seed, samples, per_inference_s)
        record["environment"].update({"waited_s": round(turn.waited_s, 3), "turn": turn.kind})
        return record

    def _round(
        self, candidate: "rounds.Candidate", seed: int, samples: str, per_inference_s: float
    ) -> "dict[str, Any]":
        profile = self.profile
        evicted = evict(candidate.files())
        fresh = self.last if timing.now_ns() - self.last_at < PROBE_AGE_NS else None
        before = fresh or self.probe.nanoseconds()
        watch = Watch(self.cores or sorted(os.sched_getaffinity(0))[:4])
        try:
            record = candidate.timed(
                seed, profile, samples, per_inference_s, int(profile.get("warm_loads", 0)), self._prepare,
                lambda pid: setattr(watch, "pid", pid), watch.tick,
            )
        finally:
            seen = watch.end()
        self.last, self.last_at = self.probe.nanoseconds(), timing.now_ns()
        seen.update({
            "other_cpu": record["other_cpu"], "probe_before_ns": before, "probe_after_ns": self.last,
            "major_faults": record.pop("major_faults"), "wall_s": record.pop("wall_s"),
            "window_s": float(profile["window_seconds"]), "file_evicted": evicted,
        })
        record["environment"] = seen
        # What a binary does not say of itself is what was seen of it from outside; others are not the process itself.
        seen_outside = {}  # type: dict[str, int | None]
        if candidate.executable:
            seen_outside = {"anon": watch.anonymous or None, "file": watch.file or None}
        record["memory"] = {**seen_outside, "peak_rss": record["peak_rss_bytes"], **(record["memory"] or {})}
        return record

    def _prepare(self) -> None:
        """In the new process, before the runner: its cores, and its priority where that is allowed."""
        probe.pin(self.cores)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        except OSError:
            pass


def evict(paths: "Sequence[str]") -> bool:
    """Ask the kernel to forget the files of an artifact, so that loading reads them; False where it cannot be asked."""
    try:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    except (AttributeError, OSError):
        return False
    return True


def judge(candidate: "rounds.Candidate", record: "dict[str, Any]", samples: str) -> "list[str]":
    """The codes of a round that has just ended."""
    values = rounds.read_samples(samples)
    work = candidate.document.get("work", "constant")
    return codes.round_codes(
        values, record["batch"], record["steady"], work, candidate.n, record["environment"]
    )


def with_repeats(
    once: "Callable[[int], dict[str, Any]]", judged: "Callable[[dict[str, Any], int], list[str]]",
    cool: "Callable[[], None]", strict: bool,
) -> "tuple[dict[str, Any], list[dict[str, Any]]]":
    """A round, and again while its codes ask for it.

    Args:
        once: runs attempt 0, 1 … and returns its record.
        judged: codes of a record.
        cool: waits for the board to cool down.
        strict: lenient profiles take what comes.

    Returns:
        the last record, and those that were rejected before it, in order.

    Raises:
        RoundFailed: an attempt gave no figures (a deadline is tried once more).
    """
    rejected = []  # type: list[dict[str, Any]]
    attempt = 0
    while True:
        try:
            record = once(attempt)
            found = judged(record, attempt)
        except rounds.RoundFailed as problem:
            if not strict or attempt >= codes.REPEATS.get(problem.code, 0):
                raise
            attempt += 1
            continue
        if not strict or len(rejected) >= codes.repeats(found):
            return record, rejected
        rejected.append(record)
        attempt += 1
        if any(code in codes.HOT_CODES for code in found):
            cool()
