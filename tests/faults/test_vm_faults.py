"""Faults that need a machine of their own: a full board, a VM with a kernel and a clock of its own."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from harness_artifacts import LOAD_CODES, runner, runner_artifact

from edgesdk.harness import emulate
from edgesdk.harness.board import Board
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.session import Session
from edgesdk.harness.verify import verify_measurement
from edgesdk.targets import Target, load_target
from edgesdk.testing.needs import need

DEADLINE_SECONDS = 600.0
QUICK = dataclasses.replace(load_profile("quick"), probe_seconds=0)
SHORT_CODES = {*LOAD_CODES, "E_IMPLAUSIBLE"}
GROUP = "/sys/fs/cgroup/small"
CPU = "/sys/devices/system/cpu"
GOVERNOR = f"{CPU}/cpufreq/policy0/scaling_governor"
# At each boot: the kernel's command line without the word by which a full board says that it is emulated, and the
# governor of a Pi, which the virtual machine does not have.
BOOT = f"""set -e
sed s/edgesdk.id=/id=/ /proc/cmdline > /run/cmdline; mount --bind /run/cmdline /proc/cmdline
mkdir /run/cpu; mount --bind {CPU} /run/cpu; mount -t tmpfs tmpfs {CPU}; ln -s /run/cpu/* {CPU}
mkdir -p {GOVERNOR.rpartition("/")[0]}; echo ondemand > {GOVERNOR}
"""
BOOT_AGAIN = f"""set -e; printf %s {shlex.quote(BOOT)} > /root/boot
sed -i '/sbin.sshd/i sh /root/boot' /sbin/edge-init; sync; sh /root/boot"""
# Notes each start of the runner and the governor. The first start of round 3 hangs until the power is cut.
HANG = (
    f"governor = open({GOVERNOR!r}).read().strip(); trace = open('/root/cut-trace', 'a+'); "
    "name = os.path.basename(str(options.samples)) if options.action == 'bench' else options.action; "
    "trace.write(name + ' ' + governor + chr(10)); trace.flush(); os.fsync(trace.fileno()); trace.seek(0); "
    "name == 'c0-round2.bin' and trace.read().count(name) == 1 and time.sleep(600)"
)


@pytest.fixture(scope="module")
def vm() -> Iterator[Board]:
    """The full board, taken for a real one: its rounds are timed by the guest's own clock."""
    missing = emulate.missing(full=True)
    need(not missing, f"a full emulated board needs {', '.join(missing)}")
    # The snapshot of the tests of the emulator: it is made once.
    own = load_target("rpi4").model_copy(update={"aliases": ("rpi4-test",)})
    with emulate.emulated(own, full=True) as board:
        real = dataclasses.replace(board, emulated=False)
        command(real, BOOT_AGAIN)
        yield real


@pytest.fixture
def rpi4() -> Target:
    return load_target("rpi4")


def command(board: Board, text: str) -> str:
    """What a shell command on the board prints."""
    with Session(board) as session:
        ended = session.step(lambda to: to.run(["sh", "-c", text], 120))
    assert ended.returncode == 0, f"{text}: {ended.error_text}"
    return ended.text.strip()


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


def test_fault_09_reboot_between_rounds(vm: Board, rpi4: Target, tmp_path: Path) -> None:
    """The power is cut in round 3: rounds 1 and 2 are kept, the third runs again with the clocks locked again."""

    def cut(step: str, done: int, total: int) -> None:
        if step.startswith("round 3") and not cuts:
            cuts.append(step)
            emulate.power_cycle(vm.name)

    cuts: list[str] = []
    three = dataclasses.replace(QUICK, rounds=3)
    document = run(vm, rpi4, tmp_path, runner(HANG), profile=three, progress=cut)
    assert cuts
    assert_only_busy(document)
    assert [(entry["index"], entry["start"]) for entry in document["rounds"]] == [(0, 0), (1, 0), (2, 1)]
    before, after = (start["boot_id"] for start in document["facts"]["starts"])
    assert before != after == command(vm, "cat /proc/sys/kernel/random/boot_id")
    assert "rebooted" in document["latency_ms"]["labels"]
    starts = Counter(command(vm, "cat /root/cut-trace").splitlines())
    first = {f"c0-round{index}.bin performance": count for index, count in enumerate((1, 1, 2))}
    assert starts["run ondemand"] == 1 and {line: starts[line] for line in first} == first, "good rounds were done once"
    assert all(line.endswith(" performance") for line in starts if line != "run ondemand")
    assert command(vm, f"cat {GOVERNOR}") == "ondemand"


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
