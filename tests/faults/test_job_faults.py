"""Faults while a job runs: dead harness, dead worker, wrong or half results, wrong bytes on the board."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from harness_artifacts import runner, runner_artifact

from edgesdk.errors import BoardError, Busy, Corrupt, Identity, Unreachable
from edgesdk.files import canonical_json, sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.deploy import deploy
from edgesdk.harness.facts import ask_worker, deploy_worker
from edgesdk.harness.job import job_identity, read_result
from edgesdk.harness.leases import Leases
from edgesdk.harness.local import LocalTransport
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.session import Session
from edgesdk.targets.target import Target

QUICK = load_profile("quick")
IDENTITY = "a" * 64
# Each run of the artifact leaves a line, so that a second start would be seen.
TRACE = "open('{path}', 'a').write(options.action + chr(10)); time.sleep({sleep})"

HARNESS = """
import dataclasses, sys
from pathlib import Path
from edgesdk.harness.farm import HOST
from edgesdk.harness.measure import load_profile, measure
from edgesdk.targets.target import load_target
measure(HOST, load_target("host"), [Path(sys.argv[1])], evaluation=None, profile=load_profile("quick"), seed=0,
        workdir=Path(sys.argv[2]), progress=lambda *step: print(*step, flush=True))
"""


def test_fault_14_killed_harness(host: Board, target: Target, tmp_path: Path) -> None:
    """kill -9 of the harness in the middle: a new one takes the lease (its holder is dead), finds the job, collects it,
    and nothing was run twice."""
    trace = tmp_path / "trace"
    folder = runner_artifact(tmp_path / "a", runner(TRACE.format(path=trace, sleep=1)))
    argv = [sys.executable, "-c", HARNESS, str(folder), str(tmp_path / "work")]
    harness = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert harness.stdout is not None
    while not trace.exists():
        assert harness.poll() is None, "the harness ended before the job ran"
        time.sleep(0.02)
    harness.kill()
    harness.wait()
    assert Leases().holder(host).owner is not None
    known = json.loads((tmp_path / "work/job.json").read_bytes())["id"]
    (document,) = measure(
        host, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work",
    )
    assert document["valid"], document["reasons"]
    assert trace.read_text().split() == ["run", "bench", "bench"]
    assert document["id"] == sha256_bytes(f"{known} host {document['artifact']}".encode())
    assert not (tmp_path / "work/job.json").exists()


def test_a_job_starts_once(host: Board, tmp_path: Path) -> None:
    """Starting an id again, also at the same time, does not start it again."""
    trace = tmp_path / "trace"
    with Session(host) as session:
        worker, arguments = prepare(session, tmp_path, runner(TRACE.format(path=trace, sleep=0.3)))
        argv = [host.python, str(tmp_path / "home" / worker), "start", *arguments]
        starts = [subprocess.Popen(argv, cwd=tmp_path / "home", stdout=subprocess.PIPE) for _ in range(4)]
        assert all(json.loads(start.communicate()[0])["job"] == IDENTITY for start in starts)
        assert wait(session, worker, arguments)["state"] == "done"
        ask_worker(session, worker, "start", *arguments)
    assert trace.read_text().split() == ["run"]


def test_killed_worker_is_seen(host: Board, tmp_path: Path) -> None:
    """A worker that vanished (reboot, kill) is `lost`; its job is not started again by itself."""
    with Session(host) as session:
        worker, arguments = prepare(session, tmp_path, runner("time.sleep(3)"))
        ask_worker(session, worker, "start", *arguments)
        os.kill(int((tmp_path / f"home/.edgesdk/jobs/{IDENTITY}/pid").read_text()), signal.SIGKILL)
        assert wait(session, worker, arguments)["state"] == "lost"
        assert ask_worker(session, worker, "start", *arguments)["state"] == "lost"


def test_stopped_job_kills_its_child(host: Board, tmp_path: Path) -> None:
    """`stop` ends the worker and the process that it runs."""
    trace = tmp_path / "pid"
    fault = f"open({str(trace)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    with Session(host) as session:
        worker, arguments = prepare(session, tmp_path, runner(fault))
        ask_worker(session, worker, "start", *arguments)
        while not trace.exists() or not trace.read_text():
            time.sleep(0.02)
        status = ask_worker(session, worker, "stop", *arguments[:4])
    assert status["state"] == "failed" and status["error"]["kind"] == "cancelled"
    assert not Path(f"/proc/{trace.read_text()}").exists()


def test_board_is_held_by_one_job(host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second job waits for the board, and gives up with `Busy`."""
    import fcntl

    monkeypatch.setattr("edgesdk.harness.measure.LOCK_WAIT_SECONDS", 0)
    (tmp_path / "home/.edgesdk").mkdir()
    with (tmp_path / "home/.edgesdk/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = runner_artifact(tmp_path / "a", runner())
        with pytest.raises(Busy):
            measure(host, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work")


def test_fault_06_wrong_bytes(host: Board, tmp_path: Path) -> None:
    """A line that changes bytes: `Corrupt` after three tries, and nothing under the final name."""

    class Garbling(LocalTransport):
        tries = 0

        def put(self, local: Path, remote: str, offset: int = 0) -> None:
            Garbling.tries += 1
            garbled = tmp_path / "garbled"
            garbled.write_bytes(bytes(len(local.read_bytes())))
            super().put(garbled, remote, offset)

    name = sha256_bytes(b"right")
    (tmp_path / "right").write_bytes(b"right")
    with Session(host, connect=lambda board: Garbling()) as session:
        with pytest.raises(Corrupt, match="3 times .E_UPLOAD_CORRUPT"):
            deploy(session, {name: tmp_path / "right"})
    assert Garbling.tries == 3
    assert list((tmp_path / "home/.edgesdk/blobs").iterdir()) == []


def test_blob_that_rotted_on_the_board(host: Board, target: Target, tmp_path: Path) -> None:
    """Bytes that changed on the board are found before anything runs; the next call sends them again."""
    folder = runner_artifact(tmp_path / "a", runner())
    options: dict[str, Any] = {"evaluation": None, "profile": QUICK, "seed": 0, "workdir": tmp_path / "work"}
    measure(host, target, [folder], **options)
    blob = tmp_path / "home/.edgesdk/blobs" / sha256_bytes(runner())
    blob.write_bytes(runner().replace(b"infer", b"onfer"))
    with pytest.raises(Corrupt, match="no longer has its digest"):
        measure(host, target, [folder], **options)
    (document,) = measure(host, target, [folder], **options)
    assert document["valid"], document["reasons"]


def test_another_machine_at_the_address(host: Board, target: Target, tmp_path: Path) -> None:
    """The pinned serial is compared before anything is measured."""
    folder = runner_artifact(tmp_path / "a", runner())
    board = dataclasses.replace(host, serial="not this machine")
    with pytest.raises(Identity):
        measure(board, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work")


def test_no_python_on_the_board(host: Board) -> None:
    """A board without the interpreter is told so."""
    board = dataclasses.replace(host, python="python-of-nobody")
    with Session(board) as session, pytest.raises(BoardError, match="python-of-nobody not found"):
        deploy_worker(session)
        ask_worker(session, deploy_worker(session), "facts")


ROUND: dict[str, Any] = {
    "index": 0, "file": "c0-round0.bin", "sha256": sha256_bytes(b"raw"), "count": 3, "batch": 1, "p50_ns": 5,
    "cold_load_ns": 1, "first_inference_ns": 1, "peak_rss_bytes": 1, "cpu_ns": 1, "other_cpu": 0.0, "steady": True,
}
GOLDEN: dict[str, Any] = {"passed": True, "kind": "max_abs", "value": 0.0, "limit": 1e-4, "n": 32}
RESULT: dict[str, Any] = {
    "format": "edgesdk.job-result", "version": 1, "job": IDENTITY, "before": {}, "after": {"loadavg1": 0.5},
    "candidates": [
        {"artifact": "f" * 64, "golden": GOLDEN, "evaluation": None, "rounds": [ROUND], "reasons": [], "raw": []},
    ],
}
JOB: dict[str, Any] = {
    "id": IDENTITY, "mode": "timed", "rounds": 1, "profile": {"extra_rounds": 0},
    "candidates": [{"artifact": "f" * 64, "name": "x", "evaluation": None}],
}


def archive(path: Path, result: dict[str, Any], name: str = "c0-round0.bin") -> bytes:
    """A result file with one raw file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as members:
        members.writestr(name, b"raw")
        members.writestr("result.json", json.dumps(result))
    path.write_bytes(stream.getvalue())
    return stream.getvalue()


def entry(**values: Any) -> dict[str, Any]:
    """The result with a changed round."""
    return candidate(rounds=[{**ROUND, **values}])


def candidate(**values: Any) -> dict[str, Any]:
    """The result with a changed candidate."""
    return {**RESULT, "candidates": [{**RESULT["candidates"][0], **values}]}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({**RESULT, "job": "b" * 64}, "is the result of job"),
        ({**RESULT, "version": 2}, "version: .* found 2"),
        ({**RESULT, "candidates": None}, "malformed"),
        ({**RESULT, "candidates": []}, "has 0 candidates"),
        ({**RESULT, "candidates": RESULT["candidates"] * 2}, "has 2 candidates"),
        ({**RESULT, "after": {"loadavg1": "high"}}, "after.loadavg1"),
        ({**RESULT, "before": {"throttle_count": 1 << 70}}, "before.throttle_count"),
        (candidate(artifact="e" * 64), "has 1 candidates"),
        (candidate(golden=None), "without a golden check"),
        (candidate(golden={**GOLDEN, "passed": False}), "gives no reason"),
        (candidate(rounds=[]), "gives no reason"),
        (candidate(rounds=[ROUND, ROUND]), r"rounds \[0, 0\]"),
        (candidate(evaluation={"n": 3, "file": "c0-round0.bin", "sha256": ROUND["sha256"]}), "evaluation of 3 inputs"),
        (candidate(reasons=[{"code": "E_X", "text": "\ud800"}]), "lone surrogate"),
        (candidate(reasons=[{"code": "x", "text": "y"}]), "reasons.0.code"),
        (entry(index=1), r"rounds \[1\]"),
        (entry(count=float("nan")), "NaN is not a number"),
        (entry(count=True), "count"),
        (entry(batch=0), "batch"),
        (entry(p50_ns=-1), "p50_ns"),
        (entry(sha256="0" * 64), "sha256 differs"),
        (entry(file="../../x.bin"), "rounds.0.file"),
        (entry(file="c9-round9.bin"), "malformed"),
    ],
)
def test_results_that_are_not_accepted(tmp_path: Path, result: dict[str, Any], words: str) -> None:
    """A result of another job, of another version, with wrong digests or names is refused."""
    archive(tmp_path / "result.zip", RESULT)
    assert read_result(tmp_path / "result.zip", JOB, tmp_path / "raw")["job"] == IDENTITY
    archive(tmp_path / "result.zip", result)
    with pytest.raises(Corrupt, match=words):
        read_result(tmp_path / "result.zip", JOB, tmp_path / "raw2")


def test_half_a_result_is_not_accepted(tmp_path: Path) -> None:
    """A result file cut anywhere is refused."""
    data = archive(tmp_path / "result.zip", RESULT)
    for size in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "result.zip").write_bytes(data[:size])
        with pytest.raises(Corrupt):
            read_result(tmp_path / "result.zip", JOB, tmp_path / "raw")


@pytest.mark.parametrize("memory", [b"", b"{", b"[]", b'{"request": 1, "id": 2}', b'{"request": "x", "id": "../../x"}'])
def test_broken_memory_of_a_job_is_replaced(tmp_path: Path, memory: bytes) -> None:
    """job.json that is not ours never names a job."""
    (tmp_path / "job.json").write_bytes(memory)
    identity = job_identity(tmp_path, {"a": 1})
    assert len(identity) == 64
    assert job_identity(tmp_path, {"a": 1}) == identity
    assert job_identity(tmp_path, {"a": 2}) != identity


def prepare(session: Session, folder: Path, program: bytes) -> tuple[str, list[str]]:
    """Put a job without rounds on the board; returns the worker's path and the arguments that start the job."""
    worker = deploy_worker(session)
    artifact = runner_artifact(folder / "artifact", program)
    files, blobs = [], {}
    for name in ("artifact.json", "model", "golden/in.bin", "golden/out.bin"):
        digest = sha256_bytes((artifact / name).read_bytes())
        files.append({"path": name, "sha256": digest, "executable": name == "model"})
        blobs[digest] = artifact / name
    document = canonical_json({
        "id": IDENTITY, "mode": "none", "rounds": 0, "seed": 0, "lock_wait_s": 5,
        "candidates": [{"artifact": "f" * 64, "name": "x", "files": files, "evaluation": None}],
    })
    (folder / "job").write_bytes(document)
    deploy(session, {**blobs, sha256_bytes(document): folder / "job"})
    return worker, ["--state", ".edgesdk", "--job", IDENTITY, "--spec", sha256_bytes(document)]


def wait(session: Session, worker: str, arguments: list[str]) -> dict[str, Any]:
    """The final status."""
    while True:
        status = ask_worker(session, worker, "look", *arguments[:4])
        if status["state"] not in ("starting", "waiting", "running"):
            return status
        time.sleep(0.1)


def test_cancelled_harness_stops_the_job(host: Board, target: Target, tmp_path: Path) -> None:
    """Ctrl-C: the job on the board ends, its child too, and a later call starts anew."""
    trace = tmp_path / "pid"
    fault = f"open({str(trace)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    folder = runner_artifact(tmp_path / "a", runner(fault))

    def interrupt(step: str, done: int, total: int) -> None:
        if step.startswith("golden") and trace.exists() and trace.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(
            host, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work",
            progress=interrupt,
        )
    assert not Path(f"/proc/{trace.read_text()}").exists()
    assert not (tmp_path / "work/job.json").exists()
    assert list((tmp_path / "home/.edgesdk/jobs").iterdir()) == []
    left = [path.read_bytes() for path in (tmp_path / "home/.edgesdk/blobs").iterdir()]
    assert not [data for data in left if b'"edgesdk.job"' in data], "the job's document stays on the board"
    assert not [name for name in ("spec.json", "result.zip", "pack.zip") if (tmp_path / "work" / name).exists()]


def test_cancelling_does_not_wait_for_a_board_that_is_gone(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the line is cut: no reconnecting, and the job is remembered, to be found by a later call."""
    gone = [False]
    deadlines = []

    class Cut(LocalTransport):
        def run(self, argv: Any, deadline_s: float, input: Any = None, env: Any = None) -> Any:
            if gone[0]:
                deadlines.append(deadline_s)
                raise Unreachable("cut")
            return super().run(argv, deadline_s, input, env)

    def interrupt(step: str, done: int, total: int) -> None:
        if step.startswith("golden"):
            gone[0] = True
            raise KeyboardInterrupt

    monkeypatch.setattr("edgesdk.harness.job.time.sleep", lambda seconds: None)
    monkeypatch.setattr("edgesdk.harness.measure.Session", lambda board: Session(board, connect=lambda _: Cut()))
    folder = runner_artifact(tmp_path / "a", runner("os.times(); time.sleep(1)"))
    options: dict[str, Any] = {"evaluation": None, "profile": QUICK, "seed": 0, "workdir": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        measure(host, target, [folder], progress=interrupt, **options)
    assert len(deadlines) == 1 and deadlines[0] <= 15
    known = json.loads((tmp_path / "work/job.json").read_bytes())["id"]
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (document,) = measure(host, target, [folder], **options)
    assert document["id"] == sha256_bytes(f"{known} host {document['artifact']}".encode())


def test_pack_with_wrong_bytes_is_refused(host: Board, tmp_path: Path) -> None:
    """A pack whose members do not have their names' digests leaves nothing behind."""
    with zipfile.ZipFile(tmp_path / "pack", "w") as members:
        members.writestr("b" * 64, b"not what the name says")
    digest = sha256_bytes((tmp_path / "pack").read_bytes())
    with Session(host) as session:
        worker = deploy_worker(session)
        deploy(session, {digest: tmp_path / "pack"})
        with pytest.raises(BoardError, match="wrong bytes in pack"):
            ask_worker(
                session, worker, "start", "--state", ".edgesdk", "--job", IDENTITY, "--spec", "c" * 64, "--pack", digest
            )
    assert not (tmp_path / "home/.edgesdk/blobs" / ("b" * 64)).exists()


@pytest.mark.parametrize(
    ("number", "kind"), [("ENOSPC", "disk-full"), ("EROFS", "read-only"), ("EIO", "board")],
)
def test_disk_faults_of_the_worker_have_a_class(number: str, kind: str) -> None:
    """A full or read-only disk while the job writes is told apart from other faults."""
    import errno

    from edgesdk.harness.worker.work import failure_of

    assert failure_of(OSError(getattr(errno, number), "x")).kind == kind
