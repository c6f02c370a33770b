"""`factorize`: a linear layer becomes two thin ones, where that saves parameters.

- `plain`: the SVD of the weights.
- `activation`: the smallest error of the layer's outputs on the calibration data (inputs centred; the mean error goes
  into the bias).
- `fisher`: rows count as much as the squared gradients of the loss by their weights (see `edgesdk.lowrank`).

Ranks: the same for all (`rank`), by share of parameters (`keep`) or of energy (`energy`) of each matrix, or chosen
together so that all of them have a share of their parameters (`budget`). `parts: embedding` splits the token table into
a table of width r and a projection (as in ALBERT, Lan et al. 2019, arXiv:1909.11942); its inputs are tokens, so what
activations are to a layer is their frequency here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from edgesdk.errors import StageError
from edgesdk.lowrank import Decomposition, decompose, rank_of_energy, rank_of_share, ranks_of_budget, saves
from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage, scope_matches
from edgesdk.transformer.spec import PARTS, TokenEmbedding, TransformerSpec

EMBEDDING = "embedding"
Shapes = dict[str, tuple[int, int]]
Ranks = Mapping[str, int | None]


class FactorizeOptions(Options):
    """One of `rank`, `keep`, `energy`, `budget`. `parts` is a pattern of linear layers, or `embedding`; ranks that are
    not given are multiples of `multiple`. `samples` rows are looked at for `fisher`."""

    parts: str = "layers.*"
    method: Literal["plain", "activation", "fisher"] = "activation"
    rank: int | None = Field(default=None, ge=1, le=1 << 24)
    keep: float | None = Field(default=None, gt=0, lt=1)
    energy: float | None = Field(default=None, gt=0, le=1)
    budget: float | None = Field(default=None, gt=0, lt=1)
    multiple: int = Field(default=8, ge=1, le=1024)
    samples: int = Field(default=256, ge=1, le=1 << 20)

    @model_validator(mode="after")
    def _one_size(self) -> FactorizeOptions:
        given = [name for name in ("rank", "keep", "energy", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of rank, keep, energy and budget, not {' and '.join(given) or 'none'}")
        return self


class Factorize(Stage):
    """Low-rank factors of linear layers or of the token table."""

    name: ClassVar[str] = "factorize"
    options_type: ClassVar[type[Options]] = FactorizeOptions
    options: FactorizeOptions

    @property
    def exact(self) -> bool:
        return self.options.energy is None and self.options.budget is None

    def requires(self, outline: Outline) -> list[str]:
        spec = outline.spec
        if outline.scheme != "fp32":
            return [f"it factorizes fp32 packages, this one is {outline.scheme}; put it before the quantize stage"]
        try:
            shapes = self._shapes(spec)
        except StageError as problem:
            return [str(problem)]
        if sparse := [name for name in shapes if name in spec.sparse]:
            return [f"{sparse[0]} is sparse ({spec.sparse[sparse[0]]}), its factors would not be; factorize first"]
        rank, budget, multiple = self.options.rank, self.options.budget, self.options.multiple
        if self.exact and not any(self._estimate(shapes).values()):
            size = f"multiples of {multiple}" if rank is None else f"rank {rank}"
            return [f"{size} saves nothing: ranks must be below N·K / (N + K) = {_break_even(shapes)}"]
        if budget is not None and (least := self._least(shapes)) > budget:
            return [f"budget is {budget:g}, but ranks of {multiple} have {least:.3f} of the parameters already"]
        return []

    def ensures(self, outline: Outline) -> Outline:
        spec = _factorized(outline.spec, self._estimate(self._shapes(outline.spec)))
        return dataclasses.replace(outline, spec=spec)

    def apply(self, package: Package, context: Context) -> Change:
        from edgesdk.stages.factor_data import frequencies, gradient_energies, moments

        method, spec, shapes = self.options.method, package.spec, self._shapes(package.spec)
        rows: Mapping[str, NDArray[np.float64]] = {}
        means: Mapping[str, NDArray[np.float64]] = {}
        covariances: Mapping[str, NDArray[np.float64]] = {}
        if method == "fisher":
            rows = gradient_energies(package, context, list(shapes), self.options.samples)
        elif method == "activation" and EMBEDDING in shapes:
            rows = {EMBEDDING: frequencies(context, shapes[EMBEDDING][0])}
        elif method == "activation":
            means, covariances = moments(package, context, list(shapes))
        found: dict[str, Decomposition] = {}
        for done, name in enumerate(shapes):
            context.progress(f"factorizing {name}", done, len(shapes))
            weight = package.weights[_weight(name)].astype(np.float64)
            scale = np.sqrt(rows[name]) if name in rows else None
            found[name] = decompose(weight, scale, covariances.get(name))
        ranks = self._ranks(shapes, {name: value.energies for name, value in found.items()})
        if not any(ranks.values()):
            raise StageError(
                f"stage {self.name}: energy {self.options.energy:g} saves nothing: no matrix has so much in few ranks",
                "ask for less energy, or for a budget",
            )
        weights = dict(package.weights)
        for name, rank in ranks.items():
            if rank is not None:
                _replace(weights, name, found[name].factors(rank), means.get(name))
        return Change(spec=_factorized(spec, ranks), weights=weights)

    def _shapes(self, spec: TransformerSpec) -> Shapes:
        """(N, K) of each matrix that the options choose and that is dense; names are those of stored layers."""
        if self.options.parts == EMBEDDING:
            embedding = spec.embedding
            if not isinstance(embedding, TokenEmbedding):
                raise StageError(f"it factorizes tables of tokens, this model takes {embedding.kind}")
            if embedding.width is not None:
                raise StageError(f"the token table is factorized already (width {embedding.width})")
            if spec.lm_head:
                raise StageError("the token table is the model's output too (lm_head)")
            return {EMBEDDING: (embedding.vocabulary, spec.hidden)}
        linears = {
            name: (outputs, inputs)
            for name, inputs, outputs in spec.linears()
            if spec.stored(name) == name and name.startswith("layers.") and name.split(".", 2)[2] in PARTS
        }
        if not linears:
            raise StageError("every part of its layers is low-rank already")
        return {name: linears[name] for name in scope_matches(self.options.parts, list(linears), self.name)}

    def _estimate(self, shapes: Shapes) -> dict[str, int | None]:
        """Ranks without looking at weights: exact for `rank` and `keep`."""
        options = self.options
        share = options.keep or options.budget or options.energy or 1.0
        ranks: dict[str, int | None] = {}
        for name, shape in shapes.items():
            rank = options.rank or rank_of_share(share, *shape, options.multiple)
            ranks[name] = rank if saves(rank, *shape) else None
        return ranks

    def _ranks(self, shapes: Shapes, energies: Mapping[str, NDArray[np.float64]]) -> Ranks:
        options = self.options
        if options.budget is not None:
            # Fisher energies are all of one kind, changes of the loss. Others count as shares of their own matrix, by
            # singular values: squares leave the flat spectra of some layers too little (MiniLM, half of the
            # parameters: cosine 0.753 with squares, 0.775 so).
            if options.method == "fisher":
                return ranks_of_budget(energies, shapes, options.budget, options.multiple, relative=False)
            gains = {name: np.sqrt(value) for name, value in energies.items()}
            return ranks_of_budget(gains, shapes, options.budget, options.multiple, relative=True)
        if options.energy is not None:
            ranks = {name: rank_of_energy(energies[name], options.energy, options.multiple) for name in shapes}
            return {name: rank if saves(rank, *shapes[name]) else None for name, rank in ranks.items()}
        return self._estimate(shapes)

    def _least(self, shapes: Shapes) -> float:
        """Share of the parameters with the smallest rank everywhere."""
        multiple = self.options.multiple
        least = sum(min(n * k, multiple * (n + k)) for n, k in shapes.values())
        return least / sum(n * k for n, k in shapes.values())


def _break_even(shapes: Shapes) -> str:
    limits = sorted({n * k / (n + k) for n, k in shapes.values()})
    return " or ".join(f"{limit:g}" for limit in limits[:3])


def _weight(name: str) -> str:
    return "embedding.tokens.weight" if name == EMBEDDING else f"{name}.weight"


def _factorized(spec: TransformerSpec, ranks: Ranks) -> TransformerSpec:
    """The spec with these ranks; layers that share weights follow their owner."""
    embedding, layers = spec.embedding, list(spec.layers)
    for name, rank in ranks.items():
        if rank is None:
            continue
        if name == EMBEDDING:
            assert isinstance(embedding, TokenEmbedding)
            embedding = dataclasses.replace(embedding, width=rank, project="tokens")
            continue
        _, owner, part = name.split(".", 2)
        for index, layer in enumerate(layers):
            if int(owner) in (index, layer.share):
                layers[index] = dataclasses.replace(layer, ranks={**layer.ranks, part: rank})
    return dataclasses.replace(spec, embedding=embedding, layers=tuple(layers))


def _replace(
    weights: dict[str, NDArray[np.float32]], name: str,
    factors: tuple[NDArray[np.float32], NDArray[np.float32]], mean: NDArray[np.float64] | None,
) -> None:
    """Put factors in the place of a matrix; the bias takes the mean error of the outputs."""
    u, v = factors
    old = weights.pop(_weight(name))
    if name == EMBEDDING:
        weights |= {
            "embedding.tokens.weight": u,
            "embedding.projection.weight": np.ascontiguousarray(v.T),
            "embedding.projection.bias": np.zeros(v.shape[1], np.float32),
        }
        return
    bias = weights.pop(f"{name}.bias").astype(np.float64)
    if mean is not None:
        bias += (old.astype(np.float64) - u.astype(np.float64) @ v.astype(np.float64)) @ mean
    weights |= {f"{name}.u.weight": u, f"{name}.v.weight": v, f"{name}.u.bias": bias.astype(np.float32)}
