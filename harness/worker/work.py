"""The job: for every candidate golden check and evaluation, then all rounds interleaved, then one result file."""

import errno
import hashlib
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from typing import Any

from edgesdk.harness.worker import blocks, facts, parallel, rounds, store, timing

GOLDEN_LIMIT_S = 900.0
# qemu-user computes floats one by one in software: some golden rows show there what all of them show on a board.
EMULATED_GOLDEN_ROWS = 8


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
    state: str, folder: str, job: "dict[str, Any]", progress: "Callable[[str, int, int], None]"
) -> "dict[str, Any]":
    """Run the job and write `result.zip` into `folder`.

    Returns:
        {"sha256", "bytes"} of the result file.

    Raises:
        JobFailed, OSError: faults of the board.
    """
    work = os.path.join(folder, "work")
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    before = facts.snapshot()
    specs = job["candidates"]
    total = [len(specs) * (2 + (job["rounds"] if job["mode"] != "none" else 0))]
    done = [0]
    step = ["start"]

    def tick() -> None:
        progress(step[0], done[0], total[0])

    def enter(name: str) -> None:
        step[0] = name
        tick()

    candidates = []
    for index, spec in enumerate(specs):
        _check_blobs(state, spec)
        artifact = store.lay_out_artifact(state, spec["artifact"], spec["files"])
        candidates.append(rounds.Candidate(artifact, spec, os.path.join(work, f"c{index}"), tick))
    job_at = _Job(state, work, job, candidates)
    if job["mode"] == "counted":
        step[0] = "count instructions"
        parallel.in_processes(job_at.count_all, candidates, work, tick, done)
    else:
        for index, spec in enumerate(specs):
            enter("golden " + spec["name"])
            job_at.golden(index)
            done[0] += 1
            enter("evaluate " + spec["name"])
            job_at.evaluate(index)
            done[0] += 1
        least = job["rounds"] if job["mode"] != "none" else 0
        most = least + (job["profile"].get("extra_rounds", 0) if job["mode"] == "timed" else 0)
        for round_index in range(most):
            order = list(range(len(candidates)))
            if round_index >= least:
                # More rounds, up to the profile's number, for candidates whose interval is still too wide.
                order = [index for index in order if job_at.is_wide(index)]
                total[0] += len(order)
            random.Random(job["seed"] * 1000003 + round_index).shuffle(order)
            for index in order:
                if not candidates[index].failed:
                    enter("round {} {}".format(round_index + 1, specs[index]["name"]))
                    job_at.round(index, round_index)
                done[0] += 1
    enter("result")
    result = {
        "format": "edgesdk.job-result", "version": 1, "job": job["id"], "before": before, "after": facts.snapshot(),
        "candidates": [candidate.record for candidate in candidates],
    }
    return _write_result(folder, work, result, [name for candidate in candidates for name in candidate.record["raw"]])


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


class _Job:
    """What is done with each candidate, by its number; names of raw files are kept in its record."""

    def __init__(
        self, state: str, work: str, job: "dict[str, Any]", candidates: "list[rounds.Candidate]"
    ) -> None:
        self.state = state
        self.work = work
        self.job = job
        self.candidates = candidates
        self.speeds = [0.0] * len(candidates)

    def count_all(self, index: int) -> None:
        """Everything of one candidate on an emulated board, where no clock is looked at."""
        self.golden(index)
        self.evaluate(index)
        for round_index in range(self.job["rounds"]):
            if not self.candidates[index].failed:
                self.round(index, round_index)

    def is_wide(self, index: int) -> bool:
        """Does a candidate that runs need more rounds for the interval that the profile asks for?"""
        candidate = self.candidates[index]
        medians = [entry["p50_ns"] for entry in candidate.record["rounds"]]
        return not candidate.failed and timing.is_wide(medians, float(self.job["profile"]["ci_half_width"]))

    def golden(self, index: int) -> None:
        """Check the candidate against its golden outputs; on an emulated board against some of them."""
        candidate = self.candidates[index]
        n, inputs = candidate.n, candidate.golden_inputs
        with open(candidate.golden_outputs, "rb") as stream:
            expected = stream.read()
        if self.job["mode"] == "counted" and n > EMULATED_GOLDEN_ROWS:
            rows = [row * n // EMULATED_GOLDEN_ROWS for row in range(EMULATED_GOLDEN_ROWS)]
            with open(inputs, "rb") as stream:
                some = blocks.take_rows(stream.read(), candidate.document["inputs"], n, rows)
            inputs = os.path.join(candidate.work, "golden.bin")
            store.write_atomic(inputs, some)
            expected = blocks.take_rows(expected, candidate.document["outputs"], n, rows)
            n = EMULATED_GOLDEN_ROWS
        outputs = candidate.outputs(inputs, n, GOLDEN_LIMIT_S, "golden check")
        if outputs is None:
            return
        data, seconds = outputs
        verdict = blocks.judge(candidate.tolerance, expected, data, candidate.document["outputs"], n)
        reason = verdict.pop("reason")
        candidate.record["golden"] = verdict
        if not verdict["passed"]:
            candidate.fail("E_ACCURACY", "golden check: " + reason)
        self.speeds[index] = seconds / max(1, n)

    def evaluate(self, index: int) -> None:
        """Run the candidate over the evaluation inputs and keep its outputs."""
        candidate, evaluation = self.candidates[index], self.job["candidates"][index]["evaluation"]
        if not evaluation or candidate.failed:
            return
        inputs = os.path.join(self.state, "blobs", store.digest_name(evaluation["sha256"]))
        n = int(evaluation["n"])
        outputs = candidate.outputs(inputs, n, 120 + 3 * self.speeds[index] * n, "evaluation")
        if outputs is None:
            return
        name = f"c{index}-evaluation.bin"
        store.write_atomic(os.path.join(self.work, name), outputs[0])
        digest = hashlib.sha256(outputs[0]).hexdigest()
        candidate.record["evaluation"] = {"n": n, "file": name, "sha256": digest}
        candidate.record["raw"].append(name)

    def round(self, index: int, round_index: int) -> None:
        """One round in a fresh process, timed or counted."""
        candidate, job = self.candidates[index], self.job
        counted = job["mode"] == "counted"
        name = "c{}-round{}.{}".format(index, round_index, "jsonl" if counted else "bin")
        path = os.path.join(self.work, name)
        try:
            if counted:
                # Both counted rounds take the same inputs: they show repeatability.
                record = candidate.counted(job["seed"], job["counting_plugin"], path, GOLDEN_LIMIT_S)
            else:
                record = candidate.timed(job["seed"] + round_index, job["profile"], path, self.speeds[index])
        except rounds.RoundFailed as problem:
            candidate.fail(problem.code, f"round {round_index}: {problem.reason}")
            return
        record.update({"index": round_index, "file": name})
        candidate.record["rounds"].append(record)
        candidate.record["raw"].append(name)


def _write_result(folder: str, work: str, result: "dict[str, Any]", raw: "list[str]") -> "dict[str, Any]":
    path = os.path.join(folder, "result.zip")
    temporary = path + ".part"
    with open(temporary, "wb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in raw:
                archive.write(os.path.join(work, name), name)
            archive.writestr("result.json", json.dumps(result, sort_keys=True, allow_nan=False))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    shutil.rmtree(work, ignore_errors=True)
    return {"sha256": store.sha256_file(path), "bytes": os.path.getsize(path)}
