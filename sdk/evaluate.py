"""Run packages on the host and judge outputs: accuracy, cosine similarity, confidence bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.encode import encoded_for
from edgesdk.errors import VerifyError
from edgesdk.package import Package
from edgesdk.transformer.spec import TransformerSpec, is_dynamic


def run_graph(
    graph: bytes, inputs: Mapping[str, NDArray[Any]], *, optimize: bool = True, batch: int = 64
) -> NDArray[Any]:
    """Outputs [N, …] of an ONNX file in ONNX Runtime, `batch` rows at a time (dynamic schemes scale by the batch; a
    board sees one row). With `optimize=False` Q/DQ are computed in float one by one:
    the fake-quantized model, which static artifacts are held against.

    Raises:
        VerifyError: ONNX Runtime refuses the file.
    """
    return Session(graph, optimize).run(inputs, batch)


class Session:
    """A graph in ONNX Runtime on the CPU; see `run_graph`."""

    def __init__(self, graph: bytes, optimize: bool = True) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that wait by spinning take the cores of whatever runs beside this.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # ONNX Runtime raises its own hierarchy of C++ exceptions, without a public base
            raise VerifyError(f"ONNX Runtime cannot load the graph: {problem}") from problem

    def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> NDArray[Any]:
        """The first output [N, …], `batch` rows at a time."""
        count, outputs = len(next(iter(inputs.values()))), []
        for start in range(0, count, batch):
            rows = {name: np.ascontiguousarray(value[start : start + batch]) for name, value in inputs.items()}
            try:
                outputs.append(self.session.run(None, rows)[0])
            except Exception as problem:  # as above
                raise VerifyError(f"ONNX Runtime cannot run the graph: {problem}") from problem
        return np.concatenate(outputs)


def golden_outputs(
    spec: TransformerSpec,
    weights: Mapping[str, NDArray[np.float32]],
    graph: bytes,
    quantized: bool,
    golden_inputs: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Outputs on the golden inputs: in float by the weights, and the package's own (fake-quantized by its graph where
    it is quantized)."""
    from edgesdk.transformer.module import build, run

    golden_float = run(build(spec, weights), golden_inputs)
    return golden_float, run_graph(graph, golden_inputs, optimize=False, batch=1) if quantized else golden_float


def run_rows(package: Package, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Outputs [N, …] of a package as a board gives them: without the padding behind a row where the output allows it,
    and one row at a time where scales, exits or gates would follow the batch."""
    mask = inputs.get("attention_mask")
    alone = package.scheme.endswith("-dynamic") or is_dynamic(package.spec)
    if mask is None or package.spec.output not in ("logits", "embedding"):
        return run_graph(package.graph, inputs, batch=1 if alone else 64)
    lengths = mask.sum(1)
    outputs: list[tuple[NDArray[Any], NDArray[Any]]] = []
    session = Session(package.graph)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        trimmed = {name: value[rows, :length] for name, value in inputs.items()}
        outputs.append((rows, session.run(trimmed, 1 if alone else 64)))
    order = np.concatenate([rows for rows, _ in outputs])
    return np.concatenate([values for _, values in outputs])[np.argsort(order)]


def evaluate_package(package: Package, data: Dataset, reference: Package | None = None) -> float | None:
    """The package's metric on data: accuracy (fraction; None without labels), or for encoders the mean cosine to the
    outputs of `reference`, the imported model (default: the package's own weights in float). Texts are encoded by each
    package's own tokenizer."""
    own = encoded_for(package, data)
    outputs = run_rows(package, own.inputs)
    if package.metric == "accuracy":
        return None if own.labels is None else accuracy(outputs, own.labels)
    from edgesdk.transformer.module import build, run

    reference = package if reference is None else reference
    expected = run(build(reference.spec, reference.weights), encoded_for(reference, data).inputs)
    return float(cosines(outputs, expected).mean())


def accuracy(outputs: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Share of rows whose largest logit is the label."""
    return float((outputs.argmax(-1) == labels).mean())


def cosines(outputs: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine similarity of each row [N, …] with its reference."""
    left = outputs.reshape(len(outputs), -1).astype(np.float64)
    right = reference.reshape(len(reference), -1).astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(1) / np.maximum(norms, 1e-30))


def sqnr_db(reference: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio in dB over all values; infinity where they are equal."""
    signal = float((reference.astype(np.float64) ** 2).sum())
    noise = float(((reference.astype(np.float64) - outputs.astype(np.float64)) ** 2).sum())
    return math.inf if noise == 0 else 10.0 * math.log10(max(signal, 1e-300) / noise)
