"""What must hold inside every package: names, weights, samples, lineage against the spec."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.encodings import check_encodings
from edgesdk.errors import PackageError
from edgesdk.package_files import NAME
from edgesdk.transformer.spec import PatchEmbedding, TokenEmbedding, TransformerSpec

if TYPE_CHECKING:
    from edgesdk.package import LineageEntry, Package, Samples

METRICS = {"classification": "accuracy", "encoding": "cosine"}
GOLDEN_OUTPUTS = ("golden_reference", "golden_float", "golden_outputs")
COUNTS = ("bytes_before", "bytes_after", "parameters_before", "parameters_after", "macs_before", "macs_after")


def signature(spec: TransformerSpec) -> dict[str, list[dict[str, Any]]]:
    """The manifest's `io`: names, dtypes and shapes, in which `batch` and `sequence` are symbolic."""
    embedding = spec.embedding
    inputs: list[tuple[str, str, list[Any]]]
    if isinstance(embedding, TokenEmbedding):
        inputs = [("input_ids", "int64", ["batch", "sequence"]), ("attention_mask", "int64", ["batch", "sequence"])]
    elif isinstance(embedding, PatchEmbedding):
        inputs = [("pixel_values", "float32", ["batch", embedding.channels, embedding.size, embedding.size])]
    else:
        inputs = [("features", "float32", ["batch", "sequence", spec.hidden])]
    tail: list[Any] = ["sequence", spec.hidden] if spec.output == "hidden_states" else [spec.classes or spec.hidden]
    if spec.output == "token_logits" and isinstance(embedding, TokenEmbedding):
        tail = ["sequence", embedding.vocabulary]
    outputs: list[tuple[str, str, list[Any]]] = [(spec.output, "float32", ["batch", *tail])]
    if spec.exits():
        outputs.append(("exit", "int64", ["batch"]))
    return {
        "inputs": [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in inputs],
        "outputs": [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in outputs],
    }


def check_package(package: Package) -> None:
    """Check all parts of a package but its graph (see `edgesdk.package_graph`) against the spec.

    Raises:
        PackageError: says which part, what was found and what was expected.
    """
    spec = package.spec
    if not isinstance(package.name, str) or not NAME.fullmatch(package.name):
        raise PackageError(f"name {package.name!r}: use letters, digits, `.`, `_` and `-`, at most 100")
    task = "encoding" if spec.classes is None else "classification"
    if (package.task, package.metric) != (task, METRICS[task]):
        found = f"task {package.task!r} with metric {package.metric!r}"
        raise PackageError(f"{found}; this spec makes it {task!r} with {METRICS[task]!r}")
    _check_labels(package.labels, spec)
    shortest = spec.max_length if isinstance(spec.embedding, PatchEmbedding) else 1
    if type(package.sequence) is not int or not shortest <= package.sequence <= spec.max_length:
        raise PackageError(f"sequence {package.sequence!r}; this spec takes at most {spec.max_length} tokens")
    _check_weights(package.weights, spec)
    if package.encodings is not None:
        check_encodings(package.encodings, spec)
    _check_samples(package.samples, spec, package.sequence)
    for name in package.preprocess:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise PackageError(f"preprocess: illegal file name {str(name)[:200]!r}")
    for index, entry in enumerate(package.lineage):
        _check_lineage(entry, f"lineage {index} ({str(entry.stage)[:50]})")
    _check_count(package.baseline.bytes, "baseline: bytes")
    _check_count(package.baseline.n, "baseline: n")
    if package.baseline.accuracy is not None:
        _check_number(package.baseline.accuracy, "baseline: accuracy")
    for name, version in package.environment.items():
        if not isinstance(name, str) or not isinstance(version, str):
            raise PackageError(f"environment: {name!r}: {version!r}, expected the version as text")


def _check_labels(labels: Any, spec: TransformerSpec) -> None:
    if labels is None:
        return
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        raise PackageError("labels: expected a list of texts or nothing")
    if len(labels) != spec.classes:
        raise PackageError(f"labels: {len(labels)} labels for {spec.classes or 0} classes")


def _check_weights(weights: Mapping[str, Any], spec: TransformerSpec) -> None:
    shapes = spec.weight_shapes()
    for name in shapes.keys() - weights.keys():
        raise PackageError(f"weights: {name} {shapes[name]} is missing")
    for name, array in weights.items():
        if name not in shapes:
            raise PackageError(f"weights: {str(name)[:200]!r} is not part of this model")
        _check_array(array, np.float32, shapes[name], f"weights: {name}")


def _check_samples(samples: Samples, spec: TransformerSpec, sequence: int) -> None:
    io = signature(spec)
    for side, inputs in (("calibration", samples.calibration), ("golden_inputs", samples.golden_inputs)):
        names = [entry["name"] for entry in io["inputs"]]
        if sorted(map(str, inputs)) != sorted(names):
            raise PackageError(f"samples: {side} has the inputs {sorted(map(str, inputs))}, expected {sorted(names)}")
        rows = _rows(inputs[names[0]], side)
        for entry in io["inputs"]:
            where = f"samples: {side}/{entry['name']}"
            _check_array(inputs[entry["name"]], entry["dtype"], _concrete(entry["shape"], rows, sequence), where)
        if isinstance(spec.embedding, TokenEmbedding):
            _check_tokens(inputs["input_ids"], inputs["attention_mask"], spec.embedding.vocabulary, f"samples: {side}")
    rows = _rows(samples.golden_reference, "golden_reference")
    if rows == 0 or rows != len(samples.golden_inputs[io["inputs"][0]["name"]]):
        raise PackageError(f"samples: {rows} golden outputs; expected one for each golden input, and at least one")
    shape = _concrete(io["outputs"][0]["shape"], rows, sequence)
    for name in GOLDEN_OUTPUTS:
        _check_array(getattr(samples, name), np.float32, shape, f"samples: {name}")


def _check_tokens(ids: NDArray[Any], mask: NDArray[Any], vocabulary: int, where: str) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise PackageError(f"{where}: token ids from {ids.min()} to {ids.max()} for a vocabulary of {vocabulary}")
    if not np.isin(mask, (0, 1)).all() or not (mask[:, 0] == 1).all() or (np.diff(mask, axis=1) > 0).any():
        raise PackageError(f"{where}: attention_mask must be ones and then zeros", "pad texts at their end")


def _check_lineage(entry: LineageEntry, where: str) -> None:
    if not isinstance(entry.stage, str) or not re.fullmatch("[a-z][a-z0-9_.-]{0,99}", entry.stage):
        raise PackageError(f"{where}: no name of a stage")
    if not isinstance(entry.parameters, Mapping):
        raise PackageError(f"{where}: parameters must be a mapping")
    _check_count(entry.seed, f"{where}: seed")
    if entry.parent is not None and not (
        isinstance(entry.parent, str) and re.fullmatch("sha256:[0-9a-f]{64}", entry.parent)
    ):
        raise PackageError(f"{where}: parent {str(entry.parent)[:100]!r} is no digest of a package")
    for field in COUNTS:
        _check_count(getattr(entry, field), f"{where}: {field}")
    for field in ("metrics_before", "metrics_after"):
        metrics = getattr(entry, field)
        if not isinstance(metrics, Mapping):
            raise PackageError(f"{where}: {field} must map metrics to numbers")
        for name, value in metrics.items():
            _check_number(value, f"{where}: {field}: {name}")


def _check_count(value: Any, where: str) -> None:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise PackageError(f"{where} is {str(value)[:50]}, expected a count")


def _check_number(value: Any, where: str) -> None:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise PackageError(f"{where} is {str(value)[:50]}, expected a finite number")


def _check_array(array: Any, dtype: Any, shape: tuple[int, ...], where: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype) or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise PackageError(f"{where}: is {found}, expected {np.dtype(dtype)} {shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise PackageError(f"{where}: holds NaN or infinity")


def _rows(array: Any, where: str) -> int:
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise PackageError(f"samples: {where}: no array of rows")
    return len(array)


def _concrete(shape: list[Any], rows: int, sequence: int) -> tuple[int, ...]:
    return tuple({"batch": rows, "sequence": sequence}[size] if isinstance(size, str) else size for size in shape)
