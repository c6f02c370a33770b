"""Emulated boards without a board: what is missing, stale state, locks, and what a device says it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgesdk.errors import BoardError, DiskFull
from edgesdk.harness import emulate
from edgesdk.harness.emulate import layers, requirements, state
from edgesdk.harness.emulate.device import device_files, features_of
from edgesdk.targets.target import load_target

RPI5 = load_target("rpi5")
SILENT = print


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGESDK_NO_EMULATION", raising=False)
    return tmp_path / "cache"


def write_state(**changes: object) -> Path:
    """The state file of a board whose supervisor is this process, with some keys changed."""
    state.write("rpi5-emulated", os.getpid(), 1, "raspberry-pi/5", "0", "0", None)
    file = state.state_file("rpi5-emulated")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (state.board_folder("rpi5-emulated") / "device").mkdir(parents=True)
    return file


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESDK_NO_EMULATION", "1")
    assert emulate.missing() == ["EDGESDK_NO_EMULATION=1 is set: unset it"]
    with pytest.raises(BoardError, match="EDGESDK_NO_EMULATION"):
        emulate.start(RPI5)


@pytest.mark.parametrize(
    ("command", "package"),
    [("sshd", "openssh-server"), ("qemu-aarch64", "qemu-user"), ("mmdebstrap", "mmdebstrap"), ("gcc", "gcc libc6-dev")],
)
def test_missing_command_names_its_package(command: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find", lambda name: None if name == command else "/bin/true")
    assert f"{command} not found: apt-get install {package}" in emulate.missing()
    with pytest.raises(BoardError, match=f"{command} not found"):
        emulate.prepare()


def test_build_tools_are_not_needed_once_built(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find", lambda name: None if name in ("mmdebstrap", "gcc") else "/bin/true")
    layers.rootfs_folder().mkdir(parents=True)
    layers.qemu_folder("/bin/true").mkdir()
    assert not any("mmdebstrap" in line or "gcc" in line for line in emulate.missing())


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert any(line.startswith("not root") and "sudo" in line for line in emulate.missing())


def test_target_without_emulation() -> None:
    with pytest.raises(BoardError, match="host has no emulated board"):
        emulate.start(load_target("host"))


def test_full_disk(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(emulate, "missing", lambda: [])
    monkeypatch.setattr(emulate, "find", lambda name: "/bin/true")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(DiskFull, match="1 MiB free") as problem:
        emulate.prepare()
    assert "EDGESDK_CACHE" in problem.value.hint
    assert not list(cache.glob("rootfs-*"))


def test_failed_build_leaves_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def fail(command: list[str], **options: object) -> None:
        raise subprocess.CalledProcessError(25, command, output=b"I: fine\nE: no network\n")

    monkeypatch.setattr(emulate, "missing", lambda: [])
    monkeypatch.setattr(emulate, "find", lambda name: "/bin/true")
    monkeypatch.setattr(subprocess, "run", fail)
    (cache / ".build.killed" / "layer").mkdir(parents=True)
    with pytest.raises(BoardError, match="mmdebstrap failed: .*E: no network"):
        emulate.prepare()
    assert [path.name for path in cache.iterdir()] == ["build.lock"]


def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BoardError, match="cache of emulated boards") as problem:
        emulate.prepare() if not emulate.missing() else layers.build_layers("/bin/true", SILENT)
    assert "EDGESDK_CACHE" in problem.value.hint


def test_live_state_is_listed() -> None:
    write_state()
    (board,) = emulate.running()
    assert (board.name, board.host, board.port, board.emulated) == ("rpi5-emulated", "127.0.0.1", 1, True)


def test_recycled_pid_is_stale() -> None:
    file = write_state(pid_start="another boot:1")
    assert emulate.running() == []
    assert not file.exists()
    assert not state.board_folder("rpi5-emulated").exists()
    assert state.process_start(os.getpid()) is not None  # what had the recycled pid still lives


def test_stop_does_not_touch_a_recycled_pid() -> None:
    with subprocess.Popen(["sleep", "100"]) as bystander:
        write_state(pid=bystander.pid, pid_start="another boot:1")
        assert emulate.stop("rpi5") is False
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"name": "../other"}, {"pid": "1"}, {"binfmt": "../register"}, {"binfmt": "qemu-aarch64"}],
)
def test_strange_state_is_not_a_board(changes: dict[str, object]) -> None:
    file = write_state(**changes)
    assert emulate.running() == []
    assert not file.exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a/b", "-x", "none-emulated"])
def test_stop_of_a_strange_name(name: str, cache: Path) -> None:
    assert emulate.stop(name) is False
    assert not cache.exists()


def test_zombies_are_not_alive() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert state.process_start(process.pid) is None


def test_exclusive_lock_only_without_other_users(tmp_path: Path) -> None:
    with state.locked(tmp_path / "users", shared=True) as mine:
        with state.locked(tmp_path / "users", shared=True):
            assert state.try_exclusive(mine) is False
        assert state.try_exclusive(mine) is True


def test_wheel_cannot_leave_its_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as wheel:
        wheel.writestr("../../evil.py", "")
    (tmp_path / "packages").mkdir()
    with pytest.raises(BoardError, match="leaves its folder"):
        layers._unzip(tmp_path / "evil.whl", tmp_path / "packages")


def test_wheel_that_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "broken.whl").write_bytes(b"404")
    with pytest.raises(BoardError, match="not a wheel"):
        layers._unzip(tmp_path / "broken.whl", tmp_path)


def test_device_files_follow_the_target() -> None:
    assert RPI5.emulate is not None
    files = device_files(RPI5, RPI5.emulate, "rpi5-emulated")
    assert files["sys/firmware/devicetree/base/model"] == b"Raspberry Pi 5 Model B Rev 1.0\0"
    assert files["sys/devices/system/cpu/cpu0/regs/identification/midr_el1"] == b"0x00000000414fd0b1\n"
    assert len(files["etc/machine-id"]) == 33
    other = device_files(RPI5, RPI5.emulate, "rpi5b-emulated")
    assert files["etc/machine-id"] != other["etc/machine-id"]
    assert "asimddp" not in features_of(load_target("rpi4"))
    assert {"asimddp", "asimdhp"} <= set(features_of(load_target("jetson")))


def test_import_is_light() -> None:
    program = "import sys, edgesdk.harness.emulate; sys.exit('torch' in sys.modules or 'paramiko' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
