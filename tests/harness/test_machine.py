"""Boards of one machine take turns where something is timed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesdk.harness.worker import codes, machine


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of the test's own."""
    path = tmp_path / "timing"
    monkeypatch.setattr(machine, "LOCK", str(path))
    monkeypatch.setattr(machine, "POLL_SECONDS", 0.01)
    yield path


def silent() -> None:
    """No heartbeat."""


def test_timed_work_is_alone() -> None:
    """Of ten that want the machine at once, one has it at a time."""
    inside: list[int] = []
    most = [0]

    def hold() -> None:
        with machine.turn(silent):
            inside.append(1)
            most[0] = max(most[0], len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_holder_that_is_killed_frees_the_machine() -> None:
    """The kernel gives the lock back."""
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        with machine.turn(silent):
            os.write(write, b"x")
            time.sleep(60)
        os._exit(0)
    os.close(write)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    os.kill(child, 9)
    os.waitpid(child, 0)
    start = time.monotonic()
    with machine.turn(silent):
        assert time.monotonic() - start < machine.WAIT_SECONDS / 10


def test_waiting_ticks_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat goes on while waiting, and a holder that hangs delays a board but does not stop it."""
    monkeypatch.setattr(machine, "WAIT_SECONDS", 1.5)
    beats: list[int] = []
    with machine.turn(silent) as first, machine.turn(lambda: beats.append(1)) as second:
        assert len(beats) == 1 and first.kind == machine.HELD
        assert second.kind == machine.OVERDUE and second.waited_s >= 1.5
    assert codes.environment_codes({"turn": second.kind}) == [codes.E_SHARED_MACHINE]
    assert codes.environment_codes({"turn": first.kind}) == []


def test_all_users_may_open_the_lock(lock: Path) -> None:
    """Whatever the umask of who came first."""
    before = os.umask(0o077)
    try:
        with machine.turn(silent):
            assert lock.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_a_machine_without_such_a_file_just_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, or a link somebody laid there: nothing is waited for, nothing is written through it."""
    monkeypatch.setattr(machine, "LOCK", str(tmp_path / "none" / "timing"))
    with machine.turn(silent) as turn:
        assert turn.kind == machine.NO_LOCK
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    monkeypatch.setattr(machine, "LOCK", str(tmp_path / "link"))
    with machine.turn(silent):
        assert not (tmp_path / "victim").exists()
