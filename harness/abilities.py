"""What can be measured on a board and what cannot, each with the reason; and where a board is not what its target says.

Everything here is judged from the facts of one probe (`facts.py`) and the privileges there; nothing is tried out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgesdk.harness.board import Board
from edgesdk.harness.preflight import FEATURES, new_enough
from edgesdk.targets.target import Target

MACHINES = {"aarch64-linux-gnu": "aarch64", "x86_64-linux-gnu": "x86_64"}
# Of a board's RAM, firmware and GPU keep a part: a Pi 4 with 1024 MB shows 906.
LEAST_SHARE_OF_RAM = 0.75


@dataclass(frozen=True)
class Ability:
    """One kind of measurement: is it possible, and by what or why not."""

    what: str
    possible: bool
    how: str


NEON = Ability("runtime neon", True, "programs bring everything that they need")
SOURCE = "runtime neon-source"


def wrong_machine(target: Target, facts: Mapping[str, Any]) -> str | None:
    """Why this board cannot be one of the target at all; None where it can."""
    machine, wanted = facts.get("machine"), MACHINES[target.triple]
    if machine is not None and machine != wanted:
        return f"the board is {machine}, target {target.name} is {wanted}"
    return None


def differences(board: Board, target: Target, facts: Mapping[str, Any]) -> list[str]:
    """Where the facts of a board contradict the table of its target; facts that are not known contradict nothing.

    An emulated board shows the memory (and a full one the number of cores) that this machine gives it.
    """
    found = [wrong_machine(target, facts)]
    if target.name != "host":
        found += [_features(target, facts), _core(target, facts)]
        found += [] if board.emulated else [_cores(target, facts), _ram(target, facts)]
    return [text for text in found if text is not None]


def abilities(board: Board, target: Target, facts: Mapping[str, Any], by: str) -> list[Ability]:
    """Every kind of measurement on this board. `by` is what `privileges` found: `root`, `sudo` or `none`."""
    if facts.get("agent") == "shell":
        return list(_without_python(board, target))
    return [*_latency(board, "CLOCK_MONOTONIC_RAW on the board"), *_clocks(board, facts, by),
            *_process(board, "VmHWM and PSS of each round"), *_memory(board, target, facts, by), _energy(board, facts),
            _throttling(board, facts), *_runtimes(target, facts), NEON,
            _compiling(facts)]


def _without_python(board: Board, target: Target) -> Iterator[Ability]:
    """What the shell worker does (`harness/shell`)."""
    no = f"needs Python on the board; {board.python} is not there"
    yield from _latency(board, "NEON builds time themselves; the board is looked at between rounds only")
    yield from _process(board, "VmHWM of each round")
    for what in ("fixed clock", "cold load", "energy", "throttling while a round runs"):
        yield Ability(what, False, no)
    for name in target.runtimes:
        yield Ability(f"runtime {name}", False, no)
    yield NEON
    yield Ability(SOURCE, False, no)


def _latency(board: Board, how: str) -> Iterator[Ability]:
    if board.emulated:
        yield Ability("latency", False, "an emulated board has no time of its own; instructions are counted instead")
    else:
        yield Ability("latency", True, how)
    if board.counting_plugin:
        yield Ability("instructions", True, "counted by qemu")
    else:
        yield Ability("instructions", False, "only light emulated boards count instructions")


def _process(board: Board, how: str) -> Iterator[Ability]:
    if board.counting_plugin:
        yield Ability("memory", False, "qemu-user counts its own memory too; a full board (--vm) tells the truth")
    else:
        yield Ability("memory", True, how)


def _clocks(board: Board, facts: Mapping[str, Any], by: str) -> Iterator[Ability]:
    if by == "none":
        yield Ability("fixed clock", False, "needs root, or sudo without a password, to set governor and power mode")
        yield Ability("cold load", False, "needs root, or sudo without a password, to drop cached pages")
        return
    governor = facts.get("governor")
    yield Ability("fixed clock", governor is not None, f"governor is {governor}" if governor else "no cpufreq there")
    yield Ability("cold load", not board.emulated, "the pages are this machine's" if board.emulated else f"as {by}")


def _memory(board: Board, target: Target, facts: Mapping[str, Any], by: str) -> Iterator[Ability]:
    if board.counting_plugin:
        return
    grouped = facts.get("memory_cgroup")
    hint = "off: cgroup_enable=memory in the kernel's command line" if grouped is False else "not known"
    yield Ability("memory of the control group", bool(grouped), "memory.peak" if grouped else hint)
    if target.name.startswith("jetson/"):
        yield Ability("memory of the GPU", by != "none", "nvmap" if by != "none" else "nvmap needs root")


def _energy(board: Board, facts: Mapping[str, Any]) -> Ability:
    if board.meter:
        return Ability("energy", True, f"meter of the farm file: {dict(board.meter).get('kind', 'meter')}")
    power = facts.get("power") or {}
    if power.get("sensor"):
        replayed = ", replayed: its numbers are `emulated`" if board.emulated else ""
        return Ability("energy", True, f"{power['sensor']}, covers {power.get('boundary')}{replayed}")
    return Ability("energy", False, power.get("reason") or "no power sensor; name a `meter` in the farm file")


def _throttling(board: Board, facts: Mapping[str, Any]) -> Ability:
    seen = [name for name in ("throttled", "throttle_count") if facts.get(name) is not None]
    if seen:
        return Ability("throttling", True, "the firmware tells" if "throttled" in seen else "the kernel counts")
    return Ability("throttling", False, "neither vcgencmd nor a throttle counter answers; clocks are watched instead")


def _runtimes(target: Target, facts: Mapping[str, Any]) -> Iterator[Ability]:
    installed = {name: version for name, version in (facts.get("runtimes") or {}).items() if version}
    for name, wanted in target.runtimes.items():
        found = installed.get(name)
        if found is None:
            yield Ability(f"runtime {name}", False, f"not installed; {name} {wanted} is wanted")
        else:
            fits = new_enough(found, wanted)
            without = ", without energy: trtexec does not tell when its window starts" if name == "tensorrt" else ""
            yield Ability(f"runtime {name}", fits, found + without if fits else f"{found}, {wanted} is wanted")


def _compiling(facts: Mapping[str, Any]) -> Ability:
    found = facts.get("compiler")
    missing = "no C compiler on the board; wanted only where this machine has none for it"
    return Ability(SOURCE, bool(found), f"compiled by {found}" if found else missing)


def _cores(target: Target, facts: Mapping[str, Any]) -> str | None:
    cpus = facts.get("cpus")
    if cpus is None or cpus == target.cpu.cores:
        return None
    return f"{cpus} cores, the target has {target.cpu.cores}"


def _core(target: Target, facts: Mapping[str, Any]) -> str | None:
    part, wanted = facts.get("cpu_part"), target.emulate.part if target.emulate else None
    if part is None or wanted is None or part == wanted:
        return None
    return f"CPU part {part}, the target's {target.cpu.model} is {wanted}"


def _features(target: Target, facts: Mapping[str, Any]) -> str | None:
    features = set(facts.get("cpu_features") or ())
    absent = [flag for flag in target.cpu.features if FEATURES.get(flag, flag) not in features]
    return f"no CPU feature {', '.join(absent)}, the target has it" if features and absent else None


def _ram(target: Target, facts: Mapping[str, Any]) -> str | None:
    total = facts.get("mem_total_bytes")
    if total is None or not target.ram_mb:
        return None
    found = total / (1 << 20)
    if any(LEAST_SHARE_OF_RAM * size <= found <= size for size in target.ram_mb):
        return None
    return f"{found:.0f} MB of RAM, the target has {', '.join(str(size) for size in target.ram_mb)}"
