"""Full-system boards: an arm64 machine under qemu-system-aarch64, for repeatable guest time, true memory, real reboots.

One executed guest instruction is one nanosecond of guest time (`-icount shift=0`), so times inside repeat, but they are
those of a machine with one instruction per cycle at 1 GHz, not of a Cortex: all numbers are `emulated`. The guest
starts from a snapshot in seconds, on a disk of its own that vanishes with it. Its `/sys` is the kernel's own, so no
sensors are fed to it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import time
from pathlib import Path

from edgesdk.errors import BoardError
from edgesdk.files import sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.emulate import state, vm_image
from edgesdk.targets.target import Emulation

_PR_SET_PDEATHSIG = 1


def machine_of(emulation: Emulation, name: str) -> vm_image.Machine:
    """The machine that the full board of a target is; its machine id is the same for the same name."""
    identity = sha256_bytes(f"edgesdk full board {name}".encode())[:32]
    return vm_image.Machine(emulation.qemu_cpu, name, emulation.board_model, identity)


def fill(folder: Path, image: Path, ready: Path, port: int) -> None:
    """Put the disk, the keys and the pinned host key of a board into its folder."""
    shutil.copyfile(ready / "root.qcow2", folder / "root.qcow2")
    shutil.copyfile(image / "client_key", folder / "client_key")
    (folder / "client_key").chmod(0o600)
    kind, public = (image / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {public}\n")


def spawn(options: list[str], folder: Path) -> int:
    """Start qemu in a board's folder; gives its pid. It dies with this process."""
    child = os.fork()
    if child == 0:
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(folder)
            os.execv(options[0], options)
        finally:
            os._exit(1)
    return child


def set_clock(board: Board) -> None:
    """Tell the guest the time of day; it woke up with that of its snapshot."""
    from edgesdk.harness.session import Session

    with Session(board) as session:
        session.step(lambda to: to.run(["date", "-u", "-s", f"@{time.time():.0f}"], 60))


def power_cycle(name: str) -> None:
    """Reset a running full board as a power cycle would: no sync, no warning; it boots from its disk.

    Raises:
        BoardError: no such board runs.
    """
    document = state.read(name)
    if document is None or not state.alive(document):
        raise BoardError(f"{name} does not run", "edgesdk boards emulate TARGET --vm")
    try:
        vm_image.monitor(state.board_folder(name), "system_reset", 20)
    except OSError as problem:
        raise BoardError(f"{name} has no monitor: {problem.strerror or problem}", "only full boards do") from problem
