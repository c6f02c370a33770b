"""Executed instructions: markers for the counting plugin of qemu-user, and its output.

A marker is the system call prctl(0x45444745, id), which no kernel knows (EINVAL): harmless everywhere, seen by the
plugin, which writes one JSON line with the counts since the previous marker.
"""

import ctypes
import json
from collections.abc import Callable
from typing import Any

MARK = 0x45444745
START, END = 1, 2
CLASSES = ("total", "int", "branch", "ldst", "simd", "dot", "mmla", "mull8", "fmla", "other")


def marker_function() -> "Callable[[int], None]":
    """A function that emits marker `id`; made once, so that loading ctypes is not counted."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    words = [ctypes.c_ulong(value) for value in (START, END)]
    zero = ctypes.c_ulong(0)

    def mark(identity: int) -> None:
        prctl(ctypes.c_int(MARK), words[identity - 1], zero, zero, zero)

    return mark


def parse_counts(text: str) -> "list[dict[str, int]]":
    """Counts of each marked inference in a plugin's output; lines that are anything else are skipped."""
    inferences = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or entry.get("edgecount") != "mark" or entry.get("tag") != END:
            continue
        counts = {key: value for key, value in entry.items() if _is_count(key, value)}
        if "total" in counts:
            inferences.append(counts)
    return inferences


def _is_count(key: "Any", value: "Any") -> bool:
    return key in CLASSES and type(value) is int and 0 <= value < 1 << 63


def mean_counts(inferences: "list[dict[str, int]]") -> "dict[str, int]":
    """Mean of each class over inferences, rounded to whole instructions."""
    keys = sorted(set.intersection(*(set(counts) for counts in inferences))) if inferences else []
    return {key: int(round(sum(counts[key] for counts in inferences) / float(len(inferences)))) for key in keys}
