"""Files that EdgeSDK stores: atomic, canonical JSON, digests, and paths that stay inside their folder."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from edgesdk.errors import EdgeSDKError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, two spaces and a final newline; NaN and infinity are refused (ValueError)."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `path` when the block ends well and vanishes when it does not.

    An existing folder `path` is replaced as the very last step: Linux exchanges the two in one call, so that a reader
    or a crash finds the old content or the new. File systems without that call are left with two renames, and the old
    content is put back where the second fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        os.chmod(temporary, 0o755)
        if not path.is_dir():
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            _replace_in_two_steps(temporary, path)
        fsync_folder(path.parent)
    finally:
        # What is left here: nothing, the old content after an exchange, or what a failed block had written.
        if temporary.is_symlink():
            temporary.unlink()
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step (Linux, renameat2); False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _replace_in_two_steps(new: Path, path: Path) -> None:
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.replace(path, old / path.name)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old / path.name, path)
        raise
    finally:
        shutil.rmtree(old)


def read_document(path: Path, format: str, version: int, error: type[EdgeSDKError]) -> dict[str, Any]:
    """Read a JSON document that carries `format` and `version`.

    Raises:
        error: the file is missing, is not JSON, is another format, or has a version that this EdgeSDK does not read.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"{path}: not readable as JSON: {problem}") from problem
    return check_document(document, str(path), format, version, error)


def check_document(
    document: Any, where: str, format: str, version: int, error: type[EdgeSDKError]
) -> dict[str, Any]:
    """Check `format` and `version` of a parsed document; see `read_document`."""
    if not isinstance(document, dict) or document.get("format") != format:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise error(f"{where}: expected format {format!r}, found {found!r}")
    if type(document.get("version")) is not int or document["version"] != version:  # True is not version 1
        raise error(
            f"{where}: {format} version {document.get('version')!r}; this EdgeSDK reads version {version}",
            "install the EdgeSDK release that wrote it, or make the file again with `edgesdk build`",
        )
    return document


def inside(folder: Path, relative: Any, error: type[EdgeSDKError]) -> Path:
    """Resolve a path that an untrusted document names; it must be a plain relative path inside `folder`.

    Raises:
        error: the path is absolute, has `..`, a backslash or a NUL, or leads over a symbolic link.
    """
    if not isinstance(relative, str) or not relative or "\\" in relative or "\0" in relative:
        raise error(f"{folder}: illegal path {relative!r}")
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != relative or relative == ".":
        raise error(f"{folder}: path {relative!r} leaves its folder")
    path = folder
    for part in pure.parts:
        path = path / part
        try:
            link = path.is_symlink()
        except OSError as problem:  # a name longer than the file system's
            raise error(f"{folder}: illegal path {relative[:100]!r}: {problem.strerror}") from problem
        if link:
            raise error(f"{path}: symbolic links are not allowed here")
    return path
