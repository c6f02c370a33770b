"""Adapters of Python runtimes: load a model, make feeds from raw rows, run one inference on one thread."""

import os
from abc import ABC, abstractmethod
from typing import Any

from edgesdk.harness.worker.store import safe_parts

DTYPES = {"float32": "<f4", "int64": "<i8", "int32": "<i4"}


class Runtime(ABC):
    """One loaded model. `document` is artifact.json; rows are numbered from 0 after `set_inputs`."""

    def __init__(self, folder: str, document: "dict[str, Any]") -> None:
        self.document = document
        name = document["runtime"].get("model", document["files"][0]["path"])
        self.model = os.path.join(folder, *safe_parts(name))
        self.feeds = []  # type: list[Any]
        self.import_library()

    @abstractmethod
    def import_library(self) -> None:
        """Import the runtime's package; apart from `load`, so that Python's start does not count as loading."""

    @abstractmethod
    def load(self) -> None:
        """Read the model and prepare it to run."""

    def unload(self) -> None:
        """Let go of what `load` made, so that a model that is loaded again is in memory once."""
        self.__dict__.pop("session", None)
        self.__dict__.pop("interpreter", None)

    @abstractmethod
    def infer(self, row: int) -> "list[Any]":
        """Outputs of one row, in the artifact's order."""

    def set_inputs(self, data: bytes, n: int) -> None:
        """Make the feeds of n rows from a raw block."""
        self.feeds = [self.feed(rows) for rows in zip(*self._arrays(data, n))]  # noqa: B905

    def feed(self, rows: "tuple[Any, ...]") -> "Any":
        """What `infer` needs of one row: arrays [1, *shape[1:]], in the artifact's order."""
        return rows

    def _arrays(self, data: bytes, n: int) -> "list[list[Any]]":
        import numpy as np

        blocks = []
        start = 0
        for tensor in self.document["inputs"]:
            shape = (n, 1) + tuple(tensor["shape"][1:])
            count = int(np.prod(shape))
            dtype = np.dtype(DTYPES[tensor["dtype"]])
            block = np.frombuffer(data, dtype, count, start).reshape(shape)
            start += count * dtype.itemsize
            blocks.append(list(block))
        if start != len(data):
            raise ValueError(f"input block has {len(data)} bytes, expected {start}")
        return blocks


class OnnxRuntime(Runtime):
    """ONNX Runtime, CPU, one thread; trailing padding is cut where the artifact names its mask."""

    def import_library(self) -> None:
        import onnxruntime

        self.library = onnxruntime

    def load(self) -> None:
        options = self.library.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = self.library.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        self.names = [tensor["name"] for tensor in self.document["outputs"]]

    def feed(self, rows: "tuple[Any, ...]") -> "Any":
        tensors = self.document["inputs"]
        feeds = {tensor["name"]: row for tensor, row in zip(tensors, rows)}  # noqa: B905
        mask = self.document.get("length_input")
        if mask is None or not self._outputs_are_pooled(feeds[mask].shape[1]):
            return feeds
        extent = feeds[mask].shape[1]
        used = feeds[mask][0].nonzero()[0]
        length = int(used[-1]) + 1 if len(used) else 1
        return {name: row[:, :length] if _has_extent(row, extent) else row for name, row in feeds.items()}

    def infer(self, row: int) -> "list[Any]":
        outputs = self.session.run(self.names, self.feeds[row])  # type: list[Any]
        return outputs

    def _outputs_are_pooled(self, extent: int) -> bool:
        """Cutting changes the shape of outputs that have a sequence axis: those models are run at full length."""
        return all(len(t["shape"]) < 3 or t["shape"][1] != extent for t in self.document["outputs"])


class LiteRT(Runtime):
    """LiteRT (`ai-edge-litert`, or the older `tflite-runtime`), one thread, XNNPACK; shapes are static."""

    def import_library(self) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            from tflite_runtime.interpreter import Interpreter  # type: ignore[import-not-found,no-redef,unused-ignore]

        self.interpreter_class = Interpreter

    def load(self) -> None:
        self.interpreter = self.interpreter_class(model_path=self.model, num_threads=1)
        self.interpreter.allocate_tensors()
        inputs = self.interpreter.get_input_details()
        outputs = self.interpreter.get_output_details()
        self.inputs = [detail["index"] for detail in _by_name(inputs, self.document["inputs"])]
        self.outputs = [detail["index"] for detail in _by_name(outputs, self.document["outputs"])]

    def infer(self, row: int) -> "list[Any]":
        for index, array in zip(self.inputs, self.feeds[row]):  # noqa: B905
            self.interpreter.set_tensor(index, array)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.outputs]


def _has_extent(row: "Any", extent: int) -> bool:
    return len(row.shape) >= 2 and row.shape[1] == extent


def _by_name(details: "list[dict[str, Any]]", tensors: "list[dict[str, Any]]") -> "list[dict[str, Any]]":
    """Details in the artifact's order: by name (with or without a `:0` and a signature prefix), else as they come."""
    if len(details) != len(tensors):
        raise ValueError(f"model has {len(details)} tensors, artifact.json names {len(tensors)}")
    found = {detail["name"].split(":")[0].replace("serving_default_", ""): detail for detail in details}
    if all(tensor["name"] in found for tensor in tensors):
        return [found[tensor["name"]] for tensor in tensors]
    return details


RUNTIMES = {"litert": LiteRT, "onnxruntime": OnnxRuntime}  # type: dict[str, type[Runtime]]
