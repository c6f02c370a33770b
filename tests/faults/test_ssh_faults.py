"""Faults on the way to a board: keys, silence, floods, cuts, limits. All servers listen on 127.0.0.1."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness_artifacts import assert_measured, runner, runner_artifact
from harness_sshd import Server, free_port, make_key, run_sshd

from edgesdk.errors import BoardError, ConfigError, Deadline, HostKey, Unreachable
from edgesdk.files import sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.connection import COMMANDS, CONNECT_SECONDS
from edgesdk.harness.deploy import deploy
from edgesdk.harness.emulate.proxy import FaultProxy
from edgesdk.harness.hostkeys import scan_host_key, trust
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.session import Session
from edgesdk.harness.ssh import SshTransport
from edgesdk.harness.transport import OUTPUT_LIMIT, transfer_seconds
from edgesdk.targets.target import Target

QUICK = load_profile("quick")
# Each run of the artifact leaves a line, so that a second start would be seen.
TRACE = "open('{path}', 'a').write(options.action + chr(10)); time.sleep({sleep})"


def test_fault_01_cut_in_mid_run(
    behind: Board, proxy: FaultProxy, target: Target, tmp_path: Path
) -> None:
    """The connection dies while the job runs: the job goes on, its result is collected, nothing was started twice."""
    trace = tmp_path / "trace"
    folder = runner_artifact(tmp_path / "a", runner(TRACE.format(path=trace, sleep=1)))
    cuts: list[str] = []

    def cut(step: str, done: int, total: int) -> None:
        if step.startswith("golden") and not cuts:
            cuts.append(step)
            proxy.cut()

    (document,) = measure(
        behind, target, [folder], evaluation=None, profile=QUICK, seed=0, workdir=tmp_path / "work", progress=cut
    )
    assert_measured(document)
    assert cuts and proxy.connections >= 2
    actions = trace.read_text().split()
    assert actions.count("run") == 1 and actions.count("bench") >= len(document["rounds"])


def test_fault_02_no_banner(remote: Board, proxy: FaultProxy) -> None:
    """A server that accepts and says nothing: an error within 15 s, and no thread is left."""
    proxy.faults.silent = True
    board = dataclasses.replace(remote, port=proxy.port)
    assert CONNECT_SECONDS <= 15
    with pytest.raises(Unreachable, match=r"remote .*no answer within (1|0\.\d) s") as caught:
        SshTransport(board, connect_seconds=1)
    assert caught.value.exit_code == 4 and proxy.connections == 1


def test_fault_03_silent_command(behind: Board, tmp_path: Path) -> None:
    """A command that never ends and says nothing: `Deadline`, and its process group is gone on the board."""
    marker = tmp_path / "pids"
    script = f'sleep 300 & echo $! > "{marker}"; echo $$ >> "{marker}"; wait'
    transport = SshTransport(behind)
    with pytest.raises(Deadline, match="sh did not end within 2 s, killed") as caught:
        transport.run(["sh", "-c", script], 2)
    assert caught.value.exit_code == 7
    pids = [int(line) for line in marker.read_text().split()]
    assert len(pids) == 2
    end = time.monotonic() + 15
    while any(runs(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in pids)
    assert transport.run(["echo", "still here"], 60).stdout == b"still here\n"
    transport.close()


def test_fault_04_flood(remote: Board) -> None:
    """100 MB to each of stdout and stderr at once: no deadlock, a mark in the log, and bounded memory."""
    transport = SshTransport(remote)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of this process starts again from here
    before = memory("VmRSS")
    script = "head -c 100000000 /dev/zero & head -c 100000000 /dev/zero >&2; wait"
    completed = transport.run(["sh", "-c", script], 200)
    assert completed.returncode == 0 and completed.truncated
    for stream in (completed.stdout, completed.stderr):
        assert len(stream) < OUTPUT_LIMIT + 200 and b"truncated, 100000000 bytes in all" in stream[-100:]
    assert memory("VmHWM") - before < 64 << 20
    transport.close()


def test_flood_without_end_is_stopped(remote: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command, or a login shell, that prints for ever is killed long before its deadline."""
    monkeypatch.setattr("edgesdk.harness.transport.FLOOD_BYTES", 3_000_000)
    transport = SshTransport(remote)
    with pytest.raises(BoardError, match="of output from one command"):
        transport.run(["yes"], 200)
    monkeypatch.setattr("edgesdk.harness.ssh.NOISE_BYTES", 3_000_000)
    monkeypatch.setattr("edgesdk.harness.ssh.FRAME", "exec yes {}")
    with pytest.raises(BoardError, match="login shell prints without end"):
        transport.run(["true"], 200)
    transport.close()


def test_fault_12_unknown_host_key(remote: Board, tmp_path: Path) -> None:
    """Refused; the message names the file, the fingerprint and the command; nothing is written."""
    board = dataclasses.replace(remote, known_hosts=tmp_path / "empty")
    with pytest.raises(HostKey) as caught:
        SshTransport(board)
    found = scan_host_key("127.0.0.1", remote.port)
    for words in (str(tmp_path / "empty"), found.fingerprint, "edgesdk boards trust remote"):
        assert words in str(caught.value)
    assert not (tmp_path / "empty").exists()
    for wrong in ("", "yes", found.fingerprint[:-1]):
        with pytest.raises(HostKey):
            trust(board, wrong)
    trust(board, found.fingerprint)
    SshTransport(board).close()


def test_fault_11_changed_host_key(remote: Board, tmp_path: Path) -> None:
    """Refused; old and new fingerprints are shown."""
    make_key(tmp_path / "other")
    kind, data = (tmp_path / "other.pub").read_text().split()[:2]
    assert remote.known_hosts is not None
    remote.known_hosts.write_text(f"# the desk\n[127.0.0.1]:{remote.port} {kind} {data}\n")
    with pytest.raises(HostKey) as caught:
        SshTransport(remote)
    assert caught.value.message.count("SHA256:") == 2 and f"{remote.known_hosts}:2 pins" in caught.value.message
    assert scan_host_key("127.0.0.1", remote.port).fingerprint in caught.value.message


def test_trust_needs_the_right_fingerprint(remote: Board, tmp_path: Path) -> None:
    """Only the fingerprint of the shown key, typed, pins it; other lines of the file stay."""
    path = tmp_path / "pins"
    path.write_text("other ssh-ed25519 AAAA")
    board = dataclasses.replace(remote, known_hosts=path)
    fingerprint = scan_host_key("127.0.0.1", remote.port).fingerprint
    for wrong in ("", "yes", fingerprint[:-1], fingerprint.lower()):
        with pytest.raises(HostKey):
            trust(board, wrong)
    assert path.read_text() == "other ssh-ed25519 AAAA"
    trust(board, f" {fingerprint}\n")
    assert path.read_text().startswith("other ssh-ed25519 AAAA\n[127.0.0.1]:")
    SshTransport(board).close()


def test_unreachable() -> None:
    """Nobody listens: host and port are named, with a hint."""
    port = free_port()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port}") as caught:
        scan_host_key("127.0.0.1", port)
    assert caught.value.hint


def test_key_that_is_not_allowed(remote: Board, tmp_path: Path) -> None:
    """The message names user and key."""
    board = dataclasses.replace(remote, key=make_key(tmp_path / "stranger"))
    with pytest.raises(BoardError, match="stranger"):
        SshTransport(board)


@pytest.mark.parametrize("content", [None, "not a key"])
def test_unusable_private_key(remote: Board, tmp_path: Path, content: str | None) -> None:
    """A key file that is missing or broken is the user's to correct."""
    if content:
        (tmp_path / "bad").write_text(content)
    with pytest.raises(ConfigError, match="bad"):
        SshTransport(dataclasses.replace(remote, key=tmp_path / "bad"))


def test_cut_during_a_command(behind: Board, proxy: FaultProxy) -> None:
    """A connection that dies under a command is `Unreachable`, not a hang and not a result."""
    transport = SshTransport(behind)
    threading.Timer(1, proxy.cut).start()
    with pytest.raises(Unreachable):
        transport.run(["sleep", "5"], 60)  # nothing can end it over a cut line
    transport.close()


def test_stalled_line(behind: Board, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that goes silent: `Deadline`, although nothing can be killed over it."""
    monkeypatch.setattr("edgesdk.harness.ssh.KILL_SECONDS", 0.5)
    transport = SshTransport(behind)
    proxy.faults.stalled = True
    try:
        with pytest.raises(Deadline):
            transport.run(["true"], 1)
    finally:
        proxy.faults.stalled = False
        transport.close()


def test_fault_05_cut_upload(
    behind: Board, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in the middle of an upload: reconnected, continued from the part, whole in the end; no half file before."""
    data = bytes(range(256)) * 32000
    name = sha256_bytes(data)
    (tmp_path / "blob").write_bytes(data)
    offsets: list[int] = []
    names: list[str] = []
    original = SshTransport.put

    def put(self: SshTransport, local: Path, remote: str, offset: int = 0) -> None:
        offsets.append(offset)
        names.append(remote)
        original(self, local, remote, offset)

    monkeypatch.setattr(SshTransport, "put", put)
    with Session(behind) as session:
        deploy(session, {})
        proxy.faults.cut_after_bytes = 6_000_000  # more than sshd's window of 2 MiB, so that some of it was written
        deploy(session, {name: tmp_path / "blob"})
        session.step(lambda transport: transport.get(f"{behind.state}/blobs/{name}", tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    assert offsets[0] == 0 and len(offsets) == 2 and offsets[1] > 0
    assert all(remote.endswith(f"{name}.part") for remote in names)
    assert proxy.connections == 2


def test_upload_of_which_nothing_moves(
    behind: Board, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer over a line that went silent is given up long before its deadline, and done over a new connection."""
    monkeypatch.setattr("edgesdk.harness.transport.SILENCE_SECONDS", 1.0)
    monkeypatch.setattr("edgesdk.harness.ssh.KILL_SECONDS", 0.5)
    data = bytes(range(256)) * 40000
    name = sha256_bytes(data)
    (tmp_path / "blob").write_bytes(data)
    assert transfer_seconds(len(data)) > 60
    with Session(behind) as session:
        deploy(session, {})
        proxy.faults.bytes_per_s = 5e6
        before = proxy.up_bytes

        def stall() -> None:
            while proxy.up_bytes < before + 1_000_000:
                time.sleep(0.005)
            proxy.faults.stalled = True
            time.sleep(4)
            proxy.faults.stalled = False

        trouble = threading.Thread(target=stall)
        trouble.start()
        deploy(session, {name: tmp_path / "blob"})
        trouble.join()
    assert proxy.connections >= 2


def test_fault_38_shell_that_prints(remote: Board, server: Server) -> None:
    """Text of .bashrc on both streams, also escape sequences and what looks like ours, is no part of any answer."""
    profile = server.folder.parent / "home" / ".bashrc"
    kept = profile.read_text()
    noise = "printf '\\036deadbeef 12\\n\\033[2J'; echo more >&2; export PAGER=less LANG=de_DE LC_ALL=\n"
    profile.write_text(kept + noise)
    try:
        transport = SshTransport(remote)
        completed = transport.run(["sh", "-c", 'echo "$LC_ALL"; echo words >&2'], 60)
        assert (completed.stdout, completed.stderr) == (b"C\n", b"words\n")
        transport.close()
    finally:
        profile.write_text(kept)


def test_fault_39_one_of_twenty_boards_hangs(server: Server, tmp_path: Path) -> None:
    """Twenty boards at once: the one that hangs ends at its own deadline, the others never notice; threads are few."""
    proxies = [FaultProxy(server.port) for _ in range(20)]
    boards = []
    for number, proxy in enumerate(proxies):
        known_hosts = tmp_path / f"known_{number}"
        known_hosts.write_text(server.known_hosts_line().replace(str(server.port), str(proxy.port), 1))
        boards.append(dataclasses.replace(server.board(known_hosts), port=proxy.port, name=f"board{number}"))
    before = threading.active_count()
    peak: list[int] = []

    def work(number: int) -> str:
        try:
            transport = SshTransport(boards[number], connect_seconds=60)
        except BoardError as problem:
            return type(problem).__name__
        try:
            for turn in range(3):
                assert transport.run(["echo", str(turn)], 120).stdout == f"{turn}\n".encode()
                peak.append(threading.active_count())
            return "done"
        except BoardError as problem:
            return type(problem).__name__
        finally:
            transport.close()

    try:
        with ThreadPoolExecutor(20) as pool:
            proxies[7].faults.silent = True
            results = list(pool.map(work, range(20)))
    finally:
        for proxy in proxies:
            proxy.close()
    assert [number for number, result in enumerate(results) if result != "done"] == [7], results
    assert results[7] == "Unreachable"
    assert max(peak) - before <= 3 * 20  # a worker, a connection and a watchdog for each


def test_fault_42_session_limits(tmp_path: Path) -> None:
    """sshd with few sessions and start-ups: a process uses one connection, at most four sessions, and asks again."""
    with run_sshd(tmp_path / "sshd", tmp_path / "board") as small:
        config = tmp_path / "sshd/sshd_config"
        assert "MaxStartups 50" in config.read_text()
    config.write_text(config.read_text().replace("MaxStartups 50", f"MaxStartups 1\nMaxSessions {COMMANDS}"))
    with serve_again(tmp_path / "sshd", small) as again, FaultProxy(again.port) as proxy:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(again.known_hosts_line().replace(str(again.port), str(proxy.port), 1))
        board = dataclasses.replace(again.board(known_hosts), port=proxy.port)

        def work(number: int) -> bytes:
            transport = SshTransport(board, connect_seconds=60)
            try:
                return transport.run(["sh", "-c", f"sleep 0.2; echo {number}"], 120).stdout
            finally:
                transport.close()

        holder = SshTransport(board, connect_seconds=60)
        with ThreadPoolExecutor(10) as pool:
            assert list(pool.map(work, range(10))) == [f"{number}\n".encode() for number in range(10)]
        holder.close()
        assert proxy.connections == 1


def test_server_that_hangs_up_is_asked_again(behind: Board, proxy: FaultProxy) -> None:
    """`MaxStartups` closes a connection before its banner: it is opened again, after a pause, within the deadline."""
    proxy.faults.refused = True
    relent = threading.Timer(0.3, setattr, (proxy.faults, "refused", False))
    relent.start()
    transport = SshTransport(behind, connect_seconds=60)
    assert transport.run(["echo", "in"], 60).stdout == b"in\n"
    transport.close()
    relent.join()
    assert proxy.connections >= 2


def test_fault_44_slow_network(behind: Board, proxy: FaultProxy, tmp_path: Path) -> None:
    """1 Mbit/s and 300 ms each way: everything arrives, progress is shown, and no check runs into its deadline."""
    data = bytes(range(256)) * 600
    blobs = {}
    for part in (data, data[::-1]):
        (tmp_path / sha256_bytes(part)).write_bytes(part)
        blobs[sha256_bytes(part)] = tmp_path / sha256_bytes(part)
    proxy.faults.bytes_per_s, proxy.faults.delay_s = 1e6 / 8, 0.3
    steps: list[tuple[str, int, int]] = []
    with Session(behind) as session:
        assert deploy(session, blobs, lambda *step: steps.append(step)) == 2 * len(data)
    assert [step[1] for step in steps] == [0, len(data), 2 * len(data)]
    assert transfer_seconds(100 << 20) > 8 * (100 << 20) / 1e6  # the deadline grows faster than 1 Mbit/s takes
    assert proxy.connections == 1


def test_shell_that_runs_nothing(remote: Board, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account without a usable shell is named as such."""
    from edgesdk.harness import ssh

    def stubborn(argv: Any) -> str:
        return "echo This account is not available >&2; exit 1"

    transport = SshTransport(remote)
    monkeypatch.setattr(ssh.shlex, "join", stubborn)
    monkeypatch.setattr(ssh, "FRAME", "{}")
    with pytest.raises(BoardError, match="login shell"):
        transport.run(["true"], 20)
    transport.close()


def serve_again(folder: Path, before: Server) -> Any:
    """sshd with the changed configuration of `folder`, on the same port."""
    import contextlib
    import socket
    import subprocess

    from harness_sshd import SSHD

    @contextlib.contextmanager
    def serve() -> Any:
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
            try:
                for _ in range(200):
                    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", before.port), 1):
                        break
                    time.sleep(0.05)
                time.sleep(1)  # the look at the port is a start-up too, until sshd has seen that it is gone
                yield dataclasses.replace(before, process=process)
            finally:
                process.terminate()
                process.wait(10)

    return serve()


def memory(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def runs(pid: int) -> bool:
    """Is it a process that is not a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
