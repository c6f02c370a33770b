"""GPT-2 of transformers 5.x: a decoder.

`GPT2LMHeadModel` → logits of the next token at every position, by the token table. `GPT2Model` → hidden states.
Its `Conv1D` layers hold [K, N] and become [N, K]; `c_attn` is query, key and value side by side. What
`scale_attn_weights` and `scale_attn_by_inverse_layer_idx` make of the scores is folded into the query.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgesdk.transformer.importers.draft import (
    Draft,
    activation_of,
    comes_from,
    decoder_forward,
    norm,
    refuse_config,
    refuse_untied,
)
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

FAMILY = "gpt2"
MODULE = "transformers.models.gpt2.modeling_gpt2"
COVERS = "GPT2LMHeadModel, GPT2Model (transformers)"


def covers(model: object) -> bool:
    return comes_from(model, MODULE, "GPT2LMHeadModel") or comes_from(model, MODULE, "GPT2Model")


def draft(model: Any, sequence: int | None) -> Draft:
    """Read a GPT-2 model in evaluation mode.

    Raises:
        ModelError: a configuration key asks for something that is not covered.
    """
    config = model.config
    activation = activation_of(FAMILY, config.activation_function, key="activation_function")
    if config.add_cross_attention:
        refuse_config(FAMILY, "add_cross_attention", True, "False (decoders without an encoder)")
    head = comes_from(model, MODULE, "GPT2LMHeadModel")
    gpt = model.transformer if head else model
    if head:
        refuse_untied(FAMILY, config, model.lm_head, gpt.wte)
    weights: dict[str, Tensor] = {
        "embedding.tokens.weight": gpt.wte.weight,
        "embedding.positions.weight": gpt.wpe.weight,
        **norm("norm", gpt.ln_f),
    }
    parts: dict[str, nn.Module] = {"embedding": gpt.drop}  # the sum of tokens and positions passes through it
    layers = []
    for index, block in enumerate(gpt.h):
        layers.append(_layer(block))
        weights |= _layer_weights(f"layers.{index}", block)
        parts[f"layers.{index}"] = block
    parts["norm"] = gpt.ln_f
    spec = TransformerSpec(
        embedding=TokenEmbedding(
            vocabulary=gpt.wte.num_embeddings, max_length=gpt.wpe.num_embeddings, norm=False
        ),
        hidden=config.n_embd,
        layers=tuple(layers),
        norm="pre",
        norm_epsilon=float(config.layer_norm_epsilon),
        activation=activation,
        pooling="none",
        final_norm=True,
        causal=True,
        lm_head=head,
    )
    return Draft(spec, weights, decoder_forward(model, head), parts)


def _layer(block: Any) -> Layer:
    heads = block.attn.num_heads
    return Layer(heads=heads, kv_heads=heads, head_size=block.attn.head_dim, ffn=block.mlp.c_fc.nf)


def _layer_weights(prefix: str, block: Any) -> dict[str, Tensor]:
    attention = block.attn
    query, key, value = attention.c_attn.weight.chunk(3, dim=1)
    query_bias, key_bias, value_bias = attention.c_attn.bias.chunk(3)
    scale = attention.scaling * attention.head_dim**0.5  # 1 but for unusual settings: the spec divides by √D itself
    return {
        f"{prefix}.attention.query.weight": query.T * scale,
        f"{prefix}.attention.query.bias": query_bias * scale,
        f"{prefix}.attention.key.weight": key.T,
        f"{prefix}.attention.key.bias": key_bias,
        f"{prefix}.attention.value.weight": value.T,
        f"{prefix}.attention.value.bias": value_bias,
        **_conv1d(f"{prefix}.attention.output", attention.c_proj),
        **norm(f"{prefix}.attention.norm", block.ln_1),
        **_conv1d(f"{prefix}.ffn.up", block.mlp.c_fc),
        **_conv1d(f"{prefix}.ffn.down", block.mlp.c_proj),
        **norm(f"{prefix}.ffn.norm", block.ln_2),
    }


def _conv1d(name: str, layer: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.weight.T, f"{name}.bias": layer.bias}
