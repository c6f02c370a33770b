"""`edgesdk bench`: every run has a folder of its own; `boards trust` pins the serial of the board that answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness_artifacts import runner, runner_artifact
from harness_sshd import Server, make_key
from typer.testing import CliRunner

from edgesdk.bench import run_bench, run_folder
from edgesdk.cli.boards import app
from edgesdk.harness.board import Board
from edgesdk.harness.farm import load_farm
from edgesdk.harness.hostkeys import scan_host_key
from edgesdk.harness.measure import verify_measurement


def test_no_run_overwrites_another(host: Board, tmp_path: Path) -> None:
    """Two benches of one artifact: two folders, both still verify."""
    artifact = runner_artifact(tmp_path / "a", runner())
    said: list[str] = []
    for _ in range(2):
        (document,) = run_bench(
            [artifact], "host", None, "quick", 0, tmp_path / "out", lambda step, done, total: None, said.append
        )
        assert document["valid"], document["reasons"]
    folders = sorted((tmp_path / "out").iterdir())
    assert len(folders) == 2 and folders[0].name[-8:] == folders[1].name[-8:]
    for folder in folders:
        assert verify_measurement(folder / document["artifact"])["valid"]
        assert any(str(folder) in line for line in said)


def test_a_run_that_was_cut_goes_on_in_its_folder(tmp_path: Path) -> None:
    """A remembered job of an equal run is found again; another run gets a new folder."""
    first = run_folder(tmp_path, "0a1b2c3d")
    (first / "job.json").write_text("{}")
    assert run_folder(tmp_path, "0a1b2c3d") == first
    assert run_folder(tmp_path, "ffffffff") != first
    (first / "job.json").unlink()
    assert run_folder(tmp_path, "0a1b2c3d") != first


@pytest.mark.parametrize("case", ["python", "no python", "no login"])
def test_trust_pins_the_serial(server: Server, remote: Board, tmp_path: Path, case: str) -> None:
    """After the host key the serial is written into the farm file; where the board cannot be asked, this is said."""
    farm = tmp_path / "farm.toml"
    python = "python-of-nobody" if case == "no python" else remote.python
    key = make_key(tmp_path / "stranger") if case == "no login" else remote.key
    farm.write_text(
        'format = "edgesdk.farm"\nversion = 1\n[boards.remote]\ntarget = "host"\nhost = "127.0.0.1"\n'
        f'port = {remote.port}\nuser = "{remote.user}"\nkey = "{key}"\npython = "{python}"\nknown_hosts = "pins"\n'
    )
    fingerprint = scan_host_key("127.0.0.1", remote.port).fingerprint
    result = CliRunner().invoke(app, ["trust", "remote", "--fingerprint", fingerprint, "--farm", str(farm)])
    assert result.exit_code == 0, result.output
    serial = load_farm(farm)["remote"].serial
    if case != "no login" and serial is not None:
        assert f"pinned serial {serial}" in result.output
    else:
        assert serial is None
        assert "the serial number is not pinned" in result.output
