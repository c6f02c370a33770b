"""The read-only layers of emulated boards, built once into the cache folder and shared by all boards.

`rootfs-DIGEST` is Debian 12 for arm64 with Python, NumPy, ONNX Runtime and LiteRT: packages and wheels are unpacked
only, no arm64 code runs. `qemu-DIGEST` is qemu-user of this machine with its libraries and the counting plugin. Each
is named after a digest of its recipe, built in a temporary folder and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from edgesdk.errors import BoardError, DiskFull
from edgesdk.files import canonical_json, inside, sha256_bytes, sha256_file, write_atomic
from edgesdk.harness.emulate.state import cache_folder, locked

RECIPE = 1  # raise it when this module changes what it builds
SUITE = "bookworm"
PACKAGES = (
    "base-files base-passwd bash coreutils dash debianutils diffutils findutils grep gzip hostname libc-bin libgomp1 "
    "libstdc++6 mawk procps python3 python3-minimal sed tar util-linux"
).split()
WHEELS = ("numpy==2.4.6", "onnxruntime==1.31.1", "ai-edge-litert==2.3.0")
PURE_WHEELS: tuple[str, ...] = ()
UNUSED = ("onnxruntime/tools", "onnxruntime/transformers", "onnxruntime/datasets", "numpy/*/tests", "numpy/tests")
NEEDED_BYTES = 1 << 30

Progress = Callable[[str], None]


def rootfs_folder() -> Path:
    """Where the root file system of this recipe lies, built or not."""
    recipe = json.dumps([RECIPE, SUITE, PACKAGES, WHEELS, PURE_WHEELS, UNUSED, _compiles()])
    return cache_folder() / f"rootfs-{sha256_bytes(recipe.encode())[:16]}"


def qemu_folder(qemu: str) -> Path:
    """Where the layer of this `qemu-aarch64` and this counting plugin lies, built or not."""
    recipe = json.dumps([RECIPE, sha256_file(Path(qemu)), sha256_bytes(_plugin_source())])
    return cache_folder() / f"qemu-{sha256_bytes(recipe.encode())[:16]}"


def build_layers(qemu: str, progress: Progress) -> list[Path]:
    """Build what is absent; gives the layers from the top down.

    Raises:
        BoardError: a download, a build or the disk failed; nothing half-made stays.
    """
    rootfs, emulator = rootfs_folder(), qemu_folder(qemu)
    if not (rootfs.is_dir() and emulator.is_dir()):
        with locked(cache_folder() / "build.lock"):
            for leftover in cache_folder().glob(".build.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if not rootfs.is_dir():
                build_folder(rootfs, lambda folder: _fill_rootfs(folder, progress))
            if not emulator.is_dir():
                build_folder(emulator, lambda folder: _fill_qemu(folder, qemu, rootfs, progress))
    return [emulator, rootfs]


def can_count(emulator: Path) -> bool:
    """Whether the counting plugin of a qemu layer passed its self-check when the layer was built."""
    return (emulator / "qemu" / "libedgecount.so").is_file()


def build_folder(folder: Path, fill: Callable[[Path], None], needed: int = NEEDED_BYTES, mode: int = 0o755) -> None:
    """Let `fill` fill a folder elsewhere and rename it to `folder`; what it leaves beside it is removed. The build lock
    is held.

    Raises:
        BoardError: the disk is full or the build failed; nothing stays.
    """
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        message = f"{folder.parent}: {free >> 20} MiB free, an emulated board needs {needed >> 20} MiB"
        raise DiskFull(message, "free some space, or set EDGESDK_CACHE to a folder on another disk")
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".build."))
    try:
        made = temporary / "layer"
        made.mkdir()
        fill(made)
        made.chmod(mode)
        os.sync()
        os.replace(made, folder)
    except OSError as problem:
        hint = "check the space and the rights of the cache folder"
        raise BoardError(f"emulated board: {problem}", hint) from problem
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill_rootfs(root: Path, progress: Progress) -> None:
    progress("emulated board: unpacking Debian 12 for arm64 (once, about a minute)")
    unpack_debian(root, PACKAGES)
    settle(root)
    packages = root / "usr/local/lib/python3.11/dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    progress(f"emulated board: fetching {', '.join(WHEELS)} for arm64")
    wheels = _download_wheels(root.parent / "wheels")
    for wheel in wheels:
        _unzip(wheel, packages)
    for pattern in UNUSED:
        for unused in packages.glob(pattern):
            shutil.rmtree(unused)
    if _compiles():
        progress("emulated board: compiling Python files")
        for place in ("usr/local/lib/python3.11", "usr/lib/python3.11"):
            compileall.compile_dir(root / place, quiet=2, stripdir=str(root), prependdir="/")
    document = {
        "format": "edgesdk.rootfs",
        "version": 1,
        "packages": PACKAGES,
        "wheels": {wheel.name: sha256_file(wheel) for wheel in wheels},
    }
    write_atomic(root / "etc/edgesdk-rootfs.json", canonical_json(document))


def unpack_debian(root: Path, packages: Sequence[str]) -> None:
    """Unpack Debian packages for arm64 and what they need into a folder; no arm64 code runs (BoardError)."""
    _run(
        ["mmdebstrap", "--mode=root", "--variant=extract", "--architectures=arm64", f"--include={','.join(packages)}"]
        + ['--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"']
        + [f"--dpkgopt=path-exclude=/usr/share/{unused}/*" for unused in ("man", "doc", "locale")]
        + ["--skip=output/dev", "--quiet", "--format=directory", SUITE, str(root)],
        "check the network, or the apt proxy of this machine",
    )


def settle(root: Path) -> None:
    """Do what the maintainer scripts of unpacked packages would have done and a board needs."""
    shutil.rmtree(root / "dev")
    for folder, mode in (("dev", 0o755), ("proc", 0o755), ("sys", 0o755), ("tmp", 0o1777), ("root", 0o700)):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(mode)
    for table in ("passwd", "group"):
        shutil.copyfile(root / f"usr/share/base-passwd/{table}.master", root / "etc" / table)
    for link, destination in (("bin/sh", "dash"), ("usr/bin/awk", "mawk")):
        if not (root / link).is_symlink():
            (root / link).symlink_to(destination)


def _compiles() -> bool:
    """Python 3.11 writes the .pyc files that the board's Python 3.11 reads; they save seconds of each import there."""
    return sys.version_info[:2] == (3, 11)


def _download_wheels(folder: Path) -> list[Path]:
    # pip takes platform tags literally: a wheel for manylinux_2_17 is not found by asking for manylinux_2_28.
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
    common = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    common += ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", f"--dest={folder}"]
    hint = "check the network, or the index that pip is configured for"
    tags = ["--abi=cp311", "--abi=abi3", "--abi=none", "--platform=manylinux2014_aarch64", *platforms]
    _run([*common, *tags, *WHEELS, *PURE_WHEELS], hint)
    return sorted(folder.glob("*.whl"))


def _unzip(wheel: Path, folder: Path) -> None:
    """Unpack a wheel; its `data/` part (scripts, headers) is of no use here but does no harm."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    path = inside(folder, entry.filename, BoardError)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(entry) as source, path.open("wb") as destination:
                        shutil.copyfileobj(source, destination)
    except zipfile.BadZipFile as problem:
        raise BoardError(f"{wheel.name}: not a wheel: {problem}", "empty pip's cache: pip cache purge") from problem


def _fill_qemu(root: Path, qemu: str, rootfs: Path, progress: Progress) -> None:
    progress("emulated board: building the instruction counter")
    (root / "qemu").mkdir()
    shutil.copyfile(qemu, root / "qemu/qemu-aarch64")
    (root / "qemu/qemu-aarch64").chmod(0o755)
    for library in _libraries(qemu):
        # The loader has its fixed place; libraries go where every Debian loader looks, merged /usr or not.
        place = library if library.name.startswith("ld-") else Path("/usr/lib/x86_64-linux-gnu") / library.name
        copy = root / str(place).lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, copy)
        copy.chmod(0o755)
    source, plugin = root.parent / "edgecount.c", root / "qemu/libedgecount.so"
    source.write_bytes(_plugin_source())
    options = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
    _run(["gcc", *options, "-o", str(plugin), str(source)], "apt-get install gcc libc6-dev")
    counts = root.parent / "counts"
    # Relative to the folder: qemu takes a comma in a path for the next option.
    option = f"{plugin.relative_to(root.parent)},out={counts.name}"
    command = [qemu, "-plugin", option, "-L", str(rootfs), str(rootfs / "bin/true")]
    checked = subprocess.run(command, cwd=root.parent, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)
    if checked.returncode != 0 or not counts.is_file() or b'"edgecount":"exit"' not in counts.read_bytes():
        plugin.unlink()
        progress("emulated board: this qemu-aarch64 does not load the counting plugin: instructions stay unmeasured")


def _libraries(program: str) -> list[Path]:
    """Shared libraries of a program of this machine, as `ldd` lists them; none for a static one."""
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=60, check=False).stdout
    words = [word for line in listing.splitlines() for word in line.split()]
    return [Path(word) for word in words if word.startswith("/") and Path(word).is_file()]


def _plugin_source() -> bytes:
    return files("edgesdk.harness.emulate").joinpath("assets", "edgecount.c").read_bytes()


def _run(command: list[str], hint: str) -> None:
    try:
        nothing, pipe, both = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
        subprocess.run(command, check=True, timeout=3600, stdin=nothing, stdout=pipe, stderr=both)
    except subprocess.CalledProcessError as problem:
        last = " / ".join(problem.output.decode(errors="replace").strip().splitlines()[-3:])
        raise BoardError(f"emulated board: {command[0]} failed: {last}", hint) from problem
    except subprocess.TimeoutExpired as problem:
        raise BoardError(f"emulated board: {command[0]} took more than an hour", hint) from problem
