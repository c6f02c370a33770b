"""A connection to a board that comes back: opens the transport, and opens it again when it was lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from edgesdk.errors import Deadline, Unreachable
from edgesdk.harness.board import Board
from edgesdk.harness.local import LocalTransport
from edgesdk.harness.ssh import SshTransport
from edgesdk.harness.transport import Transport

Result = TypeVar("Result")
PATIENCE_SECONDS = 600.0
OVERDUE_TRIES = 3


def open_transport(board: Board) -> Transport:
    """The transport of a board: SSH where it has a host, else this machine.

    Raises:
        ConfigError, HostKey, Unreachable: see `SshTransport`.
    """
    return LocalTransport(board.name) if board.host is None else SshTransport(board)


class Session:
    """Runs steps over a transport. A step is a function of the transport that may be run again when it was cut.

    The first connection fails at once; later ones are tried for `patience` seconds, 1, 2, 4 … 60 s apart. `keep` holds
    digests of files on the board that are needed as long as the session lasts.
    """

    def __init__(
        self, board: Board, connect: Callable[[Board], Transport] = open_transport, patience: float = PATIENCE_SECONDS
    ) -> None:
        self.board = board
        self.patience = patience
        self.keep: set[str] = set()
        self._connect = connect
        self._transport: Transport | None = connect(board)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def once(self, action: Callable[[Transport], Result]) -> Result:
        """Run one step over the connection that there is, without waiting for another.

        Raises:
            Unreachable: there is no connection. Everything else that the step raises.
        """
        if self._transport is None:
            raise Unreachable(f"{self.board.name}: not connected")
        return action(self._transport)

    def step(self, action: Callable[[Transport], Result]) -> Result:
        """Run one step, reconnecting as long as patience lasts.

        Raises:
            Unreachable: the board stayed away. Deadline: the step was overdue three times.
            Everything else that the step raises.
        """
        lost_since: float | None = None
        pause = 1.0
        overdue = 0
        while True:
            try:
                if self._transport is None:
                    self._transport = self._connect(self.board)
                return action(self._transport)
            except Deadline:
                overdue += 1
                self.close()
                if overdue >= OVERDUE_TRIES:
                    raise
            except Unreachable:
                self.close()
                now = time.monotonic()
                lost_since = lost_since or now
                if now + pause - lost_since > self.patience:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 60.0)
