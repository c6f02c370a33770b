"""Files of the worker: the state folder, atomic writes, digests.

    STATE/blobs/SHA256              content-addressed files, uploaded by the harness
    STATE/artifacts/SHA256/PATH     an artifact laid out under its own names (hard links to blobs)
    STATE/engines/SHA256.plan       what this board's GPU runs (see `engine`)
    STATE/programs/SHA256           what this board compiled (see `compiled`)
    STATE/jobs/ID/                  job.json, status.json, log, work/, result.zip
    STATE/lock                      held by the one job that runs
"""

import hashlib
import json
import os
import re
import shutil
import zipfile
from typing import Any

SHA256 = re.compile(r"^[0-9a-f]{64}$")
PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")


def state_folder(state: str) -> str:
    """The state folder: `state` is relative to the user's home unless absolute."""
    return os.path.join(os.path.expanduser("~"), state)


def digest_name(name: str) -> str:
    """Check that a name from outside is a SHA-256 in hexadecimal (ValueError), so that it can be part of a path."""
    if not SHA256.match(name):
        raise ValueError(f"not a sha256: {name[:80]!r}")
    return name


def safe_parts(relative: str) -> "list[str]":
    """The parts of a relative path of an artifact; ValueError when it could leave its folder."""
    parts = relative.split("/")
    if not all(PART.match(part) for part in parts):
        raise ValueError(f"illegal path {relative[:80]!r}")
    return parts


def write_atomic(path: str, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path + ".part"
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def to_disk(path: str) -> None:
    """What lies in a file, or the names in a folder, outlives a power cut when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str, value: "Any") -> None:
    """`write_atomic` of canonical JSON."""
    write_atomic(path, json.dumps(value, sort_keys=True, allow_nan=False).encode())


def read_bytes(path: str) -> bytes:
    """A whole file (OSError)."""
    with open(path, "rb") as stream:
        return stream.read()


def read_json(path: str) -> "Any":
    """Parse a JSON file (OSError, ValueError)."""
    with open(path, "rb") as stream:
        return json.loads(stream.read().decode())


def sha256_file(path: str) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def unpack(state: str, pack: str) -> None:
    """Unpack a blob that is a zip of small blobs, each named by its digest; a wrong one is refused (ValueError)."""
    blobs = os.path.join(state, "blobs")
    path = os.path.join(blobs, digest_name(pack))
    if not os.path.exists(path):
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            data = archive.read(digest_name(name))
            if hashlib.sha256(data).hexdigest() != name:
                raise ValueError(f"wrong bytes in pack: {name}")
            write_atomic(os.path.join(blobs, name), data)
    to_disk(blobs)
    os.unlink(path)


def lay_out_artifact(state: str, sha256: str, files: "list[dict[str, Any]]") -> str:
    """Link the blobs of an artifact under their own names; return the folder.

    Args:
        state: the state folder.
        sha256: digest of artifact.json, the name of the folder.
        files: {"path", "sha256", "executable"} for each file.
    """
    folder = os.path.join(state, "artifacts", digest_name(sha256))
    for file in files:
        path = os.path.join(folder, *safe_parts(file["path"]))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        blob = os.path.join(state, "blobs", digest_name(file["sha256"]))
        temporary = path + ".part"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        # An executable gets a copy of its own: its mode must not change other artifacts' files, and the kernel
        # refuses to run a file that some process still holds open for writing.
        if file.get("executable"):
            shutil.copyfile(blob, temporary)
            os.chmod(temporary, 0o755)
        else:
            try:
                os.link(blob, temporary)
            except OSError:
                shutil.copyfile(blob, temporary)
        os.replace(temporary, path)
        if os.path.lexists(temporary):
            os.unlink(temporary)  # rename of two links to one file does nothing
    return folder
