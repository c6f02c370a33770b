"""Readers of data files. The files are hostile input: no pickle, no array larger than its file says, and whatever is
wrong with them becomes a ConfigError that names file and line or key."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import ConfigError

NPZ_LIMIT = 8 << 30
TEXT_LIMIT = 1 << 30
HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: Path, wanted: Collection[str], required: Collection[str]) -> dict[str, NDArray[Any]]:
    """The wanted arrays of an .npz file; others stay unread.

    Raises:
        ConfigError: not a zip of arrays, truncated, holding Python objects, too large, or without a required key.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if missing := sorted(set(required) - set(members)):
                found = ", ".join(sorted(members)[:8]) or "nothing"
                raise ConfigError(f"{path}: key {missing[0]} is missing; found {found}", f"add {missing[0]}")
            chosen = {name: members[name] for name in sorted(wanted) if name in members}
            if (size := sum(info.file_size for info in chosen.values())) > NPZ_LIMIT:
                raise ConfigError(f"{path}: {size} bytes unpacked, at most {NPZ_LIMIT >> 30} GiB are read")
            arrays = {}
            for name, info in chosen.items():
                with archive.open(info) as stream:
                    arrays[name] = _read_array(stream, info.file_size, f"{path}: {name}")
            return arrays
    except ConfigError:
        raise
    except Exception as problem:  # zipfile, zlib and numpy raise a dozen types for broken files
        raise ConfigError(
            f"{path}: not readable as .npz: {type(problem).__name__}: {problem}", "write it with numpy.savez"
        ) from problem


def _read_array(stream: Any, size: int, where: str) -> NDArray[Any]:
    """One .npy member. The size that its header claims is compared with that of the member before it is allocated."""
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ConfigError(f"{where}: .npy version {version}, expected 1.0 or 2.0", "write it with numpy.savez")
    shape, fortran, dtype = HEADERS[version](stream)
    if dtype.kind not in "biuf":
        raise ConfigError(
            f"{where} has type {dtype}, expected numbers (objects would need pickle)", "store plain numeric arrays"
        )
    count = 1
    for extent in shape:
        count *= extent
    if count < 0 or stream.tell() + count * dtype.itemsize != size:
        raise ConfigError(f"{where}: its header says {list(shape)} of {dtype}, its size is {size} bytes")
    values = np.frombuffer(stream.read(), dtype).astype(dtype.newbyteorder("="))
    return values.reshape(shape, order="F" if fortran else "C")


def read_text(path: Path, needs_labels: bool) -> tuple[list[str], list[tuple[int, int | str]] | None]:
    """Texts and (line, label) of a .csv or .jsonl file; a label is a number or a name, None stands for no labels.

    Raises:
        ConfigError: unreadable, no rows, no text or no label in a line, or labels in some lines only.
    """
    try:
        if (size := path.stat().st_size) > TEXT_LIMIT:
            raise ConfigError(f"{path}: {size} bytes, at most {TEXT_LIMIT >> 30} GiB are read", "give a part of it")
        with path.open("rb") as stream:
            rows = list(_csv_rows(path, stream) if path.suffix.lower() == ".csv" else _json_rows(path, stream))
    except OSError as problem:
        raise ConfigError(f"{path}: not readable: {problem}") from problem
    if not rows:
        raise ConfigError(f"{path}: the data set is empty: no rows", "give some rows with text and label")
    texts = []
    labels = []
    has_labels = needs_labels or any(row.get("label") is not None for _, row in rows)
    for line, row in rows:
        text = row.get("text")
        if not isinstance(text, str):
            story = "no text" if text is None else f"text is {type(text).__name__}"
            raise ConfigError(f"{path} line {line}: {story}, expected a string", "every row needs text and label")
        texts.append(text)
        if has_labels:
            labels.append((line, _label(row.get("label"), f"{path} line {line}")))
    return texts, labels if has_labels else None


def _label(value: Any, where: str) -> int | str:
    """A label: a number, or a string without the spaces around it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip():
        return value.strip()
    story = "no label" if value is None or value == "" else f"label is {value!r}"
    raise ConfigError(f"{where}: {story}, expected a number or a name", "every row needs text and label")


def _lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    """Lines of UTF-8 text, without a byte order mark."""
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise ConfigError(f"{path} line {number}: not UTF-8: {problem.reason}", "save it as UTF-8") from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def _csv_rows(path: Path, stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_lines(path, stream), strict=True)
    try:
        columns = reader.fieldnames or []
        if columns and "text" not in columns:
            raise ConfigError(
                f"{path} line 1: no column text; found {', '.join(map(repr, columns[:8]))}",
                "name the columns text and label in the first line",
            )
        for row in reader:
            yield reader.line_num, row
    except csv.Error as problem:
        raise ConfigError(f"{path} line {reader.reader.line_num}: not readable as CSV: {problem}") from problem


def _json_rows(path: Path, stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path, stream), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise ConfigError(f"{path} line {number}: not readable as JSON: {problem}") from problem
        if not isinstance(row, dict):
            raise ConfigError(f"{path} line {number}: {type(row).__name__}, expected an object with text and label")
        yield number, row
