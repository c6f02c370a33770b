"""`prune.vocabulary`: keep `size` tokens; tokenizer and token table are rewritten together.

What is promised of the new tokenizer: let A be the characters that stay (see `edgesdk.vocabulary.alphabet`). A text
whose normalized words consist of characters of A that had pieces of their own before, at a word's beginning and
inside, has no [UNK] now. So [UNK] only comes where a character outside A is: with `characters: all` never where there
was none before, with `scripts` not in the scripts that the corpus is written in. Each token that stays keeps its row
of the table bit for bit; other words are spelt in the pieces that stay, and recovery teaches the model to read them.

The sizes of embeddings decide those of small models: of MiniLM's 22.7 M parameters 11.7 M are its token table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from edgesdk.data_files import TEXT_LIMIT, read_text
from edgesdk.errors import ModelError, StageError
from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.transformer.spec import TokenEmbedding
from edgesdk.vocabulary import Characters, base_pieces, frequent, rebuilt
from edgesdk.wordpiece import WordPiece, read_wordpiece, rewrite


class PruneVocabularyOptions(Options):
    """`size` tokens stay (a share of the vocabulary where it is below 1), special ones and single characters included.
    `corpus` is a file of UTF-8 text, one text a
    line, or a .csv or .jsonl file with texts; without, the training texts are counted. `max_length` also cuts the table
    of positions. `corpus_sha256` is filled in, so that lineage and cache know what was read."""

    size: Annotated[int, Field(strict=True, ge=1, le=1 << 24)] | Annotated[float, Field(strict=True, gt=0, lt=1)] = (
        Field(description="a number of tokens, such as 8000, or a share below 1, such as 0.25")
    )
    corpus: str | None = None
    corpus_sha256: str | None = None
    max_length: int | None = Field(default=None, ge=1, le=1 << 24)
    method: Literal["rebuild", "frequent"] = "rebuild"
    characters: Characters = "scripts"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_digest(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("corpus"), str):
            return values
        if values.get("corpus_sha256") is not None:
            return values
        try:
            return {**values, "corpus_sha256": _digest(Path(values["corpus"]))}
        except (OSError, ValueError) as problem:
            raise ValueError(f"corpus {values['corpus'][:200]!r} is not readable: {problem}") from problem


class PruneVocabulary(Stage):
    """A smaller vocabulary for the same texts."""

    name: ClassVar[str] = "prune.vocabulary"
    options_type: ClassVar[type[Options]] = PruneVocabularyOptions
    options: PruneVocabularyOptions

    def requires(self, outline: Outline) -> list[str]:
        embedding = outline.spec.embedding
        if not isinstance(embedding, TokenEmbedding):
            return ["it prunes tables of tokens, this model takes " + embedding.kind]
        reasons = []
        if outline.scheme != "fp32":
            reasons.append(f"it prunes fp32 packages, this one is {outline.scheme}; put it before the quantize stage")
        if not outline.text:
            reasons.append(
                "it encodes texts anew: give the data as .csv or .jsonl of texts, and a model with its tokenizer"
            )
        if outline.spec.lm_head:
            reasons.append("its vocabulary is the model's output too (lm_head)")
        elif outline.spec.pooling == "none":
            reasons.append(
                "the model's output has a row for each token (hidden_states), and texts become other tokens: nothing "
                "could be compared with the model before; use one with pooling"
            )
        if self._size(embedding) > embedding.vocabulary:
            reasons.append(f"size is {self.options.size}, the vocabulary has {embedding.vocabulary} tokens")
        if (self.options.max_length or 1) > embedding.max_length:
            reasons.append(f"max_length is {self.options.max_length}, the model's is {embedding.max_length}")
        return reasons

    def _size(self, embedding: TokenEmbedding) -> int:
        size = self.options.size
        return size if isinstance(size, int) else max(1, round(size * embedding.vocabulary))

    def ensures(self, outline: Outline) -> Outline:
        embedding = outline.spec.embedding
        assert isinstance(embedding, TokenEmbedding)
        length = self.options.max_length or embedding.max_length
        embedding = dataclasses.replace(embedding, vocabulary=self._size(embedding), max_length=length)
        return dataclasses.replace(outline, spec=dataclasses.replace(outline.spec, embedding=embedding))

    def apply(self, package: Package, context: Context) -> Change:
        options = self.options
        if options.max_length is not None and options.max_length < package.sequence:
            raise StageError(
                f"stage {self.name}: max_length is {options.max_length}, the rows of this build have "
                f"{package.sequence} tokens", f"set max_length to {package.sequence} or more, or build with --sequence"
            )
        try:
            old = read_wordpiece(package.preprocess)
        except ModelError as problem:
            raise StageError(f"stage {self.name}: {problem.message}", problem.hint) from problem
        table = package.weights["embedding.tokens.weight"]
        if lost := [token for token in sorted(old.special) if old.ids[token] >= len(table)]:
            raise StageError(f"stage {self.name}: the table has {len(table)} rows, none for {', '.join(lost[:4])}")
        old = dataclasses.replace(old, tokens=old.tokens[: len(table)])
        assert isinstance(package.spec.embedding, TokenEmbedding)
        size = self._size(package.spec.embedding)
        kept = [old.ids[token] for token in self._kept(old, context, size)]
        files = rewrite(package.preprocess, [old.tokens[index] for index in kept], options.max_length)
        new = read_wordpiece(files)
        weights = {**package.weights, "embedding.tokens.weight": np.ascontiguousarray(table[kept])}
        if options.max_length is not None and "embedding.positions.weight" in weights:
            positions = package.weights["embedding.positions.weight"]
            weights["embedding.positions.weight"] = np.ascontiguousarray(positions[: options.max_length])

        def translated(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return old.translate(inputs["input_ids"], inputs["attention_mask"], new)

        return Change(
            spec=self.ensures(context.outline(package)).spec,
            weights=weights,
            preprocess=files,
            calibration=translated(package.samples.calibration),
            golden_inputs=translated(package.samples.golden_inputs),
        )

    def _kept(self, old: WordPiece, context: Context, size: int) -> list[str]:
        """The `size` tokens that stay, in the order of their old ids."""
        counts = old.count(self._texts(context))
        base = base_pieces(old, counts, self.options.characters)
        if len(base) > size:
            raise StageError(
                f"stage {self.name}: size is {size}, but {len(base)} tokens keep texts encodable: "
                f"{len(old.special)} special tokens and the characters of the corpus",
                f"set size to more, or characters to less ({self.options.characters})",
            )
        choose = rebuilt if self.options.method == "rebuild" else frequent
        kept = choose(old, counts, base, size)
        if len(kept) < size:
            raise StageError(
                f"stage {self.name}: size is {size}, the tokenizer has {len(kept)} tokens", f"set size to {len(kept)}"
            )
        return sorted(kept, key=lambda token: old.ids[token])

    def _texts(self, context: Context) -> Iterator[str]:
        if self.options.corpus is not None:
            path = Path(self.options.corpus)
            try:
                found = _digest(path)
            except (OSError, ValueError) as problem:
                raise StageError(f"stage {self.name}: corpus {path}: not readable: {problem}") from problem
            if found != self.options.corpus_sha256:
                raise StageError(f"stage {self.name}: corpus {path} is not the file that the recipe was read with")
            yield from _corpus(path)
            return
        trained = None if context.train is None else context.train.texts
        yield from trained or context.calibration.texts or ()


def _digest(path: Path) -> str:
    """SHA-256 of a corpus. Devices and pipes, which may have no end, are not read.

    Raises:
        OSError, ValueError: not readable, no regular file, or too large.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # without, opening a pipe waits for its writer

    with open(path, "rb", opener=opener) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > TEXT_LIMIT:
            raise ValueError(f"it has {status.st_size} bytes, at most {TEXT_LIMIT >> 30} GiB are read; give a part")
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _corpus(path: Path) -> list[str]:
    """Texts of a file, at least one.

    Raises:
        StageError: not UTF-8, or empty. ConfigError: a broken .csv or .jsonl file.
    """
    if path.suffix.lower() in (".csv", ".jsonl"):
        return read_text(path, False)[0]
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as problem:
        raise StageError(f"corpus {path}: not readable as UTF-8 text: {problem}") from problem
    if not any(text.strip() for text in texts):
        raise StageError(f"corpus {path}: no text in it", "give one text a line")
    return texts
