"""Emulated boards: arm64 Linux behind real SSH on this machine, for users without a board and for tests.

    with emulated(load_target("rpi5")) as board:
        ...

A light board is a native sshd on a port of 127.0.0.1 whose sessions live in an arm64 root file system of their own; the
arm64 programs run under qemu-user as the target's CPU. It starts fresh each time. What is real: SSH, files, programs,
illegal instructions, executed instructions. What is not: time, energy, memory use. It is a fixture, not a jail.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial

from edgesdk.errors import BoardError
from edgesdk.files import sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.emulate import layers, namespaces, state, vm, vm_image
from edgesdk.harness.emulate.device import device_files
from edgesdk.harness.emulate.feeder import feed, standins
from edgesdk.harness.emulate.launch import launch_full, launch_light
from edgesdk.harness.emulate.requirements import find, missing
from edgesdk.harness.emulate.vm import power_cycle
from edgesdk.harness.replay import Recording
from edgesdk.targets.target import Target

__all__ = ["emulated", "feed", "missing", "power_cycle", "prepare", "running", "start", "stop"]

_STOP_SECONDS = 20
_ATTEMPTS = 3

Progress = Callable[[str], None]


def prepare(progress: Progress = lambda line: None) -> None:
    """Build the cache that all emulated boards share, if it is not built yet (about a minute, 350 MB).

    Raises:
        BoardError: this machine lacks something (the hint says what to install), or a download or the disk failed.
    """
    layers.build_layers(_require("qemu-aarch64"), progress)


def start(
    target: Target, progress: Progress = lambda line: None, recording: Recording | None = None, full: bool = False
) -> Board:
    """Start the emulated board of a target, or give the one that runs. It stays until `stop`, or four idle hours.

    Its sensors say what `recording` says. Without one they say what EdgeSDK ships for the target, less the power
    sensors: an emulated board has no energy of its own. `full` starts a full system (`vm.py`) instead of the light
    board; it has no fed sensors.

    Raises:
        BoardError: as `prepare`; or the target has no emulation, or the board did not come up.
    """
    return _start(target, progress, keep=True, recording=recording, full=full)[0]


@contextlib.contextmanager
def emulated(
    target: Target, progress: Progress = lambda line: None, recording: Recording | None = None, full: bool = False
) -> Iterator[Board]:
    """The emulated board of a target while the block runs; `recording` and `full` as for `start`.

    A board that ran before goes on. One that was started for this block ends with it, or with its last user where
    other processes came to use it; also when this process is killed.
    """
    name = _name(target, full)
    with state.locked(state.users_file(name), shared=True) as users:
        board, fresh = _start(target, progress, keep=False, recording=recording, full=full)
        try:
            yield board
        finally:
            if fresh and not state.keep_file(name).exists() and state.try_exclusive(users):
                stop(name)


def stop(name: str) -> bool:
    """Stop a board by name (`rpi5-emulated` or `rpi5`); False if it does not run. When this returns, its processes,
    mounts, files and binfmt entry are gone.

    Raises:
        BoardError: the board belongs to another user, or does not die.
    """
    name = name if name.endswith("-emulated") else f"{name}-emulated"
    if state.NAME.fullmatch(name) is None or not state.state_file(name).exists():
        return False
    with state.locked(state.lock_file(name)):
        document = state.read(name)
        if document is None or not state.alive(document):
            _clean(name)
            return False
        _end(name, document["pid"])
        _clean(name)
        return True


def running() -> list[Board]:
    """The emulated boards that run now. What boards that died left behind is removed on the way."""
    found = []
    for name in state.names():
        document = state.read(name)
        if document is not None and state.alive(document):
            found.append(_board(document))
            continue
        with state.locked(state.lock_file(name)):
            again = state.read(name)
            if again is None or not state.alive(again):
                _clean(name)
    return found


def _name(target: Target, full: bool = False) -> str:
    return f"{target.short.replace('/', '-')}{'-vm' * full}-emulated"


def _require(command: str, full: bool = False) -> str:
    """Path of a command, after everything that emulation needs was checked."""
    lacks = missing(full) if full else missing()
    path = find(command)
    if lacks or path is None:
        reasons = "; ".join(lacks or [f"{command} not found"])
        raise BoardError(f"emulated boards cannot run here: {reasons}", "do what it says, or use a real board")
    return path


def _start(
    target: Target, progress: Progress, keep: bool, recording: Recording | None = None, full: bool = False
) -> tuple[Board, bool]:
    """The board, and whether it was started now."""
    if target.emulate is None:
        hint = "take a target with an `emulate` table, like rpi5"
        raise BoardError(f"target {target.name} has no emulated board", hint)
    name = _name(target, full)
    device = {} if full else device_files(target, target.emulate, name) | standins(target.name)
    machine = vm.machine_of(target.emulate, name)
    digest = sha256_bytes(repr((sorted(device.items()), machine if full else target.emulate.qemu_cpu)).encode())
    qemu = _require("qemu-system-aarch64" if full else "qemu-aarch64", full)
    with state.locked(state.lock_file(name)):
        document = state.read(name)
        if document is not None and state.alive(document):
            if document["device"] != digest:
                hint = f"edgesdk boards emulate {target.short}{' --vm' * full} --stop"
                raise BoardError(f"{name} runs already, with other properties than this target's", hint)
            if keep:
                state.keep_file(name).touch()
            if recording is not None:
                feed(name, recording)
            return _board(document), False
        shared = layers.build_layers(_require("qemu-aarch64"), progress)
        if full:
            image = vm_image.build_image(shared[-1], progress)
            launch = partial(launch_full, target, name, machine, digest, image,
                             vm_image.build_ready(qemu, machine, image, progress), qemu)
        else:
            launch = partial(launch_light, target, name, device, digest, shared, recording)
        progress(f"starting {name}")
        for attempt in range(_ATTEMPTS):
            _clean(name)
            try:
                problem = launch()
            except (OSError, subprocess.SubprocessError) as failure:
                problem = str(failure)
            document = state.read(name)
            if not problem and document is not None:
                if keep:
                    state.keep_file(name).touch()
                if full:
                    vm.set_clock(_board(document))
                return _board(document), True
            if "in use" not in problem or attempt == _ATTEMPTS - 1:
                break
        _clean(name)
    reason = problem or "the supervisor died"
    raise BoardError(f"{name} did not start: {reason}", "try it again; see what the kernel says about it: dmesg")


def _end(name: str, pid: int) -> None:
    """End a supervisor that was just seen alive, and with it its board."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(watch, number)
            if select.select([watch], [], [], _STOP_SECONDS)[0]:
                return
    except PermissionError as problem:
        raise BoardError(f"{name} belongs to another user", "stop it as that user, or as root") from problem
    finally:
        os.close(watch)
    raise BoardError(f"{name}: process {pid} does not end", "look at it with ps; restart the machine if need be")


def _clean(name: str) -> None:
    """Remove what a dead board left behind; the board's lock is held."""
    document = state.read(name)
    if document is not None and document["binfmt"] is not None:
        namespaces.remove_global_binfmt(document["binfmt"])
    state.forget(name)


def _board(document: dict[str, object]) -> Board:
    qemu = find("qemu-aarch64")
    light = not str(document["name"]).endswith("-vm-emulated")
    return state.as_board(document, light and qemu is not None and layers.can_count(layers.qemu_folder(qemu)))
