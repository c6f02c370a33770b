"""Readers of data files. The files are hostile input: no pickle, no array larger than its file says, and whatever is
wrong with them becomes a ConfigError that names file and line or key."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import ConfigError

NPZ_LIMIT = 8 << 30
TEXT_LIMIT = 1 << 30
# A label as a number, with the name that transformers makes up for it.
NUMBER = re.compile(r"(?:LABEL_)?([+-]?\d{1,18})", re.ASCII)
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


def label_numbers(
    path: Path, values: Sequence[tuple[int, int | str]], labels: Sequence[str] | None, classes: int | None
) -> tuple[list[int], tuple[str, ...] | None]:
    """Labels (line, value) as numbers, with the names behind them.

    A string is a name of `labels`, else the digits of a number, else LABEL_3 for 3; where none of these holds and the
    model has no names, the sorted names of the file are numbered, and there must be one for each class.
    """
    known = {name: index for index, name in enumerate(labels or ())}
    unknown = [(line, v) for line, v in values if isinstance(v, str) and v not in known and not NUMBER.fullmatch(v)]
    if unknown and labels is None:
        known = {name: index for index, name in enumerate(_names_of_file(path, values, unknown, classes))}
        labels = tuple(known)
    numbers = []
    for line, value in values:
        digits = NUMBER.fullmatch(value) if isinstance(value, str) and value not in known else None
        number = int(digits[1]) if digits else known.get(value) if isinstance(value, str) else value
        if number is None or not -(2**63) <= number < 2**63:
            raise ConfigError(
                f"{path} line {line}: unknown label {value!r}; known: {', '.join(list(known)[:8]) or 'numbers'}",
                "use a name that the model knows, or the number of the class",
            )
        numbers.append(number)
    return numbers, None if labels is None else tuple(labels)


def _names_of_file(
    path: Path, values: Sequence[tuple[int, int | str]], names: Sequence[tuple[int, str]], classes: int | None
) -> list[str]:
    """The sorted names of a file whose model has none; they must be all the labels there are."""
    if len(names) < len(values):
        line, name = names[0]
        raise ConfigError(f"{path} line {line}: label {name!r} is a name, others are numbers", "use one of the two")
    found = sorted({name for _, name in names})
    if classes is not None and len(found) != classes:
        raise ConfigError(
            f"{path}: {len(found)} different label names ({', '.join(found[:4])} …), the model has {classes} classes",
            "use numbers, or save the names in the model's config.json (id2label)",
        )
    return found


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
