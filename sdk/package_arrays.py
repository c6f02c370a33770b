"""Arrays as bytes: safetensors (weights) and npz (samples), written canonically and read without trust.

Both writers are a few lines of our own so that equal arrays give equal bytes with every version of a library: names
in sorted order, no metadata, no time stamps, nothing compressed. The readers accept exactly that subset of the two
formats; array headers are matched, never evaluated, so an object array (a pickle) is refused before it is looked at.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import PackageError
from edgesdk.package_files import hostile, parse_json

LARGEST_HEADER = 16 << 20
MOST_MEMBERS = 100
_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '(<f4|<i8)', 'fortran_order': False, 'shape': \(([0-9]{1,12}(?:, ?[0-9]{1,12})*)?,?\), \} *\n"
)
_MEMBER = re.compile(r"[a-z_]+(/[a-z_]+)?\.npy")


def write_safetensors(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Float32 tensors as safetensors: names sorted, header padded to 8 bytes."""
    header: dict[str, Any] = {}
    blocks: list[bytes] = []
    offset = 0
    for name, tensor in sorted(tensors.items()):
        block = np.ascontiguousarray(tensor, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(block)]}
        blocks.append(block)
        offset += len(block)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(blocks)


def read_safetensors(data: bytes, where: str) -> dict[str, NDArray[np.float32]]:
    """Read what `write_safetensors` wrote; the arrays are read-only views of `data`.

    Raises:
        PackageError: the header is too long, malformed or of another dtype, or its offsets do not tile the data.
    """
    with hostile(where):
        (length,) = struct.unpack_from("<Q", data)
        start = 8 + length
        if length > LARGEST_HEADER or start > len(data):
            raise PackageError(f"{where}: header of {length} bytes in a file of {len(data)}", "the file is truncated")
        header = parse_json(data[8:start], where)
        tensors: dict[str, NDArray[np.float32]] = {}
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
            if entry.keys() != {"dtype", "shape", "data_offsets"} or entry["dtype"] != "F32":
                raise PackageError(f"{where}: {name}: dtype {entry.get('dtype')!r}, expected F32")
            shape = _shape(entry["shape"])
            size = 4 * math.prod(shape)
            if entry["data_offsets"] != [end, end + size]:
                raise PackageError(f"{where}: {name}: data at {entry['data_offsets']}, expected {[end, end + size]}")
            if start + end + size > len(data):
                raise PackageError(f"{where}: {name}: ends after the file's {len(data)} bytes", "the file is truncated")
            tensors[name] = np.frombuffer(data, "<f4", math.prod(shape), start + end).reshape(shape)
            end += size
        if start + end != len(data):
            raise PackageError(f"{where}: {len(data) - start - end} bytes belong to no tensor")
        return tensors


def write_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Float32 and int64 arrays as npz: stored, sorted, every time stamp 1980-01-01."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, _npy(array))
    return buffer.getvalue()


def read_npz(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """Read what `write_npz` wrote; members stay in memory, their declared sizes fit the file.

    Raises:
        PackageError: not such an archive: compressed, encrypted, odd names, other dtypes, truncated …
    """
    with hostile(where), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS or len({member.filename for member in members}) != len(members):
            raise PackageError(f"{where}: {len(members)} members, or two of the same name")
        if sum(member.file_size for member in members) > len(data):
            raise PackageError(f"{where}: its members claim more bytes than the file has")
        arrays: dict[str, NDArray[Any]] = {}
        for member in members:
            name = member.filename
            if not _MEMBER.fullmatch(name):
                raise PackageError(f"{where}: illegal member {name[:200]!r}")
            stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
            if not stored or member.flag_bits & 1:
                raise PackageError(f"{where}: {name}: compressed or encrypted, expected plain storage")
            arrays[name.removesuffix(".npy")] = _array(archive.read(member), f"{where}: {name}")
        return arrays


def _npy(array: NDArray[Any]) -> bytes:
    """NumPy's format 1.0, with its usual padding to 64 bytes."""
    array = np.asarray(array)
    descr = {"f": "<f4", "i": "<i8"}[array.dtype.kind]
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple(int(n) for n in array.shape)}, }}".encode()
    header += b" " * (-(len(_MAGIC) + 2 + len(header) + 1) % 64) + b"\n"
    return _MAGIC + struct.pack("<H", len(header)) + header + array.astype(descr, "C", copy=False).tobytes()


def _array(data: bytes, where: str) -> NDArray[Any]:
    (length,) = struct.unpack_from("<H", data, len(_MAGIC))
    start = len(_MAGIC) + 2 + length
    match = _NPY_HEADER.fullmatch(data[len(_MAGIC) + 2 : start])
    if not data.startswith(_MAGIC) or match is None:
        raise PackageError(f"{where}: not a plain float32 or int64 array", "object arrays (pickles) are never loaded")
    dtype = np.dtype(match[1].decode())
    shape = _shape([int(extent) for extent in (match[2] or b"").split(b",")] if match[2] else [])
    if len(data) - start != dtype.itemsize * math.prod(shape):
        raise PackageError(f"{where}: {len(data) - start} bytes of data for shape {shape} {dtype}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _shape(value: Any) -> tuple[int, ...]:
    if type(value) is not list or len(value) > 8 or any(type(n) is not int or not 0 <= n <= 1 << 40 for n in value):
        raise PackageError(f"shape {str(value)[:100]} is not a list of at most 8 sizes")
    return tuple(value)
