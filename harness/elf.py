"""What the header of an ELF file says: its architecture, and the C library that it wants."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

from edgesdk.converters.elf import segments
from edgesdk.errors import ConvertError

MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
GLIBC = re.compile(rb"\0GLIBC_([0-9]{1,2})\.([0-9]{1,3})(?:\.[0-9]{1,3})?(?=\0)")
INTERPRETER = 3


def elf_machine(path: Path) -> str | None:
    """Architecture of an ELF file as `uname -m` calls it; None when the file is not ELF."""
    with path.open("rb") as stream:
        header = stream.read(20)
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return None
    order = ">" if header[5] == 2 else "<"
    (machine,) = struct.unpack(order + "H", header[18:20])
    return MACHINES.get(machine, f"machine {machine}")


def wanted_glibc(path: Path) -> tuple[int, int] | None:
    """The newest GLIBC version that a dynamic 64-bit little-endian program names; None for static programs and
    everything else."""
    data = path.read_bytes()
    try:
        kinds = {segment.kind for segment in segments(io.BytesIO(data))}
    except ConvertError:
        return None
    versions = [(int(major), int(minor)) for major, minor in GLIBC.findall(data)]
    return max(versions, default=None) if INTERPRETER in kinds else None
