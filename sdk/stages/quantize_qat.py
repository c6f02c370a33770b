"""`quantize.qat`: quantization-aware training: the model trains with the rounding that its artifacts will do.

The encodings start as `quantize.ptq` chooses them. Each pass rounds weights, token rows and activations to their grids
and lets gradients through unchanged (straight-through, Bengio et al. 2013, arXiv:1308.3432); scales of rows and of
static activations learn with the weights (LSQ, Esser et al. 2020, arXiv:1902.08153); zero points, multipliers of groups
and scales of tables stay. Dynamic activations take their range from each input, as DynamicQuantizeLinear does. What
comes out are encodings of the same kind and weights on their grids, so the graph is the model that was trained.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.distill import training_reasons
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.stages.train import TrainingOptions, fit


class QuantizeQatOptions(TrainingOptions):
    """`group` inputs share a 4-bit step (`row`: all of a row); `samples` rows of calibration data choose the first
    ranges; `embedding_bits` of the token table: by default 8 for w8…, 4 for w4…."""

    scheme: Literal["w8a8", "w8a8-dynamic", "w4a8", "w4a8-dynamic"] = "w8a8"
    group: Annotated[int, Field(strict=True, ge=1, le=1 << 16)] | Literal["row"] = 32
    embedding_bits: Literal[4, 8] | None = None
    samples: int = Field(default=256, ge=1, le=100_000)


class QuantizeQat(Stage):
    """Quantization-aware training to int8 and int4."""

    name: ClassVar[str] = "quantize.qat"
    options_type: ClassVar[type[Options]] = QuantizeQatOptions
    options: QuantizeQatOptions

    def requires(self, outline: Outline) -> list[str]:
        reasons = training_reasons(outline)
        if outline.scheme != "fp32":
            reasons = [reason for reason in reasons if "fp32 packages" not in reason]
            reasons.append(f"the package is {outline.scheme} already")
        return reasons

    def ensures(self, outline: Outline) -> Outline:
        return dataclasses.replace(outline, scheme=self.options.scheme)

    def apply(self, package: Package, context: Context) -> Change:
        from edgesdk.stages.fake_quantize import FakeQuantization
        from edgesdk.stages.targets import recovery_loss, validation_score
        from edgesdk.transformer.module import build

        options = self.options
        first = QuantizePtqOptions(
            scheme=options.scheme, group=options.group, embedding_bits=options.embedding_bits, samples=options.samples
        )
        start = QuantizePtq(first).apply(package, context).encodings
        assert start is not None
        module = build(package.spec, package.weights)
        fake = FakeQuantization(module, start)
        fit(
            module, context, options, recovery_loss(context, options, fake.tap), what=self.name, extra=fake.activations,
            score=lambda module: validation_score(context, module, fake.tap),
        )
        weights, encodings = fake.result()
        return Change(weights=weights, encodings=encodings)
