"""Llama-like decoders of transformers 5.x: RMSNorm, rotary positions, SwiGLU, shared key/value heads.

`LlamaForCausalLM` with tied embeddings → logits of the next token at every position, by the token table. `LlamaModel` →
hidden states. Linear layers without a bias get zeros.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgesdk.transformer.importers.draft import (
    Draft,
    comes_from,
    decoder_forward,
    linear,
    refuse_config,
    refuse_untied,
)
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

FAMILY = "llama"
MODULE = "transformers.models.llama.modeling_llama"
COVERS = "LlamaForCausalLM (tied), LlamaModel (transformers)"
LONGEST = 2048
"""Tokens that are kept of longer models: tables of angles are stored for each position, and imports are checked at the
full length. A `sequence` above it keeps as many."""


def covers(model: object) -> bool:
    return comes_from(model, MODULE, "LlamaForCausalLM") or comes_from(model, MODULE, "LlamaModel")


def draft(model: Any, sequence: int | None) -> Draft:
    """Read a Llama model in evaluation mode.

    Raises:
        ModelError: a configuration key asks for something that is not covered.
    """
    config = model.config
    if config.hidden_act not in ("silu", "swish"):
        refuse_config(FAMILY, "hidden_act", config.hidden_act, "silu")
    rope = config.rope_parameters
    if rope.get("rope_type") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        refuse_config(FAMILY, "rope_parameters", rope, "rope_type default")
    head = comes_from(model, MODULE, "LlamaForCausalLM")
    llama = model.model if head else model
    if head:
        refuse_untied(FAMILY, config, model.lm_head, llama.embed_tokens)
    longest = min(config.max_position_embeddings, max(LONGEST, sequence or 0))
    weights: dict[str, Tensor] = {
        "embedding.tokens.weight": llama.embed_tokens.weight, "norm.weight": llama.norm.weight
    }
    parts: dict[str, nn.Module] = {"embedding": llama.embed_tokens}
    layers = []
    for index, block in enumerate(llama.layers):
        layers.append(_layer(block))
        weights |= _layer_weights(f"layers.{index}", block)
        parts[f"layers.{index}"] = block
    parts["norm"] = llama.norm
    spec = TransformerSpec(
        embedding=TokenEmbedding(
            vocabulary=llama.embed_tokens.num_embeddings, max_length=longest, norm=False, positions="rope",
            rope_base=float(rope["rope_theta"]),
        ),
        hidden=config.hidden_size,
        layers=tuple(layers),
        norm="pre",
        norm_kind="rms",
        norm_epsilon=float(config.rms_norm_eps),
        activation="swiglu",
        pooling="none",
        final_norm=True,
        causal=True,
        lm_head=head,
    )

    shorter = f"sequences of up to {longest} tokens are kept, of {config.max_position_embeddings}"
    notes = (shorter,) if longest < config.max_position_embeddings else ()
    return Draft(spec, weights, decoder_forward(model, head), parts, notes=notes)


def _layer(block: Any) -> Layer:
    attention = block.self_attn
    size = attention.head_dim
    heads, shared = attention.q_proj.out_features // size, attention.k_proj.out_features // size
    return Layer(heads=heads, kv_heads=shared, head_size=size, ffn=block.mlp.up_proj.out_features)


def _layer_weights(prefix: str, block: Any) -> dict[str, Tensor]:
    attention, ffn = block.self_attn, block.mlp
    return {
        f"{prefix}.attention.norm.weight": block.input_layernorm.weight,
        **linear(f"{prefix}.attention.query", attention.q_proj),
        **linear(f"{prefix}.attention.key", attention.k_proj),
        **linear(f"{prefix}.attention.value", attention.v_proj),
        **linear(f"{prefix}.attention.output", attention.o_proj),
        f"{prefix}.ffn.norm.weight": block.post_attention_layernorm.weight,
        **linear(f"{prefix}.ffn.glu", ffn.gate_proj),
        **linear(f"{prefix}.ffn.up", ffn.up_proj),
        **linear(f"{prefix}.ffn.down", ffn.down_proj),
    }
