"""Nodes and initializers of an ONNX graph while it is written, branches of `If` included.

All initializers lie in the main graph, whatever branch reads them, so that each is stored once and a package finds its
float weights there. Names are unique over the whole model: branches may read what encloses them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Appends to the innermost open scope; `root` appends to the main graph, for what many branches share."""

    def __init__(self) -> None:
        self.scopes: list[list[onnx.NodeProto]] = [[]]
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.made: set[str] = set()

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.scopes[-1].append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def root(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node of the main graph, made once; its inputs must lie there too."""
        if output not in self.made:
            self.made.add(output)
            self.scopes[0].append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def open(self) -> None:
        """Begin a branch."""
        self.scopes.append([])

    def close(self, name: str, outputs: list[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """End the branch that was begun last."""
        return helper.make_graph(self.scopes.pop(), name, [], outputs)

    def branch(
        self, condition: str, outputs: list[str], yes: onnx.GraphProto, no: onnx.GraphProto
    ) -> None:
        """An `If` in the innermost scope."""
        node = helper.make_node("If", [condition], outputs, name=outputs[0], then_branch=yes, else_branch=no)
        self.scopes[-1].append(node)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def four_bit_constant(self, name: str, value: NDArray[Any]) -> str:
        """An INT4 (signed values) or UINT4 (uint8 values) initializer: two numbers a byte."""
        if name not in self.initializers:
            kind = TensorProto.INT4 if value.dtype == np.int8 else TensorProto.UINT4
            self.initializers[name] = helper.make_tensor(name, kind, value.shape, _packed(value), raw=True)
        return name

    def integers(self, *values: int) -> str:
        return self.constant("shape." + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))


def _packed(value: NDArray[Any]) -> bytes:
    """Nibbles of [n] values, the first in the low half of its byte (ONNX IR, "4-bit integer types")."""
    nibbles = value.reshape(-1).astype(np.int8).view(np.uint8) & 0xF
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()
