"""Record a board: what its sensors and vendor commands say over a few seconds, for `replay.py` to say again.

Only files and commands of the lists below are read, nothing is set, and nothing needs Python on the board. Texts are
bounded and made printable; the serial number is no part of a recording.
"""

from __future__ import annotations

import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from edgesdk.errors import BoardError
from edgesdk.harness.board import Board
from edgesdk.harness.replay import FRAMES_LIMIT, SOURCES_LIMIT, TEXT_LIMIT, Frame, Recording, printable
from edgesdk.harness.session import Session
from edgesdk.harness.text import plain

FILES = (
    "/etc/nv_tegra_release", "/sys/class/thermal/thermal_zone*/type", "/sys/class/thermal/thermal_zone*/temp",
    "/sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*/name", "/sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*/in*_label",
    "/sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*/in*_input", "/sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*/curr*_input",
    "/sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*/power*_input", "/sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*/shunt*_resistor",
    "/sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*", "/sys/bus/i2c/drivers/ina3221x/*/iio:device*/in_*_input",
    "/sys/class/hwmon/hwmon*/name", "/sys/class/hwmon/hwmon*/in0_lcrit_alarm", "/sys/class/hwmon/hwmon*/fan1_input",
    "/sys/class/hwmon/hwmon*/oc*_event_cnt", "/sys/class/devfreq/*/cur_freq",
    "/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq", "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
)
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("vcgencmd", "get_throttled"), ("vcgencmd", "measure_temp"), ("vcgencmd", "measure_clock", "arm"),
    ("vcgencmd", "measure_volts", "core"), ("vcgencmd", "pmic_read_adc"), ("nvpmodel", "-q"),
    ("nvpmodel", "-p", "--verbose"), ("jetson_clocks", "--show"),
)
CHANGING = ("get_throttled", "measure_temp", "measure_clock", "pmic_read_adc")
TEGRASTATS = "tegrastats"
_LOOK_SECONDS = 20.0
_PATH = re.compile(r"/(sys|etc)(/[A-Za-z0-9_+@,:.-]+)+")
# Files: a mark, `F`, the path; then the text; where reading failed a line `E` after the mark. The mark is random, so
# that no file can pretend to be another one.
_READ = """mark=$1; shift
for path; do
    [ -f "$path" ] || continue
    printf '%s F %s\\n' "$mark" "$path"
    head -c 4096 "$path" 2>/dev/null || printf '\\n%s E\\n' "$mark"
    printf '\\n'
done"""
_RUN = """mark=$1; shift; limit=$1; shift
for command; do
    command -v "${command%% *}" > /dev/null 2>&1 || continue
    printf '%s F %s\\n' "$mark" "$command"
    timeout "$limit" $command 2>&1 < /dev/null | head -c 16000
    printf '\\n'
done"""


def record(
    board: Board, seconds: float = 10.0, progress: Callable[[str, int, int], None] = lambda step, done, total: None
) -> Recording:
    """Record a board for `seconds`, as often as the connection allows (a few times a second).

    Raises:
        BoardError: the board cannot be reached, or has nothing to record. What `Session` raises.
    """
    with Session(board) as session:
        progress("record", 0, 1)
        files = {path: [Frame(at_s=0, text=text, error=error)] for path, text, error in _files(session)}
        commands = {name: [Frame(at_s=0, text=text)] for name, text in _commands(session, COMMANDS, 5)}
        if not files and not commands:
            raise BoardError(f"{board.name}: no sensor file and no vendor command there", "nothing to record")
        changing = tuple(c for c in COMMANDS if " ".join(c) in commands and c[1] in CHANGING)
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            progress("record", min(int(passed), int(seconds) - 1), int(seconds) or 1)
            for path, text, error in _files(session, list(files)):
                _note(files[path], began, text, error) if path in files else None
            for name, text in _commands(session, changing, 5):
                _note(commands[name], began, text, None) if name in commands else None
        period = max(time.monotonic() - began, 0.1)
        lines = _tegrastats(session)
        if lines:
            step = period / len(lines)
            commands[TEGRASTATS] = [Frame(at_s=round(step * n, 3), text=line) for n, line in enumerate(lines)]
    return Recording(
        target=board.target, origin="recorded", source="" if not board.emulated else "an emulated board",
        recorded=datetime.now(UTC).isoformat(timespec="seconds"), period_s=round(period + 0.001, 3),
        files={path: tuple(frames) for path, frames in files.items()},
        commands={name: tuple(frames) for name, frames in commands.items()},
    )


def _note(frames: list[Frame], began: float, text: str, error: str | None) -> None:
    """Add a frame where something changed."""
    last = frames[-1]
    at_s = round(time.monotonic() - began, 3)
    if (last.text, last.error) != (text, error) and at_s > last.at_s and len(frames) < FRAMES_LIMIT // 10:
        frames.append(Frame(at_s=at_s, text=text, error=error))


def _files(session: Session, paths: Sequence[str] = ()) -> list[tuple[str, str, str | None]]:
    """Path, text and error of the files that there are; without paths those that the patterns match."""
    mark = secrets.token_hex(16)
    wanted = " ".join(shlex.quote(path) for path in paths) or " ".join(FILES)
    script = f"set -- {mark} {wanted}\n{_READ}"
    found = []
    for path, text in _blocks(_output(session, script), mark):
        if _PATH.fullmatch(path) is None or "/." in path:
            continue
        content, failed, _ = text.partition(f"\n{mark} E\n")
        found.append((path, _tidy(content), "EIO" if failed else None))
    return found[:SOURCES_LIMIT]


def _commands(session: Session, commands: Sequence[Sequence[str]], limit_s: int) -> list[tuple[str, str]]:
    mark = secrets.token_hex(16)
    words = " ".join(shlex.quote(" ".join(command)) for command in commands)
    names = {" ".join(command) for command in commands}
    if not names:
        return []
    blocks = _blocks(_output(session, f"set -- {mark} {limit_s} {words}\n{_RUN}"), mark)
    return [(name, _tidy(text)) for name, text in blocks if name in names]


def _tegrastats(session: Session) -> list[str]:
    """Lines of two seconds of tegrastats."""
    said = dict(_commands(session, ((TEGRASTATS, "--interval", "200"),), 2)).get(f"{TEGRASTATS} --interval 200", "")
    return [line for line in said.split("\n") if line.strip()][:50]


def _output(session: Session, script: str) -> str:
    return session.step(lambda to: to.run(["sh", "-c", script], _LOOK_SECONDS * 3)).text


def _blocks(text: str, mark: str) -> list[tuple[str, str]]:
    """Name and text of each block; what comes before the first mark is the noise of a login shell."""
    blocks = []
    for part in text.split(f"{mark} F ")[1:]:
        name, _, content = part.partition("\n")
        blocks.append((name.strip(), content))
    return blocks


def _tidy(text: str) -> str:
    """At most `TEXT_LIMIT` printable characters; lines and tabs stay, NULs at the end go."""
    lines = text.replace("\0", "").replace("\r", "").strip("\n")[: TEXT_LIMIT // 8].split("\n")
    tidy = "\n".join("\t".join(plain(word) for word in line.split("\t")) for line in lines)[:TEXT_LIMIT]
    assert printable(tidy)
    return tidy
