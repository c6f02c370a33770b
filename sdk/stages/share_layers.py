"""`share.layers`: groups of layers use one set of weights, stored once in the package and in every artifact.

After ALBERT (Lan et al. 2019, arXiv:1909.11942); the depth and the work stay. The first layer of a group owns the
weights. They begin as those of one layer of the group, or as the mean of all; gates and exits stay each layer's own.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.units import owner as owner_of
from edgesdk.transformer.spec import TransformerSpec

SIZES = ("heads", "kv_heads", "head_size", "ffn", "ranks")


class ShareLayersOptions(Options):
    """Either `groups`, a number for each layer ("0,0,1,1,2,2"), or `distinct` groups of neighbours. `init` says which
    layer of a group gives the weights."""

    groups: str | None = None
    distinct: int | None = Field(default=None, ge=1, le=1000)
    init: Literal["mean", "first", "last"] = "mean"

    @field_validator("groups")
    @classmethod
    def _numbers(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", value):
            raise ValueError("expected a number for each layer, such as 0,0,1,1")
        return value

    @model_validator(mode="after")
    def _one(self) -> ShareLayersOptions:
        if (self.groups is None) == (self.distinct is None):
            raise ValueError("give either groups or distinct")
        return self


class ShareLayers(Stage):
    """Layers that share weights."""

    name: ClassVar[str] = "share.layers"
    options_type: ClassVar[type[Options]] = ShareLayersOptions
    options: ShareLayersOptions

    def requires(self, outline: Outline) -> list[str]:
        spec, count = outline.spec, len(outline.spec.layers)
        if outline.scheme != "fp32":
            return [f"it shares fp32 layers, this package is {outline.scheme}; put it before the quantize stage"]
        if self.options.groups is not None and len(self.options.groups.split(",")) != count:
            return [f"groups has {len(self.options.groups.split(','))} numbers for {count} layers"]
        if (self.options.distinct or 1) > count:
            return [f"distinct is {self.options.distinct}, the model has {count} layers"]
        owners = self._owners(count)
        if all(owner_of(spec, index) == owner_of(spec, first) for index, first in enumerate(owners)):
            return ["no layer would share weights that it does not share already"]
        reasons = []
        for index, owner in enumerate(owners):
            layer, first = spec.layers[index], spec.layers[owner]
            if differing := [name for name in SIZES if getattr(layer, name) != getattr(first, name)]:
                reasons.append(f"layers {owner} and {index} differ in {', '.join(differing)} and cannot share weights")
            elif _patterns(spec, index) != _patterns(spec, owner):
                reasons.append(f"layers {owner} and {index} differ in what is sparse")
            elif index != owner and self.options.init == "mean" and (layer.ranks or _patterns(spec, index)):
                what = "low-rank" if layer.ranks else "sparse"
                reasons.append(f"layers {owner} and {index} are {what}: their mean is not; set init to first or last")
        return reasons

    def ensures(self, outline: Outline) -> Outline:
        spec = outline.spec
        owners = self._owners(len(spec.layers))
        layers = tuple(
            dataclasses.replace(layer, share=None if owner == index else owner)
            for index, (layer, owner) in enumerate(zip(spec.layers, owners, strict=True))
        )
        sparse = {name: pattern for name, pattern in spec.sparse.items() if not name.startswith("layers.")}
        for index, owner in enumerate(owners):
            if index == owner:
                sparse |= {f"layers.{index}.{part}": pattern for part, pattern in _patterns(spec, index).items()}
        return dataclasses.replace(outline, spec=dataclasses.replace(spec, layers=layers, sparse=sparse))

    def apply(self, package: Package, context: Context) -> Change:
        spec = package.spec
        owners = self._owners(len(spec.layers))
        shared = self.ensures(context.outline(package)).spec
        weights: dict[str, NDArray[np.float32]] = {}
        for name in shared.weight_shapes():
            index, part = _layer_part(name)
            members = [name]
            if index is not None and part.partition(".")[0] not in ("gate", "exit"):
                group = [member for member, owner in enumerate(owners) if owner == index]
                members = [f"layers.{member}.{part}" for member in self._sources(group)]
            values = [package.weights[spec.stored(member)] for member in members]
            # One value is copied bit for bit; a mean is taken in double precision.
            mean = np.asarray(np.mean(values, 0, np.float64), np.float32)
            weights[name] = values[0] if len(values) == 1 else mean
        return Change(spec=shared, weights=weights)

    def _sources(self, group: list[int]) -> list[int]:
        """The layers whose weights a group begins with."""
        return {"mean": group, "first": group[:1], "last": group[-1:]}[self.options.init]

    def _owners(self, count: int) -> list[int]:
        """The layer that owns the weights of each layer: the first of its group."""
        if self.options.groups is not None:
            labels = [int(number) for number in self.options.groups.split(",")]
        else:
            assert self.options.distinct is not None
            labels = [index * self.options.distinct // count for index in range(count)]
        return [labels.index(label) for label in labels]


def _patterns(spec: TransformerSpec, index: int) -> dict[str, str]:
    """Part of a layer → pattern of its zeros."""
    prefix = f"layers.{owner_of(spec, index)}."
    return {name.removeprefix(prefix): value for name, value in spec.sparse.items() if name.startswith(prefix)}


def _layer_part(name: str) -> tuple[int | None, str]:
    """(3, "ffn.up.weight") of `layers.3.ffn.up.weight`; (None, name) of what is outside the layers."""
    head, _, rest = name.partition(".")
    if head != "layers":
        return None, name
    index, _, part = rest.partition(".")
    return int(index), part
