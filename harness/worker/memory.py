"""Memory of a process, in bytes, by the kernel's own names. What is not there is None."""

import os
import re

from edgesdk.harness.worker.system import read_text

CGROUPS = "/sys/fs/cgroup"
NVMAP = "/sys/kernel/debug/nvmap/iovmm/clients"
UNIT = "edgesdk-"


def memory_numbers() -> "dict[str, int | None]":
    """`peak_rss` (VmHWM), `anon` and `file` (resident now), `pss` (shared pages divided), `cgroup_peak` where the job
    has a control group of its own, `nvmap` (memory that a Jetson's GPU shares)."""
    status = _kilobytes(read_text("/proc/self/status", 1 << 16) or "")
    rollup = _kilobytes(read_text("/proc/self/smaps_rollup", 1 << 16) or "")
    return {
        "peak_rss": status.get("VmHWM"), "anon": status.get("RssAnon"), "file": status.get("RssFile"),
        "pss": rollup.get("Pss"), "cgroup_peak": _cgroup_peak(), "nvmap": nvmap(read_text(NVMAP) or "", os.getpid()),
    }


def seen_of(pid: int) -> "dict[str, int]":
    """What can be seen of another process while it runs, at little cost to it: its peak and present pages, and what it
    holds of a Jetson's shared memory; what is not there is left out."""
    status = _kilobytes(read_text(f"/proc/{pid}/status", 1 << 16) or "")
    found = {"peak_rss": status.get("VmHWM"), "anon": status.get("RssAnon"), "file": status.get("RssFile"),
             "nvmap": nvmap(read_text(NVMAP) or "", pid)}
    return {name: value for name, value in found.items() if value is not None}


def _kilobytes(text: str) -> "dict[str, int]":
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+([0-9]{1,15}) kB$", text, re.MULTILINE)}


def _cgroup_peak() -> "int | None":
    """memory.peak of the unit that runs the job; a group with anything else in it says nothing about the job."""
    found = re.search(r"^0::(/[^\n]*)$", read_text("/proc/self/cgroup") or "", re.MULTILINE)
    if found is None or UNIT not in found.group(1):
        return None
    text = read_text(CGROUPS + found.group(1) + "/memory.peak", 64) or ""
    return int(text) if re.match(r"^[0-9]{1,18}$", text) else None


def nvmap(text: str, pid: int) -> "int | None":
    """Bytes of a process in `nvmap/iovmm/clients`; None where the process has no line."""
    sizes = re.findall(rf"^\S+\s+.+?\s+{int(pid)}\s+([0-9]{{1,15}})K$", text, re.MULTILINE)
    return sum(int(size) for size in sizes) * 1024 if sizes else None
