"""How commands and files reach a board: the protocol, and what its drivers share.

Every operation has a hard deadline and bounded output. Commands are argument lists, quoted by the driver; files travel
through `cat` on the board, so that no second protocol (SFTP) is needed and an upload can go on where it was cut.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from edgesdk.errors import BoardError, ConfigError, DiskFull, ReadOnly, Unreachable
from edgesdk.harness.text import plain, plain_line

OUTPUT_LIMIT = 4 << 20
# More than this from one command is no log any more: it is killed.
FLOOD_BYTES = 1 << 30
# A transfer of which no byte moves for so long goes over a line that is gone.
SILENCE_SECONDS = 60.0
CHUNK = 1 << 15
SLOWEST_BYTES_PER_SECOND = 50_000
REMOTE_PATH = re.compile(r"^[A-Za-z0-9_./][A-Za-z0-9_./-]*$")
ENVIRONMENT_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


@dataclass(frozen=True)
class Completed:
    """A command that ended. `returncode` is negative for a signal; `truncated` output ends with a mark."""

    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @property
    def text(self) -> str:
        """stdout as text."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        """The end of stderr on one printable line, for messages."""
        return plain_line(self.stderr[-400:].decode("utf-8", "replace"))


class Transport(Protocol):
    """A way to one board. Not thread-safe. Relative paths on the board are relative to the user's home.

    All methods raise `Unreachable` when the connection cannot be made or is lost, and `Deadline` when time is over;
    the process group of an overdue command is killed on the board.
    """

    def run(
        self, argv: Sequence[str], deadline_s: float, input: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> Completed:
        """Run one command to its end."""

    def put(self, local: Path, remote: str, offset: int = 0) -> None:
        """Write a file, or append to it what follows `offset` bytes. Raises `DiskFull`, `ReadOnly`, `BoardError`."""

    def get(self, remote: str, local: Path, limit: int = 1 << 30) -> None:
        """Read a file of at most `limit` bytes. Raises `BoardError`."""

    def close(self) -> None:
        """End the connection; may be called twice."""


class Sink(Protocol):
    """Where a stream of output goes."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""


class Bounded:
    """Keeps the first `limit` bytes of a stream and counts the rest; BoardError for a flood."""

    def __init__(self, limit: int = OUTPUT_LIMIT) -> None:
        self.limit = limit
        self.total = 0
        self._parts = io.BytesIO()

    def feed(self, data: bytes) -> None:
        room = self.limit - self._parts.tell()
        if room > 0:
            self._parts.write(data[:room])
        self.total += len(data)
        if self.total > FLOOD_BYTES:
            raise BoardError(f"more than {FLOOD_BYTES >> 20} MiB of output from one command", "what does it print?")

    @property
    def truncated(self) -> bool:
        return self.total > self.limit

    def value(self) -> bytes:
        """What was kept, with a mark where something was cut."""
        mark = f"\n[edgesdk: output truncated, {self.total} bytes in all]\n".encode() if self.truncated else b""
        return self._parts.getvalue() + mark


class FileSink:
    """Writes a stream to a file and refuses more than `limit` bytes."""

    def __init__(self, stream: BinaryIO, limit: int, where: str) -> None:
        self.stream = stream
        self.left = limit
        self.where = where

    def feed(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0:
            raise BoardError(f"{self.where}: more bytes than expected")
        self.stream.write(data)


class StreamTransport(ABC):
    """`run`, `put` and `get` over one operation that drivers implement: run a command with streams."""

    where: str

    @abstractmethod
    def stream(
        self, argv: Sequence[str], deadline_s: float, source: BinaryIO, stdout: Sink, stderr: Sink,
        env: Mapping[str, str], silence_s: float | None = None,
    ) -> int:
        """Run `argv` with stdin from `source`; returns the exit code, negative for a signal.

        Raises:
            Deadline: time is over, and the process group killed. Unreachable: also when a remote command is to be
                given up because no byte moved for `silence_s`. What the sinks raise; the command is killed then too.
        """

    @abstractmethod
    def close(self) -> None:
        """See `Transport`."""

    def run(
        self, argv: Sequence[str], deadline_s: float, input: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> Completed:
        """See `Transport`."""
        check_command(argv, env or {})
        stdout = Bounded()
        stderr = Bounded()
        code = self.stream(argv, deadline_s, io.BytesIO(input or b""), stdout, stderr, env or {})
        return Completed(code, stdout.value(), stderr.value(), stdout.truncated or stderr.truncated)

    def put(self, local: Path, remote: str, offset: int = 0) -> None:
        """See `Transport`."""
        script = 'umask 077; exec cat >> "$1"' if offset else 'umask 077; exec cat > "$1"'
        argv = ["sh", "-c", script, "put", check_remote(remote)]
        deadline_s = transfer_seconds(local.stat().st_size - offset)
        stderr = Bounded()
        with local.open("rb") as source:
            source.seek(offset)
            code = self.stream(argv, deadline_s, source, Bounded(0), stderr, {}, SILENCE_SECONDS)
        if code:
            raise file_error(f"{self.where}: {remote}", code, stderr.value().decode("utf-8", "replace"))

    def get(self, remote: str, local: Path, limit: int = 1 << 30) -> None:
        """See `Transport`."""
        stderr = Bounded()
        with local.open("wb") as stream:
            sink = FileSink(stream, limit, f"{self.where}: {remote}")
            argv = ["cat", "--", check_remote(remote)]
            code = self.stream(argv, transfer_seconds(limit), io.BytesIO(), sink, stderr, {}, SILENCE_SECONDS)
        if code:
            raise file_error(f"{self.where}: {remote}", code, stderr.value().decode("utf-8", "replace"))


def transfer_seconds(size: int) -> float:
    """Deadline of a transfer: a minute, and time for the slowest link that makes sense."""
    return 60 + max(0, size) / SLOWEST_BYTES_PER_SECOND


def check_command(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Refuse what no quoting can carry (ConfigError)."""
    if not argv or not argv[0]:
        raise ConfigError("empty command for a board")
    for text in (*argv, *env.values()):
        if "\0" in text:
            raise ConfigError(f"command for a board holds a NUL: {text[:60]!r}")
    for name in env:
        if not ENVIRONMENT_NAME.match(name):
            raise ConfigError(f"illegal environment name {name!r}")


def check_remote(path: str) -> str:
    """A path on the board: plain characters, no `..`, no dash in front (ConfigError)."""
    if not REMOTE_PATH.match(path) or ".." in path.split("/"):
        raise ConfigError(f"illegal path on a board: {path[:80]!r}", "use letters, digits, '.', '_', '-' and '/'")
    return path


def file_error(where: str, code: int, text: str) -> BoardError:
    """The error class of a failed file command, from its (LC_ALL=C) message."""
    words = plain_line(text[-300:])
    if "No space left" in text or "Disk quota exceeded" in text:
        return DiskFull(f"{where}: no space left on the board: {words}", "free space, or remove ~/.edgesdk there")
    if "Read-only file system" in text:
        return ReadOnly(f"{where}: the board's file system is read-only: {words}", "a worn SD card? replace it")
    return BoardError(f"{where}: exit {code}: {words or 'no message'}")


def unreachable(where: str, found: object) -> Unreachable:
    """An `Unreachable` with the usual hint."""
    hint = "check power, cable, address and port, or `edgesdk boards list`"
    return Unreachable(f"{where}: {plain(str(found), 300)}", hint)
