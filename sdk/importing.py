"""From what the user has (a folder, a function, a package) to the fp32 baseline package that stages start from."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.data import Dataset, check_dataset, load_data
from edgesdk.encode import packaged_tokenizer
from edgesdk.errors import ConfigError, ModelError
from edgesdk.evaluate import evaluate_package, golden_outputs
from edgesdk.package import Baseline, LineageEntry, Package, Samples, read_package
from edgesdk.stages import Context, Progress
from edgesdk.transformer.spec import PatchEmbedding, TransformerSpec
from edgesdk.user_code import is_function
from edgesdk.verify import verify

GOLDEN_ROWS = 32
CALIBRATION_ROWS = 256
CALIBRATION_BYTES = 16 << 20
VALIDATION_SHARE = 0.1
# From so many training rows on, as many rows as for validation are held out for bounds that must hold.
HOLDOUT_FROM_ROWS = 5000


@dataclass(frozen=True)
class Job:
    """What a build starts from: the fp32 package, its data, and what the report must say about them."""

    package: Package
    evaluation: Dataset
    train: Dataset | None
    validation: Dataset
    calibration: Dataset
    notes: tuple[str, ...]
    holdout: Dataset | None = None

    def context(
        self,
        seed: int,
        progress: Progress,
        sparse_block: tuple[int, int] | None = None,
        checkpoints: Path | None = None,
    ) -> Context:
        """The context of stages; see there."""
        return Context(
            self.train, self.validation, self.calibration, self.package, seed, progress, self.holdout, sparse_block,
            checkpoints,
        )


def import_job(
    model: str | Path | object | None,
    data: str | Dataset | None,
    train_data: str | Dataset | None,
    *,
    sequence: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Job:
    """Import the model and load its data.

    Args:
        model: folder of `transformers`, `module:function`, `.edgepkg`, a torch module, or None for the demo.
        data: evaluation data, see `edgesdk.data`; None for the demo's where the model is the demo's.
        train_data: training data for calibration and recovery, or None.
        sequence: fixed number of tokens of the artifacts; by default that of the data.

    Raises:
        ConfigError, ModelError, PackageError: naming what is wrong with the model or the data.
    """
    if model is None:
        from edgesdk import demo

        model = demo.package_path()
        if train_data is None and data is None:
            train_data = demo.train_data()
        if data is None:
            data = demo.test_data()
    notes: list[str] = []
    source = _Source(model, sequence)
    source.name = name or source.name
    notes += source.notes
    if source.existing is not None and len(source.existing.lineage) > 1:
        before = source.existing.baseline
        notes.append(
            f"the model is a package that {len(source.existing.lineage) - 1} stages have changed already (from "
            f"{before.bytes} bytes): what is lost here is counted against it, not against what it came from"
        )
    if data is None:
        raise ConfigError("there is no evaluation data", "give --data module:function, or a .csv, .jsonl or .npz file")
    evaluation = source.load(data)
    train, holdout = None if train_data is None else source.load(train_data, like=evaluation), None
    if len(evaluation) == 0:
        raise ConfigError("the evaluation data is empty", "give at least one row")
    if train is None:
        validation = calibration = evaluation.sample(CALIBRATION_ROWS, seed)
        notes.append(
            f"no training data was given: calibration and stage figures use {len(calibration)} rows of the evaluation "
            "data, so its accuracy is not independent of them"
        )
    else:
        train, validation = train.split(VALIDATION_SHARE, seed)
        if len(train) >= HOLDOUT_FROM_ROWS:
            train, holdout = train.split(VALIDATION_SHARE, seed + 1)
        calibration = train.sample(CALIBRATION_ROWS, seed)
    package = source.package(evaluation, calibration)
    return Job(package, evaluation, train, validation, calibration, tuple(notes), holdout)


class _Source:
    """The model in whatever form it came, imported once."""

    def __init__(self, model: str | Path | object, sequence: int | None) -> None:
        self.sequence = sequence
        self.existing: Package | None = None
        self.preprocess: Mapping[str, bytes] = {}
        self.tokenizer: Any = None
        self.family = "canonical"
        self.notes: tuple[str, ...] = ()
        if isinstance(model, (str, Path)) and str(model).endswith(".edgepkg"):
            self.existing = read_package(Path(model))
            if self.existing.encodings is not None:
                raise ModelError(
                    f"{model}: this package is quantized ({self.existing.scheme}) already",
                    "build from the fp32 package that it was made from",
                )
            self.name, self.spec, self.task = self.existing.name, self.existing.spec, self.existing.task
            self.labels, self.preprocess = self.existing.labels, self.existing.preprocess
            self.tokenizer = packaged_tokenizer(self.preprocess)
            self.weights: Mapping[str, NDArray[np.float32]] = self.existing.weights
            return
        from edgesdk.transformer.module import Transformer, weights_of

        if isinstance(model, Transformer):
            self.name, self.spec, self.weights = "model", model.spec, weights_of(model)
            self.task, self.labels = ("encoding" if model.spec.classes is None else "classification"), None
            return
        from edgesdk.model_source import load_model, load_tokenizer, preprocess_files
        from edgesdk.transformer.importers import import_model

        loaded: object = model
        self.name = type(model).__name__.lower()
        if isinstance(model, (str, Path)):
            loaded, self.name = load_model(str(model)), _name(str(model))
            if Path(model).is_dir():
                self.preprocess = preprocess_files(Path(model))
                self.tokenizer = load_tokenizer(Path(model))
        imported = import_model(loaded, sequence=sequence)
        self.spec, self.weights, self.task = imported.spec, imported.weights, imported.task
        self.labels, self.family = None if imported.labels is None else tuple(imported.labels), imported.family
        self.notes = imported.notes

    def load(self, data: str | Dataset, like: Dataset | None = None) -> Dataset:
        """Data for this model, checked against its spec; training data is made `like` the evaluation data: the same
        sequence, the same numbers for the same label names."""
        asked = self.sequence if like is None else _sequence(self.spec, like.inputs)
        labels = list(self.labels) if self.labels else None
        if like is not None and like.label_names:
            labels = list(like.label_names)
        if isinstance(data, Dataset):
            loaded = check_dataset(data, self.spec, task=self.task)
        else:
            sequence = asked or (self.existing.sequence if self.existing else None)
            loaded = load_data(
                data, self.spec, sequence=sequence, tokenizer=self.tokenizer, labels=labels, task=self.task
            )
        found = _sequence(self.spec, loaded.inputs)
        if asked is not None and found != asked and not isinstance(self.spec.embedding, PatchEmbedding):
            raise ConfigError(
                f"{loaded.name}: rows of {found} tokens, expected {asked}", "make all data of one length"
            )
        return loaded

    def entry(self, package: Package, accuracy: float | None) -> LineageEntry:
        """The first entry of the lineage: what was imported."""
        spec, metrics = package.spec, {} if accuracy is None else {package.metric: round(accuracy, 6)}
        size, parameters, macs = len(package.graph), spec.parameters(), spec.macs(package.sequence)
        return LineageEntry(
            stage="import", parameters={"family": self.family, "sequence": package.sequence}, seed=0, parent=None,
            metrics_before=metrics, metrics_after=metrics, bytes_before=size, bytes_after=size,
            parameters_before=parameters, parameters_after=parameters, macs_before=macs, macs_after=macs,
        )

    def package(self, evaluation: Dataset, calibration: Dataset) -> Package:
        """The fp32 baseline package with samples of this data, verified."""
        from edgesdk.transformer.graph import write_graph

        graph = write_graph(self.spec, self.weights)
        sequence = _sequence(self.spec, evaluation.inputs)
        golden = {name: value[:GOLDEN_ROWS] for name, value in evaluation.inputs.items()}
        row_bytes = sum(value[0].nbytes for value in calibration.inputs.values())
        rows = calibration.head(max(1, min(len(calibration), CALIBRATION_BYTES // max(1, row_bytes))))
        outputs = golden_outputs(self.spec, self.weights, graph, False, golden)[0]
        package = Package(
            name=self.name,
            task=self.task,
            metric="accuracy" if self.task == "classification" else "cosine",
            labels=self.labels,
            spec=self.spec,
            weights=self.weights,
            graph=graph,
            encodings=None,
            samples=Samples(dict(rows.inputs), golden, outputs, outputs, outputs),
            preprocess=self.preprocess,
            lineage=(),
            baseline=Baseline(len(graph), None, 0),
            environment={name: importlib.metadata.version(name) for name in ("edgesdk", "numpy", "onnx", "torch")},
            sequence=sequence,
        )
        accuracy = evaluate_package(package, evaluation)
        package = dataclasses.replace(
            package,
            baseline=Baseline(len(graph), accuracy, len(evaluation)),
            lineage=self.existing.lineage if self.existing else (self.entry(package, accuracy),),
        )
        verify(package)
        return package


def _name(source: str) -> str:
    """A package's name from a path or `module:function`: letters, digits, dots and dashes."""
    last = source.rpartition(":")[2] if is_function(source) else Path(source).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or "model"


def _sequence(spec: TransformerSpec, inputs: Mapping[str, NDArray[Any]]) -> int:
    first = next(iter(inputs.values()))
    return spec.max_length if first.ndim == 4 else int(first.shape[1])
