"""One harness and many boards: memory with 20 light boards, and medians where several boards share one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _parts import Missing
from boards_host import demo_artifact, loopback

from edgesdk.harness import emulate
from edgesdk.harness.board import Board
from edgesdk.harness.measure import load_profile, measure
from edgesdk.targets import load_target

BOARDS, SHARED = 20, 4
SECONDS = 540
# Starts the boards, measures the artifact on all of them at the same time, and prints its own peak of memory. Who runs
# it stops the boards.
PROGRAM = r"""
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from edgesdk.harness import emulate
from edgesdk.harness.measure import load_profile, measure
from edgesdk.targets import load_target
count, artifact, work = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
base = load_target("rpi5")
targets = [base.model_copy(update={"aliases": (f"rpi5-{n:02d}",)}) for n in range(count)]
boards = [emulate.start(target) for target in targets]
def one(number):
    (document,) = measure(boards[number], targets[number], [artifact], evaluation=None,
                          profile=load_profile("smoke"), seed=0, workdir=work / str(number))
    return document["instructions"]["value"], document["reasons"]
with ThreadPoolExecutor(count) as pool:
    found = list(pool.map(one, range(count)))
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"peak": peak, "instructions": [value for value, _ in found],
                  "reasons": [reason for _, reasons in found for reason in reasons]}))
"""


def many(names: list[str]) -> dict[str, Any]:
    """Measure one artifact on 20 light boards at once from a fresh process and read its peak memory."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as name:
        folder = Path(name)
        artifact = demo_artifact(folder / "a", target="rpi5")
        environment = {**os.environ, "EDGESDK_LEASES": str(folder / "leases.sqlite")}
        command = [sys.executable, "-c", PROGRAM, str(BOARDS), str(artifact), str(folder / "work")]
        overdue, pipe = "", subprocess.PIPE
        with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                out, error = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                overdue = f"no end within {SECONDS} s"
                process.kill()
                out, error = process.communicate()
            finally:
                # Boards outlive the process that started them: whatever became of it, none stays.
                for number in range(BOARDS):
                    emulate.stop(f"rpi5-{number:02d}-emulated")
    if overdue or process.returncode:
        raise Missing(overdue or error.strip()[-300:])
    found = json.loads(out.strip().splitlines()[-1])
    peak, counts = found["peak"] / 1e6, found["instructions"]
    whole = len(counts) == BOARDS and None not in counts and not found["reasons"]
    more = {"boards": len(counts), "measured": len(counts) - counts.count(None), "reasons": found["reasons"][:5],
            "instructions": sorted(set(counts) - {None})}
    return {names[0]: (peak, peak <= 300 and whole, "measured", more)}


def shared_machine(names: list[str]) -> dict[str, Any]:
    """Boards that are this machine, each with its own sshd and home, measured at the same time by one harness; against
    one of them alone, before and after, so that a drift of the machine cancels."""
    with contextlib.ExitStack() as stack:
        boards, folders = [], []
        for _ in range(SHARED):
            board, folder = stack.enter_context(loopback())
            boards.append(dataclasses.replace(board, name=f"board-{board.port}"))
            folders.append(folder)
        artifact = demo_artifact(folders[0] / "a")
        before = _medians(boards[:1], artifact, folders[0] / "before")[0]
        together = _medians(boards, artifact, folders[0] / "together")
        after = _medians(boards[:1], artifact, folders[0] / "after")[0]
    alone = (before * after) ** 0.5
    worst = max(abs(100 * (value / alone - 1)) for value in together)
    how = f"this machine behind {SHARED} sshds of 127.0.0.1, a home each; their rounds take turns"
    more = {"boards": SHARED, "note": how, "alone_ms": [before, after], "together_ms": together}
    return {names[0]: (worst, worst <= 5, "measured", more)}


def _medians(boards: Sequence[Board], artifact: Path, work: Path) -> list[float]:
    """Medians in milliseconds of an artifact that is measured on all boards at the same time. The boards are not
    asked to be idle first: they are one machine, and all but one are busy."""
    profile = dataclasses.replace(load_profile("smoke"), extra_rounds=0, idle_seconds=0, idle_wait_seconds=0)

    def one(board: Board) -> float:
        (document,) = measure(board, load_target("host"), [artifact], evaluation=None, profile=profile, seed=0,
                              workdir=work / board.name)
        return float(document["latency_ms"]["p50"])

    with ThreadPoolExecutor(len(boards)) as pool:
        return list(pool.map(one, boards))
