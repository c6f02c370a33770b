"""Memory of a process, in bytes, by the kernel's own names. What is not there is None."""

import os
import re

from edgesdk.harness.worker.system import PROC, read_text

CGROUPS = "/sys/fs/cgroup"
NVMAP = "/sys/kernel/debug/nvmap/iovmm/clients"
CLIENT = re.compile(r"^\S+[ \t]+(\S.{0,60}?)[ \t]+([0-9]{1,9})[ \t]+([0-9]{1,15})K$", re.MULTILINE)
UNIT = "edgesdk-"


def memory_numbers() -> "dict[str, int | None]":
    """`peak_rss` (VmHWM), `anon` and `file` (resident now), `pss` (shared pages divided), `cgroup_peak` where the job
    has a control group of its own, `nvmap` (memory that a Jetson's GPU shares)."""
    own = status(os.getpid())
    rollup = _kilobytes(read_text(PROC + "/self/smaps_rollup", 1 << 16) or "")
    return {
        "peak_rss": own.get("VmHWM"), "anon": own.get("RssAnon"), "file": own.get("RssFile"),
        "pss": rollup.get("Pss"), "cgroup_peak": _cgroup_peak(), "nvmap": _nvmap(os.getpid()),
    }


def seen_of(pid: int) -> "dict[str, int]":
    """What can be seen of another process while it runs, at little cost to it: its peak and present pages, and what it
    holds of a Jetson's shared memory; what is not there is left out."""
    seen = status(pid)
    found = {"peak_rss": seen.get("VmHWM"), "anon": seen.get("RssAnon"), "file": seen.get("RssFile"),
             "nvmap": _nvmap(pid)}
    return {name: value for name, value in found.items() if value is not None}


def status(pid: int) -> "dict[str, int]":
    """Bytes by the kernel's names of /proc/PID/status: `VmHWM`, `RssAnon`, `RssFile` …; {} where nothing runs."""
    return _kilobytes(read_text(f"{PROC}/{pid}/status", 1 << 16) or "")


def _kilobytes(text: str) -> "dict[str, int]":
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+([0-9]{1,15}) kB$", text, re.MULTILINE)}


def _cgroup_peak() -> "int | None":
    """memory.peak of the unit that runs the job; a group with anything else in it says nothing about the job."""
    found = re.search(r"^0::(/[^\n]*)$", read_text("/proc/self/cgroup") or "", re.MULTILINE)
    if found is None or UNIT not in found.group(1):
        return None
    text = read_text(CGROUPS + found.group(1) + "/memory.peak", 64) or ""
    return int(text) if re.match(r"^[0-9]{1,18}$", text) else None


def clients() -> "list[tuple[str, int, int]]":
    """(program, process, bytes) of everyone who holds memory of a Jetson's GPU; [] elsewhere, and without root."""
    return parse_clients(read_text(NVMAP) or "")


def parse_clients(text: str) -> "list[tuple[str, int, int]]":
    """As `clients`, of a file `nvmap/iovmm/clients`; the line of the total is left out."""
    return [(name, int(pid), int(kib) * 1024) for name, pid, kib in CLIENT.findall(text)]


def _nvmap(pid: int) -> "int | None":
    """Bytes of a process; None where it has no line."""
    sizes = [size for _, process, size in clients() if process == pid]
    return sum(sizes) if sizes else None
