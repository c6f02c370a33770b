"""Pinned host keys: one `known_hosts` file per farm, written only by `trust`, never by connecting."""

from __future__ import annotations

import base64
import hashlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paramiko

from edgesdk.errors import ConfigError, HostKey
from edgesdk.files import write_atomic
from edgesdk.harness.board import Board
from edgesdk.harness.transport import unreachable

SCAN_SECONDS = 15.0

# paramiko logs tracebacks of lost connections; ours are errors with a hint instead.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class HostKeyFound:
    """A host key that a board showed: `kind` as in `ssh-ed25519`, the key in base64, its SHA-256 fingerprint."""

    kind: str
    base64: str
    fingerprint: str


def fingerprint(key: paramiko.PKey) -> str:
    """The fingerprint as `ssh-keygen -l` prints it: `SHA256:` and base64 without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def known_name(host: str, port: int) -> str:
    """How known_hosts names a host: `[host]:port` unless the port is 22."""
    return host if port == 22 else f"[{host}]:{port}"


def pinned_keys(known_hosts: Path | None, host: str, port: int) -> dict[str, paramiko.PKey]:
    """Pinned keys of a host by kind; empty when there are none.

    Raises:
        ConfigError: the file exists and cannot be read.
    """
    if known_hosts is None or not known_hosts.exists():
        return {}
    keys = paramiko.HostKeys()
    try:
        keys.load(str(known_hosts))
    except (OSError, UnicodeDecodeError, paramiko.SSHException) as problem:
        raise ConfigError(f"{known_hosts}: not readable as known_hosts: {problem}") from problem
    found = keys.lookup(known_name(host, port))
    return {kind: key for kind in found if (key := found.get(kind)) is not None} if found else {}


def check_host_key(board: Board, key: paramiko.PKey, pinned: dict[str, paramiko.PKey]) -> None:
    """Compare the key that a board shows with the pinned ones.

    Raises:
        HostKey: none is pinned, or another one.
    """
    shown = f"{key.get_name()} {fingerprint(key)}"
    where = f"{board.name} ({board.host}:{board.port})"
    if not pinned:
        raise HostKey(
            f"{where}: host key is not known: {board.known_hosts or 'no known_hosts file'} has no entry for "
            f"{known_name(str(board.host), board.port)}; the board shows {shown}",
            f"compare the fingerprint on the board itself, then `edgesdk boards trust {board.name}`",
        )
    if key not in pinned.values():
        old = ", ".join(f"{kind} {fingerprint(entry)}" for kind, entry in sorted(pinned.items()))
        line = _line_of(board)
        raise HostKey(
            f"{where}: host key changed: {board.known_hosts}{line} pins {old}; the board shows {shown}",
            f"if the board was installed anew, remove its line from {board.known_hosts} and "
            f"`edgesdk boards trust {board.name}`; otherwise another machine answers at this address",
        )


def _line_of(board: Board) -> str:
    """`:NUMBER` of the line of known_hosts that names the board; empty where the name is hashed."""
    name = known_name(str(board.host), board.port)
    lines = board.known_hosts.read_text(errors="replace").splitlines() if board.known_hosts else []
    found = [number for number, line in enumerate(lines, 1) if name in line.partition(" ")[0].split(",")]
    return f":{found[0]}" if found else ""


def scan_host_key(
    host: str, port: int = 22, seconds: float = SCAN_SECONDS,
    through: Callable[[], socket.socket | paramiko.Channel] | None = None,
) -> HostKeyFound:
    """Ask a host for its key, without logging in.

    Args:
        through: opens the stream to it where it is not dialled from here (see `connection.scan_board`).

    Raises:
        Unreachable: no answer, or no SSH server.
    """
    where = f"{host}:{port}"
    try:
        with through() if through else socket.create_connection((host, port), seconds) as connection:
            transport = paramiko.Transport(connection)
            transport.banner_timeout = seconds
            try:
                transport.start_client(timeout=seconds)
                key = transport.get_remote_server_key()
            finally:
                transport.close()
    except (OSError, EOFError, paramiko.SSHException) as problem:
        raise unreachable(where, problem) from problem
    return HostKeyFound(key.get_name(), key.get_base64(), fingerprint(key))


def trust(board: Board, typed: str, found: HostKeyFound | None = None) -> HostKeyFound:
    """Pin the key that the board shows now, if its fingerprint is the one that the user typed.

    Args:
        found: what the board showed, where it was asked already (`connection.scan_board`, through a jump host).

    Raises:
        ConfigError: the board has no host or no known_hosts file.
        HostKey: the fingerprint differs, or another key is pinned already.
        Unreachable: no answer.
    """
    if board.host is None or board.known_hosts is None:
        raise ConfigError(f"{board.name}: has no host or no known_hosts file", "set both in farm.toml")
    found = found or scan_host_key(board.host, board.port)
    if typed.strip() != found.fingerprint:
        raise HostKey(
            f"{board.name}: the board shows {found.kind} {found.fingerprint}, typed was {typed.strip()[:80]!r}",
            "read the fingerprint on the board itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        )
    pinned = pinned_keys(board.known_hosts, board.host, board.port)
    if pinned:
        if found.base64 in {key.get_base64() for key in pinned.values()}:
            return found
        raise HostKey(
            f"{board.name}: {board.known_hosts} pins another key for {known_name(board.host, board.port)}",
            "remove that line first",
        )
    old = board.known_hosts.read_bytes() if board.known_hosts.exists() else b""
    if old and not old.endswith(b"\n"):
        old += b"\n"
    line = f"{known_name(board.host, board.port)} {found.kind} {found.base64}\n"
    write_atomic(board.known_hosts, old + line.encode())
    return found
