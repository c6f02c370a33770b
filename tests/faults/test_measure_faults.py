"""Faults while a board measures: restarts, clocks, throttling, memory, processes left behind, impossible results."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import signal
import struct
import subprocess
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from harness_artifacts import runner, runner_artifact

from edgesdk.errors import Corrupt, Rebooting
from edgesdk.files import sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.job import read_result
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.preflight import problems
from edgesdk.harness.protocol import Profile
from edgesdk.harness.verify import verify_measurement
from edgesdk.harness.worker import child, ready, tuning
from edgesdk.targets.target import Target

QUICK = load_profile("quick")
# A board that restarts in a bench: the journal is that of another boot, and the worker (the parent) is gone.
RESTART = (
    "trace = open({trace!r}, 'a+'); trace.write(options.action + chr(10)); trace.flush(); trace.seek(0); "
    "benches = trace.read().count('bench'); "
    "journal = json.load(open('../journal.json')); journal['starts'][-1]['boot_id'] = 'before'; "
    "again = options.action == 'bench' and benches in {when}; "
    "again and (json.dump(journal, open('../journal.json', 'w')), os.kill(os.getppid(), signal.SIGKILL), os._exit(1))"
)


def run(board: Board, target: Target, folder: Path, program: bytes, profile: Profile = QUICK) -> dict[str, Any]:
    """Measure one artifact; the document verifies."""
    artifact = runner_artifact(folder / "a", program)
    (document,) = measure(
        board, target, [artifact], evaluation=None, profile=profile, seed=0, workdir=folder / "work"
    )
    verify_measurement(folder / "work" / document["artifact"])
    return document


def program(folder: Path, name: str, text: str) -> None:
    """A command of the board, found before the real one."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n" + text)
    (folder / name).chmod(0o755)


def test_another_boot_between_rounds_as_the_journal_sees_it(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounds before the restart are kept, the one that was cut is run again, and the document says so."""
    monkeypatch.setattr("edgesdk.harness.job.STALL_SECONDS", 0.5)
    trace = tmp_path / "trace"
    three = dataclasses.replace(QUICK, rounds=3)
    document = run(host, target, tmp_path, runner(RESTART.format(trace=str(trace), when=(2,))), three)
    assert document["valid"], document["reasons"]
    assert [(entry["index"], entry["start"]) for entry in document["rounds"]] == [(0, 0), (1, 1), (2, 1)]
    starts = document["facts"]["starts"]
    assert len(starts) == 2 and starts[0]["boot_id"] == "before" != starts[1]["boot_id"]
    assert "rebooted" in document["latency_ms"]["labels"]
    words = trace.read_text().split()
    assert words.count("bench") == 4 and words.count("run") == 1, "the golden check was done once, as were good rounds"


def test_fault_10_boot_loop(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost three times in ten minutes: an error that names it, and sets a board of a farm aside."""
    from edgesdk.harness.reserve import SET_ASIDE

    monkeypatch.setattr("edgesdk.harness.job.STALL_SECONDS", 0.5)
    restart = RESTART.format(trace=str(tmp_path / "trace"), when=range(100))
    with pytest.raises(Rebooting, match=r"lost its process 3 times in 10 minutes \(E_REBOOTED\)"):
        run(host, target, tmp_path, runner(restart))
    assert issubclass(Rebooting, SET_ASIDE)


def test_a_clock_at_1970_as_the_host_sees_it(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong clock is noted and labelled; durations and the time of the measurement do not come from it."""
    program(tmp_path / "bin", "date", "echo 3600.250000000\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    document = run(host, target, tmp_path, runner())
    assert document["valid"], document["reasons"]
    assert document["facts"]["clock"]["skew_s"] < -1.5e9
    assert "clock" in document["latency_ms"]["labels"]
    assert abs(datetime.fromisoformat(document["started"]) - datetime.now(UTC)) < timedelta(hours=1)
    assert 0 < document["latency_ms"]["p50"] < 1000


def test_fault_21_throttled_in_the_middle_of_a_round(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round is repeated twice, what was rejected is kept and flagged, and the measurement is invalid."""
    hot = tmp_path / "hot"
    program(tmp_path / "bin", "vcgencmd", f"test -e '{hot}' && echo throttled=0x80008 || echo throttled=0x0\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    strict = dataclasses.replace(QUICK, rounds=1, lenient=False)
    heat = f"options.action == 'bench' and open({str(hot)!r}, 'w')"
    document = run(host, target, tmp_path, runner(heat), strict)
    assert not document["valid"]
    assert [entry["attempt"] for entry in document["rejected"]] == [0, 1]
    (kept,) = document["rounds"]
    assert all("E_THROTTLED" in entry["codes"] for entry in [kept, *document["rejected"]])
    assert document["rejected"][0]["environment"]["throttled_new"] == 0x80008
    assert [reason for reason in document["reasons"] if "E_THROTTLED" in reason and "after 2 rejected" in reason]
    names = {entry["samples"] for entry in document["rejected"]}
    assert names == {"round-0-rejected-0.bin", "round-0-rejected-1.bin"}


def test_a_kill_for_memory_and_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while the kernel's count of such kills grew is E_OOM; the same signal alone is a crash."""
    kills = iter([3, 4, 4, 4])
    monkeypatch.setattr(child, "_oom_kills", lambda: ("memory.events", next(kills)))
    argv = ["sh", "-c", "kill -9 $$"]
    first, second = (child.run_child(argv, str(tmp_path), 60, lambda: None, {}) for _ in range(2))
    assert (first.code, second.code) == ("E_OOM", "E_CRASH")
    assert "out of memory (SIGKILL; memory.events: oom_kill 3 → 4)" in first.reason and "SIGKILL" in second.reason
    assert not (tmp_path / "child").exists()


def test_fault_30_instruction_that_this_processor_lacks(host: Board, target: Target, tmp_path: Path) -> None:
    """SIGILL: class job, and the text sets what was needed against what there is."""
    document = run(host, target, tmp_path, runner("os.kill(os.getpid(), signal.SIGILL)"))
    (reason,) = document["reasons"]
    assert reason.startswith("E_CRASH") and "SIGILL" in reason
    assert "built for" in reason and "CPU features of the board: " in reason
    assert not document["rounds"]


def elf(machine: int, interpreter: bool, versions: bytes) -> bytes:
    """A 64-bit little-endian ELF header with one program header, and text behind it."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 3 if interpreter else 1, 4, 0, 0, 0, 0, 0, 1) + versions


@pytest.mark.parametrize(
    ("machine", "interpreter", "libc", "words"),
    [
        (183, True, "glibc 2.31", "wants GLIBC_2.34, the board has 2.31"), (183, True, "glibc 2.36", None),
        (183, True, None, None), (183, False, "glibc 2.31", None), (62, True, "glibc 2.36", "is built for x86_64"),
    ],
)
def test_fault_31_libc_too_old_or_wrong_architecture(
    tmp_path: Path, machine: int, interpreter: bool, libc: str | None, words: str | None
) -> None:
    """Known before anything is sent, from the header and the names of symbol versions; static programs need none."""
    from edgesdk.converters.artifact import read_artifact

    data = elf(machine, interpreter, b"\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_PRIVATE\0")
    folder = runner_artifact(tmp_path / "a", data)
    facts = {"machine": "aarch64", "libc": libc}
    found = problems(folder, read_artifact(folder), Board("pi", "rpi5"), facts)
    assert len(found) == (words is not None)
    assert all(str(words) in text for text in found)


def test_fault_33_process_of_an_old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is ended, by number and start time; another process of the number is not; foreign load is named."""
    for ours in (True, False):
        process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        child._remember(str(tmp_path / "child"), process.pid)
        if not ours:
            (tmp_path / "child").write_text(f"{process.pid} 1")
        assert child.end_leftover(str(tmp_path)) is ours
        if ours:
            assert process.wait(10) == -signal.SIGKILL
        else:
            assert process.poll() is None
            process.kill()
            process.wait()
    assert child.end_leftover(str(tmp_path)) is False
    shares = iter([(0, 0), (30, 100)])
    monkeypatch.setattr(ready, "busy_share", lambda: next(shares))
    monkeypatch.setattr(ready, "process_names", lambda: ["sh", "apt-get"])
    (fault,) = ready.check_idle(0.01)
    assert fault["code"] == "E_BACKGROUND_LOAD"
    assert "30 % of all cores busy" in fault["text"] and "running: apt-get" in fault["text"]


def test_fault_35_governor_after_the_worker_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard waits for the lock of the job; when its holder is gone, the governor is what it was."""
    policy = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
    policy.mkdir(parents=True)
    governor = policy / "scaling_governor"
    governor.write_text("ondemand\n")
    monkeypatch.setattr(tuning, "SYS", str(tmp_path / "sys"))
    state = tmp_path / "state"
    state.mkdir()
    lock = state / "lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        clocks = tuning.Tuning(str(state), "a" * 64)
        clocks.apply()
        assert governor.read_text() == "performance" and clocks.notes == []
        clocks.guard(str(lock), 60)
        time.sleep(0.3)
        assert governor.read_text() == "performance", "the guard waits"
    # What the guard inherited of the lock it has closed, so closing it here frees it.
    deadline = time.monotonic() + 20
    while (state / "restore.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert governor.read_text() == "ondemand"
    assert not (state / "restore.json").exists()


RESULT: dict[str, Any] = {
    "format": "edgesdk.job-result", "version": 1, "job": "a" * 64, "before": {}, "after": {},
    "candidates": [{
        "artifact": "f" * 64, "golden": {"passed": True, "kind": "max_abs", "value": 0.0, "limit": 1e-4, "n": 32},
        "evaluation": None, "reasons": [], "rounds": [{
            "index": 0, "file": "c0-round0.bin", "sha256": sha256_bytes(b"raw"), "count": 3, "batch": 1, "p50_ns": 5,
            "cold_load_ns": 1, "first_inference_ns": 1, "peak_rss_bytes": 1, "cpu_ns": 1, "other_cpu": 0.0,
            "steady": True,
        }],
    }],
}
JOB: dict[str, Any] = {
    "id": "a" * 64, "mode": "timed", "rounds": 1, "profile": {},
    "candidates": [{"artifact": "f" * 64, "name": "x", "evaluation": None}],
}


@pytest.mark.parametrize("fault", ["none", "missing", "half", "wrong bytes", "another job", "raw missing"])
def test_fault_37_result_that_is_not_whole(tmp_path: Path, fault: str) -> None:
    """Nothing of it is accepted, and nothing is unpacked."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as members:
        if fault != "raw missing":
            members.writestr("c0-round0.bin", b"row" if fault == "wrong bytes" else b"raw")
        members.writestr("result.json", json.dumps({**RESULT, "job": ("b" if fault == "another job" else "a") * 64}))
    data = stream.getvalue()
    if fault != "missing":
        (tmp_path / "result.zip").write_bytes(data[: len(data) // 2] if fault == "half" else data)
    if fault == "none":
        assert read_result(tmp_path / "result.zip", JOB, tmp_path / "raw")["job"] == "a" * 64
        return
    with pytest.raises(Corrupt):
        read_result(tmp_path / "result.zip", JOB, tmp_path / "raw")
    assert not list((tmp_path / "raw").glob("*"))


def test_fault_40_night_of_the_clock_change(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every time that is stored is UTC, whatever zone host and board live in."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        document = run(host, target, tmp_path, runner())
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    started = datetime.fromisoformat(document["started"])
    assert started.utcoffset() == timedelta(0)
    (start,) = document["facts"]["starts"]
    seconds = [start["wall_clock_s"], document["facts"]["wall_clock_s"], document["facts"]["after"]["wall_clock_s"]]
    assert sorted(seconds) == [seconds[1], seconds[0], seconds[2]] or max(seconds) - min(seconds) < 1800
    assert all(abs(value - started.timestamp()) < 1800 for value in seconds)


@pytest.mark.parametrize("factor", ["// 1000 + 1", "* 100000"])
def test_fault_46_times_in_another_unit(host: Board, target: Target, tmp_path: Path, factor: str) -> None:
    """Microseconds for nanoseconds do not fill the window, the other way round they outlast the process."""
    line = b"    ordered = sorted(samples)"
    changed = f"    samples = array.array('q', [value {factor} for value in samples])\n"
    changed += "    open(options.samples, 'wb').write(samples.tobytes())\n"
    document = run(host, target, tmp_path, runner().replace(line, changed.encode() + line))
    assert not document["valid"]
    assert [reason.split(":")[0] for reason in document["reasons"]] == ["E_IMPLAUSIBLE"] * 2


