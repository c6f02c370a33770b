"""Rows of text, encoded by the tokenizer of the package that is going to see them.

A stage may change the vocabulary, so the same texts are other tokens for the packages before and after it. Whoever
feeds a package with data asks `encoded_for` first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.data_check import check_inputs
from edgesdk.errors import ConfigError
from edgesdk.package import Package
from edgesdk.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer, tokenizer_digest
from edgesdk.transformer.spec import TokenEmbedding

__all__ = ["encoded_for", "packaged_tokenizer", "tokenizer_digest"]

Files = tuple[tuple[str, bytes], ...]


def encoded_for(package: Package, data: Dataset) -> Dataset:
    """The rows of `data` in the tokens of `package`, at its sequence: `input_ids`, `attention_mask` int64 [N, S].

    The same data where they are so already, where they hold no texts, and where the package has no tokenizer.

    Raises:
        ConfigError: the package's tokenizer does not load or fails, or makes ids that its table does not have.
    """
    if data.texts is None or not isinstance(package.spec.embedding, TokenEmbedding):
        return data
    digest = tokenizer_digest(package.preprocess)
    ids = data.inputs.get("input_ids")
    same_width = ids is not None and ids.shape[1:] == (package.sequence,)
    if digest is None or (digest == data.tokenizer and same_width):
        return data
    inputs = dict(_rows(_tokenizer_files(package.preprocess), data.texts, package.sequence))
    inputs = check_inputs(inputs, package.spec, f"{data.name} in the tokens of package {package.name!r}")
    return Dataset(inputs, data.labels, data.name, data.label_names, data.texts, digest)


def packaged_tokenizer(preprocess: Mapping[str, bytes]) -> Tokenizer | None:
    """The tokenizer that a package carries; None where it carries none.

    Raises:
        ConfigError: see `edgesdk.tokenizer.load_tokenizer`.
    """
    return _loaded(_tokenizer_files(preprocess))


def _tokenizer_files(preprocess: Mapping[str, bytes]) -> Files:
    return tuple((name, preprocess[name]) for name in TOKENIZER_FILES if name in preprocess)


@lru_cache(maxsize=8)
def _loaded(files: Files) -> Tokenizer | None:
    """Tokenizers are read from folders; the folder is gone before anything is encoded."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files:
            (Path(folder) / name).write_bytes(content)
        return load_tokenizer(Path(folder))


@lru_cache(maxsize=32)
def _rows(files: Files, texts: tuple[str, ...], sequence: int) -> tuple[tuple[str, NDArray[Any]], ...]:
    """The arrays of texts, kept because every stage of every recipe asks for them; read-only as they are shared."""
    tokenizer = _loaded(files)
    assert tokenizer is not None  # the caller has seen its files
    try:
        arrays = tokenizer.encode(texts, sequence)
    except Exception as problem:  # whatever a tokenizer raises
        raise ConfigError(
            f"the package's tokenizer failed at sequence {sequence}: {type(problem).__name__}: {problem}"
        ) from problem
    kept = []
    for name, value in arrays.items():
        array = np.ascontiguousarray(value)
        array.flags.writeable = False
        kept.append((name, array))
    return tuple(kept)
