"""What can be measured on a board, where it is not what its target says, and boards that leave the farm file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgesdk.errors import ConfigError
from edgesdk.harness.abilities import abilities, differences, wrong_machine
from edgesdk.harness.board import Board
from edgesdk.harness.farm import add_board, load_farm
from edgesdk.harness.unlist import remove_board
from edgesdk.targets import load_target

PI = Board("pi", "raspberry-pi/5", host="192.0.2.17", user="edge")
RPI5 = load_target("rpi5")
FACTS: dict[str, Any] = {
    "machine": "aarch64", "cpus": 4, "cpu_part": "0xd0b", "cpu_features": ["asimd", "asimddp", "asimdhp"],
    "mem_total_bytes": 8_000 << 20, "governor": "ondemand", "memory_cgroup": True, "throttled": 0,
    "power": {"sensor": "pmic", "boundary": "pmic_rails", "reason": ""},
    "runtimes": {"onnxruntime": "1.20.1", "ai-edge-litert": None, "tflite-runtime": "2.14.0"},
}


def able(board: Board = PI, by: str = "root", **changes: Any) -> dict[str, tuple[bool, str]]:
    found = abilities(board, load_target(board.target), {**FACTS, **changes}, by)
    return {entry.what: (entry.possible, entry.how) for entry in found}


def test_a_whole_board_can_all_but_count() -> None:
    found = able()
    assert {what for what, (possible, _) in found.items() if not possible} == {
        "instructions", "runtime ai-edge-litert", "runtime neon-source",
    }
    assert found["energy"] == (True, "pmic, covers pmic_rails")


@pytest.mark.parametrize(
    ("changes", "what", "words"),
    [
        ({"power": {"sensor": None, "reason": "vcgencmd: not found"}}, "energy", "vcgencmd: not found"),
        ({"power": None}, "energy", "no power sensor"),
        ({"by": "none"}, "fixed clock", "sudo without a password"),
        ({"by": "none"}, "cold load", "sudo without a password"),
        ({"governor": None}, "fixed clock", "no cpufreq"),
        ({"memory_cgroup": False}, "memory of the control group", "cgroup_enable=memory"),
        ({"throttled": None}, "throttling", "neither vcgencmd"),
        ({"runtimes": {"onnxruntime": "1.2.0"}}, "runtime onnxruntime", "1.2.0, >=1.18 is wanted"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], what: str, words: str) -> None:
    possible, how = able(**changes)[what]
    assert not possible
    assert words in how


def test_an_emulated_board_counts_and_has_no_time() -> None:
    found = able(dataclasses.replace(PI, emulated=True, counting_plugin="/qemu/x.so"))
    assert found["instructions"][0] and not found["latency"][0] and not found["memory"][0]
    assert "`emulated`" in found["energy"][1]


def test_without_python_the_same_reasons() -> None:
    """What a board cannot do for being emulated does not depend on who measures there."""
    counting = dataclasses.replace(PI, emulated=True, counting_plugin="/qemu/x.so")
    usual, bare = able(counting), able(counting, agent="shell")
    for what in ("latency", "instructions", "memory"):
        assert bare[what] == usual[what], what
    assert bare["memory"] == (False, "qemu-user counts its own memory too; a full board (--vm) tells the truth")
    real = able(agent="shell")
    assert real["memory"] == (True, "VmHWM of each round") and real["latency"][0] and real["runtime neon"][0]
    assert {what for what, (possible, _) in real.items() if possible} == {"latency", "memory", "runtime neon"}
    for what in ("fixed clock", "energy", "runtime onnxruntime"):
        assert real[what] == (False, "needs Python on the board; python3 is not there")


def test_a_board_as_its_target_says() -> None:
    assert differences(PI, RPI5, FACTS) == []
    assert differences(PI, RPI5, {}) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"machine": "x86_64"}, "the board is x86_64"), ({"cpus": 2}, "2 cores, the target has 4"),
        ({"cpu_features": ["asimd"]}, "no CPU feature fp16, dotprod"), ({"cpu_part": "0xd08"}, "CPU part 0xd08"),
        ({"mem_total_bytes": 900 << 20}, "900 MB of RAM"), ({"mem_total_bytes": 40_000 << 20}, "40000 MB of RAM"),
    ],
)
def test_contradictions_are_told(changes: dict[str, Any], words: str) -> None:
    (text,) = differences(PI, RPI5, {**FACTS, **changes})
    assert words in text


def test_another_architecture_is_no_board_of_the_target() -> None:
    assert wrong_machine(RPI5, {"machine": "armv7l"}) == "the board is armv7l, target raspberry-pi/5 is aarch64"
    assert wrong_machine(RPI5, {"machine": "aarch64"}) is None


def test_removing_keeps_everything_else(tmp_path: Path) -> None:
    farm = tmp_path / "farm.toml"
    add_board(farm, "one", {"target": "rpi5", "host": "192.0.2.1", "tags": ["[boards.two]"]})
    farm.write_text(farm.read_text() + "# mine\n")
    before = farm.read_text()
    add_board(farm, "two", {"target": "rpi4", "host": "192.0.2.2"})
    remove_board(farm, "two")
    assert farm.read_text() == before
    remove_board(farm, "one")
    assert list(load_farm(farm)) == ["host"]


@pytest.mark.parametrize("name", ["three", "host", "../one", "one]", "a\nb"])
def test_removing_what_is_not_there(name: str, tmp_path: Path) -> None:
    farm = tmp_path / "farm.toml"
    add_board(farm, "one", {"target": "rpi5", "host": "192.0.2.1"})
    before = farm.read_text()
    with pytest.raises(ConfigError):
        remove_board(farm, name)
    assert farm.read_text() == before


def test_a_table_written_otherwise_is_left_alone(tmp_path: Path) -> None:
    farm = tmp_path / "farm.toml"
    farm.write_text('format = "edgesdk.farm"\nversion = 1\nboards = {one = {target = "rpi5", host = "192.0.2.1"}}\n')
    before = farm.read_text()
    with pytest.raises(ConfigError, match=r"no table \[boards.one\]"):
        remove_board(farm, "one")
    assert farm.read_text() == before
