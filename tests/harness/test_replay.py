"""Recordings: what they hold at a moment, what is refused, and how a board's words become one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import BoardError, ConfigError
from edgesdk.harness import record
from edgesdk.harness.board import Board
from edgesdk.harness.replay import Frame, Recording, parse_recording, read_recording, shipped, write_recording
from edgesdk.harness.transport import Completed
from edgesdk.harness.worker import rails

PATH = "/sys/class/hwmon/hwmon1/in1_input"


def made(**changes: Any) -> Recording:
    """A recording whose file says 1 at first and 2 from the third second on."""
    frames = (Frame(at_s=0, text="1"), Frame(at_s=3, text="2"))
    values: dict[str, Any] = {"target": "x", "origin": "made", "period_s": 4, "files": {PATH: frames}, **changes}
    return Recording.model_validate(values)


@pytest.mark.parametrize(("at_s", "text"), [(0, "1"), (2.99, "1"), (3, "2"), (3.99, "2"), (4, "1"), (7.5, "2")])
def test_frames_hold_until_the_next_and_repeat(at_s: float, text: str) -> None:
    frame = made().file(PATH, at_s)
    assert frame is not None and frame.text == text


def test_what_is_not_recorded_is_nothing() -> None:
    assert made().file("/sys/other/x", 0) is None
    assert made().command("vcgencmd get_throttled", 0) is None


def test_round_trip(tmp_path: Path) -> None:
    write_recording(tmp_path / "r.json", made())
    assert read_recording(tmp_path / "r.json") == made()


@pytest.mark.parametrize("path", ["/proc/x", "/sys/../etc/shadow", "sys/x", "/etc/a b", "/sys/x\ny", "/sys", "/dev/x"])
def test_paths_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a path below"):
        made(files={path: (Frame(at_s=0),)})


@pytest.mark.parametrize("command", ["rm -rf", "vcgencmd ../x", "vcgencmd a;b", "", "vcgencmd /etc/x"])
def test_other_commands_are_refused(command: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        made(commands={command: (Frame(at_s=0),)})


@pytest.mark.parametrize(
    "change",
    [
        {"files": {PATH: (Frame(at_s=1), Frame(at_s=1))}}, {"files": {PATH: (Frame(at_s=9),)}},
        {"files": {PATH: (Frame(at_s=0, text="\x1b[2J"),)}}, {"target": "x\x1b"}, {"period_s": 0},
        {"files": {PATH: ()}}, {"extra": 1}, {"version": 2}, {"facts": {"a": "\u202e"}},
    ],
)
def test_what_no_recording_holds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="."):
        made(**change)


@given(st.binary(max_size=200))
def test_junk_raises_only_config_errors(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_recording(data, "junk")


@pytest.mark.parametrize("name", ["none.json", "."])
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recording"):
        read_recording(tmp_path / name)


def test_shipped_recordings_are_what_the_parsers_know() -> None:
    pi, jetson = shipped("raspberry-pi/5"), shipped("jetson/orin-nano")
    assert pi is not None and jetson is not None and shipped("host") is None
    said = pi.command("vcgencmd pmic_read_adc", 0)
    assert said is not None
    assert sum(rails.pmic_powers(said.text).values()) == pytest.approx(7.239819, abs=1e-6)
    line = jetson.command("tegrastats", 0)
    assert line is not None
    parsed = rails.parse_tegrastats(line.text)
    assert parsed is not None and parsed["rails"]["VDD_IN"] == 5832


def test_without_power_nothing_tells_watts() -> None:
    for name in ("raspberry-pi/4", "raspberry-pi/5", "jetson/orin-nano"):
        whole = shipped(name)
        assert whole is not None
        rest = whole.without_power()
        assert not any("ina3221" in path for path in rest.files)
        assert "vcgencmd pmic_read_adc" not in rest.commands
        line = rest.command("tegrastats", 0)
        assert line is None or "mW" not in line.text
        assert (rest.command("vcgencmd get_throttled", 0) is None) == (name == "jetson/orin-nano")


class Said:
    """A transport whose board answers with fixed blocks, after the noise of a login shell."""

    def __init__(self, blocks: dict[str, str]) -> None:
        self.blocks = blocks

    def run(self, argv: list[str], deadline_s: float) -> Completed:
        mark, *words = argv[2].splitlines()[0].removeprefix("set -- ").split(" ")
        text = "Welcome!\n" + "".join(f"{mark} F {name}\n{said}\n".replace("MARK", mark)
                                      for name, said in self.blocks.items())
        return Completed(0, text.encode("utf-8", "surrogatepass"), b"")


def recorded(monkeypatch: pytest.MonkeyPatch, blocks: dict[str, str]) -> Recording:
    class Session:
        def __init__(self, board: Board) -> None: ...
        def __enter__(self) -> Session:
            return self
        def __exit__(self, *_: object) -> None: ...
        def step(self, action: Any) -> Any:
            return action(Said(blocks))

    monkeypatch.setattr(record, "Session", Session)
    return record.record(Board("pi", "raspberry-pi/5", host="127.0.0.1"), 0)


def test_a_recording_is_bounded_and_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded(monkeypatch, {
        PATH: "5\n", "/sys/class/hwmon/hwmon2/in1_input": "7\nMARK E\n", "/etc/shadow\x1b": "x", "/home/x": "secret",
        "/sys/../etc/x": "secret", "vcgencmd get_throttled": "throttled=0x0\x1b[2J" + "A" * 100_000, "rm -rf": "no",
    })
    assert set(found.files) == {PATH, "/sys/class/hwmon/hwmon2/in1_input"}
    assert found.files[PATH][0].text == "5"
    assert found.files["/sys/class/hwmon/hwmon2/in1_input"][0].error == "EIO"
    assert set(found.commands) == {"vcgencmd get_throttled"}
    assert "\x1b" not in json.dumps(found.model_dump(mode="json"), ensure_ascii=False)
    assert len(found.commands["vcgencmd get_throttled"][0].text) < 20_000


def test_a_board_without_sensors_gives_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BoardError, match="no sensor file"):
        recorded(monkeypatch, {})
