"""`prune.neurons`: remove feed-forward neurons for good, so that every artifact shrinks.

Importance of neuron j: `activation` = mean |hidden_j| on calibration data times the norm of its outgoing column (what
it adds to the residual stream, in the manner of Wanda, Sun et al. 2023, arXiv:2306.11695); `magnitude` = product of
the norms of its incoming row and outgoing column.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage, scope_matches


class PruneNeuronsOptions(Options):
    """`keep` is the share of neurons that stay; widths are rounded to `multiple`, which the kernels like."""

    keep: float = Field(gt=0, le=1)
    scope: str = "layers.*.ffn"
    importance: Literal["activation", "magnitude"] = "activation"
    multiple: int = Field(default=4, ge=1, le=64)


class PruneNeurons(Stage):
    """Physical removal of feed-forward neurons."""

    name: ClassVar[str] = "prune.neurons"
    options_type: ClassVar[type[Options]] = PruneNeuronsOptions
    options: PruneNeuronsOptions

    def requires(self, outline: Outline) -> list[str]:
        if outline.scheme != "fp32":
            return [f"it prunes fp32 packages, this one is {outline.scheme}; put it before the quantize stage"]
        try:
            self._layers(outline)
        except StageError as problem:
            return [str(problem)]
        return []

    def ensures(self, outline: Outline) -> Outline:
        chosen = self._layers(outline)
        layers = tuple(
            dataclasses.replace(layer, ffn=self._width(layer.ffn)) if index in chosen else layer
            for index, layer in enumerate(outline.spec.layers)
        )
        return dataclasses.replace(outline, spec=dataclasses.replace(outline.spec, layers=layers))

    def apply(self, package: Package, context: Context) -> Change:
        outline = Outline(package.spec, package.scheme, package.task, context.training)
        promised = self.ensures(outline)
        weights = dict(package.weights)
        activity = self._activity(package, context) if self.options.importance == "activation" else None
        for index in sorted(self._layers(outline)):
            prefix = f"layers.{index}.ffn"
            up, down = weights[f"{prefix}.up.weight"], weights[f"{prefix}.down.weight"]
            incoming = np.linalg.norm(up, axis=1) if activity is None else activity[f"{prefix}.hidden"]
            importance = incoming * np.linalg.norm(down, axis=0)
            width = promised.spec.layers[index].ffn
            # Stable order: equal importance keeps the lower index, so equal inputs give equal bytes.
            kept = np.sort(np.argsort(-importance, kind="stable")[:width])
            weights[f"{prefix}.up.weight"] = np.ascontiguousarray(up[kept])
            weights[f"{prefix}.up.bias"] = np.ascontiguousarray(weights[f"{prefix}.up.bias"][kept])
            weights[f"{prefix}.down.weight"] = np.ascontiguousarray(down[:, kept])
        return Change(spec=promised.spec, weights=weights)

    def _layers(self, outline: Outline) -> set[int]:
        names = [f"layers.{index}.ffn" for index in range(len(outline.spec.layers))]
        return {int(name.split(".")[1]) for name in scope_matches(self.options.scope, names, self.name)}

    def _width(self, ffn: int) -> int:
        multiple = self.options.multiple
        if self.options.keep == 1:
            return ffn
        return min(ffn, max(multiple, round(ffn * self.options.keep / multiple) * multiple))

    def _activity(self, package: Package, context: Context) -> dict[str, NDArray[np.float64]]:
        """Mean |hidden_j| over the calibration data for each layer, padding left out."""
        from edgesdk.stages.observe import observe

        totals: dict[str, NDArray[np.float64]] = {}
        counts: dict[str, int] = {}

        def collect(name: str, rows: NDArray[np.float32]) -> None:
            if name.endswith(".ffn.hidden"):
                totals[name] = totals.get(name, 0.0) + np.abs(rows).sum(0, dtype=np.float64)
                counts[name] = counts.get(name, 0) + len(rows)

        observe(package, context.calibration.inputs, collect)
        return {name: total / counts[name] for name, total in totals.items()}
