"""llvm-mca of the inner loops of every GEMM, for `benchmarks/neon.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from _results import figure

from edgesdk.converters.neon.build import kernel_sources, model_flags, write_files
from edgesdk.converters.neon.inner_loops import CORES, disassemble, find_loops, macs_per_cycle
from edgesdk.converters.neon.kernel_sets import KERNEL_SETS
from edgesdk.converters.neon.toolchain import find

CALLS = b"""#include "edge_kernels.h"
void use(const edge_int8 *layer, const void *heads, int8_t *x, float *y, int rows, int k) {
  edge_int8_to_packed(layer, x, rows, x, k);
  edge_int8_to_float(layer, x, rows, y, y, k);
#ifdef EDGE_ATTENTION_TILES
  edge_attention_int8(heads, x, k, x, k, x, k, rows, rows, x, k, (unsigned char *)y);
#endif
}
"""


def loop_figures() -> list[dict[str, Any]]:
    """For each ARM kernel set: the slowest inner loop's share of the peak, and stack accesses in all of them."""
    result = []
    for name, (core, peak) in CORES.items():
        kernels = KERNEL_SETS[name]
        toolchain = find(kernels.triple)
        with tempfile.TemporaryDirectory(prefix="edgesdk-loops-") as place:
            folder = Path(place)
            write_files(folder, {**kernel_sources(), "calls.c": CALLS})
            toolchain.compile("calls.c", "calls.o", model_flags(kernels, toolchain), folder)
            text = disassemble(str(folder / "calls.o")) or ""
        loops = find_loops(text, kernels)
        rates = [rate for loop in loops if (rate := macs_per_cycle(loop, core)) is not None]
        share = 100 * min(rates) / peak if rates else None
        goal, met = "≥ 95", None if share is None else share >= 95
        title = f"{name} GEMM inner loops, llvm-mca {core}, of {peak} MAC/cycle"
        result.append(figure(title, share, "%", goal, met, "predicted"))
        stack = sum(loop.on_stack for loop in loops)
        result.append(figure(f"{name}: stack accesses in {len(loops)} inner loops", stack, "", "0", stack == 0))
    return result
