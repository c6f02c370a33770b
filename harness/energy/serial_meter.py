"""Serial meters: anything that writes lines with watts in them (`USB: 5.062V, 0.1146A,  0.580W`), or answers a query
with one number (SCPI: query `MEAS:POW? CH1`, answer `1.234`).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import stat
import termios
import time

from edgesdk.errors import BoardError, ConfigError
from edgesdk.harness.text import plain

MOST_WATTS = 10_000.0
LINE_SECONDS = 2.0
LONGEST_LINE = 1024
_WATTS = re.compile(r"(?<![0-9.])(-?[0-9]{1,5}(?:\.[0-9]{1,9})?)\s*W\b")
_NUMBER = re.compile(r"[-+]?[0-9]{1,5}(?:\.[0-9]{1,9})?(?:[eE][-+]?[0-9]{1,2})?")


def parse_line(line: str, bare: bool) -> float | None:
    """Watts in a line: a number followed by W, or with `bare` a line that is one number; None for anything else."""
    found = _WATTS.search(line[:LONGEST_LINE])
    text = found[1] if found else line.strip() if bare and _NUMBER.fullmatch(line.strip()) else None
    if text is None:
        return None
    value = float(text)
    return value if abs(value) < MOST_WATTS else None


class SerialMeter:
    """A `Meter` on a serial device.

    Args:
        device: path below /dev.
        baud: one of the speeds that termios knows.
        query: sent with a line end before each reading; None where the meter writes by itself. Its period is then
            what three lines take.

    Raises:
        ConfigError: a device that is not below /dev, an unknown speed, a query that is not one printable line.
    """

    name = "serial"
    period_s = 0.5
    gain = (0.01, 0.0)

    def __init__(self, device: str, baud: str, query: str | None, boundary: str) -> None:
        if not device.startswith("/dev/") or ".." in device or not device.isprintable():
            raise ConfigError(f"meter: device {plain(device, 200)!r} is not below /dev", "for example /dev/ttyUSB0")
        speed = getattr(termios, f"B{baud}", None) if baud.isascii() and baud.isdigit() and baud != "0" else None
        if speed is None:
            raise ConfigError(f"meter: unknown baud {plain(baud, 40)!r}", "9600, 115200, …")
        if query is not None and not (query.isascii() and query.isprintable() and 0 < len(query) <= 80):
            raise ConfigError(f"meter: query {plain(query, 80)!r} is not one printable line")
        self.device = device
        self.speed = int(speed)
        self.query = query
        self.boundary = boundary
        self.paced = query is None
        self.descriptor = -1
        self.pending = b""

    def open(self) -> None:
        try:
            self.descriptor = os.open(self.device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            if not stat.S_ISCHR(os.fstat(self.descriptor).st_mode):
                raise OSError(0, "not a device")
            settings = termios.tcgetattr(self.descriptor)
            settings[0] = settings[1] = settings[3] = 0  # raw: no translation, no echo, no signals
            settings[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
            settings[4] = settings[5] = self.speed
            termios.tcsetattr(self.descriptor, termios.TCSANOW, settings)
        except (OSError, termios.error) as problem:
            self.close()
            hint = "is it plugged in, and may you read it (group dialout)?"
            raise BoardError(f"meter {self.device}: {plain(str(problem), 200)}", hint) from problem
        self.pending = b""
        times = []
        for _ in range(4 if self.paced else 1):
            if self.read() is None:
                self.close()
                raise BoardError(f"meter {self.device}: no line with watts within {LINE_SECONDS:g} s", "baud? query?")
            times.append(time.monotonic())
        if self.paced:
            # The first line may have waited in a buffer.
            self.period_s = min(LINE_SECONDS, max(0.02, (times[-1] - times[1]) / 2))

    def read(self) -> float | None:
        try:
            if self.query is not None:
                os.write(self.descriptor, self.query.encode() + b"\n")
            deadline = time.monotonic() + LINE_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                line, newline, rest = self.pending.partition(b"\n")
                if newline:
                    self.pending = rest
                    watts = parse_line(line.decode("utf-8", "replace"), self.query is not None)
                    if watts is not None:
                        return watts
                    continue
                if not select.select([self.descriptor], [], [], left)[0]:
                    return None
                data = os.read(self.descriptor, 4096)
                if not data:
                    return None
                self.pending = (self.pending + data)[-4 * LONGEST_LINE :]
        except (OSError, ValueError):
            return None
        return None

    def close(self) -> None:
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self.descriptor)
        self.descriptor = -1
