"""What every fault test gets: the fixtures of the harness tests, a fault proxy, a deadline, and a look at what is left.

A test file may set `DEADLINE_SECONDS` for its own tests.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from edgesdk.harness.board import Board
from edgesdk.harness.emulate.proxy import FaultProxy

_path = Path(__file__).parents[1] / "harness" / "conftest.py"
_spec = importlib.util.spec_from_file_location("harness_fixtures", _path)
assert _spec is not None and _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

from harness_sshd import Server  # noqa: E402  (the line above makes it importable)

host, target, server, remote = _fixtures.host, _fixtures.target, _fixtures.server, _fixtures.remote
leases = _fixtures.leases
DEADLINE_SECONDS = 240.0
LEAVE_SECONDS = 15.0


@pytest.fixture(autouse=True)
def deadline(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every fault has an end: a test that hangs is interrupted with a traceback of where."""

    def overdue(number: int, frame: FrameType | None) -> None:
        pytest.fail("the fault test passed its deadline")

    before = signal.signal(signal.SIGALRM, overdue)
    signal.setitimer(signal.ITIMER_REAL, getattr(request.module, "DEADLINE_SECONDS", DEADLINE_SECONDS))
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def nothing_left(deadline: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """After a fault no thread of this process and no process that works in the test's folders is left."""
    homes = [str(tmp_path)]
    if "server" in request.fixturenames:
        homes.append(str(request.getfixturevalue("server").folder.parent / "home"))
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + LEAVE_SECONDS
    while True:
        threads = [thread.name for thread in threading.enumerate() if thread not in before and thread.is_alive()]
        processes = [line for line in processes_at_home(homes) if line]
        if not threads and not processes:
            return
        if time.monotonic() > end:
            pytest.fail(f"left behind: threads {threads}, processes {processes}")
        time.sleep(0.1)


def processes_at_home(homes: list[str]) -> list[str]:
    """Command lines of processes whose HOME is one of these folders, or lies in one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if state not in "ZX" and any(f"HOME={home}".encode() in variable for variable in variables for home in homes):
            found.append(f"{entry.name}: {line[:200]}")
    return found


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """A fault proxy in front of the session's sshd."""
    with FaultProxy(server.port) as running:
        yield running


@pytest.fixture
def behind(server: Server, proxy: FaultProxy, tmp_path: Path) -> Board:
    """The board as it is reached through the proxy."""
    return through(server, proxy, tmp_path / "known_hosts_proxy")


def through(server: Server, proxy: FaultProxy, known_hosts: Path) -> Board:
    """A board of its own behind a proxy, its key pinned."""
    known_hosts.write_text(server.known_hosts_line().replace(str(server.port), str(proxy.port), 1))
    return dataclasses.replace(server.board(known_hosts), port=proxy.port, name=f"board-{proxy.port}")
