"""Other users of a Jetson's GPU, as /sys, nvmap, tegrastats and nvidia-smi show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.harness.worker import gpu, memory, ready

CLIENTS = """CLIENT                        PROCESS      PID        SIZE
user                         gpu_burn     7979   23525644K
user                             Xorg     2651      17876K
total                                            23549320K
"""
LINE = "RAM 3168/6851MB (lfb 2x4MB) CPU [23%@1397] EMC_FREQ 2%@204 GR3D_FREQ 37%@[114] VDD_IN 2763mW/2846mW"
THOR = "RAM 4722/7844MB (lfb 1x512kB) EMC_FREQ 2%@1866 GR3D_FREQ @[1000,1000,1000] APE 150"


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Jetson: a release file, nothing in /sys, no commands."""
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.4")
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(gpu, "RELEASE", str(tmp_path / "release"))
    monkeypatch.setattr(memory, "NVMAP", str(tmp_path / "clients"))
    monkeypatch.setattr(gpu, "SYS", str(tmp_path / "sys"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path


def command(folder: Path, name: str, text: str) -> None:
    (folder / "bin" / name).write_text("#!/bin/sh\n" + text)
    (folder / "bin" / name).chmod(0o755)


def test_an_idle_gpu(jetson: Path) -> None:
    """Nothing there: nothing said. A desktop that holds memory is no user."""
    assert gpu.load() is None and ready.check_gpu() == []
    (jetson / "clients").write_text(CLIENTS.replace("gpu_burn", "gnome-shell"))
    path = jetson / "sys/devices/platform/gpu.0/load"
    path.parent.mkdir(parents=True)
    path.write_text("31\n")
    assert gpu.load() == 0.031 and ready.check_gpu() == []


def test_each_sign_of_another_user(jetson: Path) -> None:
    """Its load, its memory, its process; all in one fault with the code of other work."""
    path = jetson / "sys/class/devfreq/17000000.gpu/device/load"
    path.parent.mkdir(parents=True)
    path.write_text("870\n")
    (jetson / "clients").write_text(CLIENTS)
    command(jetson, "nvidia-smi", "echo '4711, 120 MiB'\n")
    (fault,) = ready.check_gpu()
    assert fault == {"code": "E_BACKGROUND_LOAD", "text": (
        "the GPU is 87 % busy; memory of the GPU is held by gpu_burn; compute processes on the GPU: 4711"
    )}


def test_tegrastats_where_sys_does_not_tell(jetson: Path) -> None:
    """One line is read of a program that never ends; Thor's has no percentage."""
    command(jetson, "tegrastats", f"while :; do echo '{LINE}'; sleep 0.1; done\n")
    assert gpu.load() == 0.37
    assert gpu.parse_load(THOR) is None


def test_other_boards_are_not_asked(jetson: Path) -> None:
    """A graphics card of a desktop machine is none of our business."""
    (jetson / "release").unlink()
    command(jetson, "nvidia-smi", "echo '4711, 120 MiB'\n")
    assert gpu.users() == [] and gpu.load() is None


def test_who_holds_memory_of_the_gpu() -> None:
    """Name, process and bytes; the head and the total are nobody."""
    assert memory.parse_clients(CLIENTS) == [("gpu_burn", 7979, 23525644 << 10), ("Xorg", 2651, 17876 << 10)]


NAMES = st.sampled_from(["gpu_burn", "Xorg", "python3 -m x", "7"])
CLIENT_LINES = st.tuples(NAMES, st.integers(0, 10**10), st.integers(0, 10**16))
JUNK = st.sampled_from(["", "CLIENT PROCESS PID SIZE", "total 23549320K", "user x -1 3K", "user 5 3K", "user x 5 3M"])


@given(st.lists(CLIENT_LINES | JUNK, max_size=6))
def test_clients_of_any_numbers(entries: list[tuple[str, int, int] | str]) -> None:
    """Exactly the lines that have all three, with a process number and a size that can be true."""
    lines = [entry if isinstance(entry, str) else "user {} {} {}K".format(*entry) for entry in entries]
    wanted = [entry for entry in entries if not isinstance(entry, str) and entry[1] < 10**9 and entry[2] < 10**15]
    assert memory.parse_clients("\n".join(lines)) == [(name, pid, kib << 10) for name, pid, kib in wanted]


@given(st.integers(0, 10**4), st.integers(0, 10**6), st.text(max_size=5))
def test_loads_of_any_numbers(percent: int, clock: int, text: str) -> None:
    """The share, at most 1; four digits are none, and neither is a line that does not begin as one of tegrastats."""
    line = f"GR3D_FREQ {percent}%@[{clock}] {text}"
    assert gpu.parse_load(f"RAM 1/2MB {line}") == (min(1.0, percent / 100) if percent < 1000 else None)
    assert gpu.parse_load(line) is None


@given(st.lists(st.builds("{}, {} MiB".format, st.integers(0, 10**10), st.integers()) | st.text(max_size=9)))
def test_apps_of_any_numbers(lines: list[str]) -> None:
    """Process numbers of nine digits at most, each once, in order."""
    found = gpu.parse_apps("\n".join(lines))
    assert found == sorted(set(found)) and all(0 <= pid < 10**9 for pid in found)
    left_out = {int(line.split(",")[0]) for line in lines if line.endswith(" MiB")} - set(found)
    assert all(pid >= 10**9 for pid in left_out)


def test_a_silent_tegrastats_is_not_waited_for(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line, or half of one, in time: nothing is known."""
    monkeypatch.setattr(gpu, "COMMAND_SECONDS", 0.3)
    for text in ("exec sleep 60\n", "printf 'RAM 1/2MB GR3D_FREQ 37%%'; exec sleep 60\n"):
        command(jetson, "tegrastats", text)
        assert gpu.load() is None
    command(jetson, "tegrastats", f"echo '{LINE}'; exec sleep 60\n")
    assert gpu.load() == 0.37
