"""Boards of one machine take turns: alone where something is timed, together otherwise."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesdk.harness.worker import machine


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of the test's own."""
    path = tmp_path / "timing"
    monkeypatch.setattr(machine, "LOCK", str(path))
    monkeypatch.setattr(machine, "POLL_SECONDS", 0.01)
    yield path


def silent() -> None:
    """No heartbeat."""


def together(kinds: list[bool], seconds: float = 0.05) -> int:
    """Holders of these kinds (alone?) start at once; the most of them that were inside at the same time."""
    inside: list[int] = []
    most = [0]

    def hold(alone: bool) -> None:
        with machine.turn(silent, alone):
            inside.append(1)
            most[0] = max(most[0], len(inside))
            time.sleep(seconds)
            inside.pop()

    threads = [threading.Thread(target=hold, args=(alone,)) for alone in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most[0]


def test_timed_work_is_alone() -> None:
    """Of ten that are timed, one at a time."""
    assert together([True] * 10, 0.01) == 1


def test_other_work_waits_for_timed_work_only() -> None:
    """Work that is not timed runs side by side, and never beside a timing."""
    assert together([False] * 4, 0.5) > 1
    with machine.turn(silent):
        done = threading.Event()

        def work() -> None:
            with machine.turn(silent, alone=False):
                done.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert not done.wait(0.2)
    assert done.wait(10)
    thread.join()


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
    with machine.turn(silent), machine.turn(lambda: beats.append(1)):
        assert len(beats) == 1


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
    with machine.turn(silent):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    monkeypatch.setattr(machine, "LOCK", str(tmp_path / "link"))
    with machine.turn(silent):
        assert not (tmp_path / "victim").exists()
