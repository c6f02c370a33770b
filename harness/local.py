"""This machine as a board: commands as subprocesses in a session of their own."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from edgesdk.errors import Deadline
from edgesdk.harness.transport import CHUNK, Sink, StreamTransport


class LocalTransport(StreamTransport):
    """See `edgesdk.harness.transport.Transport`."""

    def __init__(self, where: str = "host") -> None:
        self.where = where

    def stream(
        self, argv: Sequence[str], deadline_s: float, source: BinaryIO, stdout: Sink, stderr: Sink,
        env: Mapping[str, str], silence_s: float | None = None,
    ) -> int:
        end = time.monotonic() + deadline_s
        try:
            process = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path.home(),
                env={**os.environ, "LC_ALL": "C", **env}, start_new_session=True,
            )
        except FileNotFoundError:
            stderr.feed(f"{argv[0]}: not found\n".encode())
            return 127
        except PermissionError:
            stderr.feed(f"{argv[0]}: Permission denied\n".encode())
            return 126
        try:
            if _pump(process, source, {"stdout": stdout, "stderr": stderr}, end):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(max(0.0, end - time.monotonic()))
            raise Deadline(f"{self.where}: {argv[0]} did not end within {deadline_s:g} s, killed")
        finally:
            # The whole group: at the deadline, and also when a sink refuses what the command writes.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def close(self) -> None:
        """Nothing is held open."""


def _pump(process: subprocess.Popen[bytes], source: BinaryIO, sinks: Mapping[str, Sink], end: float) -> bool:
    """Move all streams until both outputs are closed; False when time is over."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            selector.register(pipe, selectors.EVENT_READ, name)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")
        outputs = 2
        while outputs:
            left = end - time.monotonic()
            if left <= 0:
                return False
            for key, _ in selector.select(left):
                if key.data == "stdin":
                    pending = pending or source.read(CHUNK)
                    try:
                        pending = pending[os.write(key.fd, pending):] if pending else b""
                    except BrokenPipeError:
                        pending = b""
                        source.seek(0, os.SEEK_END)
                    except BlockingIOError:
                        continue
                    if not pending and not (pending := source.read(CHUNK)):
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                data = os.read(key.fd, CHUNK)
                if data:
                    sinks[key.data].feed(data)
                else:
                    selector.unregister(key.fileobj)
                    outputs -= 1
    return True
