"""Smoothing: move the spread of activation channels into weights without changing the function (SmoothQuant, Xiao et
al. 2022, arXiv:2211.10438; equalization of pairs after Nagel et al. 2019, arXiv:1906.04721).

Channel c of an activation is divided by s and the columns of the weights that read it are multiplied by s, with
s = max|x|^alpha / max|w|^(1 − alpha). That is exact where what makes the channel can be divided too:

- the LayerNorm before attention and before the feed-forward part, in pre-norm models only. In a post-norm model the
  norm's output is the residual stream as well, which nothing may scale: those two are left as they are;
- value → context → output, per channel of a key/value head (softmax mixes positions, not channels);
- query and key, one divided and the other multiplied, so that both have the same peak;
- up → down through ReLU, which lets a positive factor pass. GELU does not: left as it is.

Layers that share weights are smoothed once, by the largest peaks of all their uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgesdk.transformer.spec import Layer, TransformerSpec

Weights = dict[str, NDArray[np.float32]]
Peak = Callable[[str], NDArray[np.float32]]  # part of a layer → largest |x| of each channel
LARGEST_FACTOR = 1e3


def smoothed_activations(spec: TransformerSpec) -> frozenset[str]:
    """The activations whose peaks `smooth` needs."""
    parts = ("attention.input", "attention.query", "attention.key", "attention.context", "ffn.input", "ffn.hidden")
    return frozenset(f"layers.{index}.{part}" for index in range(len(spec.layers)) for part in parts)


def smooth(
    spec: TransformerSpec,
    weights: Mapping[str, NDArray[np.float32]],
    peaks: Mapping[str, NDArray[np.float32]],
    alpha: float,
) -> Weights:
    """The weights of the same function with flatter activations. `peaks`: activation → largest |x| of each channel."""
    result = dict(weights)
    for index, layer in enumerate(spec.layers):
        if layer.share is not None:
            continue
        uses = [index, *(other for other, entry in enumerate(spec.layers) if entry.share == index)]

        def peak(part: str, uses: list[int] = uses) -> NDArray[np.float32]:
            return np.asarray(np.max([peaks[f"layers.{use}.{part}"] for use in uses], axis=0), np.float32)

        _smooth_layer(spec, layer, f"layers.{index}", result, peak, alpha)
    return result


def _smooth_layer(
    spec: TransformerSpec, layer: Layer, prefix: str, weights: Weights, peak: Peak, alpha: float
) -> None:
    heads, kv_heads, size = layer.heads, layer.kv_heads, layer.head_size

    def first(part: str) -> str:
        return f"{prefix}.{part}.v" if part in layer.ranks else f"{prefix}.{part}"

    def last(part: str) -> str:
        return f"{prefix}.{part}.u" if part in layer.ranks else f"{prefix}.{part}"

    def columns(parts: tuple[str, ...]) -> NDArray[np.float32]:
        return np.asarray(np.max([np.abs(weights[f"{first(part)}.weight"]).max(0) for part in parts], axis=0))

    def per_head(values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[heads · D] → [kv_heads · D]: the largest of the heads that share one."""
        return np.asarray(values.reshape(kv_heads, -1, size).max(1).reshape(-1))

    def wide(values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[kv_heads · D] → [heads · D]."""
        return np.repeat(values.reshape(kv_heads, size), heads // kv_heads, axis=0).reshape(-1)

    if spec.norm == "pre":
        for norm, parts in (
            ("attention", ("attention.query", "attention.key", "attention.value")), ("ffn", ("ffn.up",))
        ):
            scale = factors(peak(f"{norm}.input"), columns(parts), alpha)
            for name in (f"{prefix}.{norm}.norm.weight", f"{prefix}.{norm}.norm.bias"):
                weights[name] = weights[name] / scale
            for part in parts:
                _scale_columns(weights, first(part), scale)
    scale = factors(per_head(peak("attention.context")), per_head(columns(("attention.output",))), alpha)
    _divide_rows(weights, last("attention.value"), scale)
    _scale_columns(weights, first("attention.output"), wide(scale))
    # alpha 1/2 of the two peaks gives both the same one.
    scale = factors(per_head(peak("attention.query")), peak("attention.key"), 0.5)
    _divide_rows(weights, last("attention.query"), wide(scale))
    _divide_rows(weights, last("attention.key"), 1.0 / scale)
    if spec.activation == "relu":
        scale = factors(peak("ffn.hidden"), columns(("ffn.down",)), alpha)
        _divide_rows(weights, last("ffn.up"), scale)
        _scale_columns(weights, first("ffn.down"), scale)


def factors(
    activation: NDArray[np.float32], weight: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """max|x|^alpha / max|w|^(1 − alpha) of each channel, within [1/1000, 1000]; 1 for channels that carry nothing."""
    carried = (activation > 0) & (weight > 0)
    x, w = np.where(carried, activation, 1.0), np.where(carried, weight, 1.0)
    scale = np.power(x, alpha, dtype=np.float64) / np.power(w, 1.0 - alpha, dtype=np.float64)
    scale = np.clip(scale, 1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
    return np.where(carried, scale, 1.0).astype(np.float32)


def _divide_rows(weights: Weights, name: str, scale: NDArray[np.float32]) -> None:
    weights[f"{name}.weight"] = (weights[f"{name}.weight"] / scale[:, None]).astype(np.float32)
    weights[f"{name}.bias"] = (weights[f"{name}.bias"] / scale).astype(np.float32)


def _scale_columns(weights: Weights, name: str, scale: NDArray[np.float32]) -> None:
    weights[f"{name}.weight"] = (weights[f"{name}.weight"] * scale).astype(np.float32)
