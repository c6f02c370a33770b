"""Jobs on the board: started once, detached, watched through a status file.

The job's folder is made by one atomic rename, so an id starts once however often it is asked for. The process of the
job holds `lock` of its folder while it lives; whoever finds the lock free and no final status knows that it died.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import time
import traceback
from typing import Any

from edgesdk.harness.worker import fence, store, work
from edgesdk.harness.worker.launch import launch

FINAL = ("done", "failed")
STOP_SECONDS = 6.0
BEGIN_SECONDS = 15.0
LOCK_TRIES = 10


def job_folder(state: str, identity: str) -> str:
    """Folder of a job."""
    return os.path.join(state, "jobs", store.digest_name(identity))


def start(state: str, identity: str, spec: str, resume: bool = False) -> "dict[str, Any]":
    """Start job `identity`, whose document is blob `spec`, unless it was started before; returns `look`.

    Args:
        resume: begin a job again that lost its process (the board restarted, the worker was killed).
    """
    folder = job_folder(state, identity)
    if not os.path.isdir(folder):
        blob = os.path.join(state, "blobs", store.digest_name(spec))
        job = store.read_json(blob)
        if job["id"] != identity:
            raise ValueError("job document is of another job")
        new = f"{folder}.{os.getpid()}.new"
        shutil.rmtree(new, ignore_errors=True)
        os.makedirs(new)
        store.write_json(os.path.join(new, "job.json"), job)
        try:
            os.rename(new, folder)
        except OSError:
            shutil.rmtree(new)  # another start was faster
    status = look(state, identity)
    again = resume and status["state"] == "lost"
    if again:
        _renew(state, folder, identity, spec)
    if again or (not os.path.exists(os.path.join(folder, "status.json")) and not is_alive(folder)):
        launch(state, folder, identity, again, lambda words, ready: _Job(state, folder, words, again).run(ready))
        _wait_for_beginning(state, identity)
    return look(state, identity)


def _renew(state: str, folder: str, identity: str, spec: str) -> None:
    """Take over the document of who begins the job again: its lease is a later one."""
    try:
        job = store.read_json(os.path.join(state, "blobs", store.digest_name(spec)))
    except OSError:
        return
    if job["id"] == identity:
        store.write_json(os.path.join(folder, "job.json"), job)


def work_here(state: str, identity: str, resume: bool) -> None:
    """Do a job in this process: what a unit of systemd runs."""
    _Job(state, job_folder(state, identity), "systemd-run --user", resume).run(None)


def _wait_for_beginning(state: str, identity: str) -> None:
    """A unit of systemd begins after its start has returned."""
    deadline = time.monotonic() + BEGIN_SECONDS
    folder = job_folder(state, identity)
    while not is_alive(folder) and look(state, identity)["state"] not in FINAL and time.monotonic() < deadline:
        time.sleep(0.02)


def look(state: str, identity: str) -> "dict[str, Any]":
    """The status of a job, with `state` = `lost` when its process is gone without a final status."""
    folder = job_folder(state, identity)
    if not os.path.isdir(folder):
        return {"job": identity, "state": "unknown"}
    alive = is_alive(folder)  # before reading: a job that ends in between has a final status
    try:
        status = store.read_json(os.path.join(folder, "status.json"))  # type: dict[str, Any]
    except (OSError, ValueError):
        status = {"job": identity, "state": "starting"}
    if not alive and status["state"] not in FINAL:
        status["state"] = "lost"
    return status


def stop(state: str, identity: str) -> "dict[str, Any]":
    """End a job: its process is told to stop, and kills its child."""
    folder = job_folder(state, identity)
    if is_alive(folder):
        try:
            with open(os.path.join(folder, "pid")) as stream:
                os.kill(int(stream.read()), signal.SIGTERM)
        except (OSError, ValueError):
            pass
    deadline = time.monotonic() + STOP_SECONDS
    while is_alive(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return look(state, identity)


def remove(state: str, identity: str, spec: "str | None") -> None:
    """Remove the folder of a job that has ended, and its document; a job that lives keeps both."""
    folder = job_folder(state, identity)
    if is_alive(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    if spec:
        try:
            os.unlink(os.path.join(state, "blobs", store.digest_name(spec)))
        except OSError:
            pass


def is_alive(folder: str) -> bool:
    """Does a process hold the job's lock?"""
    try:
        descriptor = os.open(os.path.join(folder, "lock"), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


class _Job:
    def __init__(self, state: str, folder: str, words: str, resume: bool) -> None:
        self.state = state
        self.folder = folder
        self.words = words
        self.resume = resume
        self.document = store.read_json(os.path.join(folder, "job.json"))
        self.beat = int(time.time()) << 16 if resume else 0  # a beat that no start before this one had

    def run(self, ready: "int | None") -> None:
        """Take the locks, do the job, write the final status; `ready` is closed when the first status is there."""
        if not self._take_job():
            return  # another start of the same job was faster
        path = os.path.join(self.folder, "status.json")
        if os.path.exists(path) and (not self.resume or store.read_json(path)["state"] in FINAL):
            return
        store.write_atomic(os.path.join(self.folder, "pid"), str(os.getpid()).encode())
        self._write({"state": "waiting"})
        if ready is not None:
            os.close(ready)
        signal.signal(signal.SIGTERM, _on_terminate)
        try:
            self._take_board()
            result = work.do_job(self.state, self.folder, self.document, self._progress, self.words)
            self._write(dict(result, state="done"))
        except work.JobFailed as problem:
            self._fail(problem.kind, problem.message)
        except OSError as problem:
            traceback.print_exc()
            failure = work.failure_of(problem)
            self._fail(failure.kind, failure.message)
        except SystemExit:
            self._fail("cancelled", "stopped on request")
        except BaseException as problem:
            traceback.print_exc()
            self._fail("worker", f"fault in the worker: {problem!r}")

    def _take_job(self) -> bool:
        """Hold the job's lock while this process lives; whoever only looks at it holds it for an instant."""
        lock = os.open(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                time.sleep(0.02)
        return False

    def _take_board(self) -> None:
        """Only one job runs on a board, whoever asks, and none of an older lease than one that was here."""
        deadline = time.monotonic() + float(self.document["lock_wait_s"])
        while fence.take_lock(self.state) is None:
            if time.monotonic() > deadline:
                raise work.JobFailed("busy", "another job holds the board")
            self._write({"state": "waiting"})
            time.sleep(0.5)
        epoch = self.document.get("epoch")
        if not fence.accept(self.state, epoch):
            largest = fence.largest_epoch(self.state)
            raise work.JobFailed("stale", f"E_FENCED: lease epoch {epoch} is stale: {largest} was on the board")

    def _progress(self, step: str, done: int, total: int) -> None:
        self._write({"state": "running", "step": step, "done": done, "total": total})

    def _fail(self, kind: str, message: str) -> None:
        self._write({"state": "failed", "error": {"kind": kind, "message": message}})

    def _write(self, status: "dict[str, Any]") -> None:
        self.beat += 1
        status.update({"job": self.document["id"], "beat": self.beat})
        store.write_json(os.path.join(self.folder, "status.json"), status)


def _on_terminate(number: int, frame: "Any") -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the way out must not be interrupted again
    raise SystemExit("terminated")


def print_json(value: "Any") -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(json.dumps(value, sort_keys=True) + "\n")
