"""Inner loops of the ARM kernels: found in the disassembly, free of the stack, near the core's peak by llvm-mca."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgesdk.converters.neon.build import kernel_sources, model_flags, write_files
from edgesdk.converters.neon.inner_loops import CORES, disassemble, find_loops, loop_notes, macs_per_cycle
from edgesdk.converters.neon.kernel_sets import KERNEL_SETS
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.testing.needs import need

CALLS = b"""#include "edge_kernels.h"
void use(const edge_int8 *layer, const void *heads, int8_t *x, float *y, int rows, int k) {
  edge_int8_to_packed(layer, x, rows, x, k);
  edge_int8_to_float(layer, x, rows, y, y, k);
#ifdef EDGE_ATTENTION_TILES
  edge_attention_int8(heads, x, k, x, k, x, k, rows, rows, x, k, (unsigned char *)y);
#endif
}
"""
SPILLING = """
0000000000000000 <kernel>:
       0: mov x0, x1
       4: ldr q0, [sp, #16]
{dots}
      48: subs w2, w2, #1
      4c: b.ne 0x4 <kernel+0x4>
"""


@pytest.mark.parametrize("name", sorted(CORES))
def test_inner_loops_stay_in_registers_and_near_the_peak(name: str, tmp_path: Path) -> None:
    kernels, (core, peak) = KERNEL_SETS[name], CORES[name]
    toolchains = find_all(kernels.triple)
    need(bool(toolchains), f"no C compiler for {kernels.triple}")
    write_files(tmp_path, {**kernel_sources(), "calls.c": CALLS})
    flags = ("-DEDGE_BLOCKS=1", *model_flags(kernels, toolchains[0]))
    toolchains[0].compile("calls.c", "calls.o", flags, tmp_path)
    text = disassemble(str(tmp_path / "calls.o"))
    need(text is not None, "no llvm-objdump")
    loops = find_loops(text or "", kernels)
    # whole tiles, dense and of blocks, and tails of two GEMMs; scores and context where the set has them
    assert len(loops) >= 6
    assert [loop.on_stack for loop in loops] == [0] * len(loops)
    rates = [macs_per_cycle(loop, core) for loop in loops]
    need(None not in rates, "no llvm-mca")
    assert min(rate for rate in rates if rate is not None) >= 0.95 * peak


def test_the_loop_of_avxvnni_is_vex_and_stays_in_registers(tmp_path: Path) -> None:
    """CPUs with AVX-VNNI may lack AVX-512: no instruction may be EVEX, whose first byte is 62."""
    kernels = KERNEL_SETS["avxvnni"]
    toolchains = find_all(kernels.triple)
    need(bool(toolchains), f"no C compiler for {kernels.triple}")
    write_files(tmp_path, {**kernel_sources(), "calls.c": CALLS})
    for toolchain in toolchains:
        toolchain.compile("calls.c", "calls.o", model_flags(kernels, toolchain), tmp_path)
        text = disassemble(str(tmp_path / "calls.o"))
        bytes_too = disassemble(str(tmp_path / "calls.o"), encoding=True)
        need(text is not None and bytes_too is not None, "no llvm-objdump")
        loops = find_loops(text or "", kernels)
        assert len(loops) == 2 and [loop.on_stack for loop in loops] == [0, 0]  # whole tiles of two GEMMs
        assert {loop.macs for loop in loops} == {4 * 24 * 16}
        codes = re.findall(r"^\s*[0-9a-f]+: (?:[0-9a-f]{2} )+.*$", bytes_too or "", re.MULTILINE)
        first = {code.split()[1] for code in codes}
        assert "c4" in first and "62" not in first


def test_a_loop_on_the_stack_is_reported() -> None:
    dots = "\n".join(f"      {4 * i:02x}: sdot v{i}.4s, v20.16b, v0.4b[0]" for i in range(2, 18))
    text = SPILLING.format(dots=dots)
    (loop,) = find_loops(text, KERNEL_SETS["dotprod"])
    assert (loop.function, loop.macs, loop.on_stack) == ("kernel", 16 * 16, 1)
    assert loop_notes(text, KERNEL_SETS["dotprod"])[-1] == "inner loops that touch the stack: kernel"
    assert find_loops(text, KERNEL_SETS["avx2"]) == [] and loop_notes(None, KERNEL_SETS["dotprod"]) == ()
