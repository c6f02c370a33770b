"""The fault proxy does what it says, and nothing else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from edgesdk.harness.emulate.proxy import FaultProxy, Faults


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass


@pytest.fixture
def echo() -> Iterator[Echo]:
    running = Echo()
    yield running
    running.listener.close()


def dial(proxy: FaultProxy) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port), 10)
    connection.settimeout(10)
    return connection


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(65536)):
        data += more
    return data


def test_bytes_pass_unchanged(echo: Echo) -> None:
    """Without faults everything arrives, in order, and the end of input too; no thread is left after close."""
    data = bytes(range(256)) * 4000
    before = threading.active_count()
    with FaultProxy(echo.port) as proxy, dial(proxy) as client:
        threading.Thread(target=client.sendall, args=(data,)).start()
        assert read(client, len(data)) == data
        client.shutdown(socket.SHUT_WR)
        assert client.recv(10) == b""
        assert (proxy.connections, proxy.up_bytes, proxy.down_bytes) == (1, len(data), len(data))
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.02)
    assert threading.active_count() <= before
    with pytest.raises(OSError):
        dial(proxy)


def test_cut_after_bytes_happens_once(echo: Echo) -> None:
    """The connection dies after the bytes; the next one lives."""
    with FaultProxy(echo.port, faults=Faults(cut_after_bytes=100_000)) as proxy:
        with dial(proxy) as client, pytest.raises(OSError):
            for _ in range(1000):
                client.sendall(bytes(1000))
                client.recv(1000)
        assert proxy.up_bytes <= 120_000
        with dial(proxy) as client:
            client.sendall(bytes(200_000))
            assert len(read(client, 200_000)) == 200_000


def test_cut_after_seconds(echo: Echo) -> None:
    """Each connection dies of age."""
    with FaultProxy(echo.port, faults=Faults(cut_after_s=0.2)) as proxy:
        for _ in range(2):
            with dial(proxy) as client, pytest.raises(ConnectionResetError):
                client.recv(1)


def test_cut_now(echo: Echo) -> None:
    """`cut` from another thread resets what is open."""
    with FaultProxy(echo.port) as proxy, dial(proxy) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_stall_holds_bytes_back(echo: Echo) -> None:
    """Nothing moves while it is stalled, nothing is lost after."""
    with FaultProxy(echo.port, faults=Faults(stalled=True)) as proxy, dial(proxy) as client:
        client.sendall(b"hello")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(5)
        proxy.faults.stalled = False
        client.settimeout(10)
        assert read(client, 5) == b"hello"


def test_silence_and_refusal(echo: Echo) -> None:
    """Silent: accepted, nothing said. Refused: closed at once."""
    with FaultProxy(echo.port, faults=Faults(silent=True)) as proxy:
        with dial(proxy) as client:
            client.sendall(b"x")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
        proxy.faults.silent = False
        proxy.faults.refused = True
        with dial(proxy) as client:
            assert client.recv(1) == b""


def test_delay_and_bandwidth_slow_it(echo: Echo) -> None:
    """A delay is waited both ways; 200 kB at 400 kB/s take half a second and more (lower bounds only)."""
    with FaultProxy(echo.port, faults=Faults(delay_s=0.2)) as proxy:
        with dial(proxy) as client:
            start = time.monotonic()
            client.sendall(b"x")
            client.recv(1)
            assert time.monotonic() - start >= 0.4
        proxy.faults.delay_s, proxy.faults.bytes_per_s = 0, 400_000
        with dial(proxy) as client:
            start = time.monotonic()
            threading.Thread(target=client.sendall, args=(bytes(200_000),)).start()
            assert len(read(client, 200_000)) == 200_000
            assert time.monotonic() - start >= 0.4


def test_loss_resets_a_connection_and_is_seeded(echo: Echo) -> None:
    """Some connections die, others do not; the same seed lets the same die."""

    def lives(seed: int) -> list[bool]:
        with FaultProxy(echo.port, faults=Faults(loss=0.2), seed=seed) as proxy:
            return [alive(proxy) for _ in range(8)]

    def alive(proxy: FaultProxy) -> bool:
        with dial(proxy) as client:
            try:
                client.sendall(b"x")
                return client.recv(1) == b"x"
            except OSError:
                return False

    assert lives(1) == lives(1)
    assert set(lives(1)) == {True, False}
