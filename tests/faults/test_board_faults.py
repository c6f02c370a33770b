"""Faults of the board itself: full or read-only disk, a clone of another board, no root, no power, no linger."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness_artifacts import assert_measured, runner, runner_artifact
from harness_sshd import Server

from edgesdk.errors import DiskFull, Identity, PowerError, Quarantined, ReadOnly
from edgesdk.files import sha256_bytes
from edgesdk.harness.agents import with_room
from edgesdk.harness.board import Board
from edgesdk.harness.deploy import deploy
from edgesdk.harness.emulate.proxy import FaultProxy
from edgesdk.harness.facts import check_identity, identity_of
from edgesdk.harness.leases import Leases
from edgesdk.harness.local import LocalTransport
from edgesdk.harness.measure import load_profile, measure, probe
from edgesdk.harness.power import Boot, Plug, plug_of, power_cycle, read_boot
from edgesdk.harness.privileges import LOST, privileges
from edgesdk.harness.session import Session
from edgesdk.harness.worker import launch
from edgesdk.targets.target import Target
from edgesdk.testing.needs import need

QUICK = load_profile("quick")
SMALL = 16 << 20


@pytest.fixture
def small_disk(server: Server) -> Iterator[Path]:
    """A file system of 16 MiB, `small` in the board's home."""
    need(os.geteuid() == 0, "mounting a small file system wants root")
    folder = server.folder.parent / "home" / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "edgesdk-test", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


def blob(folder: Path, data: bytes) -> tuple[str, Path]:
    """A local file and its digest."""
    name = sha256_bytes(data)
    (folder / name).write_bytes(data)
    return name, folder / name


def old_blob(folder: Path, letter: str, size: int, age_s: int) -> Path:
    """A blob that an earlier job left on the board."""
    path = folder / "state/blobs" / (letter * 64)
    path.write_bytes(bytes(size))
    when = path.stat().st_mtime - age_s
    os.utime(path, (when, when))
    return path


def test_fault_07_disk_full(
    behind: Board, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: our own files go, least recently used first, never others'; one retry; then `DiskFull`."""
    monkeypatch.setattr("edgesdk.harness.deploy.SPARE_BYTES", 1 << 20)
    board = dataclasses.replace(behind, state="small/state")
    with Session(board) as session:
        deploy(session, {})
        foreign = [small_disk / "photo.jpg", small_disk / "state/blobs/notes", small_disk / "state/jobs/result"]
        for path in foreign:
            path.write_bytes(bytes(100_000))
        oldest = old_blob(small_disk, "a", 6 << 20, 9000)
        newer = old_blob(small_disk, "b", 6 << 20, 5000)
        name, path = blob(tmp_path, os.urandom(3 << 20))
        assert deploy(session, {name: path}) == 3 << 20
        assert not oldest.exists() and newer.exists() and all(path.exists() for path in foreign)

        # What `df` does not know is found by the write itself: room is made then, and the upload done once more.
        monkeypatch.setattr("edgesdk.harness.deploy.SPARE_BYTES", -(1 << 30))
        filler = small_disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - (1 << 20)))
        second, path = blob(tmp_path, os.urandom(3 << 20))
        deploy(session, {second: path})
        assert not newer.exists() and (small_disk / "state/blobs" / second).read_bytes() == path.read_bytes()

        filler.write_bytes(bytes((10 << 20) - 300_000))
        with pytest.raises(DiskFull, match="no space left") as caught:
            deploy(session, dict([blob(tmp_path, os.urandom(12 << 20))]))
        assert caught.value.exit_code == 4 and all(path.exists() for path in foreign) and filler.exists()


def test_disk_that_is_full_while_the_job_runs(host: Board, tmp_path: Path) -> None:
    """`DiskFull` of a job: what earlier ones left goes, and the job runs once more; not where nothing can go."""
    runs: list[str] = []

    def job() -> tuple[dict[str, str], Path]:
        runs.append("run")
        if len(runs) % 2:
            raise DiskFull("full")
        return {}, tmp_path

    with Session(host) as session, Leases().acquire(host) as lease:
        deploy(session, {})
        left = tmp_path / "home/.edgesdk/blobs" / ("a" * 64)
        left.write_bytes(b"old")
        assert with_room(session, lease, {}, job) == ({}, tmp_path)
        assert not left.exists() and runs == ["run", "run"]
        with pytest.raises(DiskFull):
            with_room(session, lease, {}, job)
        assert runs == ["run"] * 3


def test_fault_08_read_only_disk(
    behind: Board, proxy: FaultProxy, target: Target, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that the kernel made read-only: `ReadOnly`, no retry, and the board is set aside until lifted."""
    monkeypatch.setattr("edgesdk.harness.deploy.SPARE_BYTES", 1 << 20)
    board = dataclasses.replace(behind, state="small/state")
    folder = runner_artifact(tmp_path / "a", runner())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ReadOnly, match="read-only") as caught:
        measure(board, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work")
    assert caught.value.exit_code == 4 and proxy.connections == 1
    with pytest.raises(Quarantined, match="read-only"):
        measure(board, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work")
    assert proxy.connections == 1
    # With room for what a job wants to have free.
    subprocess.run(["mount", "-o", "remount,rw,size=512m", str(small_disk)], check=True)
    assert Leases().lift(board)
    (document,) = measure(board, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work")
    assert_measured(document)


def test_fault_13_cloned_card(remote: Board, target: Target, tmp_path: Path) -> None:
    """The right host key and machine id in another machine: the serial number, or the model, gives it away before
    anything is measured, and the lease is given back."""
    facts = probe(remote)
    found = identity_of(facts)
    same = dataclasses.replace(remote, machine_id=found["machine_id"], model=found["model"])
    check_identity(same, facts)
    folder = runner_artifact(tmp_path / "a", runner("open('never', 'w')"))
    for change in ({"serial": "10000000a1b2c3d4"}, {"model": "Raspberry Pi 5 Model B Rev 1.0"}):
        board = dataclasses.replace(same, **change)
        with pytest.raises(Identity, match=f"E_IDENTITY.*pins {next(iter(change))}") as caught:
            measure(board, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work")
        assert caught.value.exit_code == 4 and Leases().holder(board).owner is None
    assert not (tmp_path / "work/job.json").exists()


def test_fault_32_sudo_wants_a_password(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sudo that wants a password fails at once; the measurement goes on without root and says which checks are lost."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = "#!/bin/sh\n[ \"$1\" = -n ] || exec sleep 1000\necho 'sudo: a password is required' >&2\nexit 1\n"
    for name, text in (("sudo", script), ("id", "#!/bin/sh\necho 1000\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    usual = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{programs}:{usual}")
    asked = privileges(LocalTransport())
    assert (asked.by, asked.code, asked.lost) == ("none", "E_SUDO", LOST)
    assert asked.reason == "sudo -n: sudo: a password is required"
    steps: list[str] = []
    folder = runner_artifact(tmp_path / "a", runner())
    (document,) = measure(
        host, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work",
        progress=lambda step, done, total: steps.append(step),
    )
    assert document["valid"], document["reasons"]
    assert document["facts"]["privileges"]["code"] == "E_SUDO"
    assert [step for step in steps if step.startswith("without root") and LOST[0] in step]
    (programs / "sudo").write_text("#!/bin/sh\nexit 0\n")
    assert privileges(LocalTransport()).by == "sudo"
    (programs / "id").write_text("#!/bin/sh\necho 0\n")
    assert privileges(LocalTransport()).by == "root"


class FakePlug(ThreadingHTTPServer):
    """A Shelly or Tasmota plug on 127.0.0.1; `obeys` False switches nothing, `switched` lists what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _PlugHandler)
        self.on = True
        self.obeys = True
        self.junk = b""
        self.switched: list[bool] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _PlugHandler(BaseHTTPRequestHandler):
    server: FakePlug

    def do_GET(self) -> None:
        """Both kinds of interface."""
        wanted = {"/rpc/Switch.Set?id=0&on=true": True, "/cm?cmnd=Power%20On": True}
        wanted |= {"/rpc/Switch.Set?id=0&on=false": False, "/cm?cmnd=Power%20Off": False}
        plug = self.server
        if self.path in wanted:
            plug.switched.append(wanted[self.path])
            plug.on = wanted[self.path] if plug.obeys else plug.on
        reply = {"POWER": "ON" if plug.on else "OFF"} if self.path.startswith("/cm") else {"output": plug.on}
        data = plug.junk or json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def plug() -> Iterator[FakePlug]:
    with FakePlug() as running:
        yield running
        running.shutdown()


@pytest.mark.parametrize("kind", ["shelly", "tasmota"])
def test_fault_41_power_cycle(plug: FakePlug, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cycle is confirmed by a new boot id and a short uptime; a dead plug, one that does not obey and one that
    feeds another board are `PowerError`, and nothing is ever cycled twice."""
    monkeypatch.setattr("edgesdk.harness.power.time.sleep", lambda seconds: None)
    board = Board("pi", "raspberry-pi/5", "192.0.2.1", power=(kind, plug.url))
    boots = [Boot("first", 90000.0), Boot("second", 20.0)]

    def cycle(look: list[Boot], fed: Plug) -> Boot:
        answers = iter(look)
        with Leases().acquire(board) as lease:
            return power_cycle(lease, fed, lambda: next(answers))

    fed = plug_of(board)
    assert cycle(boots, fed) == boots[1] and plug.switched == [False, True]
    plug.switched.clear()
    with pytest.raises(PowerError, match=r"did not restart \(E_POWER\)") as caught:
        cycle([boots[0], Boot("first", 90009.0)], fed)
    assert caught.value.exit_code == 4 and plug.switched == [False, True]
    with pytest.raises(PowerError, match="right after a power cycle"):
        cycle([boots[0], Boot("second", 90009.0)], fed)
    plug.switched.clear()
    plug.obeys = False
    with pytest.raises(PowerError, match="asked to be off, it says"):
        cycle(boots, fed)
    assert plug.switched == [False]
    plug.junk = b"\x1b[2J<html>"
    with pytest.raises(PowerError, match="E_POWER"):
        cycle(boots, fed)
    plug.shutdown()
    plug.server_close()
    with pytest.raises(PowerError, match="E_POWER") as caught:
        cycle(boots, fed)
    assert str(caught.value).replace("\n  try: ", "").isprintable()


def test_boot_is_read_from_the_board(remote: Board) -> None:
    """Boot id and uptime, over the same connection that everything takes."""
    with Session(remote) as session:
        boot = session.step(read_boot)
    assert boot.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip() and boot.uptime_s > 0


def test_fault_43_no_linger(host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`systemd-run` is there, linger is not: known before, the job starts by setsid, and the log says so."""
    programs = tmp_path / "bin"
    programs.mkdir()
    called = tmp_path / "called"
    (programs / "systemd-run").write_text(f"#!/bin/sh\necho \"$@\" >> {called}\nexit 1\n")
    (programs / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert launch.has_linger() is False
    kept = tmp_path / "log"
    folder = runner_artifact(
        tmp_path / "a", runner(f"import shutil; shutil.copy(os.path.expanduser('~/.edgesdk/jobs/')"
                               f" + os.listdir(os.path.expanduser('~/.edgesdk/jobs'))[0] + '/log', {str(kept)!r})")
    )
    (document,) = measure(host, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work")
    assert document["valid"], document["reasons"]
    assert "setsid: no linger for this user" in kept.read_text()
    assert not called.exists()
