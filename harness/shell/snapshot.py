"""What the shell worker saw of a board, read from its sections: facts, and the surroundings of a round.

The text comes from a board, so whatever does not parse is None, as if it were not there; what is kept goes through
`answers` like everything else that a board says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgesdk.harness.worker.child import parse_oom_kills
from edgesdk.harness.worker.condition import parse_pressure, parse_swapped, parse_throttled
from edgesdk.harness.worker.facts import EMULATED_FILE, is_emulated, parse_cpuinfo, parse_meminfo
from edgesdk.harness.worker.gpu import RELEASE
from edgesdk.harness.worker.machine import NO_LOCK
from edgesdk.harness.worker.rounds import parse_busy
from edgesdk.harness.worker.system import DEVICE_TREES

NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
TIMES = re.compile(r"([0-9]{1,9})m([0-9]{1,2}(?:\.[0-9]{1,9})?)s")
STICKY = 0xF0000
USUAL_TICKS = 100
LONGEST_SECONDS = 1e7


def sections(text: str) -> dict[str, str]:
    """Contents by name. A later section of the same name wins; other lines at the margin end a section. Lines end at a
    newline only, as for the `sed` that indented them."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith(" "):
            lines.append(line[1:])
        elif line.startswith("section "):
            lines = found[line[len("section "):]] = []
        elif line:
            lines = []
    return {name: "\n".join(kept).strip() for name, kept in found.items()}


def snapshot(seen: Mapping[str, str]) -> dict[str, Any]:
    """Facts that change, with the keys of `answers.Snapshot`."""
    memory = parse_meminfo(seen.get("/proc/meminfo", ""))
    swap = memory.get("SwapTotal"), memory.get("SwapFree")
    return {
        "loadavg1": _number(seen.get("/proc/loadavg")), "temperature_c": temperature(seen),
        "mem_available_bytes": memory.get("MemAvailable"),
        "swap_used_bytes": None if swap[0] is None or swap[1] is None else max(0, swap[0] - swap[1]),
        "boot_id": seen.get("/proc/sys/kernel/random/boot_id") or None, "uptime_s": _number(seen.get("/proc/uptime")),
        "governor": seen.get("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "throttle_count": throttle_count(seen), "throttled": parse_throttled(seen.get("throttled", "")),
        "wall_clock_s": _whole(seen.get("date")),
    }


def facts(seen: Mapping[str, str], reason: str) -> dict[str, Any]:
    """All facts, with the keys of `answers.Facts`; `reason` says why there is no power sensor."""
    cpu = parse_cpuinfo(seen.get("/proc/cpuinfo", ""))
    controllers = seen.get("/sys/fs/cgroup/cgroup.controllers")
    return {
        "machine": seen.get("uname -m") or None, "kernel": seen.get("uname -r") or None,
        "cpus": _whole(seen.get("cpus")) or _processors(seen.get("/proc/cpuinfo", "")),
        "cpu_model": cpu["model"], "cpu_part": cpu["part"], "cpu_features": cpu["features"],
        "board_model": _device_tree(seen, "model"), "serial": _device_tree(seen, "serial-number") or cpu["serial"],
        "emulated": is_emulated(seen.get(EMULATED_FILE), seen.get("/proc/cmdline")),
        "machine_id": seen.get("/etc/machine-id") or None, "libc": seen.get("libc") or None,
        "memory_cgroup": None if controllers is None else "memory" in controllers.split(),
        "jetson_release": (seen.get(RELEASE) or "")[:400] or None,
        "mem_total_bytes": parse_meminfo(seen.get("/proc/meminfo", "")).get("MemTotal"),
        "power": {"sensor": None, "reason": reason}, "runtimes": {}, **snapshot(seen),
    }


def surroundings(before: Mapping[str, str], after: Mapping[str, str], clocks: str) -> dict[str, Any]:
    """What was seen around a step, with keys of `answers.Environment`. Nothing was looked at while it ran: throttling
    shows in the bits that stay set, clocks do not show.

    Args:
        clocks: the worker's `clocks` before and after, four lines each.
    """
    wall, busy, own = _clocks(clocks) or (None, 0.0, None)
    pressure = {}
    for name in ("cpu", "io", "memory"):
        waited = _difference(*(parse_pressure(seen.get(f"/proc/pressure/{name}", "")) for seen in (before, after)))
        pressure[f"psi_{name}"] = None if waited is None or not wall else round(waited / (wall * 1e6), 4)
    bits = [parse_throttled(seen.get("throttled", "")) for seen in (before, after)]
    heat = [value for value in (temperature(before), temperature(after)) if value is not None]
    both = None not in bits
    swapped = [parse_swapped(seen.get("/proc/vmstat", "")) for seen in (before, after)]
    return {
        **pressure, "swapped_pages": _difference(*swapped),
        "throttle_count": _difference(throttle_count(before), throttle_count(after)), "throttled_before": bits[0],
        "throttled_now": (bits[1] or 0) & ~STICKY if both else None,
        "throttled_new": (bits[1] or 0) & ~(bits[0] or 0) if both else None,
        "temperature_start_c": temperature(before), "temperature_end_c": temperature(after),
        "temperature_max_c": max(heat, default=None), "wall_s": wall, "turn": NO_LOCK,  # none was waited for
        "other_cpu": None if wall is None or own is None else round(max(0.0, busy - own) / wall, 4),
    }


def temperature(seen: Mapping[str, str]) -> float | None:
    """The hottest thermal zone, °C."""
    values = [_whole(text) for name, text in seen.items() if name.startswith("/sys/class/thermal/")]
    plausible = [value / 1000.0 for value in values if value is not None and value < 150000]
    return max(plausible, default=None)


def throttle_count(seen: Mapping[str, str]) -> int | None:
    """Thermal throttle events of all x86 cores since boot."""
    counts = [_whole(text) for name, text in seen.items() if name.endswith("/core_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def oom_kills(seen: Mapping[str, str]) -> int:
    """Processes that the kernel killed for memory since boot."""
    return parse_oom_kills(seen.get("/proc/vmstat", "")) or 0


def free_bytes(seen: Mapping[str, str]) -> int | None:
    """Free bytes of the state folder's disk, by `df -P`."""
    words = seen.get("disk", "").split("\n")[-1:]
    fields = words[0].split() if words else []
    return int(fields[3]) * 1024 if len(fields) > 3 and fields[3].isascii() and fields[3].isdigit() else None


def _clocks(text: str) -> tuple[float, float, float] | None:
    """(wall, busy of all cores, the program's own CPU) seconds between the two looks; None for anything else."""
    lines = text.strip("\n").split("\n")
    if len(lines) != 8:
        return None
    up = [_number(lines[at]) for at in (0, 4)]
    ticks = [parse_busy(lines[at]) for at in (1, 5)]
    own = [_spent(lines[at]) for at in (3, 7)]
    if None in up or None in ticks or None in own:
        return None
    wall, busy, spent = (float(after or 0) - float(before or 0) for before, after in (up, ticks, own))
    return (wall, max(0.0, busy) / USUAL_TICKS, max(0.0, spent)) if 0 < wall < LONGEST_SECONDS else None


def _spent(line: str) -> float | None:
    """Seconds in user and system of a line of `times`."""
    found = TIMES.findall(line)
    return sum(60 * int(minutes) + float(seconds) for minutes, seconds in found) if len(found) == 2 else None


def _processors(cpuinfo: str) -> int | None:
    return len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or None


def _device_tree(seen: Mapping[str, str], name: str) -> str | None:
    return next((seen[f"{folder}/{name}"] for folder in DEVICE_TREES if seen.get(f"{folder}/{name}")), None)


def _number(text: str | None) -> float | None:
    found = NUMBER.match(text or "")
    return float(found[0]) if found else None


def _whole(text: str | None) -> int | None:
    found = NUMBER.fullmatch(text or "")
    return int(text or "") if found and found[1] is None else None


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)
