"""The inner loops of compiled kernels: what they cost by llvm-mca, and that none of them touches the stack.

Loops are read from the disassembly of `model.o`: a backward branch and what lies before it, innermost ones only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from edgesdk.converters.neon.kernel_sets import AARCH64, KernelSet

LINE = re.compile(r"^\s*([0-9a-f]+):\s+(?:[0-9a-f]{8}\s+)?(\S.*)$")
BRANCH = re.compile(r"^(?:b\.\w+|cbn?z|tbn?z|j[a-z]+)\b.*?0x([0-9a-f]+)")
STACK, FRAMED = re.compile(r"\[sp\b|\(%rsp\b"), re.compile(r"\[(?:sp|x29)\b|\(%r[bs]p\b")
FRAME = re.compile(r"^(?:mov|add)q? (?:x29, sp\b|%rsp, %rbp\b)")
MULTIPLY = {
    "base": (re.compile(r"^(?:s|u)mu?l[la]l?2?\b"), 8), "dotprod": (re.compile(r"^[su]dot\b"), 16),
    "i8mm": (re.compile(r"^[su]mmla\b"), 32), "half": (re.compile(r"^fmla v\d+\.8h\b"), 8),
    "avxvnni": (re.compile(r"^(?:\{vex\} )?vpdpbusd\b"), 32),
}
# The core of llvm-mca, MACs a cycle at its peak.
CORES = {
    "base": ("cortex-a72", 8), "dotprod": ("neoverse-n1", 32), "i8mm": ("neoverse-n2", 64), "half": ("neoverse-n1", 16),
}
LEAST_MULTIPLIES = {"half": 32}  # else 16; one row of halves has 16 and waits for its two sums
ITERATIONS, DEADLINE_SECONDS = 100, 60


@dataclass(frozen=True)
class Loop:
    """`instructions` of one round, and how many products they make; `framed`: x29 or rbp is the frame's pointer in
    its function, and no register like others."""

    function: str
    instructions: tuple[str, ...]
    macs: int
    framed: bool = False

    @property
    def on_stack(self) -> int:
        """Instructions that read or write the stack, by its pointer or by that of the frame."""
        pattern = FRAMED if self.framed else STACK
        return sum(pattern.search(line) is not None for line in self.instructions)


def find_loops(disassembly: str, kernels: KernelSet) -> list[Loop]:
    """Innermost loops with 16 (LEAST_MULTIPLIES) or more multiplies of the set's kind, from `llvm-objdump -d`."""
    if kernels.name not in MULTIPLY:
        return []
    pattern, products = MULTIPLY[kernels.name]
    loops, function, framed, addresses, lines = list[Loop](), "", False, list[int](), list[str]()
    for text in disassembly.splitlines():
        label = re.match(r"^[0-9a-f]+ <(.+)>:$", text)
        if label:
            function, framed, addresses, lines = label[1], False, [], []
            continue
        found = LINE.match(text)
        if found is None:
            continue
        addresses.append(int(found[1], 16))
        lines.append(" ".join(found[2].split("//")[0].split()))
        framed = framed or FRAME.match(lines[-1]) is not None
        target = BRANCH.match(lines[-1])
        if target is None or int(target[1], 16) not in addresses:
            continue
        body = lines[addresses.index(int(target[1], 16)) :]
        inner = any(BRANCH.match(line) for line in body[:-1])
        count = sum(bool(pattern.match(line)) for line in body)
        if not inner and count >= LEAST_MULTIPLIES.get(kernels.name, 16):
            loops.append(Loop(function, tuple(body), count * products, framed))
    return loops


def disassemble(path: str, encoding: bool = False) -> str | None:
    """The text of an object file, with the bytes of its instructions if `encoding`; None without llvm-objdump."""
    tool = next((name for name in ("llvm-objdump-19", "llvm-objdump") if shutil.which(name)), None)
    if tool is None:
        return None
    command = [tool, "-d", *([] if encoding else ["--no-show-raw-insn"]), path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    return done.stdout if done.returncode == 0 else None


def macs_per_cycle(loop: Loop, core: str) -> float | None:
    """By llvm-mca's model of a core, all loads hitting L1; None where llvm-mca is not installed or refuses."""
    tool = next((name for name in ("llvm-mca-19", "llvm-mca") if shutil.which(name)), None)
    if tool is None:
        return None
    body = [re.sub(r"0x[0-9a-f]+ <.*$", ".", line) for line in loop.instructions]
    features = "-mattr=+dotprod,+i8mm,+fullfp16"
    command = [tool, "-mtriple=aarch64", f"-mcpu={core}", features, f"-iterations={ITERATIONS}"]
    done = subprocess.run(
        command, input="\n".join(body) + "\n", capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    cycles = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return loop.macs * ITERATIONS / int(cycles[1]) if cycles else None


def loop_notes(disassembly: str | None, kernels: KernelSet) -> tuple[str, ...]:
    """What the build report says of the inner loops: the rate of the largest one, and those that touch the stack."""
    loops = find_loops(disassembly, kernels) if disassembly and kernels.triple == AARCH64 else []
    if not loops:
        return ()
    core, peak = CORES[kernels.name]
    notes = []
    rate = macs_per_cycle(max(loops, key=lambda loop: loop.macs), core)
    if rate is not None:
        share = 100 * rate / peak
        notes.append(f"llvm-mca, {core}: {rate:.1f} MAC/cycle in the largest inner loop, {share:.0f} % of the peak")
    spilled = sorted({loop.function for loop in loops if loop.on_stack})
    if spilled:
        notes.append(f"inner loops that touch the stack: {', '.join(spilled)}")
    return tuple(notes)
