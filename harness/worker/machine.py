"""Boards that share one machine take turns: what is timed on one is not timed beside another.

The machine's lock is one file in memory, which every board and every user of the machine opens; it is free when its
holders end, however they end.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

LOCK = "/dev/shm/edgesdk-timing"
WAIT_SECONDS = 600.0
POLL_SECONDS = 0.1
KINDS = HELD, OVERDUE, NO_LOCK = "held", "overdue", "no_lock"


class Turn(NamedTuple):
    """`waited_s`: seconds that the machine was waited for; `kind`: it was held, or another held it for too long, or
    there is no lock to be had, so that nobody knows who else times something here."""

    waited_s: float
    kind: str


@contextlib.contextmanager
def turn(tick: "Callable[[], None]") -> "Iterator[Turn]":
    """Hold the machine while the block runs.

    A holder that hangs must not stop a board for ever: after ten minutes the block runs all the same, and so it does
    where there is no such file to be had; the round says so (`codes`: `E_SHARED_MACHINE`, label `unserialized`).

    Args:
        tick: called about once a second while waiting (heartbeat).
    """
    lock = _open()
    start = time.monotonic()
    try:
        kind = NO_LOCK if lock is None else HELD if _wait(lock, start, tick) else OVERDUE
        yield Turn(time.monotonic() - start, kind)
    finally:
        if lock is not None:
            os.close(lock)


def _open() -> "int | None":
    """The lock's file. Without O_CREAT first: the kernel may refuse that for a file of another user in a folder that
    all may write to."""
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY):
        try:
            lock = os.open(LOCK, flags | os.O_NOFOLLOW, 0o644)
        except OSError:
            continue
        if flags & os.O_CREAT:
            os.fchmod(lock, 0o644)  # whatever the umask is
        return lock
    return None


def _wait(lock: int, start: float, tick: "Callable[[], None]") -> bool:
    """Was the lock free in time?"""
    next_tick = start + 1
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            now = time.monotonic()
        if now - start > WAIT_SECONDS:
            return False
        if now > next_tick:
            tick()
            next_tick = now + 1
        time.sleep(POLL_SECONDS)
