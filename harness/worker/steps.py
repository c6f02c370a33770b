"""What is done with each candidate of a job: golden check, evaluation, rounds, energy run."""

import hashlib
import os
from abc import ABC, abstractmethod
from typing import Any

from edgesdk.harness.worker import blocks, compiled, engine, power_window, ready, rounds, store, timed, timing

GOLDEN_LIMIT_S = 900.0
# trtexec: beyond the deadlines of the calls themselves (`engine`), with one try to load what was kept.
BUILD_LIMITS_S = {
    "neon-source": compiled.LIMIT_S, "trtexec": engine.BUILD_SECONDS + engine.RUN_SECONDS + 300.0,
}
# qemu-user computes floats one by one in software: some golden rows show there what all of them show on a board.
EMULATED_GOLDEN_ROWS = 8
NO_EDGES = "{} does not tell on a clock of this board when its window starts and ends"
# The stand-in of a GPU starts Python for each row.
EMULATED_GPU_ROWS = 2


def golden_rows(n: int, most: int) -> "list[int]":
    """At most so many of n golden rows, evenly spread."""
    chosen = min(n, most)
    return [row * n // chosen for row in range(chosen)]


class Steps(ABC):
    """The steps of a job. Candidates go by their number; names of raw files are kept in their records.

    Args:
        speeds: seconds of one inference of each candidate, as far as an earlier start knows them; [] for none.
    """

    def __init__(self, state: str, work: str, job: "dict[str, Any]", speeds: "list[float]") -> None:
        self.state = state
        self.work = work
        self.job = job
        self.strict = bool(job.get("strict", False))
        self.specs = job["candidates"]
        self.candidates = []  # type: list[rounds.Candidate]
        self.speeds = speeds or [0.0] * len(self.specs)
        self.start = 0

    @abstractmethod
    def tick(self) -> None:
        """Tell what is being done."""

    def is_wide(self, index: int) -> bool:
        """Does a candidate that runs need more rounds for the interval that the profile asks for?"""
        candidate = self.candidates[index]
        medians = [entry["p50_ns"] for entry in candidate.record["rounds"]]
        return not candidate.failed and timing.is_wide(medians, float(self.job["profile"]["ci_half_width"]))

    def build(self, index: int) -> None:
        """Build what the candidate runs, in a process of its own; what that takes is no part of any figure."""
        candidate = self.candidates[index]
        ended = candidate.run(["build"], BUILD_LIMITS_S[candidate.document["runtime"]["name"]], {})
        if ended.code:
            candidate.fail(ended.code, f"building on the board: {ended.reason}")
        else:
            candidate.record["built"] = ended.stdout.decode("utf-8", "replace").strip() or None

    def golden(self, index: int) -> None:
        """Check the candidate against its golden outputs; on an emulated board against some of them."""
        candidate = self.candidates[index]
        if candidate.failed:
            return
        n, inputs, tensors = candidate.n, candidate.golden_inputs, candidate.document["outputs"]
        expected = {side: store.read_bytes(path) for side, path in candidate.golden_outputs.items()}
        most = EMULATED_GOLDEN_ROWS if candidate.traits.countable else EMULATED_GPU_ROWS
        if self.job["mode"] == "counted":
            rows = golden_rows(n, most)
            some = blocks.take_rows(store.read_bytes(inputs), candidate.document["inputs"], n, rows)
            inputs = os.path.join(candidate.work, "golden.bin")
            store.write_atomic(inputs, some)
            expected = {side: blocks.take_rows(data, tensors, n, rows) for side, data in expected.items()}
            n = len(rows)
        outputs = candidate.outputs(inputs, n, GOLDEN_LIMIT_S, "golden check")
        if outputs is None:
            return
        data, seconds = outputs
        floats = expected.get("floats")
        verdict = blocks.judge(candidate.tolerance, expected["outputs"], data, tensors, n, floats)
        reason = verdict.pop("reason")
        candidate.record["golden"] = verdict
        if not verdict["passed"]:
            candidate.fail("E_ACCURACY", "golden check: " + reason)
        self.speeds[index] = seconds / max(1, n)

    def evaluate(self, index: int) -> None:
        """Run the candidate over the evaluation inputs and keep its outputs."""
        candidate, evaluation = self.candidates[index], self.specs[index]["evaluation"]
        if not evaluation or candidate.failed:
            return
        inputs = os.path.join(self.state, "blobs", store.digest_name(evaluation["sha256"]))
        n = int(evaluation["n"])
        outputs = candidate.outputs(inputs, n, rounds.evaluation_limit(n, self.speeds[index]), "evaluation")
        if outputs is None:
            return
        name = f"c{index}-evaluation.bin"
        store.write_atomic(os.path.join(self.work, name), outputs[0])
        digest = hashlib.sha256(outputs[0]).hexdigest()
        candidate.record["evaluation"] = {"n": n, "file": name, "sha256": digest}
        candidate.record["raw"].append(name)

    def counted_round(self, index: int, round_index: int) -> None:
        """One round that counts instructions. All of them take the same inputs: they show repeatability."""
        candidate = self.candidates[index]
        name = f"c{index}-round{round_index}.jsonl"
        path = os.path.join(self.work, name)
        try:
            record = candidate.counted(self.job["seed"], self.job["counting_plugin"], path, GOLDEN_LIMIT_S)
        except rounds.RoundFailed as problem:
            candidate.fail(problem.code, f"round {round_index}: {problem.reason}")
            return
        record.update({"index": round_index, "file": name})
        candidate.record["rounds"].append(record)
        candidate.record["raw"].append(name)

    def timed_round(self, index: int, round_index: int, timer: timed.Timer) -> None:
        """One timed round and its repeats; the last one counts, those before it are kept as rejected."""
        candidate = self.candidates[index]

        def name(attempt: int) -> str:
            return f"c{index}-round{round_index}.bin" if not attempt else f"c{index}-round{round_index}r{attempt}.bin"

        def once(attempt: int) -> "dict[str, Any]":
            path = os.path.join(self.work, name(attempt))
            record = timer.round(candidate, self.job["seed"] + round_index, path, self.speeds[index])
            record.update({"index": round_index, "attempt": attempt, "file": name(attempt), "start": self.start})
            return record

        def judged(record: "dict[str, Any]", attempt: int) -> "list[str]":
            return timed.judge(candidate, record, os.path.join(self.work, name(attempt)))

        def cool() -> None:
            seconds = float(self.job["profile"].get("cool_wait_seconds", 0))
            ready.wait_until(ready.check_cool, seconds, self.tick)

        try:
            record, rejected = timed.with_repeats(once, judged, cool, self.strict)
        except rounds.RoundFailed as problem:
            candidate.fail(problem.code, f"round {round_index}: {problem.reason}")
            return
        candidate.record["rounds"].append(record)
        candidate.record["rejected"] += rejected
        candidate.record["raw"] += [entry["file"] for entry in [*rejected, record]]

    def energy(self, index: int) -> None:
        """The energy run of a candidate (see `power_window`)."""
        candidate = self.candidates[index]
        if not candidate.traits.edges:
            # Known before the board is watched doing nothing for minutes.
            candidate.record["energy"] = {"reason": NO_EDGES.format(candidate.document["runtime"]["name"])}
            return
        name = f"c{index}-energy.jsonl"
        run = power_window.EnergyRun(
            candidate, self.job["energy"], self.job["profile"], os.path.join(self.work, name), self.job["seed"],
            self.speeds[index], candidate.tick,
        )
        candidate.record["energy"] = run.run()
        if "file" in candidate.record["energy"]:
            candidate.record["raw"].append(name)
