"""The teacher of the compression benchmark: a pretrained encoder with a classifier, fine-tuned on a corpus.

Imported by EdgeSDK's importer (mean of the tokens), trained by EdgeSDK's trainer with cross-entropy. The package lies
in the cache; the same seed gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from compression_cpu import CpuBook
from compression_data import CALIBRATION_ROWS, Corpus, dataset, sequence_for
from torch import Tensor
from torch.nn import functional

from edgesdk.code_digest import code_digest
from edgesdk.data import Dataset
from edgesdk.errors import ModelError
from edgesdk.files import canonical_json, sha256_bytes, sha256_file
from edgesdk.importing import import_job
from edgesdk.model_source import load_model, load_tokenizer, preprocess_files
from edgesdk.package import Package, content_digest, read_package, write_package
from edgesdk.stages import Context, Progress
from edgesdk.stages.train import TrainingOptions, fit
from edgesdk.targets import load_target
from edgesdk.tokenizer import Tokenizer
from edgesdk.transformer.importers import import_model
from edgesdk.transformer.module import Transformer, build

# all-MiniLM-L6-v2 as its authors published it; the copies that packages carry are checked against it.
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HEAD_SPREAD = 0.02
CODE = ("edgesdk.importing", "edgesdk.stages.train_loop")
# Whose sparse blocks `pattern: target` takes: the machine on which latencies are measured.
TARGET = "host"


@dataclass(frozen=True, eq=False)
class Subject:
    """A corpus with its teacher, and everything that stages need of them.

    Attributes:
        choosing: rows that figures before the freeze are taken on: those of `choice`, then those of validation.
        choice: how many of them nothing trains on; all where the corpus has no such rows, since nothing is chosen then.
        limit: rows of a split at most, in a trial.
        work: what the CPU book calls the teacher's training, and the seconds there.
    """

    corpus: Corpus
    teacher: Package
    tokenizer: Tokenizer
    context: Context
    choosing: Dataset
    choice: int
    work: str
    cpu: float
    limit: int | None = None

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of everything that figures depend on besides a recipe: the teacher and all rows but those
        of the test split, which is not read before the freeze."""
        sets = (self.context.train, self.context.validation, self.context.holdout, self.choosing)
        digests = [None if rows is None else rows.digest for rows in sets]
        return sha256_bytes(canonical_json([content_digest(self.teacher), digests, self.choice, self.limit]))

    @cached_property
    def test(self) -> Dataset:
        """Reads the test split."""
        return dataset(self.corpus, "test", self.corpus.read_test(), self.tokenizer, self.teacher.sequence)


def check_model(folder: Path) -> None:
    """Refuse another model than the one that the figures are about.

    Raises:
        ModelError: no weights there, or others.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "give the folder with model.safetensors of all-MiniLM-L6-v2")
    found = sha256_file(path)
    if found != MODEL_SHA256:
        raise ModelError(f"{path}: sha256 {found}, expected {MODEL_SHA256}", "give all-MiniLM-L6-v2 as published")


def make_subject(
    corpus: Corpus, model: Path, options: TrainingOptions, seed: int, cache: Path, book: CpuBook, progress: Progress,
    limit: int | None = None,
) -> Subject:
    """Fine-tune the model on the corpus, or read the package of an earlier run.

    Raises:
        ModelError, ConfigError: the folder is not a model with a tokenizer.
    """
    tokenizer = load_tokenizer(model)
    if tokenizer is None:
        raise ModelError(f"{model}: no tokenizer", "give the folder with tokenizer.json or vocab.txt")
    sequence = sequence_for(tokenizer, corpus.train.texts)
    train, validation = (
        dataset(corpus, split, getattr(corpus, split), tokenizer, sequence) for split in ("train", "validation")
    )
    holdout = None if corpus.holdout is None else dataset(corpus, "holdout", corpus.holdout, tokenizer, sequence)
    first = corpus.validation if corpus.choice is None else corpus.choice
    together = first if corpus.choice is None else first.joined(corpus.validation)
    choosing = dataset(corpus, "choosing", together, tokenizer, sequence)
    key = [
        sha256_file(model / "model.safetensors"), sha256_file(model / "config.json"), tokenizer.digest, train.digest,
        validation.digest, options.model_dump(mode="json"), seed, HEAD_SPREAD, importlib.metadata.version("torch"),
        [code_digest(module) for module in CODE],
    ]
    path = cache / "teachers" / f"{corpus.name}-{sha256_bytes(canonical_json(key))[:16]}.edgepkg"
    calibration, block = train.head(CALIBRATION_ROWS), load_target(TARGET).sparse_block
    checkpoints, work = cache / "checkpoints", f"teacher {path.stem}"
    if not path.is_dir():
        with book.measure(work) as watched:
            untrained = _package(*_with_head(model, len(corpus.labels), seed), corpus, validation)
            module = build(untrained.spec, untrained.weights)
            context = Context(
                train, validation, calibration, untrained, seed, watched(progress), checkpoints=checkpoints
            )
            fit(module, context, options, _cross_entropy(train), what=f"teacher {corpus.name}")
            package = _package(module, preprocess_files(model), corpus, validation)
            write_package(package, path)
    teacher = read_package(path)
    context = Context(
        train, validation, calibration, teacher, seed, progress, holdout, block, checkpoints
    )
    return Subject(corpus, teacher, tokenizer, context, choosing, len(first), work, book.seconds(work), limit)


def _with_head(model: Path, classes: int, seed: int) -> tuple[Transformer, dict[str, bytes]]:
    """The encoder with a classifier of small random weights, and the files of its tokenizer."""
    imported = import_model(load_model(str(model)))
    spec = dataclasses.replace(imported.spec, classes=classes)
    random = np.random.default_rng(seed)
    head = {
        "classifier.weight": random.normal(scale=HEAD_SPREAD, size=(classes, spec.hidden)).astype(np.float32),
        "classifier.bias": np.zeros(classes, np.float32),
    }
    return build(spec, {**imported.weights, **head}), preprocess_files(model)


def _package(module: Transformer, preprocess: dict[str, bytes], corpus: Corpus, validation: Dataset) -> Package:
    """The package of a module; its baseline accuracy is that on the validation rows."""
    package = import_job(module, validation, None, name=f"teacher-{corpus.name}").package
    return dataclasses.replace(package, preprocess=preprocess, labels=corpus.labels)


class _cross_entropy:  # noqa: N801 (used like a function)
    """Cross-entropy of the last output against the labels of the data."""

    def __init__(self, data: Dataset) -> None:
        assert data.labels is not None
        self.labels = torch.from_numpy(data.labels.copy())

    def __call__(self, module: Transformer, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
        labels = self.labels[rows.cpu()].to(rows.device)
        return functional.cross_entropy(module.trace(batch).output.float(), labels)
