"""The benchmark of boards without its measuring: what its parts promise, and how a part's figures become entries."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
boards = importlib.import_module("boards")


def test_a_figure_has_what_its_part_found_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (2.345, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getscheduler", lambda process: os.SCHED_RR)

    def measured(names: list[str]) -> dict[str, Any]:
        return {names[1]: (True, True, "emulated", {}), names[0]: (0.123456, False, "measured", {"note": "as it is"})}

    monkeypatch.setitem(sys.modules, "boards_trial", SimpleNamespace(measured=measured))
    part = boards._part("boards_trial", "measured", [("x", "s", "≤ 0.1"), ("y", "", "true")])
    how = {"load": 2.3, "real_time": True}
    assert part.run() == ([
        {"figure": "x", "value": 0.1235, "unit": "s", "goal": "≤ 0.1", "met": False, "provenance": "measured",
         "note": "as it is"} | how,
        {"figure": "y", "value": True, "unit": "", "goal": "true", "met": True, "provenance": "emulated"} | how,
    ], [])
    assert part.promised == [("x", "≤ 0.1"), ("y", "true")]


def test_every_figure_of_the_document_is_of_a_part_and_each_part_says_its_state() -> None:
    """What figures may depend on is there, be it only to say that it is not known."""
    document = json.loads((BENCHMARKS / "results/boards.json").read_bytes())
    assert {entry["part"] for entry in document["figures"]} <= set(boards.PARTS)
    assert {entry["part"] for entry in document["figures"] if entry["value"] is not None} <= set(document["parts"])
    for name, state in document["parts"].items():
        assert set(boards.PARTS[name].state("")) <= set(state)
