"""Faults that need a machine of their own: a full board, a VM with a kernel and a clock of its own."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from harness_artifacts import LOAD_CODES, runner, runner_artifact

from edgesdk.harness import emulate
from edgesdk.harness.board import Board
from edgesdk.harness.emulate.requirements import find
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.session import Session
from edgesdk.harness.verify import verify_measurement
from edgesdk.targets import Target, load_target

DEADLINE_SECONDS = 600.0
QUICK = dataclasses.replace(load_profile("quick"), probe_seconds=0)
SHORT_CODES = {*LOAD_CODES, "E_IMPLAUSIBLE"}
GROUP = "/sys/fs/cgroup/small"


@pytest.fixture(scope="module")
def vm() -> Iterator[Board]:
    """The full board, taken for a real one: its rounds are timed by the guest's own clock."""
    if os.environ.get("EDGESDK_NO_EMULATION") == "1" or find("qemu-system-aarch64") is None or find("qemu-img") is None:
        pytest.skip("no qemu-system-aarch64 or qemu-img here: apt-get install qemu-system-arm qemu-utils")
    # The snapshot of the tests of the emulator: it is made once.
    own = load_target("rpi4").model_copy(update={"aliases": ("rpi4-test",)})
    with emulate.emulated(own, full=True) as board:
        yield dataclasses.replace(board, emulated=False)


@pytest.fixture
def rpi4() -> Target:
    return load_target("rpi4")


def command(board: Board, text: str) -> str:
    """What a shell command on the board prints."""
    with Session(board) as session:
        return session.step(lambda to: to.run(["sh", "-c", text], 120)).text.strip()


def run(board: Board, target: Target, folder: Path, program: bytes, **changes: Any) -> dict[str, Any]:
    """Measure one artifact; the document verifies."""
    artifact = runner_artifact(folder / "a", program.replace(sys.executable.encode(), b"/usr/bin/python3", 1))
    values: dict[str, Any] = {"evaluation": None, "profile": QUICK, "seed": 0, "workdir": folder / "work", **changes}
    (document,) = measure(board, target, [artifact], **values)
    verify_measurement(folder / "work" / document["artifact"])
    return document


def assert_only_busy(document: dict[str, Any]) -> None:
    """Nothing is wrong with it but that an emulated processor is slow and its clock coarse."""
    codes = {code for reason in document["reasons"] for code in reason.partition(":")[0].split(", ")}
    assert codes <= SHORT_CODES, document["reasons"]


def test_fault_20_board_clock_at_1970_and_a_jump_in_the_run(vm: Board, rpi4: Target, tmp_path: Path) -> None:
    """No clock chip: 1970 at first, an hour more in the middle. It is labelled; durations and the order do not care."""
    command(vm, "date -u -s @3600")

    def jump(step: str, done: int, total: int) -> None:
        if step.startswith("round 2") and not jumped:
            jumped.append(command(vm, "date -u -s @7200"))

    jumped: list[str] = []
    document = run(vm, rpi4, tmp_path, runner("time.sleep(1)"), progress=jump)
    assert_only_busy(document)
    assert jumped and len(document["rounds"]) == 2
    assert document["facts"]["clock"]["skew_s"] < -1.5e9
    assert document["facts"]["after"]["wall_clock_s"] - document["facts"]["wall_clock_s"] > 3000
    assert "clock" in document["latency_ms"]["labels"] and not any("E_CLOCK" in text for text in document["reasons"])
    assert abs(datetime.fromisoformat(document["started"]) - datetime.now(UTC)) < timedelta(hours=1)
    assert all(0 < entry["p50_ns"] < 1e9 and entry["environment"]["wall_s"] < 600 for entry in document["rounds"])


def test_fault_29_out_of_memory(vm: Board, rpi4: Target, tmp_path: Path) -> None:
    """The kernel kills the runner in a control group of 120 MB: E_OOM with the group's own count, and no retry."""
    # The worker of this board lives in the group.
    command(vm, f"mkdir -p {GROUP} && echo 120M > {GROUP}/memory.max && echo 0 > {GROUP}/memory.swap.max; "
                f"printf '#!/bin/sh\\necho $$ > {GROUP}/cgroup.procs\\nexec python3 \"$@\"\\n' > /root/small "
                "&& chmod 755 /root/small && /root/small -c 'pass'")
    small = dataclasses.replace(vm, python="/root/small")
    trace = "open('/root/oom-trace', 'a').write(options.action + chr(10)); "
    document = run(small, rpi4, tmp_path, runner(trace + "hog = options.action == 'bench' and bytearray(300 << 20)"))
    (reason,) = document["reasons"]
    assert reason.startswith("E_OOM: round 0: out of memory (SIGKILL; memory.events: oom_kill 0 → 1)"), reason
    assert not document["valid"] and not document["rounds"]
    assert command(vm, "cat /root/oom-trace").split() == ["run", "bench"]
    assert "oom_kill 1" in command(vm, f"cat {GROUP}/memory.events")
