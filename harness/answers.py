"""Documents that come from boards, checked where they enter. A board may be broken or hostile: everything is bounded,
typed and finite here, text is made printable, and whatever does not fit is `Corrupt`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, Field, ValidationError

from edgesdk.errors import Corrupt
from edgesdk.harness.answer_types import (
    TEXT_LIMIT,
    Answer,
    Digest,
    Environment,
    Fault,
    Member,
    Memory,
    Number,
    Positive,
    Start,
    Text,
    Whole,
)
from edgesdk.harness.text import plain
from edgesdk.harness.worker.traits import traits_of

DEPTH = 8


class Snapshot(Answer):
    """`harness/worker/facts.py`, `snapshot`."""

    loadavg1: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    temperature_c: Number | None = None
    mem_available_bytes: Whole | None = None
    swap_used_bytes: Whole | None = None
    boot_id: Text | None = None
    uptime_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    governor: Text | None = None
    power_mode: Text | None = None
    throttle_count: Whole | None = None
    throttled: Whole | None = None
    wall_clock_s: Whole | None = None
    gpu_load: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    clock_synchronized: bool | None = None


class Power(Answer):
    """`harness/worker/sensors.py`, `describe`."""

    sensor: Text | None
    reason: Text = ""
    boundary: Text | None = None
    rails: Annotated[list[Text], Field(max_length=64)] = []
    total: Annotated[list[Text], Field(max_length=64)] = []
    unit: Text | None = None
    period_ns: Whole | None = None


class Facts(Snapshot):
    """`harness/worker/facts.py`, `collect`."""

    machine: Text | None = None
    kernel: Text | None = None
    cpus: Positive | None = None
    cpu_model: Text | None = None
    cpu_part: Text | None = None
    cpu_features: Annotated[list[Text], Field(max_length=4096)] = []
    board_model: Text | None = None
    serial: Text | None = None
    machine_id: Text | None = None
    emulated: bool = False
    memory_cgroup: bool | None = None
    jetson_release: Text | None = None
    command_line_sha256: Digest | None = None
    firmware: Text | None = None
    linger: bool | None = None
    libc: Text | None = None
    mem_total_bytes: Whole | None = None
    python: Text | None = None
    compiler: Text | None = None
    rapl: Annotated[list[Text], Field(max_length=1024)] = []
    power: Power | None = None
    runtimes: Annotated[dict[Text, Text | None], Field(max_length=64)] = {}


class _Error(Answer):
    kind: Text
    message: Text


class Status(Answer):
    """`harness/worker/jobs.py`, `look`; the digest and the size are those of the result file."""

    job: Text
    state: Literal["starting", "waiting", "running", "done", "failed", "lost", "unknown"]
    beat: Whole | None = None
    step: Text = ""
    done: Whole = 0
    total: Whole = 0
    error: _Error | None = None
    sha256: Digest | None = None
    bytes: Whole | None = None


class _Golden(Answer):
    passed: bool
    kind: Text
    value: Number | None
    limit: Number
    labels_equal: Number | None = None
    noise_db: Number | None = None
    n: Positive


class _Evaluation(Answer):
    n: Positive
    file: Member
    sha256: Digest


class _WarmUp(Answer):
    iterations: Whole
    seconds: Number


class _CountedRound(Answer):
    index: Annotated[int, Field(ge=0, lt=1000)]
    file: Member
    sha256: Digest
    count: Positive


class _TimedRound(_CountedRound):
    batch: Positive
    p50_ns: Whole
    cold_load_ns: Whole | None
    first_inference_ns: Whole | None
    peak_rss_bytes: Whole | None
    cpu_ns: Whole | None
    other_cpu: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    warmup: _WarmUp | None = None
    steady: bool
    attempt: Annotated[int, Field(ge=0, lt=10)] = 0
    start: Annotated[int, Field(ge=0, lt=1000)] = 0
    warm_load_ns: Annotated[list[Whole], Field(max_length=100)] = []
    memory: Memory = Memory()
    environment: Environment = Environment()


class _Energy(Answer):
    """The raw file of an energy run, or why there is none."""

    file: Member | None = None
    sha256: Digest | None = None
    reason: Text = ""


class _Candidate(Answer):
    artifact: Digest
    built: Text | None = None
    energy: _Energy | None = None
    golden: _Golden | None
    evaluation: _Evaluation | None
    reasons: Annotated[list[Fault], Field(max_length=100)]


class _TimedCandidate(_Candidate):
    rounds: list[_TimedRound]
    rejected: Annotated[list[_TimedRound], Field(max_length=1000)] = []


class _CountedCandidate(_Candidate):
    rounds: list[_CountedRound]
    rejected: Annotated[list[_CountedRound], Field(max_length=0)] = []


class _Result(Answer):
    format: Literal["edgesdk.job-result"]
    version: Literal[1]
    job: Digest
    before: Snapshot
    after: Snapshot
    starts: Annotated[list[Start], Field(max_length=1000)] = []
    ready: Annotated[list[Fault], Field(max_length=100)] = []
    notes: Annotated[list[Text], Field(max_length=100)] = []


class _TimedResult(_Result):
    candidates: list[_TimedCandidate]


class _CountedResult(_Result):
    candidates: list[_CountedCandidate]


def parse_json(data: bytes | str, where: str) -> Any:
    """Parse JSON of a board: no NaN, no infinity, no lone surrogates, bounded depth; text is made printable.

    Raises:
        Corrupt: anything else.
    """
    try:
        return _clean(json.loads(data, parse_constant=_refuse), DEPTH)
    except (ValueError, RecursionError) as problem:
        raise Corrupt(f"{where}: malformed: not JSON of a worker: {plain(str(problem), 200)}") from problem


def check(model: type[BaseModel], document: Any, where: str) -> dict[str, Any]:
    """A parsed document as plain data with the keys of `model`.

    Raises:
        Corrupt: it does not fit; the first fault is named.
    """
    try:
        return model.model_validate(document).model_dump()
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "document"
        found = plain(repr(first.get("input")), 80)
        raise Corrupt(f"{where}: malformed: {key}: {first['msg']}, found {found}") from problem


def check_result(document: Any, request: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check a result against the job document that asked for it: same job, same candidates in the same order, no round
    and no evaluation that was not asked for, nothing left out without a reason.

    Raises:
        Corrupt: the first fault is named.
    """
    model = _CountedResult if request["mode"] == "counted" else _TimedResult
    result = check(model, document, where)
    if result["job"] != request["id"]:
        raise Corrupt(f"{where}: is the result of job {result['job']!r}, expected {request['id']}")
    wanted = [spec["artifact"] for spec in request["candidates"]]
    found = [record["artifact"] for record in result["candidates"]]
    if found != wanted:
        raise Corrupt(f"{where}: malformed: has {len(found)} candidates {found[:3]}, expected {len(wanted)}")
    most = 0 if request["mode"] == "none" else request["rounds"] + request.get("profile", {}).get("extra_rounds", 0)
    for spec, record in zip(request["candidates"], result["candidates"], strict=True):
        name = plain(str(spec["name"]), 80)
        indices = [entry["index"] for entry in record["rounds"]]
        if len(set(indices)) != len(indices) or any(index >= most for index in indices):
            raise Corrupt(f"{where}: malformed: {name} has rounds {indices[:30]}, {most} were asked for")
        if any(entry["index"] >= most for entry in record["rejected"]):
            raise Corrupt(f"{where}: malformed: {name} has rejected rounds that were not asked for")
        asked = spec["evaluation"]["n"] if spec["evaluation"] else None
        if record["evaluation"] is not None and record["evaluation"]["n"] != asked:
            got = record["evaluation"]["n"]
            raise Corrupt(f"{where}: malformed: {name} has an evaluation of {got} inputs, asked for {asked}")
        golden = record["golden"]
        if record["rounds"] and golden is None:
            raise Corrupt(f"{where}: malformed: {name} has rounds without a golden check")
        counts = request["mode"] == "timed" or (request["mode"] == "counted" and traits_of(spec["runtime"]).countable)
        least = request["rounds"] if counts else 0
        whole = golden and golden["passed"] and len(indices) >= least and (asked is None or record["evaluation"])
        if not whole and not record["reasons"]:
            raise Corrupt(f"{where}: malformed: {name} is not complete and gives no reason")
    return result


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _clean(value: Any, depth: int) -> Any:
    """The value with printable text (ValueError for what a worker never writes)."""
    if depth < 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {_clean(key, depth): _clean(entry, depth - 1) for key, entry in value.items()}
    if isinstance(value, list):
        return [_clean(entry, depth - 1) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large")
    if not isinstance(value, str):
        return value
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("text has a lone surrogate")
    return plain(value, TEXT_LIMIT)
