"""Faults on the way to a board: keys, silence, cuts. All servers listen on 127.0.0.1."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness_sshd import Server, free_port, make_key

from edgesdk.errors import BoardError, ConfigError, Deadline, HostKey, Unreachable
from edgesdk.harness.board import Board
from edgesdk.harness.hostkeys import scan_host_key, trust
from edgesdk.harness.ssh import SshTransport


class Proxy:
    """Stands between client and board; `cut` drops all connections, `stalled` keeps them silent."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.sockets: list[socket.socket] = []
        self.limit: int | None = None
        self.stalled = threading.Event()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            board = socket.create_connection(("127.0.0.1", self.target))
            self.sockets += [client, board]
            for source, sink in ((client, board), (board, client)):
                threading.Thread(target=self._copy, args=(source, sink, source is client), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        try:
            while data := source.recv(65536):
                while self.stalled.is_set():
                    time.sleep(0.01)
                sink.sendall(data)
                if upward and self.limit is not None:
                    self.limit -= len(data)
                    if self.limit < 0:
                        self.limit = None
                        self.cut()
        except OSError:
            pass
        for end in (source, sink):
            _shut(end)

    def cut(self) -> None:
        """Drop every connection, now."""
        for end in self.sockets:
            _shut(end)
        self.sockets.clear()

    def close(self) -> None:
        """End the proxy."""
        self.listener.close()
        self.cut()


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    running = Proxy(server.port)
    yield running
    running.close()


@pytest.fixture
def behind(server: Server, proxy: Proxy, tmp_path: Path) -> Board:
    """The board as it is reached through the proxy."""
    known_hosts = tmp_path / "known_hosts_proxy"
    known_hosts.write_text(server.known_hosts_line().replace(str(server.port), str(proxy.port), 1))
    return dataclasses.replace(server.board(known_hosts), port=proxy.port)


def test_unknown_host_key(remote: Board, tmp_path: Path) -> None:
    """Refused; the message names the file, the fingerprint and the command; nothing is written."""
    board = dataclasses.replace(remote, known_hosts=tmp_path / "empty")
    with pytest.raises(HostKey) as caught:
        SshTransport(board)
    found = scan_host_key("127.0.0.1", remote.port)
    for words in (str(tmp_path / "empty"), found.fingerprint, "edgesdk boards trust remote"):
        assert words in str(caught.value)
    assert not (tmp_path / "empty").exists()


def test_changed_host_key(remote: Board, tmp_path: Path) -> None:
    """Refused; old and new fingerprints are shown."""
    make_key(tmp_path / "other")
    kind, data = (tmp_path / "other.pub").read_text().split()[:2]
    assert remote.known_hosts is not None
    remote.known_hosts.write_text(f"[127.0.0.1]:{remote.port} {kind} {data}\n")
    with pytest.raises(HostKey) as caught:
        SshTransport(remote)
    assert caught.value.message.count("SHA256:") == 2
    assert scan_host_key("127.0.0.1", remote.port).fingerprint in caught.value.message


def test_trust_needs_the_right_fingerprint(remote: Board, tmp_path: Path) -> None:
    """Only the fingerprint of the shown key, typed, pins it; other lines of the file stay."""
    path = tmp_path / "pins"
    path.write_text("other ssh-ed25519 AAAA")
    board = dataclasses.replace(remote, known_hosts=path)
    fingerprint = scan_host_key("127.0.0.1", remote.port).fingerprint
    for wrong in ("", "yes", fingerprint[:-1], fingerprint.lower()):
        with pytest.raises(HostKey):
            trust(board, wrong)
    assert path.read_text() == "other ssh-ed25519 AAAA"
    trust(board, f" {fingerprint}\n")
    assert path.read_text().startswith("other ssh-ed25519 AAAA\n[127.0.0.1]:")
    SshTransport(board).close()


def test_unreachable() -> None:
    """Nobody listens: host and port are named, with a hint."""
    port = free_port()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port}") as caught:
        scan_host_key("127.0.0.1", port)
    assert caught.value.hint


def test_server_without_banner(remote: Board) -> None:
    """A server that accepts and says nothing: an error at the deadline, and no thread is left."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        board = dataclasses.replace(remote, port=silent.getsockname()[1])
        before = threading.active_count()
        start = time.monotonic()
        with pytest.raises(Unreachable, match="remote"):
            SshTransport(board, connect_seconds=1)
        assert time.monotonic() - start < 15
        end = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < end:
            time.sleep(0.05)
        assert threading.active_count() <= before


def test_key_that_is_not_allowed(remote: Board, tmp_path: Path) -> None:
    """The message names user and key."""
    board = dataclasses.replace(remote, key=make_key(tmp_path / "stranger"))
    with pytest.raises(BoardError, match="stranger"):
        SshTransport(board)


@pytest.mark.parametrize("content", [None, "not a key"])
def test_unusable_private_key(remote: Board, tmp_path: Path, content: str | None) -> None:
    """A key file that is missing or broken is the user's to correct."""
    if content:
        (tmp_path / "bad").write_text(content)
    with pytest.raises(ConfigError, match="bad"):
        SshTransport(dataclasses.replace(remote, key=tmp_path / "bad"))


def test_cut_during_a_command(behind: Board, proxy: Proxy) -> None:
    """A connection that dies under a command is `Unreachable`, not a hang and not a result."""
    transport = SshTransport(behind)
    threading.Timer(1, proxy.cut).start()
    with pytest.raises(Unreachable):
        transport.run(["sleep", "60"], 60)
    transport.close()


def test_stalled_line(behind: Board, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that goes silent: `Deadline`, although nothing can be killed over it."""
    monkeypatch.setattr("edgesdk.harness.ssh.KILL_SECONDS", 0.5)
    transport = SshTransport(behind)
    proxy.stalled.set()
    try:
        with pytest.raises(Deadline):
            transport.run(["true"], 1)
    finally:
        proxy.stalled.clear()
        transport.close()


def test_cut_upload_is_resumed(behind: Board, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in the middle of an upload: reconnected, continued from the part, whole in the end."""
    from edgesdk.files import sha256_bytes
    from edgesdk.harness.deploy import deploy
    from edgesdk.harness.session import Session

    data = bytes(range(256)) * 32000
    name = sha256_bytes(data)
    (tmp_path / "blob").write_bytes(data)
    offsets: list[int] = []
    original = SshTransport.put

    def put(self: SshTransport, local: Path, remote: str, offset: int = 0) -> None:
        offsets.append(offset)
        original(self, local, remote, offset)

    monkeypatch.setattr(SshTransport, "put", put)
    with Session(behind) as session:
        deploy(session, {})
        proxy.limit = 6_000_000  # more than sshd's window of 2 MiB, so that some of it was written
        deploy(session, {name: tmp_path / "blob"})
        session.step(lambda transport: transport.get(f"{behind.state}/blobs/{name}", tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    assert offsets[0] == 0 and len(offsets) == 2 and offsets[1] > 0
    assert proxy.connections == 2


def test_shell_that_runs_nothing(remote: Board, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account without a usable shell is named as such."""
    from edgesdk.harness import ssh

    def stubborn(argv: Any) -> str:
        return "echo This account is not available >&2; exit 1"

    transport = SshTransport(remote)
    monkeypatch.setattr(ssh.shlex, "join", stubborn)
    monkeypatch.setattr(ssh, "FRAME", "{}")
    with pytest.raises(BoardError, match="login shell"):
        transport.run(["true"], 20)
    transport.close()
