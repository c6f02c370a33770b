"""The NEON build against ONNX Runtime and LiteRT, MiniLM-L6 shape, one thread, all tokens real.

    python benchmarks/neon.py [--model FOLDER]     (about 30 minutes of one core; counts already made are kept)

Instructions are counted under qemu-user by the product's plugin, which sees every instruction of the marked inference
and no other; a peer's empty interval is subtracted. Peers run the same package through EdgeSDK's converters in their
best forms (`w8a8` and `w8a8-dynamic` in both; LiteRT with XNNPACK has int8 in FULLY_CONNECTED only), and no peer counts
for more than the best form found on a real export in November 2026 (`PUBLISHED`, from the same versions and method).
A peer is fair if its sdot make up the linear layers' MACs within 2 %.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import neon_models as models
from _results import figure, write_result
from neon_count import Counts, remembered
from neon_loops import loop_figures
from neon_sparse import sparse_figures

from edgesdk.converters import converter
from edgesdk.targets import load_target

A76, A72 = "cortex-a76", "cortex-a72"
TARGETS = {A76: "raspberry-pi/5", A72: "raspberry-pi/4"}
INT8 = ("w8a8", "w8a8-dynamic")
# Millions of instructions of the best form of each peer on the export of a real model: total, SIMD.
PUBLISHED = {
    ("onnx", "int8", A76, 128): (219.90, 143.91), ("tflite", "int8", A76, 128): (161.97, 120.61),
    ("onnx", "int8", A76, 32): (49.68, 31.89), ("tflite", "int8", A76, 32): (33.41, 25.25),
    ("onnx", "int8", A72, 128): (427.68, 323.32), ("tflite", "int8", A72, 128): (407.74, 292.64),
    ("onnx", "fp32", A76, 128): (501.16, 393.35), ("tflite", "fp32", A76, 128): (507.30, 389.39),
}
NOT_BUILT = {
    "x86, w8a8, CPU time against the best peer, AMX refused to both": ("≤ 0.60×", "needs an idle machine"),
    "x86, w8a8, CPU time against the best peer, with AMX": ("≤ 1.0×", "needs an idle machine"),
    "x86, w8a8 against the best peer's fp32, CPU time": ("≤ 0.40×", "needs an idle machine"),
    "accuracy lost by w8a8 on clinc150": ("≤ 0.3 points", "no fine-tuned package at hand in this run"),
    "start to first result, cold, of ONNX Runtime's": ("≤ 0.10×", "needs an idle machine"),
    "peak RSS, w8a8, x86 process": ("≤ 30 MB", "not measured yet"),
    "peak RSS, w8a8, aarch64 VM, of ONNX Runtime's C API / Python API": ("≤ 0.5× / ≤ 0.25×", "needs the VM"),
}


class Bench:
    """Builds artifacts when a count is asked for, and counts them."""

    def __init__(self, weights: models.Arrays, folder: Path, published: tuple[str, ...] = ()) -> None:
        self.weights, self.folder = weights, folder
        self.build_seconds = 0.0
        self.published, self.taken = published, set[str]()
        self.packages: dict[tuple[str, int], Any] = {}

    def artifact(self, kind: str, scheme: str, cpu: str, sequence: int) -> Path:
        key = (scheme, sequence)
        if key not in self.packages:
            self.packages[key] = models.package(self.weights, scheme, sequence)
        path = self.folder / f"{kind}-{scheme}-{cpu}-{sequence}"
        if not path.exists():
            path.mkdir()
            start = time.monotonic()
            converter(kind).convert(self.packages[key], load_target(TARGETS[cpu]), path)
            if kind == "neon":
                self.build_seconds = max(self.build_seconds, time.monotonic() - start)
        return path

    def count(self, kind: str, scheme: str, cpu: str, sequence: int) -> Counts:
        return remembered(kind, scheme, cpu, sequence, lambda: self.artifact(kind, scheme, cpu, sequence))

    def peer(self, kind: str, schemes: tuple[str, ...], cpu: str, sequence: int) -> tuple[float, float]:
        """Total and SIMD instructions of a peer's best form."""
        known = PUBLISHED.get((kind, "int8" if schemes == INT8 else "fp32", cpu, sequence))
        if known is not None and cpu in self.published:
            self.taken.add(f"{kind} {cpu} S={sequence}")
            return known[0] * 1e6, known[1] * 1e6
        counts = [self.count(kind, scheme, cpu, sequence) for scheme in schemes]
        if schemes == INT8 and cpu == A76:
            linear = models.macs(sequence) - models.attention_macs(sequence)
            assert all(abs(entry["dot"] * 16 / linear - 1) <= 0.02 for entry in counts), f"{kind} is no fair peer"
        found = [(float(entry["total"]), float(entry["simd"])) for entry in counts]
        if known is not None:
            found.append((known[0] * 1e6, known[1] * 1e6))
        return min(total for total, _ in found), min(simd for _, simd in found)


def figures_of(bench: Bench) -> list[dict[str, Any]]:
    """Every figure of the issue; counts are `emulated`."""
    mine = {sequence: bench.count("neon", "w8a8", A76, sequence) for sequence in (128, 32)}
    lite = {sequence: bench.peer("tflite", INT8, A76, sequence) for sequence in (128, 32)}
    onnx = bench.peer("onnx", INT8, A76, 128)
    floats = [bench.peer(kind, ("fp32",), A76, 128)[0] for kind in ("onnx", "tflite")]
    total = mine[128]["total"]
    single = bench.count("neon", "fp32", A76, 128)["total"]
    old = bench.count("neon", "w8a8", A72, 128)["total"]
    old_peer = min(bench.peer(kind, INT8, A72, 128)[0] for kind in ("onnx", "tflite"))
    result = [
        plain("w8a8, S = 128, cortex-a76, instructions", total),
        plain("w8a8, S = 32, cortex-a76, instructions", mine[32]["total"]),
        plain("w8a8-dynamic, S = 128, cortex-a76, instructions", bench.count("neon", INT8[1], A76, 128)["total"]),
        plain("fp32, S = 128, cortex-a76, instructions", single),
        plain("w8a8, S = 128, cortex-a72, instructions", old),
        plain("ONNX Runtime's best int8, S = 128, cortex-a76, instructions", int(onnx[0])),
        plain("LiteRT's best int8, S = 128, cortex-a76, instructions", int(lite[128][0])),
        plain("LiteRT's best int8, S = 32, cortex-a76, instructions", int(lite[32][0])),
        plain("best peer's int8, S = 128, cortex-a72, instructions", int(old_peer)),
        plain("best peer's fp32, S = 128, cortex-a76, instructions", int(min(floats))),
        most("w8a8, S = 128, cortex-a76, of ONNX Runtime's best int8", total / onnx[0], 0.55),
        most("w8a8, S = 128, cortex-a76, of LiteRT's best int8", total / lite[128][0], 0.75),
        most("w8a8, S = 32, cortex-a76, of LiteRT's best int8", mine[32]["total"] / lite[32][0], 0.90),
        most("SIMD instructions, S = 128, cortex-a76, of the best peer's",
             mine[128]["simd"] / min(lite[128][1], onnx[1]), 0.85),
        most("w8a8, S = 128, cortex-a72, of the best peer's int8", old / old_peer, 0.85),
        most("fp32, S = 128, cortex-a76, of the best peer's fp32", single / min(floats), 0.95),
        most("w8a8, S = 128, cortex-a76, of the best peer's fp32", total / min(floats), 0.27),
        least("model MACs / 16 / instructions, S = 128, cortex-a76", models.macs(128) / 16 / total, 0.75, ""),
        least("S = 128 against S = 32, instructions, cortex-a76", total / mine[32]["total"], 3.8, "×"),
        *loop_figures(),
        *sparse_figures(bench.weights),
    ]
    if bench.build_seconds:
        seconds = bench.build_seconds
        result.append(figure("build time, the slowest of these builds", seconds, "s", "≤ 30", seconds <= 30))
    for name, (goal, reason) in NOT_BUILT.items():
        result.append(figure(name, None, "", goal) | {"reason": reason})
    return result


def plain(name: str, value: int) -> dict[str, Any]:
    return figure(name, value, "", provenance="emulated")


def most(name: str, value: float, goal: float) -> dict[str, Any]:
    return figure(name, value, "×", f"≤ {goal}×", value <= goal, "emulated")


def least(name: str, value: float, goal: float, unit: str) -> dict[str, Any]:
    return figure(name, value, unit, f"≥ {goal}", value >= goal, "emulated")


def main() -> None:
    """Build, count, write `results/neon.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="a folder of transformers with MiniLM-L6's layers")
    parser.add_argument("--write", type=Path, help="write elsewhere: a trial")
    parser.add_argument("--published", nargs="*", default=[], help="CPUs whose peers are not counted again here")
    options = parser.parse_args()
    spec = models.SPEC
    weights = models.trained_weights(options.model, spec) if options.model else models.random_weights(spec)
    with tempfile.TemporaryDirectory(prefix="edgesdk-neon-bench-") as name:
        bench = Bench(weights, Path(name), tuple(options.published))
        entries = figures_of(bench)
    kind = "trained" if options.model else "random"
    extra = {"weights": kind, "peers_as_published": sorted(bench.taken)}
    write_result("neon", entries, extra=extra, path=options.write)


if __name__ == "__main__":
    main()
