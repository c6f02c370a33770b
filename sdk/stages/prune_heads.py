"""`prune.heads`: remove attention heads with their rows of query, key and value and their columns of the output.

Where query heads share key/value heads (grouped queries), a key/value head goes with all the query heads that read it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from edgesdk.errors import StageError
from edgesdk.stages.base import Options
from edgesdk.stages.prune_units import Importance, PruneUnits, PruneUnitsOptions
from edgesdk.stages.units import HEADS, Kind
from edgesdk.transformer.spec import Layer


class PruneHeadsOptions(PruneUnitsOptions):
    """`keep`: the number of query heads that stay in each layer (6), or the share of them (0.5; 1.0 keeps all)."""

    keep: Annotated[int, Field(strict=True, ge=1)] | Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        description="a number of heads, such as 6, or a share below 1, such as 0.5"
    )
    scope: str = "layers.*.attention"
    importance: Importance = "fisher"


class PruneHeads(PruneUnits):
    """Physical removal of attention heads."""

    name: ClassVar[str] = "prune.heads"
    options_type: ClassVar[type[Options]] = PruneHeadsOptions
    kind: ClassVar[Kind] = HEADS
    options: PruneHeadsOptions

    def scope(self) -> str:
        return self.options.scope

    def remaining(self, layer: Layer) -> int:
        keep, group = self.options.keep, layer.heads // layer.kv_heads
        if isinstance(keep, float):
            return max(1, round(layer.kv_heads * keep))
        if keep > layer.heads:
            raise StageError(f"{self.name}: keep {keep}, but a layer has {layer.heads} heads", "keep fewer")
        if keep % group:
            raise StageError(
                f"{self.name}: keep {keep}, but {group} heads of a layer share one key/value head and go together",
                f"keep a multiple of {group}",
            )
        return keep // group
