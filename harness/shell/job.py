"""One job of the shell worker, from the host's side: sent, started once, watched, collected; `worker.sh` does it.

The id of a running job is kept in the work folder, as for the Python worker: a harness that was killed finds it again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgesdk.errors import BoardError, Corrupt, EdgeSDKError
from edgesdk.files import sha256_bytes, sha256_file, write_atomic
from edgesdk.harness.deploy import deploy, remove
from edgesdk.harness.job import CANCEL_SECONDS, COLLECT_TRIES, FAILURES, Losses, Progress, job_identity
from edgesdk.harness.leases import Lease
from edgesdk.harness.session import Session
from edgesdk.harness.shell.snapshot import sections
from edgesdk.harness.text import plain
from edgesdk.harness.transport import file_error

COMMAND_SECONDS = 60.0
REPORT_LIMIT = 64 << 20
FILE_LIMIT = 1 << 30
LONGEST_POLL = 3.0
FINAL = ("done", "failed", "lost", "unknown")
STEP = re.compile(r"step (c[0-9]{1,6}-[a-z0-9]{1,40}) ([0-9]{1,3})( overdue)?")
FILE = re.compile(r"file (c[0-9]{1,6}-[a-z0-9]{1,40}\.(?:bin|jsonl)) ([0-9a-f]{64}) +([0-9]{1,12})")


@dataclass(frozen=True)
class Step:
    """A program's run. `words` are plain, `@DIGEST` stands for the path of a blob; `setting` is an environment variable
    that it gets, NAME=VALUE."""

    name: str
    limit_s: float
    program: str
    words: tuple[str, ...]
    setting: str = "-"

    def line(self) -> str:
        """As the worker reads it."""
        return " ".join((self.name, f"{self.limit_s:.0f}", self.setting, self.program, *self.words))


@dataclass(frozen=True)
class Ran:
    """How a step ended and what was seen around it (sections of `worker.sh`)."""

    code: int
    overdue: bool
    out: str
    err: str
    clocks: str
    before: Mapping[str, str]
    after: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """Steps that ran, digests of the files that they wrote (all of them in `folder`), and (boot id, wall clock) of each
    start."""

    steps: Mapping[str, Ran]
    sha256: Mapping[str, str]
    folder: Path
    starts: Sequence[tuple[str, int]]


def send_worker(session: Session) -> str:
    """Put the shell worker on the board; returns its path there."""
    source = Path(str(files("edgesdk.harness.shell").joinpath("worker.sh")))
    name = sha256_file(source)
    deploy(session, {name: source})
    session.keep.add(name)
    return f"{session.board.state}/blobs/{name}"


def ask(session: Session, worker: str, *arguments: str) -> str:
    """What a command of the worker prints.

    Raises:
        DiskFull, ReadOnly, BoardError: it failed; and what `Session` raises.
    """
    completed = session.step(lambda to: to.run(["sh", worker, *arguments], COMMAND_SECONDS))
    if completed.returncode:
        where = f"{session.board.name}: shell worker {arguments[0]}"
        raise file_error(where, completed.returncode, completed.error_text)
    return completed.text


def run_steps(
    session: Session, worker: str, steps: Sequence[Step], request: Mapping[str, Any], memory: str,
    blobs: Mapping[str, Path], workdir: Path, progress: Progress, lease: Lease | None = None, wait_s: float = 300.0,
) -> tuple[Report, str]:
    """Do steps on the board; returns the report and the job's id.

    Args:
        request: what identifies the job; equal requests of one work folder are one job.
        memory: name of the file of the work folder that remembers it.
        blobs: files that the steps need.

    Raises:
        Busy, DiskFull, LeaseLost, Corrupt, BoardError: the job failed on the board; and what `Session` raises.
    """
    identity = job_identity(workdir, request, memory)
    spec = workdir / f"{memory}.steps"
    write_atomic(spec, "".join(f"{step.line()}\n" for step in steps).encode())
    name = sha256_file(spec)
    state = session.board.state
    deploy(session, {**blobs, name: spec}, progress)
    if lease is not None:
        lease.check()
    epoch = str(lease.epoch) if lease is not None else "-"
    start = ("start", state, identity, name, epoch, f"{wait_s:.0f}")
    try:
        status = _to_the_end(session, worker, start, [step.name for step in steps], progress, lease)
        if status[0] != "done":
            (workdir / memory).unlink(missing_ok=True)
            if status[0] == "failed":
                remove(session, f"{state}/jobs/{identity}", f"{state}/blobs/{name}")
            raise _failure(session, status)
        report = _collect(session, f"{state}/jobs/{identity}", status, workdir)
    except KeyboardInterrupt:
        with contextlib.suppress(EdgeSDKError):
            session.once(lambda to: to.run(["sh", worker, "stop", state, identity], CANCEL_SECONDS))
            session.once(lambda to: to.run(["rm", "-rf", f"{state}/jobs/{identity}"], CANCEL_SECONDS))
            (workdir / memory).unlink(missing_ok=True)
        raise
    remove(session, f"{state}/jobs/{identity}", f"{state}/blobs/{name}")
    for left in (spec, workdir / memory):
        left.unlink(missing_ok=True)
    return report, identity


def _to_the_end(
    session: Session, worker: str, start: Sequence[str], names: Sequence[str], progress: Progress, lease: Lease | None
) -> list[str]:
    """The words of the final status; a job that lost its process goes on with the steps that it has."""
    losses = Losses(session.board.name)
    status = ask(session, worker, *start).split()
    pause = 0.1
    while True:
        kind = status[0] if status else ""
        if kind == "lost":
            losses.add()
            if lease is not None:
                lease.check()
            status = ask(session, worker, *start).split()
            continue
        if kind in FINAL:
            return status
        if kind == "running" and len(status) == 2 and status[1] in names:
            progress(status[1], names.index(status[1]), len(names))
        time.sleep(pause)
        pause = min(pause * 1.4, LONGEST_POLL)
        status = ask(session, worker, "look", *start[1:3]).split()


def _failure(session: Session, status: Sequence[str]) -> EdgeSDKError:
    kind = FAILURES.get(status[1] if len(status) > 1 else "", BoardError)
    words = plain(" ".join(status[2:]) or "the job is gone without a result", 300)
    return kind(f"{session.board.name}: {words}", "run the same command again")


def _collect(session: Session, home: str, status: Sequence[str], workdir: Path) -> Report:
    if len(status) != 3 or not re.fullmatch("[0-9a-f]{64}", status[1]) or not re.fullmatch("[0-9]{1,9}", status[2]):
        raise Corrupt(f"{session.board.name}: final status of the job is malformed: {plain(' '.join(status), 200)}")
    raw = workdir / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    _get(session, f"{home}/report", workdir / "report", status[1], min(int(status[2]), REPORT_LIMIT))
    steps, wrote, starts = parse_report((workdir / "report").read_bytes().decode("utf-8", "replace"))
    (workdir / "report").unlink()
    for name, (digest, size) in wrote.items():
        _get(session, f"{home}/work/{name}", raw / name, digest, min(size, FILE_LIMIT))
    return Report(steps, {name: digest for name, (digest, _) in wrote.items()}, raw, starts)


def _get(session: Session, remote: str, local: Path, digest: str, limit: int) -> None:
    for _ in range(COLLECT_TRIES):
        session.step(lambda to: to.get(remote, local, limit))
        if sha256_bytes(local.read_bytes()) == digest:
            return
    raise Corrupt(f"{session.board.name}: {remote} arrived with wrong bytes {COLLECT_TRIES} times")


def parse_report(
    text: str,
) -> tuple[dict[str, Ran], dict[str, tuple[str, int]], list[tuple[str, int]]]:
    """Steps by name, (sha256, bytes) of files by name, starts. Lines that are anything else are skipped."""
    parts: list[tuple[re.Match[str], list[str]]] = []
    wrote: dict[str, tuple[str, int]] = {}
    rest: list[str] = []
    lines = rest
    for line in text.splitlines():
        if step := STEP.fullmatch(line):
            lines = []
            parts.append((step, lines))
        elif file := FILE.fullmatch(line):
            wrote[file[1]] = file[2], int(file[3])
        elif line == "rest":
            lines = rest
        else:
            lines.append(line)
    steps = {}
    for found, inside in parts:
        said = sections("\n".join(inside))
        before, after = (sections(said.get(name, "")) for name in ("before", "after"))
        steps[found[1]] = Ran(
            int(found[2]), bool(found[3]), said.get("out", ""), said.get("err", ""), said.get("cpu", ""), before, after
        )
    starts = re.findall(r"^([0-9a-f-]{1,64}) ([0-9]{1,12})$", sections("\n".join(rest)).get("starts", ""), re.MULTILINE)
    return steps, wrote, [(boot, int(at)) for boot, at in starts]

