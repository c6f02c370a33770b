"""Documents that come from boards, checked where they enter. A board may be broken or hostile: everything is bounded,
typed and finite here, text is made printable, and whatever does not fit is `Corrupt`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesdk.errors import Corrupt
from edgesdk.harness.text import plain

# Patterns of pydantic are those of Rust: `$` is the very end.
MOST = 1 << 62
TEXT_LIMIT = 4096
DEPTH = 8

Whole = Annotated[int, Field(ge=0, lt=MOST)]
Positive = Annotated[int, Field(ge=1, lt=MOST)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=2 * TEXT_LIMIT)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Member = Annotated[str, Field(pattern=r"^c[0-9]{1,6}-[a-z0-9]{1,40}\.(bin|jsonl)$")]


class _Answer(BaseModel):
    # Unknown keys are dropped: a document holds what this EdgeSDK knows, nothing that a board made up.
    model_config = ConfigDict(strict=True, extra="ignore")


class Snapshot(_Answer):
    """`harness/worker/facts.py`, `snapshot`."""

    loadavg1: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    temperature_c: Number | None = None
    mem_available_bytes: Whole | None = None
    boot_id: Text | None = None
    governor: Text | None = None
    throttle_count: Whole | None = None


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
    mem_total_bytes: Whole | None = None
    python: Text | None = None
    rapl: Annotated[list[Text], Field(max_length=1024)] = []
    runtimes: Annotated[dict[Text, Text | None], Field(max_length=64)] = {}


class _Error(_Answer):
    kind: Text
    message: Text


class Status(_Answer):
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


class _Golden(_Answer):
    passed: bool
    kind: Text
    value: Number | None
    limit: Number
    labels_equal: Number | None = None
    n: Positive


class _Evaluation(_Answer):
    n: Positive
    file: Member
    sha256: Digest


class _WarmUp(_Answer):
    iterations: Whole
    seconds: Number


class _CountedRound(_Answer):
    index: Annotated[int, Field(ge=0, lt=1000)]
    file: Member
    sha256: Digest
    count: Positive


class _TimedRound(_CountedRound):
    batch: Positive
    p50_ns: Whole
    cold_load_ns: Whole
    first_inference_ns: Whole
    peak_rss_bytes: Whole | None
    cpu_ns: Whole | None
    other_cpu: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    warmup: _WarmUp | None = None
    steady: bool


class _Reason(_Answer):
    code: Annotated[str, Field(pattern=r"^E_[A-Z_]{1,30}$")]
    text: Text


class _Candidate(_Answer):
    artifact: Digest
    golden: _Golden | None
    evaluation: _Evaluation | None
    reasons: Annotated[list[_Reason], Field(max_length=100)]


class _TimedCandidate(_Candidate):
    rounds: list[_TimedRound]


class _CountedCandidate(_Candidate):
    rounds: list[_CountedRound]


class _Result(_Answer):
    format: Literal["edgesdk.job-result"]
    version: Literal[1]
    job: Digest
    before: Snapshot
    after: Snapshot


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
        asked = spec["evaluation"]["n"] if spec["evaluation"] else None
        if record["evaluation"] is not None and record["evaluation"]["n"] != asked:
            got = record["evaluation"]["n"]
            raise Corrupt(f"{where}: malformed: {name} has an evaluation of {got} inputs, asked for {asked}")
        golden = record["golden"]
        if record["rounds"] and golden is None:
            raise Corrupt(f"{where}: malformed: {name} has rounds without a golden check")
        least = 0 if request["mode"] == "none" else request["rounds"]
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
