"""Half precision against float, MiniLM on cortex-a76: the part `half` of `neon.py`. There is no goal."""

from __future__ import annotations

import subprocess
from pathlib import Path

import neon_peers as peers
import numpy as np
from _parts import Found
from _results import figure
from neon_count import remembered

from edgesdk.converters import converter
from edgesdk.converters.artifact import read_artifact
from edgesdk.evaluate import sqnr_db
from edgesdk.targets import load_target

SEQUENCES = (128, 32)


def run(builder: peers.Builder) -> Found:
    """Instructions and bytes of fp32's, and how far the golden rows are from float."""
    entries = []
    for sequence in SEQUENCES:
        whole, half = builder.artifact("neon", "fp32", peers.A76, sequence), builder.folder / f"neon-fp16-{sequence}"
        half.mkdir()
        package, target = builder.model.package("fp32", sequence), load_target(peers.TARGETS[peers.A76])
        converter("neon-fp16").convert(package, target, half)
        counts, of = (remembered([path], peers.A76)[0]["total"] for path in (half, whole))
        title = f"fp16, S = {sequence}, {peers.A76}"
        entries += [
            figure(f"{title}, instructions", counts, "", provenance="emulated"),
            figure(f"{title}, instructions of fp32", counts / of, "×", provenance="emulated"),
        ]
    found, limit = golden_db(half), read_artifact(half).golden.limit
    share = read_artifact(half).bytes / read_artifact(whole).bytes
    return [
        *entries, figure("fp16, bytes of fp32", share, "×"),
        figure("fp16, golden rows against float", found, "dB", f"≥ {limit:g}", found >= limit, "emulated"),
    ], []


def golden_db(folder: Path) -> float:
    """Signal to noise of an artifact's golden rows under qemu-user."""
    golden, out = read_artifact(folder).golden, folder / "out.bin"
    command = ["qemu-aarch64", "-cpu", peers.A76, str(folder / "model"), "run", "--n", str(golden.n)]
    subprocess.run([*command, "--inputs", str(folder / golden.inputs), "--outputs", str(out)], check=True)
    return sqnr_db(np.fromfile(folder / golden.outputs, "<f4"), np.fromfile(out, "<f4"))
