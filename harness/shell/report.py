"""Steps of the shell worker, and its report on them: text of a board, of which only what was asked for is taken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesdk.harness.shell.snapshot import sections

STEP = re.compile(r"step (c[0-9]{1,6}-[a-z0-9]{1,40}) ([0-9]{1,3})( overdue)?")
FILE = re.compile(r"file (c[0-9]{1,6}-[a-z0-9]{1,40}\.(?:bin|jsonl)) ([0-9a-f]{64}) +([0-9]{1,12})")


@dataclass(frozen=True)
class Step:
    """A program's run. `words` are plain, `@DIGEST` stands for the path of a blob; `setting` is an environment variable
    that it gets, NAME=VALUE; `writes` is a file of the job's folder that it makes, of at most `most_bytes`."""

    name: str
    limit_s: float
    program: str
    words: tuple[str, ...]
    setting: str = "-"
    writes: str = ""
    most_bytes: int = 0

    def line(self) -> str:
        """As the worker reads it."""
        return " ".join((self.name, f"{self.limit_s:.0f}", self.setting, self.program, *self.words))


@dataclass(frozen=True)
class Ran:
    """How a step ended and what was seen around it (sections of `worker.sh`)."""

    code: int
    overdue: bool
    out: str
    err: str
    clocks: str
    before: Mapping[str, str]
    after: Mapping[str, str]


@dataclass(frozen=True)
class Wrote:
    """A file that a step wrote."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Report:
    """Steps that ran, the files that they wrote (`fetched` ones lie in `folder`; `too_large` ones stayed on the board),
    and (boot id, wall clock) of each start."""

    steps: Mapping[str, Ran]
    fetched: Mapping[str, Wrote]
    too_large: Mapping[str, Wrote]
    folder: Path
    starts: Sequence[tuple[str, int]]

    def written(self, name: str) -> bytes:
        """Contents of a file; nothing where a step did not write it."""
        return (self.folder / name).read_bytes() if name in self.fetched else b""


def parse_report(text: str, folder: Path, asked: Sequence[Step]) -> Report:
    """Read a report; what was not asked for, and lines that are anything else, are skipped. Lines end at a newline
    only, as for the `sed` that indents them on the board."""
    names = {step.name for step in asked}
    most = {step.writes: step.most_bytes for step in asked if step.writes}
    parts: dict[str, tuple[re.Match[str], list[str]]] = {}
    wrote: dict[str, Wrote] = {}
    rest: list[str] = []
    lines = rest
    for line in text.split("\n"):
        if step := STEP.fullmatch(line):
            lines = []
            if step[1] in names:
                parts[step[1]] = step, lines
        elif file := FILE.fullmatch(line):
            if file[1] in most:
                wrote[file[1]] = Wrote(file[2], int(file[3]))
        elif line == "rest":
            lines = rest
        else:
            lines.append(line)
    starts = re.findall(r"^([0-9a-f-]{1,64}) ([0-9]{1,12})$", sections("\n".join(rest)).get("starts", ""), re.MULTILINE)
    return Report(
        {name: _ran(step, "\n".join(inside)) for name, (step, inside) in parts.items()},
        {name: file for name, file in wrote.items() if file.size <= most[name]},
        {name: file for name, file in wrote.items() if file.size > most[name]},
        folder, [(boot, int(at)) for boot, at in starts],
    )


def _ran(step: re.Match[str], text: str) -> Ran:
    said = sections(text)
    before, after = (sections(said.get(name, "")) for name in ("before", "after"))
    return Ran(
        int(step[2]), bool(step[3]), said.get("out", ""), said.get("err", ""), said.get("cpu", ""), before, after
    )
