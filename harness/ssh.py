"""A board over SSH, with paramiko behind hard deadlines.

Several calls of paramiko ignore time-outs (paramiko#1815, #1787, #2599), so each operation has a watchdog that closes
the socket when time is over: whatever call is blocked then returns with an error.
"""

from __future__ import annotations

import contextlib
import getpass
import re
import secrets
import select
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import paramiko

from edgesdk.errors import BoardError, ConfigError, Deadline
from edgesdk.harness.board import Board
from edgesdk.harness.hostkeys import check_host_key, pinned_keys, scan_host_key, trust
from edgesdk.harness.text import plain, plain_line
from edgesdk.harness.transport import CHUNK, Bounded, Sink, StreamTransport, unreachable

__all__ = ["SshTransport", "scan_host_key", "trust"]

CONNECT_SECONDS = 15.0
KILL_SECONDS = 5.0
PROCESS = re.compile(rb"[0-9]{1,9}")
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
# The first line of each stream, after whatever the user's shell prints at login: a nonce and the process id.
FRAME = 'printf "\\036%s %s\\n" "$0" "$$"; printf "\\036%s %s\\n" "$0" "$$" >&2; export {}; exec "$@"'


class Frame:
    """Drops what comes before the frame line and remembers the process id that the line gives."""

    def __init__(self, sink: Sink, nonce: str) -> None:
        self.sink = sink
        self.mark = b"\x1e" + nonce.encode() + b" "
        self.process: int | None = None
        self.noise = b""

    def feed(self, data: bytes) -> None:
        if self.process is not None:
            self.sink.feed(data)
            return
        self.noise += data
        start = self.noise.find(self.mark)
        end = self.noise.find(b"\n", start) if start >= 0 else -1
        if end < 0:
            self.noise = self.noise[-CHUNK:]
            return
        number = self.noise[start + len(self.mark) : end].strip()
        # A board that writes anything else gets a number that no process has: there is nothing to kill then.
        self.process = int(number) if PROCESS.fullmatch(number) else 0
        rest, self.noise = self.noise[end + 1 :], b""
        if rest:
            self.sink.feed(rest)


class SshTransport(StreamTransport):
    """See `edgesdk.harness.transport.Transport`. Connects when it is made.

    Raises:
        ConfigError: no usable private key. HostKey: unknown or changed key. Unreachable: anything on the way.
    """

    def __init__(self, board: Board, connect_seconds: float = CONNECT_SECONDS) -> None:
        if board.host is None:
            raise ConfigError(f"{board.name}: has no host")
        self.board = board
        self.where = f"{board.name} ({board.host}:{board.port})"
        keys = _private_keys(board)
        pinned = pinned_keys(board.known_hosts, board.host, board.port)
        end = time.monotonic() + connect_seconds
        try:
            self._socket = socket.create_connection((board.host, board.port), connect_seconds)
        except OSError as problem:
            raise unreachable(self.where, problem) from problem
        try:
            self._client = paramiko.Transport(self._socket)
            with self._watch(max(0.1, end - time.monotonic()), "connecting"):
                self._negotiate(pinned, connect_seconds)
                check_host_key(board, self._client.get_remote_server_key(), pinned)
                self._client.auth_timeout = connect_seconds
                self._log_in(board.user or getpass.getuser(), keys)
            self._client.set_keepalive(15)
        except BaseException:
            self.close()
            raise

    def _negotiate(self, pinned: Mapping[str, paramiko.PKey], seconds: float) -> None:
        self._client.banner_timeout = seconds
        self._client.handshake_timeout = seconds
        options = self._client.get_security_options()
        # Ask for the kind of key that is pinned, so that a server with several keys shows that one.
        wanted = {*pinned, *(("rsa-sha2-512", "rsa-sha2-256") if "ssh-rsa" in pinned else ())}
        preferred = [kind for kind in options.key_types if kind in wanted]
        options.key_types = (*preferred, *(kind for kind in options.key_types if kind not in preferred))
        self._client.start_client(timeout=seconds)

    def _log_in(self, user: str, keys: Sequence[paramiko.PKey]) -> None:
        for key in keys[:-1]:
            with contextlib.suppress(paramiko.AuthenticationException):
                self._client.auth_publickey(user, key)
                return
        self._client.auth_publickey(user, keys[-1])

    @contextlib.contextmanager
    def _watch(self, seconds: float, doing: str, spare: float = 0.0) -> Iterator[None]:
        """Close the socket when the block takes longer than `seconds + spare`; turn paramiko's errors into ours."""
        start = time.monotonic()
        timer = threading.Timer(seconds + spare, self._break)
        timer.daemon = True
        timer.start()
        try:
            yield
        except paramiko.AuthenticationException as problem:
            key = self.board.key or "any key of yours"
            raise BoardError(
                f"{self.where}: {self.board.user or 'the user'} may not log in with {key}: {plain(str(problem), 300)}",
                "add the public key to ~/.ssh/authorized_keys on the board",
            ) from problem
        except (OSError, EOFError, paramiko.SSHException) as problem:
            overdue = time.monotonic() - start >= seconds
            if overdue and doing != "connecting":
                self._break()
                raise Deadline(f"{self.where}: {doing}: no answer within {seconds:g} s, connection closed") from problem
            found = f"no answer within {seconds:g} s" if overdue else str(problem) or type(problem).__name__
            raise unreachable(self.where, f"{doing}: {found}") from problem
        finally:
            timer.cancel()

    def _break(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._socket.close()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.close()
        self._break()

    def stream(
        self, argv: Sequence[str], deadline_s: float, source: BinaryIO, stdout: Sink, stderr: Sink,
        env: Mapping[str, str],
    ) -> int:
        end = time.monotonic() + deadline_s
        nonce = secrets.token_hex(8)
        out, error = Frame(stdout, nonce), Frame(stderr, nonce)
        variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in {"LC_ALL": "C", **env}.items())
        words = ["sh", "-c", FRAME.format(variables), nonce, *argv]
        with self._watch(deadline_s, argv[0], 2 * KILL_SECONDS):
            channel = self._client.open_session(timeout=deadline_s)
            try:
                channel.exec_command("exec " + shlex.join(words))
                in_time = _pump(channel, source, out, error, end)
                if not in_time:
                    self._kill(out.process or error.process)
            except (BoardError, KeyboardInterrupt):
                self._kill(out.process or error.process)
                raise
            finally:
                channel.close()
        if not in_time:
            raise Deadline(f"{self.where}: {argv[0]} did not end within {deadline_s:g} s, killed")
        code = channel.recv_exit_status() if channel.exit_status_ready() else -1
        if code == -1 and not (channel.eof_received and self._client.is_active()):
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
        """Kill the process group of an overdue command (sshd makes the command a session of its own)."""
        if not process or not self._client.is_active():
            return
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            channel = self._client.open_session(timeout=KILL_SECONDS)
            script = 'kill -9 -"$1" 2>/dev/null || kill -9 "$1"'
            channel.exec_command("exec " + shlex.join(["sh", "-c", script, "kill", str(process)]))
            _pump(channel, None, Bounded(0), Bounded(0), time.monotonic() + KILL_SECONDS)
            channel.close()


def _pump(channel: paramiko.Channel, source: BinaryIO | None, out: Sink, error: Sink, end: float) -> bool:
    """Move all streams until the command has ended; False when time is over.

    One loop over both outputs and the input: no stream can fill its window and block the others.
    """
    pending = b""
    while time.monotonic() < end:
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
            continue
        if channel.closed or (channel.exit_status_ready() and channel.eof_received):
            if not channel.recv_ready() and not channel.recv_stderr_ready():
                return True
            continue
        if channel.eof_received:
            time.sleep(0.01)  # the exit status is on its way; the pipe below would return at once
        else:
            wait = 0.02 if source is not None else 0.2
            select.select([channel], [], [], min(wait, max(0.0, end - time.monotonic())))
    return False


def _private_keys(board: Board) -> list[paramiko.PKey]:
    """The board's key; without one, the user's usual keys and those of the SSH agent (which is never forwarded)."""
    if board.key is not None:
        try:
            return [paramiko.PKey.from_path(board.key)]
        except (OSError, ValueError, TypeError, paramiko.SSHException) as problem:
            raise ConfigError(
                f"{board.name}: private key {board.key}: {problem or type(problem).__name__}",
                "give a readable OpenSSH key without passphrase: ssh-keygen -t ed25519",
            ) from problem
    keys: list[paramiko.PKey] = []
    for name in DEFAULT_KEYS:
        with contextlib.suppress(OSError, ValueError, TypeError, paramiko.SSHException):
            keys.append(paramiko.PKey.from_path(Path.home() / ".ssh" / name))
    with contextlib.suppress(OSError, paramiko.SSHException):
        keys += paramiko.Agent().get_keys()
    if not keys:
        raise ConfigError(f"{board.name}: no private key", "set `key` in farm.toml: ssh-keygen -t ed25519")
    return keys
