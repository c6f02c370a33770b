"""The process that holds one emulated board: starts it, watches over it, and undoes it.

    python -m edgesdk.harness.emulate.supervisor PLAN.json REPORT-DESCRIPTOR

It leaves its caller's session, starts the board, waits until sshd answers, and writes `ready` or the reason of a
failure to the descriptor. Then it ends when it gets SIGTERM, when sshd dies, when a board without the `keep` mark
has no user left (its users hold a shared lock, which the kernel drops when they die), or when a kept board was idle
for long. If it is killed itself, the kernel kills the board with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from edgesdk.harness.emulate import feeder, namespaces, state, vm

IDLE_SECONDS = 4 * 3600
_ANSWER_SECONDS = 60
_POLL_MILLISECONDS = 1000


class Failed(Exception):
    """The board did not start; the message is for the user."""


def main(plan_file: str, report: int) -> None:
    """Run until the board ends; never raises for what happens to the board."""
    if os.fork() != 0:
        os._exit(0)  # the caller need not reap us
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _supervise(json.loads(Path(plan_file).read_text()), report)
    except (Failed, OSError) as problem:
        with contextlib.suppress(OSError):
            os.write(report, str(problem).encode())
    except KeyboardInterrupt:
        pass


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _supervise(document: dict[str, Any], report: int) -> None:
    name, port = str(document["name"]), int(document["port"])
    folder = state.board_folder(name)
    binfmt = None if document.get("private_binfmt", True) else f"edgesdk-{port}"
    board = feeding = 0
    try:
        if "qemu" in document:
            board = vm.spawn(document["qemu"], folder)
        else:
            layers = tuple(map(Path, document["layers"]))
            board = _spawn(namespaces.Plan(name, folder, folder / "root", layers, document["sshd"], binfmt))
        watch = os.pidfd_open(board)
        _await_banner(port, watch, folder / "log")
        if (folder / feeder.RECORDING).exists():
            feeding = feeder.start_feeder(board, folder)
        target, serial, device = (str(document[key]) for key in ("target", "serial", "device"))
        state.write(name, os.getpid(), port, target, serial, device, binfmt)
        os.write(report, b"ready")
        os.close(report)
        _watch(name, board, watch)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for child in filter(None, (feeding, board)):
            os.kill(child, signal.SIGKILL)  # our own child, not reaped yet: the pid is its
            os.waitpid(child, 0)
        if binfmt is not None:
            namespaces.remove_global_binfmt(binfmt)
        state.forget(name)


def _spawn(plan: namespaces.Plan) -> int:
    """Start process 1 of the board; gives its pid."""
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    namespaces.new_pid_namespace()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.close(ready_read)
            os.close(go_write)
            namespaces.become_board(plan, ready_write, go_read)
        except BaseException as problem:
            with contextlib.suppress(OSError):
                os.write(ready_write, b"!" + str(problem).encode())
        finally:
            os._exit(1)
    os.close(ready_write)
    os.close(go_read)
    try:
        answer = os.read(ready_read, 1)
        if answer == b"x":
            if plan.binfmt is None:
                namespaces.map_all_users(child)
            os.write(go_write, b"x")
        rest = os.read(ready_read, 4096)  # a successful exec closes it without a word
        if answer != b"x" or rest:
            raise Failed((answer + rest).lstrip(b"x!").decode(errors="replace") or "process 1 died")
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(ready_read)
        os.close(go_write)
    return child


def _await_banner(port: int, watch: int, log: Path) -> None:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if connection.recv(4) == b"SSH-" and not _ended(watch, 0):
                return
        if _ended(watch, 100):
            last = log.read_text(errors="replace").strip().splitlines()[-2:]
            raise Failed(" / ".join(last) or "sshd died without a word")
    raise Failed(f"sshd did not answer on 127.0.0.1:{port} within {_ANSWER_SECONDS} s")


def _ended(watch: int, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    return bool(poll.poll(milliseconds))


def _watch(name: str, board: int, watch: int) -> None:
    """Return when the board should end. Where that is our own decision, its locks are held until this process is gone,
    so that nobody is given a board that is about to end."""
    used = time.monotonic()
    while not _ended(watch, _POLL_MILLISECONDS):
        kept = state.keep_file(name).exists()
        if _has_sessions(board):
            used = time.monotonic()
        if kept and time.monotonic() - used < IDLE_SECONDS:
            continue
        users, start = state.open_lock(state.users_file(name)), state.open_lock(state.lock_file(name))
        if state.try_exclusive(users) and state.try_exclusive(start) and state.keep_file(name).exists() == kept:
            return
        os.close(users)
        os.close(start)


def _has_sessions(board: int) -> bool:
    """Whether the board's sshd has children."""
    try:
        return bool(Path(f"/proc/{board}/task/{board}/children").read_text().strip())
    except OSError:
        return True


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
