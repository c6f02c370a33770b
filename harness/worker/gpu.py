"""Who else uses the GPU of a Jetson: its load, the clients of its memory, compute processes. Elsewhere: nobody."""

import glob
import os
import re
import select
import subprocess
import time

from edgesdk.harness.worker.system import SYS, read_int, read_text

RELEASE = "/etc/nv_tegra_release"
NVMAP = "/sys/kernel/debug/nvmap/iovmm/clients"
# Per mille; where it lies changed from JetPack to JetPack.
LOADS = (
    "/devices/gpu.0/load", "/devices/platform/gpu.0/load", "/class/devfreq/*.gpu/device/load",
    "/class/devfreq/*.ga10b/device/load", "/class/devfreq/*.gv11b/device/load",
)
MOST_LOAD = 0.05
# A desktop holds memory of the GPU and leaves it idle.
DESKTOP = ("Xorg", "Xwayland", "gnome-shell", "weston", "compiz", "nvgpu", "systemd-logind")
COMMAND_SECONDS = 5.0
LINE_BYTES = 1 << 16
CLIENT = re.compile(r"^\S+\s+(\S.{0,60}?)\s+([0-9]{1,9})\s+([0-9]{1,15})K$", re.MULTILINE)
APPS = re.compile(r"^\s*([0-9]{1,9})\s*,", re.MULTILINE)
GR3D = re.compile(r"GR3D_FREQ ([0-9]{1,3})%")


def is_jetson() -> bool:
    """Does this board have the GPU of a Jetson?"""
    return read_text(RELEASE, 400) is not None


def load() -> "float | None":
    """Share of the time that the GPU is busy, by /sys or else by one line of tegrastats; None where neither tells."""
    if not is_jetson():
        return None
    for pattern in LOADS:
        for path in sorted(glob.glob(SYS + pattern)):
            value = read_int(path)
            if value is not None and 0 <= value <= 1000:
                return value / 1000.0
    return parse_gr3d(_first_line(["tegrastats", "--interval", "200"]))


def parse_gr3d(text: str) -> "float | None":
    """Share in a line of tegrastats; None on boards whose line has none."""
    found = GR3D.search(text)
    return min(100, int(found.group(1))) / 100.0 if found else None


def parse_clients(text: str) -> "list[str]":
    """Programs of `nvmap/iovmm/clients` that are no desktop, sorted."""
    return sorted({name for name, pid, _ in CLIENT.findall(text) if name not in DESKTOP and int(pid) > 0})


def parse_apps(text: str) -> "list[int]":
    """Process numbers of `nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader`."""
    return sorted({int(pid) for pid in APPS.findall(text)})


def users() -> "list[str]":
    """What else uses the GPU, in words; [] where nothing does, or nobody can tell."""
    if not is_jetson():
        return []
    words = []
    share = load()
    if share is not None and share > MOST_LOAD:
        words.append(f"the GPU is {100 * share:.0f} % busy")
    clients = parse_clients(read_text(NVMAP) or "")
    if clients:
        words.append("memory of the GPU is held by " + ", ".join(clients[:5]))
    apps = parse_apps(_output(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]))
    if apps:
        words.append("compute processes on the GPU: " + ", ".join(map(str, apps[:5])))
    return words


def _output(argv: "list[str]") -> str:
    try:
        data = subprocess.check_output(
            argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=COMMAND_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return data[: 1 << 16].decode("utf-8", "replace")


def _first_line(argv: "list[str]") -> str:
    """The first line of a program that goes on for ever; "" where it says none in time."""
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return ""
    assert process.stdout is not None
    line, deadline = b"", time.monotonic() + COMMAND_SECONDS
    try:
        while b"\n" not in line and len(line) < LINE_BYTES:
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return ""
            more = os.read(process.stdout.fileno(), 4096)
            if not more:
                break
            line += more
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    return line.partition(b"\n")[0].decode("utf-8", "replace")
