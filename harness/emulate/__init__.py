"""Emulated boards: arm64 Linux behind real SSH on this machine, for users without a board and for tests.

    with emulated(load_target("rpi5")) as board:
        ...

A board is a native sshd on a port of 127.0.0.1 whose sessions live in an arm64 root file system of their own; the
arm64 programs run under qemu-user as the target's CPU. It starts fresh each time. What is real: SSH, files, programs,
illegal instructions, executed instructions. What is not: time, energy, memory use. It is a fixture, not a jail.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from edgesdk.errors import BoardError
from edgesdk.files import sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.emulate import layers, namespaces, state
from edgesdk.harness.emulate.device import device_files, serial_of
from edgesdk.harness.emulate.requirements import find, missing
from edgesdk.targets.target import Target

__all__ = ["emulated", "missing", "prepare", "running", "start", "stop"]

_START_SECONDS = 90
_STOP_SECONDS = 20
_ATTEMPTS = 3
_SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
AuthenticationMethods publickey
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowUsers root
AllowTcpForwarding no
AllowAgentForwarding no
AllowStreamLocalForwarding no
X11Forwarding no
PermitTunnel no
PermitUserRC no
UsePAM no
UseDNS no
LogLevel ERROR
ClientAliveInterval 60
ClientAliveCountMax 15
PrintMotd no
PrintLastLog no
PidFile none
MaxSessions 64
MaxStartups 64
ChrootDirectory /board
Subsystem sftp internal-sftp
SetEnv QEMU_CPU={qemu_cpu} LANG=C.UTF-8
"""

Progress = Callable[[str], None]


def prepare(progress: Progress = lambda line: None) -> None:
    """Build the cache that all emulated boards share, if it is not built yet (about a minute, 350 MB).

    Raises:
        BoardError: this machine lacks something (the hint says what to install), or a download or the disk failed.
    """
    layers.build_layers(_require("qemu-aarch64"), progress)


def start(target: Target, progress: Progress = lambda line: None) -> Board:
    """Start the emulated board of a target, or give the one that runs. It stays until `stop`, or four idle hours.

    Raises:
        BoardError: as `prepare`; or the target has no emulation, or the board did not come up.
    """
    return _start(target, progress, keep=True)[0]


@contextlib.contextmanager
def emulated(target: Target, progress: Progress = lambda line: None) -> Iterator[Board]:
    """The emulated board of a target while the block runs.

    A board that ran before goes on. One that was started for this block ends with it, or with its last user where
    other processes came to use it; also when this process is killed.
    """
    name = _name(target)
    with state.locked(state.users_file(name), shared=True) as users:
        board, fresh = _start(target, progress, keep=False)
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


def _name(target: Target) -> str:
    return f"{target.short.replace('/', '-')}-emulated"


def _require(command: str) -> str:
    """Path of a command, after everything that emulation needs was checked."""
    lacks = missing()
    path = find(command)
    if lacks or path is None:
        reasons = "; ".join(lacks or [f"{command} not found"])
        raise BoardError(f"emulated boards cannot run here: {reasons}", "do what it says, or use a real board")
    return path


def _start(target: Target, progress: Progress, keep: bool) -> tuple[Board, bool]:
    """The board, and whether it was started now."""
    if target.emulate is None:
        hint = "take a target with an `emulate` table, like rpi5"
        raise BoardError(f"target {target.name} has no emulated board", hint)
    name = _name(target)
    device = device_files(target, target.emulate, name)
    digest = sha256_bytes(repr((sorted(device.items()), target.emulate.qemu_cpu)).encode())
    qemu = _require("qemu-aarch64")
    with state.locked(state.lock_file(name)):
        document = state.read(name)
        if document is not None and state.alive(document):
            if document["device"] != digest:
                hint = f"edgesdk boards emulate {target.short} --stop"
                raise BoardError(f"{name} runs already, with other properties than this target's", hint)
            if keep:
                state.keep_file(name).touch()
            return _board(document), False
        shared = layers.build_layers(qemu, progress)
        progress(f"starting {name}")
        for attempt in range(_ATTEMPTS):
            _clean(name)
            try:
                problem = _launch(target, name, device, digest, shared, keep)
            except (OSError, subprocess.SubprocessError) as failure:
                problem = str(failure)
            document = state.read(name)
            if not problem and document is not None:
                return _board(document), True
            if "in use" not in problem or attempt == _ATTEMPTS - 1:
                break
        _clean(name)
    reason = problem or "the supervisor died"
    raise BoardError(f"{name} did not start: {reason}", "try it again; see what the kernel says about it: dmesg")


def _launch(target: Target, name: str, device: dict[str, bytes], digest: str, shared: list[Path], keep: bool) -> str:
    """Write the board's folder and run its supervisor; gives what went wrong, or nothing."""
    assert target.emulate is not None
    folder = state.board_folder(name)
    (folder / "root").mkdir(parents=True)
    folder.chmod(0o700)
    for path, content in device.items():
        file = folder / "device" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for key in ("host_key", "client_key"):
        command = [_require("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / key)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)
    kind, public = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {public}\n")
    (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
    (folder / "sshd_config").write_text(_SSHD_CONFIG.format(port=port, qemu_cpu=target.emulate.qemu_cpu))
    if keep:
        (folder / "keep").touch()
    plan = {
        "name": name,
        "port": port,
        "layers": [str(layer) for layer in shared],
        "sshd": _require("sshd"),
        "private_binfmt": namespaces.private_binfmt_works(),
        "target": target.name,
        "serial": serial_of(name),
        "device": digest,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    return _run_supervisor(folder)


def _run_supervisor(folder: Path) -> str:
    read, write = os.pipe()
    try:
        with (folder / "log").open("wb") as log:
            module = "edgesdk.harness.emulate.supervisor"
            command = [sys.executable, "-m", module, str(folder / "plan.json"), str(write)]
            environment = {**os.environ, "EDGESDK_CACHE": str(state.cache_folder())}
            subprocess.run(
                command,
                pass_fds=[write],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        os.close(write)
        write = -1
        if not select.select([read], [], [], _START_SECONDS)[0]:
            return f"no answer within {_START_SECONDS} s"
        answer = os.read(read, 4096).decode(errors="replace")
        return "" if answer == "ready" else answer or "the supervisor died"
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


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
    return state.as_board(document, qemu is not None and layers.can_count(layers.qemu_folder(qemu)))
