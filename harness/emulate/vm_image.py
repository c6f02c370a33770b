"""What the full-system boards boot: a kernel, an initramfs and a disk, built once into the cache folder.

`vm-DIGEST` holds `vmlinuz`, `initrd.gz`, `root.qcow2` (Debian 12 for arm64, unpacked only, with the runtimes of the
light board) and the keys that it knows. `vm-ready-DIGEST` holds the disk with a snapshot `ready`, taken when sshd
answered for the first time; it belongs to one board and one qemu. Each is built elsewhere and renamed.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgesdk.errors import BoardError
from edgesdk.files import sha256_bytes, sha256_file
from edgesdk.harness.emulate import layers, state
from edgesdk.harness.emulate.requirements import find

RECIPE = 3  # raise it when this module changes what it builds
KERNEL = "linux-image-cloud-arm64"
PACKAGES = (*layers.PACKAGES, KERNEL, "busybox-static", "iproute2", "mount", "openssh-server", "openssh-sftp-server")
MEMORY_MB, DISK_MB = 1024, 1500
NEEDED_BYTES = 3 << 30
MONITOR = "monitor"
_MODULES = (
    "drivers/virtio/virtio", "drivers/virtio/virtio_ring", "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci", "drivers/virtio/virtio_mmio",
    "drivers/block/virtio_blk", "net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
    "drivers/char/hw_random/rng-core", "drivers/char/hw_random/virtio-rng",
)
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc; /bin/busybox mount -t sysfs sys /sys; /bin/busybox mount -t devtmpfs dev /dev
for again in 1 2; do for module in {modules}; do /bin/busybox insmod /mod/$module.ko 2>/dev/null; done; done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do /bin/busybox sleep 0.1; tries=$((tries+1)); done
/bin/busybox mount -t ext4 /dev/vda /root || exec /bin/busybox poweroff -f
for folder in proc sys dev; do /bin/busybox mount --move /$folder /root/$folder; done
exec /bin/busybox switch_root /root /sbin/edge-init
"""
_EDGE_INIT = """#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -o remount,rw /
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs /run
ln -sf /proc/self/fd /dev/fd; mkdir -p /run/sshd /run/lock; mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "+memory" > /sys/fs/cgroup/cgroup.subtree_control
for word in $(cat /proc/cmdline); do
    case "$word" in
    edgesdk.id=*) echo "${word#*=}" > /etc/machine-id ;;
    edgesdk.name=*) hostname "${word#*=}" ;;
    edgesdk.model=*) model=${word#*=}; printf '%s\\0' "${model//_/ }" > /run/model ;;
    esac
done
mount --bind /run/model /sys/firmware/devicetree/base/model
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
[ -e /etc/ld.so.cache ] || ldconfig
/usr/sbin/sshd
while :; do sleep 3600 & wait; done
"""
_REBOOT = '#!/bin/sh\n# There is no service manager to ask.\nsync\nexec busybox "${0##*/}" -f\n'
_SSHD_CONFIG = """Port 22
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
StrictModes no
MaxSessions 64
Subsystem sftp internal-sftp
SetEnv LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""


def image_folder() -> Path:
    """Where the kernel and the disk of this recipe lie, built or not."""
    scripts = [_INIT, _EDGE_INIT, _REBOOT, _SSHD_CONFIG]
    recipe = json.dumps([RECIPE, layers.SUITE, PACKAGES, DISK_MB, layers.rootfs_folder().name, scripts])
    return state.cache_folder() / f"vm-{sha256_bytes(recipe.encode())[:16]}"


@dataclass(frozen=True)
class Machine:
    """What one full board is: qemu's name of its CPU, the model and the identity that it shows."""

    cpu: str
    name: str
    model: str
    identity: str


def ready_folder(qemu: str, machine: Machine) -> Path:
    """Where the snapshot of a board lies, built or not."""
    recipe = json.dumps([image_folder().name, sha256_file(Path(qemu)), asdict(machine), MEMORY_MB])
    return state.cache_folder() / f"vm-ready-{sha256_bytes(recipe.encode())[:16]}"


def build_image(rootfs: Path, progress: layers.Progress) -> Path:
    """Build kernel, initramfs and disk if they are absent; `rootfs` is the light board's, whose runtimes are taken.

    Raises:
        BoardError: a download, a tool or the disk failed; nothing half-made stays.
    """
    folder = image_folder()
    if not folder.is_dir():
        with state.locked(state.cache_folder() / "build.lock"):
            if not folder.is_dir():
                layers.build_folder(folder, lambda made: _fill_image(made, rootfs, progress), NEEDED_BYTES, 0o700)
    return folder


def machine_options(folder: Path, machine: Machine, port: int) -> list[str]:
    """qemu's options; snapshots need the same ones again. One guest instruction is a nanosecond of guest time.

    The disk, the console and the monitor lie in the current directory.
    """
    told = {"id": machine.identity, "name": machine.name, "model": machine.model.replace(" ", "_")}
    words = " ".join(f"edgesdk.{key}={value}" for key, value in told.items())
    net = f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"
    kernel = ["-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.gz")]
    return [
        "-M", "virt,gic-version=3", "-cpu", machine.cpu, "-smp", "1", "-m", str(MEMORY_MB),
        "-icount", "shift=0", *kernel,
        "-append", f"console=ttyAMA0 quiet random.trust_cpu=1 panic=1 {words}",
        "-drive", "if=none,id=d0,file=root.qcow2,format=qcow2", "-device", "virtio-blk-pci,drive=d0",
        "-netdev", net, "-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "virtio-rng-pci",
        "-display", "none", "-serial", "file:console", "-monitor", f"unix:{MONITOR},server,nowait",
    ]


def monitor(folder: Path, command: str, seconds: float = 120) -> str:
    """Give qemu's monitor, a socket in `folder`, one command; gives what it answered.

    Raises:
        OSError: no qemu there, or no answer in time.
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(seconds)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            line.connect(f"/proc/self/fd/{handle}/{MONITOR}")  # the path itself may be too long for a socket
        finally:
            os.close(handle)
        _read_prompt(line)
        line.sendall(command.encode() + b"\n")
        return _read_prompt(line)


def _read_prompt(line: socket.socket) -> str:
    answer = b""
    while not answer.endswith(b"(qemu) "):
        more = line.recv(4096)
        if not more:
            break
        answer += more
    return answer.decode(errors="replace")


def build_ready(qemu: str, machine: Machine, image: Path, progress: layers.Progress) -> Path:
    """Boot the image once as this board and keep it as it is when sshd answers; raises as `build_image`."""
    folder = ready_folder(qemu, machine)
    if not folder.is_dir():
        with state.locked(state.cache_folder() / "build.lock"):
            if not folder.is_dir():
                progress(f"full board: first boot as {machine.name} (once, a minute or two)")
                layers.build_folder(folder, lambda made: _fill_ready(made, qemu, machine, image), NEEDED_BYTES, 0o700)
    return folder


def _fill_image(made: Path, rootfs: Path, progress: layers.Progress) -> None:
    progress("full board: unpacking Debian 12 for arm64 with its kernel (once, about a minute)")
    root = made.parent / "root"
    layers.unpack_debian(root, PACKAGES)
    layers.settle(root)
    (kernel,) = (root / "lib/modules").iterdir()
    shutil.copyfile(next((root / "boot").glob("vmlinuz-*")), made / "vmlinuz")
    (made / "initrd.gz").write_bytes(_initramfs(kernel / "kernel", root / "bin/busybox"))
    shutil.rmtree(root / "boot")
    shutil.rmtree(root / "lib/modules")
    shutil.copytree(rootfs / "usr/local/lib/python3.11", root / "usr/local/lib/python3.11", dirs_exist_ok=True)
    with (root / "etc/passwd").open("a") as users:
        users.write("sshd:*:101:65534::/run/sshd:/usr/sbin/nologin\n")
    for key in ("host_key", "client_key"):
        _tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "edgesdk-vm", "-f", str(made / key))
    (root / "etc/ssh").mkdir(exist_ok=True)
    shutil.copyfile(made / "host_key", root / "etc/ssh/host_key")
    (root / "etc/ssh/host_key").chmod(0o600)
    shutil.copyfile(made / "client_key.pub", root / "etc/ssh/authorized_keys")
    (root / "etc/ssh/sshd_config").write_text(_SSHD_CONFIG)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for name in ("reboot", "poweroff", "halt"):
        _script(root / "sbin" / name, _REBOOT)
    _script(root / "sbin/edge-init", _EDGE_INIT)
    progress("full board: making its disk")
    disk = made.parent / "root.ext4"
    _tool("mke2fs", "-q", "-t", "ext4", "-d", str(root), "-m", "0", str(disk), f"{DISK_MB}M")
    _tool("qemu-img", "convert", "-O", "qcow2", str(disk), str(made / "root.qcow2"))


def _script(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _fill_ready(made: Path, qemu: str, machine: Machine, image: Path) -> None:
    shutil.copyfile(image / "root.qcow2", made / "root.qcow2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (made / "qemu.log").open("wb") as log:
        running = subprocess.Popen(
            [qemu, *machine_options(image, machine, port)], cwd=made, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            _await_sshd(running, port, made)
            time.sleep(2)
            answer = monitor(made, "savevm ready")
            if "rror" in answer:
                raise OSError(f"savevm: {answer[-200:]}")
            monitor(made, "quit", 30)
            running.wait(60)
        finally:
            running.kill()
            running.wait()
    for name in (MONITOR, "console", "qemu.log"):
        (made / name).unlink(missing_ok=True)


def _await_sshd(running: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if running.poll() is not None:
            raise OSError(f"qemu ended: {(folder / 'qemu.log').read_text(errors='replace')[-300:]}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            pass
        time.sleep(1)
    console = folder / "console"
    last = console.read_text(errors="replace")[-300:] if console.exists() else ""
    raise OSError(f"the guest did not come up within 300 s: {' / '.join(last.splitlines()[-3:])}")


def _initramfs(modules: Path, busybox: Path) -> bytes:
    """A compressed archive with busybox, the virtio modules and an init that mounts the disk."""
    names = [Path(module).name for module in _MODULES if (modules / f"{module}.ko").is_file()]
    entries = [(f"mod/{Path(module).name}.ko", 0o100644, (modules / f"{module}.ko").read_bytes())
               for module in _MODULES if (modules / f"{module}.ko").is_file()]
    entries += [("bin/busybox", 0o100755, busybox.read_bytes())]
    entries += [("init", 0o100755, _INIT.format(modules=" ".join(names)).encode())]
    folders = [(name, 0o040755, b"") for name in ("bin", "mod", "proc", "sys", "dev", "root")]
    return gzip.compress(b"".join(_cpio([*folders, *entries])), 6, mtime=0)


def _cpio(entries: Sequence[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """The `newc` format of cpio(5): 13 fields of 8 hexadecimal digits, name and data padded to 4 bytes."""
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        yield head + b"\0" * (-len(head) % 4)
        yield data + b"\0" * (-len(data) % 4)


def _tool(name: str, *arguments: str, cwd: Path | None = None) -> None:
    path = find(name)
    if path is None:
        raise BoardError(f"{name} not found")
    done = subprocess.run(
        [path, *arguments], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False
    )
    if done.returncode:
        raise BoardError(f"full board: {name} failed: {done.stderr.decode(errors='replace')[-300:].strip()}")

