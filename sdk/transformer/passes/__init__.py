"""Graph passes: ONNX → ONNX, function-preserving, applied in the order of `spec.passes` when a graph is written.

`fuse_quantized` changes no package graph, which holds standard ONNX only: the onnx converter reads the name and ships
the form that ONNX Runtime makes of the graph (`converters/onnx_fused.py`).

Not built, because they were measured to lose (MiniLM's shape, 16 and 64 tokens, ONNX Runtime 1.31 on x86, one thread,
CPU time): residual sum and LayerNorm as `SkipLayerNormalization` (5 to 35 % more), attention as `MultiHeadAttention`
(1 % less to 8 % more), bias and GELU as `BiasGelu` (2 % less to 5 % more, since Gemm adds the bias for nothing). TFLite
and NEON fuse what suits their kernels themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesdk.errors import PackageError
from edgesdk.transformer.spec import TransformerSpec

if TYPE_CHECKING:
    import onnx

FUSE_QUANTIZED = "fuse_quantized"


@dataclass(frozen=True)
class Pass:
    """`objection` says why the pass changes nothing in a graph of this spec and scheme, or is None. Not `by_default`:
    graphs as EdgeSDK writes them give it nothing to do, other passes may. `module` holds the function `name`, and is
    loaded on first use, since plans ask for objections only; None where the package's graph stays as it is."""

    name: str
    module: str | None
    objection: Callable[[TransformerSpec, str], str | None]
    by_default: bool = True

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The rewritten graph; `model` is left alone."""
        if self.module is None:
            return model
        function = getattr(importlib.import_module(f"edgesdk.transformer.passes.{self.module}"), self.name)
        rewritten: onnx.ModelProto = function(model)
        return rewritten


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
    entry.name: entry
    for entry in (
        Pass("fold_constants", "fold_constants", _no_float_query),
        Pass("merge_qkv", "merge_qkv", _no_plain_projections),
        Pass("drop_identities", "layout", lambda spec, scheme: None, by_default=False),
        Pass("merge_reshapes", "layout", lambda spec, scheme: None, by_default=False),
        Pass(FUSE_QUANTIZED, None, _nothing_gained),
    )
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
