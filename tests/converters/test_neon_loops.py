"""Inner loops of the ARM kernels: found in the disassembly, free of the stack, near the core's peak by llvm-mca."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from edgesdk.converters.neon.inner_loops import CORES, Loop, disassemble, find_loops, loop_notes, macs_per_cycle
from edgesdk.converters.neon.kernel_sets import KERNEL_SETS
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.testing.needs import need

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
benchmark = importlib.import_module("neon_loops")

SPILLING = """
0000000000000000 <kernel>:
       0: mov x0, x1
       4: ldr q0, [sp, #16]
{dots}
      48: subs w2, w2, #1
      4c: b.ne 0x4 <kernel+0x4>
"""
DOTS = "\n".join(f"      {4 * i:02x}: sdot v{i}.4s, v20.16b, v0.4b[0]" for i in range(2, 18))


@pytest.mark.parametrize("name", sorted(CORES))
def test_inner_loops_stay_in_registers_and_near_the_peak(name: str, tmp_path: Path) -> None:
    kernels, (core, peak) = KERNEL_SETS[name], CORES[name]
    toolchains = find_all(kernels.triple)
    need(bool(toolchains), f"no C compiler for {kernels.triple}")
    text = disassemble(benchmark.compile_calls(tmp_path, kernels, toolchains[0], "-DEDGE_BLOCKS=1"))
    need(text is not None, "no llvm-objdump")
    loops = find_loops(text or "", kernels)
    # whole tiles, dense and of blocks, and tails of two GEMMs; scores and context where the set has them; one
    # GEMM in half precision
    assert len(loops) >= (2 if kernels.halves else 6)
    assert [loop.on_stack for loop in loops] == [0] * len(loops)
    rates = [macs_per_cycle(loop, core) for loop in loops]
    need(None not in rates, "no llvm-mca")
    assert min(rate for rate in rates if rate is not None) >= 0.95 * peak


def test_the_loop_of_avxvnni_is_vex_and_stays_in_registers(tmp_path: Path) -> None:
    """CPUs with AVX-VNNI may lack AVX-512: no instruction may be EVEX, whose first byte is 62."""
    kernels = KERNEL_SETS["avxvnni"]
    toolchains = find_all(kernels.triple)
    need(bool(toolchains), f"no C compiler for {kernels.triple}")
    for toolchain in toolchains:
        path = benchmark.compile_calls(tmp_path, kernels, toolchain)
        text, bytes_too = disassemble(path), disassemble(path, encoding=True)
        need(text is not None and bytes_too is not None, "no llvm-objdump")
        loops = find_loops(text or "", kernels)
        assert len(loops) == 2 and [loop.on_stack for loop in loops] == [0, 0]  # whole tiles of two GEMMs
        assert {loop.macs for loop in loops} == {4 * 24 * 16}
        codes = re.findall(r"^\s*[0-9a-f]+: (?:[0-9a-f]{2} )+.*$", bytes_too or "", re.MULTILINE)
        first = {code.split()[1] for code in codes}
        assert "c4" in first and "62" not in first


@pytest.mark.parametrize(
    ("first", "place", "touches"),
    [
        ("mov x0, x1", "[sp, #16]", 1), ("mov x29, sp", "[x29, #16]", 1), ("add x29, sp, #0x20", "[x29, #-16]", 1),
        ("mov x0, x1", "[x29], #16", 0), ("mov x0, x1", "[x2, #16]", 0),
    ],
)
def test_a_loop_on_the_stack_is_counted(first: str, place: str, touches: int) -> None:
    """x29 points to the stack where the function says so; else it is a register like others."""
    text = SPILLING.format(dots=DOTS).replace("mov x0, x1", first).replace("[sp, #16]", place)
    assert [loop.on_stack for loop in find_loops(text, KERNEL_SETS["dotprod"])] == [touches]


def test_a_loop_on_the_stack_is_reported() -> None:
    text = SPILLING.format(dots=DOTS)
    (loop,) = find_loops(text, KERNEL_SETS["dotprod"])
    assert (loop.function, loop.macs, loop.on_stack) == ("kernel", 16 * 16, 1)
    assert loop_notes(text, KERNEL_SETS["dotprod"])[-1] == "inner loops that touch the stack: kernel"
    assert find_loops(text, KERNEL_SETS["avx2"]) == [] and loop_notes(None, KERNEL_SETS["dotprod"]) == ()
    spilled = ("vmovaps %ymm1, -0x30(%rbp)", "vpaddd 0x20(%rsp,%rax), %ymm1, %ymm1", "vmovaps %ymm1, (%rsi)")
    assert [Loop("kernel", spilled, 0, framed).on_stack for framed in (True, False)] == [2, 1]


def test_without_a_disassembler_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    need(bool(find_all(KERNEL_SETS["base"].triple)), "no C compiler for ARM")
    monkeypatch.setattr(benchmark, "disassemble", lambda path: None)
    with pytest.raises(benchmark.Missing, match="no llvm-objdump"):
        benchmark.loop_figures()
