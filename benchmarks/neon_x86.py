"""The NEON build's x86 kernels against ONNX Runtime and LiteRT: CPU time of one thread, MiniLM-L6 shape, full rows.

The part `x86` of `neon.py` (about a minute).

Peers run the same packages through EdgeSDK's converters in their best forms: ONNX Runtime with uint8 activations and
LiteRT with XNNPACK (int8 in FULLY_CONNECTED only), both as `w8a8` and `w8a8-dynamic`, and fp32. One process holds all
of them, checks each against its package's golden outputs, then runs short blocks in turn; ratios are those of blocks
side by side, so a machine that slows down slows all. AMX is refused to the process; where the CPU has it, a second one
runs with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import neon_models as models
import numpy as np
from _parts import Missing
from _results import cpu_model, figure
from numpy.typing import NDArray

from edgesdk.converters import converter
from edgesdk.converters.neon.kernel_sets import choose, host_features
from edgesdk.converters.neon.library import write_library
from edgesdk.converters.neon.toolchain import find
from edgesdk.targets import load_target

OURS = "NEON build w8a8"
PEAK = "the linear layers' multiplications alone"
PEERS = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}
SCHEMES = ("w8a8", "w8a8-dynamic", "fp32")
SEQUENCES = (128, 32)
BLOCKS, BLOCK_SECONDS = 25, 0.05
LIMIT_SECONDS = 900
WORKER = Path(__file__).with_name("neon_x86_worker.py")
VNNI, AMX, FLOAT = 0.60, 1.0, 0.40  # goals: of the best peer's int8 (AMX refused, with AMX), of its fp32
Blocks = dict[str, NDArray[np.float64]]


def _ratio_name(sequence: int, amx: bool) -> str:
    return f"x86, w8a8, S = {sequence}, CPU time of the best int8 peer's, {'with AMX' if amx else 'AMX refused to all'}"


def _float_name(sequence: int) -> str:
    return f"x86, w8a8, S = {sequence}, CPU time of the best peer's fp32"


PROMISED = (
    (_ratio_name(128, False), f"≤ {VNNI:.2f}×"), (_ratio_name(128, True), f"≤ {AMX:.2f}×"),
    (_float_name(128), f"≤ {FLOAT:.2f}×"),
)


def figures(folder: Path) -> list[dict[str, Any]]:
    """Every x86 figure of CPU time; artifacts are built in `folder`.

    Raises:
        Missing: this machine has no AVX2.
    """
    if choose(load_target("host")).name == "scalar":
        raise Missing("this machine has no AVX2")
    weights = models.random_weights(models.SPEC)
    entries = []
    for sequence in SEQUENCES:
        contenders = _build(folder, weights, sequence)
        entries += _refused(_time(folder, contenders, refuse_amx=True, peak=_peak(folder, sequence)), sequence)
        entries.append(_with_amx(folder, contenders, sequence))
    return entries


def _build(folder: Path, weights: models.Arrays, sequence: int) -> list[dict[str, Any]]:
    """Our library, and both peers in every scheme: what the worker runs."""
    target, contenders = load_target("host"), []
    for scheme in SCHEMES:
        package = models.package(weights, scheme, sequence)
        kinds = ("neon", *PEERS) if scheme == "w8a8" else tuple(PEERS)
        for kind in kinds:
            path = folder / f"{kind}-{scheme}-{sequence}"
            path.mkdir()
            converter(kind).convert(package, target, path)
            name = OURS if kind == "neon" else f"{PEERS[kind]} {scheme}"
            entry = {"name": name, "kind": kind, "folder": str(path), "golden": str(path)}
            if kind == "neon":
                entry["folder"] = str(write_library(package, target, folder / f"library-{sequence}").folder)
            contenders.append(entry | {"limit": 30.0 if scheme == "w8a8" else 20.0 if scheme != "fp32" else 80.0})
    return contenders


def _peak(folder: Path, sequence: int) -> dict[str, Any] | None:
    """What shows how long this CPU's vpdpbusd takes for all linear layers; None where it has none of 512 bits."""
    kernels, library = choose(load_target("host")), folder / "peak.so"
    if "avx512_vnni" not in kernels.isa:
        return None
    source = str(Path(__file__).with_name("neon_x86_peak.c"))
    find(kernels.triple).run(("-O2", "-shared", "-fPIC", *kernels.flags, source, "-o", str(library)), folder)
    linear = models.macs(sequence) - models.attention_macs(sequence)
    return {"name": PEAK, "library": str(library), "count": linear // 64}


def _time(
    folder: Path, contenders: list[dict[str, Any]], refuse_amx: bool, peak: dict[str, Any] | None = None
) -> Blocks:
    """Milliseconds of each block by name, from one fresh process."""
    job = {
        "contenders": contenders, "blocks": BLOCKS, "block_seconds": BLOCK_SECONDS, "refuse_amx": refuse_amx,
        "peak": peak,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    command = [sys.executable, str(WORKER), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-800:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["other_threads"] > 0.02:
        raise RuntimeError(f"a runtime works in threads that the clock does not see: {answer['other_threads']:.3f}")
    return {name: np.array(values) for name, values in answer["blocks"].items()}


def _refused(blocks: Blocks, sequence: int) -> list[dict[str, Any]]:
    """CPU times, and the ratios to the best peer of each kind; AMX refused to everybody, or absent."""
    int8 = _best(blocks, ("w8a8", "w8a8-dynamic"))
    single = _best(blocks, ("fp32",))
    entries = [_milliseconds(blocks, name, sequence) for name in (OURS, int8, single)]
    goals = (VNNI, FLOAT) if sequence == 128 else (None, None)
    entries.append(_ratio(_ratio_name(sequence, False), blocks, int8, goals[0]))
    entries.append(_ratio(_float_name(sequence), blocks, single, goals[1]))
    if PEAK in blocks:
        name = f"x86, {PEAK} (vpdpbusd of 512 bits), S = {sequence}, CPU time of the best int8 peer's"
        entries.append(_ratio(name, blocks, int8, None, mine=PEAK))
    return entries


def _with_amx(folder: Path, contenders: list[dict[str, Any]], sequence: int) -> dict[str, Any]:
    goal = AMX if sequence == 128 else None
    name = _ratio_name(sequence, True)
    if "amx_int8" not in host_features():
        unmeasured = figure(name, None, "×", goal and f"≤ {goal:.2f}×")
        return unmeasured | {"reason": f"{cpu_model()} has no AMX"}
    blocks = _time(folder, contenders, refuse_amx=False)
    return _ratio(name, blocks, _best(blocks, ("w8a8", "w8a8-dynamic")), goal)


def _best(blocks: Blocks, schemes: tuple[str, ...]) -> str:
    """The peer with the lowest median, of those in one of the schemes."""
    names = [f"{peer} {scheme}" for peer in PEERS.values() for scheme in schemes]
    return min(names, key=lambda name: float(np.median(blocks[name])))


def _milliseconds(blocks: Blocks, name: str, sequence: int) -> dict[str, Any]:
    values = blocks[name]
    entry = figure(f"x86, {name}, S = {sequence}, CPU time (median)", float(np.median(values)), "ms")
    return entry | {"best": float(f"{values.min():.4g}"), "blocks": len(values)} | _machine()


def _ratio(name: str, blocks: Blocks, peer: str, goal: float | None, mine: str = OURS) -> dict[str, Any]:
    """The median ratio of neighbouring blocks; beside it that of the best blocks."""
    pairs = blocks[mine] / blocks[peer]
    value = float(np.median(pairs))
    entry = figure(name, value, "×", goal and f"≤ {goal:.2f}×", None if goal is None else value <= goal)
    best = float(blocks[mine].min() / blocks[peer].min())
    return entry | {"peer": peer, "best": float(f"{best:.4g}"), "blocks": len(pairs)} | _machine()


def _machine() -> dict[str, Any]:
    kernels = choose(load_target("host"))
    return {
        "cpu": cpu_model(), "kernels": kernels.name, "isa": list(kernels.isa), "threads": 1,
        "amx": "amx_int8" in host_features(),
        "versions": {package: version(package) for package in ("onnxruntime", "ai-edge-litert", "numpy")},
    }
