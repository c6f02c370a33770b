"""Wrong input on the command line: one message that names the thing and the way out, the right code, nothing left."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgesdk.cli import run


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder that must be as the test left it when the command has failed."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def failed(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """Run a command that must fail with `code` and leave the folder as it is; give its message."""
    before = sorted(str(path) for path in Path.cwd().rglob("*"))
    assert run(arguments) == code
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("error:") == 1
    for word in words:
        assert word in message, message
    assert sorted(str(path) for path in Path.cwd().rglob("*")) == before
    return message


def test_model_path_that_does_not_exist(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path is named."""
    failed(["build", "--model", "no/such/folder", "--data", "x.npz"], capsys, 2, "no/such/folder", "try:")


def test_unknown_target(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest target is offered."""
    failed(["build", "--target", "rpi6"], capsys, 2, "'rpi6'", "--target rpi")


def test_unknown_recipe(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest preset is offered."""
    failed(["build", "--recipe", "int9"], capsys, 2, "'int9'", "--recipe int8")


def test_unknown_recipe_key(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File, stage and key are named, and the key that was meant."""
    (clean / "r.yaml").write_text(
        "format: edgesdk.recipe\nversion: 1\nstages:\n  - stage: quantize.ptq\n    shceme: w8a8\n"
    )
    failed(["build", "--recipe", "r.yaml"], capsys, 2, "r.yaml", "stages[0]", "'shceme'", "'scheme'")


def test_model_of_an_unknown_family(
    clean: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class is named, and what is covered."""
    (clean / "mine.py").write_text("import torch\ndef model():\n    return torch.nn.LSTM(4, 4)\n")
    np.savez(clean / "d.npz", pixel_values=np.zeros((4, 1, 8, 8), np.float32), labels=np.zeros(4, np.int64))
    monkeypatch.syspath_prepend(str(clean))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    failed(["build", "--model", "mine:model", "--data", "d.npz"], capsys, 3, "LSTM", "TransformerEncoder")


def test_empty_data_set(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is named."""
    np.savez(clean / "d.npz", pixel_values=np.zeros((0, 1, 8, 8), np.float32), labels=np.zeros(0, np.int64))
    failed([*demo_model(), "--data", "d.npz"], capsys, 2, "d.npz", "empty")


def test_labels_out_of_range(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row and value are named."""
    labels = np.array([0, 1, 10, 2])
    np.savez(clean / "d.npz", pixel_values=np.zeros((4, 1, 8, 8), np.float32), labels=labels)
    failed([*demo_model(), "--data", "d.npz"], capsys, 2, "d.npz", "10", "row 2")


def test_unreachable_board(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Address and port are named."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    farm(clean, port)
    failed(["build", "--target", "rpi5"], capsys, 4, f"127.0.0.1:{port}", "try:")


def test_unknown_board(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The boards that there are, are named."""
    failed(["build", "--target", "rpi5", "--board", "pi9"], capsys, 2, "'pi9'", "rpi5-emulated")


def test_unknown_goal(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest goal is offered."""
    failed(["build", "--goal", "latency=max 3ms"], capsys, 2, "'latency'", "latency_p")


def test_goal_that_the_board_cannot_answer(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 6 before any work, and what could be asked instead."""
    failed(["build", "--target", "host", "--goal", "instructions=max 3M"], capsys, 6, "instructions", "latency_p90")


def test_two_recipes_of_one_name(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Candidates are named by recipe, so one would overwrite the other."""
    failed(["build", "--recipe", "int8", "--recipe", "int8"], capsys, 2, "'int8'")


def test_usage_errors_are_code_2(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown option, an unknown command."""
    failed(["build", "--no-such-option"], capsys, 2, "--no-such-option")
    failed(["no-such-command"], capsys, 2, "no-such-command")


def test_verify_of_something_else(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be verified is named."""
    (clean / "x.txt").write_text("hello")
    failed(["verify", "x.txt"], capsys, 2, "x.txt", ".edgepkg")
    failed(["verify", "missing"], capsys, 2, "missing")


def test_store_commands_without_a_store(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is created by asking."""
    failed(["select", "--target", "host"], capsys, 2, "results.sqlite")
    failed(["report"], capsys, 2, "results.sqlite")


@pytest.mark.parametrize("command", [
    "build", "plan", "bench", "select", "report", "verify", "sensitivity", "recipe list", "recipe show", "boards list",
    "boards add", "boards probe", "boards trust", "boards emulate",
])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of every command shows how it is typed, and the README names it."""
    assert run([*command.split(), "--help"]) == 0
    assert f"Example: edgesdk {command}" in capsys.readouterr().out
    assert f"edgesdk {command.split()[0]}" in (Path(__file__).parents[2] / "README.md").read_text()


def test_sensitivity_of_the_demo(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table, or its JSON, and nothing is written."""
    from edgesdk import demo

    arguments = ["sensitivity", str(demo.package_path()), "--data", "edgesdk.demo:test_data", "--samples", "16"]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["rows"]
    assert document["format"] == "edgesdk.sensitivity" and len(rows) > 4
    assert all(row["saved"] > 0 and row["divergence"] > 0 for row in rows)
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| matrix | bytes saved |")
    assert [line.split("`")[1] for line in lines[2:]] == [row["name"] for row in rows]
    assert list(clean.iterdir()) == []


def demo_model() -> list[str]:
    """Arguments that build the demo model on other data."""
    from edgesdk import demo

    return ["build", "--model", str(demo.package_path())]


def farm(folder: Path, port: int) -> None:
    """A farm file with one board of this machine's port."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id")], check=True)
    (folder / "known_hosts").write_text("")
    (folder / "farm.toml").write_text(
        'format = "edgesdk.farm"\nversion = 1\n\n[boards.pi5]\ntarget = "raspberry-pi/5"\nhost = "127.0.0.1"\n'
        f'port = {port}\nuser = "edge"\nkey = "id"\n'
    )
