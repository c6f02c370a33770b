"""The job: for every candidate golden check and evaluation, then all rounds interleaved, then one result file.

Each finished step is in the journal: a job that is begun again goes on where it was.
"""

import errno
import os
import random
import shutil
from collections.abc import Callable
from typing import Any

from edgesdk.harness.worker import child, facts, parallel, ready, rounds, store, timed, timing, tuning
from edgesdk.harness.worker.journal import Journal
from edgesdk.harness.worker.result import write_result
from edgesdk.harness.worker.steps import Steps


class JobFailed(Exception):
    """A fault of the board, not of a candidate; `kind` is a word that the harness maps to an error class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def failure_of(problem: OSError) -> JobFailed:
    """Words for an error of the board's file system."""
    kinds = {errno.ENOSPC: "disk-full", errno.EDQUOT: "disk-full", errno.EROFS: "read-only"}
    return JobFailed(kinds.get(problem.errno or 0, "board"), str(problem))


def do_job(
    state: str, folder: str, job: "dict[str, Any]", progress: "Callable[[str, int, int], None]", detached: str = ""
) -> "dict[str, Any]":
    """Run the job, or what is left of it, and write `result.zip` into `folder`.

    Args:
        detached: how the process was started, in words.

    Returns:
        {"sha256", "bytes"} of the result file.

    Raises:
        JobFailed, OSError: faults of the board.
    """
    work = os.path.join(folder, "work")
    journal = Journal(work)
    if job["mode"] == "counted" or not journal.load():
        shutil.rmtree(work, ignore_errors=True)
        os.makedirs(work)
    start = journal.begin()
    job_at = _Job(state, folder, work, job, journal, progress)
    job_at.lay_out()
    if journal.values["before"] is None:
        journal.values["before"] = facts.snapshot()
    clocks = tuning.Tuning(state, job["id"])
    if job["mode"] == "counted":
        job_at.step = "count instructions"
        parallel.in_processes(job_at.count_all, job_at.candidates, work, job_at.tick, job_at.done)
        job_at.energy_all()
    else:
        try:
            job_at.time_all(start, clocks)
            job_at.energy_all()
        finally:
            clocks.restore()
    job_at.enter("result")
    records = [candidate.record for candidate in job_at.candidates]
    result = {
        "format": "edgesdk.job-result", "version": 1, "job": job["id"], "before": journal.values["before"],
        "after": facts.snapshot(), "starts": journal.values["starts"], "ready": journal.values["ready"],
        "notes": [f"started by {detached}"] * bool(detached) + clocks.notes, "candidates": records,
    }
    ended = write_result(folder, work, result, [name for record in records for name in record["raw"]])
    shutil.rmtree(work, ignore_errors=True)
    return ended


def _check_blobs(state: str, spec: "dict[str, Any]") -> None:
    """Flash cards forget: bytes are checked again when they are used; a wrong blob is removed, to be sent again."""
    wanted = [file["sha256"] for file in spec["files"]]
    if spec["evaluation"]:
        wanted.append(spec["evaluation"]["sha256"])
    for name in wanted:
        path = os.path.join(state, "blobs", store.digest_name(name))
        if not os.path.exists(path):
            raise JobFailed("corrupt", f"blob {name} is missing")
        if store.sha256_file(path) != name:
            os.unlink(path)
            raise JobFailed("corrupt", f"blob {name} no longer has its digest")


class _Job(Steps):
    """The order of the steps, and what the journal knows of them."""

    def __init__(
        self, state: str, folder: str, work: str, job: "dict[str, Any]", journal: Journal,
        progress: "Callable[[str, int, int], None]",
    ) -> None:
        super().__init__(state, work, job, journal.values["speeds"])
        self.folder = folder
        self.journal = journal
        self.progress = progress
        self.total = len(self.specs) * (2 + (job["rounds"] if job["mode"] != "none" else 0))
        self.done = [0]
        self.step = "start"

    def tick(self) -> None:
        """Tell what is being done."""
        self.progress(self.step, self.done[0], self.total)

    def enter(self, name: str) -> None:
        """Begin a step."""
        self.step = name
        self.tick()

    def lay_out(self) -> None:
        """Put every candidate under its own names; take over what an earlier start recorded, and end what it left."""
        for index, spec in enumerate(self.specs):
            _check_blobs(self.state, spec)
            artifact = store.lay_out_artifact(self.state, spec["artifact"], spec["files"])
            folder = os.path.join(self.work, f"c{index}")
            child.end_leftover(folder)
            candidate = rounds.Candidate(artifact, spec, folder, self.tick)
            if self.journal.values["records"]:
                candidate.record = self.journal.values["records"][index]
            self.candidates.append(candidate)

    def count_all(self, index: int) -> None:
        """Everything of one candidate on an emulated board, where no clock is looked at."""
        candidate = self.candidates[index]
        if candidate.traits.built:
            self.build(index)
        self.golden(index)
        self.evaluate(index)
        for round_index in range(self.job["rounds"]):
            if not candidate.failed and candidate.traits.countable:
                self.counted_round(index, round_index)

    def time_all(self, start: int, clocks: tuning.Tuning) -> None:
        """Golden checks and evaluations, then all rounds; `start` is the number of this start."""
        self.start = start
        timing_wanted = self.job["mode"] == "timed"
        if timing_wanted and not self.journal.has("ready"):
            self.enter("look at the board")
            self.journal.values["ready"] = self._ready()
            self._finish("ready")
        for index, spec in enumerate(self.specs):
            actions = [("golden", self.golden), ("evaluate", self.evaluate)]
            if self.candidates[index].traits.built:
                actions.insert(0, ("build", self.build))
                self.total += 1
            for name, action in actions:
                self.enter("{} {}".format(name, spec["name"]))
                self._once(f"c{index}-{name}", action, index)
        if not timing_wanted:
            return
        if self.strict:
            for candidate in [candidate for candidate in self.candidates if not candidate.failed]:
                for fault in self.journal.values["ready"]:
                    candidate.fail(fault["code"], fault["text"])
        if all(candidate.failed for candidate in self.candidates):
            return
        if self.strict:
            clocks.apply(self.job.get("power_mode"))
            clocks.guard(os.path.join(self.folder, "lock"))
        self._rounds()

    def energy_all(self) -> None:
        """Energy runs, after everything that is timed: the sampler must not disturb that."""
        if not self.job.get("energy"):
            return
        order = list(range(len(self.candidates)))
        random.Random(self.job["seed"]).shuffle(order)
        self.total += len(order)
        for index in order:
            self.enter("energy {}".format(self.specs[index]["name"]))
            if not self.candidates[index].failed:
                self._once(f"c{index}-energy", self.energy, index)
            else:
                self.done[0] += 1

    def _rounds(self) -> None:
        threads = max(int(candidate.document["runtime"].get("threads", 1)) for candidate in self.candidates)
        timer = timed.Timer(self.job["profile"], threads)
        least = self.job["rounds"]
        most = least + self.job["profile"].get("extra_rounds", 0)
        for round_index in range(most):
            order = list(range(len(self.candidates)))
            if round_index >= least:
                # More rounds, up to the profile's number, for candidates whose interval is still too wide.
                order = [index for index in order if self.is_wide(index)]
                self.total += len(order)
            for index in timing.round_order(order, self.job["seed"], round_index):
                self.enter("round {} {}".format(round_index + 1, self.specs[index]["name"]))
                if not self.candidates[index].failed:
                    self._once(f"c{index}-round{round_index}", self.timed_round, index, round_index, timer)
                else:
                    self.done[0] += 1

    def _once(self, step: str, action: "Callable[..., None]", *arguments: "Any") -> None:
        """Do a step that the journal does not have."""
        if not self.journal.has(step):
            action(*arguments)
            self._finish(step)
        self.done[0] += 1

    def _finish(self, step: str) -> None:
        self.journal.finish(step, [candidate.record for candidate in self.candidates], self.speeds)

    def _ready(self) -> "list[dict[str, str]]":
        sizes = [sum(os.path.getsize(path) for path in candidate.files()) for candidate in self.candidates]
        available = facts.snapshot()["mem_available_bytes"]
        return ready.check_all(self.state, max(sizes), available, self.job["profile"], self.strict, self.tick)
