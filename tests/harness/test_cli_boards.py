"""The command line and a real sshd: unknown and changed host keys, pinning, a build over SSH."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness_sshd import Server

from edgesdk.cli import run


@pytest.fixture
def farm(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose farm.toml names the server as a board of target `host`; no key is pinned yet."""
    board = server.board(tmp_path / "known_hosts")
    (tmp_path / "farm.toml").write_text(
        'format = "edgesdk.farm"\nversion = 1\n\n[boards.lab]\ntarget = "host"\nhost = "127.0.0.1"\n'
        f'port = {board.port}\nuser = "{board.user}"\nkey = "{board.key}"\npython = "{board.python}"\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_unknown_host_key_stops_a_build(farm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 4, the file of pinned keys and the command that pins one; nothing is left behind."""
    before = sorted(farm.iterdir())
    assert run(["build", "--target", "host", "--board", "lab"]) == 4
    message = capsys.readouterr().err
    assert "known_hosts" in message and "edgesdk boards trust lab" in message
    assert sorted(farm.iterdir()) == before


def test_trust_wants_the_fingerprint(farm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong fingerprint pins nothing; the right one makes the board reachable."""
    from edgesdk.harness.farm import load_farm
    from edgesdk.harness.hostkeys import scan_host_key

    assert run(["boards", "trust", "lab", "--fingerprint", "SHA256:" + "A" * 43]) == 4
    assert run(["boards", "probe", "lab"]) == 4
    board = load_farm(farm / "farm.toml")["lab"]
    assert board.host is not None
    found = scan_host_key(board.host, board.port)
    assert run(["boards", "trust", "lab", "--fingerprint", found.fingerprint]) == 0
    assert run(["boards", "probe", "lab", "--json"]) == 0


ADD = ["boards", "add", "--target", "rpi5"]


@pytest.mark.parametrize(
    "address",
    ["host", "@host", "me@", "me@host:x", "me@host:999999", "me@host:70000", "me@a;b", "me@../x", "me@a\nb", "m'e@a b"],
)
def test_strange_addresses_are_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error, exit 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    assert run([*ADD, address, "--name", "x", "--offline"]) == 2
    assert not (tmp_path / "farm.toml").exists()


def test_a_port_where_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 4; the board is not in the farm file afterwards."""
    from harness_sshd import free_port

    from edgesdk.harness.farm import load_farm

    monkeypatch.chdir(tmp_path)
    assert run([*ADD, f"me@127.0.0.1:{free_port()}", "--name", "x"]) == 4
    assert "x" not in load_farm(tmp_path / "farm.toml")


def test_a_board_of_another_architecture_is_not_added(farm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This x86 machine as an rpi5: exit 2, the reason, no entry."""
    from edgesdk.harness.farm import load_farm
    from edgesdk.harness.hostkeys import scan_host_key

    lab = load_farm(farm / "farm.toml")["lab"]
    assert lab.host is not None
    found = scan_host_key(lab.host, lab.port)
    address = [f"{lab.user}@127.0.0.1:{lab.port}", "--name", "pi", "--key", str(lab.key), "--python", lab.python]
    assert run([*ADD, *address, "--fingerprint", found.fingerprint, "--no-noise"]) == 2
    assert "target raspberry-pi/5 is aarch64" in capsys.readouterr().err
    assert "pi" not in load_farm(farm / "farm.toml")


def test_remove(farm: Path) -> None:
    """Once; the second time it is unknown."""
    assert run(["boards", "remove", "lab"]) == 0
    assert run(["boards", "remove", "lab"]) == 2
    assert run(["boards", "probe", "lab"]) == 2


@pytest.mark.parametrize("name", ["no such", "a;b", "../x", "x\x1b[2J"])
def test_unknown_boards_are_told_without_their_escapes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("probe", "trust", "remove"):
        assert run(["boards", command, name]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_full_board_takes_no_recording(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["boards", "emulate", "rpi4", "--vm", "--sensors"]) == 2
    assert "--vm takes no --sensors" in capsys.readouterr().err
