"""The NEON build against ONNX Runtime and LiteRT, MiniLM-L6: instructions, accuracy, memory, time on x86.

    python benchmarks/neon.py --trained FOLDER                     all parts that are not kept yet
    python benchmarks/neon.py --trained FOLDER --only counts,vm    these parts; the others keep what they had

FOLDER is what `neon_trained.py` writes; without it weights are random, and what needs a real task is unmeasured. Every
part is kept as soon as it is done. Counts are made under qemu-user and do not depend on the machine: each is remembered
by the content of its artifact. The parts `x86` and `process` are times: they want the machine for themselves.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import neon_accuracy
import neon_counts
import neon_half
import neon_i8mm
import neon_models
import neon_peers
import neon_process
import neon_profile
import neon_vm
import neon_x86
import torch
from _parts import Found, Missing, Part, parse, run_parts
from _results import figure
from neon_four_bits import four_bit_figures
from neon_loops import PROMISED, loop_figures
from neon_sparse import sparse_figures

from edgesdk.harness.emulate.layers import cache_folder
from edgesdk.package import write_package

CACHE = cache_folder() / "neon-benchmark"
BUILD_PROGRAM = """
import sys
from pathlib import Path
from edgesdk.converters import converter
from edgesdk.package import read_package
from edgesdk.targets import load_target
converter("neon").convert(read_package(sys.argv[1]), load_target(sys.argv[2]), Path(sys.argv[3]))
"""
BUILD = ("build time of w8a8, S = 128, the slower of both ARM targets", "≤ 30")


def build_time(builder: neon_peers.Builder) -> Found:
    """Wall time of one build in w8a8, S = 128, for both ARM kernel sets: of a fresh process, which has compiled nothing
    yet, from its start to its end."""
    package, slowest = builder.folder / "build.edgepkg", 0.0
    write_package(builder.model.package("w8a8", 128), package)
    for target in neon_peers.TARGETS.values():
        with tempfile.TemporaryDirectory(dir=builder.folder) as place:
            start = time.monotonic()
            subprocess.run([sys.executable, "-c", BUILD_PROGRAM, str(package), target, place], check=True)
            slowest = max(slowest, time.monotonic() - start)
    return [figure(BUILD[0], slowest, "s", BUILD[1], slowest <= 30)], []


def parts_of(trained: Path | None, folder: Path) -> dict[str, Part]:
    """Every part, in the order of the page; `folder` is for artifacts of this run."""
    random = f"random, seed {neon_models.SEED}"
    weights = neon_models.trained_digest(trained) if trained else random

    def with_builder(run: Callable[[neon_peers.Builder], Found]) -> Callable[[], Found]:
        return lambda: run(builder())

    def builder() -> neon_peers.Builder:
        model = neon_models.trained_model(trained) if trained else neon_models.random_model()
        return neon_peers.Builder(model, folder, CACHE / "exports")

    def needs_trained(run: Callable[[Path], Found]) -> Callable[[], Found]:
        def checked() -> Found:
            if trained is None:
                raise Missing("needs --trained, a folder that neon_trained.py wrote")
            return run(trained)

        return checked

    return {
        "counts": Part(with_builder(neon_counts.run), neon_counts.PROMISED, weights),
        "i8mm": Part(with_builder(neon_i8mm.run), weights=weights),
        "profile": Part(with_builder(neon_profile.run), weights=weights),
        "loops": Part(lambda: (loop_figures(), []), PROMISED),
        "build": Part(with_builder(build_time), [BUILD], weights),
        "sparse": Part(lambda: (sparse_figures(neon_models.random_weights(neon_models.SPEC)), []), [
            ("block sparsity 50 % / 75 %: GEMM instructions of dense", "≤ 0.55× / ≤ 0.30×"),
        ], random),
        "half": Part(with_builder(neon_half.run), weights=weights),
        "four_bits": Part(lambda: (four_bit_figures(), []), weights=random),
        "accuracy": Part(
            needs_trained(lambda path: neon_accuracy.run(path, CACHE / "answers")), neon_accuracy.PROMISED, weights
        ),
        "vm": Part(with_builder(neon_vm.run), neon_vm.PROMISED, weights),
        "x86": Part(lambda: (neon_x86.figures(folder), []), neon_x86.PROMISED, random),
        "process": Part(lambda: (neon_process.figures(folder), []), neon_process.PROMISED, random),
    }


def main() -> None:
    """Run parts, write `results/neon.json`."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-neon-bench-") as name:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--trained", type=Path, metavar="FOLDER", help="the fine-tuned model of neon_trained.py")
        options, wanted = parse(parser, list(parts_of(None, Path(name))))
        torch.set_num_threads(1)  # the last bits of calibrated scales do not depend on the machine's load
        arguments = "--trained FOLDER" if options.trained else ""
        run_parts("neon", parts_of(options.trained, Path(name)), wanted, options.again, arguments)


if __name__ == "__main__":
    main()
