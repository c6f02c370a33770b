"""Fixtures of the harness tests; helpers of this folder become importable."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesdk.harness.board import Board
from edgesdk.harness.farm import HOST
from edgesdk.targets.target import Target, load_target
from edgesdk.testing.needs import need

sys.path.insert(0, str(Path(__file__).parent))

from harness_sshd import SSHD, Server, run_sshd  # noqa: E402


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """This machine, with its state and its home in the test's folder."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return dataclasses.replace(HOST, name="host")


@pytest.fixture(autouse=True)
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of leases, one for each test."""
    path = tmp_path / "leases.sqlite"
    monkeypatch.setenv("EDGESDK_LEASES", str(path))
    return path


@pytest.fixture
def target() -> Target:
    return load_target("host")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One sshd for the session; its users' shell prints noise at login."""
    need(SSHD is not None, "no sshd here")
    folder = tmp_path_factory.mktemp("sshd")
    with run_sshd(folder / "sshd", folder / "home") as running:
        (folder / "home" / ".bashrc").write_text("echo 'Welcome to the board!'; echo 'motd' >&2\n")
        yield running


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> Board:
    """The board behind `server`, its key pinned."""
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(server.known_hosts_line())
    return server.board(known_hosts)
