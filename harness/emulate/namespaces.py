"""The inside of an emulated board: namespaces, mounts, and the sshd that becomes process 1 in them.

Process 1 sees a root file system of its own, which holds nothing of this machine but `/usr` (read-only, for sshd) and
the board under `/board`, where sshd locks every session in. Nothing here is visible to, or stays on, the machine:
when process 1 dies, the kernel ends all processes of the board and drops its mounts.

binfmt_misc, which lets arm64 programs start, is private to the board's user namespace (Linux 6.7 and newer). Older
kernels have one table for the whole machine; there the board adds an entry of its own name, which stop removes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
# <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP = 1, 24
# What sshd and a root user inside need: chown, dac_override, dac_read_search, fowner, fsetid, kill, setgid, setuid,
# net_bind_service, sys_chroot, sys_nice, audit_write. No mounts, no modules, no tracing.
_KEPT_CAPABILITIES = frozenset((0, 1, 2, 3, 4, 5, 6, 7, 10, 18, 23, 29))
_LAST_CAPABILITY = 40

BINFMT = "/proc/sys/fs/binfmt_misc"
# Offset 0: ELF, 64 bit, little endian; type EXEC or DYN; machine 183 (AArch64). As Debian's qemu-user-static has it.
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
_PASSWD = "root:*:0:0:root:/root:/bin/bash\nsshd:*:101:65534::/run/sshd:/usr/sbin/nologin\n"
_GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"


@dataclass(frozen=True)
class Plan:
    """What to set up: `folder` holds the device layer and the keys, `mountpoint` becomes the new root, `layers` are
    the shared ones from the top down, `sshd` is the daemon's path. `binfmt` is the name of an entry for the whole
    machine, or None for a private one."""

    name: str
    folder: Path
    mountpoint: Path
    layers: tuple[Path, ...]
    sshd: str
    binfmt: str | None


def become_board(plan: Plan, ready: int, go: int) -> None:
    """Turn this process, the first of a new PID namespace, into the board's sshd; never returns.

    It writes one byte to the descriptor `ready` and waits on `go` for the byte that says that the supervisor lives, and
    has mapped the users where the board has a user namespace, for a binfmt_misc of its own.

    Raises:
        OSError: the kernel refused a step; the message says which.
    """
    _unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC)
    _mount("", "/", "", MS_REC | MS_PRIVATE)
    socket.sethostname(plan.name)
    _build_root(plan)
    _pivot(plan.mountpoint)
    if plan.binfmt is None:
        _unshare(CLONE_NEWUSER | CLONE_NEWNS)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.write(ready, b"x")
    if os.read(go, 1) != b"x":
        raise OSError("the supervisor is gone")
    _mount("binfmt_misc", BINFMT, "binfmt_misc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # It stays mounted: a user namespace keeps its entries only as long as that. No session sees the mount.
    _register_binfmt(plan.binfmt)
    for capability in range(_LAST_CAPABILITY + 1):
        if capability not in _KEPT_CAPABILITIES:
            _prctl(PR_CAPBSET_DROP, capability)
    os.execv(plan.sshd, [plan.sshd, "-D", "-e", "-f", "/etc/ssh/sshd_config"])


def remove_global_binfmt(name: str) -> None:
    """Remove an entry from the machine's own binfmt_misc, mounted or not; no harm if it is gone."""
    child = os.fork()
    if child == 0:
        try:
            _unshare(CLONE_NEWNS)
            _mount("", "/", "", MS_REC | MS_PRIVATE)
            _mount("binfmt_misc", BINFMT, "binfmt_misc", 0)
            Path(BINFMT, name).write_text("-1")
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def map_all_users(pid: int) -> None:
    """Give the user namespace of `pid` every user and group of this one, unchanged: files of root stay root's."""
    for table in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{table}").write_text("0 0 4294967295")


def enter_mounts(pid: int, root: str) -> None:
    """Move this process, which has one thread, into the mounts of `pid` and below their folder `root`.

    Raises:
        OSError: the process is gone, or the kernel refused.
    """
    mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_LIBC.setns(mounts, CLONE_NEWNS), f"setns {pid}")
    finally:
        os.close(mounts)
    os.chroot(root)
    os.chdir("/")


def new_pid_namespace() -> None:
    """The next child of this process is process 1 of a new PID namespace."""
    _unshare(CLONE_NEWPID)


def private_binfmt_works() -> bool:
    """Whether this kernel gives a user namespace a binfmt_misc of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _unshare(CLONE_NEWUSER | CLONE_NEWNS)
            _mount("binfmt_misc", BINFMT, "binfmt_misc", 0)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _register_binfmt(name: str | None) -> None:
    """Let qemu run arm64 programs. O, C: as the program's user; P: keep argv[0]. F, needed where the whole machine
    sees the entry: open qemu now, so that arm64 programs outside of the board still find it."""
    path, flags = ("/qemu/qemu-aarch64", "OCP") if name is None else ("/board/qemu/qemu-aarch64", "OCPF")
    Path(BINFMT, "register").write_text(f":{name or 'qemu-aarch64'}:M::{_MAGIC}:{_MASK}:{path}:{flags}")


def _build_root(plan: Plan) -> None:
    root = plan.mountpoint
    _mount("tmpfs", str(root), "tmpfs", MS_NOSUID, "mode=755")
    for folder in ("board", "dev", "etc/ssh", "layers", "old", "proc", "root", "run/sshd", "tmp", "upper", "work"):
        (root / folder).mkdir(parents=True, mode=0o755)
    for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        host, here = Path("/", name), root / name
        if host.is_symlink():
            here.symlink_to(os.readlink(host))
        elif host.is_dir():
            here.mkdir()
            _bind_read_only(host, here)
    (root / "etc/passwd").write_text(_PASSWD)
    (root / "etc/group").write_text(_GROUP)
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\n")
    if Path("/etc/ld.so.cache").exists():
        shutil.copyfile("/etc/ld.so.cache", root / "etc/ld.so.cache")
    for file in ("sshd_config", "host_key", "authorized_keys"):
        shutil.copyfile(plan.folder / file, root / "etc/ssh" / file)
        (root / "etc/ssh" / file).chmod(0o600)
    for index, layer in enumerate((plan.folder / "device", *plan.layers)):
        (root / f"layers/{index}").mkdir()
        _bind_read_only(layer, root / f"layers/{index}")
    # Short paths without commas and colons, wherever the cache lies: overlayfs has no quoting for them.
    os.chdir(root)
    lower = ":".join(f"layers/{index}" for index in range(len(plan.layers) + 1))
    _mount("overlay", "board", "overlay", MS_NOSUID | MS_NODEV, f"lowerdir={lower},upperdir=upper,workdir=work")
    _mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _fill_board(root / "board")
    _mount(str(root / "board/dev"), str(root / "dev"), "", MS_BIND | MS_REC)


def _fill_board(board: Path) -> None:
    proc, dev = board / "proc", board / "dev"
    _mount("proc", str(proc), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _bind_read_only(board / "qemu/cpuinfo", proc / "cpuinfo")
    _bind_read_only(proc / "sys", proc / "sys")
    for secret in ("kcore", "kmsg", "sysrq-trigger", "keys", "cmdline"):
        if (proc / secret).exists():
            _mount("/dev/null", str(proc / secret), "", MS_BIND)
    _mount("tmpfs", str(dev), "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=256m")
    for node in ("null", "zero", "random", "urandom"):
        (dev / node).touch()
        _mount(f"/dev/{node}", str(dev / node), "", MS_BIND)
    (dev / "pts").mkdir()
    _mount("devpts", str(dev / "pts"), "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    (dev / "ptmx").symlink_to("pts/ptmx")
    (dev / "fd").symlink_to("/proc/self/fd")
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        (dev / stream).symlink_to(f"/proc/self/fd/{number}")
    (dev / "shm").mkdir()
    (dev / "shm").chmod(0o1777)


def _bind_read_only(source: Path, destination: Path) -> None:
    _mount(str(source), str(destination), "", MS_BIND)
    _mount("", str(destination), "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)


def _pivot(root: Path) -> None:
    os.chdir(root)
    _check(_LIBC.pivot_root(b".", b"old"), f"pivot_root {root}")
    os.chdir("/")
    _umount("/old")
    os.rmdir("/old")


def _mount(source: str, destination: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (source.encode(), destination.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_LIBC.mount(*arguments), f"mount {kind or 'bind'} {source} on {destination}")


def _umount(path: str) -> None:
    _check(_LIBC.umount2(path.encode(), MNT_DETACH), f"umount {path}")


def _unshare(flags: int) -> None:
    _check(_LIBC.unshare(flags), f"unshare {flags:#x}")


def _prctl(option: int, value: int) -> None:
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option} {value}")


def _check(result: int, step: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
