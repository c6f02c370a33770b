"""`prune.weights`: set single weights, N of M, or blocks to zero for good, where the target's kernels can use it.

Zeros are structural (`spec.sparse`): training keeps them, and graphs store the other weights only. Scores: `magnitude`
|w|; `activation` |w| · ‖x‖ of its input (Wanda, Sun et al. 2023, arXiv:2306.11695); `obs` removes column by column and
lets the rest make up (SparseGPT, Frantar & Alistarh 2023, arXiv:2301.00774). `schedule: gradual` raises the sparsity
during training as 1 − (1 − t)³ (Zhu & Gupta 2017, arXiv:1710.01878).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from edgesdk.encodings import input_activation
from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage, scope_matches
from edgesdk.stages.masks import Allocation, Pattern, choose, parse, together
from edgesdk.stages.train import TrainingOptions
from edgesdk.stages.units import Weights
from edgesdk.transformer.spec import TransformerSpec


class PruneWeightsOptions(TrainingOptions):
    """`sparsity` is the share of weights that become zero; N:M has its own. `pattern: target` takes the blocks of the
    target's sparse kernels. `scope` is a glob over linear layers; gates and exits stay dense. The options of training
    are read by `schedule: gradual` alone."""

    sparsity: float | None = Field(default=None, gt=0, lt=1)
    pattern: str = Field(default="unstructured", validate_default=True)
    score: Literal["magnitude", "activation", "obs"] = "magnitude"
    scope: str = "layers.*"
    schedule: Literal["oneshot", "gradual"] = "oneshot"
    allocate: Allocation = "uniform"
    samples: int = Field(default=256, ge=1, le=100_000)

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str, info: ValidationInfo) -> str:
        sparsity = info.data.get("sparsity")
        pattern = Pattern(1, 1) if value == "target" else parse(value)
        if pattern.kept is None and sparsity is None and "sparsity" in info.data:
            raise ValueError(f"pattern {value} needs sparsity, the share of weights that become zero")
        own = None if pattern.kept is None else 1 - pattern.kept / pattern.columns
        if own is not None and sparsity is not None and abs(own - sparsity) > 1e-6:
            raise ValueError(f"pattern {value} has its own sparsity; leave sparsity {sparsity} out")
        return value


class PruneWeights(Stage):
    """Structural zeros in linear layers."""

    name: ClassVar[str] = "prune.weights"
    options_type: ClassVar[type[Options]] = PruneWeightsOptions
    options: PruneWeightsOptions

    @property
    def trains(self) -> bool:
        return self.options.schedule == "gradual"

    def requires(self, outline: Outline) -> list[str]:
        options = self.options
        if outline.scheme != "fp32":
            return [f"it prunes fp32 packages, this one is {outline.scheme}; put it before the quantize stage"]
        reasons = []
        if options.pattern == "target" and outline.sparse_block is None:
            reasons.append("pattern target needs a target with sparse kernels; name one, or give blocks such as 4x4")
        if options.schedule == "gradual" and not outline.training:
            reasons.append("schedule gradual trains and needs labelled training data: give --train-data")
        if options.score == "obs" and options.schedule == "gradual":
            reasons.append("score obs removes in one shot; use magnitude or activation for schedule gradual")
        if options.score == "obs" and options.allocate == "global":
            reasons.append("score obs takes the same share from every matrix; use magnitude for allocate global")
        if options.allocate == "global" and ":" in options.pattern:
            reasons.append(f"pattern {options.pattern} is the same everywhere; leave allocate out")
        try:
            self._names(outline.spec)
        except StageError as problem:
            return [*reasons, str(problem)]
        if options.score == "obs":
            sparse = [name for name in self._names(outline.spec) if name in outline.spec.sparse]
            reasons += [f"score obs changes all weights and would fill the zeros of {name}" for name in sparse[:1]]
        return reasons

    def ensures(self, outline: Outline) -> Outline:
        pattern = self._pattern(outline.sparse_block)
        known = outline.spec.sparse
        sparse = {name: together(known.get(name), pattern) for name in self._names(outline.spec)}
        return dataclasses.replace(outline, spec=dataclasses.replace(outline.spec, sparse={**known, **sparse}))

    def apply(self, package: Package, context: Context) -> Change:
        outline = context.outline(package)
        spec, names = self.ensures(outline).spec, self._names(package.spec)
        pattern = parse(self._pattern(context.sparse_block))
        if self.options.schedule == "gradual":
            from edgesdk.stages.gradual import train_gradually

            norms = self._norms(package, context, names)
            sparsity, allocate = self.options.sparsity or 0, self.options.allocate
            trained = train_gradually(package, spec, context, self.options, pattern, norms, sparsity, allocate)
            return Change(spec=spec, weights=trained)
        if self.options.score == "obs":
            return Change(spec=spec, weights=self._by_error(package, context, names, pattern))
        masks = choose(
            scores_of(package.weights, self._norms(package, context, names)), pattern, self.options.sparsity or 0,
            self.options.allocate,
        )
        return Change(spec=spec, weights={**package.weights, **masked(package.weights, masks)})

    def _pattern(self, block: tuple[int, int] | None) -> str:
        if self.options.pattern != "target":
            return self.options.pattern
        assert block is not None  # `requires` refuses
        return "unstructured" if block == (1, 1) else f"{block[0]}x{block[1]}"

    def _names(self, spec: TransformerSpec) -> list[str]:
        """Stored linear layers in scope. Whether a layer that shares weights or their owner is named is the same."""
        linears = [name for name, _, _ in spec.linears() if name.rpartition(".")[2] not in ("gate", "exit")]
        return sorted({spec.stored(name) for name in scope_matches(self.options.scope, linears, self.name)})

    def _norms(self, package: Package, context: Context, names: list[str]) -> dict[str, NDArray[np.float64]]:
        """What each input's weights are multiplied with in the score, [K] by linear layer; ones for `magnitude`."""
        if self.options.score == "magnitude":
            return {name: np.ones(package.weights[f"{name}.weight"].shape[1]) for name in names}
        norms = input_norms(package, context, names)
        return {name: norms[input_activation(name)] for name in names}

    def _by_error(self, package: Package, context: Context, names: list[str], pattern: Pattern) -> Weights:
        from edgesdk.stages.importance import labelled_rows
        from edgesdk.stages.second_order import moments, prune_columns

        rows = labelled_rows(context, self.options.samples)
        taps = {input_activation(name) for name in names}
        hessians = moments(package, rows.inputs, taps.__contains__)
        weights = dict(package.weights)
        for done, name in enumerate(names):
            context.progress(self.name, done, len(names))
            hessian, matrix = hessians[input_activation(name)], weights[f"{name}.weight"].astype(np.float64)
            inputs, bias = matrix.shape[1], weights.get(f"{name}.bias")
            if bias is None:
                hessian = hessian[:-1, :-1]
            else:
                matrix = np.concatenate([matrix, bias[:, None]], 1)
            matrix = prune_columns(matrix, hessian, inputs, pattern, self.options.sparsity or 0)
            weights[f"{name}.weight"] = np.ascontiguousarray(matrix[:, :inputs], np.float32)
            if bias is not None:
                weights[f"{name}.bias"] = np.ascontiguousarray(matrix[:, inputs], np.float32)
        return weights


def scores_of(
    weights: Mapping[str, NDArray[np.float32]], norms: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """|w| times the norm of its input, for each linear layer."""
    return {name: np.abs(weights[f"{name}.weight"].astype(np.float64)) * norm for name, norm in norms.items()}


def masked(weights: Mapping[str, NDArray[np.float32]], masks: Mapping[str, NDArray[np.bool_]]) -> Weights:
    """The matrices of the masks with zeros where they are False."""
    return {
        f"{name}.weight": np.where(mask, weights[f"{name}.weight"], np.float32(0)) for name, mask in masks.items()
    }


def input_norms(package: Package, context: Context, names: list[str]) -> dict[str, NDArray[np.float64]]:
    """Root mean square of each input over the calibration data, padding left out, by stored name of the activation."""
    from edgesdk.stages.observe import observe

    wanted = {input_activation(name) for name in names}
    squares: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}

    def collect(name: str, rows: NDArray[np.float32]) -> None:
        key = package.spec.stored(name)
        if key in wanted:
            squares[key] = squares.get(key, 0.0) + np.square(rows, dtype=np.float64).sum(0)
            counts[key] = counts.get(key, 0) + len(rows)

    observe(package, context.calibration.inputs, collect)
    return {name: np.sqrt(total / counts[name]) for name, total in squares.items()}
