"""llvm-mca of the inner loops of every GEMM, for `benchmarks/neon.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from _parts import Missing
from _results import figure

from edgesdk.converters.neon.build import kernel_sources, model_flags, write_files
from edgesdk.converters.neon.inner_loops import CORES, disassemble, find_loops, macs_per_cycle
from edgesdk.converters.neon.kernel_sets import KERNEL_SETS, KernelSet
from edgesdk.converters.neon.toolchain import Toolchain, find

RATES = {name: f"{name} GEMM inner loops, llvm-mca {core}, of {peak} MAC/cycle" for name, (core, peak) in CORES.items()}
STACK = {name: f"{name}: stack accesses in inner loops" for name in CORES}
PROMISED = [pair for name in CORES for pair in ((RATES[name], "≥ 95"), (STACK[name], "0"))]
CALLS = b"""#include "edge_kernels.h"
void use(const edge_int8 *layer, const void *heads, int8_t *x, float *y, int rows, int k) {
  edge_int8_to_packed(layer, x, rows, x, k);
  edge_int8_to_float(layer, x, rows, y, y, k);
#ifdef EDGE_INTEGER_ATTENTION
  edge_attention_int8(heads, x, k, x, k, x, k, rows, rows, x, k, (unsigned char *)y);
#endif
}
#ifdef EDGE_ISA_HALF
void use_half(const edge_half *layer, const edge_f16 *x, float *y, int rows, int k) {
  edge_half_linear(layer, x, rows, y, y, k);
}
#endif
"""


def compile_calls(folder: Path, kernels: KernelSet, toolchain: Toolchain, *defines: str) -> str:
    """An object file with every GEMM of a kernel set, and attention where the set has tiles for it: its path."""
    write_files(folder, {**kernel_sources(), "calls.c": CALLS})
    toolchain.compile("calls.c", "calls.o", (*defines, *model_flags(kernels, toolchain)), folder)
    return str(folder / "calls.o")


def loop_figures() -> list[dict[str, Any]]:
    """For each ARM kernel set: the slowest inner loop's share of the peak, and stack accesses in all of them.

    Raises:
        Missing: no inner loop was found, so that nothing can be said of them.
    """
    result = []
    for name, (core, peak) in CORES.items():
        kernels = KERNEL_SETS[name]
        toolchain = find(kernels.triple)
        with tempfile.TemporaryDirectory(prefix="edgesdk-loops-") as place:
            text = disassemble(compile_calls(Path(place), kernels, toolchain, "-DEDGE_BLOCKS=1"))
        loops = find_loops(text or "", kernels)
        if not loops:
            raise Missing(f"{name}: no inner loop was found" if text else "no llvm-objdump")
        rates = [rate for loop in loops if (rate := macs_per_cycle(loop, core)) is not None]
        if len(rates) < len(loops):
            result.append(figure(RATES[name], None, "%", "≥ 95") | {"reason": "no llvm-mca"})
        else:
            share = 100 * min(rates) / peak
            result.append(figure(RATES[name], share, "%", "≥ 95", share >= 95, "predicted"))
        stack = sum(loop.on_stack for loop in loops)
        result.append(figure(STACK[name], stack, "", "0", stack == 0) | {"note": f"{len(loops)} loops"})
    return result
