"""Sizes of an object file's sections, as `size` tells them, without binutils."""

from __future__ import annotations

import struct

from edgesdk.errors import ConvertError

WRITABLE, LOADED, PROGRAM_DATA = 1, 2, 1


def read_only_bytes(data: bytes) -> int:
    """Bytes of code and read-only data (loaded, not writable program sections) of a 64-bit little-endian object file.

    Raises:
        ConvertError: not such a file.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ConvertError("the compiler's result is not a 64-bit little-endian ELF file", "use clang or gcc for Linux")
    total = 0
    try:
        table, = struct.unpack_from("<Q", data, 40)
        entry_size, entries = struct.unpack_from("<HH", data, 58)
        for index in range(entries):
            _, kind, flags, _, _, size = struct.unpack_from("<IIQQQQ", data, table + index * entry_size)
            if kind == PROGRAM_DATA and flags & LOADED and not flags & WRITABLE:
                total += size
    except struct.error as problem:
        raise ConvertError(f"the compiler's object file is cut off: {problem}") from problem
    return total
