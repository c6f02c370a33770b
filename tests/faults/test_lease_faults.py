"""Faults of those who share a board: a stopped harness, two databases, a locked database, Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness_artifacts import assert_measured, runner, runner_artifact

from edgesdk.errors import Busy, LeaseLost
from edgesdk.harness.board import Board
from edgesdk.harness.facts import deploy_worker
from edgesdk.harness.job import run_job
from edgesdk.harness.leases import Lease, Leases
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.session import Session
from edgesdk.targets.target import Target

QUICK = load_profile("quick")
# Each run of the artifact leaves a line, so that a second start would be seen.
TRACE = "open('{path}', 'a').write(options.action + chr(10)); time.sleep({sleep})"
MEASURE = """
import sys
from pathlib import Path
from edgesdk.harness.farm import HOST
from edgesdk.harness.measure import load_profile, measure
from edgesdk.targets.target import load_target
(document,) = measure(HOST, load_target("host"), [Path(sys.argv[1])], evaluation=None, profile=load_profile("quick"),
                      seed=0, workdir=Path(sys.argv[2]))
print(document["valid"], len(document["rounds"]))
"""
PAUSED = """
import sys
from edgesdk.errors import LeaseLost
from edgesdk.harness import leases
from edgesdk.harness.farm import HOST
leases.TTL_SECONDS = 8.0
with leases.Leases().acquire(HOST) as lease:
    print(lease.epoch, flush=True)
    sys.stdin.readline()
    try:
        lease.check()
        print("still mine", flush=True)
    except LeaseLost as problem:
        print(problem.message, flush=True)
"""


def python(code: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """A process that runs `code`, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Unchecked(Lease):
    """A lease whose holder passed its check just before it was stopped."""

    def check(self) -> None:
        """Says yes."""


def test_fault_15_paused_harness(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A is stopped, B takes the board when A's time is over, A wakes: A's lease is lost, and what A had already decided
    to start is refused by the board; B's numbers are untouched."""
    monkeypatch.setattr("edgesdk.harness.leases.TTL_SECONDS", 8.0)
    first = python(PAUSED)
    try:
        epoch = int(read_line(first))
        with pytest.raises(Busy):
            Leases().acquire(host)
        first.send_signal(signal.SIGSTOP)
        trace = tmp_path / "trace"
        folder = runner_artifact(tmp_path / "a", runner(TRACE.format(path=trace, sleep=0)))
        (document,) = measure(
            host, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "b"
        )
    finally:
        first.send_signal(signal.SIGCONT)
    answer = first.communicate("\n", timeout=60)[0]
    assert "E_LEASE_LOST" in answer and f"epoch {epoch}" in answer
    assert document["valid"], document["reasons"]
    ran = trace.read_text()
    with Session(host) as session:
        worker = deploy_worker(session)
        late = Unchecked(Leases(), host, "A", epoch, 0.0)
        request = {"format": "edgesdk.job", "version": 1, "lock_wait_s": 0, "candidates": []}
        with pytest.raises(LeaseLost, match=f"E_FENCED: lease epoch {epoch} is stale") as caught:
            run_job(session, worker, request, {}, tmp_path / "late", lambda *step: None, late)
        late.release()
    assert caught.value.exit_code == 4 and trace.read_text() == ran


def test_fault_16_two_databases(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two harnesses with a database each hold a lease each: the board takes one job, and the second gets 73, `Busy`."""
    trace = tmp_path / "trace"
    slow = runner_artifact(tmp_path / "a", runner(TRACE.format(path=trace, sleep=3)))
    first = python(MEASURE, slow, tmp_path / "first", EDGESDK_LEASES=str(tmp_path / "other.sqlite"))
    while not trace.exists():
        assert first.poll() is None, "the first harness ended before its job ran"
        time.sleep(0.02)
    monkeypatch.setattr("edgesdk.harness.measure.LOCK_WAIT_SECONDS", 0)
    quick = runner_artifact(tmp_path / "b", runner())
    with pytest.raises(Busy, match="another job holds the board"):
        measure(host, target, [quick], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "second")
    with Session(host) as session:
        argv = [host.python, deploy_worker(session), "fence", "--state", host.state, "--epoch", str(1 << 40)]
        assert session.step(lambda transport: transport.run(argv, 60)).returncode == 73
    assert first.communicate(timeout=120)[0].startswith("True ")


def test_fault_18_locked_database(host: Board, leases: Path) -> None:
    """Another process locks the database for 10 s: acquire, renew and release wait, nothing crashes."""
    Leases().acquire(host).release()
    code = (
        "import sqlite3, sys, time\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None); database.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True); time.sleep(10); database.execute('COMMIT')"
    )
    locker = python(code, leases)
    assert read_line(locker) == "locked"
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(leases, timeout=0, isolation_level=None).execute("BEGIN IMMEDIATE")
    with Leases().acquire(host) as lease:
        lease.renew()
        lease.check()
    assert locker.wait(60) == 0
    assert Leases().holder(host).owner is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fault_34_cancelled(remote: Board, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM: the job's processes on the board are gone, the lease is given back, exit code 130."""
    trace = tmp_path / "pid"
    fault = f"open({str(trace)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    folder = runner_artifact(tmp_path / "a", runner(fault))
    farm = tmp_path / "farm.toml"
    entry = {
        "target": remote.target, "host": str(remote.host), "port": remote.port, "user": str(remote.user),
        "key": str(remote.key), "known_hosts": str(remote.known_hosts), "python": remote.python,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    farm.write_text("\n".join(['format = "edgesdk.farm"', "version = 1", "[boards.remote]", *lines, ""]))
    argv = [sys.executable, "-m", "edgesdk", "bench", str(folder), "--board", "remote", "--farm", str(farm)]
    argv += ["--profile", "quick"]  # others wait for an idle machine first
    bench = subprocess.Popen(
        [*argv, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True,
        # A shell starts what runs in its background deaf to Ctrl-C; this process is not to inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    while not trace.exists() or not trace.read_text():
        assert bench.poll() is None, bench.communicate()[1]
        time.sleep(0.05)
    assert Leases().holder(remote).owner is not None
    bench.send_signal(number)
    start = time.monotonic()
    errors = bench.communicate(timeout=100)[1]
    took = time.monotonic() - start
    assert bench.returncode == 130 and "cancelled" in errors, errors
    assert not Path(f"/proc/{trace.read_text()}").exists()
    assert Leases().holder(remote).owner is None
    assert not list((tmp_path / "out").glob("*/job.json")), f"after {took:.1f} s the job was not stopped on the board"


def test_fault_36_hostile_names(remote: Board, target: Target, tmp_path: Path) -> None:
    """Blanks, quotes, `;`, line ends in names and paths reach the board as words; a path that leaves its folder is
    refused; nothing of it is executed."""
    evil = f"a b'\";touch {shlex.quote(str(tmp_path / 'pwned'))};\n$(touch {tmp_path}/pwned)`touch {tmp_path}/pwned`"
    parent = tmp_path / "it's; a \"folder\""
    folder = runner_artifact(parent / "a", runner(), name=evil)
    (document,) = measure(
        remote, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=parent / "work\nhere"
    )
    assert_measured(document)
    assert document["name"] == evil
    for name in ("../../elsewhere", "$(touch pwned)", "a;b"):
        bad = runner_artifact(parent / str(len(name)), runner())
        text = (bad / "artifact.json").read_text()
        (bad / name).parent.mkdir(parents=True, exist_ok=True)
        (bad / name).write_bytes(runner())
        (bad / "artifact.json").write_text(text.replace('"model"', json.dumps(name)))
        try:
            (document,) = measure(
                remote, target, [bad], evaluation=None, profile=QUICK, seed=0, workdir=parent / "work"
            )
        except Exception as problem:
            assert "path" in str(problem) or name in str(problem)
        else:
            assert not document["valid"] and "illegal path" in " ".join(document["reasons"])
    assert not (tmp_path / "pwned").exists()
    with Session(remote) as session:
        listed = session.step(lambda transport: transport.run(["find", remote.state, "-name", "*pwned*"], 60))
    assert listed.stdout == b""
