"""The shared connection: one for a board, through a jump host, with keys of a file or an agent."""

from __future__ import annotations

import dataclasses
import getpass
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness_sshd import Server, free_port, make_key

from edgesdk.errors import BoardError, ConfigError, HostKey, Unreachable
from edgesdk.harness.board import Board
from edgesdk.harness.connection import CIPHER, Connection, jump_board, scan_board, shared
from edgesdk.harness.emulate.proxy import FaultProxy
from edgesdk.harness.farm import load_farm
from edgesdk.harness.hostkeys import trust
from edgesdk.harness.ssh import SshTransport
from edgesdk.testing.needs import need


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as running:
        yield running


@pytest.fixture
def jumped(server: Server, proxy: FaultProxy, tmp_path: Path) -> Board:
    """A board whose port is only a port of the proxy, reached through sshd as a jump host; both keys pinned."""
    line = server.known_hosts_line()
    (tmp_path / "pins").write_text(line + line.replace(str(server.port), str(proxy.port), 1))
    board = server.board(tmp_path / "pins", port=proxy.port)
    return dataclasses.replace(board, proxy_jump=f"{getpass.getuser()}@127.0.0.1:{server.port}")


def test_one_connection_for_all(remote: Board) -> None:
    """Transports of one board share a connection while one of them lives; then it is closed, its thread too."""
    first, second = SshTransport(remote), SshTransport(remote)
    assert first._connection is second._connection
    first.close()

    def echo(number: int) -> bytes:
        transport = SshTransport(remote)
        assert transport._connection is second._connection
        with_number = transport.run(["echo", str(number)], 120).stdout
        transport.close()
        return with_number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(echo, range(8))) == [f"{number}\n".encode() for number in range(8)]
    assert second.run(["echo", "x"], 60).stdout == b"x\n"
    kept = second._connection
    second.close()
    assert not kept.alive()


def test_close_ends_everything(remote: Board) -> None:
    """After the last user: no thread, no socket, and a new transport gets a new connection."""
    before = set(threading.enumerate())
    with shared(dataclasses.replace(remote, name="alone")) as connection:
        assert connection.alive()
    end = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.05)
    assert not set(threading.enumerate()) - before and not connection.alive()


def test_cipher_and_threads_of_operations(remote: Board) -> None:
    """The cipher that costs least where the server has it; an operation that has ended leaves no thread."""
    with shared(remote) as connection:
        assert connection.protocol.local_cipher == connection.protocol.remote_cipher == CIPHER
        before = threading.active_count()
        for _ in range(20):
            with connection.watch(60, "a test"):
                pass
            assert threading.active_count() <= before


def test_a_dead_connection_is_replaced(remote: Board) -> None:
    """Whoever comes after a connection was severed gets a new one, although the old one has users."""
    board = dataclasses.replace(remote, name="severed")
    old = SshTransport(board)
    old._connection.sever()
    with pytest.raises(Unreachable):
        old.run(["true"], 60)
    new = SshTransport(board)
    assert new.run(["echo", "x"], 60).stdout == b"x\n"
    old.close()
    assert new.run(["echo", "y"], 60).stdout == b"y\n"
    new.close()


def test_proxy_jump(jumped: Board, proxy: FaultProxy) -> None:
    """Commands and files go through the jump host; its key is pinned as the board's is."""
    transport = SshTransport(jumped)
    assert transport.run(["wc", "-c"], 60, input=bytes(3_000_000)).stdout.split() == [b"3000000"]
    transport.close()
    assert proxy.connections == 1
    fingerprint = scan_board(jumped).fingerprint
    jump = jump_board(jumped)
    assert jump is not None and jumped.known_hosts is not None
    jumped.known_hosts.write_text("")
    with pytest.raises(HostKey, match=rf"remote-jump \(127.0.0.1:{jump.port}\).*not known"):
        SshTransport(jumped)
    with pytest.raises(HostKey, match="remote-jump"):
        scan_board(jumped)
    trust(jump, fingerprint)
    with pytest.raises(HostKey, match=rf"remote \(127.0.0.1:{jumped.port}\).*not known"):
        SshTransport(jumped)
    trust(jumped, fingerprint, scan_board(jumped))
    SshTransport(jumped).close()


def test_board_behind_a_jump_host_that_is_away(jumped: Board) -> None:
    """The message names both."""
    port = free_port()
    with pytest.raises(Unreachable, match=rf"remote-jump .* does not get through to 127.0.0.1:{port}"):
        SshTransport(dataclasses.replace(jumped, port=port))


@pytest.mark.parametrize(
    ("jump", "words"),
    [("bastion", "proxy_jump"), ("a@-oProxyCommand=x", "proxy_jump"), ("a@b:c", "proxy_jump"), ("a;b@c", "proxy_jump")],
)
def test_hostile_jump_hosts(tmp_path: Path, jump: str, words: str) -> None:
    """farm.toml takes USER@HOST or USER@HOST:PORT only."""
    farm = tmp_path / "farm.toml"
    text = 'format = "edgesdk.farm"\nversion = 1\n[boards.pi]\ntarget = "host"\nhost = "192.0.2.1"\nproxy_jump = "{}"\n'
    farm.write_text(text.format(jump))
    with pytest.raises(ConfigError, match=words):
        load_farm(farm)
    farm.write_text(text.format("edge@bastion.example:2222"))
    found = jump_board(load_farm(farm)["pi"])
    assert found is not None and (found.user, found.host, found.port) == ("edge", "bastion.example", 2222)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty ssh-agent."""
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.wait(10)


def test_keys_of_the_agent(remote: Board, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key file the agent's keys are tried; a file with a passphrase works when the agent holds its key."""
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    bare = dataclasses.replace(remote, key=None)
    with pytest.raises(ConfigError, match="none in the SSH agent"):
        SshTransport(bare)
    assert remote.key is not None
    locked = tmp_path / "locked"
    locked.write_bytes(remote.key.read_bytes())
    locked.chmod(0o600)
    locked.with_name("locked.pub").write_text(remote.key.with_name(remote.key.name + ".pub").read_text())
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "passphrase", "-P", "", "-f", str(locked)], check=True)
    named = dataclasses.replace(remote, key=locked)
    with pytest.raises(ConfigError, match="wants a passphrase"):
        SshTransport(named)
    subprocess.run(["ssh-add", "-q", str(make_key(tmp_path / "stranger"))], check=True)
    subprocess.run(["ssh-add", "-q", str(remote.key)], check=True)
    for board in (bare, named):
        transport = SshTransport(board)
        assert transport.run(["echo", "in"], 60).stdout == b"in\n"
        transport.close()


def test_server_that_wants_a_password(tmp_path: Path) -> None:
    """A server that takes passwords only is said to be one; no password is asked for or sent."""
    need(os.geteuid() == 0, "an sshd with passwords wants root")
    from harness_sshd import run_sshd

    with run_sshd(tmp_path / "sshd", tmp_path / "home") as running:
        config = tmp_path / "sshd/sshd_config"
        text = config.read_text().replace("PasswordAuthentication no", "PasswordAuthentication yes")
        text = text.replace("PermitRootLogin prohibit-password", "PermitRootLogin yes")
        port = free_port()
        config.write_text(text.replace(str(running.port), str(port)) + "PubkeyAuthentication no\n")
        process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
        try:
            (tmp_path / "pins").write_text(running.known_hosts_line().replace(str(running.port), str(port)))
            board = running.board(tmp_path / "pins", port=port)
            for _ in range(200):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            with pytest.raises(BoardError, match="takes no keys from .*, only: .*password") as caught:
                Connection(board)
            assert caught.value.exit_code == 4 and "PubkeyAuthentication" in caught.value.hint
        finally:
            process.terminate()
            process.wait(10)
