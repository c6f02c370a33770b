"""Start a job in a process that outlives the connection: as a unit of the user's systemd where that lingers, else in a
session of its own (setsid). Which one, and why, is logged and travels with the result.
"""

import os
import pwd
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable

LINGER = "/var/lib/systemd/linger"
LAUNCH_SECONDS = 15.0


def has_linger() -> "bool | None":
    """Do this user's units live on without a login? None where there is no systemd."""
    if shutil.which("systemd-run") is None:
        return None
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return os.path.exists(os.path.join(LINGER, name))


def launch(state: str, folder: str, identity: str, resume: bool, run: "Callable[[str, int], None]") -> str:
    """Start the job of `folder`; returns how, in words.

    Args:
        run: called in the new process with these words and a descriptor to close when the job has begun; only for
            setsid, since a unit runs the worker's command `work`.
    """
    linger = has_linger()
    if linger:
        problem = _as_unit(state, folder, identity, resume)
        if not problem:
            return "systemd-run --user"
        words = f"setsid: systemd-run --user failed: {problem}"
    else:
        words = "setsid: no systemd" if linger is None else "setsid: no linger for this user"
    _note(folder, words)
    _as_session(folder, lambda ready: run(words, ready))
    return words


def _note(folder: str, words: str) -> None:
    with open(os.path.join(folder, "log"), "a") as stream:
        stream.write(f"launch: {words}\n")


def _as_unit(state: str, folder: str, identity: str, resume: bool) -> str:
    """"" when systemd took the job, else its words."""
    environment = dict(os.environ)
    environment.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    argv = [
        "systemd-run", "--user", "--quiet", "--collect", f"--unit=edgesdk-{identity[:16]}", sys.executable,
        os.path.abspath(sys.argv[0]), "work", "--state", state, "--job", identity,
    ]
    argv += ["--resume"] if resume else []
    try:
        process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        error = process.communicate(timeout=LAUNCH_SECONDS)[1]
    except (OSError, subprocess.TimeoutExpired) as problem:
        return repr(problem)
    if process.returncode:
        return " ".join(error.decode("utf-8", "replace").split())[:200] or f"exit {process.returncode}"
    _note(folder, "systemd-run --user")
    return ""


def _as_session(folder: str, run: "Callable[[int], None]") -> None:
    """Run in a process of its own session; returns when it closed the descriptor that it was given, or ended."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    code = 1
    try:
        os.close(reader)
        log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(writer)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
