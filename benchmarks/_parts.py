"""Benchmarks made of parts: each is kept as soon as it is done, so that a run that was stopped goes on where it was.

A part is kept with the state that it was made in (commit, machine, versions, weights, command); the document says which
parts were made in another one than its own. A part that was not run here stays in the document as it is there, with its
state: a fresh clone that runs one part keeps the others. So does a part that fails when it is run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _results
from _results import figure, machine, versions, write_result

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
    """`run` gives what was found; `promised` are the figures, with their goals, that are unmeasured without it;
    `weights` says which model's it measures ("" where it does not matter)."""

    run: Callable[[], Found]
    promised: Sequence[tuple[str, str]] = ()
    weights: str = ""

    def state(self, command: str) -> dict[str, Any]:
        """What the figures of this part may depend on."""
        how = {"weights": self.weights, "command": command}
        return {"commit": commit(), "machine": machine(), "versions": versions(), **how}


def commit() -> str:
    """The commit of the working tree, with `-dirty` behind it where files differ (others than results and pages, which
    benchmarks write); empty outside of git."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    found = git("rev-parse", "--short=12", "HEAD").stdout.strip()
    same = git("diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)benchmarks/results", ":(top,exclude)docs")
    return f"{found}-dirty" if found and same.returncode else found


def parse(parser: argparse.ArgumentParser, names: Sequence[str]) -> tuple[argparse.Namespace, list[str] | None]:
    """Parse a command that has parts; also gives `wanted` of `run_parts`."""
    parser.add_argument("--only", help="parts, separated by commas: " + ", ".join(names))
    parser.add_argument("--again", action="store_true", help="run parts that are kept already once more")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else None
    unknown = [part for part in wanted or [] if part not in names]
    if unknown:
        parser.error(f"unknown parts: {', '.join(unknown)}")
    return options, wanted


def run_parts(
    name: str, parts: Mapping[str, Part], wanted: Sequence[str] | None, again: bool = False, arguments: str = ""
) -> None:
    """Run parts of the benchmark `benchmarks/NAME.py` and write its document after each; `wanted`: these, even where
    they are kept; None: all that are not kept, or all `again`. `arguments` are those of the command that shape the
    figures, without names of this machine."""
    command = f"python benchmarks/{name}.py {arguments}".strip()
    kept = ROOT / ".edgesdk" / f"benchmark-{name}"
    for part in parts if wanted is None else wanted:
        path = kept / f"{part}.json"
        if wanted is None and not again and _kept(path):
            say(f"{part}: kept")
            continue
        say(f"{part}: running")
        started = time.monotonic()
        try:
            figures, tables = parts[part].run()
        except Missing as problem:
            had = _kept(path) or _carried(_document(name), part)
            say(f"{part}: {problem}" + ("; what it had is kept" if had else ""))
            write_atomic(path.with_suffix(".reason"), str(problem).encode())
            continue
        seconds = round(time.monotonic() - started, 1)
        state = parts[part].state(command)
        write_atomic(path, canonical_json({"figures": figures, "tables": tables, "seconds": seconds, "state": state}))
        path.with_suffix(".reason").unlink(missing_ok=True)
        write(name, parts, command)
    write(name, parts, command)


def write(name: str, parts: Mapping[str, Part], command: str) -> None:
    """Write the document from the parts that are kept here, and of the others what the document says already. Each
    figure and table names its part. `parts` hold the seconds and the state of each, in what that `differs` from the
    state of the document, and why it `failed` when it was run once more."""
    kept, before = ROOT / ".edgesdk" / f"benchmark-{name}", _document(name)
    figures: Entries = []
    tables: Entries = []
    states: dict[str, dict[str, Any]] = {}
    for part, made in parts.items():
        path = kept / f"{part}.json"
        why = path.with_suffix(".reason")
        reason = why.read_text() if why.exists() else None
        found = _kept(path) or _carried(before, part)
        if found is None:
            lacks = {"part": part, "reason": reason or f"run it with --only {part}"}
            figures += [figure(title, None, "", goal) | lacks for title, goal in made.promised]
            continue
        figures += [entry | {"part": part} for entry in found["figures"]]
        tables += [entry | {"part": part} for entry in found["tables"]]
        now, then = made.state(command), found.get("state", {})
        differs = [key for key in now if now[key] != then.get(key)]
        states[part] = {"seconds": found["seconds"], **then, "differs": differs}
        failed = reason or found.get("failed")
        if failed:
            states[part]["failed"] = failed
    write_result(name, figures, command, extra={"tables": tables, "commit": commit(), "parts": states})


def _kept(path: Path) -> dict[str, Any] | None:
    """What a part left here; None where it was not run, or left what has not the form of a part."""
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return found if "tables" in found else None


def _document(name: str) -> dict[str, Any]:
    """What the benchmark wrote last, here or elsewhere; empty where it never did."""
    path = _results.FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return found


def _carried(document: Mapping[str, Any], part: str) -> dict[str, Any] | None:
    """A part as a document has it, in the form in which it is kept; None where the document does not have it."""
    if part not in document.get("parts", {}):
        return None
    entries = {key: [entry for entry in document[key] if entry.get("part") == part] for key in ("figures", "tables")}
    state = {key: value for key, value in document["parts"][part].items() if key != "differs"}
    return {**entries, "seconds": state.pop("seconds"), "failed": state.pop("failed", None), "state": state}
