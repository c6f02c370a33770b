"""Targets: the whole table loads, names are unique, and a user's own file is checked key by key."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.converters import CONVERTERS
from edgesdk.errors import ConfigError
from edgesdk.targets import Target, load_target, target_names
from edgesdk.targets.target import _parse

TABLE = sorted(
    (entry for entry in files("edgesdk.targets").joinpath("table").iterdir()), key=lambda entry: entry.name
)
RPI5 = next(entry for entry in TABLE if entry.name == "raspberry-pi-5.toml").read_text()


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: str(entry.name))
def test_every_file_of_the_table_loads(entry: Any) -> None:
    document = tomllib.loads(entry.read_text())
    target = load_target(document["name"])
    assert target.name == document["name"]
    for name in (target.name, *target.aliases):
        assert load_target(name) is target
    assert target.short in (target.name, *target.aliases)
    assert target.description
    assert set(target.converters) <= set(CONVERTERS)
    assert not set(target.missing) & set(target.converters)
    assert set(target.schemes) <= {"fp32", "fp16", "w8a8", "w8a8-dynamic", "w4a8", "w4a8-dynamic"}
    assert all(side > 0 for side in target.sparse_block)


def test_names_and_aliases_are_unique() -> None:
    documents = [tomllib.loads(entry.read_text()) for entry in TABLE]
    names = [name for document in documents for name in (document["name"], *document.get("aliases", ()))]
    assert len(names) == len(set(names))
    assert target_names() == sorted(names)


def test_table_is_the_promised_one() -> None:
    families = {"raspberry-pi": ("3", "4", "5", "zero2"), "jetson": ("nano", "xavier-nx", "orin-nano", "agx-orin")}
    boards = {f"{family}/{name}" for family, names in families.items() for name in names}
    assert {"host", "rpi5", "rpi4", "jetson", *boards} <= set(target_names())


def test_boards_have_an_emulation_and_the_host_has_none() -> None:
    for name in target_names():
        target = load_target(name)
        # qemu has no core with the features of Carmel.
        assert (target.emulate is None) == (target.name in ("host", "jetson/xavier-nx"))
        assert (target.triple == "x86_64-linux-gnu") == (target.name == "host")
        if target.emulate is not None:
            assert target.cpu.cores > 0
            assert target.cpu.clock_mhz > 0
            assert "neon" in target.cpu.features


def test_the_pages_name_every_target() -> None:
    """By the name that is typed, and of those that can be emulated no more and no less."""
    root = Path(__file__).parents[2]
    targets = {target.short: target for target in map(load_target, target_names())}
    (option,) = re.findall(r"- `--target`: (.*?), or a `\.toml`", (root / "README.md").read_text(), re.DOTALL)
    assert set(re.findall(r"`([a-z0-9-]+)`", option)) == set(targets)
    (emulated,) = re.findall(r"emulate TARGET`: (.*?);", (root / "docs/add-a-board.md").read_text(), re.DOTALL)
    can = {name for name, target in targets.items() if target.emulate is not None}
    assert set(re.findall(r"`([a-z0-9-]+)`", emulated)) == can


@pytest.mark.parametrize(("name", "near"), [("rpi-5", "rpi5"), ("hots", "host"), ("raspberry-pi/55", "raspberry-pi/5")])
def test_near_miss_is_told(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match="unknown target") as problem:
        load_target(name)
    assert near in problem.value.hint


def test_no_near_miss_lists_all() -> None:
    with pytest.raises(ConfigError) as problem:
        load_target("zzzzzz")
    for name in target_names():
        assert name in problem.value.hint
    assert ".toml" in problem.value.hint


def _mine(folder: Path, text: str | bytes) -> str:
    path = folder / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_own_file_is_a_target(tmp_path: Path) -> None:
    text = RPI5.replace('name = "raspberry-pi/5"', 'name = "my-board"')
    target = load_target(_mine(tmp_path, text))
    assert target.name == "my-board"
    assert target.cpu == load_target("rpi5").cpu
    assert "my-board" not in target_names()


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("version = 1", "version = 1\nconvertors = []", "unknown key 'convertors'", "'converters'"),
        ("version = 1", "version = 1\nzzz = 1", "unknown key 'zzz'", "known keys"),
        ("version = 1", "version = 2", "version: ", ""),
        ('format = "edgesdk.target"', 'format = "edgesdk.recipe"', "format: ", ""),
        ('format = "edgesdk.target"', "", "format: Field required", ""),
        ("aarch64-linux-gnu", "riscv64-linux-gnu", "triple: .*found 'riscv64-linux-gnu'", ""),
        ("onnx_opset_max = 21", "onnx_opset_max = 13", "onnx_opset_max: ", ""),
        ("converters = [", 'converters = ["hailo", ', r"converters\.0: ", ""),
        ("cores = 4", 'cores = "four"', r"cpu\.cores: ", ""),
        ("cores = 4", "cores = 4, turbo = true", r"unknown key 'cpu\.turbo'", ""),
        ('name = "raspberry-pi/5"', 'name = "../x y"', "name: ", ""),
        ('name = "raspberry-pi/5"', "name = 5", "name: ", ""),
        ("version = 1", "version = ", "not TOML", ""),
        ("version = 1", "version = 1\nversion = 1", "not TOML", ""),
    ],
)
def test_bad_file_is_refused_with_its_key(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    assert old in RPI5
    path = _mine(tmp_path, RPI5.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as problem:
        load_target(path)
    assert "mine.toml" in problem.value.message
    assert hint in problem.value.hint


@pytest.mark.parametrize(
    "text", ["", "[", "a = " + "[" * 5000, "\0", b"\xff\xfe", b"\x80\x81", "name = 'x'", "format = 1"]
)
def test_no_target_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="mine"):
        load_target(_mine(tmp_path, text))


@pytest.mark.parametrize("name", ["nowhere.toml", "/nowhere/x.toml", "a\0b.toml", "x" * 5000 + ".toml", ".toml"])
def test_missing_file_is_told(name: str) -> None:
    with pytest.raises(ConfigError) as problem:
        load_target(name)
    assert len(problem.value.message) < 500


def test_folder_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "x.toml").mkdir()
    with pytest.raises(ConfigError, match=r"x\.toml"):
        load_target(str(tmp_path / "x.toml"))


@given(st.text(max_size=40))
def test_junk_names_raise_only_config_errors(name: str) -> None:
    try:
        target = load_target(name)
    except ConfigError:
        return
    assert name in target_names()
    assert isinstance(target, Target)


@given(st.text(max_size=60), st.integers(0, len(RPI5)))
def test_junk_files_raise_only_config_errors(text: str, position: int) -> None:
    for content in (text, RPI5[:position] + text + RPI5[position:]):
        try:
            _parse(content, "mine.toml")
        except ConfigError:
            pass
