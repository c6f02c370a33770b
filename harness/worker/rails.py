"""What power sensors print, and which of a board's rails add up to what. Nothing here raises for what a board says.

Powers are in microwatts: hwmon's millivolts times milliamperes are whole microwatts.
"""

import re
from typing import Any

LONGEST = 1 << 16
_NUMBER = r"-?[0-9]{1,9}(?:\.[0-9]{1,12})?"
_PMIC = re.compile(
    r"^\s*([A-Za-z0-9_]{1,40})_([AV])(?:\s+(?:current|volt)\([0-9]{1,4}\))?=(nan|" + _NUMBER + r")([AV])\s*$", re.M
)
_THROTTLED = re.compile(r"^throttled=0x([0-9a-fA-F]{1,8})$")

_RAM = re.compile(r"^(?:([0-9]{2}-[0-9]{2}-[0-9]{4} [0-9:]{8}) )?RAM ([0-9]{1,9})/([0-9]{1,9})MB")
_RAIL = re.compile(r"\b([A-Za-z][A-Za-z0-9_]{0,40}) ([0-9]{1,9})mW/([0-9]{1,9})mW(?:/([0-9]{1,9})mW)?(?=\s|$)")
_OLD_RAIL = re.compile(r"\b((?:POM_|VDD_|VIN_)[A-Z0-9_]{1,40}) ([0-9]{1,9})/([0-9]{1,9})(?=\s|$)")
_HEAT = re.compile(r"\b([A-Za-z][A-Za-z0-9_]{0,40})@(" + _NUMBER + r")C(?:/" + _NUMBER + r"C)?(?=\s|$)")
_CPU = re.compile(r"\bCPU \[([^\]\[]{0,4096})\]")
_CORE = re.compile(r"^([0-9]{1,3})%@([0-9]{1,6})$")
_MEMORY_CLOCK = re.compile(r"\bEMC_FREQ ([0-9]{1,3})%(?:@([0-9]{1,6}))?(?=\s|$)")
_GPU = re.compile(r"\bGR3D_FREQ (?:([0-9]{1,3})%)?(?:\s?@\[?([0-9,]{1,60})\]?)?(?=\s|$)")

# One rail that the whole board hangs on.
INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")
# Rails that add up to the module: those that must be there, and those that count where they are.
MODULES = (
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("VDDQ_VDD2_1V8AO",)),  # AGX Orin
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), ()),  # AGX Xavier
)


def parse_pmic(text: str) -> "dict[str, dict[str, float]]":
    """`vcgencmd pmic_read_adc` → {"VDD_CORE": {"A": amperes, "V": volts}}; values that are nan are left out.

    Rails are paired by name: the numbers in brackets are out of order. The short form `VDD_CORE_V=0.8750V` is read too.
    """
    rails = {}  # type: dict[str, dict[str, float]]
    for name, kind, value, unit in _PMIC.findall(text[:LONGEST]):
        if value != "nan" and kind == unit:
            rails.setdefault(name, {})[kind] = float(value)
    return rails


def pmic_powers(text: str) -> "dict[str, float]":
    """Watts of the rails that have both a current and a voltage; 0 is kept (DDR rails can be switched off)."""
    return {name: rail["A"] * rail["V"] for name, rail in parse_pmic(text).items() if "A" in rail and "V" in rail}


def parse_throttled(text: str) -> "int | None":
    """Bits of `vcgencmd get_throttled`; None for anything else."""
    found = _THROTTLED.match(text.strip()[:64])
    return int(found.group(1), 16) if found else None


def parse_tegrastats(line: str) -> "dict[str, Any] | None":
    """One line of tegrastats; None where it does not start as one.

    Returns:
        `time`, `ram` (used, total MB), `cpu` (per core (percent, MHz), None where it is off), `emc`, `gr3d`, `temps`
        (degrees by lower-case name, dead sensors left out), `rails` (milliwatts now), `other`: what is not known, raw.
    """
    line = line[:LONGEST].strip()
    head = _RAM.match(line)
    if not head:
        return None
    cpu, memory_clock, gpu = _CPU.search(line), _MEMORY_CLOCK.search(line), _GPU.search(line)
    rails = {found[0]: int(found[1]) for found in _RAIL.findall(line)}
    rest = _RAIL.sub(" ", line)
    if not rails:
        rails = {found[0]: int(found[1]) for found in _OLD_RAIL.findall(line)}
        rest = _OLD_RAIL.sub(" ", rest)
    for pattern in (_RAM, _HEAT, _CPU, _MEMORY_CLOCK, _GPU):
        rest = pattern.sub(" ", rest)
    return {
        "time": head.group(1), "ram": (int(head.group(2)), int(head.group(3))),
        "cpu": [_core(core) for core in cpu.group(1).split(",")] if cpu else None,
        "emc": memory_clock.groups() if memory_clock else None, "gr3d": gpu.groups() if gpu else None,
        "temps": {name.lower(): float(heat) for name, heat in _HEAT.findall(line) if float(heat) > -200},
        "rails": rails, "other": rest.split(),
    }


def _core(text: str) -> "tuple[int, int] | None":
    found = _CORE.match(text.strip())
    return (int(found.group(1)), int(found.group(2))) if found else None


def total_of(names: "list[str]") -> "tuple[list[str], str] | None":
    """(rails to add, boundary) of a Jetson's rails; None where no sum of them is known to be a whole."""
    for name in INPUTS:
        if name in names:
            return [name], "board_input"
    for needed, more in MODULES:
        if all(name in names for name in needed):
            return [name for name in needed + more if name in names], "module"
    return None
