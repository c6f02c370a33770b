"""Files that are whole or not there, and paths that stay inside their folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk import files
from edgesdk.errors import ConfigError, PackageError
from edgesdk.files import atomic_folder, canonical_json, inside, read_document, sha256_file, write_atomic

no_fixture_check = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- write_atomic -----------------------------------------------------------------------------------------------------


def test_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    for data in (b"one", b"two" * 1000, b""):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert _names(path.parent) == ["a.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    write_atomic(tmp_path / "a", b"old")

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert _names(tmp_path) == ["a"]


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a", b"old")

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert _names(tmp_path) == ["a"]


# --- atomic_folder ----------------------------------------------------------------------------------------------------


def _fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "a").write_text(text)
    (folder / "b").write_text(text)


def _content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def _whole(text: str) -> dict[str, str]:
    return {"inner/a": text, "b": text}


def test_folder_is_written_and_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "deep" / "x") as folder:
            assert _names(folder) == []
            _fill(folder, text)
        assert _content(tmp_path / "deep" / "x") == _whole(text)
        assert _names(tmp_path / "deep") == ["x"]
    assert (tmp_path / "deep" / "x").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
def test_failed_block_leaves_the_old_folder(tmp_path: Path, existing: bool, problem: type[BaseException]) -> None:
    if existing:
        with atomic_folder(tmp_path / "x") as folder:
            _fill(folder, "old")
    with pytest.raises(problem), atomic_folder(tmp_path / "x") as folder:
        _fill(folder, "new")
        raise problem
    assert _names(tmp_path) == (["x"] if existing else [])
    if existing:
        assert _content(tmp_path / "x") == _whole("old")


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_failure_behind_the_block_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, exchange: bool
) -> None:
    with atomic_folder(tmp_path / "x") as folder:
        _fill(folder, "old")
    original, calls = getattr(os, step), []

    def fail(*arguments: Any) -> Any:
        # The first rename moves the old folder away, the second one fails: the worst moment.
        calls.append(arguments)
        if step == "replace" and len(calls) != 2:
            return original(*arguments)
        raise OSError(5, "Input/output error")

    if not exchange or step == "replace":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(tmp_path / "x") as folder:
        _fill(folder, "new")
    monkeypatch.undo()
    assert calls
    assert _content(tmp_path / "x") == _whole("old")
    assert _names(tmp_path) == ["x"]


def test_folder_is_replaced_without_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "x") as folder:
            _fill(folder, text)
    assert _content(tmp_path / "x") == _whole("new")
    assert _names(tmp_path) == ["x"]


def test_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    with atomic_folder(tmp_path / "x") as folder:
        _fill(folder, "new")
    assert not (tmp_path / "x").is_symlink()
    assert _content(tmp_path / "x") == _whole("new")
    assert _content(tmp_path / "elsewhere") == {"kept": "kept"}
    assert _names(tmp_path) == ["elsewhere", "x"]


def test_file_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    with pytest.raises(OSError), atomic_folder(tmp_path / "x") as folder:  # noqa: PT011
        _fill(folder, "new")
    assert (tmp_path / "x").read_text() == "a file"
    assert _names(tmp_path) == ["x"]


KILLED = """
import os, signal, sys
from edgesdk import files
step, count = sys.argv[2], int(sys.argv[3])
original, calls = getattr(os, step), []
def die(*arguments):
    calls.append(1)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(files.os, step, die)
from pathlib import Path
with files.atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "a").write_text("new")
    (folder / "b").write_text("new")
"""


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(("step", "count"), [("fsync", 1), ("fsync", 2), ("fsync", 3), ("chmod", 1)])
def test_killed_process_leaves_old_or_new_but_nothing_between(
    tmp_path: Path, existing: bool, step: str, count: int
) -> None:
    if existing:
        with atomic_folder(tmp_path / "x") as folder:
            _fill(folder, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x"), step, str(count)], check=False)
    assert done.returncode == -signal.SIGKILL
    # The third fsync is that of the parent folder: the rename is done then.
    if (step, count) == ("fsync", 3):
        assert _content(tmp_path / "x") == _whole("new")
    elif existing:
        assert _content(tmp_path / "x") == _whole("old")
    else:
        assert not (tmp_path / "x").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2")
def test_reader_always_finds_a_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred replacements against a reader that opens the folder by its name all the time, and none in two steps."""
    path, stop, missing = tmp_path / "x", threading.Event(), []
    with atomic_folder(path) as folder:
        _fill(folder, "old")

    def read() -> None:
        while not stop.is_set():
            if not (path / "b").is_file():
                missing.append(1)

    if not files._exchange(path, path):
        pytest.skip("this file system has no exchange")
    monkeypatch.setattr(files, "_replace_in_two_steps", None)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(100):
            with atomic_folder(path) as folder:
                (folder / "b").write_text("new")
    finally:
        stop.set()
        reader.join()
    assert not missing


# --- inside -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", ["a", "a/b", "a.b/c-d_e", "...", "a..b", " ", "ä/ö", "-rf"])
def test_plain_paths_are_inside(tmp_path: Path, relative: str) -> None:
    assert inside(tmp_path, relative, PackageError) == tmp_path / relative


@pytest.mark.parametrize(
    "relative",
    ["", ".", "..", "../a", "a/..", "a/../b", "a/../../b", "/", "/etc/passwd", "//a", "a//b", "./a", "a/.", "a/",
     "a\\b", "..\\a", "a\0b", None, 3, b"a", ["a"], Path("a"), "x" * 300, "a/" + "x" * 300],
)
def test_hostile_paths_are_refused(tmp_path: Path, relative: Any) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(PackageError):
        inside(tmp_path, relative, PackageError)


def test_links_are_refused_anywhere_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "leaf").symlink_to("/etc/passwd")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for relative in ("link", "link/file", "folder/leaf", "dangling", "dangling/x"):
        with pytest.raises(PackageError, match="symbolic"):
            inside(tmp_path, relative, PackageError)
    assert inside(tmp_path, "folder/file", PackageError).read_text() == "x"


pieces = st.sampled_from(["..", ".", "", "a", "b.c", "/", "\\", "\0", "~", "%2e%2e", " "]) | st.text(max_size=4)


@no_fixture_check
@given(st.lists(pieces, max_size=5).map("/".join) | st.text(max_size=20))
def test_what_inside_gives_is_inside(tmp_path: Path, relative: str) -> None:
    try:
        path = inside(tmp_path, relative, PackageError)
    except PackageError:
        return
    assert os.path.normpath(path).startswith(str(tmp_path) + "/")
    assert path == tmp_path / relative


# --- documents --------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(
        st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


@given(plain)
def test_canonical_json_reads_back(value: Any) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert data.endswith(b"\n")


def test_canonical_json_does_not_know_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": [1, {"d": 2, "c": 3}]}) == canonical_json({"a": [1, {"c": 3, "d": 2}], "b": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": -float("inf")}])
def test_canonical_json_refuses_what_is_no_json(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "JSON"), (b"{", "JSON"), (b"\xff", "JSON"), (b"[" * 100_000, "JSON"), (b"null", "expected format"),
        (b"[]", "found 'list'"), (b"{}", "expected format 'f'"), (b'{"format": "g", "version": 1}', "found 'g'"),
        (b'{"format": "f"}', "version None"), (b'{"format": "f", "version": 2}', "version 2; this EdgeSDK reads"),
        (b'{"format": "f", "version": "1"}', "version '1'"), (b'{"format": "f", "version": true}', "version True"),
    ],
)
def test_other_documents_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "d.json").write_bytes(data)
    with pytest.raises(ConfigError, match=message) as problem:
        read_document(tmp_path / "d.json", "f", 1, ConfigError)
    assert "d.json" in problem.value.message


def test_missing_document_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            read_document(path, "f", 1, ConfigError)


def test_document_reads(tmp_path: Path) -> None:
    write_atomic(tmp_path / "d.json", canonical_json({"format": "f", "version": 1, "x": 3}))
    assert read_document(tmp_path / "d.json", "f", 1, ConfigError)["x"] == 3


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_bytes(b"abc") == sha256_file(tmp_path / "a")
