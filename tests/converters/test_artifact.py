"""Artifacts: read as they were written, golden blocks as a board reads them, and nothing hostile gets through."""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk.converters.artifact import (
    Artifact,
    ArtifactFile,
    Golden,
    Tensor,
    artifact_sha256,
    read_artifact,
    tolerance,
    write_artifact,
)
from edgesdk.errors import ConvertError
from edgesdk.files import sha256_file

IDS = np.arange(6, dtype=np.int64).reshape(2, 3)
MASK = np.array([[1, 1, 1], [1, 0, 0]], np.int64)
LOGITS = np.array([[0.5, -1.0], [2.0, 0.25]], np.float32)


def _write(folder: Path, **changes: Any) -> Artifact:
    (folder / "model").mkdir()
    (folder / "model" / "a.bin").write_bytes(b"model")
    (folder / "run").write_bytes(b"#!/bin/sh\n")
    fields: dict[str, Any] = {
        "name": "digits-fp32-test", "converter": "test", "scheme": "fp32", "target": "host", "package": "sha256:0",
        "runtime": {"name": "none"}, "files": (ArtifactFile("model/a.bin", "", 0), ArtifactFile("run", "", 0)),
        "inputs": (Tensor("input_ids", "int64", (1, 3)), Tensor("attention_mask", "int64", (1, 3))),
        "outputs": (Tensor("logits", "float32", (1, 2)),), "golden": Golden(2, "max_abs", 1e-4),
        "executable": "run", "length_input": "attention_mask", "work": "per_input", "notes": ("a note",),
    }
    return write_artifact(folder, Artifact(**(fields | changes)), [IDS, MASK], [LOGITS])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "artifact"
    path.mkdir()
    _write(path)
    return path


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((folder / "artifact.json").read_bytes())
    change(document)
    (folder / "artifact.json").write_text(json.dumps(document))


def test_round_trip(tmp_path: Path) -> None:
    written = _write(tmp_path)
    read = read_artifact(tmp_path)
    assert read == written
    assert read.files == (
        ArtifactFile("model/a.bin", sha256_file(tmp_path / "model" / "a.bin"), 5),
        ArtifactFile("run", sha256_file(tmp_path / "run"), 10),
    )


def test_sizes_are_those_that_are_copied(folder: Path) -> None:
    artifact = read_artifact(folder)
    assert artifact.bytes == artifact.bytes_with_runtime == 15
    _edit(folder, lambda document: document.update(runtime={"model_bytes": 4}))
    artifact = read_artifact(folder)
    assert (artifact.bytes, artifact.bytes_with_runtime) == (4, 15)


@pytest.mark.parametrize("model_bytes", [0, -1, 16, 4.0, True, "4", None, float("nan")])
def test_model_bytes_fit_into_the_files(folder: Path, model_bytes: Any) -> None:
    """Sizes decide selections: not zero, not more than there is, and a number."""
    _edit(folder, lambda document: document["runtime"].update(model_bytes=model_bytes))
    with pytest.raises(ConvertError, match="model_bytes"):
        read_artifact(folder)


@pytest.mark.parametrize(
    "change",
    [{"limit": 1.0}, {"limit": -1e9}, {"kind": "sqnr_db"}, {"kind": "none"}, {"labels_equal": 0.5}, {"limit": None},
     {"noise_db": 60.0},
     {"kind": "sqnr_db", "limit": 20.0, "labels_equal": 0.98}],
)
def test_tolerance_is_not_the_choice_of_an_artifact(folder: Path, change: dict[str, Any]) -> None:
    _edit(folder, lambda document: document["golden"]["tolerance"].update(change))
    with pytest.raises(ConvertError, match=r"golden\.tolerance is"):
        read_artifact(folder)


def test_dynamic_artifact_may_not_drop_its_labels(tmp_path: Path) -> None:
    _write(tmp_path, scheme="w8a8-dynamic", golden=Golden(2, *tolerance("w8a8-dynamic")))
    assert read_artifact(tmp_path).golden.labels_equal == 0.98
    _edit(tmp_path, lambda document: document["golden"]["tolerance"].update(labels_equal=None))
    with pytest.raises(ConvertError, match=r"golden\.tolerance is"):
        read_artifact(tmp_path)


def test_golden_blocks_are_raw_and_little_endian(folder: Path) -> None:
    """Read without numpy, as the worker on the board does."""
    data = (folder / "golden" / "in.bin").read_bytes()
    assert struct.unpack("<12q", data) == (0, 1, 2, 3, 4, 5, 1, 1, 1, 1, 0, 0)
    assert struct.unpack("<4f", (folder / "golden" / "out.bin").read_bytes()) == (0.5, -1.0, 2.0, 0.25)


def test_document_says_what_a_worker_needs(folder: Path) -> None:
    document = json.loads((folder / "artifact.json").read_bytes())
    assert (document["format"], document["version"]) == ("edgesdk.artifact", 1)
    tolerance_found = {"kind": "max_abs", "limit": 1e-4, "labels_equal": None, "noise_db": None}
    assert document["golden"]["tolerance"] == tolerance_found
    assert document["golden"]["n"] == 2
    for side, name in (("inputs", "in"), ("outputs", "out")):
        assert document["golden"]["sha256"][side] == sha256_file(folder / "golden" / f"{name}.bin")


def test_digest_is_that_of_every_file(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _write(other)
    assert artifact_sha256(other) == artifact_sha256(folder)
    (other / "golden").joinpath("out.bin").write_bytes(b"")
    changed = tmp_path / "changed"
    changed.mkdir()
    write_artifact(changed, _artifact_with(b"other", changed), [IDS, MASK], [LOGITS])
    assert artifact_sha256(changed) != artifact_sha256(folder)


def _artifact_with(data: bytes, folder: Path) -> Artifact:
    (folder / "m").write_bytes(data)
    return Artifact(
        "n", "test", "fp32", "host", "p", {}, (ArtifactFile("m", "", 0),),
        (Tensor("a", "int64", (1, 3)), Tensor("b", "int64", (1, 3))), (Tensor("c", "float32", (1, 2)),),
        Golden(2, "max_abs", 1.0),
    )


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("fp32", ("max_abs", 1e-4, None, None)), ("w8a8", ("sqnr_db", 30.0, None, 6.0)),
     ("w8a8-dynamic", ("sqnr_db", 20.0, 0.98, None)), ("w4a8", ("sqnr_db", 30.0, None, 6.0)),
     ("fp16", ("sqnr_db", 30.0, None, None))],
)
def test_tolerance_belongs_to_the_scheme(scheme: str, expected: tuple[str, float, float | None, float | None]) -> None:
    assert tolerance(scheme) == expected


HOSTILE = ["../model/a.bin", "/etc/passwd", "..", "", ".", "model/../run", "./run", "model//a.bin", "a\\b", "run\0",
           None, 7, ["run"], "x" * 5000]


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_path_of_a_file_is_refused(folder: Path, path: Any) -> None:
    _edit(folder, lambda document: document["files"][0].update(path=path))
    with pytest.raises(ConvertError):
        read_artifact(folder)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("path", ["../golden/in.bin", "/dev/zero", "..", "golden/../golden/in.bin"])
def test_hostile_path_of_a_golden_block_is_refused(folder: Path, side: str, path: str) -> None:
    _edit(folder, lambda document: document["golden"].update({side: path}))
    with pytest.raises(ConvertError):
        read_artifact(folder)


def _first_file(entry: dict[str, Any], document: dict[str, Any]) -> None:
    document["files"][0] = entry


def test_path_to_a_real_file_outside_is_refused(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes(b"model")
    digest = sha256_file(outside)
    for path in ("../outside", str(outside)):
        entry = {"path": path, "sha256": digest, "bytes": 5}
        _edit(folder, functools.partial(_first_file, entry))
        with pytest.raises(ConvertError, match="leaves its folder"):
            read_artifact(folder)


@pytest.mark.parametrize("name", ["model/a.bin", "model", "golden/in.bin", "golden"])
def test_link_is_refused(folder: Path, name: str) -> None:
    moved = folder.parent / "moved"
    os.replace(folder / name, moved)
    (folder / name).symlink_to(moved)
    with pytest.raises(ConvertError, match="symbolic"):
        read_artifact(folder)


@pytest.mark.parametrize("name", ["model/a.bin", "run", "golden/in.bin", "golden/out.bin"])
def test_changed_file_is_found_by_name(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(ConvertError, match=f"{name}: sha256"):
        read_artifact(folder)
    (folder / name).write_bytes(data + b"more")
    with pytest.raises(ConvertError, match=f"{name}: has {len(data) + 4} bytes"):
        read_artifact(folder)
    (folder / name).unlink()
    with pytest.raises(ConvertError, match=f"{name}: missing"):
        read_artifact(folder)


def test_size_that_is_a_lie_is_found(folder: Path) -> None:
    """Sizes decide selections: a small number in the document must not pass."""
    _edit(folder, lambda document: document["files"][0].update(bytes=1))
    with pytest.raises(ConvertError, match="has 5 bytes, artifact.json says 1"):
        read_artifact(folder)


def test_golden_block_of_another_size_is_found(folder: Path) -> None:
    _edit(folder, lambda document: document["golden"].update(n=3))
    with pytest.raises(ConvertError, match="bytes"):
        read_artifact(folder)


@pytest.mark.parametrize("version", [0, 2, None, "1", True])
def test_unknown_version_is_refused(folder: Path, version: Any) -> None:
    _edit(folder, lambda document: document.update(version=version))
    with pytest.raises(ConvertError, match="version"):
        read_artifact(folder)


def test_other_format_is_refused(folder: Path) -> None:
    _edit(folder, lambda document: document.update(format="edgesdk.package"))
    with pytest.raises(ConvertError, match=r"edgesdk\.artifact"):
        read_artifact(folder)


def test_executable_is_one_of_the_files(folder: Path) -> None:
    _edit(folder, lambda document: document.update(executable="golden/in.bin"))
    with pytest.raises(ConvertError, match="executable"):
        read_artifact(folder)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="nowhere"):
        read_artifact(tmp_path / "nowhere")


KEYS = ["name", "converter", "scheme", "target", "package", "runtime", "files", "inputs", "outputs", "golden", "work"]


@pytest.mark.parametrize("key", KEYS)
def test_missing_key_is_refused(folder: Path, key: str) -> None:
    _edit(folder, lambda document: document.pop(key))
    with pytest.raises(ConvertError, match="malformed"):
        read_artifact(folder)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["path", "sha256", "bytes", "n", "tolerance", "dtype", "shape", "name", "model_bytes"]), inner,
        max_size=4),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(key=st.sampled_from([*KEYS, "notes", "executable", "segments", "length_input"]), value=junk, deep=st.booleans())
def test_junk_raises_nothing_but_convert_errors(folder: Path, key: str, value: Any, deep: bool) -> None:
    original = (folder / "artifact.json").read_bytes()

    def change(document: dict[str, Any]) -> None:
        if deep and isinstance(document[key], dict):
            document[key] |= value if isinstance(value, dict) else {"n": value}
        elif deep and isinstance(document[key], list) and document[key]:
            document[key][0] = value
        else:
            document[key] = value

    try:
        _edit(folder, change)
        artifact = read_artifact(folder)
    except ConvertError:
        return
    finally:
        (folder / "artifact.json").write_bytes(original)
    assert min(artifact.bytes, artifact.bytes_with_runtime) > 0
    assert isinstance(artifact.name, str)
