"""Executed instructions of block-sparse int8 layers against dense ones, for `benchmarks/neon.py`.

    python benchmarks/neon_sparse.py

One layer of MiniLM's feed-forward network at a time, [128, K] x [K, N], with the epilogue that the model gives it: `up`
writes int8 for the next layer, `down` adds the residual in float. Blocks are zero at random, as many in a matrix
as the density says, so panels differ in length as they do in pruned models. The whole model is MiniLM, pruned by
magnitude in the target's blocks.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import neon_models as models
import numpy as np
from _results import figure
from neon_count import Counter
from numpy.typing import NDArray

from edgesdk.converters import converter
from edgesdk.converters.front import Encoding, Linear
from edgesdk.converters.neon.build import kernel_sources, model_flags, write_files
from edgesdk.converters.neon.kernel_sets import KERNEL_SETS, KernelSet
from edgesdk.converters.neon.layers import static_layer
from edgesdk.converters.neon.operands import Weights
from edgesdk.converters.neon.plan import DenseStatic, Tensor
from edgesdk.converters.neon.storage import Stored, kernel_macros, sparse_from
from edgesdk.converters.neon.toolchain import find
from edgesdk.harness.worker.count import MARK, parse_counts
from edgesdk.stages.masks import Pattern, choose
from edgesdk.stages.prune_weights import masked, scores_of
from edgesdk.targets import load_target

ROWS, SEED = 128, 5
SHAPES = {"up": (384, 1536), "down": (1536, 384)}  # inputs, outputs
GOALS = {50: 0.55, 75: 0.30}
CPUS = {"dotprod": "cortex-a76", "base": "cortex-a72", "i8mm": "max"}


def pruned(inputs: int, outputs: int, percent: float, kernels: KernelSet) -> NDArray[np.int8]:
    """Random int8 [outputs, inputs] of which `percent` of the blocks are zero."""
    rng = np.random.default_rng(SEED)
    weight = rng.integers(1, 128, (outputs, inputs)).astype(np.int8)
    cells = (outputs // kernels.nr, inputs // kernels.kr)
    zero = np.zeros(cells[0] * cells[1], bool)
    zero[rng.permutation(zero.size)[: round(zero.size * percent / 100)]] = True
    mask = zero.reshape(cells).repeat(kernels.nr, 0).repeat(kernels.kr, 1)
    return np.where(mask, np.int8(0), weight)


def program(folder: Path, kernels: KernelSet, weights: Sequence[tuple[str, NDArray[np.int8]]]) -> Path:
    """A program that runs each layer once between two markers."""
    block, matrices, body = Weights(), list[Stored](), list[str]()
    for index, (name, weight) in enumerate(weights):
        outputs, inputs = weight.shape
        linear = Linear(
            name, "w8a8", "x", "y", weight, np.zeros(outputs, np.int32), np.full(outputs, 0.01, np.float32),
            Encoding(0.02, 3), Encoding(0.05, -4),
        )
        step = DenseStatic(Tensor("y", ROWS, outputs), Tensor("x", ROWS, inputs), (linear,))
        fields, stored = static_layer(
            step, kernels, lambda array, kind: f"(const {kind} *)(edge_weights + {block.add(array)})"
        )
        matrices.append(stored)
        call = f"edge_int8_to_packed(&layer{index}, x, {ROWS}, (int8_t *)out, {outputs})"
        if name == "down":
            call = f"edge_int8_to_float(&layer{index}, x, {ROWS}, residual, out, {outputs})"
        body += [
            f"  static const edge_int8 layer{index} = {{{', '.join(fields)}}};",
            f"  prctl({MARK}, 1, 0, 0, 0);", f"  {call};", f"  prctl({MARK}, 2, 0, 0, 0);",
        ]
    lines = [
        *(f"#define {macro}" for macro in kernel_macros(matrices)), '#include "edge_kernels.h"',
        "#include <sys/prctl.h>", "extern const unsigned char edge_weights[];",
        # Not static: else the compiler sees that nobody reads them.
        f"int8_t x[{ROWS * 1536}]; float residual[{ROWS * 1536}], out[{ROWS * 1536}];",
        "int main(void) {", *body, "  return 0;", "}", "",
    ]
    assembly = '.section .rodata\n.balign 64\n.global edge_weights\nedge_weights: .incbin "weights.bin"\n'
    sources = {"program.c": "\n".join(lines).encode(), "weights.bin": bytes(block.data), "weights.S": assembly.encode()}
    write_files(folder, {**kernel_sources(), **sources})
    toolchain = find(kernels.triple)
    toolchain.compile("program.c", "program.o", model_flags(kernels, toolchain), folder)
    toolchain.run(("-c", "weights.S", "-o", "weights.o"), folder)
    toolchain.link(("program.o", "weights.o"), "program", folder)
    return folder / "program"


def counts(kernels: KernelSet, layers: Sequence[tuple[str, float]]) -> list[int]:
    """Instructions of layers (`up` or `down`, percent of zero blocks)."""
    weights = [(name, pruned(*SHAPES[name], percent, kernels)) for name, percent in layers]
    with tempfile.TemporaryDirectory(prefix="edgesdk-sparse-") as place, Counter(CPUS[kernels.name]) as counter:
        found = parse_counts(counter.lines(str(program(Path(place), kernels, weights))))
    return [entry["total"] for entry in found]


def sparse_figures(weights: models.Arrays) -> list[dict[str, Any]]:
    """Sparse layers and a sparse MiniLM (of these `weights`) against dense ones."""
    return [*layer_figures(), *model_figures(weights)]


def model_figures(weights: models.Arrays) -> list[dict[str, Any]]:
    """All linear layers of the encoder with half of their blocks zero, w8a8, S = 128, cortex-a76."""
    target = load_target("raspberry-pi/5")
    names = [name for name, _, _ in models.SPEC.linears() if name.startswith("layers.")]
    ones = {name: np.ones(weights[f"{name}.weight"].shape[1]) for name in names}
    masks = choose(scores_of(weights, ones), Pattern(*target.sparse_block), 0.5, "uniform")
    totals = []
    with tempfile.TemporaryDirectory(prefix="edgesdk-sparse-") as place:
        for kind, arrays in (("dense", weights), ("sparse", {**weights, **masked(weights, masks)})):
            folder = Path(place) / kind
            folder.mkdir()
            artifact = converter("neon").convert(models.package(arrays, "w8a8", ROWS), target, folder)
            with Counter(CPUS["dotprod"]) as counter:
                totals.append((counter.ours(folder)["total"], artifact.bytes))
    (dense, dense_bytes), (sparse, sparse_bytes) = totals
    title = "MiniLM w8a8 with 50 % of its blocks zero, S = 128, cortex-a76"
    return [
        figure(f"{title}, instructions", sparse, "", provenance="emulated"),
        figure(f"{title}, instructions of dense", sparse / dense, "×", provenance="emulated"),
        figure(f"{title}, bytes of dense", sparse_bytes / dense_bytes, "×"),
    ]


def layer_figures() -> list[dict[str, Any]]:
    """Sparse against dense for both shapes on all ARM sets."""
    result = []
    for kernels in (KERNEL_SETS[name] for name in CPUS):
        layers = [(name, percent) for name in SHAPES for percent in (0, *GOALS)]
        found = dict(zip(layers, counts(kernels, layers), strict=True))
        for name, percent in layers:
            if not percent:
                continue
            ratio, goal = found[name, percent] / found[name, 0], GOALS[percent]
            shape = "x".join(map(str, (ROWS, *SHAPES[name])))
            title = f"block sparsity {percent} %, {kernels.name}, {shape}: GEMM instructions of dense"
            result.append(figure(title, ratio, "×", f"≤ {goal}×", ratio <= goal, "emulated"))
    return result


def main() -> None:
    """Print the figures, and the cost around the share of zero blocks from which they are left out."""
    assert shutil.which("qemu-aarch64"), "qemu-aarch64 is not installed"
    for entry in sparse_figures(models.random_weights(models.SPEC)):
        print(entry)
    for kernels in (KERNEL_SETS[name] for name in CPUS):
        percents = [0, 100 * sparse_from(kernels), 10, 20, 30, 50, 75, 90, 99]
        found = counts(kernels, [("up", percent) for percent in percents])
        shares = {f"{p:g} %": round(count / found[0], 4) for p, count in zip(percents, found, strict=True)}
        print(kernels.name, found[0], shares)


if __name__ == "__main__":
    main()
