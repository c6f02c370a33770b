"""Cheap facts about the board. Each one may be missing: the value is then None, never a guess."""

import glob
import hashlib
import importlib.util
import os
import platform
import re
import sys
import time
from typing import Any

from edgesdk.harness.worker import compiled, condition, engine, gpu, launch, sensors, tuning
from edgesdk.harness.worker.system import device_tree, load_average, read_text

RUNTIME_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "ai-edge-litert": ("ai_edge_litert", "ai_edge_litert"),
    "tflite-runtime": ("tflite_runtime", "tflite_runtime"),
}

# A file of the light emulated boards, and a word that the full ones get from qemu (`harness/emulate`).
EMULATED_FILE, EMULATED_WORD = "/etc/edgesdk-rootfs.json", "edgesdk.id="


def is_emulated(rootfs: "str | None", command_line: "str | None") -> bool:
    """Is this one of EdgeSDK's emulated boards, by the text of `EMULATED_FILE` and of the kernel's command line? It
    says so itself: its address may be a tunnel's, or stand in a farm file under another name."""
    return rootfs is not None or any(word.startswith(EMULATED_WORD) for word in (command_line or "").split())


def parse_cpuinfo(text: str) -> "dict[str, Any]":
    """`model`, `features` (sorted), `part` and `serial` of /proc/cpuinfo, ARM or x86; junk gives empty facts."""
    keys = {}  # type: dict[str, str]
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            keys.setdefault(key.strip().lower(), value.strip())
    model = keys.get("model name") or keys.get("hardware")
    features = keys.get("features") or keys.get("flags") or ""
    return {
        "model": model, "part": keys.get("cpu part"), "features": sorted(set(features.split())),
        "serial": keys.get("serial"),
    }


def parse_meminfo(text: str) -> "dict[str, int]":
    """Bytes by name of /proc/meminfo; lines that are anything else are skipped."""
    values = {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if _is_entry(words):
            values[words[0]] = int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return values


def _is_entry(words: "list[str]") -> bool:
    return len(words) >= 2 and all(letter in "0123456789" for letter in words[1]) and len(words[1]) < 19


def _runtime_version(module: str, distribution: str) -> "str | None":
    """Version of an installed package from the name of its dist-info folder; the package is not imported."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or []:
        for info in glob.glob(os.path.join(os.path.dirname(folder), distribution + "-*.dist-info")):
            return os.path.basename(info)[len(distribution) + 1 : -len(".dist-info")]
    return "unknown"


def snapshot() -> "dict[str, Any]":
    """Facts that change: load, temperature, memory, clock, throttling (see `condition`), power mode, disk, boot."""
    memory = parse_meminfo(read_text("/proc/meminfo") or "")
    return {
        "loadavg1": load_average(), "temperature_c": condition.temperature(),
        "mem_available_bytes": memory.get("MemAvailable"),
        "swap_used_bytes": _difference(memory.get("SwapTotal"), memory.get("SwapFree")),
        "boot_id": boot_id(), "uptime_s": _uptime(),
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "power_mode": tuning.power_mode(), "throttle_count": condition.throttle_count(),
        "throttled": condition.throttled_bits(), "wall_clock_s": int(time.time()), "gpu_load": gpu.load(),
        "clock_synchronized": _clock_synchronized(),
    }


def boot_id() -> "str | None":
    """Identity of this boot."""
    return read_text("/proc/sys/kernel/random/boot_id")


def _uptime() -> "float | None":
    words = (read_text("/proc/uptime") or "").split()
    try:
        return float(words[0])
    except (IndexError, ValueError):
        return None


def _difference(whole: "int | None", part: "int | None") -> "int | None":
    return None if whole is None or part is None else max(0, whole - part)


def _clock_synchronized() -> "bool | None":
    """Has systemd's own client set the clock since boot? None where another one, or none, is in charge."""
    return os.path.exists("/run/systemd/timesync/synchronized") if os.path.isdir("/run/systemd/timesync") else None


def _command_line() -> "str | None":
    """Digest of the kernel's command line: with model and kernel, what booted."""
    text = read_text("/proc/cmdline")
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _firmware() -> "str | None":
    """The version line of a Raspberry Pi's firmware."""
    found = re.search(r"^version ([0-9a-f]{8,64})", tuning.run(["vcgencmd", "version"]) or "", re.MULTILINE)
    return found.group(1) if found else None


def _libc() -> "str | None":
    """`glibc 2.36`; None for other C libraries."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        return None


def _memory_cgroup() -> "bool | None":
    text = read_text("/sys/fs/cgroup/cgroup.controllers")
    return None if text is None else "memory" in text.split()


def collect() -> "dict[str, Any]":
    """All facts; see the keys."""
    cpu = parse_cpuinfo(read_text("/proc/cpuinfo") or "")
    memory = parse_meminfo(read_text("/proc/meminfo") or "")
    rails = [path for path in sorted(glob.glob("/sys/class/powercap/*/energy_uj")) if os.access(path, os.R_OK)]
    facts = {
        "machine": platform.machine(), "kernel": platform.release(), "cpus": os.cpu_count(),
        "cpu_model": cpu["model"], "cpu_part": cpu["part"], "cpu_features": cpu["features"],
        "board_model": device_tree("model"), "serial": device_tree("serial-number") or cpu["serial"],
        "emulated": is_emulated(read_text(EMULATED_FILE), read_text("/proc/cmdline")),
        "machine_id": read_text("/etc/machine-id"), "memory_cgroup": _memory_cgroup(),
        "command_line_sha256": _command_line(), "firmware": _firmware(),
        "jetson_release": gpu.release(), "libc": _libc(), "linger": launch.has_linger(),
        "mem_total_bytes": memory.get("MemTotal"),
        "compiler": compiled.version(),
        "python": ".".join(str(part) for part in sys.version_info[:3]), "rapl": rails,
        "power": sensors.describe(),
        "runtimes": {
            **{name: _runtime_version(*names) for name, names in sorted(RUNTIME_PACKAGES.items())},
            "tensorrt": engine.installed_version(),
        },
    }
    facts.update(snapshot())
    return facts
