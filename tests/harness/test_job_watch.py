"""How the end of a job is waited for: on the board, by the lock that the job's process holds."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgesdk.harness import job
from edgesdk.harness.board import Board
from edgesdk.harness.local import LocalTransport
from edgesdk.harness.session import Session
from edgesdk.harness.transport import Completed

IDENTITY = "a" * 64
BOARD = Board("b", "host")


def status(state: str, beat: int, **more: Any) -> dict[str, Any]:
    """A status as a worker writes it."""
    return {"job": IDENTITY, "state": state, "beat": beat, "step": "s", "done": 0, "total": 1, **more}


class Scripted:
    """A transport whose status commands give these answers, one after another; `look` gives `looked`."""

    def __init__(self, answers: list[tuple[dict[str, Any], bytes]], looked: dict[str, Any]) -> None:
        self.answers = answers
        self.looked = looked
        self.looks = 0

    def run(self, argv: Sequence[str], deadline_s: float, input: Any = None, env: Any = None) -> Completed:
        if argv[0] == "sh":
            found, error = self.answers.pop(0)
            return Completed(0, json.dumps(found).encode(), error)
        self.looks += 1
        return Completed(0, json.dumps(self.looked).encode(), b"")

    def put(self, local: Path, remote: str, offset: int = 0) -> None:
        raise AssertionError(remote)

    def get(self, remote: str, local: Path, limit: int = 1 << 30) -> None:
        raise AssertionError(remote)

    def close(self) -> None:
        """Nothing is open."""


def watch(transport: Scripted, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    """Watch a job over a scripted board, without pauses; the last status, and the steps that were told."""
    monkeypatch.setattr(job, "FIRST_WAIT_SECONDS", 0.0)
    steps: list[str] = []
    with Session(BOARD, connect=lambda _: transport) as session:
        found = job._watch(session, "worker", [], IDENTITY, status("running", 1), lambda s, *_: steps.append(s))
    return found, steps


def test_a_job_that_ends_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statuses until the final one; the worker is not started for them."""
    transport = Scripted([(status("running", 2, step="t"), b""), (status("done", 3), b"ended\n")], {})
    found, steps = watch(transport, monkeypatch)
    assert found["state"] == "done" and steps == ["s", "t"] and transport.looks == 0


def test_a_process_that_is_gone_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is free and no beat came: the worker says what became of the job, long before the beat is missed."""
    gone = (status("running", 2), b"ended\n")
    transport = Scripted([gone, gone], status("lost", 2))
    found, _ = watch(transport, monkeypatch)
    assert found["state"] == "lost" and transport.looks == 1


def test_a_status_of_another_job_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither ends the job nor tells a step."""
    other = status("done", 9, step="x") | {"job": "b" * 64}
    transport = Scripted([(other, b""), (status("failed", 3), b"")], {})
    found, steps = watch(transport, monkeypatch)
    assert found["state"] == "failed" and steps == ["s"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a running job, below the home of the local transport."""
    monkeypatch.setenv("HOME", str(tmp_path))
    new = tmp_path / "job"
    new.mkdir()
    (new / "status.json").write_text(json.dumps(status("running", 1)))
    return new


def test_the_end_of_the_process_wakes_who_waits(folder: Path) -> None:
    """The command waits for the lock, and then gives the final status."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    found, ended = job._read_status(LocalTransport(), "job", IDENTITY, 0.1)
    assert found["state"] == "running" and not ended

    def end() -> None:
        (folder / "status.json").write_text(json.dumps(status("done", 2)))
        os.close(lock)

    timer = threading.Timer(0.5, end)
    timer.start()
    found, ended = job._read_status(LocalTransport(), "job", IDENTITY, 25)
    timer.join()
    assert found["state"] == "done" and ended


def test_a_board_without_flock_answers_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The status as it is; the harness makes the pause itself."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sh", "cat"):
        path = next(Path(entry) / name for entry in os.environ["PATH"].split(":") if (Path(entry) / name).exists())
        (commands / name).symlink_to(path.resolve())
    monkeypatch.setenv("PATH", str(commands))
    found, ended = job._read_status(LocalTransport(), "job", IDENTITY, 25)
    assert found["state"] == "running" and not ended


def test_a_job_without_a_folder_has_no_status(folder: Path) -> None:
    """No status, and no word of an end."""
    assert job._read_status(LocalTransport(), "other", IDENTITY, 0.1) == ({}, False)
