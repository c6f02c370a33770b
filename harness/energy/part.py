"""The `energy_mj` part of a measurement document: made from a worker's record, and made again to verify it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesdk.errors import EdgeSDKError
from edgesdk.harness.board import Board
from edgesdk.harness.energy import unmeasured_energy
from edgesdk.harness.energy.figure import energy_figure, unmeasured
from edgesdk.harness.energy.meters import make_meter
from edgesdk.harness.energy.plan import EMULATED, energy_plan
from edgesdk.harness.energy.recorder import Recorder, add_samples, board_offset
from edgesdk.harness.figures import read_raw
from edgesdk.harness.protocol import Profile
from edgesdk.harness.session import Session
from edgesdk.harness.text import plain
from edgesdk.targets.target import Target

SAMPLES = "energy.jsonl"


class Metering:
    """What a job needs for energy: `request` for its document, and afterwards the records with a meter's samples."""

    def __init__(self, session: Session, worker: str, recorder: Recorder | None, problem: str, profile: str) -> None:
        self._session = session
        self._worker = worker
        self._recorder = recorder
        self._problem = problem
        board = session.board
        self.request: dict[str, Any] | None = None
        if board.emulated:
            self.request = EMULATED.worker_numbers()
        elif not problem:
            self.request = energy_plan(profile, recorder.meter.period_s if recorder else 0.0).worker_numbers()

    def records(self, records: Sequence[Mapping[str, Any]], raw: Path) -> list[dict[str, Any]]:
        """The worker's records; energy files hold the samples of the meter, if there is one."""
        if self._problem:
            nothing = {"file": None, "sha256": None, "reason": self._problem}
            return [{**record, "energy": nothing} for record in records]
        if self._recorder is None:
            return [dict(record) for record in records]
        self._recorder.stop()
        offset = board_offset(self._session, self._worker)
        return [add_samples(record, raw, self._recorder, offset) for record in records]


@contextlib.contextmanager
def metering(session: Session, worker: str, profile: str) -> Iterator[Metering]:
    """Open and read the meter of the session's board, if farm.toml names one, while the block runs. A meter that does
    not answer costs the energy, not the measurement.

    Raises:
        ConfigError: settings that are not those of a meter.
    """
    board = session.board
    recorder = Recorder(make_meter(dict(board.meter))) if board.meter and not board.emulated else None
    problem = ""
    if recorder is not None:
        try:
            recorder.start()
        except EdgeSDKError as failure:
            problem = plain(failure.message, 300)
    try:
        yield Metering(session, worker, recorder, problem, profile)
    finally:
        if recorder is not None:
            recorder.stop()


def keep_energy(record: Mapping[str, Any], raw: Path, folder: Path) -> dict[str, Any] | None:
    """Copy a record's raw energy file into a measurement's folder; returns what `energy_part` goes by."""
    entry = record.get("energy")
    if not entry:
        return None
    if not entry["file"]:
        return unmeasured(entry["reason"] or "the board gives no reason")
    shutil.copyfile(raw / entry["file"], folder / SAMPLES)
    return {"samples": SAMPLES, "sha256": entry["sha256"]}


def energy_part(
    document: Mapping[str, Any], folder: Path, board: Board, target: Target, facts: Mapping[str, Any], profile: Profile
) -> dict[str, Any]:
    """`energy_mj` of a document whose latency is filled in; see `energy_figure`."""
    kept = document.get("energy_mj")
    if not kept:
        return unmeasured_energy(board, target, facts)
    if "samples" not in kept:
        return dict(kept)
    lenient = profile.lenient and (board.host is None or board.emulated)
    return _figure(document, kept, folder, lenient)


def energy_figures(folder: Path, document: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, stored value, value computed from the raw file) of every key of `energy_mj`."""
    stored = document["energy_mj"]
    if "samples" not in stored:
        yield "energy_mj.value", stored["value"], None
        yield "energy_mj.provenance", stored["provenance"], "unmeasured"
        return
    computed = _figure(document, stored, folder, bool(stored.get("lenient")))
    for key in sorted(stored.keys() | computed.keys()):
        yield f"energy_mj.{key}", stored.get(key), computed.get(key)


def _figure(document: Mapping[str, Any], kept: Mapping[str, Any], folder: Path, lenient: bool) -> dict[str, Any]:
    data = read_raw(folder, kept["samples"], kept["sha256"])
    latency = document["latency_ms"]["p50"]
    found = energy_figure(data, document["profile"], document["provenance"], lenient, latency)
    return {**found, "lenient": lenient, "samples": kept["samples"], "sha256": kept["sha256"]}
