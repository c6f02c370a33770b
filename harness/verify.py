"""Verify a stored measurement: every figure is computed again from the raw files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgesdk.errors import MeasureError
from edgesdk.files import read_document
from edgesdk.harness import figures
from edgesdk.harness.document import FORMAT, VERSION
from edgesdk.harness.energy.part import energy_figures


def verify_measurement(path: Path) -> dict[str, Any]:
    """Read `measurement.json` (or the folder that holds it) and recompute its figures.

    Returns:
        the document.

    Raises:
        MeasureError: unknown version, a raw file that is missing or changed, or a figure that differs; it is named.
    """
    if path.is_dir():
        path = path / "measurement.json"
    document = read_document(path, FORMAT, VERSION, MeasureError)
    try:
        for name, stored, computed in _figures(path.parent, document):
            if not _same(stored, computed):
                raise MeasureError(f"{path}: {name} is {stored!r}, the raw files give {computed!r}")
        if document["valid"] != (not document["reasons"]):
            raise MeasureError(f"{path}: valid is {document['valid']!r} with {len(document['reasons'])} reasons")
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise MeasureError(f"{path}: malformed: {problem!r}") from problem
    return document


def _figures(folder: Path, document: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, stored value, value computed from raw files) of every figure."""
    evaluation = document["evaluation"]
    if evaluation is not None:
        figures.read_raw(folder, evaluation["outputs"], evaluation["sha256"])
    yield "exits", document.get("exits"), figures.exits(folder, document)
    rounds = document["rounds"]
    timed = bool(rounds) and rounds[0]["batch"] is not None
    if document["provenance"] == "measured" and timed:
        for entry in rounds:
            found = figures.round_figures(folder, entry, document["work"], document["golden"]["n"])
            for key, value in found.items():
                yield f"rounds[{entry['index']}].{key}", entry[key], value
        for entry in document.get("rejected", ()):
            found = figures.round_figures(folder, entry, document["work"], document["golden"]["n"])
            for key, value in found.items():
                yield f"rejected[{entry['index']}].{key}", entry[key], value
        if "loading_ms" in document:  # documents of before it have neither of these
            for key, value in figures.loading(document).items():
                yield f"loading_ms.{key}", document["loading_ms"][key], value
            for key, value in figures.memory(document, "measured").items():
                yield f"memory_bytes.{key}", document["memory_bytes"][key], value
        for key, value in figures.latency(folder, document).items():
            yield f"latency_ms.{key}", document["latency_ms"][key], value
        for key, value in figures.peak_rss(document, "measured").items():
            yield f"peak_rss_bytes.{key}", document["peak_rss_bytes"][key], value
        yield "instructions.value", document["instructions"]["value"], None
    elif rounds:
        for key, value in figures.instructions(folder, document, document["provenance"]).items():
            yield f"instructions.{key}", document["instructions"][key], value
        yield "latency_ms.p50", document["latency_ms"]["p50"], None
    else:
        for name in ("latency_ms", "instructions"):
            yield f"{name}.provenance", document[name]["provenance"], "unmeasured"
    yield from energy_figures(folder, document)


def _same(stored: Any, computed: Any) -> bool:
    """Equal; floating-point figures to nine digits, since libraries may sum in another order."""
    if isinstance(computed, list) and isinstance(stored, list):
        return len(stored) == len(computed) and all(map(_same, stored, computed))
    if isinstance(computed, dict) and isinstance(stored, dict):
        return stored.keys() == computed.keys() and all(_same(stored[key], computed[key]) for key in computed)
    if isinstance(computed, float) and isinstance(stored, (int, float)):
        return math.isclose(stored, computed, rel_tol=1e-9)
    return bool(stored == computed)
