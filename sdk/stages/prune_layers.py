"""`prune.layers`: remove whole layers.

- `first`, `last`: the first or last ones stay; `uniform`: evenly spaced ones, the first and the last among them.
- `cosine`: those stay whose output differs most from their input (ShortGPT, Men et al. 2024, arXiv:2403.03853).
- `taylor`, `fisher`: by the gradient of a mask that turns a layer's output into its input (see `importance`).
- `greedy`: measured; again and again the layer goes without which the loss is least. The loss is the cross-entropy
  with the labels of the training data, else the distance to the package's own answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.units import Weights, owner
from edgesdk.transformer.spec import TransformerSpec

if TYPE_CHECKING:
    from torch import Tensor


class PruneLayersOptions(Options):
    """`keep`: the number of layers that stay (3), or which ones as a text ("0,2,5"; `importance` is not read then).
    `samples`: rows of data that the choice is made over."""

    keep: (
        Annotated[int, Field(strict=True, ge=1, le=1000)]
        | Annotated[str, Field(strict=True, pattern=r"^[0-9]{1,3}(,[0-9]{1,3})*$")]
    ) = Field(description='a number of layers, such as 3, or which ones as a text, such as "0,2,5"')
    importance: Literal["first", "last", "uniform", "cosine", "taylor", "fisher", "greedy"] = "uniform"
    samples: int = Field(default=512, ge=1, le=100_000)


class PruneLayers(Stage):
    """Physical removal of layers."""

    name: ClassVar[str] = "prune.layers"
    options_type: ClassVar[type[Options]] = PruneLayersOptions
    options: PruneLayersOptions

    @property
    def exact(self) -> bool:
        """Layers may differ, and which ones stay is found by the work unless it is said."""
        return isinstance(self.options.keep, str) or self.options.importance in ("first", "last", "uniform")

    def requires(self, outline: Outline) -> list[str]:
        if outline.scheme != "fp32":
            return [f"it prunes fp32 packages, this one is {outline.scheme}; put it before the quantize stage"]
        try:
            self._planned(outline.spec)
        except StageError as problem:
            return [str(problem)]
        return []

    def ensures(self, outline: Outline) -> Outline:
        return dataclasses.replace(outline, spec=kept_spec(outline.spec, self._planned(outline.spec)))

    def apply(self, package: Package, context: Context) -> Change:
        kept = self._planned(package.spec) if self.exact else self._found(package, context)
        spec = kept_spec(package.spec, kept)
        return Change(spec=spec, weights=kept_weights(package.spec, spec, package.weights, kept))

    def _planned(self, spec: TransformerSpec) -> list[int]:
        """The layers that stay, as far as the options say; evenly spaced ones where the work must find them.

        Raises:
            StageError: the model has no such layers.
        """
        keep, count = self.options.keep, len(spec.layers)
        if isinstance(keep, str):
            chosen = [int(number) for number in keep.split(",")]
            if chosen != sorted(set(chosen)) or chosen[-1] >= count:
                raise StageError(
                    f"{self.name}: keep {keep!r}: expected ascending layers from 0 to {count - 1}",
                    'write them as a text, such as "0,2"',
                )
            return chosen
        if keep > count:
            raise StageError(f"{self.name}: keep {keep}, but the model has {count} layers", "keep fewer")
        if self.options.importance == "first":
            return list(range(keep))
        if self.options.importance == "last":
            return list(range(count - keep, count))
        return [int(index) for index in np.rint(np.linspace(0, count - 1, keep))]

    def _found(self, package: Package, context: Context) -> list[int]:
        from edgesdk.stages import importance

        keep, samples, method = int(self.options.keep), self.options.samples, self.options.importance
        if method == "greedy":
            return greedy(package, context, keep, samples)
        if method == "cosine":
            scores = distances(package, context)
        else:
            gradients = importance.layer_gradients(package, context, samples)
            scores = np.abs(gradients).mean(0) if method == "taylor" else np.square(gradients).mean(0)
        return sorted(int(index) for index in np.argsort(-scores, kind="stable")[:keep])


def kept_spec(spec: TransformerSpec, kept: list[int]) -> TransformerSpec:
    """The spec of these layers alone, numbered anew. Where the owner of shared weights goes, the next layer that used
    them stores them; the last layer has no exit."""
    stores: dict[int, int] = {}
    layers = []
    for index, old in enumerate(kept):
        first = stores.setdefault(owner(spec, old), index)
        exit_ = None if index == len(kept) - 1 else spec.layers[old].exit
        layers.append(dataclasses.replace(spec.layers[old], share=None if first == index else first, exit=exit_))
    changed = dataclasses.replace(spec, layers=tuple(layers), sparse={})
    sources = {name: _source(spec, name, kept) for name, _, _ in changed.linears() if changed.stored(name) == name}
    sparse = {name: spec.sparse[source] for name, source in sources.items() if source in spec.sparse}
    return dataclasses.replace(changed, sparse=sparse)


def kept_weights(
    spec: TransformerSpec, changed: TransformerSpec, weights: Mapping[str, NDArray[np.float32]], kept: list[int]
) -> Weights:
    """The weights of `changed`, which is `kept_spec(spec, kept)`."""
    return {name: weights[_source(spec, name, kept)] for name in changed.weight_shapes()}


def _source(spec: TransformerSpec, name: str, kept: list[int]) -> str:
    """Where a weight or linear layer of the model of `kept` layers was stored before."""
    head, _, rest = name.partition(".")
    if head != "layers":
        return name
    index, _, part = rest.partition(".")
    return spec.stored(f"layers.{kept[int(index)]}.{part}")


def distances(package: Package, context: Context) -> NDArray[np.float64]:
    """Mean 1 − cosine(input, output) of each layer over the tokens of the calibration data, padding left out: the
    block influence of ShortGPT."""
    import torch
    from torch.nn import functional

    from edgesdk.stages.train_batches import sorted_batches, take_rows
    from edgesdk.transformer.module import build

    module = build(package.spec, package.weights)
    totals, tokens = np.zeros(len(package.spec.layers)), 0.0
    present: list[Tensor] = []

    def measuring(index: int) -> Callable[..., None]:
        def hook(block: object, given: tuple[Tensor, ...], result: Tensor) -> None:
            distance = 1 - functional.cosine_similarity(given[0].double(), result.double(), dim=-1)
            totals[index] += float((distance * present[-1]).sum() if present else distance.sum())

        return hook

    for index, block in enumerate(module.layers):
        block.register_forward_hook(measuring(index))
    data = context.calibration.inputs
    with torch.inference_mode():
        for rows in sorted_batches(data, 32):
            batch = {name: torch.from_numpy(value) for name, value in take_rows(data, rows).items()}
            if "attention_mask" in batch:
                present[:] = [batch["attention_mask"].double()]
                tokens += float(present[-1].sum())
            else:
                tokens += len(rows)
            module.trace(batch)
    return totals / max(tokens, 1.0)


def greedy(package: Package, context: Context, keep: int, samples: int) -> list[int]:
    """The layers that stay when again and again that one goes without which the loss is least; of equal ones the
    last."""
    import torch
    from torch.nn import functional

    from edgesdk.stages.importance import labelled_rows
    from edgesdk.stages.train_batches import sorted_batches, take_rows
    from edgesdk.transformer.module import build

    data = labelled_rows(context, samples)
    module = build(package.spec, package.weights)
    gone: set[int] = set()

    def skipping(index: int) -> Callable[..., Tensor]:
        def hook(block: object, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
            return given[0] if index in gone else result

        return hook

    for index, block in enumerate(module.layers):
        block.register_forward_hook(skipping(index))
    chunks = sorted_batches(data.inputs, 64)
    batches = [
        {name: torch.from_numpy(value) for name, value in take_rows(data.inputs, rows).items()} for rows in chunks
    ]

    def outputs(without: Collection[int]) -> list[Tensor]:
        gone.clear()
        gone.update(without)
        return [module.trace(batch).output for batch in batches]

    def loss(without: Collection[int]) -> float:
        total = 0.0
        for rows, own, output in zip(chunks, complete, outputs(without), strict=True):
            if data.labels is not None:
                labels = torch.from_numpy(data.labels[rows])
                total += float(functional.cross_entropy(output, labels, reduction="sum"))
            elif package.spec.classes is not None:
                answers = (output.log_softmax(-1), own.log_softmax(-1))
                total += float(functional.kl_div(*answers, reduction="sum", log_target=True))
            else:
                total += float((1 - functional.cosine_similarity(output.flatten(1), own.flatten(1))).sum())
        return total

    with torch.inference_mode():
        complete = outputs(())
        removed: list[int] = []
        left = list(range(len(package.spec.layers)))
        while len(left) > keep:
            context.progress("prune.layers", len(removed), len(package.spec.layers) - keep)
            worst = min(left, key=lambda index: (loss([*removed, index]), -index))
            removed.append(worst)
            left.remove(worst)
    return left
