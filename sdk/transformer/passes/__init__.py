"""Graph passes: ONNX → ONNX, function-preserving, applied in the order of `spec.passes` when a graph is written.

`fuse_quantized` changes no package graph, which holds standard ONNX only: the onnx converter reads the name and ships
the form that ONNX Runtime makes of the graph (`converters/onnx_fused.py`).

Not built, because they were measured to lose (MiniLM's shape, 16 and 64 tokens, ONNX Runtime 1.31 on x86, one thread,
CPU time): residual sum and LayerNorm as `SkipLayerNormalization` (5 to 35 % more), attention as `MultiHeadAttention`
(1 % less to 8 % more), bias and GELU as `BiasGelu` (2 % less to 5 % more, since Gemm adds the bias for nothing). TFLite
and NEON fuse what suits their kernels themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from edgesdk.errors import PackageError
from edgesdk.transformer.passes.fold_constants import fold_constants
from edgesdk.transformer.passes.layout import drop_identities, merge_reshapes
from edgesdk.transformer.passes.merge_qkv import merge_qkv
from edgesdk.transformer.spec import TransformerSpec

FUSE_QUANTIZED = "fuse_quantized"


@dataclass(frozen=True)
class Pass:
    """`apply` rewrites a graph; `objection` says why the pass changes nothing in a graph of this spec and scheme, or is
    None. Not `by_default`: graphs as EdgeSDK writes them give it nothing to do, other passes and stages may."""

    apply: Callable[[onnx.ModelProto], onnx.ModelProto]
    objection: Callable[[TransformerSpec, str], str | None]
    by_default: bool = True


def _no_float_query(spec: TransformerSpec, scheme: str) -> str | None:
    if scheme != "fp32":
        return f"{scheme}: integers and encodings are the package's, the attention scale stays a node"
    names = [spec.stored(f"layers.{index}.attention.query") for index in range(len(spec.layers))]
    sparse = [name in spec.sparse or f"{name}.u" in spec.sparse for name in names]
    return "the query weights are sparse: scaled ones would be dense" if all(sparse) else None


def _no_plain_projections(spec: TransformerSpec, scheme: str) -> str | None:
    if scheme != "fp32":
        return f"{scheme}: one matrix for query, key and value was measured to be slower in ONNX Runtime"
    parts = ("attention.query", "attention.key", "attention.value")
    for index, layer in enumerate(spec.layers):
        stored = [spec.stored(f"layers.{index}.{part}") for part in parts]
        if not any(part in layer.ranks for part in parts) and not any(name in spec.sparse for name in stored):
            return None
    return "query, key or value of every layer is a low-rank pair or sparse"


def _nothing_gained(spec: TransformerSpec, scheme: str) -> str | None:
    if scheme == "fp32":
        return "fp32: ONNX Runtime was measured to load the fused form no faster"
    if scheme.startswith("w4"):
        return f"{scheme}: the fused form would hold its weights in 8 bits"
    return "sparse weights would be stored dense" if spec.sparse else None


PASSES: dict[str, Pass] = {
    "fold_constants": Pass(fold_constants, _no_float_query),
    "merge_qkv": Pass(merge_qkv, _no_plain_projections),
    "drop_identities": Pass(drop_identities, lambda spec, scheme: None, by_default=False),
    "merge_reshapes": Pass(merge_reshapes, lambda spec, scheme: None, by_default=False),
    FUSE_QUANTIZED: Pass(lambda model: model, _nothing_gained),
}
"""In the order in which they are best applied."""


def apply_passes(model: onnx.ModelProto, spec: TransformerSpec) -> onnx.ModelProto:
    """The model after all passes of its spec.

    Raises:
        PackageError: the spec names a pass that does not exist.
    """
    for name in spec.passes:
        if name not in PASSES:
            raise PackageError(f"transformer: unknown graph pass {name!r}", "known: " + ", ".join(PASSES))
        model = PASSES[name].apply(model)
    return model
