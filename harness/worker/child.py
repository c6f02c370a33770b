"""Run one child process: own session, files for its output, a hard deadline, and words for how it ended."""

import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from edgesdk.harness.worker.system import read_text

OUTPUT_LIMIT = 1 << 20
FILE_LIMIT = 4 << 30
# Exit codes of runners.
USAGE, BAD_INPUT, INTERNAL = 64, 65, 70
EXIT_TEXTS = {
    USAGE: "usage error", BAD_INPUT: "bad input file", INTERNAL: "internal error", 126: "not executable",
    127: "not found",
}


class Ended:
    """How a child ended: `reason` is "" for success; `code` is a rejection code or ""."""

    def __init__(self, code: str, reason: str, stdout: bytes, wall_s: float, cpu_s: float) -> None:
        self.code = code
        self.reason = reason
        self.stdout = stdout
        self.wall_s = wall_s
        self.cpu_s = cpu_s


def _oom_kills() -> "tuple[str, int]":
    """Where the kernel counts what it killed for memory, and the count: of this control group, else of the board."""
    group = re.search(r"^0::(/[^\n]*)$", read_text("/proc/self/cgroup") or "", re.MULTILINE)
    places = ["/sys/fs/cgroup" + group.group(1).rstrip("/") + "/memory.events"] if group else []
    for path in places + ["/proc/vmstat"]:
        found = parse_oom_kills(read_text(path) or "")
        if found is not None:
            return os.path.basename(path), found
    return "", 0


def parse_oom_kills(text: str) -> "int | None":
    """Processes that the kernel killed for memory, of memory.events or of /proc/vmstat."""
    found = re.search(r"^oom_kill ([0-9]{1,12})$", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def kills_text(where: str, before: int, after: int) -> str:
    """How the kernel's count of kills for memory grew, for `describe_status`; "" where it did not."""
    return f"; {where}: oom_kill {before} → {after}" if after > before else ""


def _tail(path: str, size: int = 600) -> str:
    with open(path, "rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - size))
        return " ".join(stream.read().decode("utf-8", "replace").split())


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))


def run_child(
    argv: "list[str]", folder: str, limit_s: float, tick: "Callable[[], None]", environment: "dict[str, str]",
    prepare: "Callable[[], None] | None" = None, on_start: "Callable[[int], None] | None" = None,
) -> Ended:
    """Run `argv` in `folder` to its end, or kill its process group at the deadline.

    Args:
        limit_s: hard deadline in seconds.
        tick: called about once a second (heartbeat).
        environment: added to this process's environment.
        prepare: called in the new process before the program.
        on_start: called with the process's number when it runs.
    """
    environ = dict(os.environ)
    environ.update({"LC_ALL": "C", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"})
    environ.update(environment)
    out_path = os.path.join(folder, "stdout")
    error_path = os.path.join(folder, "stderr")
    kills = _oom_kills()

    def before_program() -> None:
        _limits()
        if prepare is not None:
            prepare()

    start = time.monotonic()
    name = os.path.basename(argv[0])
    with open(out_path, "wb") as out, open(error_path, "wb") as error, open(os.devnull, "rb") as nothing:
        try:
            process = subprocess.Popen(
                argv, stdin=nothing, stdout=out, stderr=error, cwd=folder, env=environ, start_new_session=True,
                preexec_fn=before_program,
            )
        except OSError as problem:
            return Ended("E_CRASH", f"cannot start {name}: {problem.strerror}", b"", 0.0, 0.0)
    timed_out = False
    leftover = os.path.join(folder, "child")
    try:
        _remember(leftover, process.pid)
        if on_start is not None:
            on_start(process.pid)
        pid, status, usage = _wait(process, start + limit_s, tick)
        if pid == 0:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = 0  # reaped by wait4; Popen must not wait again
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.unlink(leftover)
        raise
    os.unlink(leftover)
    wall = time.monotonic() - start
    cpu = float(usage.ru_utime + usage.ru_stime)
    with open(out_path, "rb") as stream:
        stdout = stream.read(OUTPUT_LIMIT)
    if timed_out:
        return Ended("E_TIMEOUT", f"no end after {limit_s:.0f} s, killed", stdout, wall, cpu)
    where, after = _oom_kills()
    code, reason = describe_status(status, kills_text(where, kills[1], after), _tail(error_path))
    return Ended(code, reason, stdout, wall, cpu)


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot: with its number, its identity; "" where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read(4096).decode("utf-8", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _remember(path: str, pid: int) -> None:
    with open(path, "w") as stream:
        stream.write(f"{pid} {_started(pid)}")


def end_leftover(folder: str) -> bool:
    """Kill the child that a worker left running in `folder` when it died; only that very process, no other of its
    number. True when there was one."""
    path = os.path.join(folder, "child")
    try:
        with open(path) as stream:
            number, started = stream.read(64).split()
        os.unlink(path)
        if _started(int(number)) != started:
            return False
        os.killpg(int(number), signal.SIGKILL)
    except (OSError, ValueError):
        return False
    return True


def _wait(process: "subprocess.Popen[bytes]", deadline: float, tick: "Callable[[], None]") -> "Any":
    pause = 0.01
    next_tick = time.monotonic() + 1
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        now = time.monotonic()
        if pid or now > deadline:
            return pid, status, usage
        if now > next_tick:
            tick()
            next_tick = now + 1
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def describe_status(status: int, oom_kills: str, stderr: str) -> "tuple[str, str]":
    """(rejection code, reason) of a wait status; ("", "") for success. `oom_kills`: see
    `kills_text`."""
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return "", ""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    exit_status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
    if exit_status > 128:
        number = exit_status - 128  # a shell or an emulator in between reports a signal like this
    try:
        name = signal.Signals(number).name if number else ""
    except ValueError:
        name = f"signal {number}"
    tail = ": " + stderr if stderr else ""
    memory_words = ("MemoryError", "bad_alloc", "Cannot allocate memory", "out of memory")
    if (number == signal.SIGKILL and oom_kills) or any(word in stderr for word in memory_words):
        return "E_OOM", "out of memory ({}{}){}".format(name or f"exit {exit_status}", oom_kills, tail)
    if name:
        return "E_CRASH", f"killed by {name}{tail}"
    text = EXIT_TEXTS.get(exit_status, "failed")
    return "E_CRASH", f"exit {exit_status} ({text}){tail}"
