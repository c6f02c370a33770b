"""Is the board fit to be timed? Checks on the board before a job: disk, memory, other work, throttling, temperature.

Each fault is {"code", "text"}. A profile that refuses makes reasons of them, a lenient one labels. A check reads the
board and asks a judge (`*_fault`, of one fault or none; what is not known is none): where there is no Python, the host
asks the same judges.
"""

import errno
import os
import re
import time
from collections.abc import Callable
from typing import Any

from edgesdk.harness.worker import condition, gpu, system
from edgesdk.harness.worker.codes import LIVE_BITS, UNDERVOLT_BITS
from edgesdk.harness.worker.system import PROC, read_text

SPARE_BYTES = 200 << 20
LEAST_INODES = 1000
WRITE_BYTES = 1 << 20
MEMORY_FACTOR = 1.3
MOST_BUSY = 0.05
MOST_LOAD = 0.2
MOST_PRESSURE = 2.0
HOT_C = 50.0
POLL_SECONDS = 2.0
UPDATERS = ("apt", "apt-get", "dpkg", "unattended-upgr", "fwupd")
AVERAGE = re.compile(r"^some avg10=([0-9.]{1,8})", re.MULTILINE)


def _fault(code: str, text: str) -> "dict[str, str]":
    return {"code": code, "text": text}


def check_disk(state: str, needed: int) -> "list[dict[str, str]]":
    """Room (`disk_fault`), inodes, and a MiB that is written and read back.

    Raises:
        OSError: the disk is full or read-only: nothing can be stored there.
    """
    found = os.statvfs(state)
    fault = disk_fault(found.f_bavail * found.f_frsize, needed, state)
    if fault:
        return fault
    if 0 < found.f_files and found.f_favail < LEAST_INODES:  # some file systems count none
        return [_fault("E_DISK_FULL", f"{found.f_favail} inodes free in {state}, needed {LEAST_INODES}")]
    path = os.path.join(state, "write-test")
    data = os.urandom(WRITE_BYTES)
    try:
        with open(path, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        with open(path, "rb") as stream:
            if stream.read() != data:
                raise OSError(errno.EIO, f"{state}: bytes that were written are read back differently")
    finally:
        if os.path.exists(path):
            os.unlink(path)
    return []


def disk_fault(free: "int | None", needed: int, where: str) -> "list[dict[str, str]]":
    """Room in the folder `where` for twice what is needed and 200 MiB."""
    if free is None or free >= 2 * needed + SPARE_BYTES:
        return []
    text = f"{free >> 20} MiB free in {where}, needed {(2 * needed + SPARE_BYTES) >> 20} MiB"
    return [_fault("E_DISK_FULL", text)]


def memory_fault(available: "int | None", needed: int) -> "list[dict[str, str]]":
    """Room for 1.3 times what the largest artifact needs."""
    if available is None or available >= MEMORY_FACTOR * needed:
        return []
    return [_fault("E_MEMORY", f"{available >> 20} MiB available, expected need {needed >> 20} MiB")]


def check_throttle() -> "list[dict[str, str]]":
    """See `throttle_fault`."""
    return throttle_fault(condition.throttled_bits())


def throttle_fault(bits: "int | None") -> "list[dict[str, str]]":
    """Bits 0-3 of a Raspberry Pi must be 0 now; those since boot may be set."""
    bits = (bits or 0) & LIVE_BITS
    if not bits:
        return []
    if bits & UNDERVOLT_BITS:
        text = f"under-voltage now (throttled=0x{bits:x}): use a supply and cable for this board"
        return [_fault("E_UNDERVOLT", text)]
    return [_fault("E_THROTTLED", f"throttled now (throttled=0x{bits:x})")]


def check_idle(seconds: float) -> "list[dict[str, str]]":
    """Other work: busy cores over `seconds`, load, pressure, package managers. 0 seconds: no check."""
    if seconds <= 0:
        return []
    before = busy_share()
    time.sleep(seconds)
    after = busy_share()
    texts = []
    if before and after and after[1] > before[1]:
        share = (after[0] - before[0]) / float(after[1] - before[1])
        if share > MOST_BUSY:
            texts.append(f"{100 * share:.0f} % of all cores busy")
    texts += [fault["text"] for fault in load_fault(system.load_average(), os.cpu_count())]
    for name in ("cpu", "io", "memory"):
        average = AVERAGE.search(read_text(PROC + "/pressure/" + name) or "")
        if average and float(average.group(1)) >= MOST_PRESSURE:
            texts.append(f"{name} pressure {average.group(1)} %")
    running = sorted(set(UPDATERS) & set(process_names()))
    if running:
        texts.append("running: " + ", ".join(running))
    return [_fault("E_BACKGROUND_LOAD", "; ".join(texts))] if texts else []


def load_fault(load: "float | None", cpus: "int | None") -> "list[dict[str, str]]":
    """At most a fifth of the cores busy over the last minute."""
    if load is None or cpus is None or load <= MOST_LOAD * cpus:
        return []
    return [_fault("E_BACKGROUND_LOAD", f"load average {load:.2f}")]


def check_gpu() -> "list[dict[str, str]]":
    """Nobody else on the GPU of a Jetson, which shares its memory and its clocks with the processor."""
    words = gpu.users()
    return [_fault("E_BACKGROUND_LOAD", "; ".join(words))] if words else []


def busy_share() -> "tuple[int, int] | None":
    """(busy, all) clock ticks of all cores since boot."""
    try:
        words = (read_text(PROC + "/stat") or "").split("\n", 1)[0].split()
        numbers = [int(word) for word in words[1:9]]
        return sum(numbers) - numbers[3] - numbers[4], sum(numbers)
    except (IndexError, ValueError):
        return None


def process_names() -> "list[str]":
    """Names of all processes; the helper of unattended-upgrades that waits for a shutdown does nothing, and is left
    out."""
    names = []
    for entry in os.listdir(PROC):
        if entry.isdigit():
            name = read_text(os.path.join(PROC, entry, "comm"), 64) or ""
            waits = name in UPDATERS and "shutdown" in (read_text(os.path.join(PROC, entry, "cmdline"), 4096) or "")
            names += [] if waits else [name]
    return names


def wait_until(
    check: "Callable[[], list[dict[str, str]]]", seconds: float, tick: "Callable[[], None]"
) -> "list[dict[str, str]]":
    """Ask again until a check finds nothing, for so many seconds at most; returns what it found last."""
    end = time.monotonic() + seconds
    while True:
        found = check()
        if not found or time.monotonic() >= end:
            return found
        tick()
        time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))


def check_cool() -> "list[dict[str, str]]":
    """See `heat_fault`."""
    return heat_fault(condition.temperature())


def heat_fault(heat: "float | None") -> "list[dict[str, str]]":
    """At most 50 °C before the first round."""
    if heat is None or heat <= HOT_C:
        return []
    return [_fault("E_TOO_HOT", f"{heat:.1f} °C before the first round, at most {HOT_C:.0f} °C")]


def check_all(
    state: str, needed: int, available: "int | None", profile: "dict[str, Any]", strict: bool,
    tick: "Callable[[], None]",
) -> "list[dict[str, str]]":
    """All checks; strict ones wait for idleness and for a cool board as long as the profile says."""
    faults = check_disk(state, needed) + memory_fault(available, needed) + check_throttle()
    idle_seconds = float(profile.get("idle_seconds", 0))

    def idle() -> "list[dict[str, str]]":
        return check_idle(idle_seconds) + (check_gpu() if idle_seconds > 0 else [])

    faults += wait_until(idle, float(profile.get("idle_wait_seconds", 0)) if strict else 0.0, tick)
    wait = float(profile.get("cool_wait_seconds", 0)) if strict else 0.0
    return faults + wait_until(check_cool, wait, tick)
