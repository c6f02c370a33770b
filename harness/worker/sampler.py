"""The sampler: a process of its own, on another core than the inferences, that reads a power sensor.

A file of samples is lines of JSON: a header {"format": "edgesdk.power", ...} starts a segment, [nanoseconds, values]
are its samples on CLOCK_MONOTONIC_RAW, the clock of the timed windows. What was read waits in memory and is written
when the segment ends, so that flash cards and page caches are left alone while an inference is timed.
"""

import json
import os
import select
import signal
import time
import traceback
from typing import Any

from edgesdk.harness.worker import readers, sensors
from edgesdk.harness.worker.timing import now_ns

FORMAT, VERSION = "edgesdk.power", 1
CLOCK = "CLOCK_MONOTONIC_RAW"
MOST_SAMPLES = 200000  # of one segment
NICE = -10  # where that is allowed
START_SECONDS = 10.0
STOP_SECONDS = 10.0


class Sampler:
    """Samples one segment into the end of a file, from `start` to `stop`; needs nothing from who started it but that
    it lives: the process ends when its pipe closes."""

    def __init__(self, path: str, core: "int | None" = None, least_period_s: float = 0.0) -> None:
        self.path = path
        self.core = core
        self.least_period_s = least_period_s
        self.pid = 0
        self.writer = -1

    def start(self) -> str:
        """Start; returns "" when the first sample was read, else why there is none."""
        reader, self.writer = os.pipe()
        answer, answering = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.writer)
            os.close(answer)
            _main(self.path, self.core, self.least_period_s, reader, answering)
        os.close(reader)
        os.close(answering)
        word = b""
        if select.select([answer], [], [], START_SECONDS)[0]:
            word = os.read(answer, 1024)
        os.close(answer)
        if word == b"ready":
            return ""
        self.stop()
        return word.decode("utf-8", "replace") or "the power sampler did not start"

    def stop(self) -> None:
        """End the segment; its samples are in the file when this returns."""
        if self.writer < 0:
            return
        os.close(self.writer)
        self.writer = -1
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            pid, _ = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _main(path: str, core: "int | None", least_period_s: float, reader: int, answering: int) -> None:
    """The forked process; never returns."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _pin(core)
        sensor, reason = sensors.discover()
        if sensor is None:
            os.write(answering, reason.encode()[:1024])
        else:
            sensor.period_s = max(sensor.period_s, least_period_s)
            _sample(sensor, path, reader, answering)
            code = 0
    except BaseException as problem:
        traceback.print_exc()
        try:
            os.write(answering, f"the power sampler failed: {problem!r}".encode()[:1024])
        except OSError:
            pass
    finally:
        os._exit(code)


def _pin(core: "int | None") -> None:
    """Go to a core, and before other programs there: who sleeps nearly all the time costs little by that."""
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except (OSError, AttributeError):
        pass


def header_of(sensor: "readers.Sensor") -> "dict[str, Any]":
    """The line that starts a segment; `replayed` where the kernel's files are not the kernel's."""
    replayed = bool(os.environ.get(sensors.SYSFS))
    return dict(sensor.describe(), format=FORMAT, version=VERSION, clock=CLOCK, replayed=replayed)


def _sample(sensor: "readers.Sensor", path: str, reader: int, answering: int) -> None:
    lines = []
    header = header_of(sensor)
    lines.append(json.dumps(header, sort_keys=True))
    count = 0
    try:
        due = time.monotonic()
        while count < MOST_SAMPLES:
            before = now_ns()
            values = sensor.read()
            after = now_ns()
            if sensor.rails != header["rails"]:
                header = header_of(sensor)
                lines.append(json.dumps(header, sort_keys=True))
            # A paced sensor is waited for: its value is as old as its arrival.
            lines.append(json.dumps([after if sensor.paced else (before + after) // 2] + values))
            count += 1
            if count == 1:
                os.write(answering, b"ready")
                os.close(answering)
            now = time.monotonic()
            due = max(due + sensor.period_s, now - sensor.period_s)
            pause = 0.0 if sensor.paced else max(0.0, due - now)
            if select.select([reader], [], [], pause)[0]:
                break
    finally:
        sensor.close()
        with open(path, "a") as stream:
            stream.write("\n".join(lines) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
