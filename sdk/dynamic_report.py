"""Figures of packages whose work depends on the input: where inputs leave, which layers run, what that costs.

Multiply-accumulates (MACs) of an input are counted at its real length, padding left out, with every gate and exit that
it passes. N rows, B batch, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.encode import encoded_for
from edgesdk.errors import VerifyError
from edgesdk.package import Package
from edgesdk.transformer.spec import TokenEmbedding, TransformerSpec, is_dynamic

Array = NDArray[Any]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Traced:
    """What every part of a package says of N rows: `output` [N, …] with no input leaving early, `exits` layer → logits
    [N, C], `gates` layer → logits [N] (above 0 the layer runs)."""

    output: Array
    exits: Mapping[int, Array]
    gates: Mapping[int, Array]


@dataclass(frozen=True)
class DynamicFigures:
    """Over the rows of a data set: mean and percentiles of the MACs of a row, what they would be if nothing left early
    and every gate ran its layer (`macs_full`, mean), the share of rows that left after each layer, and the share of
    rows for which each gated layer ran, among those that reached it (0 where none did)."""

    rows: int
    macs_mean: float
    macs_p50: float
    macs_p90: float
    macs_p99: float
    macs_full: float
    left: Mapping[int, float]
    runs: Mapping[int, float]

    @property
    def share(self) -> float:
        """Mean MACs as a share of the same model without exits and gates deciding."""
        return self.macs_mean / self.macs_full

    def to_json(self) -> dict[str, Any]:
        """As JSON; layers become strings."""
        document = dataclasses.asdict(self)
        for name in ("left", "runs"):
            document[name] = {str(layer): round(share, 6) for layer, share in document[name].items()}
        return document | {"macs_share": round(self.share, 6)}


def lengths_of(spec: TransformerSpec, data: Dataset) -> Integers:
    """Tokens of each row without padding, int64 [N]."""
    mask = data.inputs.get("attention_mask")
    if isinstance(spec.embedding, TokenEmbedding) and mask is not None:
        return np.asarray(mask.sum(1), np.int64)
    features = data.inputs.get("features")
    tokens = spec.max_length if features is None else features.shape[1]
    return np.full(len(data), tokens, np.int64)


def row_macs(
    spec: TransformerSpec, lengths: Integers, left: Integers | None = None, gates: Mapping[int, Array] | None = None
) -> Integers:
    """MACs of each row, int64 [N]; gates and exits that a row passes are part of it.

    Args:
        lengths: tokens of each row.
        left: layer after which each row left; None or the last layer: it went through.
        gates: logits of the gates; layers without an entry run.
    """
    left = np.full(len(lengths), len(spec.layers) - 1) if left is None else left
    total = _by_length(lengths, spec.embedding_macs)
    for index in range(len(spec.layers)):
        runs = np.ones(len(lengths), bool) if not gates or index not in gates else gates[index] > 0
        layer = _by_length(lengths, lambda tokens, index=index: spec.layer_macs(index, tokens))
        passed = runs * layer + spec.gate_macs(index) + spec.exit_macs(index)
        total += np.where(left >= index, passed, 0)
    return total + np.where(left == len(spec.layers) - 1, _by_length(lengths, spec.head_macs), 0)


def _by_length(lengths: Integers, macs: Any) -> Integers:
    values, where = np.unique(lengths, return_inverse=True)
    return np.array([macs(int(value)) for value in values], np.int64)[where]


def without_choices(spec: TransformerSpec) -> TransformerSpec:
    """The same model in which nothing leaves early and every layer runs: what `macs_full` counts."""
    layers = tuple(dataclasses.replace(layer, gate=False, exit=None) for layer in spec.layers)
    return dataclasses.replace(spec, layers=layers)


def trace_package(package: Package, data: Dataset) -> Traced:
    """Run a package as it is, quantized where it has encodings, and keep what every exit and gate says.

    Rows run in batches of like length without the padding behind them, and one by one where scales or gates of
    a graph follow the batch.

    Raises:
        VerifyError: ONNX Runtime refuses the graph.
    """
    run = _float_runner(package) if package.encodings is None else _graph_runner(package)
    # In a graph, scales and gates are those of the batch.
    alone = package.scheme.endswith("-dynamic") or any(layer.gate for layer in package.spec.layers)
    order = np.argsort(lengths_of(package.spec, data), kind="stable")
    parts: dict[str, list[Array]] = {}
    for rows in _batches(order, 1 if alone and package.encodings else 64):
        for name, value in run(_trimmed(data.inputs, rows)).items():
            parts.setdefault(name, []).append(value)
    back = np.argsort(order)
    values = {name: np.concatenate(chunks)[back] for name, chunks in parts.items()}
    exits = {index: values[f"layers.{index}.exit"] for index, layer in enumerate(package.spec.layers) if layer.exit}
    gates = {
        index: values[f"layers.{index}.gate"].reshape(len(data))
        for index, layer in enumerate(package.spec.layers)
        if layer.gate
    }
    return Traced(values[package.spec.output], exits, gates)


def _batches(order: Integers, size: int) -> Iterator[Integers]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _trimmed(inputs: Mapping[str, Array], rows: Integers) -> dict[str, Array]:
    chosen = {name: np.ascontiguousarray(value[rows]) for name, value in inputs.items()}
    mask = chosen.get("attention_mask")
    if mask is None:
        return chosen
    longest = max(1, int(mask.sum(1).max()))
    return {name: np.ascontiguousarray(value[:, :longest]) for name, value in chosen.items()}


def _float_runner(package: Package) -> Any:
    import torch

    from edgesdk.transformer.module import build

    module = build(package.spec, package.weights)

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            trace = module.trace({name: torch.from_numpy(value) for name, value in inputs.items()})
        found = {package.spec.output: trace.output}
        found |= {f"layers.{index}.exit": value for index, value in trace.exits.items()}
        found |= {f"layers.{index}.gate": value for index, value in trace.gates.items()}
        return {name: value.float().numpy() for name, value in found.items()}

    return run


def _graph_runner(package: Package) -> Any:
    import onnxruntime

    from edgesdk.transformer.graph import write_trace_graph

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph = write_trace_graph(package.spec, package.weights, package.encodings)
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime raises its own hierarchy of C++ exceptions, without a public base
        raise VerifyError(f"ONNX Runtime cannot run the graph of all exits: {problem}") from problem
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


def leave(spec: TransformerSpec, traced: Traced) -> tuple[Array, Integers]:
    """What each row answers and the layer after which it leaves, by the thresholds of `spec`."""
    import torch

    from edgesdk.transformer.dynamic import Trace, choose

    exits = {index: torch.from_numpy(value) for index, value in traced.exits.items()}
    output, left = choose(spec, Trace(torch.from_numpy(traced.output), exits, {}))
    return output.numpy(), left.numpy()


def dynamic_figures(package: Package, data: Dataset, traced: Traced | None = None) -> DynamicFigures:
    """The figures of a package over data, texts encoded by its own tokenizer; `traced` where it is known already.

    Raises:
        VerifyError: see `trace_package`.
    """
    spec, data = package.spec, encoded_for(package, data)
    traced = trace_package(package, data) if traced is None else traced
    lengths = lengths_of(spec, data)
    _, left = leave(spec, traced)
    macs = row_macs(spec, lengths, left, traced.gates)
    p50, p90, p99 = (float(np.percentile(macs, percent, method="higher")) for percent in (50, 90, 99))
    ends = (*spec.exits(), len(spec.layers) - 1)
    return DynamicFigures(
        rows=len(data),
        macs_mean=float(macs.mean()),
        macs_p50=p50,
        macs_p90=p90,
        macs_p99=p99,
        macs_full=float(row_macs(without_choices(spec), lengths).mean()),
        left={index: float((left == index).mean()) for index in ends},
        runs={index: _share(logits[left >= index] > 0) for index, logits in traced.gates.items()},
    )


def _share(values: Array) -> float:
    return float(values.mean()) if len(values) else 0.0


def macs_mean_share(figures: DynamicFigures, reference: Package, data: Dataset) -> float:
    """Mean MACs of a row as a share of those of another package, such as the imported one, on the same rows, each by
    its own tokens."""
    lengths = lengths_of(reference.spec, encoded_for(reference, data))
    return figures.macs_mean / float(row_macs(reference.spec, lengths).mean())


def dynamic_metrics(package: Package, data: Dataset) -> dict[str, float]:
    """What the lineage keeps of a package whose work depends on the input: mean and percentiles of MACs, the mean as a
    share of the full model's, shares of leaving (`left.LAYER`) and of running (`runs.LAYER`); empty for others."""
    if not is_dynamic(package.spec):
        return {}
    figures = dynamic_figures(package, data)
    metrics = {name: getattr(figures, name) for name in ("macs_mean", "macs_p50", "macs_p90", "macs_p99")}
    metrics["macs_share"] = round(figures.share, 6)
    metrics |= {f"left.{index}": round(share, 6) for index, share in figures.left.items()}
    return metrics | {f"runs.{index}": round(share, 6) for index, share in figures.runs.items()}
