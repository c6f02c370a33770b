"""What every transport does, over this machine and over a real sshd on 127.0.0.1."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesdk.errors import BoardError, ConfigError, Deadline
from edgesdk.harness.board import Board
from edgesdk.harness.session import open_transport
from edgesdk.harness.transport import OUTPUT_LIMIT, Transport, file_error

HOSTILE = ["", " ", "a b", "it's", '"', "$HOME", "`id`", ";reboot", "a\nb", "../../etc", "*", "\\", "-rf", "ü…", "\x1e"]


@pytest.fixture(params=["host", "remote"])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    board: Board = request.getfixturevalue(request.param)
    opened = open_transport(board)
    yield opened
    opened.close()


def test_output_and_exit_code(transport: Transport) -> None:
    """stdout, stderr and the exit code arrive apart from one another and free of the login shell's noise."""
    completed = transport.run(["sh", "-c", "echo out; echo error >&2; exit 3"], 20)
    assert (completed.returncode, completed.stdout, completed.stderr) == (3, b"out\n", b"error\n")


def test_arguments_are_not_interpreted(transport: Transport) -> None:
    """Arguments reach the command as they are, whatever they look like to a shell."""
    code = "import sys; sys.stdout.write('|'.join(sys.argv[1:]))"
    board_python = ["python3", "-c", code]
    completed = transport.run([*board_python, *HOSTILE], 20)
    assert completed.stdout.decode() == "|".join(HOSTILE)


def test_environment(transport: Transport) -> None:
    """Variables are set, and messages are in C locale."""
    completed = transport.run(["sh", "-c", 'echo "$EDGE_X $LC_ALL"'], 20, env={"EDGE_X": "a b;c"})
    assert completed.stdout == b"a b;c C\n"


@pytest.mark.parametrize("argv", [[], [""], ["echo", "a\0b"]])
def test_impossible_commands_are_refused(transport: Transport, argv: list[str]) -> None:
    """What no command line can carry is an error before anything runs."""
    with pytest.raises(ConfigError):
        transport.run(argv, 5)


def test_input_is_delivered(transport: Transport) -> None:
    """Input larger than any window arrives whole."""
    completed = transport.run(["wc", "-c"], 30, input=b"x" * 5_000_000)
    assert completed.stdout.split() == [b"5000000"]


def test_unread_input_does_not_block(transport: Transport) -> None:
    """A command that does not read its input ends by itself."""
    assert transport.run(["true"], 30, input=b"x" * 5_000_000).returncode == 0


def test_flood_on_both_streams(transport: Transport) -> None:
    """Both streams flooded at once: no deadlock, bounded output, marked."""
    script = "head -c 9000000 /dev/zero & head -c 9000000 /dev/zero >&2; wait"
    completed = transport.run(["sh", "-c", script], 60)
    assert completed.returncode == 0
    assert completed.truncated
    for stream in (completed.stdout, completed.stderr):
        assert len(stream) < OUTPUT_LIMIT + 200
        assert b"truncated, 9000000 bytes in all" in stream[-100:]


def test_missing_command(transport: Transport) -> None:
    """A command that is not there exits with 127 and says so."""
    completed = transport.run(["edgesdk-no-such-command"], 20)
    assert completed.returncode == 127
    assert b"not found" in completed.stderr


def test_overdue_command_is_killed_with_its_children(transport: Transport, tmp_path: Path) -> None:
    """A silent command past its deadline: `Deadline`, and its whole process group is gone on the board."""
    marker = tmp_path / "pids"
    script = f'sleep 300 & echo $! > "{marker}"; echo $$ >> "{marker}"; wait'
    with pytest.raises(Deadline):
        transport.run(["sh", "-c", script], 2)
    pids = [int(line) for line in marker.read_text().split()]
    assert len(pids) == 2
    end = time.monotonic() + 10
    while any(_runs(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def test_files_travel(transport: Transport, tmp_path: Path) -> None:
    """put, put from an offset, and get keep the bytes."""
    data = bytes(range(256)) * 3000
    local = tmp_path / "local"
    local.write_bytes(data)
    transport.run(["mkdir", "-p", "t"], 20)
    transport.put(local, "t/file")
    transport.run(["sh", "-c", "head -c 1000 t/file > t/part"], 20)
    transport.put(local, "t/part", offset=1000)
    for name in ("file", "part"):
        transport.get(f"t/{name}", tmp_path / name)
        assert (tmp_path / name).read_bytes() == data


def test_get_is_bounded(transport: Transport, tmp_path: Path) -> None:
    """A file that is larger than announced is refused, also when it never ends."""
    with pytest.raises(BoardError, match="more bytes"):
        transport.get("/dev/zero", tmp_path / "zero", limit=100_000)


def test_get_of_a_missing_file(transport: Transport, tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(BoardError, match="nothing-here"):
        transport.get("nothing-here", tmp_path / "x")


@pytest.mark.parametrize("path", ["../x", "a/../../b", "", "-rf", "a b", "a;b", "$HOME/x", "a\nb", "~root"])
def test_hostile_paths_are_refused(transport: Transport, tmp_path: Path, path: str) -> None:
    """Paths on a board are plain."""
    with pytest.raises(ConfigError):
        transport.put(tmp_path / "missing", path)


def test_full_disk_has_its_own_error(transport: Transport, tmp_path: Path) -> None:
    """A write without space is told apart from other faults."""
    local = tmp_path / "local"
    local.write_bytes(b"x" * 10)
    with pytest.raises(BoardError) as caught:
        transport.put(local, "/dev/full")
    assert type(caught.value).__name__ == "DiskFull"


def test_read_only_has_its_own_error() -> None:
    """The words of the kernel decide the class."""
    assert type(file_error("b", 1, "sh: cannot create x: Read-only file system")).__name__ == "ReadOnly"


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
