"""NEON builds in source form: what is written where there is no compiler, and that it makes the program of one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_graphs import ROWS, sample

from edgesdk.converters import neon
from edgesdk.converters.artifact import Artifact, read_artifact
from edgesdk.converters.neon import fp16, toolchain
from edgesdk.converters.neon.build import units
from edgesdk.converters.neon.kernel_sets import AARCH64, KERNEL_SETS
from edgesdk.converters.neon.toolchain import LINK, ON_BOARD, find_all
from edgesdk.harness.worker.compiled import parse_recipe
from edgesdk.targets import load_target
from edgesdk.testing.needs import need

TARGET, CPU = "raspberry-pi/5", "cortex-a76"
FORMS = [(neon, "w8a8"), (neon, "w8a8-dynamic"), (fp16, "fp32")]


def convert(
    monkeypatch: pytest.MonkeyPatch, compilers: tuple[Any, ...], converter: Any, scheme: str, folder: Path
) -> Artifact:
    """The artifact of a ViT where only these compilers are found."""
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "find_all", lambda triple: compilers)
        package = sample("vit", scheme).package()
        assert converter.check(package, load_target(TARGET)) == []
        artifact: Artifact = converter.convert(package, load_target(TARGET), folder)
    return artifact


def contents(folder: Path) -> dict[str, bytes]:
    """All files by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("converter", "scheme"), FORMS)
def test_the_same_package_gives_the_same_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, converter: Any, scheme: str
) -> None:
    """It says what it is, who compiles it, and counts the model: weights and calls, no kernels."""
    artifact = convert(monkeypatch, (), converter, scheme, tmp_path / "a")
    convert(monkeypatch, (), converter, scheme, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert read_artifact(tmp_path / "a") == artifact
    assert artifact.runtime["name"] == "neon-source" and artifact.executable is None
    assert artifact.runtime["isa"][0] == "neon" and artifact.converter == converter.name
    assert artifact.notes[0] == "no C compiler for aarch64 here: compiled on the board"
    model = sum((tmp_path / "a" / name).stat().st_size for name in ("model.c", "weights.S", "weights.bin"))
    assert artifact.runtime["weight_bytes"] < artifact.bytes == model < artifact.bytes_with_runtime


@pytest.mark.parametrize("kernels", KERNEL_SETS.values(), ids=lambda kernels: str(kernels.name))
def test_boards_take_the_options_of_every_kernel_set(kernels: Any) -> None:
    """The lists of the worker hold all that a build asks for."""
    compiled = units(kernels, ON_BOARD)
    recipe = {"units": [[source, *options] for source, options in compiled.items()], "link": list(LINK)}
    found = parse_recipe({"files": [{"path": source} for source in compiled], "runtime": recipe})
    assert found == (recipe["units"], recipe["link"])


@pytest.mark.parametrize(("converter", "scheme"), FORMS)
def test_gcc_makes_the_same_program_of_the_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, converter: Any, scheme: str
) -> None:
    """By hand, as a board does: the bytes of the program that the same gcc makes here, with its answers."""
    gcc = next((found for found in find_all(AARCH64) if found.name.endswith("gcc")), None)
    need(gcc is not None, "no aarch64-linux-gnu-gcc")
    need(shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
    assert gcc is not None
    made, here = tmp_path / "made", tmp_path / "here"
    artifact = convert(monkeypatch, (), converter, scheme, made)
    convert(monkeypatch, (gcc,), converter, scheme, here)
    objects = []
    for source, *options in artifact.runtime["units"]:
        objects.append(f"{tmp_path}/{source}.o")
        subprocess.run([*gcc.command, *options, "-c", source, "-o", objects[-1]], cwd=made, check=True, timeout=120)
    program = tmp_path / "program"
    subprocess.run([*gcc.command, *objects, *artifact.runtime["link"], "-o", str(program)], check=True, timeout=120)
    assert program.read_bytes() == (here / "model").read_bytes()
    case = sample("vit", scheme)
    (tmp_path / "in.bin").write_bytes(b"".join(case.inputs[tensor.name].tobytes() for tensor in artifact.inputs))
    words = ["run", "--inputs", "in.bin", "--n", str(ROWS), "--outputs", "out.bin"]
    subprocess.run(["qemu-aarch64", "-cpu", CPU, str(program), *words], cwd=tmp_path, check=True, timeout=60)
    found = np.fromfile(tmp_path / "out.bin", "<f4").reshape(case.reference.shape)
    error = 10 * np.log10(np.square(case.reference).sum() / np.square(found - case.reference).sum())
    assert error > 20
