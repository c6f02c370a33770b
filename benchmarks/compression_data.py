"""Data of the compression benchmark: CLINC150 and Banking77 from folders, split the way the figures need it.

No split is read before it is asked for: `Corpus.test` opens the file anew, so that recipes can be frozen first.
N rows, S tokens.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.errors import ConfigError
from edgesdk.tokenizer import Tokenizer

SEQUENCE_SHARE, LONGEST = 0.999, 64
CALIBRATION_ROWS = 256
# Of CLINC150's validation rows: half proves promises (thresholds of exits) and is never printed; of the other half one
# half chooses weights while training, and the other the recipes.
CLINC_HOLDOUT, CLINC_CHOICE = 1 / 2, 1 / 2
# Banking77 has no validation rows: a tenth of its training rows is held out. No recipe is chosen on it.
BANKING_VALIDATION = 0.1


@dataclass(frozen=True, eq=False)
class Texts:
    """Rows of text with their class, int64 [N]."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: NDArray[np.int64]) -> Texts:
        return Texts(tuple(self.texts[row] for row in rows), self.labels[rows])

    def shuffled(self, seed: int) -> Texts:
        """All rows in random order: the files are sorted by class, and the first rows of a data set calibrate."""
        return self.take(np.random.default_rng(seed).permutation(len(self)))

    def joined(self, more: Texts) -> Texts:
        """These rows, then `more`."""
        return Texts((*self.texts, *more.texts), np.concatenate([self.labels, more.labels]))

    def split(self, share: float, seed: int) -> tuple[Texts, Texts]:
        """(rest, part) with round(share · N) rows in `part`, every class with its share."""
        numbers = Dataset({"row": np.arange(len(self))}, self.labels)
        rest, part = numbers.split(share, seed)
        return self.take(rest.inputs["row"]), self.take(part.inputs["row"])


@dataclass(frozen=True, eq=False)
class Corpus:
    """A data set without its test split.

    Attributes:
        validation: chooses weights while training.
        choice: recipes are chosen by figures on it, nothing trains on it; None where no recipe is chosen.
        holdout: proves promises, no figure on it is printed; None where there are too few rows for one.
        read_test: opens the test split.
    """

    name: str
    labels: tuple[str, ...]
    train: Texts
    validation: Texts
    choice: Texts | None
    holdout: Texts | None
    read_test: Callable[[], Texts]

    def limited(self, rows: int) -> Corpus:
        """At most `rows` training rows, and as many of each other split: for trials."""

        def cut(texts: Texts) -> Texts:
            return texts if len(texts) <= rows else texts.split(rows / len(texts), 0)[1].shuffled(0)

        choice, holdout = (None if texts is None else cut(texts) for texts in (self.choice, self.holdout))
        read_test = self.read_test
        return Corpus(
            self.name, self.labels, cut(self.train), cut(self.validation), choice, holdout, lambda: cut(read_test())
        )


def read_clinc(folder: Path, seed: int) -> Corpus:
    """CLINC150: the rows in scope of `data_full.json`.

    Raises:
        ConfigError: the file is missing or is not what it should be.
    """
    path = folder / "data_full.json"

    def rows(split: str) -> list[tuple[str, str]]:
        return _read(path, lambda: [(str(text), str(label)) for text, label in json.loads(path.read_bytes())[split]])

    train = rows("train")
    names = _names(train)
    rest, holdout = _texts(rows("val"), names, path).split(CLINC_HOLDOUT, seed)
    validation, choice = rest.split(CLINC_CHOICE, seed)
    return Corpus(
        "clinc150", names, _texts(train, names, path).shuffled(seed), validation.shuffled(seed),
        choice.shuffled(seed), holdout.shuffled(seed), lambda: _texts(rows("test"), names, path).shuffled(seed),
    )


def read_banking(folder: Path, seed: int) -> Corpus:
    """Banking77: `train.csv`, a tenth of it held out for validation, and `test.csv`.

    Raises:
        ConfigError: a file is missing or is not what it should be.
    """

    def rows(split: str) -> list[tuple[str, str]]:
        path = folder / f"{split}.csv"

        def parse() -> list[tuple[str, str]]:
            with path.open(encoding="utf-8", newline="") as stream:
                return [(row["text"].strip(), row["category"]) for row in csv.DictReader(stream)]

        return _read(path, parse)

    every = rows("train")
    names = _names(every)
    train, validation = _texts(every, names, folder / "train.csv").split(BANKING_VALIDATION, seed)
    return Corpus(
        "banking77", names, train.shuffled(seed), validation.shuffled(seed), None, None,
        lambda: _texts(rows("test"), names, folder / "test.csv").shuffled(seed),
    )


def sequence_for(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """The shortest sequence that holds 99.9 % of the texts, at most 64 tokens."""
    lengths = tokenizer.encode(texts, LONGEST)["attention_mask"].sum(1)
    return int(np.quantile(lengths, SEQUENCE_SHARE, method="higher"))


def dataset(corpus: Corpus, split: str, texts: Texts, tokenizer: Tokenizer, sequence: int) -> Dataset:
    """The rows as a data set that remembers its texts, so that stages may encode them anew."""
    inputs = tokenizer.encode(texts.texts, sequence)
    return Dataset(inputs, texts.labels, f"{corpus.name} {split}", corpus.labels, texts.texts, tokenizer.digest)


def _read(path: Path, parse: Callable[[], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    try:
        found = parse()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ConfigError(
            f"{path}: not readable as this data set: {type(problem).__name__}: {problem}",
            "give the folder of the published data set",
        ) from problem
    if not found:
        raise ConfigError(f"{path}: no rows")
    return found


def _names(rows: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(sorted({label for _, label in rows}))


def _texts(rows: Sequence[tuple[str, str]], names: tuple[str, ...], path: Path) -> Texts:
    numbers = {name: index for index, name in enumerate(names)}
    unknown = {label for _, label in rows} - numbers.keys()
    if unknown:
        raise ConfigError(f"{path}: labels that no training row has: {', '.join(sorted(unknown)[:4])}")
    return Texts(tuple(text for text, _ in rows), np.array([numbers[label] for _, label in rows], np.int64))
