"""Runs TFLite files in LiteRT and looks into them, for the tests of the tflite converter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

DELEGATE = "DELEGATE"


def run(data: bytes, inputs: Mapping[str, NDArray[Any]], xnnpack: bool = True) -> NDArray[Any]:
    """First output for each row of the inputs [rows, …], by XNNPACK (the default) or by the built-in kernels."""
    interpreter = _interpreter(data, xnnpack)
    details = interpreter.get_input_details()
    rows = []
    for row in range(len(next(iter(inputs.values())))):
        for detail in details:
            interpreter.set_tensor(detail["index"], inputs[detail["name"]][row : row + 1])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return np.concatenate(rows)


def run_once(data: bytes, inputs: Mapping[str, NDArray[Any]], xnnpack: bool = True) -> NDArray[Any]:
    """First output for inputs that have the shapes of the file."""
    interpreter = _interpreter(data, xnnpack)
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], inputs[detail["name"]])
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def undelegated(data: bytes) -> tuple[int, list[str]]:
    """Number of XNNPACK partitions, and the operators that feed them from outside."""
    operators = _interpreter(data, True)._get_ops_details()
    delegates = [operator for operator in operators if operator["op_name"] == DELEGATE]
    read = {int(index) for delegate in delegates for index in delegate["inputs"]}
    outside = [
        operator["op_name"]
        for operator in operators
        if operator["op_name"] != DELEGATE and read & {int(index) for index in operator["outputs"]}
    ]
    return len(delegates), sorted(outside)


def operators(data: bytes) -> list[tuple[str, int]]:
    """(operator, version) of the file, in its order."""
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    codes = [(names[code.builtinCode], code.version) for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


def _interpreter(data: bytes, xnnpack: bool) -> Any:
    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    return interpreter
