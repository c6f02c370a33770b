"""Content-addressed deployment, over this machine and over SSH."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgesdk.errors import BoardError, DiskFull
from edgesdk.files import sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.deploy import SMALL_BYTES, deploy, remove, write_pack
from edgesdk.harness.session import Session


@pytest.fixture(params=["host", "remote"])
def board(request: pytest.FixtureRequest) -> Board:
    found: Board = request.getfixturevalue(request.param)
    return found


def blob(folder: Path, data: bytes) -> tuple[str, Path]:
    """A local file and its digest."""
    name = sha256_bytes(data)
    (folder / name).write_bytes(data)
    return name, folder / name


def test_files_arrive_once(board: Board, tmp_path: Path) -> None:
    """What is there already is not sent again; nothing half is left."""
    files = dict([blob(tmp_path, b"one" * 999), blob(tmp_path, b"")])
    steps: list[tuple[str, int, int]] = []
    with Session(board) as session:
        remove(session, ".edgesdk")
        assert deploy(session, files, lambda *step: steps.append(step)) == 2997
        assert steps[-1] == ("deploy", 2997, 2997)
        assert deploy(session, files) == 0
        listed = session.step(lambda transport: transport.run(["ls", f"{board.state}/blobs"], 20)).text.split()
        assert sorted(listed) == sorted(files)
        mode = session.step(lambda transport: transport.run(["stat", "-c", "%a", f"{board.state}/blobs"], 20)).text
        assert mode.strip() == "700"


def test_part_is_continued(board: Board, tmp_path: Path) -> None:
    """A part file of an earlier upload is used, when it is the beginning of the right bytes."""
    data = bytes(range(256)) * 100
    name, path = blob(tmp_path, data)
    (tmp_path / "half").write_bytes(data[:9000])
    with Session(board) as session:
        deploy(session, {})
        session.step(lambda transport: transport.put(tmp_path / "half", f"{board.state}/blobs/{name}.part"))
        deploy(session, {name: path})
        session.step(lambda transport: transport.get(f"{board.state}/blobs/{name}", tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


def test_wrong_part_is_thrown_away(board: Board, tmp_path: Path) -> None:
    """A part file with other bytes costs one more try, and never becomes the file."""
    data = b"right" * 1000
    name, path = blob(tmp_path, data)
    (tmp_path / "half").write_bytes(b"wrong" * 100)
    with Session(board) as session:
        deploy(session, {})
        session.step(lambda transport: transport.put(tmp_path / "half", f"{board.state}/blobs/{name}.part"))
        deploy(session, {name: path})
        session.step(lambda transport: transport.get(f"{board.state}/blobs/{name}", tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


def test_a_file_that_lost_its_bytes_is_sent_again(board: Board, tmp_path: Path) -> None:
    """A power cut may leave the name of a file and nothing in it."""
    data = b"whole" * 1000
    name, path = blob(tmp_path, data)
    (tmp_path / "empty").write_bytes(b"")
    with Session(board) as session:
        deploy(session, {})
        session.step(lambda transport: transport.put(tmp_path / "empty", f"{board.state}/blobs/{name}"))
        assert deploy(session, {name: path}) == len(data)
        session.step(lambda transport: transport.get(f"{board.state}/blobs/{name}", tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


def test_state_that_is_a_file_is_an_error(host: Board, tmp_path: Path) -> None:
    """A state folder that cannot be made is named."""
    (tmp_path / "home/.edgesdk").write_text("")
    with Session(host) as session, pytest.raises(BoardError, match=r"\.edgesdk"):
        deploy(session, {})


def test_too_little_space_is_found_before_upload(
    host: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`DiskFull` with both figures, and nothing is written."""
    monkeypatch.setattr("edgesdk.harness.deploy.SPARE_BYTES", 1 << 60)
    name, path = blob(tmp_path, b"data")
    with Session(host) as session, pytest.raises(DiskFull, match=r"MiB free, \d+ MiB needed"):
        deploy(session, {name: path})
    assert list((tmp_path / "home/.edgesdk/blobs").iterdir()) == []


def test_small_files_travel_in_one_pack(host: Board, tmp_path: Path) -> None:
    """With a pack, small missing files become one file of the same bytes each time; large ones go by themselves."""
    small = dict([blob(tmp_path, b"one"), blob(tmp_path, b"two")])
    large = dict([blob(tmp_path, bytes(SMALL_BYTES + 1))])
    with Session(host) as session:
        deploy(session, {**small, **large}, pack=tmp_path / "pack")
    first = (tmp_path / "pack").read_bytes()
    write_pack(tmp_path / "again", small)
    assert (tmp_path / "again").read_bytes() == first
    assert zipfile.ZipFile(tmp_path / "pack").namelist() == sorted(small)
    sent = {entry.name for entry in (tmp_path / "home/.edgesdk/blobs").iterdir()}
    assert sent == {*large, sha256_bytes(first)}
