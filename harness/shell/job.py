"""One job of the shell worker, from the host's side: sent, started once, watched, collected; `worker.sh` does it.

The id of a running job is kept in the work folder, as for the Python worker: a harness that was killed finds it again.
Every wait has an end, also for a worker that stands still or lies about its steps.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgesdk.errors import BoardError, Corrupt, Deadline, EdgeSDKError
from edgesdk.files import canonical_json, sha256_bytes, sha256_file, write_atomic
from edgesdk.harness.deploy import deploy, remove
from edgesdk.harness.job import CANCEL_SECONDS, COLLECT_TRIES, FAILURES, OVER, Losses, Progress, job_identity
from edgesdk.harness.leases import Lease
from edgesdk.harness.session import Session
from edgesdk.harness.shell.report import Report, Step, Wrote, parse_report
from edgesdk.harness.text import plain
from edgesdk.harness.transport import file_error

COMMAND_SECONDS = 60.0
REPORT_LIMIT = 64 << 20
FILES_LIMIT = 2 << 30
LONGEST_POLL = 3.0
# What the worker may need around a step beyond its limit: two `sync` of at most 60 s, two looks at the board, a copy of
# the program on a slow card.
AROUND_SECONDS = 240.0
# A board without one of these is told so at once; all of them are in busybox.
TOOLS = tuple("cat chmod cp date df env head mkdir mv rm sed sha256sum sleep sync tail tr uname wc".split())


def send_worker(session: Session) -> str:
    """Put the shell worker on the board; returns its path there.

    Raises:
        BoardError: the board lacks a command that it needs; and what `Session` raises.
    """
    script = 'for tool; do command -v "$tool" >/dev/null || echo "$tool"; done'
    lacks = session.step(lambda to: to.run(["sh", "-c", script, "tools", *TOOLS], COMMAND_SECONDS)).text.split()
    if lacks:
        raise BoardError(
            f"{session.board.name}: lacks {session.board.python}, and for measuring without Python "
            f"{plain(' '.join(lacks), 200)}", "install Python 3, or busybox with these commands",
        )
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
    """Do steps on the board; returns the report and the job's id. The report stays in the work folder, for
    `kept_report`.

    Args:
        request: what identifies the job; equal requests of one work folder are one job.
        memory: name of the file of the work folder that remembers it.
        blobs: files that the steps need.

    Raises:
        Busy, DiskFull, LeaseLost, Corrupt, BoardError: the job failed on the board. Deadline: it stood still, and was
        stopped. And what `Session` raises.
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
    kept = _kept(workdir, request, memory)
    try:
        status = _to_the_end(session, worker, start, steps, progress, lease)
        if status[0] != "done":
            (workdir / memory).unlink(missing_ok=True)
            if status[0] == "failed":
                remove(session, f"{state}/jobs/{identity}", f"{state}/blobs/{name}")
            raise _failure(session, status)
        report = _collect(session, f"{state}/jobs/{identity}", status, kept, steps)
    except (KeyboardInterrupt, StandsStill):
        if _cancel(session, worker, identity):
            for left in (spec, workdir / memory):
                left.unlink(missing_ok=True)
        raise
    remove(session, f"{state}/jobs/{identity}", f"{state}/blobs/{name}")
    for left in (spec, workdir / memory):
        left.unlink(missing_ok=True)
    return report, identity


class StandsStill(Deadline):
    """A job that makes no progress."""


def _cancel(session: Session, worker: str, identity: str) -> bool:
    """Stop the job and remove its folder; False where it may still run: it stays remembered then, and a later call
    finds it."""
    state = session.board.state
    with contextlib.suppress(EdgeSDKError):
        stopped = session.once(lambda to: to.run(["sh", worker, "stop", state, identity], CANCEL_SECONDS))
        if stopped.returncode == 0 and stopped.text.split()[:1] and stopped.text.split()[0] in OVER:
            session.once(lambda to: to.run(["rm", "-rf", f"{state}/jobs/{identity}"], CANCEL_SECONDS))
            return True
    return False


class _Patience:
    """How long a job may take: each step its limit and what is done around it, counted from the last change of the
    status; and all of it the sum, so that a status that only seems to move ends too."""

    def __init__(self, where: str, steps: Sequence[Step], wait_s: float) -> None:
        self.where = where
        self.limits = {"waiting": wait_s + AROUND_SECONDS}
        self.limits |= {step.name: step.limit_s + AROUND_SECONDS for step in steps}
        self.end = time.monotonic() + sum(self.limits.values())
        self.seen = ""
        self.since = time.monotonic()

    def again(self) -> None:
        """The job lost its process: it waits for the board again, and repeats one step."""
        self.end += self.limits["waiting"] + max(self.limits.values())
        self.seen = ""

    def look(self, doing: str) -> None:
        """The job is at a step, or `waiting`.

        Raises:
            StandsStill: for too long.
        """
        now = time.monotonic()
        if doing != self.seen:
            self.seen, self.since = doing, now
        limit = self.limits.get(doing, AROUND_SECONDS)
        if now - self.since > limit or now > self.end:
            raise StandsStill(
                f"{self.where}: the job stands still: {plain(doing, 60)} for {now - self.since:.0f} s, at most "
                f"{limit:.0f} s were expected",
                "look at `dmesg` of the board (a worn card? a frozen driver?), then run the same command again",
            )


def _to_the_end(
    session: Session, worker: str, start: Sequence[str], steps: Sequence[Step], progress: Progress,
    lease: Lease | None,
) -> list[str]:
    """The words of the final status; a job that lost its process goes on with the steps that it has."""
    names = [step.name for step in steps]
    losses, patience = Losses(session.board.name), _Patience(session.board.name, steps, float(start[-1]))
    status = ask(session, worker, *start).split()
    pause = 0.1
    while True:
        kind = status[0] if status else ""
        if kind == "lost":
            losses.add()
            patience.again()
            if lease is not None:
                lease.check()
            status = ask(session, worker, *start).split()
            continue
        if kind in OVER:
            return status
        doing = status[1] if kind == "running" and len(status) == 2 else kind
        patience.look(doing)
        if doing in names:
            progress(doing, names.index(doing), len(names))
        time.sleep(pause)
        pause = min(pause * 1.4, LONGEST_POLL)
        status = ask(session, worker, "look", *start[1:3]).split()


def _failure(session: Session, status: Sequence[str]) -> EdgeSDKError:
    kind = FAILURES.get(status[1] if len(status) > 1 else "", BoardError)
    words = plain(" ".join(status[2:]) or "the job is gone without a result", 300)
    return kind(f"{session.board.name}: {words}", "run the same command again")


def kept_report(workdir: Path, request: Mapping[str, Any], memory: str, steps: Sequence[Step]) -> Report | None:
    """The report of a job that an earlier call of this work folder collected; None where it or its files are gone."""
    with contextlib.suppress(OSError):
        report = _read_report(_kept(workdir, request, memory), steps)
        if all(sha256_file(report.folder / name) == wrote.sha256 for name, wrote in report.fetched.items()):
            return report
    return None


def _kept(workdir: Path, request: Mapping[str, Any], memory: str) -> Path:
    return workdir / f"{memory}-{sha256_bytes(canonical_json(request))[:16]}.report"


def _read_report(kept: Path, steps: Sequence[Step]) -> Report:
    return parse_report(kept.read_bytes().decode("utf-8", "replace"), kept.parent / "raw", steps)


def _collect(session: Session, home: str, status: Sequence[str], kept: Path, steps: Sequence[Step]) -> Report:
    """The report and the files that it names; a file that is larger than its step may write stays on the board."""
    if len(status) != 3 or not re.fullmatch("[0-9a-f]{64}", status[1]) or not re.fullmatch("[0-9]{1,9}", status[2]):
        raise Corrupt(f"{session.board.name}: final status of the job is malformed: {plain(' '.join(status), 200)}")
    _get(session, f"{home}/report", kept, Wrote(status[1], min(int(status[2]), REPORT_LIMIT)))
    report = _read_report(kept, steps)
    report.folder.mkdir(parents=True, exist_ok=True)
    if sum(wrote.size for wrote in report.fetched.values()) > FILES_LIMIT:
        raise Corrupt(f"{session.board.name}: the files of the job have more than {FILES_LIMIT >> 20} MiB")
    for name, wrote in report.fetched.items():
        _get(session, f"{home}/work/{name}", report.folder / name, wrote)
    return report


def _get(session: Session, remote: str, local: Path, wrote: Wrote) -> None:
    for _ in range(COLLECT_TRIES):
        session.step(lambda to: to.get(remote, local, wrote.size))
        if sha256_file(local) == wrote.sha256:
            return
    raise Corrupt(f"{session.board.name}: {remote} arrived with wrong bytes {COLLECT_TRIES} times")
