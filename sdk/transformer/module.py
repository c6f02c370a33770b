"""The canonical Transformer in torch: one module for every family, built from a `TransformerSpec`.

Every tensor that quantization may touch passes through `tap(name, tensor)`: calibration observes there, fake
quantization replaces there. The names are those of `docs/architecture.md`, "Encodings".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgesdk.errors import PackageError
from edgesdk.transformer.dynamic import Trace, choose, straight_through
from edgesdk.transformer.module_parts import Attention, Embedding, FeedForward, Tap, make_norm, no_tap
from edgesdk.transformer.spec import Layer, TransformerSpec

__all__ = ["MASK", "Tap", "Transformer", "build", "no_tap", "run", "weights_of"]

# Added to the scores of padded positions. Large enough to vanish in softmax, small enough to quantize (HF's -3.4e38
# ruins every int8 scale it meets).
MASK = -100.0


class Block(nn.Module):
    """One layer, pre- or post-norm, with its gate and exit; `owner` is the block whose weights it shares."""

    def __init__(self, layer: Layer, spec: TransformerSpec, owner: Block | None) -> None:
        super().__init__()
        self.attention: Attention = owner.attention if owner else Attention(layer, spec)
        self.ffn: FeedForward = owner.ffn if owner else FeedForward(layer, spec)
        self.pre = spec.norm == "pre"
        if layer.gate:
            self.gate = nn.Linear(spec.hidden, 1)
        if layer.exit is not None and spec.classes is not None:
            self.exit = nn.Linear(spec.hidden, spec.classes)

    def forward(self, hidden: Tensor, mask: Tensor | None, prefix: str, tap: Tap) -> Tensor:
        if self.pre:
            hidden = hidden + self.attention(self.attention.norm(hidden), mask, f"{prefix}.attention", tap)
            wide: Tensor = hidden + self.ffn(self.ffn.norm(hidden), f"{prefix}.ffn", tap)
            return wide
        hidden = self.attention.norm(hidden + self.attention(hidden, mask, f"{prefix}.attention", tap))
        result: Tensor = self.ffn.norm(hidden + self.ffn(hidden, f"{prefix}.ffn", tap))
        return result


class Transformer(nn.Module):
    """The whole model. `forward(inputs)` takes the named inputs of the spec and gives its one output, each input
    leaving at the exit that it may leave at; `trace` runs every layer and gives every exit's answer."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = Embedding(spec)
        blocks: list[Block] = []
        for layer in spec.layers:
            blocks.append(Block(layer, spec, None if layer.share is None else blocks[layer.share]))
        self.layers = nn.ModuleList(blocks)
        if spec.final_norm:
            self.norm = make_norm(spec, spec.hidden)
        if spec.pooler:
            self.pooler = nn.Linear(spec.hidden, spec.hidden)
        if spec.classes is not None:
            self.classifier = nn.Linear(spec.hidden, spec.classes)

    def forward(self, inputs: Mapping[str, Tensor], tap: Tap = no_tap) -> Tensor:
        trace = self.trace(inputs, tap)
        return trace.output if self.training else choose(self.spec, trace)[0]

    def trace(self, inputs: Mapping[str, Tensor], tap: Tap = no_tap) -> Trace:
        """Everything that one pass gives: the last output, the logits of every exit, the logits of every gate. A gate
        decides in evaluation mode and weighs in training mode (see `straight_through`)."""
        attention_mask = inputs.get("attention_mask")
        first = next(value for name, value in inputs.items() if name != "attention_mask")
        hidden = self.embedding(first, tap)
        mask = self.mask(hidden, attention_mask)
        exits: dict[int, Tensor] = {}
        gates: dict[int, Tensor] = {}
        for index, (block, layer) in enumerate(zip(self.layers, self.spec.layers, strict=True)):
            assert isinstance(block, Block)
            result = block(hidden, mask, f"layers.{index}", tap)
            if layer.gate:
                pooled = tap(f"layers.{index}.gate.input", self.pool(hidden, attention_mask))
                gates[index] = tap(f"layers.{index}.gate", block.gate(pooled))[:, 0]
                # Under autocast gates come in bfloat16, while layers end in a sum or a norm of float32.
                runs = straight_through(gates[index], self.training)[:, None, None].to(hidden.dtype)
                result = torch.lerp(hidden, result, runs) if self.training else torch.where(runs > 0, result, hidden)
            hidden = tap(f"layers.{index}.result", result)
            if layer.exit is not None:
                final = self.norm(hidden) if self.spec.final_norm else hidden
                pooled = tap(f"layers.{index}.exit.input", self.pool(final, attention_mask))
                exits[index] = tap(f"layers.{index}.exit", block.exit(pooled))
        return Trace(self.head(hidden, attention_mask, tap), exits, gates)

    def mask(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, [B, 1, 1 or S, S]; None where every position sees every other."""
        mask = None if attention_mask is None else (1.0 - attention_mask[:, None, None, :].float()) * MASK
        if not self.spec.causal:
            return mask
        sequence = hidden.shape[1]
        later = torch.full((sequence, sequence), MASK, device=hidden.device).triu(1)
        return later if mask is None else torch.maximum(later + mask, torch.tensor(MASK, device=hidden.device))

    def head(self, hidden: Tensor, attention_mask: Tensor | None, tap: Tap) -> Tensor:
        """What comes behind the last layer: [B, S, H] → the output of the spec."""
        if self.spec.final_norm:
            hidden = self.norm(hidden)
        if self.spec.lm_head:
            return functional.linear(hidden, self.embedding.tokens.weight)
        if self.spec.pooling == "none":
            return hidden
        pooled = self.pool(hidden, attention_mask)
        if self.spec.pooler:
            pooled = tap("pooler", self.pooler(tap("pooler.input", pooled)))
            pooled = pooled.tanh() if self.spec.pooler_activation == "tanh" else pooled.relu()
        if self.spec.classes is None:
            return pooled
        return tap("classifier", self.classifier(tap("classifier.input", pooled)))

    def pool(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, S, H] → [B, H]: the first row, or the mean of the rows that are not padding (also where the model itself
        does not pool: gates need one row)."""
        if self.spec.pooling == "cls":
            return hidden[:, 0]
        if attention_mask is None:
            return hidden.mean(1)
        weight = attention_mask[:, :, None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


def build(spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]]) -> Transformer:
    """The module with these weights, in evaluation mode.

    Raises:
        PackageError: names or shapes of the weights are not those of the spec.
    """
    expected = spec.weight_shapes()
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))
        raise PackageError(f"weights do not fit the spec: {wrong[:4]}")
    module = Transformer(spec)
    # A shared layer's tensors appear under its own names too; they are the same tensors.
    state = {name: torch.from_numpy(np.array(weights[spec.stored(name)])) for name in module.state_dict()}
    module.load_state_dict(state)
    return module.eval()


def weights_of(module: Transformer) -> dict[str, NDArray[np.float32]]:
    """The weights as float32 arrays, in the order of the spec."""
    state = module.state_dict()
    return {name: state[name].detach().cpu().float().numpy().copy() for name in module.spec.weight_shapes()}


def run(module: Transformer, inputs: Mapping[str, NDArray[Any]], tap: Tap = no_tap, batch: int = 64) -> NDArray[Any]:
    """Outputs [N, …] of inputs [N, …], in batches, without gradients."""
    count = len(next(iter(inputs.values())))
    outputs = []
    with torch.inference_mode():
        for start in range(0, count, batch):
            rows = {name: np.array(value[start : start + batch]) for name, value in inputs.items()}
            part = {name: torch.from_numpy(value) for name, value in rows.items()}
            outputs.append(module(part, tap).float().cpu().numpy())
    return np.concatenate(outputs)
