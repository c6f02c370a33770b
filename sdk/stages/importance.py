"""How much each unit of a layer matters: one score per unit, larger is more.

- `magnitude`: norm of the rows that make the unit times norm of the columns that read it.
- `activation`: mean |activation| times norm of the columns that read it, in the manner of Wanda (Sun et al. 2023,
  arXiv:2306.11695): what the unit adds to the residual stream.
- `taylor`: mean |∂loss/∂mask|, first order (Michel et al. 2019, arXiv:1905.10650; Molchanov et al. 2019,
  arXiv:1906.10771).
- `fisher`: mean (∂loss/∂mask)², the diagonal of the Fisher information (Kwon et al. 2022, arXiv:2204.09656).

A mask is a variable that is 1 and multiplies a unit; every input has its own, so that gradients are those of single
inputs. The loss is the cross-entropy with the labels of the training data; without labels, with labels drawn from the
teacher's answer. An encoder has no loss whose gradient is not zero where nothing is removed: its output of length one
is projected on a random direction, so that `fisher` estimates how far removal moves the output (Gauss–Newton).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.package import Package
from edgesdk.stages.base import Context
from edgesdk.stages.units import Kind, columns_of_unit, count, dense, owner, rows_of_unit

if TYPE_CHECKING:
    from torch import Tensor

    from edgesdk.transformer.module import Tap, Transformer

Scores = dict[int, NDArray[np.float64]]
BATCH = 32


def magnitude(kind: Kind, package: Package, owners: list[int]) -> Scores:
    """Norm of a unit's rows (of `attention.value` or `ffn.up`) times the norm of the columns that read it."""
    scores = {}
    for index in owners:
        layer, part = package.spec.layers[index], kind.before[-1]
        rows = dense(package.spec, package.weights, index, part)
        made = np.linalg.norm(rows.reshape(count(kind, layer), -1), axis=1)
        assert len(rows) == count(kind, layer) * rows_of_unit(layer, part)
        scores[index] = made * np.sqrt(_grouped(kind, package, index, np.square(_reading(kind, package, index))))
    return scores


def activation(kind: Kind, package: Package, context: Context, owners: list[int]) -> Scores:
    """Mean |activation| on the calibration data, padding left out, times the norm of the columns that read it."""
    from edgesdk.stages.observe import observe

    totals: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    taps = {f"layers.{index}.{kind.tap}" for index in owners}

    def collect(name: str, rows: NDArray[np.float32]) -> None:
        name = package.spec.stored(name)
        if name in taps:
            totals[name] = totals.get(name, 0.0) + np.abs(rows).sum(0, dtype=np.float64)
            counts[name] = counts.get(name, 0) + len(rows)

    observe(package, context.calibration.inputs, collect)
    scores = {}
    for index in owners:
        tap = f"layers.{index}.{kind.tap}"
        scores[index] = _grouped(kind, package, index, totals[tap] / counts[tap] * _reading(kind, package, index))
    return scores


def taylor(gradients: Scores) -> Scores:
    """First order: mean |gradient| of gradients [rows, units]."""
    return {index: np.abs(value).mean(0) for index, value in gradients.items()}


def fisher(gradients: Scores) -> Scores:
    """Second order, diagonal: mean squared gradient of gradients [rows, units]."""
    return {index: np.square(value).mean(0) for index, value in gradients.items()}


def unit_gradients(kind: Kind, package: Package, context: Context, owners: list[int], samples: int) -> Scores:
    """Gradients of the loss by the masks of units, owner → [rows, units]; layers that share weights share masks."""
    spec = package.spec
    sizes = {index: count(kind, spec.layers[index]) for index in owners}

    def attach(module: Transformer, masks: Mapping[int, Tensor]) -> Tap:
        def tap(name: str, value: Tensor) -> Tensor:
            index = _layer_of(name, kind.tap)
            if index is None or owner(spec, index) not in masks:
                return value
            mask = masks[owner(spec, index)]
            return value * mask.repeat_interleave(columns_of_unit(kind, spec.layers[index]), 1)[:, None]

        return tap

    return _gradients(package, context, samples, sizes, attach)


def layer_gradients(package: Package, context: Context, samples: int) -> NDArray[np.float64]:
    """Gradients of the loss by a mask of each layer, [rows, layers]: with mask 0 the layer's output is its input."""
    from edgesdk.transformer.module import no_tap

    def attach(module: Transformer, masks: Mapping[int, Tensor]) -> Tap:
        def masked(index: int) -> Callable[..., Tensor]:
            def hook(block: object, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
                return given[0] + masks[index][:, :, None] * (result - given[0])

            return hook

        for index, block in enumerate(module.layers):
            block.register_forward_hook(masked(index))
        return no_tap

    layers = range(len(package.spec.layers))
    found = _gradients(package, context, samples, {index: 1 for index in layers}, attach)
    return np.concatenate([found[index] for index in layers], 1)


def output_sensitivity(
    part: str, package: Package, context: Context, owners: list[int], samples: int
) -> dict[int, float]:
    """Mean squared gradient of the loss by an output of a part (`ffn.down`): what squared error there costs."""
    import torch

    spec = package.spec
    squares, counts = dict.fromkeys(owners, 0.0), dict.fromkeys(owners, 0)

    def attach(module: Transformer, masks: Mapping[int, Tensor]) -> Tap:
        def tap(name: str, value: Tensor) -> Tensor:
            index = _layer_of(name, part)
            if index is None or owner(spec, index) not in squares:
                return value
            stored = owner(spec, index)

            def add(gradient: Tensor) -> None:
                squares[stored] += float(gradient.square().sum())
                counts[stored] += gradient.numel()

            moved = torch.zeros_like(value, requires_grad=True)
            moved.register_hook(add)  # type: ignore[no-untyped-call]
            return value + moved

        return tap

    _gradients(package, context, samples, {}, attach)
    return {index: squares[index] / max(1, counts[index]) for index in owners}


def labelled_rows(context: Context, samples: int) -> Dataset:
    """At most `samples` rows, drawn by the seed from labelled training data, else from the calibration data, whose
    labels (they may be those of the evaluation) are not looked at."""
    data = context.train if context.training else context.calibration
    assert data is not None
    order = np.random.default_rng(context.seed).permutation(len(data))[:samples]
    rows = data.take(np.sort(order))
    return rows if context.training else dataclasses.replace(rows, labels=None)


def _layer_of(name: str, part: str) -> int | None:
    """3 for `layers.3.ffn.hidden` where the part is `ffn.hidden`, else None."""
    head, _, rest = name.partition(".")
    index, _, found = rest.partition(".")
    return int(index) if head == "layers" and found == part else None


def _reading(kind: Kind, package: Package, index: int) -> NDArray[np.float64]:
    """Norm of each column that reads the tap."""
    norms: NDArray[np.float64] = np.linalg.norm(dense(package.spec, package.weights, index, kind.behind), axis=0)
    return norms


def _grouped(kind: Kind, package: Package, index: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the columns of each unit."""
    total: NDArray[np.float64] = values.reshape(count(kind, package.spec.layers[index]), -1).sum(1)
    return total


def _gradients(
    package: Package, context: Context, samples: int, sizes: Mapping[int, int],
    attach: Callable[[Transformer, Mapping[int, Tensor]], Tap],
) -> Scores:
    """Gradients [rows, size] of the loss of each row by its masks, which `attach` brings into the forward pass (it
    reads them from its mapping anew for every batch)."""
    import torch

    from edgesdk.stages.train_batches import sorted_batches, take_rows
    from edgesdk.transformer.module import build

    data = labelled_rows(context, samples)
    module = build(package.spec, package.weights).requires_grad_(False)
    loss = probe_loss(package, context, data)
    masks: dict[int, Tensor] = {}
    tap = attach(module, masks)
    found: dict[int, list[NDArray[np.float64]]] = {index: [] for index in sizes}
    done = 0
    for rows in sorted_batches(data.inputs, BATCH):
        context.progress("importance", done, len(data))
        done += len(rows)
        masks.update({index: torch.ones(len(rows), size, requires_grad=True) for index, size in sizes.items()})
        batch = {name: torch.from_numpy(value) for name, value in take_rows(data.inputs, rows).items()}
        loss(module, batch, torch.from_numpy(rows), tap).backward()  # type: ignore[no-untyped-call]
        for index, mask in masks.items():
            gradient = torch.zeros_like(mask) if mask.grad is None else mask.grad  # a gate may skip the layer
            found[index].append(gradient.numpy().astype(np.float64))
    return {index: np.concatenate(parts) for index, parts in found.items()}


Loss = Callable[["Transformer", "dict[str, Tensor]", "Tensor", "Tap"], "Tensor"]


def probe_loss(package: Package, context: Context, data: Dataset) -> Loss:
    """The loss of the module's text, summed over the rows of a batch."""
    import torch
    from torch.nn import functional

    if package.spec.classes is not None:
        labels = torch.from_numpy(drawn_labels(context, data) if data.labels is None else np.array(data.labels))

        def classified(module: Transformer, batch: dict[str, Tensor], rows: Tensor, tap: Tap) -> Tensor:
            return functional.cross_entropy(module.trace(batch, tap).output, labels[rows], reduction="sum")

        return classified
    generator = torch.Generator().manual_seed(context.seed)

    def projected(module: Transformer, batch: dict[str, Tensor], rows: Tensor, tap: Tap) -> Tensor:
        output = module.trace(batch, tap).output
        direction = torch.randn(output.shape, generator=generator)
        if output.dim() == 3 and "attention_mask" in batch:
            output = output * batch["attention_mask"][:, :, None]
        flat = functional.normalize(output.flatten(1), dim=1)
        return (flat * direction.flatten(1)).sum()

    return projected


def drawn_labels(context: Context, data: Dataset) -> NDArray[np.int64]:
    """A label for each row, drawn from the teacher's probabilities: the expectation of squared gradients is then the
    Fisher information itself."""
    import torch

    from edgesdk.stages.targets import soft_logits

    generator = torch.Generator().manual_seed(context.seed)
    probabilities = soft_logits(context.teacher, data, context).softmax(-1)
    drawn: NDArray[np.int64] = torch.multinomial(probabilities, 1, generator=generator)[:, 0].numpy()
    return drawn
