"""Tokenizers of folders as transformers writes them, and the files that a package takes along."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import ConfigError, ModelError
from edgesdk.files import canonical_json, sha256_bytes

# What decides how text becomes tokens.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
PREPROCESS_FILES = (*TOKENIZER_FILES, "preprocessor_config.json")
PREPROCESS_LIMIT = 32 << 20
JSON_LIMIT = 4 << 20


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a folder. `encode(texts, sequence)` gives `input_ids` and `attention_mask`, int64 [N, sequence],
    truncated to `sequence` and padded at the end. `digest` is that of its files (`tokenizer_digest`)."""

    inner: Any
    digest: str | None = None

    def encode(self, texts: Sequence[str], sequence: int) -> dict[str, NDArray[np.int64]]:
        encoded = self.inner(
            list(texts),
            truncation=True,
            padding="max_length",
            max_length=sequence,
            padding_side="right",
            return_attention_mask=True,
            return_tensors="np",
        )
        return {name: np.asarray(encoded[name], np.int64) for name in ("input_ids", "attention_mask")}


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder, from its own files only; None where it has neither tokenizer.json nor vocab.txt.

    Raises:
        ConfigError: it needs code from elsewhere, does not load, or has neither a padding nor an end token.
        ModelError: transformers is not installed.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return None
    path = folder / "tokenizer_config.json"
    try:
        settings = read_json(path) if path.is_file() else {}
    except ModelError as problem:
        raise ConfigError(problem.message) from problem
    if settings.get("auto_map"):
        raise ConfigError(
            f"{path}: auto_map is set; code of a folder is never run",
            "use a tokenizer of transformers, or give an .npz with input_ids",
        )
    transformers = import_transformers()
    # Without a class in the settings, AutoTokenizer would need config.json; tokens here are always BERT's.
    loader = transformers.AutoTokenizer if "tokenizer_class" in settings else transformers.BertTokenizer
    try:
        inner = loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as problem:  # whatever transformers makes of broken files
        raise ConfigError(
            f"{folder}: its tokenizer does not load: {type(problem).__name__}: {problem}",
            "write it again: tokenizer.save_pretrained(folder)",
        ) from problem
    if inner.pad_token_id is None and inner.eos_token_id is not None:
        inner.pad_token = inner.eos_token  # decoders have none; behind the mask any token will do
    if inner.pad_token_id is None:
        raise ConfigError(f"{folder}: its tokenizer has no padding token", "set tokenizer.pad_token and save it again")
    return Tokenizer(inner, tokenizer_digest(preprocess_files(folder)))


def tokenizer_digest(preprocess: Mapping[str, bytes]) -> str | None:
    """Hexadecimal SHA-256 of the files (name → contents) that make a tokenizer; None where there is none."""
    if "tokenizer.json" not in preprocess and "vocab.txt" not in preprocess:
        return None
    parts = {name: sha256_bytes(preprocess[name]) for name in TOKENIZER_FILES if name in preprocess}
    return sha256_bytes(canonical_json(parts))


def preprocess_files(folder: Path) -> dict[str, bytes]:
    """The files that turn text or images into inputs, name → contents, for the package.

    Raises:
        ModelError: a file is larger than 32 MiB or unreadable.
    """
    files = {}
    for name in PREPROCESS_FILES:
        path = Path(folder) / name
        if not path.is_file():
            continue
        if path.stat().st_size > PREPROCESS_LIMIT:
            raise ModelError(f"{path}: {path.stat().st_size} bytes, expected at most {PREPROCESS_LIMIT >> 20} MiB")
        try:
            files[name] = path.read_bytes()
        except OSError as problem:
            raise ModelError(f"{path}: not readable: {problem}") from problem
    return files


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file of at most 4 MiB; ModelError naming the file where it is not one."""
    if path.stat().st_size > JSON_LIMIT:
        raise ModelError(f"{path}: larger than {JSON_LIMIT >> 20} MiB")
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise ModelError(f"{path}: not readable as JSON: {problem}") from problem
    if not isinstance(document, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def import_transformers() -> Any:
    """The package transformers, loaded only where it is needed; ModelError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "models and tokenizers of Hugging Face folders need the package transformers",
            "pip install edgesdk[hf]",
        ) from None
    return transformers
