"""Which emulated boards run: one JSON file per board, locks, and who is alive. Everything lies in the cache folder.

    CACHE/rootfs-DIGEST/, CACHE/qemu-DIGEST/    layers, see `layers`
    CACHE/boards/NAME.json                      state, written by the supervisor when the board answers
    CACHE/boards/NAME/                          keys, known_hosts, logs, the device layer; gone when the board stops
    CACHE/boards/NAME.lock, NAME.users          flock files: start and stop; who uses the board (shared)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgesdk.errors import BoardError
from edgesdk.files import canonical_json, read_document, write_atomic
from edgesdk.harness.board import Board

FORMAT, VERSION = "edgesdk.emulated-board", 1
PLUGIN = "/qemu/libedgecount.so"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*-emulated")
ENTRY = re.compile(r"edgesdk-[0-9]+")


def cache_folder() -> Path:
    """`$EDGESDK_CACHE`, or `~/.cache/edgesdk`."""
    return Path(os.environ.get("EDGESDK_CACHE") or Path.home() / ".cache" / "edgesdk").absolute()


def boards_folder() -> Path:
    return cache_folder() / "boards"


def state_file(name: str) -> Path:
    return boards_folder() / f"{name}.json"


def board_folder(name: str) -> Path:
    return boards_folder() / name


def lock_file(name: str) -> Path:
    return boards_folder() / f"{name}.lock"


def users_file(name: str) -> Path:
    return boards_folder() / f"{name}.users"


def keep_file(name: str) -> Path:
    """Where it exists, the board outlives its users (until it is stopped, or idle for long)."""
    return board_folder(name) / "keep"


@contextlib.contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[int]:
    """Hold `flock` on a file, waiting for it; gives its descriptor. The kernel lets go when the process dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(path)
    except OSError as problem:
        hint = "set EDGESDK_CACHE to a folder that you may write"
        raise BoardError(f"cache of emulated boards: {path}: {problem.strerror}", hint) from problem
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """A descriptor for `try_exclusive`; the caller closes it, which also lets go of the lock."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_exclusive(descriptor: int) -> bool:
    """Take the exclusive lock on a file, or turn a shared one into it, if nobody else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def process_start(pid: int) -> str | None:
    """When a process started, as `boot id:clock ticks`, which no recycled pid repeats; None if it is gone or a zombie.

    Source: proc(5), /proc/PID/stat: field 3 is the state, field 22 the start time; the name in field 2 may hold
    blanks, but ends at the last parenthesis.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def write(name: str, pid: int, port: int, target: str, serial: str, device: str, binfmt: str | None) -> None:
    """Record a running board. `device` is the digest of what it claims to be; `binfmt` the global binfmt_misc entry
    that stop must remove, or None where the entry is private to the board."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "pid": pid,
        "pid_start": process_start(pid),
        "port": port,
        "target": target,
        "serial": serial,
        "device": device,
        "binfmt": binfmt,
    }
    write_atomic(state_file(name), canonical_json(document))


def read(name: str) -> dict[str, Any] | None:
    """The state of a board as it was written, alive or not; None if there is none or it cannot be read."""
    try:
        document = read_document(state_file(name), FORMAT, VERSION, BoardError)
    except BoardError:
        return None
    kinds = {"pid": int, "pid_start": str, "port": int, "target": str, "serial": str, "device": str}
    if document.get("name") != name or not all(isinstance(document.get(key), kind) for key, kind in kinds.items()):
        return None
    entry = document.get("binfmt")
    if entry is not None and not (isinstance(entry, str) and ENTRY.fullmatch(entry)):
        return None
    return document


def alive(document: dict[str, Any]) -> bool:
    """Whether the supervisor that wrote this state still runs."""
    return bool(process_start(document["pid"]) == document["pid_start"])


def names() -> list[str]:
    """All boards with a state file, alive or stale."""
    found = sorted(file.stem for file in boards_folder().glob("*-emulated.json"))
    return [name for name in found if NAME.fullmatch(name)]


def forget(name: str) -> None:
    """Remove what a board left in the cache folder. Nothing of it is a mount in this mount namespace."""
    state_file(name).unlink(missing_ok=True)
    shutil.rmtree(board_folder(name), ignore_errors=True)


def as_board(document: dict[str, Any], counting: bool) -> Board:
    """The board that a state describes."""
    folder = board_folder(document["name"])
    return Board(
        name=document["name"],
        target=document["target"],
        host="127.0.0.1",
        port=document["port"],
        user="root",
        key=folder / "client_key",
        known_hosts=folder / "known_hosts",
        serial=document["serial"],
        emulated=True,
        counting_plugin=PLUGIN if counting else None,
    )
