"""Boards without Python: NEON runners measured by a worker in POSIX sh, on dash and on busybox over a real sshd."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_artifacts import (
    QUICK,
    assert_measured,
    golden_rows,
    measure_one,
    onnx_artifact,
    runner,
    runner_artifact,
    weights,
)
from harness_sshd import SSHD, run_sshd
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.errors import BoardError, Busy, Corrupt, Deadline, LeaseLost
from edgesdk.files import sha256_bytes, sha256_file
from edgesdk.harness import answers
from edgesdk.harness.abilities import abilities
from edgesdk.harness.answer_types import Environment
from edgesdk.harness.board import Board
from edgesdk.harness.evict import evict
from edgesdk.harness.measure import Evaluation, measure, probe
from edgesdk.harness.session import Session
from edgesdk.harness.shell import job as shell_job
from edgesdk.harness.shell import snapshot
from edgesdk.harness.shell.job import TOOLS, ask, run_steps, send_worker
from edgesdk.harness.shell.report import Report, Step, parse_report
from edgesdk.harness.transport import Completed
from edgesdk.harness.verify import verify_measurement
from edgesdk.harness.worker import ready
from edgesdk.targets.target import Target
from edgesdk.testing.needs import need

BUSYBOX = shutil.which("busybox")


@pytest.fixture
def bare(host: Board) -> Iterator[Board]:
    """This machine, as a board without Python; no process of it outlives a test."""
    yield dataclasses.replace(host, python="python-of-no-board")
    home, end = str(Path.home()), time.monotonic() + 5
    while left := processes(home):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def processes(folder: str) -> list[str]:
    """Command lines of the processes that work inside of a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "cwd").startswith(folder + "/"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


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
    return measure_one(board, target, folder, runner_artifact(folder / "a", program), **changes)


def test_a_neon_artifact_is_measured(bare: Board, target: Target, tmp_path: Path) -> None:
    """Golden check, evaluation and rounds; what was not looked at is labelled and listed."""
    rows = golden_rows(40, 1)
    document = run(bare, target, tmp_path, runner(), evaluation=Evaluation([rows], 40))
    assert document["valid"], document["reasons"]
    assert document["golden"]["passed"] and len(document["rounds"]) == 2
    assert {"unsampled", "unserialized"} <= set(document["latency_ms"]["labels"])
    assert document["latency_ms"]["p50"] > 0
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
    # A document of before rounds said so has no such label, and verifies as it is.
    path = tmp_path / "work" / document["artifact"] / "measurement.json"
    old = json.loads(path.read_text())
    for entry in (*old["rounds"], *old["rejected"]):
        assert entry["environment"].pop("turn") == "no_lock"
    old["latency_ms"]["labels"].remove("unserialized")
    path.write_text(json.dumps(old))
    assert verify_measurement(path)["latency_ms"]["labels"] == old["latency_ms"]["labels"]


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


def test_a_board_that_is_not_fit(
    bare: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judges of other boards, with their bounds and words."""
    monkeypatch.setattr(ready, "SPARE_BYTES", 1 << 60)
    monkeypatch.setattr(ready, "MOST_LOAD", -1)
    found = {fault["code"]: fault["text"] for fault in run(bare, target, tmp_path, runner())["facts"]["ready"]}
    assert f"MiB free in {bare.state}, needed {1 << 40} MiB" in found["E_DISK_FULL"]
    assert found["E_BACKGROUND_LOAD"].startswith("load average ")


def test_instructions_are_counted(bare: Board, target: Target, tmp_path: Path) -> None:
    """On an emulated board the program gets the counting plugin in its environment."""
    counting = dataclasses.replace(bare, emulated=True, counting_plugin="/plugin.so")
    document = run(counting, target, tmp_path, runner())
    assert document["valid"], document["reasons"]
    assert document["instructions"]["value"] == 2002 and document["instructions"]["provenance"] == "emulated"
    assert document["latency_ms"]["p50"] is None and document["golden"]["n"] == 8


def job(board: Board, folder: Path, program: str, limit_s: float = 60, **changes: Any) -> Report:
    """Two steps of a script on a board, or `steps` with it as program; the report."""
    folder.mkdir(exist_ok=True)
    script = folder / "script"
    script.write_text("#!/bin/sh\n" + program)
    digest = sha256_file(script)
    with Session(board) as session:
        worker = send_worker(session)
        wanted = [Step(f"c{index}-step", limit_s, digest, ("word",)) for index in range(2)]
        wanted = [dataclasses.replace(step, program=digest) for step in changes.pop("steps", wanted)]
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


def only(folder: Path, without: str) -> str:
    """A PATH with the commands that a board may have, but for some."""
    folder.mkdir()
    for name in (*TOOLS, "sh", "getconf", "touch", "setsid", "flock", "ls", "mkfifo"):
        found = shutil.which(name)
        if found is not None and name not in without.split():
            (folder / name).symlink_to(found)
    return str(folder)


def own_name() -> str:
    """This process as the worker names it."""
    start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return f"{os.getpid()}-{start}-{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"


def test_without_flock_a_folder_of_processes(bare: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes in it hold the board; one that is gone holds nothing. Nothing is evicted meanwhile."""
    monkeypatch.setenv("PATH", only(tmp_path / "commands", "flock"))
    holders = tmp_path / "home/.edgesdk/holders"
    holders.mkdir(parents=True)
    mine = holders / own_name()
    dead = holders / own_name().replace("-", "-1", 1)
    dead.touch()
    assert job(bare, tmp_path / "job", "exit 0\n").steps["c1-step"].code == 0
    assert not list(holders.iterdir())
    mine.touch()
    with pytest.raises(Busy):
        job(bare, tmp_path / "again", "exit 0\n", wait_s=0)
    with Session(bare) as session:
        assert evict(session, 1 << 50) == 0
        mine.rename(dead)
        assert evict(session, 1 << 50) > 0


def test_without_flock_jobs_take_turns(bare: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of jobs that come at once none meets another."""
    monkeypatch.setenv("PATH", only(tmp_path / "commands", "flock"))
    program = f"mkdir {tmp_path}/busy || exit 9\nsleep 0.2\nrm -r {tmp_path}/busy\n"
    with Session(bare) as session:
        send_worker(session)
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda index: job(bare, tmp_path / f"job{index}", f"# {index}\n{program}"), range(3)))
    assert [ran.code for report in reports for ran in report.steps.values()] == [0] * 6


def test_what_a_killed_worker_left_running_is_ended(bare: Board, tmp_path: Path) -> None:
    """The step is done again, and the watcher of the first time does not touch it."""
    trace = tmp_path / "trace"
    first = "{ sleep 1; kill -9 $PPID; exec sleep 100; }"
    program = f'echo $$ >> {trace}\n[ "$(wc -l < {trace})" -eq 1 ] && {first}\nexit 0\n'
    report = job(bare, tmp_path / "job", program)
    assert [(ran.code, ran.overdue) for ran in report.steps.values()] == [(0, False)] * 2
    assert len(trace.read_text().split()) == 3


def test_a_step_of_which_a_power_cut_left_half_is_done_again(bare: Board, tmp_path: Path) -> None:
    """An empty or broken `.exit` counts as none."""
    trace = tmp_path / "trace"
    cut = "{ : > c0-step.exit; printf 0 > c1-step.exit; kill -9 $PPID; }"
    program = f'echo x >> {trace}\n[ "$(wc -l < {trace})" -eq 2 ] && {cut}\nexit 0\n'
    report = job(bare, tmp_path / "job", program)
    assert trace.read_text().split() == ["x"] * 4 and len(report.starts) == 2
    assert [ran.code for ran in report.steps.values()] == [0, 0]


def test_a_job_that_stands_still_is_stopped(bare: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own deadline; the worker does not even hear a TERM. Nothing is left on either side."""
    monkeypatch.setattr("edgesdk.harness.shell.job.AROUND_SECONDS", 1.5)
    with pytest.raises(Deadline, match="host: the job stands still: c0-step for [0-9]+ s"):
        job(bare, tmp_path / "job", "kill -STOP $PPID\nexec sleep 100\n", 1)
    assert not list((tmp_path / "home/.edgesdk/jobs").iterdir())
    assert not (tmp_path / "job/job.json").exists()


@pytest.mark.parametrize(("answer", "kept"), [("running c0-step", True), ("", True), ("failed cancelled x", False)])
def test_a_job_that_may_still_run_stays_remembered(
    bare: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, kept: bool
) -> None:
    """After Ctrl-C the folder goes only where the worker says that it stopped."""
    asked: list[Sequence[str]] = []

    class Line:
        def run(self, argv: Sequence[str], deadline_s: float) -> Completed:
            asked.append(argv)
            return Completed(0, answer.encode(), b"")

    class Fake:
        board = bare

        def once(self, action: Callable[[Any], Any]) -> Any:
            return action(Line())

    assert shell_job._cancel(Fake(), "worker", "id") is not kept  # type: ignore[arg-type]
    assert [argv[0] for argv in asked] == (["sh"] if kept else ["sh", "rm"])


def test_a_harness_that_was_killed_finds_its_rounds(bare: Board, target: Target, tmp_path: Path) -> None:
    """The golden check of before holds: a new one would wait for the board that the rounds hold."""
    trace = tmp_path / "trace"
    program = runner(f"open({str(trace)!r}, 'a').write(options.action + ' ')")

    class Killed(Exception):
        """No exception that the harness handles."""

    def progress(step: str, done: int, total: int) -> None:
        if step.startswith("c0-round"):
            raise Killed

    with pytest.raises(Killed):
        run(bare, target, tmp_path, program, progress=progress)
    shutil.rmtree(tmp_path / "a")
    assert run(bare, target, tmp_path, program)["valid"]
    assert trace.read_text().split() == ["run", "bench", "bench"]
    assert not list((tmp_path / "work").glob("*.report"))


def test_a_damaged_program_is_sent_again(bare: Board, tmp_path: Path) -> None:
    """The next call puts it right, where the damage does not show by the size."""
    digest = sha256_bytes(b"#!/bin/sh\nexit 0\n")
    blobs = tmp_path / "home/.edgesdk/blobs"
    blobs.mkdir(parents=True)
    (blobs / digest).write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Corrupt, match=f"blob {digest} was missing or damaged"):
        job(bare, tmp_path / "job", "exit 0\n")
    assert job(bare, tmp_path / "job", "exit 0\n").steps["c0-step"].code == 0


def test_a_missing_command_is_named(bare: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what would do instead of it."""
    few, fewer = only(tmp_path / "few", "sha256sum"), only(tmp_path / "fewer", "sed tail")
    monkeypatch.setenv("PATH", few)
    with pytest.raises(BoardError, match="neither sha256sum nor python-of-no-board is installed"):
        probe(bare)
    monkeypatch.setenv("PATH", fewer)
    with pytest.raises(BoardError, match="host: lacks python-of-no-board, and for measuring without Python sed tail"):
        probe(bare)


def test_a_hanging_vcgencmd_is_left_behind(bare: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that keeps its output open; the other facts are there."""
    commands = tmp_path / "commands"
    path = only(commands, "")
    (commands / "vcgencmd").write_text("#!/bin/sh\nexec sleep 20\n")
    (commands / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", path)
    begun = time.monotonic()
    facts = probe(bare)
    assert facts["throttled"] is None and facts["uptime_s"] > 0 and time.monotonic() - begun < 20


@pytest.mark.parametrize("content", ["", "junk", "-1", "9" * 19])
def test_a_damaged_fence_lets_nobody_in(bare: Board, tmp_path: Path, content: str) -> None:
    """An epoch that cannot be read is no epoch of 0."""
    state = tmp_path / "home/.edgesdk"
    state.mkdir()
    (state / "epoch").write_text(content)
    with pytest.raises(LeaseLost, match=r"E_FENCED: .*/epoch on the board is damaged"):
        job(bare, tmp_path / "job", "exit 0\n")


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
    end = time.monotonic() + 60
    while not trace.exists() or not trace.read_text():
        assert time.monotonic() < end, problems
        time.sleep(0.02)
    (folder,) = (tmp_path / "home/.edgesdk/jobs").iterdir()
    with Session(bare) as session:
        ask(session, send_worker(session), "stop", bare.state, folder.name)
    thread.join(60)
    assert not thread.is_alive() and "stopped on request" in problems[0]
    assert not Path(f"/proc/{trace.read_text().strip()}").exists()


ASKED = [Step(f"c0-{name}", 1, "x", (), writes=f"c0-{name}.bin", most_bytes=100) for name in ("golden", "round0")]
PATHS = ("/proc/uptime", "/proc/vmstat", "/proc/meminfo", "throttled", "date", "disk", "cpus",
         "/proc/pressure/cpu", "/sys/class/thermal/thermal_zone0/temp", "/proc/cpuinfo")
NUMBERS = st.integers(0, 10**20).map(str)
LINES = st.one_of(
    st.sampled_from(["step c0-golden 0", "step c0-golden 137 overdue", "step c1-golden 0", "section out", "rest", "",
                     "section before", " section throttled", "  throttled=0x1", "section starts", "0m1s 0m1s"]),
    st.builds("file c0-golden.bin {} {}".format, st.sampled_from(["a" * 64, "b"]), NUMBERS),
    st.builds(" {} {}".format, NUMBERS, NUMBERS), st.text(max_size=30),
)


@given(st.lists(LINES, max_size=30))
@settings(max_examples=300)
def test_reports_survive_junk(lines: list[str]) -> None:
    """Whatever a board sends, there is nothing in the report that was not asked for."""
    report = parse_report("\n".join(lines), Path("raw"), ASKED)
    assert set(report.steps) <= {"c0-golden", "c0-round0"} and set(report.too_large) <= {"c0-golden.bin"}
    assert all(file.size <= 100 for file in report.fetched.values())
    assert all(file.size > 100 for file in report.too_large.values())


@pytest.mark.parametrize("end", ["\r", "\r\n", "\f", "\x0b", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_program_forges_no_line(end: str) -> None:
    """The board indents what stands behind a newline, so nothing else begins a line here."""
    forged = [f"x{end}step c0-round0 0", f"file c0-golden.bin {'0' * 64} 1", "section before", " section throttled"]
    inside = "".join(f" {line}\n" for line in f"{end}".join(forged).split("\n"))
    report = parse_report(f"step c0-golden 0\nsection out\n{inside}\nrest\n", Path("raw"), ASKED)
    assert list(report.steps) == ["c0-golden"] and not report.fetched and not report.steps["c0-golden"].before
    assert set(snapshot.sections(f"section out\n{inside}\n")) == {"out"}


def test_files_that_are_too_large_stay_on_the_board(bare: Board, tmp_path: Path) -> None:
    """Each step says which file it may write, and how large; others are not fetched either."""
    program = 'head -c "$SIZE" /dev/zero > c0-golden.bin; echo > c7-golden.bin\n'
    asked = [dataclasses.replace(ASKED[0], setting="SIZE=101"), dataclasses.replace(ASKED[1], setting="SIZE=101")]
    report = job(bare, tmp_path / "large", program, steps=asked)
    assert not report.fetched and [file.size for file in report.too_large.values()] == [101]
    assert not list((tmp_path / "large/raw").iterdir())
    asked = [dataclasses.replace(step, setting="SIZE=100") for step in ASKED]
    report = job(bare, tmp_path / "small", program, steps=asked)
    assert len(report.written("c0-golden.bin")) == 100 and not report.too_large


JUNK = st.one_of(
    st.text(max_size=60), NUMBERS, st.builds("some avg10=0 total={}".format, NUMBERS),
    st.builds("pswpin {}\npswpout {}".format, NUMBERS, NUMBERS), st.builds("throttled=0x{}".format, NUMBERS),
)
OUT_OF_RANGE = re.compile(r"board: malformed: [a-z0-9_]+: Input should be less than [0-9]+, found [0-9.e+]+")
CLOCKS = st.one_of(
    st.text(max_size=200),
    st.lists(st.one_of(NUMBERS, st.sampled_from(["0m1s 0m1s", "cpu 1 1 1 1 1 1 1 1"])), min_size=8, max_size=8).map(
        "\n".join
    ),
    st.lists(NUMBERS, min_size=8, max_size=8).map(
        lambda n: "{} 1\ncpu {} 0 0 0 0 0 0 0\n\n0m{}s 0m1s\n{} 1\ncpu {} 0 0 0 0 {} 0 0\n\n0m{}s {}m1s".format(*n)
    ),
)


@given(st.dictionaries(st.sampled_from(PATHS), JUNK), CLOCKS)
@settings(max_examples=300)
def test_facts_of_junk_are_facts_or_none(seen: dict[str, str], clocks: str) -> None:
    """They pass the check that every board's facts pass, or are refused by it for a number that is too large."""
    for model, found in (
        (answers.Facts, snapshot.facts(seen, "x")), (Environment, snapshot.surroundings(seen, seen, clocks)),
    ):
        try:
            assert answers.check(model, found, "board").keys() >= {"throttle_count", "throttled_before"} & found.keys()
        except Corrupt as refused:
            assert OUT_OF_RANGE.fullmatch(str(refused)), refused  # noqa: PT017


def test_an_unknown_load_is_none_and_labelled(
    bare: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not 0, which would say that the board was idle."""
    for clocks in ("", "1\n2\n3\n4\n5\n6\n7\n8", "1.0 1\ncpu 1 1 1 1 1 1 1 1\n?\n?\n" * 2):
        seen = snapshot.surroundings({}, {}, clocks)
        assert (seen["other_cpu"], seen["wall_s"]) == (None, None)
    monkeypatch.setattr(snapshot, "_clocks", lambda text: None)
    document = run(bare, target, tmp_path, runner())
    assert document["valid"] and "load_unknown" in document["latency_ms"]["labels"]
    assert document["rounds"][0]["other_cpu"] is None


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
    assert (seen["wall_s"], seen["other_cpu"]) == (10.0, 0.15)  # 6 s busy, 4.5 s of them the program's own
    assert (seen["swapped_pages"], seen["psi_cpu"], seen["psi_io"]) == (3, 0.2, None)
    assert (seen["throttled_before"], seen["throttled_now"], seen["throttled_new"]) == (0x50000, 8, 0x80008)
    assert (seen["temperature_start_c"], seen["temperature_end_c"]) == (45.0, 61.0)


def test_what_such_a_board_can_measure(bare: Board, target: Target) -> None:
    """Latency and peak memory of NEON builds; everything else is said to be impossible, and why."""
    found = {entry.what: entry for entry in abilities(bare, target, probe(bare), "root")}
    assert found["latency"].possible and found["runtime neon"].possible and found["memory"].possible
    for name in ("energy", "fixed clock", "cold load", "runtime onnxruntime"):
        assert not found[name].possible and "Python" in found[name].how, name
