"""Which CPU features a binary of the NEON build needs: written into an ELF note (`neon/emit.py`), so that a board is
spared a binary that it cannot run."""

from __future__ import annotations

import struct
from pathlib import Path

from edgesdk.converters.elf import segments
from edgesdk.errors import ConvertError

NOTE_OWNER = "EdgeSDK"
PT_NOTE, NOTE_TYPE, LARGEST_NOTE = 4, 1, 1 << 16


def read_isa(path: Path) -> list[str]:
    """CPU features that the executable at `path` needs, such as `["neon", "dotprod"]`; empty for any CPU of its kind.

    Raises:
        ConvertError: not a 64-bit little-endian ELF file of the NEON build.
    """
    try:
        with path.open("rb") as stream:
            for segment in segments(stream):
                if segment.kind == PT_NOTE and segment.size <= LARGEST_NOTE:
                    stream.seek(segment.offset)
                    found = _find(stream.read(segment.size))
                    if found is not None:
                        return found
    except (ConvertError, OSError, struct.error, OverflowError, UnicodeDecodeError) as problem:
        raise ConvertError(f"{path}: not readable as ELF: {problem}") from problem
    raise ConvertError(f"{path}: has no {NOTE_OWNER} note: not a binary of the NEON build")


def _find(notes: bytes) -> list[str] | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, text_size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        start = at + 12 + (name_size + 3) // 4 * 4
        if kind == NOTE_TYPE and name == NOTE_OWNER.encode() + b"\0":
            text = notes[start : start + text_size].decode("ascii")
            return text.split(",") if text else []
        at = start + (text_size + 3) // 4 * 4
    return None
