"""A board: what one physical or emulated device is and how it is reached. Plain data; drivers act on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Board:
    """One device of a target.

    `host` None means this machine, without SSH. `known_hosts` is the file of pinned host keys (one per farm file).
    `python` is the interpreter on the board; `state` the folder for artifacts and jobs, relative to the user's home.
    `counting_plugin` is the path, on an emulated board, of the instruction-counting plugin for qemu-user; a process
    started with QEMU_PLUGIN=`PATH,out=FILE` in its environment appends its counts to FILE. `meter` holds the
    settings of an energy meter that farm.toml names for it (see `energy/meters.py`).
    `serial`, `machine_id` and `model` are pinned: another machine at this address is refused. `proxy_jump` is
    USER@HOST:PORT of a host that SSH goes through, its key pinned in the same file. `power` is the kind and the URL
    of the plug that switches the board.
    """

    name: str
    target: str
    host: str | None = None
    port: int = 22
    user: str | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    serial: str | None = None
    emulated: bool = False
    python: str = "python3"
    state: str = ".edgesdk"
    counting_plugin: str | None = None
    meter: tuple[tuple[str, str], ...] = ()
    machine_id: str | None = None
    model: str | None = None
    proxy_jump: str | None = None
    power: tuple[str, str] | None = None
    tags: tuple[str, ...] = ()

    @property
    def provenance(self) -> str:
        """`emulated` or `measured`: what its numbers may be called."""
        return "emulated" if self.emulated else "measured"
