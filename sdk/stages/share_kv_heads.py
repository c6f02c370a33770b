"""`share.kv_heads`: several query heads use one key/value head (grouped-query attention), made of trained heads.

The heads of a group become their mean (Ainslie et al. 2023, arXiv:2305.13245). `similar` first puts heads into one
group that do alike on the calibration data, and turns each into the coordinates of its group (see `edgesdk.heads`);
both are exact, so that identical heads merge without any loss. `neighbours` takes heads as they come.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.heads import aligned, extended, grouped, similarity
from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.units import columns_name, dense, owners, rows_name
from edgesdk.transformer.spec import TransformerSpec

PROJECTIONS = ("attention.query", "attention.key", "attention.value", "attention.output")
Weights = dict[str, NDArray[np.float32]]


class ShareKvHeadsOptions(Options):
    """`kv_heads` key/value heads stay in every layer."""

    kv_heads: int = Field(ge=1, le=1 << 16)
    grouping: Literal["similar", "neighbours"] = "similar"


class ShareKvHeads(Stage):
    """Fewer key/value heads than query heads."""

    name: ClassVar[str] = "share.kv_heads"
    options_type: ClassVar[type[Options]] = ShareKvHeadsOptions
    options: ShareKvHeadsOptions

    def requires(self, outline: Outline) -> list[str]:
        spec, wanted = outline.spec, self.options.kv_heads
        if outline.scheme != "fp32":
            return [f"it shares heads of fp32 packages, this one is {outline.scheme}; put it before the quantize stage"]
        reasons = []
        for index in owners(spec, range(len(spec.layers))):
            found = spec.layers[index].kv_heads
            if found % wanted:
                reasons.append(f"layers.{index}: {found} key/value heads cannot become {wanted} of equal groups")
            sparse = [name for part in PROJECTIONS for name in spec.sparse if name.startswith(f"layers.{index}.{part}")]
            if found != wanted and sparse:
                reasons.append(f"{sparse[0]} is sparse, merged heads are not; put prune.weights after it")
        if not reasons and all(layer.kv_heads == wanted for layer in spec.layers):
            reasons.append(f"every layer has {wanted} key/value heads already")
        return reasons

    def ensures(self, outline: Outline) -> Outline:
        layers = tuple(dataclasses.replace(layer, kv_heads=self.options.kv_heads) for layer in outline.spec.layers)
        return dataclasses.replace(outline, spec=dataclasses.replace(outline.spec, layers=layers))

    def apply(self, package: Package, context: Context) -> Change:
        spec, weights = package.spec, dict(package.weights)
        chosen = [
            index for index in owners(spec, range(len(spec.layers)))
            if spec.layers[index].kv_heads != self.options.kv_heads
        ]
        covariances = self._covariances(package, context, chosen) if self.options.grouping == "similar" else {}
        for done, index in enumerate(chosen):
            context.progress(f"merging heads of layer {index}", done, len(chosen))
            count = spec.layers[index].kv_heads
            groups = np.arange(count).reshape(self.options.kv_heads, -1).tolist()
            if index in covariances:
                groups = arrange(spec, weights, index, self.options.kv_heads, covariances[index])
                # The heads lie in the order of the groups now.
                groups = np.arange(count).reshape(len(groups), -1).tolist()
            merge(spec, weights, index, groups)
        return Change(spec=self.ensures(context.outline(package)).spec, weights=weights)

    def _covariances(self, package: Package, context: Context, chosen: list[int]) -> dict[int, NDArray[np.float64]]:
        """E[x·xᵀ] of what each layer's attention reads, x with a one behind it; over all layers that share weights."""
        from edgesdk.stages.observe import InputStatistics, observe

        spec = package.spec
        readings = {
            index: [f"layers.{i}.attention.input" for i, layer in enumerate(spec.layers) if index in (i, layer.share)]
            for index in chosen
        }
        statistics = InputStatistics({name for names in readings.values() for name in names}, products=True)
        observe(package, context.calibration.inputs, statistics.add)
        return {
            index: extended(statistics.hessian(names), statistics.mean(names)) for index, names in readings.items()
        }


def arrange(
    spec: TransformerSpec, weights: Weights, index: int, groups: int, covariance: NDArray[np.float64]
) -> list[list[int]]:
    """Bring similar key/value heads of owner `index` (with their query heads) side by side and into one another's
    coordinates, in place; what the layer computes stays the same. Gives the groups, in the old numbers."""
    layer = spec.layers[index]
    keys, values = (_heads(spec, weights, index, part) for part in ("attention.key", "attention.value"))
    found = grouped(similarity(keys, covariance) + similarity(values, covariance), groups)
    turns_of_keys: dict[int, NDArray[np.float64]] = {}
    turns_of_values: dict[int, NDArray[np.float64]] = {}
    for group in found:
        turns_of_keys |= dict(zip(group, aligned([keys[head] for head in group], covariance), strict=True))
        turns_of_values |= dict(zip(group, aligned([values[head] for head in group], covariance), strict=True))
    order = [head for group in found for head in group]
    prefix, queries = f"layers.{index}", layer.heads // layer.kv_heads
    turned = (("attention.query", queries, turns_of_keys), ("attention.key", 1, turns_of_keys),
              ("attention.value", 1, turns_of_values))
    for part, width, turns in turned:
        name = rows_name(layer, prefix, part)
        for suffix in ("weight", "bias"):
            blocks = weights[f"{name}.{suffix}"].reshape(layer.kv_heads, width, layer.head_size, -1).astype(np.float64)
            moved = np.concatenate([turns[head] @ blocks[head] for head in order])
            weights[f"{name}.{suffix}"] = _float32(moved.reshape(weights[f"{name}.{suffix}"].shape))
    name = f"{columns_name(layer, prefix, 'attention.output')}.weight"
    columns = weights[name].T.reshape(layer.kv_heads, queries, layer.head_size, -1).astype(np.float64)
    moved = np.concatenate([turns_of_values[head] @ columns[head] for head in order])
    weights[name] = _float32(moved.reshape(weights[name].T.shape).T)
    return found


def merge(spec: TransformerSpec, weights: Weights, index: int, groups: list[list[int]]) -> None:
    """Replace the key/value heads of owner `index` by the mean of each group, in place."""
    layer = spec.layers[index]
    for part in ("attention.key", "attention.value"):
        name = rows_name(layer, f"layers.{index}", part)
        for suffix in ("weight", "bias"):
            old = weights[f"{name}.{suffix}"]
            blocks = old.reshape(layer.kv_heads, layer.head_size, *old.shape[1:]).astype(np.float64)
            weights[f"{name}.{suffix}"] = _float32(np.concatenate([blocks[group].mean(0) for group in groups]))


def _heads(spec: TransformerSpec, weights: Weights, index: int, part: str) -> list[NDArray[np.float64]]:
    """Weights and bias [D, K + 1] of each key/value head."""
    layer = spec.layers[index]
    bias = weights[f"{rows_name(layer, f'layers.{index}', part)}.bias"].astype(np.float64)
    whole = np.concatenate([dense(spec, weights, index, part), bias[:, None]], 1)
    return list(whole.reshape(layer.kv_heads, layer.head_size, -1))


def _float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, np.float32)
