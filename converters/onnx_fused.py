"""The form that ONNX Runtime makes of a quantized graph when it loads it, made here instead: `QGemm`,
`DynamicQuantizeMatMul`, `MatMulIntegerToFloat`, `FusedMatMul` of the domain `com.microsoft`.

It computes the same and as fast, and loads in three quarters of the time (MiniLM's shape, ONNX Runtime 1.31, one
thread, CPU time: w8a8 0.71 of the package's graph, w8a8-dynamic 0.79; fp32 1.0). The price is a file that is no
standard ONNX: runtimes older than the one that wrote it may not know its operators.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgesdk.errors import ConvertError
from edgesdk.transformer.passes import FUSE_QUANTIZED, PASSES
from edgesdk.transformer.spec import TransformerSpec


def wants_fused(spec: TransformerSpec, scheme: str) -> bool:
    """Whether the artifact of such a package is the fused form."""
    return FUSE_QUANTIZED in spec.passes and PASSES[FUSE_QUANTIZED].objection(spec, scheme) is None


def fused(graph: bytes) -> tuple[bytes, str]:
    """The fused file and the requirement on the runtime that reads it, such as `>=1.31`.

    The level is the one without layouts of a CPU (`EXTENDED`): the file runs on x86 and ARM.

    Raises:
        ConvertError: ONNX Runtime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="edgesdk-onnx-") as folder:
        path = Path(folder) / "fused.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # ONNX Runtime raises its own hierarchy of C++ exceptions, without a public base
            raise ConvertError(f"onnx: ONNX Runtime cannot fuse the graph: {problem}") from problem
        return path.read_bytes(), ">=" + ".".join(onnxruntime.__version__.split(".")[:2])
