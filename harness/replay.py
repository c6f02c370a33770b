"""Recordings: what a board's sensors and commands said over a few seconds, as one JSON file that can be played again.

`edgesdk boards record` writes one (`record.py`), an emulated board plays one (`emulate/feeder.py`), a test asks one
what a file or a command said at a moment. A recording comes from somebody else's machine, so reading checks every path,
name and size. What a replayed sensor shows is `emulated`, never measured.
"""

from __future__ import annotations

import bisect
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgesdk.errors import ConfigError
from edgesdk.files import canonical_json, write_atomic
from edgesdk.harness.text import plain

FORMAT, VERSION = "edgesdk.recording", 1
FILE_LIMIT = 8 << 20
TEXT_LIMIT = 16 << 10
FRAMES_LIMIT = 20_000
SOURCES_LIMIT = 500
COMMANDS = ("jetson_clocks", "nvpmodel", "tegrastats", "trtexec", "vcgencmd")
_PATH = re.compile(r"/(sys|etc)(/[A-Za-z0-9_+@,:-][A-Za-z0-9_.+@,:-]*){1,12}")
_COMMAND = re.compile(r"[a-z_]+( [A-Za-z0-9_=.-]+){0,6}")
_POWER = re.compile(r"ina(3221|238|2xx|219|226)|/iio:device|pmic_read_adc")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Frame(_Model):
    """What a source said from `at_s` seconds on, until its next frame. `error` is the name of an errno (`EIO`) where
    reading failed; `exit` the exit code of a command."""

    at_s: float = Field(ge=0, le=86400, allow_inf_nan=False)
    text: str = Field(default="", max_length=TEXT_LIMIT)
    exit: int = Field(default=0, ge=0, le=255)
    error: str | None = Field(default=None, pattern=r"^E[A-Z0-9]{1,20}$")


Frames = Annotated[tuple[Frame, ...], Field(min_length=1, max_length=FRAMES_LIMIT)]


class Recording(_Model):
    """`files` by absolute path and `commands` by command line; after `period_s` seconds everything starts again.

    `origin` says how it came to be: `recorded` on a board, or `made` from published samples (`source` says which).
    """

    format: Literal["edgesdk.recording"] = "edgesdk.recording"
    version: Literal[1] = 1
    target: str = Field(max_length=200)
    origin: Literal["recorded", "made"]
    source: str = Field(default="", max_length=2000)
    recorded: str = Field(default="", max_length=40)
    facts: dict[str, str | int | float | None] = Field(default={}, max_length=100)
    period_s: float = Field(gt=0, le=86400, allow_inf_nan=False)
    files: dict[str, Frames] = Field(default={}, max_length=SOURCES_LIMIT)
    commands: dict[str, Frames] = Field(default={}, max_length=SOURCES_LIMIT)

    @model_validator(mode="after")
    def _check(self) -> Recording:
        told = (self.target, self.source, self.recorded, *(str(entry) for pair in self.facts.items() for entry in pair))
        if not all(text.isprintable() for text in told):
            raise ValueError("target, source, date or facts are not printable")
        for path in self.files:
            if _PATH.fullmatch(path) is None:
                raise ValueError(f"file {plain(path, 80)!r} is not a path below /sys or /etc")
        for command in self.commands:
            if _COMMAND.fullmatch(command) is None or command.split()[0] not in COMMANDS:
                raise ValueError(f"command {plain(command, 80)!r} is none of {', '.join(COMMANDS)}")
        for name, frames in {**self.files, **self.commands}.items():
            times = [frame.at_s for frame in frames]
            if times != sorted(set(times)) or times[-1] >= self.period_s:
                raise ValueError(f"{name}: frames are not in order of time within {self.period_s:g} s")
            if not all(printable(frame.text) for frame in frames):
                raise ValueError(f"{name}: text is not printable")
        return self

    def file(self, path: str, at_s: float) -> Frame | None:
        """What a file said `at_s` seconds after the start; None where it is not recorded."""
        return _frame(self.files.get(path), at_s % self.period_s)

    def command(self, command: str, at_s: float) -> Frame | None:
        """What a command said, as `file`."""
        return _frame(self.commands.get(command), at_s % self.period_s)

    def without_power(self) -> Recording:
        """The same without its power sensors: an emulated board has no energy of its own."""
        kept = {path: frames for path, frames in self.files.items() if not _POWER.search(path)}
        said = {name: frames for name, frames in self.commands.items() if not _POWER.search(name)}
        said |= {name: _without_rails(said[name]) for name in said if name.startswith("tegrastats")}
        return self.model_copy(update={"files": kept, "commands": said})


def printable(text: str) -> bool:
    """Whether a text holds nothing but printable characters, line ends and tabs."""
    return text.replace("\n", "").replace("\t", "").isprintable()


def parse_recording(data: bytes | str, where: str) -> Recording:
    """A recording from JSON.

    Raises:
        ConfigError: not a recording, or one with a path, a command or a text that no board needs.
    """
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"{where}: {len(data)} bytes, a recording has at most {FILE_LIMIT}")
    try:
        return Recording.model_validate_json(data)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "recording"
        hint = "record one with `edgesdk boards record NAME`"
        raise ConfigError(f"{where}: {plain(key, 120)}: {plain(first['msg'], 300)}", hint) from problem


def read_recording(path: Path) -> Recording:
    """A recording from a file; raises as `parse_recording`, also where the file cannot be read."""
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes, a recording has at most {FILE_LIMIT}")
        return parse_recording(path.read_bytes(), str(path))
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "not a path"
        raise ConfigError(f"recording {str(path)[:200]!r}: {reason}") from problem


def write_recording(path: Path, recording: Recording) -> None:
    """Write a recording, whole or not at all."""
    write_atomic(path, canonical_json(recording.model_dump(mode="json", exclude_defaults=True) | _head()))


def shipped(target: str) -> Recording | None:
    """The recording that EdgeSDK ships for a target, by its full name (`raspberry-pi/5`); None if there is none."""
    folder = files("edgesdk.harness.emulate").joinpath("assets", "recordings")
    wanted = f"{target.replace('/', '-')}.json"
    return next((parse_recording(file.read_bytes(), wanted) for file in folder.iterdir() if file.name == wanted), None)


def _head() -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION}


def _frame(frames: tuple[Frame, ...] | None, at_s: float) -> Frame | None:
    if frames is None:
        return None
    place = bisect.bisect_right([frame.at_s for frame in frames], at_s)
    return frames[place - 1]  # before its first frame a source says what it said last, a period ago


def _without_rails(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    rails = re.compile(r" [A-Z][A-Z0-9_]* \d+(mW)?(/\d+(mW)?)+(?=\s|$)")
    return tuple(frame.model_copy(update={"text": rails.sub("", frame.text)}) for frame in frames)
