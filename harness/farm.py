"""`farm.toml`: the boards that one user or team owns (format `edgesdk.farm`, version 1)."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesdk.errors import ConfigError
from edgesdk.files import write_atomic
from edgesdk.harness.board import Board
from edgesdk.harness.text import plain

FORMAT, VERSION = "edgesdk.farm", 1
SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{3,63}")
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:()/+,-]{0,127}")
WORDS = {"serial": "serial number", "machine_id": "machine id"}
NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,62}$")
HOST = Board(name="host", target="host", python=sys.executable)


class _Plug(BaseModel):
    """A plug that switches the board's supply: `power = {kind = "shelly", url = "http://192.0.2.30"}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["shelly", "tasmota"]
    url: str = Field(pattern=r"^http://[A-Za-z0-9][A-Za-z0-9.:_-]*$", max_length=253)


class _Entry(BaseModel):
    """One table `[boards.NAME]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str = Field(min_length=1)
    host: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:_%-]*$", max_length=253)
    port: int = Field(default=22, ge=1, le=65535)
    user: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9._-]*$")
    key: str | None = None
    known_hosts: str = "known_hosts"
    serial: str | None = Field(default=None, min_length=1)
    machine_id: str | None = Field(default=None, min_length=1)
    model: str | None = Field(default=None, min_length=1)
    proxy_jump: str | None = Field(
        default=None, max_length=300, pattern=r"^[A-Za-z_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9._-]*(:[0-9]{1,5})?$"
    )
    power: _Plug | None = None
    emulated: bool = False
    python: str = Field(default="python3", pattern=r"^[A-Za-z0-9_/.+-]+$")
    state: str = Field(default=".edgesdk", pattern=r"^[A-Za-z0-9_./-]+$")
    counting_plugin: str | None = Field(default=None, pattern=r"^/[A-Za-z0-9_./-]+$")
    meter: dict[str, str] | None = None
    tags: tuple[str, ...] = ()


class _Farm(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["edgesdk.farm"]
    version: Literal[1]
    boards: dict[str, _Entry] = {}


def load_farm(path: Path) -> dict[str, Board]:
    """Boards by name; `host`, this machine, is always there. A missing file is a farm without boards.

    Relative `key` and `known_hosts` are relative to the file.

    Raises:
        ConfigError: not TOML, an unknown key, a wrong value, or a name that is not allowed.
    """
    boards = {HOST.name: HOST}
    if not path.exists():
        return boards
    for name, entry in _read(path).boards.items():
        if not NAME.match(name) or name == HOST.name:
            raise ConfigError(f"{path}: boards.{name}: not a name for a board", "lower-case letters, digits, '-', '_'")
        values = entry.model_dump(exclude={"key", "known_hosts", "power", "meter"})
        values["meter"] = tuple(sorted((entry.meter or {}).items()))
        values["power"] = (entry.power.kind, entry.power.url) if entry.power else None
        key = _relative_to(path, entry.key) if entry.key else None
        boards[name] = Board(name=name, key=key, known_hosts=_relative_to(path, entry.known_hosts), **values)
    return boards


def find_board(target: str, farm: Mapping[str, Board]) -> Board | None:
    """A board by its own name, or the first board of a target (canonical name); None when there is none."""
    if target in farm:
        return farm[target]
    return next((board for board in farm.values() if board.target == target), None)


def add_board(path: Path, name: str, values: Mapping[str, Any]) -> Board:
    """Append a board to the file, which is kept as it is otherwise (comments too).

    Args:
        values: the keys of the table `[boards.NAME]`; None values are left out.

    Raises:
        ConfigError: the name exists, or the file would not be valid.
    """
    if not NAME.match(name):
        raise ConfigError(f"{name!r} is not a name for a board", "lower-case letters, digits, '-', '_'")
    if name in load_farm(path):
        raise ConfigError(f"{path}: board {name!r} exists", "edit the file, or choose another name")
    text = path.read_text() if path.exists() else f'format = "{FORMAT}"\nversion = {VERSION}\n'
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    text = text.rstrip("\n") + "\n\n" + "\n".join([f"[boards.{name}]", *lines]) + "\n"
    _parse(text, str(path))
    write_atomic(path, text.encode())
    return load_farm(path)[name]


def pin_serial(path: Path, name: str, serial: str) -> bool:
    """Write `serial` into the table of a board that has none; see `pin_identity`."""
    return bool(pin_identity(path, name, {"serial": serial}))


def pin_identity(path: Path, name: str, values: Mapping[str, str | None]) -> list[str]:
    """Write what identifies a machine into the table of its board; the file is kept as it is otherwise.

    Args:
        values: `serial`, `machine_id`, `model`; what is None, or pinned already, stays as it is.

    Returns:
        the keys that were written.

    Raises:
        ConfigError: no such board, a value that cannot be one, or a table that is not written as `[boards.NAME]`.
    """
    board = load_farm(path).get(name)
    if board is None or name == HOST.name:
        raise ConfigError(f"{path}: has no board {name!r}")
    new = {key: value for key, value in values.items() if value is not None and getattr(board, key) is None}
    for key, value in new.items():
        if not (MODEL if key == "model" else SERIAL).fullmatch(value):
            shown = plain(value, 80)
            raise ConfigError(f"{path}: boards.{name}: {shown!r} does not look like a {WORDS.get(key, key)}")
    if not new:
        return []
    header = re.compile(rf"^[ \t]*\[ *boards *\. *([\"']?){re.escape(name)}\1 *\][ \t]*(#.*)?$", re.MULTILINE)
    text = path.read_text()
    wanted = tomllib.loads(text)
    wanted["boards"][name].update(new)
    lines = "\n".join(f"{key} = {_toml(value)}" for key, value in new.items())
    for found in header.finditer(text):
        changed = f"{text[: found.end()]}\n{lines}{text[found.end() :]}"
        # What looks like a header may be inside a string of many lines: only the wanted change is written.
        with contextlib.suppress(tomllib.TOMLDecodeError):
            if tomllib.loads(changed) == wanted:
                write_atomic(path, changed.encode())
                return list(new)
    raise ConfigError(f"{path}: has no table [boards.{name}] to write into", f"add {lines!r} by hand")


def _read(path: Path) -> _Farm:
    try:
        return _parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: {problem}") from problem


def _parse(text: str, where: str) -> _Farm:
    try:
        return _Farm.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"{where}: not TOML: {problem}") from problem
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {key}: {first['msg']}, found {first.get('input')!r}") from problem


def _relative_to(path: Path, name: str) -> Path:
    return path.absolute().parent / Path(name).expanduser()


def _toml(value: Any) -> str:
    """A TOML value; JSON's strings, numbers, booleans and lists of them are TOML too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value)
