"""What emulated boards need of this machine, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from edgesdk.harness.emulate.layers import qemu_folder, rootfs_folder

_RUN = {"qemu-aarch64": "qemu-user", "sshd": "openssh-server", "ssh-keygen": "openssh-client"}
_BUILD = {"mmdebstrap": "mmdebstrap", "gcc": "gcc libc6-dev", "ldd": "libc-bin"}
_FULL = {"qemu-system-aarch64": "qemu-system-arm", "qemu-img": "qemu-utils", "mke2fs": "e2fsprogs"}
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def find(command: str) -> str | None:
    """Path of a command; looks in the system folders too, which users' PATH often leaves out."""
    folders = [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
    return shutil.which(command, path=os.pathsep.join(folders))


def missing(full: bool = False) -> list[str]:
    """What prevents emulated boards here (`full`: full systems), each with the way out; empty where nothing does."""
    if os.environ.get("EDGESDK_NO_EMULATION") == "1":
        return ["EDGESDK_NO_EMULATION=1 is set: unset it"]
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return [f"emulated boards need Linux on x86-64, this is {sys.platform} on {platform.machine()}"]
    found = []
    if os.geteuid() != 0:
        found.append("not root, but emulated boards mount: run with sudo, or in a privileged container")
    commands = dict(_RUN)
    if not _built():
        commands |= _BUILD
        if not _KEYRING.is_file():
            found.append(f"{_KEYRING} not found: apt-get install debian-archive-keyring")
        if importlib.util.find_spec("pip") is None:
            found.append("this Python has no pip: python -m ensurepip")
    if full:
        commands |= _FULL
    for command, package in commands.items():
        if find(command) is None:
            found.append(f"{command} not found: apt-get install {package}")
    supported = Path("/proc/filesystems").read_text().split()
    for kind in ("overlay", "binfmt_misc"):
        if kind not in supported:
            found.append(f"the kernel does not know {kind}: modprobe {kind}")
    return found


def _built() -> bool:
    qemu = find("qemu-aarch64")
    return qemu is not None and qemu_folder(qemu).is_dir() and rootfs_folder().is_dir()
