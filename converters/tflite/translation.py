"""What the translations of operators share: the lowered graph, the file under construction, and names of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.front import Encoding, Graph, Linear, Operator
from edgesdk.converters.tflite.flatbuffer import TYPES, FlatbufferWriter, Quantization
from edgesdk.errors import UnsupportedOp

PLAIN = Quantization(np.ones(1, np.float32))
"""Scale 1, zero point 0: int8 numbers as they are."""


class Translation:
    """State of one translation; `skipped` are nodes that another node has taken over."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.writer = FlatbufferWriter()
        self.indices: dict[str, int] = {}
        self.quantized: dict[tuple[str, Encoding], int] = {}
        self.adjoint: set[str] = set()
        self.skipped: set[int] = set()
        self.consumers: dict[str, list[Linear | Operator]] = {}
        for node in graph.nodes:
            for name in (node.source,) if isinstance(node, Linear) else node.inputs:
                self.consumers.setdefault(name, []).append(node)
        for name in graph.inputs:
            self.indices[name] = self.writer.tensor(graph.shapes[name], graph.dtypes[name], name=name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.shapes[name]

    def sole_consumer(self, name: str) -> Linear | Operator | None:
        """The one node that reads `name`, if nothing else does."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def read(self, name: str) -> int:
        """Tensor of a value of the graph; int8 constants are numbers without a scale here.

        Raises:
            UnsupportedOp: the value is neither a constant nor made by an operator before, or TFLite has no such type.
        """
        if name not in self.indices:
            value = self.graph.constants.get(name)
            if value is None or value.dtype.name not in TYPES:
                found = "missing" if value is None else f"of type {value.dtype}"
                raise UnsupportedOp(f"value {name!r} is {found}")
            self.indices[name] = self.writer.constant(value, PLAIN if value.dtype == np.int8 else None)
        return self.indices[name]

    def result(self, name: str, dtype: str = "float32", quantization: Quantization | None = None) -> int:
        """New tensor for a value of the graph."""
        public = name if name in self.graph.outputs else ""
        self.indices[name] = self.writer.tensor(self.shape(name), dtype, quantization, public)
        return self.indices[name]

    def emit(self, op: str, inputs: Sequence[int], shape: Sequence[int], **options: Any) -> int:
        """An operator with a new float tensor in between, which has no name in the graph."""
        output = self.writer.tensor(shape)
        self.writer.operator(op, inputs, [output], **options)
        return output

    def integers(self, *values: int) -> int:
        """Constant int32 [n]: axes, permutations, sizes."""
        return self.writer.constant(np.array(values, np.int32))

    def scalar(self, value: float) -> int:
        return self.writer.constant(np.array(value, np.float32))

    def constant(self, name: str) -> NDArray[Any] | None:
        return self.graph.constants.get(name)
