"""`torch.nn.TransformerEncoder`: by itself (features in, hidden states out), or between an embedding and a head.

The second form is any module that has the attributes of `EncoderClassifier` and computes the same; that it does is
checked like every import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesdk.errors import ModelError
from edgesdk.transformer.importers.draft import Draft, linear, norm
from edgesdk.transformer.spec import Activation, FeatureEmbedding, Layer, TokenEmbedding, TransformerSpec

FAMILY = "torch"
COVERS = "torch.nn.TransformerEncoder, alone or in an edgesdk.transformer.importers.EncoderClassifier"
# max_length of an encoder by itself where the caller names no sequence: such a model has no length of its own.
DEFAULT_LENGTH = 128


class EncoderClassifier(nn.Module):
    """Tokens → embedding + positions → `nn.TransformerEncoder` → pooling → linear head.

    Args:
        embedding: table of the tokens [V, H].
        positions: learned positions, a parameter or a table [max_length, H].
        encoder: the layers; `batch_first` either way.
        pooling: `mean` of the tokens that are not padding, or the first token (`cls`).
        head: linear layer H → classes.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        positions: nn.Parameter | nn.Embedding,
        encoder: nn.TransformerEncoder,
        pooling: Literal["mean", "cls"],
        head: nn.Linear,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.positions = positions
        self.encoder = encoder
        self.pooling = pooling
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids int64 [B, S], attention_mask int64 [B, S] (1 = token, padding at the end) → logits [B, C]."""
        table = self.positions.weight if isinstance(self.positions, nn.Embedding) else self.positions
        hidden = self.embedding(input_ids) + table[: input_ids.shape[1]]
        hidden = run_encoder(self.encoder, hidden, attention_mask == 0)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weight = attention_mask[:, :, None].to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1)
        logits: Tensor = self.head(pooled)
        return logits


def run_encoder(encoder: nn.TransformerEncoder, hidden: Tensor, padding: Tensor | None) -> Tensor:
    """[B, S, H] → [B, S, H] whatever `batch_first` is; `padding` [B, S] is True at padding."""
    first: Any = encoder.layers[0]
    if first.self_attn.batch_first:
        return encoder(hidden, src_key_padding_mask=padding)  # type: ignore[no-any-return]
    return encoder(hidden.transpose(0, 1), src_key_padding_mask=padding).transpose(0, 1)  # type: ignore[no-any-return]


def covers(model: object) -> bool:
    return isinstance(model, nn.TransformerEncoder) or is_classifier(model)


def is_classifier(model: object) -> bool:
    """Whether a module has the attributes of `EncoderClassifier`."""
    return (
        isinstance(model, nn.Module)
        and isinstance(getattr(model, "encoder", None), nn.TransformerEncoder)
        and isinstance(getattr(model, "embedding", None), nn.Embedding)
        and isinstance(getattr(model, "positions", None), (Tensor, nn.Embedding))
        and isinstance(getattr(model, "head", None), nn.Linear)
        and hasattr(model, "pooling")
    )


def draft(model: Any, sequence: int | None) -> Draft:
    """Read an encoder or an encoder classifier in evaluation mode.

    Raises:
        ModelError: the encoder is made of something that is not covered.
    """
    if isinstance(model, nn.TransformerEncoder):
        encoder, prefix = model, ""
    else:
        encoder, prefix = model.encoder, "encoder."
    layers: list[Any] = list(encoder.layers)
    _refuse_uncovered(encoder, layers, prefix)
    weights: dict[str, Tensor] = {}
    parts: dict[str, nn.Module] = {}
    for index, block in enumerate(layers):
        weights |= _layer_weights(f"layers.{index}", block)
        parts[f"layers.{index}"] = block
    final_norm: Any = encoder.norm
    if final_norm is not None:
        weights |= norm("norm", final_norm)
        parts["norm"] = final_norm
    hidden = layers[0].self_attn.embed_dim
    common: dict[str, Any] = {
        "hidden": hidden,
        "layers": tuple(_layer(block) for block in layers),
        "norm": "pre" if layers[0].norm_first else "post",
        "norm_epsilon": float(layers[0].norm1.eps),
        "activation": _activation(layers[0], f"{prefix}layers.0"),
        "final_norm": final_norm is not None,
    }
    if encoder is model:
        features = FeatureEmbedding(max_length=sequence or DEFAULT_LENGTH)
        spec = TransformerSpec(embedding=features, pooling="none", **common)
        return Draft(spec, weights, lambda inputs: run_encoder(encoder, inputs["features"], None), parts)

    if model.pooling not in ("mean", "cls"):
        raise ModelError(f"{FAMILY} import: pooling is {model.pooling!r}, covered: 'mean', 'cls'")
    positions = model.positions.weight if isinstance(model.positions, nn.Embedding) else model.positions
    weights["embedding.tokens.weight"] = model.embedding.weight
    weights["embedding.positions.weight"] = positions
    weights |= linear("classifier", model.head)
    parts["classifier"] = model.head
    tokens = TokenEmbedding(vocabulary=model.embedding.num_embeddings, max_length=len(positions), norm=False)
    spec = TransformerSpec(embedding=tokens, pooling=model.pooling, classes=model.head.out_features, **common)

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = model(inputs["input_ids"], inputs["attention_mask"])
        return logits

    return Draft(spec, weights, forward, parts)


def _refuse_uncovered(encoder: nn.TransformerEncoder, layers: list[Any], prefix: str) -> None:
    if not layers:
        raise ModelError(f"{FAMILY} import: {prefix}layers is empty")
    first = layers[0]
    for index, block in enumerate(layers):
        where = f"{FAMILY} import: {prefix}layers.{index}"
        if not isinstance(block, nn.TransformerEncoderLayer):
            raise ModelError(f"{where} is {type(block).__name__}, covered: torch.nn.TransformerEncoderLayer")
        attention = block.self_attn
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            raise ModelError(f"{where}.self_attn has kdim, vdim, add_bias_kv or add_zero_attn, which are not covered")
        if block.norm_first != first.norm_first:
            raise ModelError(f"{where}.norm_first is {block.norm_first}, that of layer 0 is {first.norm_first}")
        if _activation(block, f"{prefix}layers.{index}") != _activation(first, f"{prefix}layers.0"):
            raise ModelError(f"{where}.activation is not that of layer 0; one activation for all layers is covered")
    if encoder.norm is not None and not isinstance(encoder.norm, nn.LayerNorm):
        raise ModelError(f"{FAMILY} import: {prefix}norm is {type(encoder.norm).__name__}, covered: LayerNorm")
    norms = [part for block in layers for part in (block.norm1, block.norm2)]
    norms += [encoder.norm] if encoder.norm is not None else []
    if len(epsilons := {part.eps for part in norms}) > 1:
        raise ModelError(
            f"{FAMILY} import: LayerNorms with different eps {sorted(epsilons)}; one for the whole model is covered",
            f"give {prefix}norm and all layers the same eps (layer_norm_eps)",
        )


def _activation(block: Any, where: str) -> Activation:
    """The activation of a layer: torch stores the function that a name stands for, or the user's callable."""
    activation = block.activation
    if activation in (functional.relu, torch.relu) or isinstance(activation, nn.ReLU):
        return "relu"
    if activation is functional.gelu:
        return "gelu"
    if isinstance(activation, nn.GELU):
        return "gelu_tanh" if activation.approximate == "tanh" else "gelu"
    raise ModelError(
        f"{FAMILY} import: {where}.activation is {activation!r}, covered: relu, gelu",
        'use activation="relu", "gelu" or torch.nn.GELU()',
    )


def _layer(block: Any) -> Layer:
    attention = block.self_attn
    return Layer(
        heads=attention.num_heads,
        kv_heads=attention.num_heads,
        head_size=attention.head_dim,
        ffn=block.linear1.out_features,
    )


def _layer_weights(prefix: str, block: Any) -> dict[str, Tensor]:
    """Weights of a layer; the fused projection [3·H, H] of torch is query, key and value, one below the other."""
    attention = block.self_attn
    hidden = attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if bias is None:
        bias = weight.new_zeros(3 * hidden)
    weights = {}
    for index, name in enumerate(("query", "key", "value")):
        rows = slice(index * hidden, (index + 1) * hidden)
        weights[f"{prefix}.attention.{name}.weight"] = weight[rows]
        weights[f"{prefix}.attention.{name}.bias"] = bias[rows]
    return {
        **weights,
        **linear(f"{prefix}.attention.output", attention.out_proj),
        **norm(f"{prefix}.attention.norm", block.norm1),
        **linear(f"{prefix}.ffn.up", block.linear1),
        **linear(f"{prefix}.ffn.down", block.linear2),
        **norm(f"{prefix}.ffn.norm", block.norm2),
    }
