"""Cheap facts about the board. Each one may be missing: the value is then None, never a guess."""

import glob
import importlib.util
import os
import platform
import sys
from typing import Any

RUNTIME_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "ai-edge-litert": ("ai_edge_litert", "ai_edge_litert"),
    "tflite-runtime": ("tflite_runtime", "tflite_runtime"),
}
DEVICE_TREES = ("/proc/device-tree", "/sys/firmware/devicetree/base")


def read_text(path: str, limit: int = 1 << 20) -> "str | None":
    """Text of a small file, or None."""
    try:
        with open(path, "rb") as stream:
            return stream.read(limit).decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return None


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


def _temperature() -> "float | None":
    readings = []
    for path in sorted(glob.glob("/sys/class/thermal/thermal_zone*/temp")):
        text = read_text(path)
        try:
            value = int(text or "") / 1000.0
        except ValueError:
            continue
        if -50 < value < 150:
            readings.append(value)
    return max(readings) if readings else None


def _device_tree(name: str) -> "str | None":
    for folder in DEVICE_TREES:
        text = read_text(os.path.join(folder, name))
        if text:
            return text
    return None


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


def _loadavg() -> "float | None":
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def snapshot() -> "dict[str, Any]":
    """Facts that change: load over one minute, temperature, free memory, boot."""
    memory = parse_meminfo(read_text("/proc/meminfo") or "")
    return {
        "loadavg1": _loadavg(), "temperature_c": _temperature(), "mem_available_bytes": memory.get("MemAvailable"),
        "boot_id": read_text("/proc/sys/kernel/random/boot_id"),
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "throttle_count": _throttle_count(),
    }


def _throttle_count() -> "int | None":
    text = read_text("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count")
    return int(text) if text and text.isdigit() else None


def collect() -> "dict[str, Any]":
    """All facts; see the keys."""
    cpu = parse_cpuinfo(read_text("/proc/cpuinfo") or "")
    memory = parse_meminfo(read_text("/proc/meminfo") or "")
    rails = [path for path in sorted(glob.glob("/sys/class/powercap/*/energy_uj")) if os.access(path, os.R_OK)]
    facts = {
        "machine": platform.machine(), "kernel": platform.release(), "cpus": os.cpu_count(),
        "cpu_model": cpu["model"], "cpu_part": cpu["part"], "cpu_features": cpu["features"],
        "board_model": _device_tree("model"), "serial": _device_tree("serial-number") or cpu["serial"],
        "machine_id": read_text("/etc/machine-id"), "mem_total_bytes": memory.get("MemTotal"),
        "python": ".".join(str(part) for part in sys.version_info[:3]), "rapl": rails,
        "runtimes": {name: _runtime_version(*names) for name, names in sorted(RUNTIME_PACKAGES.items())},
    }
    facts.update(snapshot())
    return facts
