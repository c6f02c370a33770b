"""Executed instructions of the NEON build and of its peers: the part `counts` of `neon.py`."""

from __future__ import annotations

from typing import Any

import neon_peers as peers
from _parts import Found
from _results import figure
from neon_models import macs
from neon_peers import A72, A76, LITE, ONNX, Best, Builder

SCHEMES = ("w8a8", "w8a8-dynamic", "fp32")
PLACES = ((A76, 128), (A76, 32), (A72, 128), (A72, 32))
PROMISED = (
    ("w8a8, S = 128, cortex-a76, of ONNX Runtime's best int8", "≤ 0.55×"),
    ("w8a8, S = 128, cortex-a76, of LiteRT's best int8", "≤ 0.75×"),
    ("w8a8, S = 32, cortex-a76, of LiteRT's best int8", "≤ 0.9×"),
    ("SIMD instructions, S = 128, cortex-a76, of the best peer's", "≤ 0.85×"),
    ("w8a8, S = 128, cortex-a72, of the best peer's int8", "≤ 0.85×"),
    ("fp32, S = 128, cortex-a76, of the best peer's fp32", "≤ 0.95×"),
    ("w8a8, S = 128, cortex-a76, of the best peer's fp32", "≤ 0.27×"),
    ("model MACs / 16 / instructions, S = 128, cortex-a76", "≥ 0.75"),
    ("S = 128 against S = 32, instructions, cortex-a76", "≥ 3.8"),
)


def run(builder: Builder) -> Found:
    """Every figure that is a count, and the table of all forms; all `emulated`."""
    figures, rows = [], []
    ours: dict[tuple[str, str, int], dict[str, int]] = {}
    best: dict[tuple[str, bool, str, int], Best] = {}
    for cpu, sequence in PLACES:
        for scheme in SCHEMES:
            counts = ours[scheme, cpu, sequence] = builder.count("neon", scheme, cpu, sequence)
            figures.append(_plain(f"{scheme}, S = {sequence}, {cpu}, instructions", counts["total"]))
            done = peers.our_work(counts, builder.model, sequence)
            share = f"{100 * peers.int8_macs(counts) / macs(sequence, builder.model.spec):.1f} %"
            rows.append([cpu, sequence, "**EdgeSDK**", f"NEON build, {scheme}", *peers.classes(counts), share, done])
        found = peers.counted(builder, cpu, sequence)
        rows += peers.table(found, builder.model, cpu, sequence)
        for runtime in (ONNX, LITE):
            for int8 in (True, False):
                one = best[runtime, int8, cpu, sequence] = peers.best(
                    found, runtime, int8, cpu, builder.model, sequence
                )
                kind = "int8" if int8 else "fp32"
                name = f"{runtime}'s best {kind}, S = {sequence}, {cpu}, instructions"
                figures.append(_plain(name, round(one.total)) | {"note": one.form})
    figures += _ratios(builder, ours, best)
    title = "Millions of executed instructions for one inference, all tokens real, one thread:"
    return figures, [{"title": title, "columns": peers.COLUMNS, "rows": rows}]


def _ratios(
    builder: Builder, ours: dict[tuple[str, str, int], dict[str, int]], best: dict[tuple[str, bool, str, int], Best]
) -> list[dict[str, Any]]:
    """The figures that have goals."""

    def least(int8: bool, cpu: str, sequence: int) -> Best:
        return min((best[runtime, int8, cpu, sequence] for runtime in (ONNX, LITE)), key=lambda one: one.total)

    mine, short = ours["w8a8", A76, 128], ours["w8a8", A76, 32]
    onnx, lite, lite_short = best[ONNX, True, A76, 128], best[LITE, True, A76, 128], best[LITE, True, A76, 32]
    old, single = least(True, A72, 128), least(False, A76, 128)
    old_short = least(True, A72, 32)
    simd = min(onnx, lite, key=lambda one: one.simd)
    values = (
        (mine["total"] / onnx.total, 0.55, onnx.form), (mine["total"] / lite.total, 0.75, lite.form),
        (short["total"] / lite_short.total, 0.90, lite_short.form),
        (mine["simd"] / simd.simd, 0.85, simd.simd_form),
        (ours["w8a8", A72, 128]["total"] / old.total, 0.85, old.form),
        (ours["fp32", A76, 128]["total"] / single.total, 0.95, single.form),
        (mine["total"] / single.total, 0.27, single.form),
    )
    figures = []
    for (name, _), (value, goal, form) in zip(PROMISED, values, strict=False):
        entry = figure(name, value, "×", f"≤ {goal}×", value <= goal, "emulated")
        figures.append(entry | {"note": f"against: {form}"})
    share = macs(128, builder.model.spec) / 16 / mine["total"]
    falls = mine["total"] / short["total"]
    return [
        *figures,
        figure(PROMISED[7][0], share, "", "≥ 0.75", share >= 0.75, "emulated"),
        figure(PROMISED[8][0], falls, "×", "≥ 3.8", falls >= 3.8, "emulated"),
        figure("w8a8, S = 32, cortex-a72, of the best peer's int8", ours["w8a8", A72, 32]["total"] / old_short.total,
               "×", provenance="emulated") | {"note": f"against: {old_short.form}"},
    ]


def _plain(name: str, value: int) -> dict[str, Any]:
    return figure(name, value, "", provenance="emulated")
