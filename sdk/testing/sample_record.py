"""A realistic build, the same at every call: for tests of the store, of selection and of reports.

Raw samples are written as the worker writes them, and figures computed from them as the harness does, so that the
store's audit passes. The figures themselves are invented, of the size of a small ViT's.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from edgesdk.bounds import wilson_lower95
from edgesdk.files import sha256_bytes
from edgesdk.harness import figures
from edgesdk.record import (
    AccuracyRecord,
    BaselineRecord,
    BuildRecord,
    CandidateRecord,
    Figures,
    StageRecord,
)

ROWS, SAMPLE_ROWS, BASELINE = 360, 200, 0.975
HOSTILE = """<script>alert("x")</script> ' & ]]> --> {{ 7*7 }} | `tick` \\ $(id)"""

# name → scheme, converter, recipe, model bytes, runtime bytes, p50 in ns, instructions, right of 360, peak RSS
_MEASURED = {
    "digits-fp32-onnx": ("fp32", "onnx", "fp32", 622_755, 0, 182_400, 9_812_400, 351, 61_300_000),
    "digits-fp32-tflite": ("fp32", "tflite", "fp32", 623_648, 0, 171_900, 9_404_112, 351, 34_200_000),
    "digits-fp32-neon": ("fp32", "neon", "fp32", 629_175, 827_769, 158_300, 8_120_334, 351, 2_410_000),
    "digits-int8-onnx": ("w8a8", "onnx", "int8", 212_896, 0, 131_700, 6_230_118, 350, 60_100_000),
    "digits-int8-tflite": ("w8a8", "tflite", "int8", 196_752, 0, 96_400, 4_418_097, 350, 33_600_000),
    "digits-int8-neon": ("w8a8", "neon", "int8", 196_553, 826_215, 71_200, 2_871_440, 350, 1_960_000),
    "digits-int8-dynamic-onnx": ("w8a8-dynamic", "onnx", "int8-dynamic", 195_681, 0, 148_800, 7_001_925, 351,
                                 60_400_000),
    "digits-small-onnx": ("w8a8", "onnx", "small", 162_104, 0, 118_100, 5_511_380, 348, 59_900_000),
    "digits-small-tflite": ("w8a8", "tflite", "small", 146_112, 0, 83_600, 3_705_554, 348, 33_500_000),
    "digits-small-neon": ("w8a8", "neon", "small", 146_377, 826_215, 70_300, 2_310_771, 348, 1_910_000),
    "digits-small-dynamic-neon": ("w8a8-dynamic", "neon", "small", 145_343, 827_249, 64_900, 2_480_006, 342, 1_920_000),
}


def sample_record(folder: Path, emulated: bool = False, hostile: bool = False) -> BuildRecord:
    """A build with eleven measured candidates, one that crashed and one that preflight refused.

    Args:
        folder: where raw samples are written.
        emulated: on an emulated board: instructions and no milliseconds.
        hostile: names, notes, reasons and facts hold markup.
    """
    board = "rpi5-emulated" if emulated else "host"
    candidates = [_measured(folder, name, board, emulated) for name in _MEASURED]
    evil = HOSTILE if hostile else ""
    candidates.append(_crashed(folder, board, emulated, evil))
    refused = f"layers.0.ffn: the converter has no dynamic scheme (recipe int8-dynamic, stage 1){evil}"
    candidates.append(CandidateRecord(
        "digits-int8-dynamic-tflite" + evil, "w8a8-dynamic", "tflite", "int8-dynamic", refused=(refused,)
    ))
    facts = {"model": "Raspberry Pi 5 Model B (emulated)" if emulated else "host", "cpu": "cortex-a76", "cores": 4,
             "memory_bytes": 8_321_000_000, "kernel": "6.12",
             "runtimes": {"onnxruntime": "1.23", "ai-edge-litert": "2.3"}}
    return BuildRecord(
        model="digits-vit" + evil,
        target="raspberry-pi/5" if emulated else "host",
        board=board,
        provenance="emulated" if emulated else "measured",
        started="2026-11-22T12:00:00Z",
        package="out/digits.edgepkg",
        package_sha256="sha256:" + "ab" * 32,
        seed=0,
        goals={"accuracy": "max-degradation 1"},
        baseline=BaselineRecord(BASELINE, ROWS, 622_755, "measured"),
        lineage=_lineage(),
        candidates=tuple(candidates),
        command=("edgesdk", "build", "--target", "rpi5" if emulated else "host", "--seed", "0"),
        facts=facts | ({"note": evil} if evil else {}),
        notes=("no training data was given: calibration used 256 rows of --data" + evil,),
    )


def _lineage() -> dict[str, tuple[StageRecord, ...]]:
    whole = Figures(622_755, 151_050, 2_558_976, 0.975)
    int8 = Figures(166_700, 151_050, 2_558_976, 0.9722)
    pruned = Figures(409_900, 101_130, 1_711_104, 0.8139)
    distilled = Figures(409_900, 101_130, 1_711_104, 0.9694)
    small = Figures(115_300, 101_130, 1_711_104, 0.9667)
    leaving = {"macs_mean": 1.2e6, "macs_p50": 9e5, "macs_p90": 2.6e6, "macs_p99": 2.6e6, "macs_share": 0.47,
               "left.0": 0.625, "left.2": 0.375, "runs.1": 0.8}
    exits = Figures(168_900, 152_050, 2_600_000, 0.9722, leaving)
    ptq = {"scheme": "w8a8", "calibrator": "percentile"}
    return {
        "fp32": (),
        "int8": (StageRecord("quantize.ptq", whole, int8, 1.9, ptq),),
        "int8-dynamic": (
            StageRecord("quantize.ptq", whole, int8, 0.4, {"scheme": "w8a8-dynamic"}),
            StageRecord("exit.thresholds", int8, exits, 0.7, {"risk": 0.004, "criterion": None}),
        ),
        "small": (
            StageRecord("prune.neurons", whole, pruned, 0.6, {"keep": 0.5, "scope": "layers.*.ffn"}),
            StageRecord("distill", pruned, distilled, 21.4, {"temperature": 4, "alpha": 0.3, "epochs": 8}),
            StageRecord("quantize.ptq", distilled, small, 1.7, ptq),
        ),
    }


def _measured(folder: Path, name: str, board: str, emulated: bool) -> CandidateRecord:
    scheme, converter, recipe, size, runtime, p50, instructions, right, rss = _MEASURED[name]
    measurement = _measurement(name, board, emulated)
    rows = SAMPLE_ROWS if emulated else ROWS
    value = round(right / ROWS * rows) / rows
    if emulated:
        measurement["rounds"] = [_counted(folder, name, index, instructions) for index in range(2)]
        measurement["instructions"] = figures.instructions(folder, measurement, "emulated")
        measurement["peak_rss_bytes"] = {"value": None, "provenance": "unmeasured", "reason": "under qemu-user"}
        accuracy = AccuracyRecord(value, wilson_lower95(value, rows), rows, "emulated", 195 / SAMPLE_ROWS)
    else:
        measurement["rounds"] = [_round(folder, name, index, p50, rss) for index in range(3)]
        measurement["latency_ms"] = figures.latency(folder, measurement)
        measurement["peak_rss_bytes"] = figures.peak_rss(measurement, "measured")
        accuracy = AccuracyRecord(value, wilson_lower95(value, rows), rows, "measured")
    return CandidateRecord(
        name, scheme, converter, recipe, f"out/artifacts/{name}", size, size + runtime, sha256_bytes(name.encode()),
        measurement=measurement, accuracy=accuracy, workdir=folder,
        notes=("attention products stay float",) if converter == "tflite" and scheme == "w8a8" else (),
    )


def _crashed(folder: Path, board: str, emulated: bool, evil: str) -> CandidateRecord:
    name = "digits-int8-dynamic-neon"
    measurement = _measurement(name, board, emulated)
    measurement |= {"valid": False, "reasons": ["crashed: SIGILL (signal 4) in the warm-up of round 0" + evil]}
    return CandidateRecord(
        name, "w8a8-dynamic", "neon", "int8-dynamic", f"out/artifacts/{name}", 195_519, 1_022_768,
        sha256_bytes(name.encode()), measurement=measurement, workdir=folder, notes=(evil,) if evil else (),
    )


def _measurement(name: str, board: str, emulated: bool) -> dict[str, Any]:
    """A measurement in which nothing has been measured yet."""
    return {
        "format": "edgesdk.measurement", "version": 1, "id": sha256_bytes(name.encode())[:12], "name": name,
        "artifact": sha256_bytes(name.encode()), "board": board, "target": "raspberry-pi/5" if emulated else "host",
        "provenance": "emulated" if emulated else "measured", "profile": "smoke", "seed": 0,
        "started": "2026-11-22T12:00:00Z", "facts": {},
        "work": "constant", "valid": True, "reasons": [],
        "golden": {"passed": True, "kind": "sqnr_db", "value": 41.2, "limit": 30, "n": 32}, "evaluation": None,
        "rounds": [],
        "latency_ms": {
            "p50": None, "p90": None, "ci95": [None, None], "rounds": 0, "provenance": "unmeasured", "labels": []
        },
        "instructions": {"value": None, "provenance": "unmeasured", "classes": {}},
        "peak_rss_bytes": {"value": None, "provenance": "unmeasured", "reason": "not run"},
        "energy_mj": {
            "value": None, "boundary": None, "provenance": "unmeasured",
            "reason": "no power sensor: neither hwmon nor a meter is configured",
        },
    }


def _round(folder: Path, name: str, index: int, p50: int, rss: int) -> dict[str, Any]:
    """200 samples of a timed round, spread by a fixed wave; rounds differ by about one percent."""
    batch, shift = 16, (0.992, 1.0, 1.009)[(index + len(name)) % 3]
    samples = [round(p50 * shift * batch * (1 + 0.04 * math.sin(step * 1.7) ** 3)) for step in range(200)]
    entry = _raw(folder, f"{name}.round{index}.i64", struct.pack("<200q", *samples)) | {
        "index": index, "count": len(samples), "batch": batch, "cold_load_ns": 2_100_000, "cpu_ns": None,
        "first_inference_ns": 3 * p50, "peak_rss_bytes": rss - 4096 * index, "steady": True,
        "other_cpu": 0.12 if name == "digits-small-onnx" else 0.0,
    }
    return entry | figures.round_figures(folder, entry, "constant", 32)


def _counted(folder: Path, name: str, index: int, instructions: int) -> dict[str, Any]:
    """A counted round: four inferences as the counting plugin writes them."""
    counts = {"total": instructions + 200 * index, "sdot": instructions // 9, "fp": instructions // 4}
    lines = [json.dumps({"edgecount": "mark", "tag": 2} | counts) for _ in range(4)]
    return _raw(folder, f"{name}.round{index}.jsonl", "\n".join(lines).encode()) | {
        "index": index, "count": 4, "batch": None, "p50_ns": None, "cold_load_ns": None, "first_inference_ns": None,
        "peak_rss_bytes": None, "cpu_ns": None, "other_cpu": None, "steady": None, "codes": [],
    }


def _raw(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return {"samples": name, "sha256": sha256_bytes(data)}
