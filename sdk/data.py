"""Data sets: inputs of a model with labels, in memory, checked before anything runs on them.

`load_data` reads what `--data` and `--train-data` name:

    module:function     returns a Dataset, (inputs, labels), or a dictionary with the keys of an .npz
    FILE.npz            input_ids, attention_mask, labels | pixel_values, labels | features (labels)
    FILE.csv, .jsonl    columns or keys `text` and `label`; needs the tokenizer of the model's folder

Shapes: N rows, S tokens, H hidden. Rows in messages count from 0, lines of text files from 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgesdk.data_check import check_inputs, check_labels, fit_tokens
from edgesdk.data_files import label_numbers, read_npz, read_text
from edgesdk.errors import ConfigError
from edgesdk.transformer.spec import PatchEmbedding, TokenEmbedding, TransformerSpec
from edgesdk.user_code import call_function, is_function, missing_path

# Tokens of a text data set where the caller names no sequence.
TEXT_SEQUENCE = 64
SOURCES = "module:function, or a .csv, .jsonl or .npz file"


class TextEncoder(Protocol):
    """What turns texts into `input_ids` and `attention_mask`, int64 [N, sequence]: `edgesdk.tokenizer.Tokenizer`.
    Where it has a `digest`, the data set remembers it."""

    def encode(self, texts: Sequence[str], sequence: int) -> dict[str, NDArray[np.int64]]: ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and labels of N rows.

    Attributes:
        inputs: name → array [N, …], the named inputs of the model.
        labels: int64 [N], or None where there are none (task `encoding`).
        name: where it comes from, for messages and reports.
        label_names: names of the labels 0, 1 … where the file has names.
        texts: what the rows were encoded from, where they are texts; another tokenizer can then encode them anew.
        tokenizer: digest of the tokenizer that encoded them (`edgesdk.encode.tokenizer_digest`).
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    name: str = "data"
    label_names: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    tokenizer: str | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), ()))

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of names, types, shapes and contents of inputs and labels, and of texts and tokenizer,
        which decide what the rows are for another package; not of `name`."""
        sha = hashlib.sha256()
        arrays = {**self.inputs, **({} if self.labels is None else {"labels": self.labels})}
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            sha.update(array.tobytes())
        sha.update(json.dumps([self.texts, self.tokenizer]).encode())
        return sha.hexdigest()

    def take(self, indices: Sequence[int] | NDArray[Any]) -> Dataset:
        """The rows at `indices`, in that order."""
        rows = np.asarray(indices, np.int64)
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        labels = None if self.labels is None else self.labels[rows]
        texts = None if self.texts is None else tuple(self.texts[row] for row in rows)
        return Dataset(inputs, labels, self.name, self.label_names, texts, self.tokenizer)

    def head(self, n: int) -> Dataset:
        """The first `n` rows, or all where there are fewer."""
        return self.take(np.arange(min(n, len(self))))

    def sample(self, count: int, seed: int) -> Dataset:
        """`count` rows, or all where there are fewer, every label with its share of them (see `split`): files are often
        sorted by label, so that their first rows know a few classes only."""
        return self if count >= len(self) else self.split(count / len(self), seed)[1]

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """(rest, part) with round(fraction · N) rows in `part`; every label has its share of it, to within one row.

        The rows are shuffled, sorted by label, and taken at even distances. Both keep the order of the rows.

        Raises:
            ConfigError: one of the two would be empty.
        """
        count = len(self)
        size = round(fraction * count)
        if not 0 < size < count:
            raise ConfigError(
                f"{self.name}: cannot split {fraction:g} of {count} rows off: {size} against {count - size}",
                "give more rows",
            )
        order = np.random.default_rng(seed).permutation(count)
        if self.labels is not None:
            order = order[np.argsort(self.labels[order], kind="stable")]
        chosen = order[((np.arange(size) + 0.5) * count / size).astype(np.int64)]
        in_part = np.zeros(count, bool)
        in_part[chosen] = True
        return self.take(np.flatnonzero(~in_part)), self.take(np.flatnonzero(in_part))


def load_data(
    source: str,
    spec: TransformerSpec,
    *,
    sequence: int | None = None,
    tokenizer: TextEncoder | None = None,
    labels: Sequence[str] | None = None,
    task: str | None = None,
) -> Dataset:
    """Read and check the data that a source names; see the module.

    Args:
        source: `module:function` or a file.
        spec: the model that it is for.
        sequence: tokens of every row. Arrays are padded or cut to it (cut only where that loses padding alone). None
            means as the arrays are, and `TEXT_SEQUENCE` for text.
        tokenizer: for text.
        labels: names of the classes; without, names in a text file are numbered in sorted order (`label_names`).
        task: `classification` needs labels, `encoding` does not; None means what the spec is.

    Raises:
        ConfigError: naming file, key, row or line, and value of what is wrong.
    """
    if sequence is not None and isinstance(spec.embedding, TokenEmbedding) and not 1 <= sequence <= spec.max_length:
        raise ConfigError(f"sequence is {sequence}, expected 1 to {spec.max_length}, the longest of this model")
    path = Path(source)
    needs_labels = (task or ("classification" if spec.classes else "encoding")) == "classification"
    if os.path.isfile(path):
        if path.suffix.lower() in (".csv", ".jsonl"):
            return _load_text(path, spec, sequence, tokenizer, labels, needs_labels)
        if path.suffix.lower() != ".npz":
            raise ConfigError(f"data {source}: a file of type {path.suffix or 'nothing'!r}", f"give {SOURCES}")
        names = _input_names(spec)
        arrays = read_npz(path, {*names, "labels"}, required=names)
        return _dataset(arrays, str(source), spec, sequence, needs_labels)
    if os.path.isdir(path):
        raise ConfigError(f"data {source}: a folder", f"give {SOURCES}")
    if is_function(source):
        result = call_function(source, "data", raised=ConfigError)
        if isinstance(result, Dataset):
            arrays = dict(result.inputs) | ({} if result.labels is None else {"labels": result.labels})
            made = _dataset(arrays, source, spec, sequence, needs_labels, result.label_names)
            return _with_texts(made, result.texts, result.tokenizer)
        return _dataset(_arrays_of(result, source), source, spec, sequence, needs_labels)
    raise missing_path(source, "data", SOURCES)


def check_dataset(dataset: Dataset, spec: TransformerSpec, *, task: str | None = None) -> Dataset:
    """Check a data set that came as an object, as `load_data` checks what it reads.

    Raises:
        ConfigError: see `load_data`.
    """
    arrays = dict(dataset.inputs) | ({} if dataset.labels is None else {"labels": dataset.labels})
    needs_labels = (task or ("classification" if spec.classes else "encoding")) == "classification"
    made = _dataset(arrays, dataset.name, spec, None, needs_labels, dataset.label_names)
    return _with_texts(made, dataset.texts, dataset.tokenizer)


def _input_names(spec: TransformerSpec) -> tuple[str, ...]:
    if isinstance(spec.embedding, TokenEmbedding):
        return ("input_ids", "attention_mask")
    return ("pixel_values",) if isinstance(spec.embedding, PatchEmbedding) else ("features",)


def _dataset(
    arrays: Mapping[str, Any],
    where: str,
    spec: TransformerSpec,
    sequence: int | None,
    needs_labels: bool,
    label_names: tuple[str, ...] | None = None,
) -> Dataset:
    """Check arrays and give them the types of the model's inputs; keys that the model has no use for are left out."""
    inputs = {name: _array(arrays, name, where) for name in _input_names(spec)}
    inputs = check_inputs(inputs, spec, where)
    if sequence is not None and isinstance(spec.embedding, TokenEmbedding):
        inputs = fit_tokens(inputs, sequence, where)
    labels = None
    if arrays.get("labels") is not None or needs_labels:
        rows = len(next(iter(inputs.values())))
        labels = check_labels(_array(arrays, "labels", where), rows, spec.classes, where)
    return Dataset(inputs, labels, where, label_names)


def _with_texts(data: Dataset, texts: Sequence[str] | None, tokenizer: str | None) -> Dataset:
    """The data set with the texts that its rows were encoded from."""
    if texts is None:
        return data
    if len(texts) != len(data) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{data.name}: texts are not one string for each of its {len(data)} rows")
    return dataclasses.replace(data, texts=tuple(texts), tokenizer=tokenizer)


def _array(arrays: Mapping[str, Any], name: str, where: str) -> NDArray[Any]:
    if arrays.get(name) is None:
        found = ", ".join(sorted(map(str, arrays))) or "nothing"
        raise ConfigError(f"{where}: key {name} is missing; found {found}", f"add {name}")
    try:
        return np.asarray(arrays[name])
    except Exception as problem:  # whatever an object of the user does when it is asked for an array
        raise ConfigError(f"{where}: {name} is not an array: {type(problem).__name__}: {problem}") from problem


def _arrays_of(result: Any, source: str) -> dict[str, Any]:
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Mapping):
        return {**result[0], "labels": result[1]}
    raise ConfigError(
        f"data {source}: it returned {type(result).__name__}",
        "return an edgesdk.data.Dataset, (inputs, labels) or a dictionary with inputs and labels",
    )


def _load_text(
    path: Path,
    spec: TransformerSpec,
    sequence: int | None,
    tokenizer: TextEncoder | None,
    labels: Sequence[str] | None,
    needs_labels: bool,
) -> Dataset:
    if not isinstance(spec.embedding, TokenEmbedding):
        raise ConfigError(
            f"{path}: text, but the model takes {_input_names(spec)[0]}", f"give an .npz with {_input_names(spec)[0]}"
        )
    if tokenizer is None:
        raise ConfigError(
            f"{path}: text needs a tokenizer, and the model came without one",
            "save it in the model's folder (tokenizer.save_pretrained(folder)), or give an .npz with input_ids",
        )
    texts, values = read_text(path, needs_labels)
    numbers, names = (None, None) if values is None else label_numbers(path, values, labels, spec.classes)
    width = sequence or min(TEXT_SEQUENCE, spec.max_length)
    try:
        arrays: dict[str, Any] = dict(tokenizer.encode(texts, width))
    except Exception as problem:  # whatever a tokenizer raises
        raise ConfigError(
            f"{path}: the tokenizer failed at sequence {width}: {type(problem).__name__}: {problem}"
        ) from problem
    made = _dataset(arrays | {"labels": numbers}, str(path), spec, width, needs_labels, names)
    return _with_texts(made, texts, getattr(tokenizer, "digest", None))
