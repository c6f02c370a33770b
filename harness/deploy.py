"""Content-addressed deployment: a file on the board is named by its SHA-256 and never half there.

Bytes go to `NAME.part`, are checked on the board, and get their name by a rename. A cut upload goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgesdk.errors import BoardError, Corrupt, DiskFull
from edgesdk.harness.session import Session
from edgesdk.harness.transport import Completed, Transport, check_remote, file_error

TRIES = 3
SPARE_BYTES = 64 << 20
COMMAND_SECONDS = 60.0
FINISH_SECONDS = 600.0

# $1 the blobs folder, then digests; prints `DIGEST whole|part SIZE` or `DIGEST none 0`.
_LIST = """
cd "$1" || exit 1; shift
for name; do
  if [ -f "$name" ]; then echo "$name whole $(wc -c < "$name")"
  elif [ -f "$name.part" ]; then echo "$name part $(wc -c < "$name.part")"
  else echo "$name none 0"; fi
done
"""
# $1 the blobs folder, $2 the digest, $3 the interpreter; exit 9 for wrong bytes, which are removed.
_FINISH = """
cd "$1" || exit 1
if command -v sha256sum >/dev/null; then sum=$(sha256sum < "$2.part") || exit 1
else
  code='import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
  sum=$("$3" -c "$code" < "$2.part") || exit 1
fi
if [ "${sum%% *}" = "$2" ]; then mv -f "$2.part" "$2"; else rm -f "$2.part"; exit 9; fi
"""

Progress = Callable[[str, int, int], None]


def deploy(session: Session, blobs: Mapping[str, Path], progress: Progress = lambda text, done, total: None) -> int:
    """Put files on the board; returns the number of bytes that had to be sent.

    Args:
        blobs: SHA-256 → local file.
        progress: called with ("deploy", bytes done, bytes in all).

    Raises:
        DiskFull, ReadOnly: the board's disk. Corrupt: wrong bytes three times. BoardError and what `Session` raises.
    """
    state = check_remote(session.board.state)
    folder = f"{state}/blobs"
    argv = ["mkdir", "-p", "-m", "0700", state, folder, f"{state}/jobs", f"{state}/artifacts"]
    _must(session.step(lambda transport: transport.run(argv, COMMAND_SECONDS)), f"{session.board.name}: {state}")
    present = _present(session, folder, list(blobs))
    missing = [name for name in blobs if present[name][0] != "whole"]
    total = sum(blobs[name].stat().st_size for name in missing)
    if missing:
        _check_space(session, state, total)
    sent = 0
    for name in missing:
        progress("deploy", sent, total)
        _send(session, folder, name, blobs[name])
        sent += blobs[name].stat().st_size
    progress("deploy", total, total)
    return total


def _send(session: Session, folder: str, name: str, local: Path) -> None:
    size = local.stat().st_size
    part = f"{folder}/{name}.part"

    def upload(transport: Transport) -> Completed:
        # Inside the step: after a cut connection, what did arrive is looked at again.
        kind, there = _present_now(transport, folder, [name])[name]
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
        f"{session.board.name}: {local.name} arrived with wrong bytes {TRIES} times (sha256 {name})",
        "check the board's storage and network; `dmesg` on the board may say more",
    )


def _present(session: Session, folder: str, names: Sequence[str]) -> dict[str, tuple[str, int]]:
    return session.step(lambda transport: _present_now(transport, folder, names))


def _present_now(transport: Transport, folder: str, names: Sequence[str]) -> dict[str, tuple[str, int]]:
    found = {name: ("none", 0) for name in names}
    completed = transport.run(["sh", "-c", _LIST, "list", folder, *names], COMMAND_SECONDS)
    _must(completed, folder)
    for line in completed.text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in found and words[2].isascii() and words[2].isdigit():
            found[words[0]] = (words[1], int(words[2]))
    return found


def _check_space(session: Session, state: str, needed: int) -> None:
    """Twice the bytes (a file may be copied on the board) and some room for results."""
    completed = session.step(lambda transport: transport.run(["df", "-Pk", state], COMMAND_SECONDS))
    words = completed.text.splitlines()[-1].split() if completed.returncode == 0 and completed.text.strip() else []
    if len(words) < 4 or not words[3].isdigit():
        return  # no `df` there: a full disk is then found while writing
    free = int(words[3]) * 1024
    if free < 2 * needed + SPARE_BYTES:
        raise DiskFull(
            f"{session.board.name}: {state} has {free >> 20} MiB free, {(2 * needed + SPARE_BYTES) >> 20} MiB needed",
            f"free space on the board; everything in ~/{state} may be removed while no job runs",
        )


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
