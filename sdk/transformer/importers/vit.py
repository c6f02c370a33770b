"""ViT of transformers 5.x: `ViTForImageClassification` and `ViTModel` (with its pooler, or the class token without).

The convolution over patches becomes a linear layer [H, c·p·p] in the order of `module_parts.Embedding.unfold`, which
is the order of the convolution's own weight [H, c, p, p].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from edgesdk.errors import ModelError
from edgesdk.transformer.importers.draft import (
    Draft,
    activation_of,
    classes_of,
    comes_from,
    labels_of,
    linear,
    norm,
    refuse_config,
)
from edgesdk.transformer.spec import Layer, PatchEmbedding, TransformerSpec

FAMILY = "vit"
MODULE = "transformers.models.vit.modeling_vit"
COVERS = "ViTForImageClassification, ViTModel (transformers)"


def covers(model: object) -> bool:
    return comes_from(model, MODULE, "ViTForImageClassification") or comes_from(model, MODULE, "ViTModel")


def draft(model: Any, sequence: int | None) -> Draft:
    """Read a ViT model in evaluation mode.

    Raises:
        ModelError: a configuration key asks for something that is not covered.
    """
    classification = comes_from(model, MODULE, "ViTForImageClassification")
    return read(FAMILY, model, model.vit if classification else model, classification)


def read(family: str, model: Any, vit: Any, classification: bool) -> Draft:
    """Read a model of ViT's build: `vit` is its body, `classification` says whether `model` has a classifier on it.

    Raises:
        ModelError: a configuration key asks for something that is not covered.
    """
    config = model.config
    activation = activation_of(family, config.hidden_act)
    pooler = vit.pooler is not None and not classification
    if pooler:
        _refuse_pooler(family, config)
    embeddings = vit.embeddings
    projection = embeddings.patch_embeddings.projection
    patch, size = _square(family, config.patch_size, "patch_size"), _square(family, config.image_size, "image_size")
    if projection.kernel_size != (patch, patch) or projection.stride != (patch, patch) or projection.padding != (0, 0):
        raise ModelError(f"{family} import: the patch projection {projection} does not cut patches of {patch}")
    if size % patch:
        refuse_config(family, "image_size", size, f"a multiple of patch_size {patch}")
    bias = projection.bias if projection.bias is not None else projection.weight.new_zeros(len(projection.weight))
    weights: dict[str, Tensor] = {
        "embedding.patches.weight": projection.weight.reshape(len(projection.weight), -1),
        "embedding.patches.bias": bias,
        "embedding.cls": embeddings.cls_token.reshape(-1),
        "embedding.positions.weight": embeddings.position_embeddings[0],
        **norm("norm", vit.layernorm),
    }
    distillation = getattr(embeddings, "distillation_token", None)  # of DeiT
    if distillation is not None:
        weights["embedding.distillation"] = distillation.reshape(-1)
    parts: dict[str, nn.Module] = {"embedding": embeddings}
    layers = []
    for index, block in enumerate(vit.layers):
        layers.append(_layer(block))
        weights |= _layer_weights(f"layers.{index}", block)
        parts[f"layers.{index}"] = block
    parts["norm"] = vit.layernorm
    if pooler:
        weights |= linear("pooler", vit.pooler.dense)
    if classification:
        weights |= linear("classifier", model.classifier)
        parts["classifier"] = model.classifier
    classes = classes_of(family, config) if classification else None
    spec = TransformerSpec(
        embedding=PatchEmbedding(
            channels=config.num_channels, size=size, patch=patch, distillation=distillation is not None
        ),
        hidden=config.hidden_size,
        layers=tuple(layers),
        norm="pre",
        norm_epsilon=float(config.layer_norm_eps),
        activation=activation,
        pooling="cls",
        final_norm=True,
        pooler=pooler,
        classes=classes,
    )

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output = model(pixel_values=inputs["pixel_values"], return_dict=True)
        value: Tensor
        if classification:
            value = output.logits
        elif pooler:
            value = output.pooler_output
        else:
            value = output.last_hidden_state[:, 0]
        return value

    return Draft(spec, weights, forward, parts, labels_of(config, classes) if classes else None)


def _refuse_pooler(family: str, config: Any) -> None:
    if config.pooler_act != "tanh":
        refuse_config(family, "pooler_act", config.pooler_act, "tanh")
    if config.pooler_output_size != config.hidden_size:
        refuse_config(family, "pooler_output_size", config.pooler_output_size, f"hidden_size {config.hidden_size}")


def _square(family: str, value: Any, key: str) -> int:
    """The side of a square size, given as a number or as a pair of equal numbers."""
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        refuse_config(family, key, value, "a square")
    return int(sides.pop())


def _layer(block: Any) -> Layer:
    heads = block.attention.num_attention_heads
    return Layer(heads=heads, kv_heads=heads, head_size=block.attention.head_dim, ffn=block.mlp.fc1.out_features)


def _layer_weights(prefix: str, block: Any) -> dict[str, Tensor]:
    return {
        **linear(f"{prefix}.attention.query", block.attention.q_proj),
        **linear(f"{prefix}.attention.key", block.attention.k_proj),
        **linear(f"{prefix}.attention.value", block.attention.v_proj),
        **linear(f"{prefix}.attention.output", block.attention.o_proj),
        **norm(f"{prefix}.attention.norm", block.layernorm_before),
        **linear(f"{prefix}.ffn.up", block.mlp.fc1),
        **linear(f"{prefix}.ffn.down", block.mlp.fc2),
        **norm(f"{prefix}.ffn.norm", block.layernorm_after),
    }
