"""Clocks and power mode for the time of a job: what was set before is written down first, and restored by the job, by a
guard when the job dies, and by the next job when the board lost its power.
"""

import fcntl
import glob
import json
import os
import re
import shutil
import signal
import subprocess
from typing import Any

from edgesdk.harness.worker import store
from edgesdk.harness.worker.system import SYS, read_text

GUARD_SECONDS = 7200
COMMAND_SECONDS = 20.0
POWER_MODE = re.compile(r"NV Power Mode: ([A-Za-z0-9_.-]{1,40})")
POWER_MODELS = re.compile(r"POWER_MODEL ID=([0-9]{1,3}) NAME=([A-Za-z0-9_.-]{1,40})")


def run(
    argv: "list[str]", root: bool = False, data: bytes = b"", seconds: float = COMMAND_SECONDS
) -> "str | None":
    """Output of a program, as root by `sudo -n` where asked and needed; None where it is missing, fails, or does not
    end in `seconds`."""
    program = shutil.which(argv[0])
    if program is None:
        return None
    whole = [program] + argv[1:]
    if root and os.geteuid() != 0:
        whole = ["sudo", "-n", "--"] + whole
    try:
        process = subprocess.Popen(
            whole, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:
        return None
    try:
        output = process.communicate(data, timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    return output[: 1 << 16].decode("utf-8", "replace") if process.returncode == 0 else None


def power_mode() -> "str | None":
    """Name of the power mode of a Jetson; None elsewhere. The numbers differ by module, so names are compared."""
    found = POWER_MODE.search(run(["nvpmodel", "-q"], root=True) or "")
    return found.group(1) if found else None


def governor_files() -> "list[str]":
    """One file for each group of cores that change their clock together."""
    return sorted(glob.glob(SYS + "/devices/system/cpu/cpufreq/policy[0-9]*/scaling_governor"))


def write_setting(path: str, value: str) -> bool:
    """Write a file of /sys, as root where it must be."""
    try:
        with open(path, "w") as stream:
            stream.write(value)
        return True
    except OSError:
        return os.geteuid() != 0 and run(["tee", path], root=True, data=value.encode()) is not None


class Tuning:
    """`apply` before the rounds, `restore` after them; `notes` say what could not be set."""

    def __init__(self, state: str, job: str) -> None:
        self.path = os.path.join(state, "restore.json")
        self.clocks = os.path.join(state, "jetson_clocks")
        self.job = job
        self.notes = []  # type: list[str]

    def apply(self, wanted_mode: "str | None" = None) -> None:
        """Governor `performance`, `jetson_clocks`, and a power mode by name."""
        self.restore()  # what a job that died left behind
        governors = {path: read_text(path, 64) or "" for path in governor_files()}
        saved = {"job": self.job, "governors": governors, "clocks": None, "power_mode": None}  # type: dict[str, Any]
        if run(["jetson_clocks", "--store", self.clocks], root=True) is not None:
            saved["clocks"] = self.clocks
        mode = power_mode()
        if wanted_mode is not None and mode is not None and mode != wanted_mode:
            saved["power_mode"] = mode
        if not governors and saved["clocks"] is None:
            self.notes.append("clocks are not locked: no cpufreq and no jetson_clocks here")
            return
        store.write_json(self.path, saved)
        for path, governor in sorted(governors.items()):
            available = (read_text(os.path.dirname(path) + "/scaling_available_governors") or "performance").split()
            if governor != "performance" and not ("performance" in available and write_setting(path, "performance")):
                self.notes.append(f"governor stays {governor}: no permission to set it")
        if saved["power_mode"] and not _set_power_mode(str(wanted_mode)):
            self.notes.append(f"power mode stays {mode}: it has no mode {wanted_mode}, or no permission to set it")
        if saved["clocks"] and run(["jetson_clocks"], root=True) is None:
            self.notes.append("jetson_clocks failed: clocks are not locked")

    def restore(self) -> None:
        """Set everything back that `restore.json` names, and remove it."""
        try:
            saved = store.read_json(self.path)
            governors, clocks, mode = dict(saved["governors"]), saved["clocks"], saved["power_mode"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        known = set(governor_files())
        for path, governor in governors.items():
            if path in known and read_text(path, 64) != governor:
                write_setting(path, str(governor))
        if clocks:
            run(["jetson_clocks", "--restore", self.clocks], root=True)
        if mode:
            _set_power_mode(str(mode))
        try:
            os.unlink(self.path)
        except OSError:
            pass

    def guard(self, lock: str, seconds: int = GUARD_SECONDS) -> None:
        """Leave a process behind that restores when `lock` becomes free (its holder died), or after `seconds`."""
        if not os.path.exists(self.path):
            return
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
        try:
            os.setsid()
            if os.fork() == 0:
                self._wait(lock, seconds)
        finally:
            os._exit(0)

    def _wait(self, lock: str, seconds: int) -> None:
        os.closerange(3, 4096)  # the locks of the job must not live on in here
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, _wake)
        signal.alarm(seconds)
        try:
            descriptor = os.open(lock, os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.close(descriptor)
        except (OSError, KeyboardInterrupt):
            pass
        signal.alarm(0)
        try:
            with open(self.path) as stream:
                ours = json.load(stream)["job"] == self.job
        except (OSError, ValueError, KeyError, TypeError):
            return
        if ours:
            self.restore()


def _set_power_mode(name: str) -> bool:
    listed = run(["nvpmodel", "-p", "--verbose"], root=True) or ""
    modes = {mode: number for number, mode in POWER_MODELS.findall(listed)}
    # A mode that wants a reboot asks for it: standard input is empty, so nothing is answered.
    return name in modes and run(["nvpmodel", "-m", modes[name]], root=True) is not None


def _wake(number: int, frame: "Any") -> None:
    raise KeyboardInterrupt
