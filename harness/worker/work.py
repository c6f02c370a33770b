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

from edgesdk.harness.worker import blocks, facts, rounds, store

Progress = Callable[[str, int, int], None]
GOLDEN_LIMIT_S = 900.0


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


def do_job(state: str, folder: str, job: "dict[str, Any]", progress: Progress) -> "dict[str, Any]":
    """Run the job and write `result.zip` into `folder`.

    Returns:
        {"sha256", "bytes"} of the result file.

    Raises:
        JobFailed, OSError: faults of the board.
    """
    work = os.path.join(folder, "work")
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    raw = []  # type: list[str]
    before = facts.snapshot()
    specs = job["candidates"]
    total = len(specs) * (2 + (job["rounds"] if job["mode"] != "none" else 0))
    done = [0]
    step = ["start"]

    def tick() -> None:
        progress(step[0], done[0], total)

    def enter(name: str) -> None:
        step[0] = name
        tick()

    candidates = []
    speeds = []
    for index, spec in enumerate(specs):
        _check_blobs(state, spec)
        artifact = store.lay_out_artifact(state, spec["artifact"], spec["files"])
        candidate = rounds.Candidate(artifact, spec, os.path.join(work, f"c{index}"), tick)
        candidates.append(candidate)
        enter("golden " + spec["name"])
        speeds.append(_golden(candidate))
        done[0] += 1
        enter("evaluate " + spec["name"])
        if spec["evaluation"] and not candidate.failed:
            raw += _evaluate(state, candidate, spec["evaluation"], index, work, speeds[-1])
        done[0] += 1
    for round_index in range(job["rounds"] if job["mode"] != "none" else 0):
        order = list(range(len(candidates)))
        random.Random(job["seed"] * 1000003 + round_index).shuffle(order)
        for index in order:
            candidate = candidates[index]
            if not candidate.failed:
                enter("round {} {}".format(round_index + 1, specs[index]["name"]))
                raw += _round(candidate, job, round_index, index, work, speeds[index])
            done[0] += 1
    enter("result")
    result = {
        "format": "edgesdk.job-result", "version": 1, "job": job["id"], "before": before, "after": facts.snapshot(),
        "candidates": [candidate.record for candidate in candidates],
    }
    return _write_result(folder, work, result, raw)


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


def _golden(candidate: rounds.Candidate) -> float:
    """Check the candidate against its golden outputs; returns seconds per inference, start included."""
    outputs = candidate.outputs(candidate.golden_inputs, candidate.n, GOLDEN_LIMIT_S, "golden check")
    if outputs is None:
        return 0.0
    data, seconds = outputs
    with open(candidate.golden_outputs, "rb") as stream:
        expected = stream.read()
    tolerance = candidate.tolerance
    verdict = blocks.compare(
        tolerance["kind"], float(tolerance["limit"]), expected, data, candidate.document["outputs"], candidate.n
    )
    reason = verdict.pop("reason")
    verdict.update({"kind": tolerance["kind"], "limit": float(tolerance["limit"]), "n": candidate.n})
    candidate.record["golden"] = verdict
    if not verdict["passed"]:
        candidate.fail("E_ACCURACY", "golden check: " + reason)
    return seconds / max(1, candidate.n)


def _evaluate(
    state: str, candidate: rounds.Candidate, evaluation: "dict[str, Any]", index: int, work: str, speed: float
) -> "list[str]":
    inputs = os.path.join(state, "blobs", store.digest_name(evaluation["sha256"]))
    n = int(evaluation["n"])
    outputs = candidate.outputs(inputs, n, 120 + 3 * speed * n, "evaluation")
    if outputs is None:
        return []
    name = f"c{index}-evaluation.bin"
    store.write_atomic(os.path.join(work, name), outputs[0])
    digest = hashlib.sha256(outputs[0]).hexdigest()
    candidate.record["evaluation"] = {"n": n, "file": name, "sha256": digest}
    return [name]


def _round(
    candidate: rounds.Candidate, job: "dict[str, Any]", round_index: int, index: int, work: str, speed: float
) -> "list[str]":
    counted = job["mode"] == "counted"
    name = "c{}-round{}.{}".format(index, round_index, "jsonl" if counted else "bin")
    path = os.path.join(work, name)
    seed = job["seed"] + round_index
    try:
        if counted:
            # Both counted rounds take the same inputs: they show repeatability.
            record = candidate.counted(job["seed"], job["counting_plugin"], path, GOLDEN_LIMIT_S)
        else:
            record = candidate.timed(seed, job["profile"], path, speed)
    except rounds.RoundFailed as problem:
        candidate.fail(problem.code, f"round {round_index}: {problem.reason}")
        return []
    record.update({"index": round_index, "file": name})
    candidate.record["rounds"].append(record)
    return [name]


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
