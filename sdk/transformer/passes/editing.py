"""What graph passes share: scopes of a model (the main graph and branches within it), who makes and who reads a value,
constants, and cleaning up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


def scopes(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, then the branches of its nodes, those within them included."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from scopes(attribute.g)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


class Editor:
    """A copy of a model under change. Names are unique over all scopes of a package graph, so each value has one maker,
    and `readers` counts over all scopes; outputs of a scope count as readers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.scopes = list(scopes(self.model.graph))
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.refresh()

    def refresh(self) -> None:
        """Look at makers and readers anew."""
        self.maker = {name: node for scope in self.scopes for node in scope.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for scope in self.scopes:
            for node in scope.node:
                for name in node.input:
                    self.readers.setdefault(name, []).append(node)
        self.results = Counter(value.name for scope in self.scopes for value in scope.output)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a value which is no output of a scope, if there is just one."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and not self.results[name] else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of an initializer; None for anything else."""
        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def add(self, name: str, value: NDArray[Any]) -> str:
        """An initializer, made once for a name."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def reroute(self, old: str, new: str) -> None:
        """Whoever reads `old` reads `new`; `old` must be no output of a scope."""
        for node in self.readers.pop(old, []):
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
            self.readers.setdefault(new, []).append(node)

    def replace(self, scope: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
        """Other nodes for a scope, in order. They are copied: branches within it have to be changed before."""
        kept = list(nodes)
        del scope.node[:]
        scope.node.extend(kept)

    def remove(self, unwanted: Iterable[onnx.NodeProto]) -> None:
        """Take nodes out of their scopes."""
        names = {node.output[0] for node in unwanted}
        for scope in reversed(self.scopes):
            if any(node.output[0] in names for node in scope.node):
                self.replace(scope, [node for node in scope.node if node.output[0] not in names])
        self.scopes = list(scopes(self.model.graph))
        self.refresh()

    def finish(self) -> onnx.ModelProto:
        """The model, with the initializers that something still reads."""
        self.scopes = list(scopes(self.model.graph))
        self.refresh()
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(
            tensor for name, tensor in self.initializers.items() if name in self.readers or self.results[name]
        )
        return self.model
