"""`exit.early`: classifiers at chosen depths, trained to answer before the model is through.

An exit is one linear layer on the pooled output of its layer. It starts as the model's classifier and learns from the
labels, from the imported model's soft labels and from the last answer of the model itself (self-distillation: Zhang et
al. 2019, arXiv:1905.08094). Trained jointly, the loss is that of the last answer (share `last`) and the mean of the
exits' with weights that rise with depth (Kaya et al. 2019, arXiv:1810.07052); a large share of the last answer is what
BERxiT (Xin et al. 2021) gets by training it alone in every other step. Among the epochs, the one with the best exits
is kept, and what the last answer lost counts `FINAL_WORSE` times. Nothing leaves before `exit.thresholds` has set when.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.train import Loss, TrainingOptions, fit
from edgesdk.transformer.spec import Criterion, Exit, TransformerSpec
from edgesdk.transformer.spec_check import MOST_EXITS

if TYPE_CHECKING:
    from torch import Tensor

    from edgesdk.transformer.module import Transformer

# What a lost right answer at the end costs in the score, against one at the exits.
FINAL_WORSE = 10.0


class ExitEarlyOptions(TrainingOptions):
    """
    Attributes:
        layers: indices of the layers behind which an exit is put, such as "1,2,3"; None: every layer from a third of
            the depth on but the last, evenly spaced ones where these are more than `MOST_EXITS`.
        criterion: what decides that an input leaves: its confidence, its entropy, or exits that agree.
        training: `joint` trains the whole model, `frozen` only the exits: the last answer stays as it is.
        last: share of the last answer in the loss; the exits share the rest.
        own: share of the exits' soft labels that comes from the model's last answer, not from the imported model.
    """

    layers: str | None = Field(default=None, max_length=1000)
    criterion: Criterion = "confidence"
    training: Literal["joint", "frozen"] = "joint"
    last: float = Field(default=0.5, ge=0, lt=1)
    own: float = Field(default=0.0, ge=0, le=1)


class ExitEarly(Stage):
    """Exits, trained."""

    name: ClassVar[str] = "exit.early"
    options_type: ClassVar[type[Options]] = ExitEarlyOptions
    options: ExitEarlyOptions

    def requires(self, outline: Outline) -> list[str]:
        reasons = []
        if outline.spec.classes is None:
            reasons.append(f"exits are classifiers, this model's task is {outline.task}")
        if outline.scheme != "fp32":
            reasons.append(f"it trains fp32 packages, this one is {outline.scheme}; put it before the quantize stage")
        if not outline.training:
            reasons.append("it needs labelled training data: give --train-data")
        if any(layer.exit is not None for layer in outline.spec.layers):
            reasons.append("the model has exits already")
        try:
            self._layers(outline.spec)
        except StageError as problem:
            reasons.append(problem.message)
        return reasons

    def _layers(self, spec: TransformerSpec) -> tuple[int, ...]:
        depth = len(spec.layers)
        if self.options.layers is not None:
            named = parse_layers(self.options.layers, depth - 1)
            if len(named) > MOST_EXITS:
                raise StageError(f"layers: {len(named)} exits, a graph can hold {MOST_EXITS}; name fewer layers")
            return named
        chosen = [index for index in range(depth - 1) if 3 * (index + 1) >= depth]
        if not chosen:
            raise StageError(f"a model of {depth} layers has none behind which an exit would save work")
        spaced = np.linspace(0, len(chosen) - 1, min(len(chosen), MOST_EXITS)).round().astype(int)
        return tuple(chosen[place] for place in spaced)

    def ensures(self, outline: Outline) -> Outline:
        exits = self._layers(outline.spec)
        layers = tuple(
            dataclasses.replace(layer, exit=Exit(self.options.criterion)) if index in exits else layer
            for index, layer in enumerate(outline.spec.layers)
        )
        return dataclasses.replace(outline, spec=dataclasses.replace(outline.spec, layers=layers))

    def apply(self, package: Package, context: Context) -> Change:
        from edgesdk.transformer.module import build, weights_of

        spec = self.ensures(context.outline(package)).spec
        module = build(spec, with_exits(spec, package.weights))
        heads = [parameter for name, parameter in module.named_parameters() if name.split(".")[-2] == "exit"]
        joint = self.options.training == "joint"
        fit(
            module, context, self.options, exit_loss(context, self.options), what=self.name,
            parameters=None if joint else heads, score=Score(module, context),
        )
        return Change(spec=spec, weights=weights_of(module))


def parse_layers(text: str, layers: int) -> tuple[int, ...]:
    """Layer indices "1,2,3", each below `layers`, in rising order.

    Raises:
        StageError: not numbers, out of range, or one twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 6 for word in words):
        raise StageError(f"layers {text[:100]!r}: expected indices with commas between them, such as 1,2,3")
    found = [int(word) for word in words]
    if len(set(found)) < len(found):
        raise StageError(f"layers {text[:100]!r}: a layer is named twice")
    if max(found) >= layers:
        raise StageError(f"layers {text[:100]!r}: the last index that is possible here is {layers - 1}")
    return tuple(sorted(found))


def with_exits(
    spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The weights with every missing exit as a copy of the classifier."""
    known = dict(weights)
    for index, layer in enumerate(spec.layers):
        for part in ("weight", "bias"):
            if layer.exit is not None:
                known.setdefault(f"layers.{index}.exit.{part}", known[f"classifier.{part}"])
    return known


def exit_loss(context: Context, options: ExitEarlyOptions) -> Loss:
    """Recovery loss of the last answer by the share `last`, the rest by that of the exits, weighted by depth; an exit
    also follows the last answer (whose gradient does not see that) by the share `own`."""
    import torch

    from edgesdk.stages.targets import classification_loss, soft_logits

    data = context.train
    assert data is not None and data.labels is not None
    soft = soft_logits(context.teacher, data, context)
    labels = torch.from_numpy(data.labels.copy())

    def loss(module: Transformer, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
        trace = module.trace(batch)
        target, hard = soft[rows.cpu()].to(rows.device), labels[rows.cpu()].to(rows.device)
        last = trace.output.float()
        exits = torch.zeros((), device=last.device)
        for index, logits in trace.exits.items():
            value = (1 - options.own) * classification_loss(logits.float(), target, hard, options)
            if options.own > 0:
                value = value + options.own * classification_loss(logits.float(), last.detach(), hard, options)
            exits = exits + (index + 1) * value
        exits = exits / sum(index + 1 for index in trace.exits)
        return options.last * classification_loss(last, target, hard, options) + (1 - options.last) * exits

    return loss


class Score:
    """Accuracy of the exits on the validation data, weighted by depth, less what the last answer lost."""

    def __init__(self, module: Transformer, context: Context) -> None:
        assert context.validation.labels is not None
        self.data, self.labels = context.validation, context.validation.labels
        self.exits = [index for index, layer in enumerate(module.spec.layers) if layer.exit is not None]
        self.first = float(self.accuracies(module)[-1])

    def accuracies(self, module: Transformer) -> NDArray[np.float64]:
        """Accuracy of each exit and, last, of the whole model."""
        import torch

        from edgesdk.stages.forward import predict

        def answers(batch: dict[str, Tensor]) -> Tensor:
            trace = module.trace(batch)
            return torch.stack([*(value.argmax(-1) for value in trace.exits.values()), trace.output.argmax(-1)], -1)

        found = predict(module, self.data.inputs, answers).numpy().astype(np.int64)
        return np.asarray((found == self.labels[:, None]).mean(0))

    def __call__(self, module: Transformer) -> float:
        accuracies = self.accuracies(module)
        exits = float(np.average(accuracies[:-1], weights=[index + 1 for index in self.exits]))
        return (exits + float(accuracies[-1])) / 2 - FINAL_WORSE * max(0.0, self.first - float(accuracies[-1]))
