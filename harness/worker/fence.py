"""The last fence, on the board itself: one job at a time (flock), and no job of an older lease than one that was here.

A lease has an epoch, a number that grows with every holder of the board. `STATE/epoch` holds the largest one seen.
Exit codes: 73 the board is busy, 75 the lease is stale.
"""

import fcntl
import os

from edgesdk.harness.worker import store

BUSY, STALE = 73, 75


def largest_epoch(state: str) -> int:
    """The largest epoch that was accepted here; 0 before the first."""
    try:
        with open(os.path.join(state, "epoch")) as stream:
            return int(stream.read(32))
    except (OSError, ValueError):
        return 0


def take_lock(state: str) -> "int | None":
    """A descriptor that holds the board until it is closed or its process ends; None while another one does."""
    os.makedirs(state, exist_ok=True)
    descriptor = os.open(os.path.join(state, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def accept(state: str, epoch: "int | None") -> bool:
    """Remember an epoch, with the lock held; False where a larger one was here. None, no lease, fits while no lease
    ever came."""
    largest = largest_epoch(state)
    if epoch is None:
        return largest == 0
    if epoch < largest:
        return False
    if epoch > largest:
        store.write_atomic(os.path.join(state, "epoch"), str(epoch).encode())
    return True


def check(state: str, epoch: "int | None") -> "tuple[int, str]":
    """(exit code, words): may a holder of this epoch act on the board now?"""
    largest = largest_epoch(state)
    if epoch is not None and epoch < largest:
        return STALE, f"lease epoch {epoch} is stale: {largest} was here"
    lock = take_lock(state)
    if lock is None:
        return BUSY, "another job holds the board"
    try:
        return (0, "free") if accept(state, epoch) else (STALE, f"no lease, and one of epoch {largest} was here")
    finally:
        os.close(lock)
