"""Benchmarks made of parts: each is kept as soon as it is done, so that a run that was stopped goes on where it was.

A part is kept with the state that it was made in (commit, machine, versions, weights, command); the document says which
parts were made in another one than its own. A part that fails when it is run again keeps what it had.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        if path.exists() and wanted is None and not again:
            say(f"{part}: kept")
            continue
        say(f"{part}: running")
        started = time.monotonic()
        try:
            figures, tables = parts[part].run()
        except Missing as problem:
            say(f"{part}: {problem}" + ("; what it had is kept" if path.exists() else ""))
            write_atomic(path.with_suffix(".reason"), str(problem).encode())
            continue
        seconds = round(time.monotonic() - started, 1)
        state = parts[part].state(command)
        write_atomic(path, canonical_json({"figures": figures, "tables": tables, "seconds": seconds, "state": state}))
        path.with_suffix(".reason").unlink(missing_ok=True)
        write(name, parts, command)
    write(name, parts, command)


def write(name: str, parts: Mapping[str, Part], command: str) -> None:
    """Write the document from the parts that are kept. Its `parts` hold the seconds and the state of each, in what that
    `differs` from the state of the document, and why it `failed` when it was run once more."""
    kept = ROOT / ".edgesdk" / f"benchmark-{name}"
    figures: Entries = []
    tables: Entries = []
    states: dict[str, dict[str, Any]] = {}
    for part, made in parts.items():
        path = kept / f"{part}.json"
        why = path.with_suffix(".reason")
        if path.exists():
            found = json.loads(path.read_bytes())
            figures += found["figures"]
            tables += found["tables"]
            now, then = made.state(command), found.get("state", {})
            differs = [key for key in now if now[key] != then.get(key)]
            states[part] = {"seconds": found["seconds"], **then, "differs": differs}
            if why.exists():
                states[part]["failed"] = why.read_text()
            continue
        reason = why.read_text() if why.exists() else f"run it with --only {part}"
        figures += [figure(title, None, "", goal) | {"reason": reason} for title, goal in made.promised]
    write_result(name, figures, command, extra={"tables": tables, "commit": commit(), "parts": states})
