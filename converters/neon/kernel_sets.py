"""Kernel sets: what the generated code is packed and compiled for. One row of the table for each tile in `kernels/`,
and one for `avx512vbmi`: the tile of `avx512vnni`, with permutations of bytes around it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgesdk.errors import ConvertError
from edgesdk.targets import Target

AARCH64, X86 = "aarch64-linux-gnu", "x86_64-linux-gnu"


@dataclass(frozen=True)
class KernelSet:
    """`mr` x `nr` outputs of the int8 tile, `kr` products a step, `nf` columns of the float tile; `flip` is what is
    added to the bits of int8 activations (0x80: stored as unsigned); `isa` are the CPU features that the binary needs,
    by the names that `/proc/cpuinfo` (x86) or the targets (ARM) use; `flags` are those of gcc and clang, `zig_cpu` is
    what zig wants in their place on ARM; `integer_attention`: the set has int8 attention; `halves`: float
    linear layers are computed in half precision."""

    name: str
    triple: str
    mr: int
    nr: int
    kr: int
    nf: int
    isa: tuple[str, ...]
    flags: tuple[str, ...]
    flip: int = 0
    zig_cpu: str = ""
    integer_attention: bool = False
    halves: bool = False

    @property
    def macro(self) -> str:
        return f"EDGE_ISA_{self.name.upper()}"


KERNEL_SETS = {
    "base": KernelSet(
        "base", AARCH64, 4, 4, 16, 8, ("neon",), ("-march=armv8-a", "-mtune=cortex-a72"), zig_cpu="generic",
    ),
    "dotprod": KernelSet(
        "dotprod", AARCH64, 8, 12, 4, 8, ("neon", "dotprod"), ("-march=armv8.2-a+dotprod+fp16", "-mtune=neoverse-n1"),
        zig_cpu="generic+v8_2a+dotprod+fullfp16", integer_attention=True,
    ),
    "i8mm": KernelSet(
        "i8mm", AARCH64, 8, 8, 8, 8, ("neon", "dotprod", "i8mm"),
        ("-march=armv8.2-a+dotprod+fp16+i8mm", "-mtune=neoverse-n2"),
        zig_cpu="generic+v8_2a+dotprod+fullfp16+i8mm", integer_attention=True,
    ),
    "half": KernelSet(  # of scheme fp16 alone; int8 kernels as in `base`
        "half", AARCH64, 4, 4, 16, 8, ("neon", "fp16"), ("-march=armv8.2-a+fp16", "-mtune=neoverse-n1"),
        zig_cpu="generic+v8_2a+fullfp16", halves=True,
    ),
    "avx2": KernelSet("avx2", X86, 4, 16, 2, 16, ("avx2", "fma"), ("-mavx2", "-mfma")),
    "avxvnni": KernelSet(
        "avxvnni", X86, 4, 24, 4, 16, ("avx2", "fma", "avx_vnni"), ("-mavx2", "-mfma", "-mavxvnni"), 0x80,
    ),
    "avx512vnni": KernelSet(
        "avx512vnni", X86, 8, 32, 4, 32, ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"), 0x80,
        integer_attention=True,
    ),
    "avx512vbmi": KernelSet(
        "avx512vbmi", X86, 8, 32, 4, 32,
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512vbmi"),
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx512vbmi", "-mfma"), 0x80,
        integer_attention=True,
    ),
    "scalar": KernelSet("scalar", X86, 4, 4, 1, 4, (), (), integer_attention=True),
}
# The fastest first; the last one runs on every CPU of the triple.
ORDER = {AARCH64: ("i8mm", "dotprod", "base"), X86: ("avx512vbmi", "avx512vnni", "avxvnni", "avx2", "scalar")}


@cache
def host_features() -> frozenset[str]:
    """The `flags` of this machine's first CPU; empty where it is not x86."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def choose(target: Target) -> KernelSet:
    """The fastest kernel set that the target's CPU can run.

    Raises:
        ConvertError: the target's triple has no kernel set, or `native` on a machine that is not x86-64.
    """
    features = set(target.cpu.features)
    if target.triple not in ORDER:
        raise ConvertError(f"target {target.name}: no NEON build kernels for {target.triple}")
    if "native" in features:
        if platform.machine() != "x86_64":
            raise ConvertError(f"target {target.name}: native kernels are for x86-64, this is {platform.machine()}")
        features |= host_features()
    candidates = [KERNEL_SETS[name] for name in ORDER[target.triple]]
    return next((kernels for kernels in candidates if {"neon", *kernels.isa} <= {"neon", *features}), candidates[-1])


def choose_half(target: Target) -> KernelSet:
    """The kernel set of scheme `fp16`.

    Raises:
        ConvertError: the target's CPU does not compute in half precision.
    """
    if target.triple != AARCH64 or "fp16" not in target.cpu.features:
        raise ConvertError(f"target {target.name}: its CPU does not compute in half precision (feature fp16)")
    return KERNEL_SETS["half"]
