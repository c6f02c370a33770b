"""The tables of 64-bit little-endian ELF files: program headers and sections, without binutils."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from edgesdk.errors import ConvertError

HEADER_BYTES, MAGIC = 64, b"\x7fELF\x02\x01"
# Where the header says where a table begins, and how large and how many its entries are.
PROGRAM_TABLE, SECTION_TABLE = (32, 54), (40, 58)
ENTRY = struct.Struct("<IIQQQQ")
WRITABLE, LOADED, PROGRAM_DATA = 1, 2, 1


@dataclass(frozen=True)
class Segment:
    """A program header: its `kind` (PT_…), and the place of its bytes in the file."""

    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class Section:
    """A section header: its `kind` (SHT_…), `flags` (SHF_…) and bytes."""

    kind: int
    flags: int
    size: int


def segments(stream: BinaryIO) -> Iterator[Segment]:
    """The program headers of a file; none in an object file.

    Raises:
        ConvertError: not such an ELF file, or its table is cut off.
    """
    for kind, _, offset, _, _, size in _entries(stream, PROGRAM_TABLE):
        yield Segment(kind, offset, size)


def sections(stream: BinaryIO) -> Iterator[Section]:
    """The section headers of a file.

    Raises:
        ConvertError: see `segments`.
    """
    for _, kind, flags, _, _, size in _entries(stream, SECTION_TABLE):
        yield Section(kind, flags, size)


def read_only_bytes(data: bytes) -> int:
    """Bytes of code and read-only data (loaded, not writable program sections) of an object file.

    Raises:
        ConvertError: see `segments`.
    """
    return sum(
        section.size for section in sections(io.BytesIO(data))
        if section.kind == PROGRAM_DATA and section.flags & LOADED and not section.flags & WRITABLE
    )


def _entries(stream: BinaryIO, place: tuple[int, int]) -> Iterator[tuple[int, ...]]:
    header = stream.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise ConvertError("not a 64-bit little-endian ELF file")
    table, = struct.unpack_from("<Q", header, place[0])
    entry_size, count = struct.unpack_from("<HH", header, place[1])
    for index in range(count):
        try:
            stream.seek(table + index * entry_size)
            entry = ENTRY.unpack(stream.read(ENTRY.size))
        except (struct.error, OSError, OverflowError, ValueError) as problem:
            raise ConvertError(f"the ELF file is cut off: {problem}") from problem
        yield entry
