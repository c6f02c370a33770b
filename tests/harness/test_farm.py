"""farm.toml: what is read, what is refused, and that adding a board keeps the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesdk.errors import ConfigError, Identity
from edgesdk.harness.board import Board
from edgesdk.harness.energy import unmeasured_energy
from edgesdk.harness.facts import check_identity, serial_of
from edgesdk.harness.farm import add_board, find_board, load_farm, pin_serial
from edgesdk.harness.worker.facts import is_emulated
from edgesdk.targets.target import load_target

FARM = """format = "edgesdk.farm"
version = 1
# the desk
[boards.pi5-desk]
target = "raspberry-pi/5"
host = "192.0.2.17"
user = "edge"
key = "keys/edge"
known_hosts = "known_hosts"
serial = "10000000a1b2c3d4"
meter = {kind = "shelly", url = "http://192.0.2.30"}
tags = ["desk", "active-cooler"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "farm.toml"
    path.write_text(FARM)
    return path


def test_boards_are_read(path: Path) -> None:
    """Relative files are relative to farm.toml; `host` is always there."""
    farm = load_farm(path)
    assert farm["pi5-desk"] == Board(
        "pi5-desk", "raspberry-pi/5", "192.0.2.17", 22, "edge", path.parent / "keys/edge", path.parent / "known_hosts",
        "10000000a1b2c3d4", meter=(("kind", "shelly"), ("url", "http://192.0.2.30")), tags=("desk", "active-cooler"),
    )
    assert find_board("raspberry-pi/5", farm) is farm["pi5-desk"]
    assert find_board("host", farm) is farm["host"]
    assert find_board("jetson/nano", farm) is None
    assert set(load_farm(path.parent / "missing.toml")) == {"host"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('user = "edge"', 'usr = "edge"', "boards.pi5-desk.usr"),
        ('host = "192.0.2.17"', 'host = "-oProxyCommand=x"', "boards.pi5-desk.host"),
        ('user = "edge"', 'user = "a;b"', "boards.pi5-desk.user"),
        ('user = "edge"', "port = 70000", "boards.pi5-desk.port"),
        ("version = 1", "version = 2", "version"),
        ("[boards.pi5-desk]", '[boards."../x"]', "not a name for a board"),
        ("[boards.pi5-desk]", "[boards.host]", "not a name for a board"),
        ('"edgesdk.farm"', '"edgesdk.farm', "not TOML"),
    ],
)
def test_faults_are_named(path: Path, old: str, new: str, words: str) -> None:
    """File and key are in the message."""
    path.write_text(FARM.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_farm(path)
    assert words in caught.value.message and str(path) in caught.value.message


def test_add_board_keeps_the_rest(path: Path) -> None:
    """Comments and other boards stay; the new board is read back."""
    board = add_board(path, "orin", {"target": "jetson/orin-nano", "host": "192.0.2.18", "port": 2222, "user": None})
    assert path.read_text().startswith(FARM)
    assert load_farm(path)["orin"] == board
    assert (board.port, board.user) == (2222, None)
    with pytest.raises(ConfigError, match="exists"):
        add_board(path, "orin", {"target": "jetson/orin-nano", "host": "192.0.2.18"})


def test_a_bad_board_is_not_written(path: Path) -> None:
    """An invalid table leaves the file as it was."""
    with pytest.raises(ConfigError):
        add_board(path, "orin", {"target": "jetson/orin-nano", "host": 'x"\n[boards.evil]'})
    assert path.read_text() == FARM


def test_identity() -> None:
    """The pinned serial must be the board's serial number or its machine id."""
    board = Board("a", "host", serial="42")
    check_identity(board, {"serial": "42", "machine_id": None})
    check_identity(board, {"serial": None, "machine_id": "42"})
    check_identity(Board("a", "host"), {})
    with pytest.raises(Identity, match="'42'.*'43'"):
        check_identity(board, {"serial": "43", "machine_id": "44"})


def test_an_emulated_board_cannot_be_called_measured() -> None:
    """It says what it is, whatever the farm file calls it; `emulated = true` there is the truth and is taken."""
    for text in (None, "{}"):
        for line in ("quiet panic=1", "quiet edgesdk.id=42", None):
            assert is_emulated(text, line) is (text is not None or "edgesdk.id=42" in (line or ""))
    with pytest.raises(Identity, match="a: an emulated board answers"):
        check_identity(Board("a", "raspberry-pi/5"), {"emulated": True})
    check_identity(Board("a", "raspberry-pi/5", emulated=True), {"emulated": True})
    check_identity(Board("a", "raspberry-pi/5"), {"emulated": False})


BARE = FARM.replace('serial = "10000000a1b2c3d4"\n', "")


@pytest.mark.parametrize("header", ["[boards.pi5-desk]", '[ boards."pi5-desk" ]  # mine', "[boards.'pi5-desk']"])
def test_serial_is_pinned_once(path: Path, header: str) -> None:
    """The serial goes into the board's table; every other byte stays; a pinned one is never changed."""
    text = BARE.replace("[boards.pi5-desk]", header)
    path.write_text(text)
    assert pin_serial(path, "pi5-desk", "10000000ffff0000") is True
    assert path.read_text() == text.replace(header, header + '\nserial = "10000000ffff0000"')
    assert load_farm(path)["pi5-desk"].serial == "10000000ffff0000"
    assert pin_serial(path, "pi5-desk", "20000000ffff0000") is False
    assert load_farm(path)["pi5-desk"].serial == "10000000ffff0000"


@pytest.mark.parametrize(
    ("text", "name", "serial", "words"),
    [
        (BARE, "pi5-desk", 'x"\n[boards.evil]', "does not look like a serial"),
        (BARE, "other", "10000000ffff0000", "has no board 'other'"),
        (BARE, "host", "10000000ffff0000", "has no board 'host'"),
        ('format = "edgesdk.farm"\nversion = 1\nboards.a = {target = "host", host = "192.0.2.1"}\n', "a", "12345",
         "has no table [boards.a]"),
    ],
)
def test_serial_that_cannot_be_pinned(path: Path, text: str, name: str, serial: str, words: str) -> None:
    """The file stays as it was, and the message says why."""
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        pin_serial(path, name, serial)
    assert words in caught.value.message
    assert path.read_text() == text


def test_header_inside_a_string_is_not_a_table(path: Path) -> None:
    """A text that only looks like the board's table is left alone."""
    noise = 'python = "python3"\n[boards.decoy]\ntarget = """\n[boards.pi5-desk]\n"""\nhost = "192.0.2.9"\n'
    text = BARE.replace("# the desk\n", "[boards.first]\ntarget = 'host'\nhost = '192.0.2.8'\n" + noise)
    path.write_text(text)
    pin_serial(path, "pi5-desk", "10000000ffff0000")
    assert load_farm(path)["decoy"].target == "\n[boards.pi5-desk]\n".removeprefix("\n")
    assert load_farm(path)["pi5-desk"].serial == "10000000ffff0000"


def test_what_identifies_a_machine() -> None:
    """The serial, else the machine id; zeros are no serial."""
    assert serial_of({"serial": "1000abcd", "machine_id": "b"}) == "1000abcd"
    assert serial_of({"serial": "0000000000000000", "machine_id": "abcd"}) == "abcd"
    assert serial_of({"serial": None, "machine_id": None}) is None


def test_a_meter_that_is_not_read_is_said_to_be_there() -> None:
    """A configured meter changes the reason, never the value."""
    target = load_target("jetson")
    without = unmeasured_energy(Board("a", target.name, "h"), target, {})
    found = unmeasured_energy(Board("a", target.name, "h", meter=(("kind", "shelly"),)), target, {})
    assert found["reason"] == "a meter is configured, but no energy window was run" != without["reason"]
    assert found["value"] is None and found["provenance"] == "unmeasured"
