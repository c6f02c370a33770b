"""What the board does around a round: temperature, clocks, throttling, swap, pressure, read about once a second.

Everything may be missing: a reading is then None.
"""

import glob
import os
import re
import shutil
import subprocess
import time
from typing import Any

from edgesdk.harness.worker import memory
from edgesdk.harness.worker.system import PROC, SYS, device_tree, read_int, read_text

VCGENCMD_SECONDS = 2.0
LOCKED_SHARE = 0.98
TRACE_LIMIT = 240
THROTTLED = re.compile(r"^throttled=0x([0-9a-fA-F]{1,8})$")
PRESSURE = re.compile(r"^some .*\btotal=([0-9]{1,18})$", re.MULTILINE)
PI_SOFT_LIMIT_C, PI_3B_PLUS_SOFT_LIMIT_C = 80.0, 60.0


def throttled_bits() -> "int | None":
    """`vcgencmd get_throttled` of a Raspberry Pi; None where there is none or it fails."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        output = subprocess.check_output(
            [program, "get_throttled"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=VCGENCMD_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_throttled(output.decode("ascii", "replace"))


def parse_throttled(text: str) -> "int | None":
    """Bits of `throttled=0x50000`: 0-3 under-voltage, capped, throttled, soft limit now; 16-19 since boot."""
    found = THROTTLED.match(text.strip())
    return int(found.group(1), 16) if found else None


def parse_pressure(text: str) -> "int | None":
    """Microseconds since boot in which some task waited, of a file of /proc/pressure."""
    found = PRESSURE.search(text)
    return int(found.group(1)) if found else None


def parse_swapped(text: str) -> "int | None":
    """Pages that were swapped in or out since boot, of /proc/vmstat."""
    pages = re.findall(r"^pswp(?:in|out) ([0-9]{1,18})$", text, re.MULTILINE)
    return sum(int(page) for page in pages) if pages else None


def _overcurrent() -> "list[int | None]":
    """Event counters oc1 (under-voltage), oc2 (average current), oc3 (instantaneous current) of a Jetson."""
    for name in sorted(glob.glob(SYS + "/class/hwmon/hwmon*/name")):
        if read_text(name, 64) == "soctherm_oc":
            return [read_int(os.path.join(os.path.dirname(name), f"oc{number}_event_cnt")) for number in (1, 2, 3)]
    return [None, None, None]


def _undervolt_alarm() -> "bool | None":
    for name in sorted(glob.glob(SYS + "/class/hwmon/hwmon*/name")):
        if read_text(name, 64) == "rpi_volt":
            alarm = read_int(os.path.join(os.path.dirname(name), "in0_lcrit_alarm"))
            return None if alarm is None else alarm > 0
    return None


def temperature() -> "float | None":
    """The hottest thermal zone, °C."""
    readings = []
    for path in sorted(glob.glob(SYS + "/class/thermal/thermal_zone*/temp")):
        value = read_int(path)
        if value is not None and -50000 < value < 150000:
            readings.append(value / 1000.0)
    return max(readings) if readings else None


def temperature_limit() -> "float | None":
    """Where the board begins to slow down, °C: by the model of a Raspberry Pi, else the lowest passive trip point."""
    model = device_tree("model") or ""
    if "Raspberry Pi" in model:
        return PI_3B_PLUS_SOFT_LIMIT_C if "3 Model B Plus" in model else PI_SOFT_LIMIT_C
    limits = []
    for path in glob.glob(SYS + "/class/thermal/thermal_zone*/trip_point_*_type"):
        if read_text(path, 64) == "passive":
            value = read_int(path[: -len("type")] + "temp")
            if value is not None and 40000 <= value < 150000:
                limits.append(value / 1000.0)
    return min(limits) if limits else None


def throttle_count() -> "int | None":
    """Thermal throttle events of all x86 cores since boot."""
    paths = glob.glob(SYS + "/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [count for count in map(read_int, paths) if count is not None]
    return sum(counts) if counts else None


class Watch:
    """One round's watch: made before it, `tick`ed while it runs, `end`ed after it. `cores` are those it runs on."""

    def __init__(self, cores: "list[int]") -> None:
        self.cores = cores
        self.pid = 0
        self.start = time.monotonic()
        self.bits_before = self.bits_now = throttled_bits()
        self.counts = self._counts()
        self.temperatures = []  # type: list[float]
        self.frequencies = []  # type: list[int]
        self.trace = []  # type: list[list[float | int | None]]
        self.anonymous = 0
        self.file = 0
        self.alarm = _undervolt_alarm()
        self._read(None)

    def tick(self) -> None:
        """Read what changes, while the round runs."""
        bits = throttled_bits() if self.bits_before is not None else None
        if bits is not None:
            self.bits_now = (self.bits_now or 0) | bits
        self.alarm = self.alarm or _undervolt_alarm()
        seen = memory.status(self.pid)
        self.anonymous = max(self.anonymous, seen.get("RssAnon", 0))
        self.file = max(self.file, seen.get("RssFile", 0))
        self._read(bits)

    def end(self) -> "dict[str, Any]":
        """Everything that was seen; keys as in `answers.Environment`."""
        self.tick()
        wall = time.monotonic() - self.start
        counts = self._counts()
        deltas = [_delta(before, after) for before, after in zip(self.counts, counts)]  # noqa: B905
        locked = self._locked()
        below = [value for value in self.frequencies if locked and value < LOCKED_SHARE * locked]
        fresh = None
        if self.bits_before is not None and self.bits_now is not None:
            fresh = self.bits_now & ~self.bits_before
        shares = [None if delta is None else round(delta / (wall * 1e6), 4) for delta in deltas[:3]]
        return {
            "psi_cpu": shares[0], "psi_io": shares[1], "psi_memory": shares[2], "swapped_pages": deltas[3],
            "throttle_count": deltas[4], "overcurrent": None if deltas[5] is None else deltas[5:8],
            "throttled_before": self.bits_before, "throttled_now": None if self.bits_now is None else self._live(),
            "throttled_new": fresh, "undervolt_alarm": self.alarm,
            "temperature_start_c": self.temperatures[0] if self.temperatures else None,
            "temperature_end_c": self.temperatures[-1] if self.temperatures else None,
            "temperature_max_c": max(self.temperatures) if self.temperatures else None,
            "temperature_limit_c": temperature_limit(),
            "frequency_locked_khz": locked, "frequency_samples": len(self.frequencies) if locked else 0,
            "frequency_below": len(below), "cores": list(self.cores), "trace": self.trace,
        }

    def _live(self) -> int:
        """Bits 0-3 as seen in the round; those of before that were gone at its start do not count."""
        return (self.bits_now or 0) & 0xF

    def _counts(self) -> "list[int | None]":
        found = [parse_pressure(read_text(PROC + "/pressure/" + name) or "") for name in ("cpu", "io", "memory")]
        events = _overcurrent()
        if events[0] is None or events[1] is None:
            events = [None, None, None]
        return found + [parse_swapped(read_text(PROC + "/vmstat") or ""), throttle_count()] + events

    def _locked(self) -> "int | None":
        """The frequency that the cores should have, kHz: known where the governor is `performance`."""
        folder = f"{SYS}/devices/system/cpu/cpu{self.cores[0] if self.cores else 0}/cpufreq/"
        if read_text(folder + "scaling_governor", 64) != "performance":
            return None
        return read_int(folder + "scaling_max_freq")

    def _read(self, bits: "int | None") -> None:
        heat = temperature()
        if heat is not None:
            self.temperatures.append(heat)
        clock = None
        for core in self.cores[:4]:
            value = read_int(f"{SYS}/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
            if value is not None and value > 0:
                self.frequencies.append(value)
                clock = value if clock is None else min(clock, value)
        if len(self.trace) < TRACE_LIMIT:
            self.trace.append([round(time.monotonic() - self.start, 3), heat, clock, bits])


def _delta(before: "int | None", after: "int | None") -> "int | None":
    return None if before is None or after is None else max(0, after - before)
