"""The four forms of a linear layer as TFLite operators.

    fp32           FULLY_CONNECTED
    w8a8           QUANTIZE → FULLY_CONNECTED int8 (per-channel weights, int32 bias) → DEQUANTIZE
    w8             DEQUANTIZE of the constant int8 weight, which a runtime does once → FULLY_CONNECTED
    w8a8-dynamic   hybrid FULLY_CONNECTED: float in and out, int8 per-channel weights

A Relu behind the layer becomes its fused activation: in `w8a8` it clamps the int8 result at the zero point, which is
the same as Relu behind the dequantization.
"""

from __future__ import annotations

import numpy as np

from edgesdk.converters.front import Encoding, Linear, Operator
from edgesdk.converters.tflite.flatbuffer import Quantization
from edgesdk.converters.tflite.translation import Translation
from edgesdk.errors import UnsupportedOp

NO_ACTIVATION, RELU = 0, 1
"""`ActivationFunctionType` of the schema."""


def linear(translation: Translation, node: Linear) -> None:
    """Translate one linear layer.

    Raises:
        UnsupportedOp: its input is not [rows, K].
    """
    if len(translation.shape(node.source)) != 2:
        raise UnsupportedOp(f"linear layer {node.name!r}: input of rank {len(translation.shape(node.source))}, not 2")
    writer, result, activation = translation.writer, node.result, NO_ACTIVATION
    following = translation.sole_consumer(result)
    if isinstance(following, Operator) and following.op == "Relu":
        translation.skipped.add(id(following))
        result, activation = following.outputs[0], RELU
    options = {"fusedActivationFunction": activation}
    if node.form == "w8a8":
        _static(translation, node, result, activation)
        return
    if node.form == "fp32":
        weight = writer.constant(node.weight)
    else:
        assert node.weight_scale is not None
        weight = writer.constant(node.weight, Quantization(node.weight_scale))
        if node.form == "w8":
            weight = translation.emit("DEQUANTIZE", [weight], node.weight.shape)
        else:
            options["asymmetricQuantizeInputs"] = True
    inputs = [translation.read(node.source), weight, writer.constant(node.bias)]
    writer.operator("FULLY_CONNECTED", inputs, [translation.result(result)], **options)


def _static(translation: Translation, node: Linear, result: str, activation: int) -> None:
    assert node.weight_scale is not None and node.input is not None and node.output is not None
    writer = translation.writer
    bias_scale = np.float32(node.input.scale) * node.weight_scale
    inputs = [
        quantize(translation, node.source, node.input),
        writer.constant(node.weight, Quantization(node.weight_scale)),
        writer.constant(node.bias, Quantization(bias_scale.astype(np.float32))),
    ]
    integers = writer.tensor(translation.shape(node.result), "int8", _per_tensor(node.output))
    writer.operator("FULLY_CONNECTED", inputs, [integers], fusedActivationFunction=activation)
    # The second of a low-rank pair reads the integers of the first one as they are.
    translation.quantized[result, node.output] = integers
    writer.operator("DEQUANTIZE", [integers], [translation.result(result)])


def quantize(translation: Translation, name: str, encoding: Encoding) -> int:
    """int8 tensor of a float value; made once for all layers that read it with the same encoding."""
    key = (name, encoding)
    if key not in translation.quantized:
        integers = translation.writer.tensor(translation.shape(name), "int8", _per_tensor(encoding))
        translation.writer.operator("QUANTIZE", [translation.read(name)], [integers])
        translation.quantized[key] = integers
    return translation.quantized[key]


def _per_tensor(encoding: Encoding) -> Quantization:
    return Quantization(np.array([encoding.scale], np.float32), encoding.zero_point)
