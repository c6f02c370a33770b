"""Boards that answer with junk: measuring ends with an error of EdgeSDK or a document, never with an internal error."""

from __future__ import annotations

import copy
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness_artifacts import runner, runner_artifact
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk.errors import BoardError, Corrupt, EdgeSDKError
from edgesdk.files import sha256_bytes
from edgesdk.harness import answers
from edgesdk.harness.board import Board
from edgesdk.harness.measure import load_profile, measure, probe, verify_measurement
from edgesdk.harness.session import Session
from edgesdk.harness.text import plain, plain_line
from edgesdk.harness.transport import Completed
from edgesdk.harness.worker import facts
from edgesdk.targets.target import Target

QUICK = load_profile("quick")
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from(["\x1b[2J", "\ud800", "f" * 64, "done", 1 << 80, -1, 1e308, "../x", "E_X", float("nan")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=4,
)
QUIET = settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class FakeBoard:
    """A transport whose worker answers what the test wants; deployment finds everything in place."""

    def __init__(self, answer: Callable[[str], bytes], result: bytes = b"") -> None:
        self.answer = answer
        self.result = result

    def run(self, argv: Sequence[str], deadline_s: float, input: Any = None, env: Any = None) -> Completed:
        if argv[3:4] == ["status"]:
            return Completed(0, self.answer("status"), b"")
        if argv[0] == "sh":
            lines = "".join(f"{name} whole 1\n" for name in argv[5:])
            return Completed(0, lines.encode(), b"")
        return Completed(0, self.answer(argv[2]) if argv[0] != "rm" else b"", b"\x1b[31mboo")

    def put(self, local: Path, remote: str, offset: int = 0) -> None:
        """Takes everything."""

    def get(self, remote: str, local: Path, limit: int = 1 << 30) -> None:
        local.write_bytes(self.result)

    def close(self) -> None:
        """Nothing is open."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a document, itself too."""
    found = [path]
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        found += places(entry, (*path, key))
    return found


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return value
    new = copy.deepcopy(document)
    inside = new
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return new


@given(st.data())
@QUIET
def test_probe_of_a_board_with_junk_facts(data: st.DataObject) -> None:
    """Facts with a value of another kind anywhere, or no JSON at all: plain facts or an error of EdgeSDK."""
    real = facts.collect()
    junk = changed(real, data.draw(st.sampled_from(places(real))), data.draw(JUNK))
    text = json.dumps(junk).encode()
    line = data.draw(st.sampled_from([text, text[: len(text) // 2], b"\xff\xfe", b"[" * 5000, b"", b"null"]))
    with pytest.MonkeyPatch.context() as patched:
        board = Board("b", "host")
        patched.setattr(
            "edgesdk.harness.facts.Session", lambda board: Session(board, connect=lambda _: FakeBoard(lambda _: line))
        )
        try:
            found = probe(board)
        except EdgeSDKError as problem:
            assert str(problem).replace("\n  try: ", "").isprintable()
            return
    assert set(found) == set(real)
    assert json.dumps(found, allow_nan=False, ensure_ascii=False).isprintable()


class Recorded:
    """One real job: its request's id, its status and its result archive, to be changed and sent again."""

    def __init__(self, folder: Path, board: Board, target: Target, patched: pytest.MonkeyPatch) -> None:
        from edgesdk.harness import job

        self.artifact = runner_artifact(folder / "a", runner())
        self.target = target
        self.folder = folder
        kept: dict[str, Any] = {}
        original = job.read_result

        def keep(archive: Path, document: Any, raw: Path) -> Any:
            kept.update(job=dict(document), data=archive.read_bytes())
            return original(archive, document, raw)

        patched.setattr(job, "read_result", keep)
        (self.document,) = measure(
            board, target, [self.artifact], evaluation=None, profile=QUICK, seed=0, workdir=folder / "first"
        )
        patched.setattr(job, "read_result", original)
        with zipfile.ZipFile(io.BytesIO(kept["data"])) as members:
            self.members = {name: members.read(name) for name in members.namelist()}
        self.result = json.loads(self.members.pop("result.json"))
        self.identity = self.result["job"]

    def archive(self, result: Any) -> bytes:
        """A result file with another document."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as members:
            for name, data in self.members.items():
                members.writestr(name, data)
            members.writestr("result.json", json.dumps(result))
        return stream.getvalue()

    def status(self, data: bytes) -> dict[str, Any]:
        """The final status of the job."""
        return {
            "job": self.identity, "state": "done", "beat": 7, "step": "result", "done": 4, "total": 4, "error": None,
            "sha256": sha256_bytes(data), "bytes": len(data),
        }

    def measure(self, answer: Callable[[str], bytes], data: bytes, progress: Any = None) -> dict[str, Any]:
        """Measure on a board that gives these answers and this result file."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("edgesdk.harness.job.job_identity", lambda workdir, request: self.identity)
            patched.setattr("edgesdk.harness.job.time.sleep", lambda seconds: None)
            patched.setattr(
                "edgesdk.harness.measure.Session",
                lambda board: Session(board, connect=lambda _: FakeBoard(answer, data)),
            )
            (document,) = measure(
                Board("host", "host"), self.target, [self.artifact], evaluation=None, profile=QUICK, seed=0,
                workdir=self.folder / "work", progress=progress or (lambda step, done, total: None),
            )
        return document


@pytest.fixture
def recorded(host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(tmp_path, host, target, monkeypatch)


FACTS = json.dumps({"machine": "x86_64", "cpus": 2}).encode()


@given(st.data())
@QUIET
def test_result_with_junk_anywhere(recorded: Recorded, data: st.DataObject) -> None:
    """A value of another kind anywhere in the result: `Corrupt`, or a document that verifies."""
    path = data.draw(st.sampled_from(places(recorded.result)))
    content = recorded.archive(changed(recorded.result, path, data.draw(JUNK)))
    status = json.dumps(recorded.status(content)).encode()
    try:
        document = recorded.measure(lambda command: FACTS if command == "facts" else status, content)
    except Corrupt as problem:
        assert str(problem).isprintable()
        return
    assert verify_measurement(recorded.folder / "work" / document["artifact"])["id"] == document["id"]
    assert json.dumps(document["reasons"], ensure_ascii=False).isprintable()


@given(st.data())
@QUIET
def test_status_with_junk_anywhere(recorded: Recorded, data: st.DataObject) -> None:
    """A status that does not fit is an error of the board, never one of ours; steps are printable."""
    content = recorded.archive(recorded.result)
    good = recorded.status(content)
    junk = changed(good, data.draw(st.sampled_from(places(good))), data.draw(JUNK))
    # What comes after the first answer is right, so that the job ends.
    lines = [json.dumps(junk).encode()]

    def answer(command: str) -> bytes:
        return FACTS if command == "facts" else lines.pop() if lines else json.dumps(good).encode()

    steps: list[str] = []
    try:
        recorded.measure(answer, content, lambda step, done, total: steps.append(step))
    except BoardError as problem:
        assert str(problem).replace("\n  try: ", "").isprintable()
    assert all(step.isprintable() for step in steps)


@given(st.binary(max_size=200), st.integers(0, 5000))
@QUIET
def test_result_file_with_junk_bytes(recorded: Recorded, junk: bytes, at: int) -> None:
    """Bytes of the zip itself overwritten, its digest right: `Corrupt`, or what it said before."""
    whole = recorded.archive(recorded.result)
    at %= len(whole)
    content = whole[:at] + junk + whole[at + len(junk) :]
    status = json.dumps(recorded.status(content)).encode()
    try:
        document = recorded.measure(lambda command: FACTS if command == "facts" else status, content)
    except Corrupt:
        return
    assert document["reasons"] == recorded.document["reasons"]


def test_escape_sequences_do_not_reach_the_terminal(recorded: Recorded) -> None:
    """Text of the board: reasons, steps and error messages are written as escapes."""
    result = copy.deepcopy(recorded.result)
    result["candidates"][0]["reasons"] = [{"code": "E_CRASH", "text": "exit 1: \x1b]0;owned\x07\r\u202e"}]
    content = recorded.archive(result)
    status = json.dumps(recorded.status(content)).encode()
    document = recorded.measure(lambda command: FACTS if command == "facts" else status, content)
    assert document["reasons"] == [r"E_CRASH: exit 1: \x1b]0;owned\x07\r\u202e"]
    with pytest.raises(BoardError) as caught:
        recorded.measure(lambda command: b"", content)
    assert r"\x1b[31mboo" in caught.value.message and "\x1b" not in caught.value.message


@given(st.text())
def test_plain_text_is_printable_and_otherwise_the_same(text: str) -> None:
    """Printable text stays as it is; the rest is escaped; lines become one."""
    assert plain(text).isprintable() and plain_line(text).isprintable()
    assert plain(text) == text or not text.isprintable()
    assert len(plain("x" * 50, 10)) == 11


def test_checks_keep_every_fact_that_the_worker_collects() -> None:
    """A fact that is added to the worker must be added to the check, or it would be dropped."""
    found = facts.collect()
    checked = answers.check(answers.Facts, found, "here")
    assert {**checked, "power": {**checked["power"], **found["power"]}} == checked
    assert {**checked, "power": None} == {**found, "power": None}
    assert set(answers.Snapshot.model_fields) == set(facts.snapshot())
