"""One harness and many boards: memory with 20 light boards, and medians where several boards share one machine.

Reduced where two cores do not allow more: each of the 20 boards is started, connected to, gets the worker and is
probed, all by one process at the same time; no artifact is measured on them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BOARDS = 20
PROGRAM = r"""
import json, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from edgesdk.harness import emulate
from edgesdk.harness.facts import collect_facts, deploy_worker
from edgesdk.harness.session import Session
from edgesdk.targets import load_target
count = int(sys.argv[1])
base = load_target("rpi5")
targets = [base.model_copy(update={"aliases": (f"rpi5-{n:02d}",)}) for n in range(count)]
boards, problems, sessions = [], [], []
try:
    boards = [emulate.start(target) for target in targets]
    def work(board):
        session = Session(board)
        sessions.append(session)
        return collect_facts(session, deploy_worker(session))["machine"]
    with ThreadPoolExecutor(count) as pool:
        machines = list(pool.map(work, boards))
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    connections = len(sessions)
finally:
    for session in sessions:
        session.close()
    for target in targets:
        emulate.stop(target.short)
print(json.dumps({"peak": peak, "machines": machines, "open": connections}))
"""


def run(names: list[str]) -> dict[str, Any]:
    """Drive 20 light boards from a fresh process and read its peak memory."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as folder:
        environment = {**os.environ, "EDGESDK_LEASES": str(Path(folder) / "leases.sqlite")}
        command = [sys.executable, "-c", PROGRAM, str(BOARDS)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode:
        return {names[0]: (None, False, "unmeasured", {"reason": done.stderr.strip()[-300:]})}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    peak = found["peak"] / 1e6
    whole = found["machines"] == ["aarch64"] * BOARDS
    more = {"boards": len(found["machines"]), "reduced": "probed at the same time, not measured"}
    return {names[0]: (peak, peak <= 300 and whole, "measured", more)}
