"""One SSH connection to a board: dialled (through a jump host where there is one), pinned, logged in, shared, bounded.

Several calls of paramiko ignore time-outs (paramiko#1815, #1787, #2599), so each operation has a watchdog that closes
the socket when time is over: whatever call is blocked then returns with an error.

A process has one connection to a board, however many transports use it, and at most four sessions at once:
`MaxSessions` of a board's sshd is often 10, and its `MaxStartups` refuses connections that are opened in a burst.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import paramiko

from edgesdk.errors import BoardError, ConfigError, Deadline, Unreachable
from edgesdk.harness.board import Board
from edgesdk.harness.hostkeys import HostKeyFound, check_host_key, pinned_keys, scan_host_key
from edgesdk.harness.keys import private_keys
from edgesdk.harness.text import plain
from edgesdk.harness.transport import unreachable

CONNECT_SECONDS = 15.0
KEEPALIVE_SECONDS = 15
# Bytes that nobody acknowledges for so long mean a line that is gone, also where a keepalive was the only traffic.
SILENT_PEER_MS = 60_000
COMMANDS = 3  # and one session more, to kill a command that is overdue
CIPHER = "aes128-gcm@openssh.com"  # if the server has it
STARTUP_PAUSES = (0.5, 1.0, 2.0)
SESSION_PAUSE = 0.1


def jump_board(board: Board) -> Board | None:
    """The jump host of a board as a board of its own: same key and same file of pinned keys; None without one.

    Raises:
        ConfigError: `proxy_jump` is not USER@HOST or USER@HOST:PORT.
    """
    if board.proxy_jump is None:
        return None
    user, at, address = board.proxy_jump.rpartition("@")
    host, colon, port = address.partition(":")
    if not user or not host or (colon and not port.isdigit()):
        raise ConfigError(f"{board.name}: proxy_jump {board.proxy_jump!r} is not USER@HOST or USER@HOST:PORT")
    return dataclasses.replace(
        board, name=f"{board.name}-jump", host=host, port=int(port or 22), user=user, proxy_jump=None, serial=None
    )


def scan_board(board: Board) -> HostKeyFound:
    """The host key that a board shows, asked through its jump host where it has one (whose key must be pinned).

    Raises:
        ConfigError: the board is this machine. What `Connection` raises for the jump host. Unreachable.
    """
    if board.host is None:
        raise ConfigError(f"board {board.name!r} is this machine; it has no host key")
    jump = jump_board(board)
    if jump is None:
        return scan_host_key(board.host, board.port)
    with shared(jump) as way:
        return scan_host_key(board.host, board.port, through=lambda: way.forward(board, CONNECT_SECONDS))


class Connection:
    """A connection that is logged in. Thread-safe.

    Raises:
        ConfigError: no usable private key. HostKey: unknown or changed key. Unreachable: anything on the way.
        BoardError: the user may not log in.
    """

    def __init__(self, board: Board, seconds: float = CONNECT_SECONDS) -> None:
        if board.host is None:
            raise ConfigError(f"{board.name}: has no host")
        self.board = board
        self.where = f"{board.name} ({board.host}:{board.port})"
        self.client: paramiko.Transport | None = None
        self._socket: socket.socket | paramiko.Channel | None = None
        self._ways = contextlib.ExitStack()
        self._commands = threading.BoundedSemaphore(COMMANDS)
        self._spare = threading.BoundedSemaphore(1)
        pinned = pinned_keys(board.known_hosts, board.host, board.port)
        end = time.monotonic() + seconds
        try:
            with private_keys(board) as keys:
                self._greet(pinned, seconds, end)
                with self.watch(max(0.1, end - time.monotonic()), "connecting"):
                    check_host_key(board, self.protocol.get_remote_server_key(), pinned)
                    self.protocol.auth_timeout = seconds
                    self._log_in(keys)
            self.protocol.set_keepalive(KEEPALIVE_SECONDS)
        except BaseException:
            self.close()
            raise

    @property
    def protocol(self) -> paramiko.Transport:
        """What speaks SSH."""
        if self.client is None:
            raise unreachable(self.where, "not connected")
        return self.client

    def alive(self) -> bool:
        """Is it still usable, as far as this end knows?"""
        return self.client is not None and self.client.is_active()

    @contextlib.contextmanager
    def session(self, end: float, spare: bool = False) -> Iterator[paramiko.Channel]:
        """A channel for one command, when one is free before `end` (monotonic seconds).

        A server that refuses more sessions (`MaxSessions`) is asked again; `spare` takes the place kept for killing.

        Raises:
            Deadline: all sessions were busy. OSError, EOFError, SSHException of paramiko.
        """
        places = self._spare if spare else self._commands
        if not places.acquire(timeout=max(0.0, end - time.monotonic())):
            raise Deadline(f"{self.where}: {COMMANDS} commands run already, none ended in time")
        try:
            channel = self._open(end)
            try:
                yield channel
            finally:
                with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # the line may be gone
                    channel.close()
        finally:
            places.release()

    def _open(self, end: float) -> paramiko.Channel:
        while True:
            left = end - time.monotonic()
            try:
                return self.protocol.open_session(timeout=max(0.1, left))
            except paramiko.ChannelException:
                if left < SESSION_PAUSE:
                    raise
            time.sleep(SESSION_PAUSE)

    def forward(self, board: Board, seconds: float) -> paramiko.Channel:
        """A stream to another board's SSH port, as seen from this one.

        Raises:
            Unreachable: the jump host cannot or may not reach it.
        """
        target = (str(board.host), board.port)
        try:
            return self.protocol.open_channel("direct-tcpip", target, ("127.0.0.1", 0), timeout=seconds)
        except (OSError, EOFError, paramiko.SSHException) as problem:
            hint = f"{self.where} does not get through to {board.host}:{board.port}: {problem}"
            raise unreachable(board.name, hint) from problem

    @contextlib.contextmanager
    def watch(self, seconds: float, doing: str, spare: float = 0.0) -> Iterator[None]:
        """Close the socket when the block takes longer than `seconds + spare`; turn paramiko's errors into ours."""
        start = time.monotonic()
        timer = threading.Timer(seconds + spare, self.sever)
        timer.daemon = True
        timer.start()
        try:
            yield
        except paramiko.AuthenticationException as problem:
            raise self._refused(problem) from problem
        except (OSError, EOFError, paramiko.SSHException) as problem:
            overdue = time.monotonic() - start >= seconds
            if overdue and doing != "connecting":
                self.sever()
                raise Deadline(f"{self.where}: {doing}: no answer within {seconds:g} s, connection closed") from problem
            found = f"no answer within {round(seconds, 1):g} s" if overdue else str(problem) or type(problem).__name__
            raise unreachable(self.where, f"{doing}: {found}") from problem
        finally:
            timer.cancel()
            timer.join()  # many boards, many operations: no thread is left to end by itself

    def sever(self) -> None:
        """Close the socket under whatever call waits for it."""
        line = self._socket
        if isinstance(line, paramiko.Channel):
            with contextlib.suppress(Exception):
                line.close()
        elif line is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                line.close()

    def close(self) -> None:
        """End the connection and its thread; may be called twice."""
        client, self.client = self.client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()
        self.sever()
        if client is not None and client.is_alive() and client is not threading.current_thread():
            client.join(5)
        self._ways.close()

    def _greet(self, pinned: Mapping[str, paramiko.PKey], seconds: float, end: float) -> None:
        """Dial and agree on keys; a server that hangs up before its banner (`MaxStartups`) is asked again."""
        pauses = iter(STARTUP_PAUSES)
        while True:
            self._dial(seconds)
            try:
                with self.watch(max(0.1, end - time.monotonic()), "connecting"):
                    self._negotiate(pinned, seconds)
                return
            except Unreachable:
                pause = next(pauses, None)
                greeted = self.client is not None and self.client.remote_version
                self.close()
                if greeted or pause is None or time.monotonic() + pause >= end:
                    raise
            time.sleep(pause)

    def _dial(self, seconds: float) -> None:
        jump = jump_board(self.board)
        line: socket.socket | paramiko.Channel
        if jump is not None:
            line = self._ways.enter_context(shared(jump, seconds)).forward(self.board, seconds)
        else:
            try:
                line = socket.create_connection((str(self.board.host), self.board.port), seconds)
                line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                if hasattr(socket, "TCP_USER_TIMEOUT"):
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_PEER_MS)
            except OSError as problem:
                raise unreachable(self.where, problem) from problem
        self._socket = line
        self.client = paramiko.Transport(line)

    def _negotiate(self, pinned: Mapping[str, paramiko.PKey], seconds: float) -> None:
        client = self.protocol
        client.banner_timeout = seconds
        client.handshake_timeout = seconds
        options = client.get_security_options()
        # Ask for the kind of key that is pinned, so that a server with several keys shows that one.
        wanted = {*pinned, *(("rsa-sha2-512", "rsa-sha2-256") if "ssh-rsa" in pinned else ())}
        preferred = [kind for kind in options.key_types if kind in wanted]
        options.key_types = (*preferred, *(kind for kind in options.key_types if kind not in preferred))
        # One pass of the processor over the bytes instead of two, cipher and digest.
        options.ciphers = sorted(options.ciphers, key=lambda name: name != CIPHER)
        client.start_client(timeout=seconds)
        client.get_remote_server_key()  # SSHException where the time was over: start_client does not say so

    def _log_in(self, keys: Sequence[paramiko.PKey]) -> None:
        user = self.board.user or getpass.getuser()
        for key in keys[:-1]:
            try:
                self.protocol.auth_publickey(user, key)
                return
            except paramiko.BadAuthenticationType:
                raise
            except paramiko.AuthenticationException:
                continue
        self.protocol.auth_publickey(user, keys[-1])

    def _refused(self, problem: paramiko.AuthenticationException) -> BoardError:
        user = self.board.user or "the user"
        if isinstance(problem, paramiko.BadAuthenticationType):
            methods = plain(", ".join(map(str, problem.allowed_types)), 100)
            return BoardError(
                f"{self.where}: the server takes no keys from {user}, only: {methods}",
                "set `PubkeyAuthentication yes` in /etc/ssh/sshd_config on the board; passwords are never used",
            )
        key = self.board.key or "any key of yours"
        return BoardError(
            f"{self.where}: {user} may not log in with {key}: {plain(str(problem), 300)}",
            "add the public key to ~/.ssh/authorized_keys on the board",
        )


class _Shared:
    """The connections of this process, by board; each with the number of its users."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.locks: dict[object, threading.Lock] = {}
        self.open: dict[object, Connection] = {}
        self.users: dict[int, int] = {}

    def take(self, key: object) -> Connection | None:
        """The live connection of a board, with one more user; None where there is none."""
        with self.guard:
            connection = self.open.get(key)
            if connection is None or not connection.alive():
                return None
            self.users[id(connection)] += 1
            return connection

    def add(self, key: object, connection: Connection) -> Connection:
        """A new connection with its first user."""
        with self.guard:
            self.open[key] = connection
            self.users[id(connection)] = 1
        return connection

    def leave(self, key: object, connection: Connection) -> bool:
        """One user less; was it the last one?"""
        with self.guard:
            self.users[id(connection)] -= 1
            if self.users[id(connection)]:
                return False
            del self.users[id(connection)]
            if self.open.get(key) is connection:
                del self.open[key]
            return True


_shared = _Shared()


@contextlib.contextmanager
def shared(board: Board, seconds: float = CONNECT_SECONDS) -> Iterator[Connection]:
    """The connection of this process to a board, made when there is none that lives; closed after its last user."""
    key = (
        os.getpid(), board.name, board.host, board.port, board.user, board.key, board.known_hosts, board.proxy_jump,
    )
    with _shared.guard:
        lock = _shared.locks.setdefault(key, threading.Lock())
    with lock:  # of this board only: others connect meanwhile
        connection = _shared.take(key)
        if connection is None:
            connection = _shared.add(key, Connection(board, seconds))
    try:
        yield connection
    finally:
        if _shared.leave(key, connection):
            connection.close()
