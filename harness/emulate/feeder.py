"""Sensors of an emulated board: a process inside its mounts that writes what a recording says at each moment.

Files of `/sys` and `/etc` are written where a real board has them; answers of commands go to the folder that the
stand-ins read. The start of the recording is a point on CLOCK_MONOTONIC, which the board shares with this machine, so
that the integral of a replayed power is known to whoever knows that point. Another recording may be given to a running
board: the process looks for it many times a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from importlib.resources import files
from pathlib import Path

from edgesdk.errors import BoardError
from edgesdk.harness.emulate import state
from edgesdk.harness.emulate.namespaces import enter_mounts
from edgesdk.harness.replay import FILE_LIMIT, Frame, Recording, parse_recording, write_recording

ANSWERS = "usr/lib/edgesdk-answers"
RECORDING, ORIGIN = "recording.json", "recording-started"
_PLACES = {"trtexec": "usr/src/tensorrt/bin", "nvpmodel": "usr/sbin"}
_FAMILIES = {"raspberry-pi": ("vcgencmd",), "jetson": ("tegrastats", "nvpmodel", "jetson_clocks", "trtexec")}
_LOOK_SECONDS = 0.05
_PART = "/qemu/.feed"
_FEED_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


def standins(target: str) -> dict[str, bytes]:
    """The vendor commands of a target's family, by path on the board; each is a small shell script."""
    scripts = files("edgesdk.harness.emulate").joinpath("assets", "standins")
    head = scripts.joinpath("answer.sh").read_bytes()
    names = _FAMILIES.get(target.partition("/")[0], ())
    return {
        f"{_PLACES.get(name, 'usr/bin')}/{name}": head + scripts.joinpath(f"{name}.sh").read_bytes() for name in names
    }


def feed(name: str, recording: Recording) -> float:
    """Give a running light board another recording; it starts from its beginning now.

    Returns:
        its start on CLOCK_MONOTONIC, seconds.

    Raises:
        BoardError: no such board runs, or it does not take the recording.
    """
    document = state.read(name)
    if document is None or not state.alive(document):
        raise BoardError(f"{name} does not run", "edgesdk boards emulate TARGET")
    started = time.monotonic()
    write_recording(state.board_folder(name) / RECORDING, recording)
    while time.monotonic() < started + _FEED_SECONDS:
        origin = origin_of(name)
        if origin is not None and origin >= started:
            return origin
        time.sleep(_LOOK_SECONDS)
    raise BoardError(f"{name} did not take the recording within {_FEED_SECONDS:g} s", "stop it and start it again")


def origin_of(name: str) -> float | None:
    """When the recording of a board started, seconds of CLOCK_MONOTONIC; None where no sensors are fed."""
    try:
        return int((state.board_folder(name) / ORIGIN).read_text()) / 1e9
    except (OSError, ValueError):
        return None


def start_feeder(board: int, folder: Path) -> int:
    """Start the process that feeds the board whose process 1 is `board`; gives its pid. It dies with this process.

    It returns when the first frames are written, so that a board that answers has its sensors.

    Raises:
        OSError: the kernel refused, or the recording is not one.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            inbox = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            enter_mounts(board, "/board")
            _run(inbox, write)
        except BaseException as problem:
            with contextlib.suppress(OSError):
                os.write(write, str(problem).encode()[:1000])
        finally:
            os._exit(1)
    os.close(write)
    try:
        answer = os.read(read, 4096)
    finally:
        os.close(read)
    if answer != b"ready":
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise OSError(f"sensors: {answer.decode(errors='replace') or 'the feeder died'}")
    return child


def _run(inbox: int, ready: int) -> None:
    """Write frames for ever. `inbox` is the board's folder outside; `/` is the board's."""
    recording = _take(inbox)
    seen, origin, shown = _stamp(inbox), time.monotonic_ns(), dict[str, Frame]()
    _show(recording, 0.0, shown)
    _report(inbox, origin)
    os.write(ready, b"ready")
    os.close(ready)
    while True:
        if _stamp(inbox) != seen:
            seen, recording, origin, before = _stamp(inbox), _take(inbox), time.monotonic_ns(), shown
            shown = {}
            _show(recording, 0.0, shown)
            for path in before.keys() - shown.keys():
                _remove(path)
            _report(inbox, origin)
        _show(recording, (time.monotonic_ns() - origin) / 1e9, shown)
        time.sleep(_LOOK_SECONDS if _is_slow(recording) else _LOOK_SECONDS / 5)


def _stamp(inbox: int) -> tuple[int, int]:
    found = os.stat(RECORDING, dir_fd=inbox)
    return found.st_ino, found.st_mtime_ns


def _take(inbox: int) -> Recording:
    with open(os.open(RECORDING, os.O_RDONLY | os.O_CLOEXEC, dir_fd=inbox), "rb") as stream:
        return parse_recording(stream.read(FILE_LIMIT + 1), RECORDING)


def _report(inbox: int, origin: int) -> None:
    part = f".{ORIGIN}"
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=inbox), "w") as stream:
        stream.write(str(origin))
    os.replace(part, ORIGIN, src_dir_fd=inbox, dst_dir_fd=inbox)


def _is_slow(recording: Recording) -> bool:
    """Whether no source changes faster than a few times a second."""
    sources = (*recording.files.values(), *recording.commands.values())
    return all(len(frames) <= 4 * recording.period_s for frames in sources)


def _show(recording: Recording, at_s: float, shown: dict[str, Frame]) -> None:
    """Write the frames of this moment that are not written yet."""
    for path in recording.files:
        frame = recording.file(path, at_s)
        if frame is not None and shown.get(path) != frame:
            _write(path, frame, f"{frame.text}\n")
            shown[path] = frame
    for command in recording.commands:
        frame, path = recording.command(command, at_s), f"/{ANSWERS}/{command}"
        if frame is not None and shown.get(path) != frame:
            _write(path, frame, f"{frame.exit}\n{frame.text}\n")
            shown[path] = frame


def _write(path: str, frame: Frame, text: str) -> None:
    """Put a whole file in place at once. A plain file cannot fail with EIO: where the recording says that reading
    failed, a folder stands there, which fails too."""
    if frame.error is not None:
        _remove(path)
        os.makedirs(path, exist_ok=True)
        return
    if os.path.isdir(path):
        _remove(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(_PART, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(_PART, path)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        if os.path.isdir(path):
            os.rmdir(path)
        else:
            os.unlink(path)
