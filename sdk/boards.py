"""Which board a build runs on: the one asked for, one of the target in farm.toml, this machine, or an emulated one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from edgesdk.errors import ConfigError
from edgesdk.harness.board import Board
from edgesdk.harness.farm import find_board, load_farm
from edgesdk.targets import Target

FARM = Path("farm.toml")


def planned_board(target: Target, name: str | None, farm_file: Path | None) -> tuple[str, str]:
    """Name and provenance of the board that `board_for` would give, without starting or reaching it.

    Raises:
        ConfigError: as `board_for`.
    """
    board = _listed(target, name, farm_file)
    return (board.name, board.provenance) if board else (f"{target.short}-emulated", "emulated")


@contextlib.contextmanager
def board_for(
    target: Target, name: str | None, farm_file: Path | None, say: Callable[[str], None]
) -> Iterator[Board]:
    """The board to measure on; an emulated one that this call started is stopped at the end.

    Raises:
        ConfigError: a board name or farm file that does not exist, or a board of another target.
        BoardError: no board of the target, and none can be emulated here.
    """
    board = _listed(target, name, farm_file)
    if board is not None:
        yield board
        return
    from edgesdk.harness import emulate

    say(f"no board of {target.name} is listed: using the emulated board {target.short}-emulated; its numbers are "
        "labelled `emulated`")
    with emulate.emulated(target, say) as emulated_board:
        yield emulated_board


def _listed(target: Target, name: str | None, farm_file: Path | None) -> Board | None:
    """The board of the farm file, or this machine; None where it has to be emulated."""
    if farm_file is not None and not farm_file.is_file():
        raise ConfigError(f"farm file {farm_file}: no such file", "edgesdk boards add user@host --target T")
    path = farm_file or FARM
    farm = load_farm(path)
    emulated = f"{target.short}-emulated"
    if name == emulated and name not in farm:
        return None
    if name is None:
        return find_board(target.name, farm)
    if name not in farm:
        raise ConfigError(f"board {name!r} is not in {path}", "one of " + ", ".join([*farm, emulated]))
    if farm[name].target != target.name:
        raise ConfigError(f"board {name!r} is a {farm[name].target}, the build is for {target.name}")
    return farm[name]
