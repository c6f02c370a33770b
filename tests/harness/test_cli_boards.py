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
