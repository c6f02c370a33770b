"""The full board: an arm64 machine that starts from a snapshot, survives a power cycle, and leaves nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesdk.errors import BoardError
from edgesdk.harness import emulate
from edgesdk.harness.board import Board
from edgesdk.harness.emulate import requirements, state, vm_image
from edgesdk.harness.session import Session
from edgesdk.targets import load_target
from edgesdk.testing.needs import need

RPI4 = load_target("rpi4")


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    missing = emulate.missing(full=True)
    need(not missing, f"a full emulated board needs {', '.join(missing)}")
    own = RPI4.model_copy(update={"aliases": ("rpi4-test",)})
    with emulate.emulated(own, full=True) as running:
        yield running
    assert not state.board_folder(running.name).exists()


def said(board: Board, command: str) -> str:
    with Session(board) as session:
        return session.step(lambda to: to.run(["sh", "-c", command], 300)).text.strip()


def test_it_is_a_machine_of_its_own(board: Board) -> None:
    assert board.emulated and board.counting_plugin is None
    script = "uname -m; cat /etc/machine-id; grep -m1 part /proc/cpuinfo; grep MemTotal /proc/meminfo"
    words = said(board, script).split()
    assert words[:2] == ["aarch64", board.serial] and "0xd08" in words
    assert int(words[-2]) < vm_image.MEMORY_MB * 1024
    assert said(board, "cat /sys/firmware/devicetree/base/model").rstrip(chr(0)) == "Raspberry Pi 4 Model B Rev 1.4"
    assert "memory" in said(board, "cat /sys/fs/cgroup/cgroup.controllers")


def test_a_power_cycle_is_another_boot_of_the_same_disk(board: Board) -> None:
    before = said(board, "echo kept > /root/mark; sync; cat /proc/sys/kernel/random/boot_id")
    emulate.power_cycle(board.name)
    deadline = time.monotonic() + 300
    while True:
        try:
            after, mark = said(board, "cat /proc/sys/kernel/random/boot_id /root/mark").split()
            break
        except BoardError:  # the first connection is not tried again by a session, and the guest boots
            assert time.monotonic() < deadline, "the board did not come back"
            time.sleep(2)
    assert after != before and mark == "kept"


@pytest.mark.parametrize(
    ("command", "package"), [("qemu-system-aarch64", "qemu-system-arm"), ("qemu-img", "qemu-utils")]
)
def test_what_is_missing_is_named(
    command: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGESDK_NO_EMULATION", raising=False)
    monkeypatch.setattr(requirements, "find", lambda name: None if name == command else "/bin/true")
    with pytest.raises(BoardError, match=f"{command} not found: apt-get install {package}"):
        emulate.start(RPI4, full=True)
    assert not list((tmp_path / "cache").glob("*"))


def test_not_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BoardError, match="not root"):
        emulate.start(RPI4, full=True)
    assert not list((tmp_path / "cache").glob("*"))


def test_only_running_full_boards_are_power_cycled() -> None:
    with pytest.raises(BoardError, match="does not run"):
        emulate.power_cycle("rpi9-vm-emulated")


def test_the_archive_has_the_format_of_cpio() -> None:
    data = b"".join(vm_image._cpio([("init", 0o100755, b"abc")]))
    assert data.startswith(b"070701") and len(data) % 4 == 0
    assert int(data[54:62], 16) == 3 and int(data[94:102], 16) == 5  # bytes of the file; of its name with the NUL
    assert data[110:115] == b"init" + bytes(1) and b"TRAILER!!!" in data
