"""CPU seconds of work that is kept in a cache: booked once, found again, also over a killed run."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgesdk.errors import ConfigError
from edgesdk.files import canonical_json, read_document, sha256_bytes, write_atomic
from edgesdk.stages import Progress

FORMAT, VERSION = "edgesdk.benchmark.cpu", 1
SECONDS_BETWEEN_NOTES = 20.0


class CpuBook:
    """One small file for each piece of work in `folder`. While work is under way its seconds are noted now and then,
    so that those of a killed run are counted too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def seconds(self, what: str) -> float:
        """CPU seconds booked for `what`; 0 where it was never done."""
        return float(self._read(what).get("seconds", 0.0))

    @contextmanager
    def measure(self, what: str) -> Iterator[Callable[[Progress], Progress]]:
        """Book the CPU seconds (children that ended included) of the block, which gets a function that makes a progress
        callback note them on the way.

        To what a killed or failed run noted they are added. Work that was finished before is mostly read back from a
        cache: the larger figure stays. Another process that wants the same work waits until it is there.
        """
        with self._alone(what):
            yield from self._measured(what)

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        path = self._path(what).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # ends with the stream, and with the process
            yield

    def _measured(self, what: str) -> Iterator[Callable[[Progress], Progress]]:
        known, start = self._read(what), cpu_seconds()
        finished = bool(known.get("finished"))
        before = 0.0 if finished else float(known.get("seconds", 0.0))
        noted = time.monotonic()

        def watched(progress: Progress) -> Progress:
            def report(text: str, done: int, total: int) -> None:
                nonlocal noted
                if not finished and time.monotonic() - noted > SECONDS_BETWEEN_NOTES:
                    self._write(what, before + cpu_seconds() - start, False)
                    noted = time.monotonic()
                progress(text, done, total)

            return report

        done = False
        try:
            yield watched
            done = True
        finally:
            spent = before + cpu_seconds() - start
            if not finished:
                self._write(what, spent, done)
            elif done:
                self._write(what, max(spent, float(known["seconds"])), True)

    def _read(self, what: str) -> dict[str, Any]:
        path = self._path(what)
        return read_document(path, FORMAT, VERSION, ConfigError) if path.is_file() else {}

    def _write(self, what: str, seconds: float, finished: bool) -> None:
        document = {"format": FORMAT, "version": VERSION, "what": what, "seconds": seconds, "finished": finished}
        write_atomic(self._path(what), canonical_json(document))

    def _path(self, what: str) -> Path:
        return self.folder / f"{sha256_bytes(what.encode())[:32]}.json"


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
