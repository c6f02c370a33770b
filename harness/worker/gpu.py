"""Who else uses the GPU of a Jetson: its load, the clients of its memory, compute processes. Elsewhere: nobody."""

import glob
import re

from edgesdk.harness.worker import memory, rails, readers, tuning
from edgesdk.harness.worker.system import SYS, read_int, read_text

RELEASE = "/etc/nv_tegra_release"
# Per mille; where it lies changed from JetPack to JetPack.
LOADS = (
    "/devices/gpu.0/load", "/devices/platform/gpu.0/load", "/class/devfreq/*.gpu/device/load",
    "/class/devfreq/*.ga10b/device/load", "/class/devfreq/*.gv11b/device/load",
)
MOST_LOAD = 0.05
# A desktop holds memory of the GPU and leaves it idle.
DESKTOP = ("Xorg", "Xwayland", "gnome-shell", "weston", "compiz", "nvgpu", "systemd-logind")
COMMAND_SECONDS = 5.0
APPS = re.compile(r"^\s*([0-9]{1,9})\s*,", re.MULTILINE)


def release() -> "str | None":
    """The release of L4T, which only a Jetson has."""
    return read_text(RELEASE, 400)


def load() -> "float | None":
    """Share of the time that the GPU is busy, by /sys or else by one line of tegrastats; None where neither tells."""
    if release() is None:
        return None
    for pattern in LOADS:
        for path in sorted(glob.glob(SYS + pattern)):
            value = read_int(path)
            if value is not None and 0 <= value <= 1000:
                return value / 1000.0
    try:
        lines = readers.Lines(["tegrastats", "--interval", "200"])
    except OSError:
        return None
    try:
        return parse_load(lines.next(COMMAND_SECONDS) or "")
    finally:
        lines.close()


def parse_load(line: str) -> "float | None":
    """Share in a line of tegrastats; None on boards whose line has none."""
    found = rails.parse_tegrastats(line)
    percent = found["gr3d"][0] if found and found["gr3d"] else None
    return None if percent is None else min(100, int(percent)) / 100.0


def parse_apps(text: str) -> "list[int]":
    """Process numbers of `nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader`."""
    return sorted({int(pid) for pid in APPS.findall(text)})


def users() -> "list[str]":
    """What else uses the GPU, in words; [] where nothing does, or nobody can tell."""
    if release() is None:
        return []
    words = []
    share = load()
    if share is not None and share > MOST_LOAD:
        words.append(f"the GPU is {100 * share:.0f} % busy")
    clients = sorted({name for name, pid, _ in memory.clients() if name not in DESKTOP and pid > 0})
    if clients:
        words.append("memory of the GPU is held by " + ", ".join(clients[:5]))
    asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    apps = parse_apps(tuning.run(asked, seconds=COMMAND_SECONDS) or "")
    if apps:
        words.append("compute processes on the GPU: " + ", ".join(map(str, apps[:5])))
    return words
