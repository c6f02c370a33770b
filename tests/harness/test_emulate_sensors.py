"""Sensors of emulated boards over real SSH: fed files, stand-ins of vendor commands, a recording that changes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesdk.errors import BoardError
from edgesdk.harness import emulate
from edgesdk.harness.board import Board
from edgesdk.harness.emulate import state
from edgesdk.harness.emulate.feeder import origin_of, standins
from edgesdk.harness.record import record
from edgesdk.harness.replay import Frame, Recording, shipped
from edgesdk.harness.session import Session
from edgesdk.targets import load_target
from edgesdk.testing.needs import need

JETSON = load_target("jetson")
CHIP = "/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    """A Jetson with the sensors of the shipped recording."""
    need(not emulate.missing(), "; ".join(emulate.missing()))
    own = JETSON.model_copy(update={"aliases": ("jetson-sensors",)})
    with emulate.emulated(own, recording=shipped("jetson/orin-nano")) as running:
        yield running


def said(board: Board, command: str) -> tuple[int, str]:
    """Exit code and both streams of a shell command on the board."""
    with Session(board) as session:
        done = session.step(lambda to: to.run(["sh", "-c", f"exec 2>&1; {command}"], 120))
    return done.returncode, done.text


def one(*frames: Frame, period_s: float = 10) -> Recording:
    """A recording of one rail."""
    files = {f"{CHIP}/in1_input": frames}
    return Recording(target="jetson/orin-nano", origin="made", period_s=period_s, files=files)


def test_rails_and_commands_say_what_was_recorded(board: Board) -> None:
    rail = f"{CHIP}/in1_label {CHIP}/in1_input {CHIP}/curr1_input"
    code, text = said(board, f"cat {rail}; nvpmodel -q; tegrastats | head -1")
    assert code == 0
    assert text.split("\n")[:5] == ["VDD_IN", "4984", "1168", "NV Power Mode: MAXN_SUPER", "2"]
    assert "VDD_IN 5832mW/5852mW" in text


def test_power_mode_and_clocks_keep_what_was_set(board: Board) -> None:
    script = (
        "nvpmodel -m 0 && nvpmodel -q; nvpmodel -m 9; echo $?; jetson_clocks --store /tmp/c && jetson_clocks && "
        "jetson_clocks --show | grep -c 'MinFreq=1728000 MaxFreq=1728000'; jetson_clocks --restore /tmp/c && "
        "jetson_clocks --show | grep -c 'MinFreq=729600'; nvpmodel -m 2"
    )
    wanted = ["NV Power Mode: 15W", "0", "NVPM ERROR: invalid mode 9", "1", "6", "6"]
    assert said(board, script)[1].split("\n")[:6] == wanted


def test_trtexec_wants_a_model(board: Board) -> None:
    program = "/usr/src/tensorrt/bin/trtexec"
    assert said(board, program)[0] == 1
    code, text = said(board, f"{program} --onnx=/etc/hostname --saveEngine=/tmp/engine; cmp /tmp/engine /etc/hostname")
    assert code == 0 and "Latency: min = 0.94249 ms" in text
    code, text = said(board, f"{program} --onnx=/etc/hostname --what")
    assert code == 1 and "Unknown option: --what" in text


def test_another_recording_takes_over(board: Board) -> None:
    """What it does not name vanishes, errors fail, and its start is known; then the first one comes back."""
    before = time.monotonic()
    changed = one(Frame(at_s=0, text="5")).model_copy(update={"files": {
        f"{CHIP}/in1_input": (Frame(at_s=0, text="5"),), f"{CHIP}/in2_input": (Frame(at_s=0, error="EIO"),),
    }})
    try:
        origin = emulate.feed(board.name, changed)
        assert before <= origin <= time.monotonic()
        assert origin_of(board.name) == origin
        assert said(board, f"cat {CHIP}/in1_input; cat {CHIP}/in2_input; ls {CHIP}")[1].split("\n") == [
            "5", f"cat: {CHIP}/in2_input: Is a directory", "in1_input", "in2_input", "",
        ]
    finally:
        whole = shipped("jetson/orin-nano")
        assert whole is not None
        emulate.feed(board.name, whole)
    assert said(board, f"cat {CHIP}/in2_input")[1] == "4984\n"


def test_frames_change_on_time(board: Board) -> None:
    """A file that changes after some seconds: before that it says one thing, after that the other."""
    frames = (Frame(at_s=0, text="1"), Frame(at_s=8, text="2"))
    origin = emulate.feed(board.name, one(*frames, period_s=600))
    with Session(board) as session:
        text = "1"
        while text == "1":
            asked = time.monotonic() - origin
            text = session.step(lambda to: to.run(["cat", f"{CHIP}/in1_input"], 60)).text.strip()
            assert text == "1" or time.monotonic() - origin >= 8
            assert text == "2" or asked < 9
    assert text == "2"


def test_a_board_can_be_recorded_and_replayed(board: Board) -> None:
    whole = shipped("jetson/orin-nano")
    assert whole is not None
    emulate.feed(board.name, whole)
    found = record(board, 0)
    assert found.origin == "recorded" and found.source == "an emulated board"
    assert found.file(f"{CHIP}/in1_label", 0) == Frame(at_s=0, text="VDD_IN")
    clocks = found.command("jetson_clocks --show", 0)
    assert clocks is not None and "SOC family:tegra234" in clocks.text


def test_hostile_links_on_the_board_reach_nothing_outside(board: Board, tmp_path: Path) -> None:
    """A program on the board may put a link where a sensor is: what is written stays on the board."""
    victim = tmp_path / "in1_input"
    victim.write_text("mine")
    assert said(board, f"rm -r {CHIP}; ln -s {tmp_path} {CHIP}; mkdir -p {tmp_path}")[0] == 0
    emulate.feed(board.name, one(Frame(at_s=0, text="666")))
    assert victim.read_text() == "mine"


def test_by_default_no_board_has_power() -> None:
    need(not emulate.missing(), "; ".join(emulate.missing()))
    own = load_target("rpi5").model_copy(update={"aliases": ("rpi5-sensors",)})
    with emulate.emulated(own) as pi:
        assert said(pi, "vcgencmd get_throttled; vcgencmd pmic_read_adc")[1].split("\n")[:2] == [
            "throttled=0x0", 'error=1 error_msg="Command not registered"',
        ]


def test_only_running_boards_are_fed() -> None:
    with pytest.raises(BoardError, match="does not run"):
        emulate.feed("rpi4-nowhere-emulated", one(Frame(at_s=0, text="1")))


def test_nothing_stays(board: Board) -> None:
    """The feeder ends with its board."""
    need(os.geteuid() == 0, "not root")
    own = JETSON.model_copy(update={"aliases": ("jetson-gone",)})
    with emulate.emulated(own) as running:
        document = state.read(running.name)
        assert document is not None
        children = Path(f"/proc/{document['pid']}/task/{document['pid']}/children").read_text().split()
        assert len(children) == 2  # sshd and the feeder
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_every_family_has_its_commands() -> None:
    assert set(standins("raspberry-pi/5")) == {"usr/bin/vcgencmd"}
    assert len(standins("jetson/orin-nano")) == 4
    assert standins("host") == {}
    assert all(script.startswith(b"#!/bin/sh\n") for script in standins("jetson/orin-nano").values())
