"""`route.skip`: gates that decide for each input which layers run, trained under a compute budget.

A gate is one linear layer on the pooled input of its layer; at run time the layer is a branch, and what is skipped is
not computed. It starts open for every input, as the model is. Training adds logistic noise to the gate (the difference
of two Gumbel variables: Jang et al. 2017, arXiv:1611.01144; Maddison et al. 2017, arXiv:1611.00712) and takes the
gradient of the sigmoid for that of the step (Bengio et al. 2013, arXiv:1308.3432), as conditional networks do (Veit and
Belongie 2018, arXiv:1711.11503; Bapna et al. 2020, arXiv:2002.07106). The loss is the recovery loss plus
`strength` · (share of the gated layers' MACs that run − target)², whose target falls from 1 to `budget` over the first
half of the steps. Where training rows are over the budget at the end, the biases of all gates are lowered by one number
until they keep it.

Nothing makes a gate depend on its input where the budget is met better by layers that never run: the figures of
`edgesdk.dynamic_report` say how often each layer runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.data import Dataset
from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.exit_early import parse_layers
from edgesdk.stages.train import TrainingOptions, fit
from edgesdk.transformer.spec import TransformerSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgesdk.transformer.module import Transformer

OPEN = 2.0  # logit of an untrained gate
# A share of MACs over the budget costs the score as many times as much accuracy: weights over budget are no answer.
OVER_BUDGET = 10.0
TOLERANCE = 0.005
ROWS, BISECTIONS, LARGEST_SHIFT = 1024, 8, 64.0


class RouteSkipOptions(TrainingOptions):
    """
    Attributes:
        layers: indices of the layers that get a gate, such as "1,2,3"; None: every layer but the first.
        budget: share of the gated layers' MACs that may run, mean over inputs.
        strength: weight of the budget in the loss.
    """

    layers: str | None = Field(default=None, max_length=1000)
    budget: float = Field(default=0.6, gt=0, lt=1)
    strength: float = Field(default=10.0, gt=0, le=10_000)


class RouteSkip(Stage):
    """Gates, trained."""

    name: ClassVar[str] = "route.skip"
    options_type: ClassVar[type[Options]] = RouteSkipOptions
    options: RouteSkipOptions

    def requires(self, outline: Outline) -> list[str]:
        reasons = []
        if outline.spec.lm_head:
            reasons.append("it trains classifiers and encoders, this model makes tokens")
        if outline.scheme != "fp32":
            reasons.append(f"it trains fp32 packages, this one is {outline.scheme}; put it before the quantize stage")
        if not outline.training:
            reasons.append("it needs training data: give --train-data")
        if any(layer.gate for layer in outline.spec.layers):
            reasons.append("the model has gates already")
        if outline.spec.exits():
            reasons.append("the thresholds of the exits are set; put it before exit.thresholds")
        try:
            self._layers(outline.spec)
        except StageError as problem:
            reasons.append(problem.message)
        return reasons

    def _layers(self, spec: TransformerSpec) -> tuple[int, ...]:
        depth = len(spec.layers)
        if self.options.layers is not None:
            return parse_layers(self.options.layers, depth)
        if depth < 2:
            raise StageError("a model of one layer has none to skip")
        return tuple(range(1, depth))

    def ensures(self, outline: Outline) -> Outline:
        gates = self._layers(outline.spec)
        layers = tuple(
            dataclasses.replace(layer, gate=True) if index in gates else layer
            for index, layer in enumerate(outline.spec.layers)
        )
        return dataclasses.replace(outline, spec=dataclasses.replace(outline.spec, layers=layers))

    def apply(self, package: Package, context: Context) -> Change:
        from edgesdk.transformer.module import build, weights_of

        assert context.train is not None
        spec = self.ensures(context.outline(package)).spec
        module = build(spec, with_gates(spec, package.weights))
        router = Router(spec, context, self.options)
        fit(
            module, context, self.options, router.loss, what=self.name, score=router.score,
            after_step=router.after_step,
        )
        keep_budget(module, context.train.sample(ROWS, context.seed), self.options.budget)
        return Change(spec=spec, weights=weights_of(module))


def with_gates(spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The weights with every missing gate open for every input."""
    known = dict(weights)
    for index, layer in enumerate(spec.layers):
        if layer.gate:
            known.setdefault(f"layers.{index}.gate.weight", np.zeros((1, spec.hidden), np.float32))
            known.setdefault(f"layers.{index}.gate.bias", np.full(1, OPEN, np.float32))
    return known


def gate_shares(spec: TransformerSpec) -> dict[int, float]:
    """Gated layer → its share of the MACs of all gated layers, at the longest sequence."""
    macs = {i: spec.layer_macs(i, spec.max_length) for i, layer in enumerate(spec.layers) if layer.gate}
    return {index: value / sum(macs.values()) for index, value in macs.items()}


class Router:
    """Loss and score of gates under a budget."""

    def __init__(self, spec: TransformerSpec, context: Context, options: RouteSkipOptions) -> None:
        from edgesdk.stages.targets import recovery_loss, soft_logits

        # Asked before training starts: building the teacher in its middle would take from the noise's random numbers.
        soft_logits(context.teacher, context.validation, context)
        self.options, self.context = options, context
        self.shares = gate_shares(spec)
        self.recovery = recovery_loss(context, options, self.tap)
        self.target = 1.0
        self.logits: dict[int, Tensor] = {}

    def tap(self, name: str, value: Tensor) -> Tensor:
        """Keeps the logits of gates and adds noise to them."""
        if not name.endswith(".gate"):
            return value
        self.logits[int(name.split(".")[1])] = value
        return value + logistic_noise(value)

    def loss(self, module: Transformer, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
        """Recovery under noisy gates, and how far the gates without noise are from the target."""
        from edgesdk.transformer.dynamic import straight_through

        value = self.recovery(module, batch, rows)
        usage = sum(share * straight_through(self.logits[i].float(), True).mean() for i, share in self.shares.items())
        return value + self.options.strength * (usage - self.target) ** 2

    def after_step(self, step: int, steps: int) -> None:
        """The target of the next step."""
        self.target = 1.0 - (1.0 - self.options.budget) * min(1.0, 2.0 * step / steps)

    def score(self, module: Transformer) -> float:
        """Accuracy, or mean cosine to the teacher for encoders, on the validation data, less what is over budget."""
        from edgesdk.stages.targets import validation_score

        over = usage_of(module, self.context.validation, self.shares) - self.options.budget - TOLERANCE
        return validation_score(self.context, module) - OVER_BUDGET * max(0.0, over)


def logistic_noise(like: Tensor) -> Tensor:
    """The difference of two Gumbel variables, of the shape of a tensor."""
    import torch

    uniform = torch.rand_like(like, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
    return (uniform / (1 - uniform)).log().to(like.dtype)


def usage_of(module: Transformer, data: Dataset, shares: Mapping[int, float]) -> float:
    """Mean share of the gated layers' MACs that run."""
    import torch

    from edgesdk.stages.forward import predict

    def used(batch: dict[str, Tensor]) -> Tensor:
        gates = module.trace(batch).gates
        return torch.stack([share * (gates[index] > 0) for index, share in shares.items()]).sum(0)

    return float(predict(module, data.inputs, used).mean())


def keep_budget(module: Transformer, data: Dataset, budget: float) -> None:
    """Lower all gates by the smallest number that keeps the budget on these rows, found by bisection; nothing where
    they keep it already."""
    shares = gate_shares(module.spec)
    biases = [value for name, value in module.named_parameters() if name.endswith(".gate.bias")]
    first = [float(value.detach()) for value in biases]

    def usage(shift: float) -> float:
        _set(biases, [value - shift for value in first])
        return usage_of(module, data, shares)

    if usage(0.0) <= budget:
        return
    low, high = 0.0, 1.0
    while usage(high) > budget and high < LARGEST_SHIFT:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if usage(middle) > budget else (low, middle)
    usage(high)


def _set(biases: Sequence[nn.Parameter], values: Sequence[float]) -> None:
    import torch

    with torch.no_grad():
        for bias, value in zip(biases, values, strict=True):
            bias.fill_(value)
