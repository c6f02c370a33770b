"""Who holds a lease: a process of this host, told apart from a later one with the same number."""

from __future__ import annotations

import os
import secrets
import socket
from functools import cache
from pathlib import Path

from edgesdk.harness.text import plain

UNKNOWN = "-"


@cache
def boot_id() -> str:
    """Id of this start of the host; `-` where the system gives none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return UNKNOWN


def this_process() -> str:
    """A new owner name: host, boot, process name space, process id, its start time, a nonce."""
    words = (socket.gethostname(), boot_id(), _space(), str(os.getpid()), _started(os.getpid()), secrets.token_hex(4))
    return " ".join(word.replace(" ", "_") or UNKNOWN for word in words)


def is_dead(owner: str) -> bool:
    """Has this process ended for certain? Never said of other hosts, containers, or names of another form."""
    words = owner.split(" ")
    if len(words) != 6 or UNKNOWN in words[1:5] or not words[3].isdigit():
        return False
    _, boot, space, process, started, _ = words
    return (boot, space) == (boot_id(), _space()) and _started(int(process)) != started


def describe(owner: str | None) -> str:
    """An owner for messages."""
    words = (owner or "nobody").split(" ")
    return f"process {words[3]} on {plain(words[0], 60)}" if len(words) == 6 else plain(" ".join(words), 60)


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return UNKNOWN


def _started(process: int) -> str:
    """Start time of a process in clock ticks since boot; `-` where it does not run (a zombie does not run)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return UNKNOWN
    return UNKNOWN if fields[0] in "ZX" else fields[19]
