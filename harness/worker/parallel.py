"""Candidates in several processes at once: for boards on which nothing is timed."""

import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

from edgesdk.harness.worker import store

MOST = 4


def in_processes(
    work_on: "Callable[[int], None]", candidates: "list[Any]", work: str, tick: "Callable[[], None]", done: "list[int]"
) -> None:
    """Call `work_on(index)` for every candidate, on as many processes as there are cores (at most 4), and take over
    the records that they made.

    Args:
        candidates: objects with a `record` of plain data.
        work: folder for the records on their way back.
        done: its first element counts what is finished.

    Raises:
        OSError: a process ended without the records of its share.
    """
    shares = max(1, min(MOST, os.cpu_count() or 1, len(candidates)))
    running = {}  # type: dict[int, int]
    try:
        for share in range(shares):
            pid = os.fork()
            if pid == 0:
                _work(work_on, candidates, range(share, len(candidates), shares), work)
            running[pid] = share
        while running:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid:
                running.pop(pid, None)
            else:
                time.sleep(0.2)
            done[0] = sum(os.path.exists(_path(work, index)) for index in range(len(candidates)))
            tick()
    except BaseException:
        for pid in running:
            os.kill(pid, signal.SIGTERM)
        for pid in running:
            os.waitpid(pid, 0)
        raise
    for index, candidate in enumerate(candidates):
        candidate.record = store.read_json(_path(work, index))


def _work(work_on: "Callable[[int], None]", candidates: "list[Any]", indices: "Any", work: str) -> None:
    """The forked process: its share of the candidates, then an exit that runs none of the parent's handlers."""
    code = 1
    try:
        for index in indices:
            candidates[index].tick = _silent
            work_on(index)
            store.write_json(_path(work, index), candidates[index].record)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _path(work: str, index: int) -> str:
    return os.path.join(work, f"c{index}-record.json")


def _silent() -> None:
    """The parent tells of progress."""
