"""Hold a board for one measurement: its lease, and quarantine for the faults that a person has to repair."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from edgesdk.errors import PowerError, ReadOnly, Rebooting
from edgesdk.harness.board import Board
from edgesdk.harness.leases import Lease, Leases

# A board with these is not asked again: a worn card, a plug that feeds something else, one restart after another.
SET_ASIDE = (ReadOnly, PowerError, Rebooting)


@contextlib.contextmanager
def reserved(board: Board, wait_s: float) -> Iterator[Lease]:
    """The lease of a board while the block runs; given back on every way out, SIGTERM too (it comes as an interrupt).

    Raises:
        Busy, Quarantined, ConfigError: see `Leases.acquire`.
    """
    leases = Leases()
    with terminated_as_interrupt(), leases.acquire(board, wait_s) as lease:
        try:
            yield lease
        except SET_ASIDE as problem:
            # This machine and emulated boards (whose ports others get later) are not set aside.
            if board.host is not None and not board.emulated:
                leases.quarantine(board, problem.message)
            raise


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM, as CI sends it, raises KeyboardInterrupt in the block as Ctrl-C does: what is held is given back.

    Only in the main thread, and only where nobody handles SIGTERM already.
    """
    usual = threading.current_thread() is threading.main_thread()
    if not usual or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the way out must not be interrupted again
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
