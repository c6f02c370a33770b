"""Per-layer sensitivity to 4 bits, and mixed precision that follows from it.

A matrix is judged by itself: it alone gets 4 bits, everything else stays float, and the model's outputs on calibration
rows are held against the float ones. Mixed precision lowers the matrices one after the other, those first that lose
least for each byte they save (greedy, as in HAWQ, Dong et al. 2019, arXiv:1905.03696, with the measured divergence in
the place of the Hessian's).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.encodings import Encodings, is_float_linear
from edgesdk.errors import StageError
from edgesdk.evaluate import accuracy, cosines, run_rows, sqnr_db
from edgesdk.package import Package
from edgesdk.stages.base import Context
from edgesdk.stages.calibrate import weight_bytes, weight_encoding
from edgesdk.stages.observe import BATCH, trimmed
from edgesdk.transformer.quantize import dequantized
from edgesdk.transformer.spec import TransformerSpec

if TYPE_CHECKING:
    from edgesdk.transformer.module import Transformer

TOKENS = "embedding.tokens.weight"
MOST_ROWS = 128  # rows that are run once for each matrix
LARGEST_SQNR = 200.0  # what is called the SQNR of equal outputs


@dataclass(frozen=True)
class Sensitivity:
    """What one matrix at 4 bits does by itself.

    Attributes:
        name: of the stored weight.
        saved: bytes that 4 bits save against 8.
        divergence: mean KL divergence (nats) of the class probabilities from the float ones; for encoders 1 − mean
            cosine of the outputs.
        sqnr_db: of the outputs.
        loss: increase of the mean cross-entropy (nats); None without labels.
    """

    name: str
    saved: int
    divergence: float
    sqnr_db: float
    loss: float | None


def lowerable(spec: TransformerSpec) -> list[str]:
    """The matrices that may have 4 bits: the token table and all linear layers whose activations are quantized."""
    names = [TOKENS] if TOKENS in spec.weight_shapes() else []
    stored = (spec.stored(name) for name, _, _ in spec.linears() if not is_float_linear(name))
    return names + [f"{name}.weight" for name in dict.fromkeys(stored)]


def sensitivity(
    package: Package,
    context: Context,
    *,
    names: Sequence[str] | None = None,
    encodings: Encodings | None = None,
    group: int | None = 32,
    samples: int = MOST_ROWS,
) -> list[Sensitivity]:
    """One row for each of `names` (default: all that may have 4 bits) of a float package, the most sensitive first.

    Args:
        encodings: the 4-bit encodings to judge; without, those of `group` without knowledge of the inputs.
        samples: calibration rows to run, at most MOST_ROWS.

    Raises:
        StageError: the package is quantized already, or a name is none of its matrices.
    """
    import torch

    from edgesdk.transformer.module import build

    if package.encodings is not None:
        raise StageError(f"sensitivity: the package is {package.scheme} already", "give the float package")
    chosen = lowerable(package.spec) if names is None else list(names)
    unknown = [name for name in chosen if name not in package.weights or package.weights[name].ndim != 2]
    if unknown:
        raise StageError(f"sensitivity: {unknown[0]!r} is no matrix of this model")
    data = context.calibration.sample(min(samples, MOST_ROWS), context.seed)
    module = build(package.spec, package.weights)
    state = dict(module.named_parameters())
    reference = _outputs(module, data)
    rows = []
    for done, name in enumerate(chosen):
        context.progress("sensitivity", done, len(chosen))
        weight = package.weights[name]
        encoding = encodings.weights[name] if encodings else weight_encoding(weight, 4, group)
        with torch.no_grad():
            state[name].copy_(torch.from_numpy(dequantized(weight, encoding)))
            outputs = _outputs(module, data)
            state[name].copy_(torch.from_numpy(np.array(weight)))
        saved = weight_bytes(weight.shape, 8) - weight_bytes(weight.shape, 4, encoding.group)
        rows.append(_judge(name, saved, package, data, reference, outputs))
    return sorted(rows, key=lambda row: -row.divergence)


def _outputs(module: Transformer, data: Dataset) -> NDArray[np.float32]:
    """Outputs [rows, width] of the whole model: all layers run, padded positions are left out."""
    import torch

    outputs = []
    with torch.inference_mode():
        for start in range(0, len(data), BATCH):
            rows = trimmed({name: np.array(value[start : start + BATCH]) for name, value in data.inputs.items()})
            output = module.trace({name: torch.from_numpy(value) for name, value in rows.items()}).output
            if output.dim() == 3 and "attention_mask" in rows:
                output = output[torch.from_numpy(rows["attention_mask"]).bool()]
            outputs.append(output.reshape(-1, output.shape[-1]).numpy())
    return np.concatenate(outputs)


def _judge(
    name: str, saved: int, package: Package, data: Dataset, reference: NDArray[Any], outputs: NDArray[Any]
) -> Sensitivity:
    loss = None
    if package.spec.output in ("logits", "token_logits"):
        p, q = _log_softmax(reference), _log_softmax(outputs)
        divergence = float((np.exp(p) * (p - q)).sum(1).mean())
        if package.spec.classes is not None and data.labels is not None:
            index = np.arange(len(data)), data.labels
            loss = float((p[index] - q[index]).mean())
    else:
        divergence = float(1.0 - cosines(outputs, reference).mean())
    return Sensitivity(name, saved, max(0.0, divergence), min(sqnr_db(reference, outputs), LARGEST_SQNR), loss)


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


# --- mixed precision ---


def order(rows: Sequence[Sensitivity]) -> list[str]:
    """Names in the order in which they get 4 bits: the least divergence for each byte saved first."""
    useful = [row for row in rows if row.saved > 0]
    return [row.name for row in sorted(useful, key=lambda row: (row.divergence / row.saved, row.name))]


def by_size(
    rows: Sequence[Sensitivity], package: Package, encodings: Callable[[Collection[str]], Encodings], limit: int
) -> list[str]:
    """The fewest names, in `order`, that must have 4 bits so that the graph has at most `limit` bytes.

    Raises:
        StageError: it is larger even with all of them at 4 bits.
    """
    from edgesdk.transformer.graph import write_graph

    names = order(rows)

    def size(count: int) -> int:
        return len(write_graph(package.spec, package.weights, encodings(names[:count])))

    smallest = size(len(names))
    if smallest > limit:
        raise StageError(
            f"quantize.ptq: {smallest} bytes with every matrix at 4 bits, max_bytes allows {limit}",
            "raise max_bytes, or prune or factorize before",
        )
    return names[: _first(len(names), lambda count: size(count) <= limit)]


def by_loss(
    rows: Sequence[Sensitivity],
    package: Package,
    data: Dataset,
    encodings: Callable[[Collection[str]], Encodings],
    limit: float,
) -> list[str]:
    """As many names, in `order`, as can have 4 bits while the package loses at most `limit` points on `data`: of
    accuracy; of agreement with the float labels where there are none; of mean cosine for encoders. Loss is taken to
    grow with their number, and what is chosen is measured.

    Raises:
        StageError: it loses more with every matrix at 8 bits.
    """
    names = order(rows)
    reference = run_rows(package, data.inputs)

    def loss(count: int) -> float:
        chosen = encodings(names[:count])
        weights = {
            name: dequantized(value, chosen.weights[name]) if name in names[:count] else value
            for name, value in package.weights.items()
        }
        return loss_of(package, weights, chosen, data, reference)

    least = loss(0)
    if least > limit:
        raise StageError(
            f"quantize.ptq: {least:.2f} points are lost with every matrix at 8 bits, max_loss allows {limit:g}",
            "raise max_loss, try another calibrator, or quantize.qat",
        )
    return names[: _first(len(names) + 1, lambda count: loss(count) > limit) - 1]


def loss_of(
    package: Package, weights: Mapping[str, NDArray[Any]], encodings: Encodings, data: Dataset,
    reference: NDArray[Any] | None = None,
) -> float:
    """Points that a float package loses with these weights and encodings, run as a board runs it; see `by_loss`.
    `reference`: its outputs where they are known."""
    from edgesdk.transformer.graph import write_graph

    graph = write_graph(package.spec, weights, encodings)
    made = dataclasses.replace(package, weights=weights, encodings=encodings, graph=graph)
    reference = run_rows(package, data.inputs) if reference is None else reference
    return points_lost(package, data, reference, run_rows(made, data.inputs))


def points_lost(package: Package, data: Dataset, reference: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Points that `outputs` lose against the float outputs `reference` [N, …]; see `by_loss`."""
    if package.spec.classes is None:
        return 100.0 * (1.0 - float(cosines(outputs, reference).mean()))
    if data.labels is None:
        return 100.0 * (1.0 - accuracy(outputs, reference.argmax(-1)))
    return 100.0 * (accuracy(reference, data.labels) - accuracy(outputs, data.labels))


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The smallest number below `count` for which `holds`, by bisection; `count` where there is none."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


# --- reports ---


def to_json(rows: Sequence[Sensitivity]) -> dict[str, Any]:
    """The document `edgesdk.sensitivity`, version 1."""
    return {"format": "edgesdk.sensitivity", "version": 1, "rows": [dataclasses.asdict(row) for row in rows]}


def to_markdown(rows: Sequence[Sensitivity]) -> str:
    """A table, one line for each matrix, in the order of `rows`."""
    lines = ["| matrix | bytes saved | divergence | SQNR (dB) | loss |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        loss = "–" if row.loss is None else f"{row.loss:+.4f}"
        lines.append(f"| `{row.name}` | {row.saved} | {row.divergence:.3g} | {row.sqnr_db:.1f} | {loss} |")
    return "\n".join(lines) + "\n"
