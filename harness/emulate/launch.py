"""Start the supervisor of an emulated board: its folder, its keys, its plan."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgesdk.harness.emulate import namespaces, state, vm, vm_image
from edgesdk.harness.emulate.device import serial_of
from edgesdk.harness.emulate.feeder import RECORDING
from edgesdk.harness.emulate.requirements import find
from edgesdk.harness.replay import Recording, shipped, write_recording
from edgesdk.targets.target import Target

_START_SECONDS = 90
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



def launch_light(
    target: Target, name: str, device: dict[str, bytes], digest: str, shared: list[Path], recording: Recording | None
) -> str:
    """Write a light board's folder and run its supervisor; gives what went wrong, or nothing.

    Args:
        device: files of its device layer by path. digest: of what it claims to be. shared: the read-only layers.
        recording: what its sensors say; None for what EdgeSDK ships, less the power sensors.
    """
    assert target.emulate is not None
    folder = _new_folder(name)
    (folder / "root").mkdir()
    for path, content in device.items():
        file = folder / "device" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o755 if content.startswith(b"#!") else 0o644)
    own = shipped(target.name)
    told = recording or (own.without_power() if own is not None else None)
    if told is not None:
        write_recording(folder / RECORDING, told)
    port = _free_port()
    for key in ("host_key", "client_key"):
        command = [_path("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / key)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)
    kind, public = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {public}\n")
    (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
    (folder / "sshd_config").write_text(_SSHD_CONFIG.format(port=port, qemu_cpu=target.emulate.qemu_cpu))
    plan = {
        "name": name,
        "port": port,
        "layers": [str(layer) for layer in shared],
        "sshd": _path("sshd"),
        "private_binfmt": namespaces.private_binfmt_works(),
        "target": target.name,
        "serial": serial_of(name),
        "device": digest,
    }
    return _run_supervisor(folder, plan)


def launch_full(
    target: Target, name: str, machine: vm_image.Machine, digest: str, image: Path, ready: Path, qemu: str
) -> str:
    """Write a full board's folder and run its supervisor; gives what went wrong, or nothing."""
    folder = _new_folder(name)
    port = _free_port()
    vm.fill(folder, image, ready, port)
    plan = {
        "name": name,
        "port": port,
        "qemu": [qemu, *vm_image.machine_options(image, machine, port), "-loadvm", "ready"],
        "target": target.name,
        "serial": machine.identity,
        "device": digest,
    }
    return _run_supervisor(folder, plan)


def _new_folder(name: str) -> Path:
    folder = state.board_folder(name)
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _path(command: str) -> str:
    path = find(command)
    if path is None:
        raise OSError(f"{command} not found")
    return path


def _run_supervisor(folder: Path, plan: dict[str, Any]) -> str:
    (folder / "plan.json").write_text(json.dumps(plan))
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
