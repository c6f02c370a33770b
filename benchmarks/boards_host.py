"""Figures on this machine: overhead by loopback SSH, upload through a slow link, A/A, what the sampler costs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from _parts import Missing

from edgesdk.converters import converter
from edgesdk.demo import package_path
from edgesdk.files import sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.deploy import deploy
from edgesdk.harness.energy.plan import PLANS, EnergyPlan
from edgesdk.harness.farm import HOST
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.noise import noise_floor
from edgesdk.harness.session import Session
from edgesdk.package import read_package
from edgesdk.targets import load_target

TESTS = Path(__file__).parents[1] / "tests" / "harness"
LINK_BYTES = 12.5e6
UPLOAD_BYTES = 64 << 20
AA_RUNS = 10
CANDIDATES = 4
INTRUSION_PAIRS = 20
OVERHEAD_LIMIT_S = 1.5


@contextlib.contextmanager
def leases_in(folder: Path) -> Iterator[None]:
    """Leases lie in a folder of the benchmark's own."""
    with patch.dict(os.environ, {"EDGESDK_LEASES": str(folder / "leases.sqlite")}):
        yield


@contextlib.contextmanager
def loopback() -> Iterator[tuple[Board, Path]]:
    """This machine as a board behind a real sshd on a port of 127.0.0.1, and a folder; leases lie in the folder."""
    sys.path.insert(0, str(TESTS))
    from harness_sshd import run_sshd

    with tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as name:
        folder = Path(name)
        with leases_in(folder), run_sshd(folder / "sshd", folder / "home") as server:
            (folder / "known_hosts").write_text(server.known_hosts_line())
            yield server.board(folder / "known_hosts"), folder


def demo_artifact(folder: Path, kind: str = "neon", target: str = "host") -> Path:
    """The demo model as an fp32 artifact for this machine, or another target."""
    folder.mkdir(parents=True)
    converter(kind).convert(read_package(package_path()), load_target(target), folder)
    return folder


@contextlib.contextmanager
def slow_link(port: int) -> Iterator[int]:
    """The port of a fault proxy of 100 Mbit/s, in a process of its own: a link takes no time of the harness."""
    program = (
        "import sys, edgesdk.harness.emulate.proxy as p\n"
        f"with p.FaultProxy({port}, faults=p.Faults(bytes_per_s={LINK_BYTES})) as proxy:\n"
        "    print(proxy.port, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as link:
        assert link.stdout is not None and link.stdin is not None
        try:
            yield int(link.stdout.readline())
        finally:
            link.stdin.close()
            link.wait(20)


def upload(names: list[str]) -> dict[str, Any]:
    """A file of 64 MiB of noise through a proxy of 100 Mbit/s, hashed on the board, as `deploy` sends it."""
    with loopback() as (board, folder):
        data = os.urandom(UPLOAD_BYTES)
        (folder / "blob").write_bytes(data)
        blobs = {sha256_bytes(data): folder / "blob"}
        with slow_link(board.port) as port:
            text = (board.known_hosts or folder).read_text().replace(f":{board.port} ", f":{port} ")
            (folder / "known_proxy").write_text(text)
            slow = dataclasses.replace(board, port=port, known_hosts=folder / "known_proxy")
            with Session(slow) as session:
                deploy(session, {})
                started, cpu = time.monotonic(), time.process_time()
                deploy(session, blobs)
                seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    share = 100 * UPLOAD_BYTES / seconds / LINK_BYTES
    # What the harness itself could send, if its processor time were all that limits.
    more = {"seconds": round(seconds, 2), "bytes": UPLOAD_BYTES, "harness_cpu_s": round(cpu, 2),
            "harness_cpu_limit_mb_per_s": round(UPLOAD_BYTES / 1e6 / cpu)}
    return {names[0]: (share, share >= 80, "measured", more)}


def overhead(names: list[str]) -> dict[str, Any]:
    """Wall time of a smoke measurement of four candidates, less what the protocol prescribes: the life of each round's
    process (imports, loads, warm-up, window), the micro-probes around it, and its turn on this machine. Windows are
    short, since what they last does not count; the board is not asked to be idle first, since it is this machine."""
    profile = dataclasses.replace(
        load_profile("smoke"), extra_rounds=0, idle_seconds=0, idle_wait_seconds=0, warmup_seconds=0.2,
        max_warmup_seconds=1, window_seconds=0.3,
    )
    with loopback() as (board, folder):
        first = demo_artifact(folder / "a0")
        folders = [first, *(_named(first, folder / f"a{n}") for n in range(1, CANDIDATES))]
        started, cpu = time.monotonic(), time.process_time()
        documents = measure(
            board, load_target("host"), folders, evaluation=None, profile=profile, seed=0, workdir=folder / "work",
        )
        wall, cpu = time.monotonic() - started, time.process_time() - cpu
    assert all(document["rounds"] for document in documents), [document["reasons"] for document in documents]
    # A round that the protocol rejects is run again: that is measuring too.
    seen = [entry["environment"] for document in documents for entry in document["rounds"] + document["rejected"]]
    living = sum(entry["wall_s"] for entry in seen)
    probes = profile.probe_seconds * (len(seen) + 1)
    turns = sum(entry["waited_s"] for entry in seen)
    each = (wall - living - probes - turns) / CANDIDATES
    more = {
        "wall_s": round(wall, 2), "round_processes_s": round(living, 2), "probes_s": round(probes, 2),
        "turns_s": round(turns, 2), "harness_cpu_s": round(cpu, 2), "candidates": CANDIDATES, "rounds": len(seen),
        "note": "golden check, worker, upload, collection and documents are overhead",
    }
    return {names[0]: (each, each <= OVERHEAD_LIMIT_S, "measured", more)}


def _named(artifact: Path, folder: Path) -> Path:
    """A copy under another name: equal artifacts would be measured once."""
    import json
    import shutil

    shutil.copytree(artifact, folder)
    document = json.loads((folder / "artifact.json").read_bytes())
    document["name"] += f"-{folder.name}"
    (folder / "artifact.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    return folder


def same_artifact(names: list[str]) -> dict[str, Any]:
    """Ten real A/A runs on this machine, profile smoke without its extra rounds."""
    floors, verdicts, changed = [], [], 0
    profile = dataclasses.replace(load_profile("smoke"), extra_rounds=0)
    with tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as name:
        artifact = demo_artifact(Path(name) / "a")
        for run in range(AA_RUNS):
            work = Path(name) / f"run{run}"
            found = noise_floor(HOST, artifact, load_target("host"), profile, work, seed=run)
            floors.append(found.noise)
            verdicts.append(found.comparison.verdict)
            changed += found.comparison.changed
    more = {"noise_percent": [round(100 * value, 2) for value in floors], "verdicts": verdicts}
    return {names[0]: (changed, changed == 0, "measured", more)}


def intrusion(names: list[str]) -> dict[str, Any]:
    """The energy run of the demo on this machine with a fake INA3221 in a folder: many short windows, by turns with
    and without the sampler. The chip's registers are files here: no I2C transfer is part of the cost."""
    sys.path.insert(0, str(TESTS))
    from harness_power import ina3221

    pairs = {"smoke": EnergyPlan(INTRUSION_PAIRS, 1, 0, 1, 1, 0.5, 1, 1)}
    profile = dataclasses.replace(load_profile("smoke"), rounds=2, extra_rounds=0, window_seconds=1)
    with tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as name:
        folder = Path(name)
        ina3221(folder / "sys", [("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 200), ("VDD_SOC", 5000, 200)])
        with patch.dict(PLANS, pairs), patch.dict(os.environ, {"EDGESDK_SYSFS": str(folder / "sys")}):
            (document,) = measure(
                HOST, load_target("host"), [demo_artifact(folder / "a")], evaluation=None, profile=profile, seed=0,
                workdir=folder / "work",
            )
    assert document["rounds"] and not any("E_CRASH" in text for text in document["reasons"]), document["reasons"]
    energy = document["energy_mj"]
    found = energy.get("sampler") or {}
    if found.get("value") is None:
        raise Missing(f"the sampler's cost was not found: {energy.get('reason') or 'no window without it'}")
    percent = 100 * found["value"]
    more = {"pairs": found["pairs"], "best": found["best"], "worst": found["worst"],
            "period_ms": energy.get("period_ms"), "energy_provenance": energy["provenance"],
            "note": "the chip is files in a folder: no I2C transfer",
            "valid": document["valid"], "reasons": document["reasons"]}
    return {names[0]: (percent, percent <= 1, "measured", more)}
