"""Benchmarks made of parts: each is kept as soon as it is done, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _results import figure, write_result

from edgesdk.cli.output import say
from edgesdk.files import canonical_json, write_atomic

ROOT = Path(__file__).parents[1]
Entries = list[dict[str, Any]]
# Figures (see `_results.figure`), and tables for the page: title, columns, rows.
Found = tuple[Entries, Entries]


class Missing(Exception):
    """A part that cannot run here; its text says why, and stands in the place of its figures."""


@dataclass(frozen=True)
class Part:
    """`run` gives what was found; `promised` are the figures, with their goals, that are unmeasured without it."""

    run: Callable[[], Found]
    promised: Sequence[tuple[str, str]] = ()


def run_parts(name: str, parts: Mapping[str, Part], wanted: Sequence[str] | None, again: bool = False) -> None:
    """Run parts of the benchmark `benchmarks/NAME.py` and write its document after each; `wanted`: these, even where
    they are kept; None: all that are not kept, or all `again`."""
    kept = ROOT / ".edgesdk" / f"benchmark-{name}"
    for part in parts if wanted is None else wanted:
        path = kept / f"{part}.json"
        if path.exists() and wanted is None and not again:
            say(f"{part}: kept")
            continue
        say(f"{part}: running")
        started = time.monotonic()
        try:
            figures, tables = parts[part].run()
        except Missing as problem:
            say(f"{part}: {problem}")
            path.unlink(missing_ok=True)
            write_atomic(path.with_suffix(".reason"), str(problem).encode())
            continue
        seconds = round(time.monotonic() - started, 1)
        write_atomic(path, canonical_json({"figures": figures, "tables": tables, "seconds": seconds}))
        write(name, parts)
    write(name, parts)


def write(name: str, parts: Mapping[str, Part]) -> None:
    """Write the document from the parts that are kept."""
    kept = ROOT / ".edgesdk" / f"benchmark-{name}"
    figures: Entries = []
    tables: Entries = []
    seconds = {}
    for part, made in parts.items():
        path = kept / f"{part}.json"
        if path.exists():
            found = json.loads(path.read_bytes())
            figures += found["figures"]
            tables += found["tables"]
            seconds[part] = found["seconds"]
            continue
        why = path.with_suffix(".reason")
        reason = why.read_text() if why.exists() else f"run it with --only {part}"
        figures += [figure(title, None, "", goal) | {"reason": reason} for title, goal in made.promised]
    write_result(name, figures, extra={"tables": tables, "part_seconds": seconds})
