"""Small files of /proc and /sys, read with care: what is missing or strange is None."""

import os
import re

SYS, PROC = "/sys", "/proc"
DEVICE_TREES = ("/proc/device-tree", "/sys/firmware/devicetree/base")
WHOLE = re.compile(r"^-?[0-9]{1,18}$")


def read_text(path: str, limit: int = 1 << 20) -> "str | None":
    """Text of a small file, or None."""
    try:
        with open(path, "rb") as stream:
            return stream.read(limit).decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return None


def read_int(path: str) -> "int | None":
    """A whole number in a file, or None."""
    text = read_text(path, 64) or ""
    return int(text) if WHOLE.match(text) else None


def device_tree(name: str) -> "str | None":
    """A text of the device tree (`model`, `serial-number`)."""
    for folder in DEVICE_TREES:
        text = read_text(os.path.join(folder, name))
        if text:
            return text
    return None


def load_average() -> "float | None":
    """The load average of one minute."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
