"""Content-addressed deployment: a file on the board is named by its SHA-256 and never half there.

Bytes go to `NAME.part`, are checked on the board, and get their name by a rename. A cut upload goes on where it was.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from edgesdk.errors import BoardError, Corrupt, DiskFull
from edgesdk.files import sha256_file
from edgesdk.harness.evict import evict
from edgesdk.harness.session import Session
from edgesdk.harness.transport import Completed, Transport, check_remote, file_error

SIZE = re.compile("[0-9]{1,18}")
TRIES = 3
SMALL_BYTES = 1 << 20
SPARE_BYTES = 64 << 20
COMMAND_SECONDS = 60.0
FINISH_SECONDS = 600.0

# $1 the state folder, then digests; whole ones are marked as used now. Prints `free KIB 0`, and for each digest
# `DIGEST whole|part SIZE` or `DIGEST none 0`.
_LIST = """
umask 077
mkdir -p "$1/blobs" "$1/jobs" "$1/artifacts" && cd "$1/blobs" || exit 1; shift
df -Pk . | tail -n 1 | { read -r _ _ _ kib _; echo "free $kib 0"; }
for name; do
  if [ -f "$name" ]; then touch -c "$name"; echo "$name whole $(wc -c < "$name")"
  elif [ -f "$name.part" ]; then echo "$name part $(wc -c < "$name.part")"
  else echo "$name none 0"; fi
done
"""
# $1 the blobs folder, $2 the digest, $3 the interpreter; exit 9 for wrong bytes, which are removed. A file is on the
# disk before it gets its name, and the name before the harness goes on: else a power cut leaves an empty file of that
# name. An old `sync` takes no files and writes everything, or refuses them.
_FINISH = """
cd "$1" || exit 1
if command -v sha256sum >/dev/null; then sum=$(sha256sum < "$2.part") || exit 1
elif ! command -v "$3" >/dev/null; then echo "neither sha256sum nor $3 is installed" >&2; exit 1
else
  code='import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
  sum=$("$3" -c "$code" < "$2.part") || exit 1
fi
if [ "${sum%% *}" != "$2" ]; then rm -f "$2.part"; exit 9; fi
durable() { sync "$1" 2>/dev/null || sync; }
durable "$2.part" && mv -f "$2.part" "$2" && durable .
"""

Progress = Callable[[str, int, int], None]


def deploy(
    session: Session, blobs: Mapping[str, Path], progress: Progress = lambda text, done, total: None,
    pack: Path | None = None,
) -> int:
    """Put files on the board; returns the number of bytes that had to be sent.

    Args:
        blobs: SHA-256 → local file.
        pack: where to write a zip of the small files that are missing; it is sent instead of them (each file costs
            two commands on the board), and the worker unpacks it. No file is written where none is needed.
        progress: called with ("deploy", bytes done, bytes in all).

    Raises:
        DiskFull, ReadOnly: the board's disk. Corrupt: wrong bytes three times. BoardError and what `Session` raises.
    """
    state = check_remote(session.board.state)
    wanted = dict(blobs)
    found, free = session.step(lambda transport: _look(transport, state, wanted))
    missing = [name for name in blobs if found[name][0] != "whole"]
    if pack is not None:
        small = [name for name in missing if blobs[name].stat().st_size <= SMALL_BYTES]
        if len(small) > 1:
            write_pack(pack, {name: blobs[name] for name in small})
            digest = sha256_file(pack)
            blobs, found[digest] = {**blobs, digest: pack}, ("none", 0)
            missing = [digest, *(name for name in missing if name not in small)]
    total = sum(blobs[name].stat().st_size for name in missing)
    # Twice the bytes: a file may be copied on the board; and some room for results.
    needed = 2 * total + SPARE_BYTES
    if missing and free is not None and free < needed:
        evict(session, needed, [*wanted, *blobs])
        free = session.step(lambda transport: _look(transport, state, {}))[1]
        if free is not None and free < needed:
            raise DiskFull(
                f"{session.board.name}: {state} has {free >> 20} MiB free, {needed >> 20} MiB needed (E_DISK_FULL)",
                f"free space on the board; everything in {state} may be removed while no job runs",
            )
    sent = 0
    for name in missing:
        progress("deploy", sent, total)
        try:
            _send(session, state, name, blobs[name], found[name])
        except DiskFull:
            # `df` does not know everything (quotas, blocks for root): room is made by what the upload found, once.
            if not evict(session, (free or 0) + max(needed, 2 * total), [*wanted, *blobs]):
                raise
            _send(session, state, name, blobs[name], ("none", 0))
        sent += blobs[name].stat().st_size
    progress("deploy", total, total)
    return total


def write_pack(path: Path, blobs: Mapping[str, Path]) -> None:
    """A zip of files named by their digests; equal files give equal bytes, so that a cut upload can go on."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(blobs):
            archive.writestr(zipfile.ZipInfo(name), blobs[name].read_bytes(), zipfile.ZIP_DEFLATED)


def _send(session: Session, state: str, name: str, local: Path, first: tuple[str, int]) -> None:
    size = local.stat().st_size
    folder = f"{state}/blobs"
    part = f"{folder}/{name}.part"
    known = [first]

    def upload(transport: Transport) -> Completed:
        # Inside the step: after a cut connection, what did arrive is looked at again.
        kind, there = known.pop() if known else _look(transport, state, {name: local})[0][name]
        if kind != "whole":
            offset = there if kind == "part" and 0 < there <= size else 0
            if not (kind == "part" and there == size):
                transport.put(local, part, offset)
            argv = ["sh", "-c", _FINISH, "finish", folder, name, session.board.python]
            return transport.run(argv, FINISH_SECONDS)
        return Completed(0, b"", b"")

    for _ in range(TRIES):
        finished = session.step(upload)
        if finished.returncode == 0:
            return
        if finished.returncode != 9:
            raise file_error(f"{session.board.name}: {part}", finished.returncode, finished.error_text)
    raise Corrupt(
        f"{session.board.name}: {local.name} arrived with wrong bytes {TRIES} times (E_UPLOAD_CORRUPT, sha256 {name})",
        "check the board's storage and network; `dmesg` on the board may say more",
    )


def _look(
    transport: Transport, state: str, blobs: Mapping[str, Path]
) -> tuple[dict[str, tuple[str, int]], int | None]:
    """What is there of each digest, as (`whole` | `part` | `none`, size), and the free bytes where `df` knows them. A
    file of another size than the local one lost its bytes in a power cut, and counts as none."""
    found = {name: ("none", 0) for name in blobs}
    free = None
    completed = transport.run(["sh", "-c", _LIST, "list", state, *blobs], COMMAND_SECONDS)
    _must(completed, state)
    for line in completed.text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in found and SIZE.fullmatch(words[2]):
            size = int(words[2])
            if words[1] != "whole" or size == blobs[words[0]].stat().st_size:
                found[words[0]] = (words[1], size)
        elif len(words) == 3 and words[0] == "free" and SIZE.fullmatch(words[1]):
            free = int(words[1]) * 1024
    return found, free


def _must(completed: Completed, where: str) -> None:
    if completed.returncode:
        raise file_error(where, completed.returncode, completed.stderr.decode("utf-8", "replace"))


def remove(session: Session, *paths: str) -> None:
    """Remove files or folders of the state folder (best effort: left-overs are harmless)."""
    checked = [check_remote(path) for path in paths]
    try:
        session.step(lambda transport: transport.run(["rm", "-rf", "--", *checked], COMMAND_SECONDS))
    except BoardError:
        pass
