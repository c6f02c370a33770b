"""What `prune.neurons` and `prune.heads` have in common: rank the units of each layer, remove the least, for good.

`importance: obs` removes by second order and refits the matrix behind the units (see `second_order`); the others rank
by a score (see `importance`). `allocate: global` spends the same total where it costs least: whichever layer's next
units add least to the loss gives them up.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages import importance
from edgesdk.stages.base import Change, Context, Options, Outline, Stage, scope_matches
from edgesdk.stages.units import (
    Kind,
    Weights,
    columns_name,
    columns_of_unit,
    count,
    dense,
    keep_units,
    owners,
    resized_spec,
    spread,
)
from edgesdk.transformer.spec import Layer

Importance = Literal["activation", "magnitude", "taylor", "fisher", "obs"]


class PruneUnitsOptions(Options):
    """`samples`: rows of data that gradients and second order are taken over."""

    importance: Importance = "activation"
    allocate: Literal["uniform", "global"] = "uniform"
    samples: int = Field(default=512, ge=1, le=100_000)


@dataclass(frozen=True)
class Ranking:
    """`order`: units in the order in which they go. `costs`: what each adds to the error at its turn, comparable
    between layers."""

    order: NDArray[np.int64]
    costs: NDArray[np.float64]


class PruneUnits(Stage):
    """Physical removal of units inside layers."""

    kind: ClassVar[Kind]
    options: PruneUnitsOptions

    @abstractmethod
    def remaining(self, layer: Layer) -> int:
        """How many units of a layer stay.

        Raises:
            StageError: it cannot be that many.
        """

    @abstractmethod
    def scope(self) -> str:
        """Glob over `layers.I.ffn` or `layers.I.attention`."""

    def step(self) -> int:
        """Units come in multiples of this."""
        return 1

    @property
    def exact(self) -> bool:
        return self.options.allocate == "uniform"

    def requires(self, outline: Outline) -> list[str]:
        if outline.scheme != "fp32":
            return [f"it prunes fp32 packages, this one is {outline.scheme}; put it before the quantize stage"]
        try:
            units = self._units(outline)
        except StageError as problem:
            return [str(problem)]
        if self.options.importance != "obs":
            return []
        names = [columns_name(outline.spec.layers[index], f"layers.{index}", self.kind.behind) for index in units]
        return [
            f"obs refits {name} and would fill its zeros; put it before prune.weights"
            for name in names if name in outline.spec.sparse
        ]

    def ensures(self, outline: Outline) -> Outline:
        return dataclasses.replace(outline, spec=resized_spec(self.kind, outline.spec, self._units(outline)))

    def apply(self, package: Package, context: Context) -> Change:
        spec, kind = package.spec, self.kind
        units = self._units(context.outline(package))
        before = {index: count(kind, spec.layers[index]) for index in units}
        obs = self.options.importance == "obs"
        hessians = self._hessians(package, context, list(units)) if obs else {}
        rankings = self._by_error(package, context, hessians) if obs else self._by_score(package, context, list(units))
        if self.options.allocate == "global":
            costs = {index: ranking.costs for index, ranking in rankings.items()}
            units = allocate(costs, sum(units.values()), self.step())
        weights = dict(package.weights)
        for index, remaining in units.items():
            if remaining == before[index]:
                continue
            kept = np.sort(rankings[index].order[before[index] - remaining :])
            keep_units(kind, spec, weights, index, kept)
            if obs:
                self._refit(package, weights, hessians[index], index, kept)
        return Change(spec=resized_spec(kind, spec, units), weights=weights)

    def _units(self, outline: Outline) -> dict[int, int]:
        """Owner → units that stay. Layers that share weights are pruned together, whichever of them is in scope."""
        layers, block = outline.spec.layers, self.kind.tap.partition(".")[0]
        names = [f"layers.{index}.{block}" for index in range(len(layers))]
        chosen = [int(name.split(".")[1]) for name in scope_matches(self.scope(), names, self.name)]
        return {index: self.remaining(layers[index]) for index in owners(outline.spec, chosen)}

    def _by_score(self, package: Package, context: Context, indices: list[int]) -> dict[int, Ranking]:
        method, kind = self.options.importance, self.kind
        if method == "magnitude":
            scores = importance.magnitude(kind, package, indices)
        elif method == "activation":
            scores = importance.activation(kind, package, context, indices)
        else:
            gradients = importance.unit_gradients(kind, package, context, indices, self.options.samples)
            scores = importance.taylor(gradients) if method == "taylor" else importance.fisher(gradients)
        # Gradients are changes of one loss and comparable as they are; norms are so only within a layer.
        relative = method in ("magnitude", "activation")
        return {index: _ranked(score, relative) for index, score in scores.items()}

    def _by_error(
        self, package: Package, context: Context, hessians: Mapping[int, NDArray[np.float64]]
    ) -> dict[int, Ranking]:
        """Errors of different layers are comparable once each is multiplied by what it costs the loss."""
        from edgesdk.stages.second_order import removal_order

        rankings, prices = {}, dict.fromkeys(hessians, 1.0)
        if self.options.allocate == "global":
            part, samples = self.kind.behind, self.options.samples
            prices = importance.output_sensitivity(part, package, context, list(hessians), samples)
        for index, hessian in hessians.items():
            layer = package.spec.layers[index]
            weight = _with_bias(package, index, self.kind.behind)
            order, errors = removal_order(weight, hessian, columns_of_unit(self.kind, layer))
            rankings[index] = Ranking(order, errors * prices[index])
        return rankings

    def _hessians(self, package: Package, context: Context, indices: list[int]) -> dict[int, NDArray[np.float64]]:
        from edgesdk.stages.second_order import moments

        taps = {f"layers.{index}.{self.kind.tap}": index for index in indices}
        rows = importance.labelled_rows(context, self.options.samples)
        return {taps[name]: value for name, value in moments(package, rows.inputs, taps.__contains__).items()}

    def _refit(
        self, package: Package, weights: Weights, hessian: NDArray[np.float64], index: int, kept: NDArray[np.int64]
    ) -> None:
        """Write the refitted matrix behind the units, and its bias, into `weights`.

        Of a low-rank pair v is refitted: u·v is then the best of all matrices too, and the bias behind u takes up u
        times what the constant input gives v.
        """
        from edgesdk.stages.second_order import refit

        layer, prefix = package.spec.layers[index], f"layers.{index}"
        columns = spread(kept, columns_of_unit(self.kind, layer))
        columns = np.append(columns, len(hessian) - 1)
        bias = f"{prefix}.{self.kind.behind}.bias"
        matrix = package.weights[f"{columns_name(layer, prefix, self.kind.behind)}.weight"].astype(np.float64)
        low_rank = self.kind.behind in layer.ranks
        if low_rank:
            bias = f"{prefix}.{self.kind.behind}.u.bias"
        constant = np.zeros(len(matrix)) if low_rank else package.weights[bias].astype(np.float64)
        fitted = refit(np.concatenate([matrix, constant[:, None]], 1), hessian, columns)
        weights[f"{columns_name(layer, prefix, self.kind.behind)}.weight"] = fitted[:, :-1].astype(np.float32)
        if low_rank:
            second = package.weights[f"{prefix}.{self.kind.behind}.u.weight"].astype(np.float64)
            weights[bias] = (package.weights[bias] + second @ fitted[:, -1]).astype(np.float32)
        else:
            weights[bias] = fitted[:, -1].astype(np.float32)


def allocate(costs: Mapping[int, NDArray[np.float64]], total: int, step: int) -> dict[int, int]:
    """Units that stay in each layer, at most `total` in all: whichever layer's next units cost least gives them up.

    Args:
        costs: what removing the first, second … unit of a layer adds to the error.
        step: widths below a layer's own are multiples of this, and at least one.
    """
    units = {index: len(values) for index, values in costs.items()}

    def lower(index: int) -> int:
        return (units[index] - 1) // step * step

    def price(index: int) -> float:
        gone = len(costs[index]) - units[index]
        return float(costs[index][gone : gone + units[index] - lower(index)].mean())

    while sum(units.values()) > total:
        open_layers = [index for index in units if lower(index) >= 1]
        if not open_layers:
            break
        cheapest = min(open_layers, key=lambda index: (price(index), index))
        units[cheapest] = lower(cheapest)
    return units


def _ranked(scores: NDArray[np.float64], relative: bool) -> Ranking:
    """Ascending; of equal scores the higher index goes first, so that equal inputs give equal bytes."""
    order = np.lexsort((-np.arange(len(scores)), scores))
    scale = max(float(scores.mean()), 1e-30) if relative else 1.0
    return Ranking(order, scores[order] / scale)


def _with_bias(package: Package, index: int, part: str) -> NDArray[np.float64]:
    """[N, K + 1]: the (product) matrix of a part with its bias as the last column."""
    name = f"layers.{index}.{part}" + (".u" if part in package.spec.layers[index].ranks else "")
    bias = package.weights[f"{name}.bias"].astype(np.float64)
    return np.concatenate([dense(package.spec, package.weights, index, part), bias[:, None]], 1)
