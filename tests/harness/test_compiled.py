"""The runtime neon-source: programs that the board's compiler makes, kept, repaired, refused; whole measurements."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.converters import neon
from edgesdk.converters.artifact import read_artifact, write_artifact
from edgesdk.converters.neon import toolchain
from edgesdk.files import canonical_json
from edgesdk.harness.abilities import abilities
from edgesdk.harness.board import Board
from edgesdk.harness.evict import evict
from edgesdk.harness.measure import Evaluation
from edgesdk.harness.pack import pack_worker
from edgesdk.harness.preflight import problems
from edgesdk.harness.session import Session
from edgesdk.harness.worker import compiled, rounds, runner
from edgesdk.harness.worker.traits import traits_of
from edgesdk.targets.target import Target, load_target
from edgesdk.testing.needs import need

sys.path.insert(0, str(Path(__file__).parents[1] / "converters"))

from harness_artifacts import assert_measured, describe, golden_rows, measure_one, weights  # noqa: E402
from harness_artifacts import runner as script  # noqa: E402
from sample_graphs import sample  # noqa: E402

PI5 = Board("pi", "raspberry-pi/5", "192.0.2.1")
GCC = "gcc (Debian 12.2.0-14) 12.2.0"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for this machine, written where no compiler was found."""
    need(compiled.compiler() is not None, "no gcc here")
    folder = tmp_path_factory.mktemp("artifact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolchain, "find_all", lambda triple: ())
        neon.convert(sample("vit", "w8a8").package(), load_target("host"), folder)
    return folder


def programs(home: Path) -> list[Path]:
    """The programs that are kept, without their notes."""
    return [path for path in (home / ".edgesdk/programs").glob("*") if re.fullmatch("[0-9a-f]{64}", path.name)]


def test_a_measurement_over_ssh(remote: Board, server: Any, target: Target, artifact: Path, tmp_path: Path) -> None:
    """Compiled there once, right, timed; the document says by what. A later job compiles nothing, one that finds a
    damaged program compiles again and says why."""
    rows = [sample("vit", "w8a8").inputs["pixel_values"]]
    first = measure_one(remote, target, tmp_path, artifact, evaluation=Evaluation(rows, len(rows[0])))
    assert_measured(first)
    assert first["golden"]["passed"] and len(first["rounds"]) == 2 and first["evaluation"]["n"] == len(rows[0])
    assert first["loading_ms"]["cold_load"] > 0 and first["peak_rss_bytes"]["value"] > 1 << 16
    version = first["facts"]["compiler"]
    assert re.fullmatch(rf"compiled on the board by {re.escape(version)} in [0-9.]+ s", first["built"])
    (program,) = programs(server.folder.parent / "home")
    whole = program.read_bytes()
    assert json.loads(Path(f"{program}.json").read_bytes())["bytes"] == len(whole) and os.access(program, os.X_OK)
    second = measure_one(remote, target, tmp_path, artifact)
    assert_measured(second)
    assert second["built"] == f"compiled on the board by {version} for an earlier job"
    # A job links it: another file takes its name, as after a fault of the disk.
    program.unlink()
    program.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    third = measure_one(remote, target, tmp_path, artifact)
    assert_measured(third)
    assert third["built"].endswith("; an earlier program was not used: its bytes are not those of its note")
    assert program.read_bytes() == whole and not list((server.folder.parent / "home/.edgesdk/jobs").iterdir())


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH that holds all programs of this machine but compilers."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for name in os.listdir(place) if os.path.isdir(place) else ():
            if name not in compiled.COMPILERS:
                (folder / name).unlink(missing_ok=True)
                (folder / name).symlink_to(f"{place}/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def fake(folder: Path, text: str) -> None:
    """A compiler in sh."""
    (folder / "gcc").write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "fake 1.0"; exit; }}\n{text}\n')
    (folder / "gcc").chmod(0o755)


def test_a_board_without_a_compiler(host: Board, target: Target, artifact: Path, tools: Path, tmp_path: Path) -> None:
    """Known before anything is sent, and what to do."""
    document = measure_one(host, target, tmp_path, artifact)
    assert document["facts"]["compiler"] is None and document["built"] is None
    assert document["reasons"] == [
        "E_PREFLIGHT: neon-source is compiled on the board, and host has no C compiler (gcc, cc, clang): install gcc "
        "on the board, or a compiler here (pip install ziglang)"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'model.c:7: error: what is this' >&2; exit 1", "model.c:7: error: what is this"),
        ("exit 4", "failed on model.c (exit 4)"),
        ("exit 0", "ended well and wrote no program"),
        ("kill -SEGV $$", "failed on model.c"),
    ],
)
def test_a_compiler_that_fails(
    host: Board, target: Target, artifact: Path, tools: Path, tmp_path: Path, text: str, words: str
) -> None:
    """A reason with the end of what it said; nothing is run, nothing is kept."""
    fake(tools, text)
    document = measure_one(host, target, tmp_path, artifact)
    (reason,) = document["reasons"]
    assert reason.startswith("E_CRASH: building on the board: exit 70") and words in reason
    assert document["golden"] is None and document["rounds"] == [] and document["built"] is None
    assert not list((tmp_path / "home/.edgesdk/programs").iterdir())


def test_a_wrong_program_is_never_timed(
    host: Board, target: Target, artifact: Path, tools: Path, tmp_path: Path
) -> None:
    """The golden check comes before the rounds, as for every runtime; one version, one program."""
    fake(tools, 'for out; do :; done; printf "#!/bin/sh\\nexit 3\\n" > "$out"')
    document = measure_one(host, target, tmp_path, artifact)
    (reason,) = document["reasons"]
    assert reason.startswith("E_CRASH: golden check: exit 3") and document["rounds"] == []
    assert document["built"].startswith("compiled on the board by fake 1.0 in ")
    fake(tools, "exit 9")
    again = measure_one(host, target, tmp_path, artifact)
    assert again["built"] == "compiled on the board by fake 1.0 for an earlier job"


def changed(artifact: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the artifact with another document."""
    shutil.copytree(artifact, folder)
    document = json.loads((folder / "artifact.json").read_bytes())
    change(document["runtime"])
    (folder / "artifact.json").write_bytes(canonical_json(document))
    return folder


HOSTILE: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("'-fplugin=./x.so'", lambda runtime: runtime["units"][0].append("-fplugin=./x.so")),
    ("'-wrapper'", lambda runtime: runtime["units"][0].append("-wrapper")),
    ("'@golden/in.bin'", lambda runtime: runtime["units"][0].append("@golden/in.bin")),
    ("'-O2\\n'", lambda runtime: runtime["units"][0].append("-O2\n")),
    ("'-DX=$(id)'", lambda runtime: runtime["units"][0].append("-DX=$(id)")),
    ("'-o'", lambda runtime: runtime["units"][0].extend(["-o", "/tmp/x"])),
    ("7", lambda runtime: runtime["units"][0].append(7)),
    ("'../model.c'", lambda runtime: runtime["units"].append(["../model.c"])),
    ("'/etc/x.c'", lambda runtime: runtime["units"].append(["/etc/x.c"])),
    ("'other.c'", lambda runtime: runtime["units"].append(["other.c"])),
    ("'-x.c'", lambda runtime: runtime["units"].append(["-x.c"])),
    ("'weights.bin'", lambda runtime: runtime["units"].append(["weights.bin"])),
    ("two sources have one name", lambda runtime: runtime["units"].append(["model.c"])),
    ("[]", lambda runtime: runtime["units"].append([])),
    ("not a list of sources", lambda runtime: runtime.update(units=[])),
    ("not a list of sources", lambda runtime: runtime.update(units="model.c")),
    ("'-Wl,-T,x'", lambda runtime: runtime["link"].append("-Wl,-T,x")),
    ("['-s']", lambda runtime: runtime["link"].append(["-s"])),
    ("'units'", lambda runtime: runtime.pop("units")),
]


@pytest.mark.parametrize(("words", "change"), HOSTILE)
def test_words_that_no_compiler_gets(
    artifact: Path, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: str, change: Callable[[dict[str, Any]], None],
) -> None:
    """Refused by the worker before its compiler is asked for anything, even its version."""
    fake(tools, "exit 1")
    (tools / "gcc").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    runner.add_commands(parser)
    folder = changed(artifact, tmp_path / "a", change)
    assert runner.main(parser.parse_args(["neon-source", str(folder), "build"])) == 65
    assert words in capsys.readouterr().err and not (tmp_path / "called").exists()
    assert not (tmp_path.parent / "programs").exists()


def test_hostile_words_are_a_reason(host: Board, target: Target, artifact: Path, tmp_path: Path) -> None:
    """Over the whole path: the board refuses them."""
    hostile = changed(artifact, tmp_path / "a", HOSTILE[0][1])
    (reason,) = measure_one(host, target, tmp_path, hostile)["reasons"]
    assert reason.startswith("E_CRASH: building on the board") and "'-fplugin=./x.so' is not an option" in reason


WORDS = st.sampled_from(["model.c", "-O2", "-s", "-lm", "x", "", "-fno-a", "-fplugin=x"]) | st.text(max_size=9)
LISTS = st.lists(WORDS | st.none() | st.integers() | st.lists(WORDS, max_size=4), max_size=4) | WORDS | st.none()


@given(LISTS, LISTS)
def test_recipes_of_any_words(units: Any, link: Any) -> None:
    """Known options and files of the artifact, or an error that says which word."""
    document = {"files": [{"path": "model.c"}], "runtime": {"units": units, "link": link}}
    try:
        found, options = compiled.parse_recipe(document)
    except (ValueError, TypeError) as problem:
        assert str(problem)
        return
    assert found == units and [unit[0] for unit in found] == ["model.c"] and set(options) <= set(compiled.LINK)
    assert all(word == "-O2" or word.startswith(("-fno-", "-m")) for unit in found for word in unit[1:])


def test_a_hanging_compiler_is_killed_with_all_that_it_started(
    artifact: Path, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of the step."""
    fake(tools, f"sleep 300 & echo $! > {tmp_path}/pid; wait")
    (tmp_path / "worker.pyz").write_bytes(pack_worker())
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "worker.pyz")])
    folder = tmp_path / "state/artifacts" / ("0" * 64)
    shutil.copytree(artifact, folder)
    candidate = rounds.Candidate(str(folder), {"artifact": "0" * 64}, str(tmp_path / "job"), lambda: None)
    ended = candidate.run(["build"], 3.0, {})
    assert ended.code == "E_TIMEOUT" and candidate.executable is None
    status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
    assert not list((tmp_path / "state/programs").iterdir())


def test_instructions_are_counted(host: Board, target: Target, tools: Path, tmp_path: Path) -> None:
    """On an emulated board: the program that was made is the one that is counted."""
    fake(tools, '[ "$1" = -c ] && cp "$2" "$4" || cp "$1" "$3"')
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "model.c").write_bytes(script())
    found = describe("tiny-neon", {"name": "neon-source", "units": [["model.c"]], "link": []}, ["model.c"])
    write_artifact(folder, found, [golden_rows()], [golden_rows() @ weights()])
    board = Board("emu", "host", python=host.python, emulated=True, counting_plugin=str(tmp_path / "plugin.so"))
    document = measure_one(board, target, tmp_path, folder)
    assert document["valid"], document["reasons"]
    assert document["instructions"]["value"] == 2002 and document["instructions"]["provenance"] == "emulated"
    assert document["built"].startswith("compiled on the board by fake 1.0")


def test_a_job_that_goes_on_finds_its_program(artifact: Path, tmp_path: Path) -> None:
    """Its record says that the step is done; without it the worker builds, whatever lies there."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job/program").touch()
    candidate = rounds.Candidate(str(artifact), {"artifact": "0" * 64}, str(tmp_path / "job"), lambda: None)
    assert candidate.command("build")[2:4] == ["runtime", "neon-source"]
    candidate.record = {**candidate.record, "built": f"compiled on the board by {GCC} in 2.0 s"}
    assert candidate.command("run") == [f"{tmp_path}/job/program", "run"]
    assert candidate.files()[-1] == f"{tmp_path}/job/program"


def test_a_full_board_gives_programs_up(host: Board) -> None:
    """They can be made again; files of other names are not ours."""
    state = Path.home() / ".edgesdk"
    for folder, name in (("programs", "1" * 64), ("programs", f"{'1' * 64}.json"), ("engines", f"{'2' * 64}.plan"),
                         ("programs", "mine")):
        (state / folder).mkdir(parents=True, exist_ok=True)
        (state / folder / name).touch()
    for folder in ("artifacts", "blobs"):
        (state / folder).mkdir()
    with Session(host) as session:
        assert evict(session, 1 << 50) == 3
    assert [path.name for path in (*state.glob("programs/*"), *state.glob("engines/*"))] == ["mine"]


def test_what_preflight_knows(artifact: Path) -> None:
    """Without Python there is no worker that compiles; CPU features are those of the document, there is no binary."""
    facts = {"machine": "x86_64", "compiler": GCC, "cpu_features": ["asimd"], "cpu_model": "Cortex-A72"}
    found = dataclasses.replace(
        read_artifact(artifact), runtime={**read_artifact(artifact).runtime, "isa": ["neon", "dotprod"]}
    )
    (reason,) = problems(artifact, found, PI5, facts)
    assert "needs CPU feature dotprod, which Cortex-A72 lacks" in reason
    assert problems(artifact, found, PI5, {**facts, "cpu_features": ["asimd", "asimddp"]}) == []
    (reason,) = problems(artifact, found, PI5, {"agent": "shell", "compiler": None})
    assert reason == (
        "E_PREFLIGHT: neon-source is compiled on the board by the worker in Python, and pi has no python3: install "
        "python3 there, or a compiler here (pip install ziglang)"
    )


@pytest.mark.parametrize(("changes", "possible", "words"), [
    ({"compiler": GCC}, True, f"compiled by {GCC}"), ({}, False, "no C compiler on the board"),
    ({"compiler": GCC, "agent": "shell"}, False, "needs Python"),
])
def test_abilities_say_who_compiles(changes: dict[str, Any], possible: bool, words: str) -> None:
    found = {entry.what: entry for entry in abilities(PI5, load_target("rpi5"), changes, "none")}
    assert found["runtime neon-source"].possible is possible and words in found["runtime neon-source"].how


def test_it_is_measured_as_a_neon_build() -> None:
    """But for the step in front."""
    assert traits_of("neon-source") == traits_of("neon")._replace(built=True)
