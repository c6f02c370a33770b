"""What can be removed from inside a layer: feed-forward neurons, and heads with their key/value heads.

A unit is one neuron, or one key/value head with all the query heads that read it. Units are counted at an activation
(`tap`) whose columns they fill one after the other; removing one takes rows out of the linear layers before it and
columns out of the one behind it. Of a low-rank pair, rows belong to NAME.u and columns to NAME.v.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesdk.transformer.spec import Layer, TransformerSpec

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Kind:
    """`before`: parts whose rows make the units; `behind`: the part that reads them at `tap`."""

    name: str
    tap: str
    before: tuple[str, ...]
    behind: str


NEURONS = Kind("neurons", "ffn.hidden", ("ffn.up",), "ffn.down")
HEADS = Kind(
    "heads", "attention.context", ("attention.query", "attention.key", "attention.value"), "attention.output"
)


def count(kind: Kind, layer: Layer) -> int:
    """Number of units in a layer."""
    return layer.ffn if kind is NEURONS else layer.kv_heads


def rows_of_unit(layer: Layer, part: str) -> int:
    """Rows that one unit has in a part before the tap (columns at the tap: those of `attention.query`, `ffn.up`)."""
    if part == "ffn.up":
        return 1
    return layer.head_size * (layer.heads // layer.kv_heads if part == "attention.query" else 1)


def columns_of_unit(kind: Kind, layer: Layer) -> int:
    """Columns that one unit has at the tap."""
    return rows_of_unit(layer, kind.before[0])


def resized(kind: Kind, layer: Layer, units: int) -> Layer:
    """The layer with this many units."""
    if kind is NEURONS:
        return dataclasses.replace(layer, ffn=units)
    return dataclasses.replace(layer, heads=units * (layer.heads // layer.kv_heads), kv_heads=units)


def owner(spec: TransformerSpec, index: int) -> int:
    """The layer that stores the weights of layer `index`."""
    share = spec.layers[index].share
    return index if share is None else share


def rows_name(layer: Layer, prefix: str, part: str) -> str:
    """Name of the stored matrix whose rows are the outputs of a part."""
    return f"{prefix}.{part}.u" if part in layer.ranks else f"{prefix}.{part}"


def columns_name(layer: Layer, prefix: str, part: str) -> str:
    """Name of the stored matrix whose columns are the inputs of a part."""
    return f"{prefix}.{part}.v" if part in layer.ranks else f"{prefix}.{part}"


def resized_spec(kind: Kind, spec: TransformerSpec, units: Mapping[int, int]) -> TransformerSpec:
    """The spec with `units` of each owner; every layer that shares its weights follows.

    Zeros stay structural, but removal shifts what is left: blocks, and groups along the inputs where columns go,
    become `unstructured`.
    """
    layers, sparse = list(spec.layers), dict(spec.sparse)
    for index, layer in enumerate(spec.layers):
        wanted = units.get(owner(spec, index), count(kind, layer))
        if wanted == count(kind, layer):
            continue
        layers[index] = resized(kind, layer, wanted)
        prefix = f"layers.{index}"
        for part in kind.before:
            name = rows_name(layer, prefix, part)
            if "x" in sparse.get(name, ""):
                sparse[name] = "unstructured"
        name = columns_name(layer, prefix, kind.behind)
        if name in sparse:
            sparse[name] = "unstructured"
    return dataclasses.replace(spec, layers=tuple(layers), sparse=sparse)


def spread(units: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Positions of units that are `width` positions wide each."""
    positions: NDArray[np.int64] = (units[:, None] * width + np.arange(width)).reshape(-1)
    return positions


def keep_units(kind: Kind, spec: TransformerSpec, weights: Weights, index: int, kept: NDArray[np.int64]) -> None:
    """Take all units but `kept` (ascending) out of the weights of owner `index`, in place."""
    layer, prefix = spec.layers[index], f"layers.{index}"
    for part in kind.before:
        name, rows = rows_name(layer, prefix, part), spread(kept, rows_of_unit(layer, part))
        for suffix in ("weight", "bias"):
            weights[f"{name}.{suffix}"] = np.ascontiguousarray(weights[f"{name}.{suffix}"][rows])
    name = f"{columns_name(layer, prefix, kind.behind)}.weight"
    weights[name] = np.ascontiguousarray(weights[name][:, spread(kept, columns_of_unit(kind, layer))])


def dense(
    spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]], index: int, part: str
) -> NDArray[np.float64]:
    """The matrix [N, K] of a part of owner `index` in float64; the product of a low-rank pair."""
    name = f"layers.{index}.{part}"
    if part not in spec.layers[index].ranks:
        return weights[f"{name}.weight"].astype(np.float64)
    product: NDArray[np.float64] = weights[f"{name}.u.weight"].astype(np.float64) @ weights[f"{name}.v.weight"]
    return product


def owners(spec: TransformerSpec, indices: Iterable[int]) -> list[int]:
    """The layers, in order, that store the weights of these layers."""
    return sorted({owner(spec, index) for index in indices})
