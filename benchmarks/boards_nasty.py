"""Ten faults at random times, twenty times each, against a real sshd on this machine behind the fault proxy.

Each try has its own seed and a deadline; a try that ends otherwise than the protocol's section 4 wants is a miss, and
so is one that leaves a process of its job behind.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from boards_host import TESTS, loopback

from edgesdk.cli.output import say
from edgesdk.errors import Deadline, EdgeSDKError, Unreachable
from edgesdk.files import sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.deploy import deploy
from edgesdk.harness.emulate.proxy import FaultProxy
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.session import Session
from edgesdk.harness.ssh import SshTransport
from edgesdk.harness.transport import OUTPUT_LIMIT
from edgesdk.targets import load_target

TIMES, PROCESSES = 20, 5
LIMIT_S = 90.0
TRACE = "open({path!r}, 'a').write(options.action + chr(10)); time.sleep(0.2)"
HARNESS = """
import json, sys
from pathlib import Path
from edgesdk.harness.board import Board
from edgesdk.harness.measure import load_profile, measure
from edgesdk.targets import load_target
values = json.loads(sys.argv[1])
board = Board("remote", "host", host="127.0.0.1", port=values["port"], user=values["user"], key=Path(values["key"]),
              known_hosts=Path(values["known_hosts"]), python=sys.executable)
measure(board, load_target("host"), [Path(values["artifact"])], evaluation=None, profile=load_profile("quick"), seed=0,
        workdir=Path(values["work"]), progress=lambda step, done, total: print(step, flush=True))
"""


@dataclasses.dataclass
class Try:
    """One try: the board behind its proxy and directly, a folder, and a source of randomness."""

    board: Board
    direct: Board
    proxy: FaultProxy
    folder: Path
    source: random.Random

    def artifact(self) -> Path:
        """A small program as an artifact; each run of it leaves a line in `trace`."""
        from harness_artifacts import runner, runner_artifact

        return Path(runner_artifact(self.folder / "a", runner(TRACE.format(path=str(self.folder / "trace")))))

    def measured(self) -> bool:
        """Measure: right outputs from a job that was started once; that this machine is busy is no miss."""
        from harness_artifacts import assert_measured

        artifact = self.folder / "a" if (self.folder / "a").exists() else self.artifact()
        (document,) = measure(self.board, load_target("host"), [artifact], evaluation=None,
                              profile=load_profile("quick"), seed=0, workdir=self.folder / "work")
        assert_measured(document)
        return (self.folder / "trace").read_text().split().count("run") == 1


def cut(at: Try) -> bool:
    """1: the connection is cut, at a random moment of the job."""
    timer = threading.Timer(at.source.uniform(0.2, 4), at.proxy.cut)
    timer.start()
    try:
        return at.measured()
    finally:
        timer.cancel()


def no_banner(at: Try) -> bool:
    """2: a server that accepts and stays silent; refused in time, and no thread stays."""
    at.proxy.faults.silent = True
    threads = threading.active_count()
    seconds = at.source.uniform(0.2, 2)
    started = time.monotonic()
    try:
        SshTransport(at.board, connect_seconds=seconds).close()
    except Unreachable:
        late = time.monotonic() - started > seconds + 5
        for _ in range(50):
            if threading.active_count() <= threads:
                return not late
            time.sleep(0.1)
    return False


def silent_command(at: Try) -> bool:
    """3: a command that never ends: the deadline kills its process group on the board."""
    mark = f"edgesdk-{at.source.getrandbits(60)}"
    with Session(at.board) as session:
        try:
            session.once(lambda to: to.run(["sh", "-c", "sleep 1000; :", mark], at.source.uniform(0.3, 3)))
        except Deadline:
            return _gone(mark)
    return False


def flood(at: Try) -> bool:
    """4: megabytes on both streams at once: bounded, cut with a mark, no deadlock."""
    size = at.source.randrange(OUTPUT_LIMIT + 1, 6 * OUTPUT_LIMIT)
    script = f"head -c {size} /dev/zero & head -c {size} /dev/zero >&2; wait"
    with Session(at.board) as session:
        done = session.once(lambda to: to.run(["sh", "-c", script], 60))
    return done.truncated and len(done.stdout) < OUTPUT_LIMIT + 200 and len(done.stderr) < OUTPUT_LIMIT + 200


def cut_upload(at: Try) -> bool:
    """5: the upload is cut after a random number of bytes; whole in the end."""
    data = at.source.randbytes(4 << 20)
    name = sha256_bytes(data)
    (at.folder / "blob").write_bytes(data)
    with Session(at.board) as session:
        deploy(session, {})
        at.proxy.faults.cut_after_bytes = at.source.randrange(10_000, 4_000_000)
        deploy(session, {name: at.folder / "blob"})
        session.step(lambda to: to.get(f"{at.board.state}/blobs/{name}", at.folder / "back"))
    return (at.folder / "back").read_bytes() == data


def stalled(at: Try) -> bool:
    """1, by a cable: nothing moves for a while, nothing is closed; the job is collected."""
    def stall() -> None:
        at.proxy.faults.stalled = True
        time.sleep(at.source.uniform(0.5, 3))
        at.proxy.faults.stalled = False

    timer = threading.Timer(at.source.uniform(0.2, 3), stall)
    timer.start()
    try:
        return at.measured()
    finally:
        timer.join()


def killed(at: Try) -> bool:
    """14: kill -9 of the harness at a random moment; the next one goes on, nothing runs twice."""
    harness = _harness(at)
    time.sleep(at.source.uniform(0.5, 4))
    harness.kill()
    harness.wait()
    return at.measured()


def terminated(at: Try) -> bool:
    """34: SIGTERM at a random moment: the harness ends, the job's processes are gone, the next measurement works."""
    from harness_artifacts import assert_measured

    harness = _harness(at)
    time.sleep(at.source.uniform(0.5, 4))
    harness.send_signal(signal.SIGTERM)
    harness.wait(30)
    if not _gone(str(at.folder / "a")) or not _gone(str(at.folder / "work")):
        return False
    (document,) = measure(at.board, load_target("host"), [at.folder / "a"], evaluation=None,
                          profile=load_profile("quick"), seed=0, workdir=at.folder / "again")
    assert_measured(document)
    return True


def hostile_names(at: Try) -> bool:
    """36: words of random hostile characters reach the board as they are."""
    letters = " '\";\n$`\\|&<>*?[]{}()~!#\t../éa-"
    words = ["".join(at.source.choices(letters, k=at.source.randrange(1, 60))) for _ in range(8)]
    with Session(at.board) as session:
        done = session.once(lambda to: to.run(["printf", "%s\\0", *words], 30))
    return done.stdout == b"".join(word.encode() + b"\0" for word in words)


def slow_network(at: Try) -> bool:
    """44: a slow link with delay: the measurement takes longer, nothing times out."""
    at.proxy.faults.bytes_per_s = at.source.uniform(125_000, 1_000_000)
    at.proxy.faults.delay_s = at.source.uniform(0, 0.15)
    return at.measured()


FAULTS: list[Callable[[Try], bool]] = [
    cut, no_banner, silent_command, flood, cut_upload, stalled, killed, terminated, hostile_names, slow_network,
]


def run(names: list[str]) -> dict[str, Any]:
    """All faults, all times, each fault in a process with a board of its own; misses are named."""
    misses: list[str] = []
    # Most of a try is waiting, so that several run at once.
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_all_times, index): fault for index, fault in enumerate(FAULTS)}
        for done in as_completed(running):
            missed, seconds = done.result()
            say(f"{running[done].__name__}: {TIMES - len(missed)} of {TIMES} in {seconds:.0f} s")
            misses += missed
    passed = TIMES * len(FAULTS) - len(misses)
    return {names[0]: (passed, not misses, "measured", {"misses": sorted(misses)})}


def _all_times(index: int) -> tuple[list[str], float]:
    """The misses of one fault, and the seconds that all of its tries took."""
    sys.path.insert(0, str(TESTS))
    fault = FAULTS[index]
    started = time.monotonic()
    with loopback() as (direct, folder):
        reasons = [_one(fault, number, direct, folder) for number in range(TIMES)]
    missed = [f"{fault.__name__} {number}: {reason}" for number, reason in enumerate(reasons) if reason is not None]
    return missed, time.monotonic() - started


def _one(fault: Callable[[Try], bool], number: int, direct: Board, folder: Path) -> str | None:
    """Run one try; gives why it is a miss."""
    source = random.Random(f"{fault.__name__} {number}")
    started = time.monotonic()
    with FaultProxy(direct.port, seed=number) as proxy, tempfile.TemporaryDirectory(dir=folder) as name:
        assert direct.known_hosts is not None
        pinned = Path(name) / "known_hosts"
        pinned.write_text(direct.known_hosts.read_text().replace(f":{direct.port} ", f":{proxy.port} "))
        board = dataclasses.replace(direct, port=proxy.port, known_hosts=pinned)
        try:
            if not fault(Try(board, direct, proxy, Path(name), source)):
                return "another outcome"
        except (EdgeSDKError, OSError, subprocess.SubprocessError, AssertionError) as problem:
            return f"{type(problem).__name__}: {problem}"[:300]
    seconds = time.monotonic() - started
    return f"took {seconds:.0f} s" if seconds > LIMIT_S else None


def _harness(at: Try) -> subprocess.Popen[bytes]:
    """A harness in a process of its own that measures the try's artifact."""
    import json

    at.artifact()
    values = {"port": at.board.port, "user": at.board.user, "key": str(at.board.key), "work": str(at.folder / "work"),
              "known_hosts": str(at.board.known_hosts), "artifact": str(at.folder / "a")}
    command = [sys.executable, "-c", HARNESS, json.dumps(values)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)


def _gone(mark: str) -> bool:
    """Whether no process with this word in its command line is left, within a few seconds."""
    for _ in range(60):
        found = False
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found = found or mark.encode() in path.read_bytes()
            except OSError:
                continue
        if not found:
            return True
        time.sleep(0.1)
    return False
