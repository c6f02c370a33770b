"""`prune.neurons`: remove feed-forward neurons for good, so that every artifact shrinks."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from edgesdk.stages.base import Options, Outline
from edgesdk.stages.prune_units import PruneUnits, PruneUnitsOptions
from edgesdk.stages.units import NEURONS, Kind
from edgesdk.transformer.spec import Layer


class PruneNeuronsOptions(PruneUnitsOptions):
    """`keep` is the share of neurons that stay; widths are rounded to `multiple`, which the kernels like."""

    keep: float = Field(gt=0, le=1, description="the share of neurons that stay, such as 0.5")
    scope: str = "layers.*.ffn"
    multiple: int = Field(default=4, ge=1, le=64)


class PruneNeurons(PruneUnits):
    """Physical removal of feed-forward neurons."""

    name: ClassVar[str] = "prune.neurons"
    options_type: ClassVar[type[Options]] = PruneNeuronsOptions
    kind: ClassVar[Kind] = NEURONS
    options: PruneNeuronsOptions

    def scope(self) -> str:
        return self.options.scope

    def step(self) -> int:
        return self.options.multiple

    def requires(self, outline: Outline) -> list[str]:
        if outline.scheme == "fp32" and outline.spec.activation == "swiglu":
            return ["neurons of SwiGLU have two rows of weights: not built yet; prune.weights works on them"]
        return super().requires(outline)

    def remaining(self, layer: Layer) -> int:
        keep, multiple = self.options.keep, self.options.multiple
        if keep == 1:
            return layer.ffn
        return min(layer.ffn, max(multiple, round(layer.ffn * keep / multiple) * multiple))
