"""Boards without Python: NEON runners measured by a worker in POSIX sh, on dash and on busybox over a real sshd."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_artifacts import assert_measured, golden_rows, onnx_artifact, runner, runner_artifact, weights
from harness_sshd import SSHD, run_sshd
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.errors import Busy, LeaseLost
from edgesdk.harness.abilities import abilities
from edgesdk.harness.board import Board
from edgesdk.harness.measure import Evaluation, load_profile, measure, probe
from edgesdk.harness.session import Session
from edgesdk.harness.shell import snapshot
from edgesdk.harness.shell.job import ask, run_steps, send_worker
from edgesdk.harness.shell.report import Report, Step, parse_report
from edgesdk.harness.verify import verify_measurement
from edgesdk.harness.worker import ready
from edgesdk.targets.target import Target
from edgesdk.testing.needs import need

QUICK = load_profile("quick")
BUSYBOX = shutil.which("busybox")


@pytest.fixture
def bare(host: Board) -> Board:
    """This machine, as a board without Python."""
    return dataclasses.replace(host, python="python-of-no-board")


@pytest.fixture
def busybox(tmp_path: Path) -> Iterator[Board]:
    """A board over SSH whose only commands are those of busybox."""
    need(SSHD is not None, "no sshd here")
    need(BUSYBOX is not None, "no busybox here: apt-get install busybox-static")
    assert BUSYBOX is not None
    commands = tmp_path / "commands"
    subprocess.run(["sh", "-c", 'mkdir "$1" && "$0" --install -s "$1"', BUSYBOX, str(commands)], check=True)
    with run_sshd(tmp_path / "sshd", tmp_path / "busybox-home") as server:
        session = server.folder / "session"
        session.write_text(
            f'#!{BUSYBOX} sh\nexport HOME={tmp_path}/busybox-home PATH={commands}\ncd "$HOME"\n'
            'exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(server.known_hosts_line())
        yield server.board(known_hosts, python="python3")


def run(board: Board, target: Target, folder: Path, program: bytes, **changes: Any) -> dict[str, Any]:
    """Measure one artifact; the document verifies."""
    artifact = runner_artifact(folder / "a", program)
    values: dict[str, Any] = {"evaluation": None, "profile": QUICK, "seed": 0, "workdir": folder / "work", **changes}
    (document,) = measure(board, target, [artifact], **values)
    verify_measurement(folder / "work" / document["artifact"])
    return document


def test_a_neon_artifact_is_measured(bare: Board, target: Target, tmp_path: Path) -> None:
    """Golden check, evaluation and rounds; what was not looked at is labelled and listed."""
    rows = golden_rows(40, 1)
    document = run(bare, target, tmp_path, runner(), evaluation=Evaluation([rows], 40))
    assert document["valid"], document["reasons"]
    assert document["golden"]["passed"] and len(document["rounds"]) == 2
    assert "unsampled" in document["latency_ms"]["labels"] and document["latency_ms"]["p50"] > 0
    assert document["facts"]["agent"] == "shell" and "energy" in document["facts"]["without_python"][0]
    assert document["energy_mj"]["value"] is None and document["energy_mj"]["provenance"] == "unmeasured"
    assert document["peak_rss_bytes"]["value"] == 4096
    outputs = (tmp_path / "work" / document["artifact"] / "evaluation.bin").read_bytes()
    assert np.allclose(np.frombuffer(outputs, "<f4").reshape(40, 3), rows @ weights(), atol=1e-4)
    environment = document["rounds"][0]["environment"]
    assert environment["wall_s"] >= 0 and environment["trace"] == []
    assert [start["boot_id"] for start in document["facts"]["starts"]] == [document["facts"]["boot_id"]]
    state = Path.home() / ".edgesdk"
    assert not list((state / "jobs").iterdir()) and not list((tmp_path / "work").glob("*.json*"))


def test_on_busybox_over_ssh(
    busybox: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but busybox: the NEON runner is measured, an ONNX artifact is refused with the reason."""
    monkeypatch.setattr(ready, "MOST_LOAD", 1e9)
    neon, onnx = runner_artifact(tmp_path / "a", runner()), onnx_artifact(tmp_path / "b")
    first, second = measure(
        busybox, target, [neon, onnx], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work"
    )
    assert_measured(first)
    assert len(first["rounds"]) == 2 and first["rounds"][0]["environment"]["wall_s"] > 0
    (reason,) = second["reasons"]
    assert reason == (
        "E_PREFLIGHT: onnxruntime needs Python on the board, and remote has no python3: only NEON artifacts run there"
    )
    facts = probe(busybox)
    assert facts["machine"] == os.uname().machine and facts["runtimes"] == {} and facts["cpus"] == os.cpu_count()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", "E_CRASH: golden check: killed by SIGILL"),
        ("sys.exit('x' * 90)", "E_CRASH: golden check: exit 1 (failed): xxxx"),
        ("print('section before') or print('step c0-golden 0') or sys.exit(3)", "E_CRASH: golden check: exit 3"),
        ("options.action == 'bench' and (print('no json') or sys.exit())", "E_CRASH: round 0: the runner printed no"),
        ("options.action == 'run' and sys.exit()", "E_ACCURACY: golden check: outputs have 0 bytes"),
    ],
)
def test_faults_of_the_artifact(bare: Board, target: Target, tmp_path: Path, fault: str, words: str) -> None:
    """The same codes as on other boards."""
    (reason,) = run(bare, target, tmp_path, runner(fault))["reasons"]
    assert reason.startswith(words), reason


def test_a_wrong_model_is_never_timed(bare: Board, target: Target, tmp_path: Path) -> None:
    """The golden check comes first."""
    trace = tmp_path / "trace"
    fault = f"open({str(trace)!r}, 'a').write(options.action); rows = None"
    wrong = runner(fault).replace(b"return [sum", b"return [1 + sum")
    (reason,) = run(bare, target, tmp_path, wrong)["reasons"]
    assert reason.startswith("E_ACCURACY") and trace.read_text() == "run"


def test_instructions_are_counted(bare: Board, target: Target, tmp_path: Path) -> None:
    """On an emulated board the program gets the counting plugin in its environment."""
    counting = dataclasses.replace(bare, emulated=True, counting_plugin="/plugin.so")
    document = run(counting, target, tmp_path, runner())
    assert document["valid"], document["reasons"]
    assert document["instructions"]["value"] == 2002 and document["instructions"]["provenance"] == "emulated"
    assert document["latency_ms"]["p50"] is None and document["golden"]["n"] == 8


def job(board: Board, folder: Path, program: str, limit_s: float = 60, **changes: Any) -> Any:
    """One step of a script on a board; the report."""
    folder.mkdir(exist_ok=True)
    script = folder / "script"
    script.write_text("#!/bin/sh\n" + program)
    from edgesdk.files import sha256_file

    digest = sha256_file(script)
    with Session(board) as session:
        worker = send_worker(session)
        wanted = [Step(f"c{index}-step", limit_s, digest, ("word",)) for index in range(2)]
        values = {"blobs": {digest: script}, "workdir": folder, "progress": lambda *step: None, **changes}
        return run_steps(session, worker, wanted, {"request": 1}, "job.json", **values)[0]


def test_a_step_that_does_not_end(bare: Board, tmp_path: Path) -> None:
    """It is killed at its deadline, and the job goes on with the other candidates."""
    report = job(bare, tmp_path / "job", 'case $0 in *) [ -e once ] || { : > once; exec sleep 100; } ;; esac\n', 1)
    assert report.steps["c0-step"].overdue and report.steps["c0-step"].code == 137
    assert not report.steps["c1-step"].overdue and report.steps["c1-step"].code == 0


def test_a_killed_worker_goes_on_where_it_was(bare: Board, tmp_path: Path) -> None:
    """The step that was cut is run again, the finished one is not."""
    trace = tmp_path / "trace"
    # The worker of the first start is the parent of the program.
    program = f'echo x >> {trace}\n[ "$(wc -l < {trace})" -eq 2 ] && kill -9 $PPID\nexit 0\n'
    report = job(bare, tmp_path / "job", program)
    assert trace.read_text().split() == ["x"] * 3 and len(report.starts) == 2
    assert [ran.code for ran in report.steps.values()] == [0, 0]


def test_one_job_at_a_time(bare: Board, tmp_path: Path) -> None:
    """A Python worker's lock holds for the shell worker too."""
    import fcntl

    (tmp_path / "home/.edgesdk").mkdir()
    with (tmp_path / "home/.edgesdk/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another job holds the board"):
            job(bare, tmp_path / "job", "exit 0\n", wait_s=0)


def test_without_flock_a_folder_of_processes(bare: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock names the process that holds it; one that is gone holds nothing."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("sh cat head tail tr sed date uname getconf df sha256sum mkdir cp mv rm chmod env sleep sync wc touch "
                 "setsid kill id").split():
        found = shutil.which(name)
        if found is not None:
            (commands / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(commands))
    state = tmp_path / "home/.edgesdk"
    state.mkdir()
    (state / "lock.pid").write_text(f"{os.getpid()} 1 gone\n")
    assert job(bare, tmp_path / "job", "exit 0\n").steps["c1-step"].code == 0
    start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (state / "lock.pid").write_text(f"{os.getpid()} {start} {boot}\n")
    with pytest.raises(Busy):
        job(bare, tmp_path / "again", "exit 0\n", wait_s=0)


def test_a_stale_lease_is_refused_on_the_board(bare: Board, tmp_path: Path) -> None:
    """The fence is the file of the Python worker."""
    from edgesdk.harness.leases import Leases

    state = tmp_path / "home/.edgesdk"
    state.mkdir()
    with Leases().acquire(bare, 1) as lease:
        (state / "epoch").write_text(str(lease.epoch + 1))
        with pytest.raises(LeaseLost, match=f"E_FENCED: lease epoch {lease.epoch} is stale: {lease.epoch + 1}"):
            job(bare, tmp_path / "job", "exit 0\n", lease=lease)


def test_stop_ends_the_program(bare: Board, tmp_path: Path) -> None:
    """`stop` kills what runs and leaves a final status."""
    trace = tmp_path / "pid"
    problems: list[str] = []

    def measured() -> None:
        try:
            job(bare, tmp_path / "job", f"echo $$ > {trace}\nexec sleep 100\n")
        except Exception as problem:
            problems.append(str(problem))

    thread = threading.Thread(target=measured)
    thread.start()
    while not trace.exists() or not trace.read_text():
        time.sleep(0.02)
    (folder,) = (tmp_path / "home/.edgesdk/jobs").iterdir()
    with Session(bare) as session:
        ask(session, send_worker(session), "stop", bare.state, folder.name)
    thread.join()
    assert "stopped on request" in problems[0]
    assert not Path(f"/proc/{trace.read_text().strip()}").exists()


@given(st.text())
@settings(max_examples=200)
def test_reports_survive_junk(text: str) -> None:
    """Whatever a board sends, the readers give facts or None."""
    steps, wrote, starts = parse_report(text)
    seen = snapshot.sections(text)
    assert isinstance(steps, dict) and isinstance(wrote, dict) and isinstance(starts, list)
    assert snapshot.facts(seen, "x")["runtimes"] == {}
    assert snapshot.surroundings(seen, seen, text)["other_cpu"] >= 0


PATHS = ("/proc/uptime", "/proc/stat", "/proc/vmstat", "/proc/meminfo", "throttled", "date", "disk", "cpus",
         "/proc/pressure/cpu", "/sys/class/thermal/thermal_zone0/temp", "/proc/cpuinfo")


@given(st.dictionaries(st.sampled_from(PATHS), st.text(max_size=60)), st.text(max_size=200))
def test_facts_of_junk_are_facts_or_none(seen: dict[str, str], clocks: str) -> None:
    """They pass the check that every board's facts pass."""
    from edgesdk.errors import Corrupt
    from edgesdk.harness import answers
    from edgesdk.harness.answer_types import Environment

    try:
        answers.check(answers.Facts, snapshot.facts(seen, "x"), "board")
        answers.check(Environment, snapshot.surroundings(seen, seen, clocks), "board")
    except Corrupt:
        pass


def test_surroundings_are_differences() -> None:
    """Counters between two looks, and the program's own CPU time apart from that of others."""
    clocks = (
        "100.00 5.00\ncpu 1000 0 0 9000 0 0 0 0\n0m0.1s 0m0.0s\n0m1.0s 0m1.0s\n"
        "110.00 5.00\ncpu 1500 0 100 9400 0 0 0 0\n0m0.1s 0m0.0s\n0m5.0s 0m1.5s\n"
    )
    before = {"/proc/vmstat": "pswpin 1\npswpout 2", "throttled": "throttled=0x50000", "/proc/pressure/cpu":
              "some avg10=0 total=1000000", "/sys/class/thermal/thermal_zone0/temp": "45000"}
    after = {"/proc/vmstat": "pswpin 1\npswpout 5", "throttled": "throttled=0xd0008", "/proc/pressure/cpu":
             "some avg10=0 total=3000000", "/sys/class/thermal/thermal_zone0/temp": "61000"}
    seen = snapshot.surroundings(before, after, clocks)
    assert (seen["wall_s"], seen["cpu_s"], seen["other_cpu"]) == (10.0, 4.5, 0.15)
    assert (seen["swapped_pages"], seen["psi_cpu"], seen["psi_io"]) == (3, 0.2, None)
    assert (seen["throttled_before"], seen["throttled_now"], seen["throttled_new"]) == (0x50000, 8, 0x80008)
    assert (seen["temperature_start_c"], seen["temperature_end_c"]) == (45.0, 61.0)


def test_what_such_a_board_can_measure(bare: Board, target: Target) -> None:
    """Latency and peak memory of NEON builds; everything else is said to be impossible, and why."""
    found = {entry.what: entry for entry in abilities(bare, target, probe(bare), "root")}
    assert found["latency"].possible and found["runtime neon"].possible and found["memory"].possible
    for name in ("energy", "fixed clock", "cold load", "runtime onnxruntime"):
        assert not found[name].possible and "Python" in found[name].how, name
