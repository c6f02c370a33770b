"""Reads a meter while a job runs, and puts its samples into the job's raw files, on the board's clock.

The board's clock is asked for like any command: the answer lies between the moment of asking and that of the reply, so
the shortest of several round trips bounds the offset by half of its length.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesdk.errors import Corrupt
from edgesdk.files import sha256_bytes, write_atomic
from edgesdk.harness.energy.log import FORMAT, VERSION
from edgesdk.harness.energy.meters import Meter
from edgesdk.harness.session import Session

ROUND_TRIPS = 5
CLOCK_SECONDS = 30.0
# A pair of clocks that is not known better than this is not used.
MOST_OFFSET_ERROR_S = 0.4
STOP_SECONDS = 5.0
MOST_SAMPLES = 500_000
AROUND_NS = 20 * 10**9


@dataclass(frozen=True)
class Offset:
    """The board's clock less this machine's (CLOCK_MONOTONIC_RAW both), and how far off that may be; nanoseconds."""

    offset_ns: int
    error_ns: int


def raw_ns() -> int:
    """This machine's CLOCK_MONOTONIC_RAW."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def board_offset(session: Session, worker: str) -> Offset:
    """Compare the clocks by the shortest of five round trips; this machine's own clock is the board's on `host`.

    Raises:
        Corrupt: the worker does not answer with a number; and what `Session` raises.
    """
    if session.board.host is None:
        return Offset(0, 0)
    best: Offset | None = None
    for _ in range(ROUND_TRIPS):
        argv = [session.board.python, worker, "clock"]
        before = raw_ns()
        completed = session.step(lambda transport, argv=argv: transport.run(argv, CLOCK_SECONDS))  # type: ignore[misc]
        after = raw_ns()
        last = completed.stdout[-64:].split()[-1:]
        if completed.returncode != 0 or not last or not last[0].isdigit() or len(last[0]) > 18:
            raise Corrupt(f"{session.board.name}: the worker does not tell its clock: {completed.error_text}")
        error = (after - before) // 2
        if best is None or error < best.error_ns:
            best = Offset(int(last[0]) - (before + error), error)
    assert best is not None
    return best


class Recorder:
    """Samples of one meter, from `start` to `stop`, read by a thread of its own."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.samples: list[tuple[int, int | None]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="edgesdk-meter", daemon=True)

    def start(self) -> None:
        """Open the meter and read it from now on (BoardError where it does not answer)."""
        self.meter.open()
        self._thread.start()

    def stop(self) -> None:
        """End; the meter is closed and the thread is gone, unless a plug-in hangs."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(self.meter.period_s + STOP_SECONDS / 2)
            self.meter.close()
            self._thread.join(STOP_SECONDS)

    def _read(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set() and len(self.samples) < MOST_SAMPLES:
            before = raw_ns()
            try:
                watts = self.meter.read()
            except Exception:  # a plug-in may do anything: that is a sample that is lost
                watts = None
            after = raw_ns()
            at = after if self.meter.paced else (before + after) // 2
            self.samples.append((at, None if watts is None else round(watts * 1e6)))
            due = max(due + self.meter.period_s, time.monotonic())
            failed = watts is None
            self._ended.wait(0.0 if self.meter.paced and not failed else max(0.02, due - time.monotonic()))

    def lines(self, start_ns: int, end_ns: int, offset: Offset) -> bytes:
        """A segment for the raw file: the samples around a stretch of the board's clock."""
        meter = self.meter
        header = {
            "format": FORMAT, "version": VERSION, "clock": "host CLOCK_MONOTONIC_RAW", "sensor": meter.name,
            "boundary": meter.boundary, "rails": ["meter"], "total": ["meter"], "unit": "uW",
            "period_ns": int(meter.period_s * 1e9), "gain": list(meter.gain), "offset_ns": offset.offset_ns,
            "offset_error_ns": offset.error_ns,
        }
        found = [
            [time_ns, value] for time_ns, value in self.samples
            if start_ns - AROUND_NS <= time_ns + offset.offset_ns <= end_ns + AROUND_NS
        ]
        return "\n".join(json.dumps(entry, sort_keys=True) for entry in [header, *found]).encode() + b"\n"


def add_samples(record: Mapping[str, Any], raw: Path, recorder: Recorder, offset: Offset) -> dict[str, Any]:
    """A worker's record with the meter's samples in its energy file; without a file it stays as it is."""
    energy = record.get("energy")
    if not energy or not energy["file"]:
        return dict(record)
    if offset.error_ns > MOST_OFFSET_ERROR_S * 1e9:
        reason = f"the clocks of the board and the meter are known to {offset.error_ns / 1e9:.2g} s only"
        return {**record, "energy": {"file": None, "sha256": None, "reason": f"E_CLOCK: {reason}"}}
    path = raw / energy["file"]
    data = path.read_bytes()
    start, end = _span(data)
    data += recorder.lines(start, end, offset)
    write_atomic(path, data)
    return {**record, "energy": {**energy, "sha256": sha256_bytes(data)}}


def _span(data: bytes) -> tuple[int, int]:
    """First and last edge of the events in a board's file; (0, 0) where there are none."""
    edges: list[int] = []
    for line in data.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            edges += [entry[key] for key in ("start_ns", "end_ns") if type(entry.get(key)) is int]
    return (min(edges), max(edges)) if edges else (0, 0)
