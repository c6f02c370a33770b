"""Who measures on a board: the worker in Python, or the one in POSIX sh where there is no Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from edgesdk.errors import DiskFull
from edgesdk.harness import answers
from edgesdk.harness.energy.part import metering
from edgesdk.harness.evict import evict
from edgesdk.harness.facts import NoPython, check_identity, collect_facts, deploy_worker
from edgesdk.harness.job import Progress, run_job
from edgesdk.harness.leases import Lease
from edgesdk.harness.session import Session
from edgesdk.harness.shell import snapshot
from edgesdk.harness.shell.job import ask, send_worker
from edgesdk.harness.shell.measure import LOST, REASON, ShellMeasurement

MAKE_ROOM_BYTES = 1 << 40  # all that may go: `df` did not know that the disk would not do
Finished = tuple[dict[str, Any], list[dict[str, Any]], Path]


class Agent(Protocol):
    """A worker on the board of a session; `facts` are those of the board."""

    facts: dict[str, Any]

    def run(
        self, request: dict[str, Any], blobs: Mapping[str, Path], workdir: Path, progress: Progress, lease: Lease,
        profile: str,
    ) -> Finished:
        """Do a job: the result, the records of its candidates with energy, the folder of the raw files.

        Raises:
            as `run_job`.
        """


def hire(session: Session) -> Agent:
    """The worker that the board of a session can run; its identity is checked.

    Raises:
        Identity, BoardError, and what `Session` raises.
    """
    try:
        return PythonAgent(session)
    except NoPython:
        return ShellAgent(session)


class PythonAgent:
    """The worker of `harness/worker`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.worker = deploy_worker(session)
        self.facts = collect_facts(session, self.worker)

    def run(
        self, request: dict[str, Any], blobs: Mapping[str, Path], workdir: Path, progress: Progress, lease: Lease,
        profile: str,
    ) -> Finished:
        with metering(self.session, self.worker, profile) as meter:
            request = {**request, "energy": meter.request}
            result, raw = with_room(
                self.session, lease, blobs,
                lambda: run_job(self.session, self.worker, request, blobs, workdir, progress, lease),
            )
            return result, meter.records(result["candidates"], raw), raw


class ShellAgent:
    """The worker of `harness/shell`: NEON artifacts only, without energy."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.worker = send_worker(session)
        self.seen = snapshot.sections(ask(session, self.worker, "facts", session.board.state))
        where = f"{session.board.name}: shell worker facts"
        self.facts = answers.check(answers.Facts, snapshot.facts(self.seen, f"energy {REASON}"), where)
        self.facts.update({"agent": "shell", "without_python": list(LOST)})
        check_identity(session.board, self.facts)

    def run(
        self, request: dict[str, Any], blobs: Mapping[str, Path], workdir: Path, progress: Progress, lease: Lease,
        profile: str,
    ) -> Finished:
        def once() -> tuple[dict[str, Any], Path]:
            job = ShellMeasurement(self.session, self.worker, request, blobs, workdir, progress, lease)
            return job.run(self.facts, snapshot.free_bytes(self.seen))

        result, raw = with_room(self.session, lease, blobs, once)
        return result, result["candidates"], raw


def with_room(
    session: Session, lease: Lease, keep: Mapping[str, Path], job: Callable[[], tuple[dict[str, Any], Path]]
) -> tuple[dict[str, Any], Path]:
    """A job; where the board's disk is full of files of ours while it runs, they go but for the blobs `keep`, and it
    runs once more."""
    try:
        return job()
    except DiskFull:
        lease.check()
        if not evict(session, MAKE_ROOM_BYTES, keep):
            raise
    return job()
