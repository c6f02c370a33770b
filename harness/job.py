"""One job on a board, from the host's side: start it once, watch it, collect its result, whatever happens to the line.

The id of a running job is kept in `job.json` of the work folder: a harness that was killed finds its job again.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import re
import secrets
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgesdk.errors import BoardError, Busy, Corrupt, DiskFull, EdgeSDKError, LeaseLost, ReadOnly, Rebooting
from edgesdk.files import canonical_json, sha256_bytes, sha256_file, write_atomic
from edgesdk.harness import answers
from edgesdk.harness.deploy import deploy, remove
from edgesdk.harness.facts import ask_worker, worker_answer
from edgesdk.harness.leases import Lease
from edgesdk.harness.session import Session
from edgesdk.harness.text import plain
from edgesdk.harness.transport import Transport

Progress = Callable[[str, int, int], None]
SHA256 = re.compile(r"^[0-9a-f]{64}$")
RESULT_LIMIT = 2 << 30
STALL_SECONDS = 30.0
STATUS_SECONDS = 30.0
OVER = ("done", "failed", "lost", "unknown")
COLLECT_TRIES = 3
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 5.0
LOOP_LOSSES, LOOP_SECONDS = 3, 600.0
# Ctrl-C waits at most 15 s: this long for the worker, and 5 s to kill a command that hangs.
CANCEL_SECONDS = 10.0
ZIP_FAULTS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError, TypeError, ValueError,
    OverflowError, RuntimeError, OSError,
)
# $1 the job's folder, $2 seconds. The job's process holds `lock` as long as it lives: who waits for it wakes when the
# job ends, and until then costs the board nothing, also within a timed window. A board without flock answers at once.
_STATUS = """
command -v flock >/dev/null && flock -s -w "$2" "$1/lock" echo ended >&2
exec cat -- "$1/status.json"
"""
FAILURES: dict[str, type[EdgeSDKError]] = {
    "busy": Busy, "disk-full": DiskFull, "read-only": ReadOnly, "corrupt": Corrupt, "stale": LeaseLost,
}


def job_identity(workdir: Path, request: Mapping[str, Any], name: str = "job.json") -> str:
    """The id of the job that this work folder is running for the same request, or a new one, remembered there."""
    digest = sha256_bytes(canonical_json(request))
    memory = workdir / name
    try:
        known = json.loads(memory.read_bytes())
        if known["request"] == digest and SHA256.match(known["id"]):
            return str(known["id"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    identity = sha256_bytes(f"{digest} {secrets.token_hex(16)}".encode())
    write_atomic(memory, canonical_json({"request": digest, "id": identity}))
    return identity


def run_job(
    session: Session, worker: str, request: Mapping[str, Any], blobs: Mapping[str, Path], workdir: Path,
    progress: Progress, lease: Lease | None = None,
) -> tuple[dict[str, Any], Path]:
    """Run a job to its end.

    Args:
        request: the job document without its id.
        blobs: files that the job needs.
        workdir: gets `job.json` while the job runs, and the raw files in `raw/`.
        lease: of the board; its epoch goes with the job, and it is checked before the job starts.

    Returns:
        the worker's result document (its raw files checked against their digests) and the folder of the raw files.

    Raises:
        Busy, DiskFull, ReadOnly, Corrupt, BoardError: the job failed on the board; and what `Session` raises.
    """
    identity = job_identity(workdir, request)
    job = {**request, "id": identity, **({"epoch": lease.epoch} if lease else {})}
    document = canonical_json(job)
    spec = workdir / "spec.json"
    write_atomic(spec, document)
    name = sha256_bytes(document)
    state = session.board.state
    pack = workdir / "pack.zip"
    pack.unlink(missing_ok=True)
    arguments = ["--state", state, "--job", identity]
    try:
        deploy(session, {**blobs, name: spec}, progress, pack)
        packed = ["--pack", sha256_file(pack)] if pack.exists() else []
        if lease is not None:
            lease.check()
        status = ask_worker(session, worker, "start", *arguments, "--spec", name, *packed)
        status = _to_the_end(session, worker, [*arguments, "--spec", name], identity, status, progress, lease)
        if status["state"] != "done":
            (workdir / "job.json").unlink(missing_ok=True)
            if status["state"] == "failed":
                remove(session, f"{state}/jobs/{identity}", f"{state}/blobs/{name}")
            raise _failure(session, status)
        archive = _collect(session, identity, status, workdir)
        result = read_result(archive, job, workdir / "raw")
    except KeyboardInterrupt:
        if _cancel(session, worker, [*arguments, "--spec", name]):
            for left in (workdir / "job.json", workdir / "result.zip", spec, pack):
                left.unlink(missing_ok=True)
        raise
    (workdir / "job.json").unlink(missing_ok=True)
    for left in (archive, spec, pack):
        left.unlink(missing_ok=True)
    remove(session, f"{state}/jobs/{identity}", f"{state}/blobs/{name}")
    return result, workdir / "raw"


def _cancel(session: Session, worker: str, arguments: list[str]) -> bool:
    """Stop the job and remove its folder and its document from the board; False where the board did not answer in
    time: `job.json` then stays, and a later call finds the job."""
    argv = [session.board.python, worker, "stop", *arguments, "--remove"]
    with contextlib.suppress(EdgeSDKError):
        completed = session.once(lambda transport: transport.run(argv, CANCEL_SECONDS))
        return worker_answer(session.board, "stop", completed)["state"] in OVER
    return False


def _to_the_end(
    session: Session, worker: str, arguments: list[str], identity: str, status: dict[str, Any], progress: Progress,
    lease: Lease | None,
) -> dict[str, Any]:
    """Watch the job; where it lost its process (the board restarted, the worker was killed), begin it again, and it
    goes on with the rounds that it has.

    Raises:
        Rebooting: it was lost three times in ten minutes.
    """
    losses = Losses(session.board.name)
    while True:
        status = _watch(session, worker, arguments[:4], identity, status, progress)
        if status["state"] != "lost":
            return status
        losses.add()
        if lease is not None:
            lease.check()
        status = ask_worker(session, worker, "start", *arguments, "--resume")


class Losses:
    """How often a job lost its process on a board lately."""

    def __init__(self, board: str) -> None:
        self.board = board
        self.times: list[float] = []

    def add(self) -> None:
        """Once more.

        Raises:
            Rebooting: it was the third time in ten minutes.
        """
        now = time.monotonic()
        self.times = [at for at in self.times if now - at < LOOP_SECONDS] + [now]
        if len(self.times) >= LOOP_LOSSES:
            raise Rebooting(
                f"{self.board}: the job lost its process {len(self.times)} times in {LOOP_SECONDS / 60:.0f} minutes "
                "(E_REBOOTED): the board restarts again and again, or something kills the worker",
                "look at the power supply and at `dmesg` of the board; what was measured stays there, and the same "
                "command goes on with it",
            )


def _watch(
    session: Session, worker: str, arguments: list[str], identity: str, status: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Wait for the job's end, with a look at its status now and then. A status of another job, or half a one, counts
    as none."""
    folder = f"{session.board.state}/jobs/{identity}"
    wait = FIRST_WAIT_SECONDS

    def ask(transport: Transport) -> tuple[dict[str, Any], bool]:
        return _read_status(transport, folder, identity, wait)

    seen = None
    seen_at = time.monotonic()
    while status.get("state") not in OVER:
        if status.get("state") == "running":
            progress(status["step"], status["done"], status["total"])
        asked_at = time.monotonic()
        status, ended = session.step(ask)
        now = time.monotonic()
        if status.get("beat") not in (None, seen):
            seen, seen_at = status["beat"], now
        elif ended or now - seen_at > STALL_SECONDS:
            status = ask_worker(session, worker, "look", *arguments)
            seen_at = now
        if status.get("state") not in OVER:
            time.sleep(max(0.0, asked_at + wait - time.monotonic()))
        wait = min(wait * 1.4, LONGEST_WAIT_SECONDS)
    return status


def _read_status(transport: Transport, folder: str, identity: str, wait_s: float) -> tuple[dict[str, Any], bool]:
    """The job's status, {} where there is none to be read, and whether its process is known to have ended; waits for
    that end at most `wait_s`."""
    completed = transport.run(["sh", "-c", _STATUS, "status", folder, f"{wait_s:.1f}"], STATUS_SECONDS)
    ended = b"ended" in completed.stderr
    with contextlib.suppress(Corrupt):
        path = f"{folder}/status.json"
        status = answers.check(answers.Status, answers.parse_json(completed.stdout, path), path)
        if status["job"] == identity:
            return status, ended
    return {}, ended


def _failure(session: Session, status: Mapping[str, Any]) -> EdgeSDKError:
    where = session.board.name
    if status["state"] in ("lost", "unknown"):
        return BoardError(
            f"{where}: the job is gone without a result (E_REBOOTED): the board restarted, or the worker was killed",
            "look at uptime and `dmesg` on the board, then run the same command again",
        )
    error = status["error"] or {"kind": "", "message": "the job failed"}
    kind = FAILURES.get(error["kind"], BoardError)
    hint = "wait for the other job, or `edgesdk boards list`" if kind is Busy else "run the same command again"
    return kind(f"{where}: {error['message']}", hint)


def _collect(session: Session, identity: str, status: Mapping[str, Any], workdir: Path) -> Path:
    """Fetch result.zip and compare it with the digest in the final status."""
    size, digest = status.get("bytes"), status.get("sha256")
    if size is None or digest is None or not 0 < size <= RESULT_LIMIT:
        raise Corrupt(f"{session.board.name}: final status of job {identity} is malformed")
    local = workdir / "result.zip"
    remote = f"{session.board.state}/jobs/{identity}/result.zip"
    for _ in range(COLLECT_TRIES):
        session.step(lambda transport: transport.get(remote, local, size))
        if sha256_file(local) == digest:
            return local
    raise Corrupt(f"{session.board.name}: result of job {identity} arrived with wrong bytes {COLLECT_TRIES} times")


def read_result(archive: Path, job: Mapping[str, Any], raw: Path) -> dict[str, Any]:
    """Read a result file and unpack its raw files into `raw`. Everything in it is untrusted.

    Args:
        job: the job document that asked for it.

    Raises:
        Corrupt: not a result of this job (see `answers.check_result`), or a raw file is missing or has another digest.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            if sum(info.file_size for info in members.infolist()) > RESULT_LIMIT:
                raise Corrupt(f"{archive}: unpacks to more than {RESULT_LIMIT >> 20} MiB")
            document = answers.parse_json(members.read("result.json"), str(archive))
            result = answers.check_result(document, job, str(archive))
            raw.mkdir(parents=True, exist_ok=True)
            for record in result["candidates"]:
                for entry in [record["evaluation"], record["energy"], *record["rounds"], *record["rejected"]]:
                    if entry is not None and entry["file"] is not None:
                        _unpack(members, entry, raw)
    except ZIP_FAULTS as problem:
        raise Corrupt(f"{archive}: malformed result: {plain(repr(problem), 300)}") from problem
    return result


def _unpack(members: zipfile.ZipFile, entry: Mapping[str, Any], raw: Path) -> None:
    name = entry["file"]  # checked to be a plain name by `answers.Member`
    data = members.read(name)
    if sha256_bytes(data) != entry["sha256"]:
        raise Corrupt(f"raw file {name}: sha256 differs from the result's")
    (raw / name).write_bytes(data)
