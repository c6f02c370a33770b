"""A board over SSH: commands and files over a shared connection (see `connection`), framed, bounded, with deadlines."""

from __future__ import annotations

import contextlib
import re
import secrets
import select
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import BinaryIO, Self

import paramiko

from edgesdk.errors import BoardError, Deadline
from edgesdk.harness.board import Board
from edgesdk.harness.connection import CONNECT_SECONDS, scan_board, shared
from edgesdk.harness.hostkeys import scan_host_key, trust
from edgesdk.harness.text import plain_line
from edgesdk.harness.transport import CHUNK, Bounded, Sink, StreamTransport, unreachable

__all__ = ["SshTransport", "scan_board", "scan_host_key", "trust"]

KILL_SECONDS = 5.0
NOISE_BYTES = 16 << 20
PROCESS = re.compile(rb"[0-9]{1,9}")
# The first line of each stream, after whatever the user's shell prints at login: a nonce and the process id.
FRAME = 'printf "\\036%s %s\\n" "$0" "$$"; printf "\\036%s %s\\n" "$0" "$$" >&2; export {}; exec "$@"'


class Frame:
    """Drops what comes before the frame line and remembers the process id that the line gives."""

    def __init__(self, sink: Sink, nonce: str) -> None:
        self.sink = sink
        self.mark = b"\x1e" + nonce.encode() + b" "
        self.process: int | None = None
        self.noise = b""
        self.dropped = 0

    def feed(self, data: bytes) -> None:
        if self.process is not None:
            self.sink.feed(data)
            return
        self.noise += data
        start = self.noise.find(self.mark)
        end = self.noise.find(b"\n", start) if start >= 0 else -1
        if end < 0:
            kept = self.noise[-CHUNK:]
            self.dropped += len(self.noise) - len(kept)
            self.noise = kept
            if self.dropped > NOISE_BYTES:
                raise BoardError(
                    f"the login shell prints without end ({self.dropped >> 20} MiB before the command)",
                    "look at ~/.bashrc and ~/.profile on the board",
                )
            return
        number = self.noise[start + len(self.mark) : end].strip()
        # A board that writes anything else gets a number that no process has: there is nothing to kill then.
        self.process = int(number) if PROCESS.fullmatch(number) else 0
        rest, self.noise = self.noise[end + 1 :], b""
        if rest:
            self.sink.feed(rest)


class Moves:
    """Severs a connection over which no byte moved for `silence_s` (None: never).

    From a thread of its own: the one that moves bytes may hang in a call that waits for the line.
    """

    def __init__(self, silence_s: float | None, sever: Callable[[], None]) -> None:
        self.silence_s = silence_s
        self.last = time.monotonic()
        self.ended = False
        self._sever = sever
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.silence_s is not None:
            self._thread = threading.Thread(target=self._look, args=(self.silence_s,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self, silence_s: float) -> None:
        while not self._done.wait(silence_s / 8):
            if time.monotonic() - self.last > silence_s:
                self.ended = True
                self._sever()
                return


class SshTransport(StreamTransport):
    """See `edgesdk.harness.transport.Transport`. Connects when it is made, or uses the connection that there is.

    Raises:
        ConfigError, HostKey, Unreachable, BoardError: see `connection.Connection`.
    """

    def __init__(self, board: Board, connect_seconds: float = CONNECT_SECONDS) -> None:
        self.board = board
        self._use = contextlib.ExitStack()
        self._connection = self._use.enter_context(shared(board, connect_seconds))
        self.where = self._connection.where

    def close(self) -> None:
        """Leave the connection; its last user ends it."""
        self._use.close()

    def stream(
        self, argv: Sequence[str], deadline_s: float, source: BinaryIO, stdout: Sink, stderr: Sink,
        env: Mapping[str, str], silence_s: float | None = None,
    ) -> int:
        end = time.monotonic() + deadline_s
        nonce = secrets.token_hex(8)
        out, error = Frame(stdout, nonce), Frame(stderr, nonce)
        variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in {"LC_ALL": "C", **env}.items())
        words = ["sh", "-c", FRAME.format(variables), nonce, *argv]
        connection = self._connection
        moves = Moves(silence_s, connection.sever)
        with moves, connection.watch(deadline_s, argv[0], 2 * KILL_SECONDS), connection.session(end) as channel:
            try:
                channel.exec_command("exec " + shlex.join(words))
                in_time = _pump(channel, source, out, error, end, moves)
                if not in_time:
                    _await_frame(channel, out, error, moves)
                    self._kill(out.process or error.process)
            except (BoardError, KeyboardInterrupt):
                self._kill(out.process or error.process)
                raise
        if moves.ended:
            raise unreachable(self.where, f"{argv[0]}: no byte moved for {silence_s:g} s")
        if not in_time:
            raise Deadline(f"{self.where}: {argv[0]} did not end within {deadline_s:g} s, killed")
        code = channel.recv_exit_status() if channel.exit_status_ready() else -1
        if code == -1 and not (channel.eof_received and connection.alive()):
            # paramiko says -1 for a lost connection and for a signal alike; only the latter ends with EOF.
            raise unreachable(self.where, f"connection lost while {argv[0]} ran")
        if out.process is None:
            text = plain_line((out.noise + error.noise)[-300:].decode("utf-8", "replace"))
            raise BoardError(
                f"{self.where}: the login shell runs no commands: {text or 'no message'}",
                "give the user a POSIX shell (chsh -s /bin/sh)",
            )
        return code

    def _kill(self, process: int | None) -> None:
        """Kill the process group of an overdue command (sshd makes the command a session of its own); a connection over
        which that cannot be done is given up, for all that use it."""
        if not process or not self._connection.alive():
            self._connection.sever()
            return
        end = time.monotonic() + KILL_SECONDS
        killed = False
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException, BoardError):
            with self._connection.session(end, spare=True) as channel:
                script = 'kill -9 -"$1" 2>/dev/null || kill -9 "$1"'
                channel.exec_command("exec " + shlex.join(["sh", "-c", script, "kill", str(process)]))
                killed = _pump(channel, None, Bounded(0), Bounded(0), end, Moves(None, self._connection.sever))
        if not killed:
            self._connection.sever()


def _await_frame(channel: paramiko.Channel, out: Frame, error: Frame, moves: Moves) -> None:
    """A slow board may not even have said which process is to be killed."""
    end = time.monotonic() + KILL_SECONDS
    while not (out.process or error.process) and time.monotonic() < end and not channel.closed:
        _pump(channel, None, out, error, time.monotonic() + 0.1, moves)


def _pump(
    channel: paramiko.Channel, source: BinaryIO | None, out: Sink, error: Sink, end: float, moves: Moves
) -> bool:
    """Move all streams until the command has ended; False when time is over.

    One loop over both outputs and the input: no stream can fill its window and block the others.
    """
    pending = b""
    while (now := time.monotonic()) < end:
        moved = False
        if channel.recv_ready():
            out.feed(channel.recv(CHUNK))
            moved = True
        if channel.recv_stderr_ready():
            error.feed(channel.recv_stderr(CHUNK))
            moved = True
        if source is not None and channel.send_ready() and not channel.closed:
            pending = pending or source.read(CHUNK)
            if pending:
                try:
                    pending = pending[channel.send(pending) :]
                except OSError:
                    source = None  # the command does not read its input: its exit code says the rest
                moved = True
            else:
                channel.shutdown_write()
                source = None
        if moved:
            moves.last = now
            continue
        if channel.closed or (channel.exit_status_ready() and channel.eof_received):
            if not channel.recv_ready() and not channel.recv_stderr_ready():
                return True
            continue
        if channel.eof_received:
            time.sleep(0.01)  # the exit status is on its way; the pipe below would return at once
        else:
            wait = 0.02 if source is not None else 0.2
            select.select([channel], [], [], min(wait, max(0.0, end - now)))
    return False
