"""One job on a board, from the host's side: start it once, watch it, collect its result, whatever happens to the line.

The id of a running job is kept in `job.json` of the work folder: a harness that was killed finds its job again.
"""

from __future__ import annotations

import json
import re
import secrets
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgesdk.errors import BoardError, Busy, Corrupt, DiskFull, EdgeSDKError, ReadOnly
from edgesdk.files import canonical_json, sha256_bytes, sha256_file, write_atomic
from edgesdk.harness.deploy import deploy, remove
from edgesdk.harness.facts import ask_worker
from edgesdk.harness.session import Session
from edgesdk.harness.transport import Transport

Progress = Callable[[str, int, int], None]
SHA256 = re.compile(r"^[0-9a-f]{64}$")
MEMBER = re.compile(r"^c[0-9]+-[a-z0-9]+\.(bin|jsonl)$")
RESULT_LIMIT = 2 << 30
STALL_SECONDS = 30.0
STATUS_SECONDS = 30.0
COLLECT_TRIES = 3
FAILURES: dict[str, type[EdgeSDKError]] = {
    "busy": Busy, "disk-full": DiskFull, "read-only": ReadOnly, "corrupt": Corrupt,
}


def job_identity(workdir: Path, request: Mapping[str, Any]) -> str:
    """The id of the job that this work folder is running for the same request, or a new one, remembered there."""
    digest = sha256_bytes(canonical_json(request))
    memory = workdir / "job.json"
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
    progress: Progress,
) -> tuple[dict[str, Any], Path]:
    """Run a job to its end.

    Args:
        request: the job document without its id.
        blobs: files that the job needs.
        workdir: gets `job.json` while the job runs, and the raw files in `raw/`.

    Returns:
        the worker's result document (its raw files checked against their digests) and the folder of the raw files.

    Raises:
        Busy, DiskFull, ReadOnly, Corrupt, BoardError: the job failed on the board; and what `Session` raises.
    """
    identity = job_identity(workdir, request)
    document = canonical_json({**request, "id": identity})
    spec = workdir / "spec.json"
    write_atomic(spec, document)
    name = sha256_bytes(document)
    state = session.board.state
    pack = workdir / "pack.zip"
    pack.unlink(missing_ok=True)
    deploy(session, {**blobs, name: spec}, progress, pack)
    arguments = ["--state", state, "--job", identity]
    try:
        packed = ["--pack", sha256_file(pack)] if pack.exists() else []
        status = ask_worker(session, worker, "start", *arguments, "--spec", name, *packed)
        status = _watch(session, worker, arguments, identity, status, progress)
        if status["state"] != "done":
            (workdir / "job.json").unlink(missing_ok=True)
            if status["state"] == "failed":
                remove(session, f"{state}/jobs/{identity}", f"{state}/blobs/{name}")
            raise _failure(session, status)
        archive = _collect(session, identity, status, workdir)
        result = read_result(archive, identity, workdir / "raw")
    except KeyboardInterrupt:
        ask_worker(session, worker, "stop", *arguments)
        (workdir / "job.json").unlink(missing_ok=True)
        raise
    (workdir / "job.json").unlink(missing_ok=True)
    for left in (archive, spec, pack):
        left.unlink(missing_ok=True)
    remove(session, f"{state}/jobs/{identity}", f"{state}/blobs/{name}")
    return result, workdir / "raw"


def _watch(
    session: Session, worker: str, arguments: list[str], identity: str, status: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Poll the status file until the job has ended. A status of another job, or half a one, counts as none."""
    path = f"{session.board.state}/jobs/{identity}/status.json"
    seen = -1
    seen_at = time.monotonic()
    pause = 0.1
    while status.get("state") not in ("done", "failed", "lost", "unknown"):
        if status.get("state") == "running":
            progress(str(status.get("step")), int(status.get("done", 0)), int(status.get("total", 0)))
        time.sleep(pause)
        pause = min(pause * 1.4, 5.0)
        status = session.step(lambda transport: _read_status(transport, path, identity))
        now = time.monotonic()
        if status.get("beat", seen) != seen:
            seen, seen_at = status["beat"], now
        elif now - seen_at > STALL_SECONDS:
            status = ask_worker(session, worker, "look", *arguments)
            seen_at = now
    return status


def _read_status(transport: Transport, path: str, identity: str) -> dict[str, Any]:
    completed = transport.run(["cat", "--", path], STATUS_SECONDS)
    try:
        status = json.loads(completed.stdout)
    except (ValueError, RecursionError):
        return {}
    return status if isinstance(status, dict) and status.get("job") == identity else {}


def _failure(session: Session, status: Mapping[str, Any]) -> EdgeSDKError:
    where = session.board.name
    if status["state"] in ("lost", "unknown"):
        return BoardError(
            f"{where}: the job is gone without a result (E_REBOOTED): the board restarted, or the worker was killed",
            "look at uptime and `dmesg` on the board, then run the same command again",
        )
    error = status.get("error")
    error = error if isinstance(error, dict) else {}
    kind = FAILURES.get(str(error.get("kind")), BoardError)
    hint = "wait for the other job, or `edgesdk boards list`" if kind is Busy else "run the same command again"
    return kind(f"{where}: {error.get('message', 'the job failed')}", hint)


def _collect(session: Session, identity: str, status: Mapping[str, Any], workdir: Path) -> Path:
    """Fetch result.zip and compare it with the digest in the final status."""
    size, digest = status.get("bytes"), status.get("sha256")
    if type(size) is not int or not 0 < size <= RESULT_LIMIT or not SHA256.match(str(digest)):
        raise Corrupt(f"{session.board.name}: final status of job {identity} is malformed")
    local = workdir / "result.zip"
    remote = f"{session.board.state}/jobs/{identity}/result.zip"
    for _ in range(COLLECT_TRIES):
        session.step(lambda transport: transport.get(remote, local, size))
        if sha256_file(local) == digest:
            return local
    raise Corrupt(f"{session.board.name}: result of job {identity} arrived with wrong bytes {COLLECT_TRIES} times")


def read_result(archive: Path, identity: str, raw: Path) -> dict[str, Any]:
    """Read a result file and unpack its raw files into `raw`. Everything in it is untrusted.

    Raises:
        Corrupt: not a result, a result of another job, a raw file that is missing or has another digest.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            if sum(info.file_size for info in members.infolist()) > RESULT_LIMIT:
                raise Corrupt(f"{archive}: unpacks to more than {RESULT_LIMIT >> 20} MiB")
            result = json.loads(members.read("result.json"))
            if result["format"] != "edgesdk.job-result" or result["version"] != 1:
                raise Corrupt(f"{archive}: format {result['format']!r} version {result['version']!r}")
            if result["job"] != identity:
                raise Corrupt(f"{archive}: is the result of job {result['job']!r}, expected {identity}")
            raw.mkdir(parents=True, exist_ok=True)
            for record in result["candidates"]:
                for entry in [record["evaluation"], *record["rounds"]]:
                    if entry is not None:
                        _unpack(members, entry, raw)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError, OSError) as problem:
        raise Corrupt(f"{archive}: malformed result: {problem!r}") from problem
    assert isinstance(result, dict)
    return result


def _unpack(members: zipfile.ZipFile, entry: Mapping[str, Any], raw: Path) -> None:
    name = entry["file"]
    if not MEMBER.match(name):
        raise Corrupt(f"illegal name of a raw file: {name[:80]!r}")
    data = members.read(name)
    if sha256_bytes(data) != entry["sha256"]:
        raise Corrupt(f"raw file {name}: sha256 differs from the result's")
    (raw / name).write_bytes(data)
