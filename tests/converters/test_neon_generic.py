"""The fallback of the NEON build: plain operators against ONNX Runtime, patterns that break off, refusals by name."""

from __future__ import annotations

import functools
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from sample_graphs import ROWS, SEQUENCE, Sample, sample, sqnr_db

from edgesdk.converters.artifact import Tensor
from edgesdk.converters.neon.build import build
from edgesdk.converters.neon.convert import make_plan
from edgesdk.converters.neon.cost import instructions, plain_notes, plain_shares
from edgesdk.converters.neon.emit import emit
from edgesdk.converters.neon.generic import Generic
from edgesdk.converters.neon.kernel_sets import choose
from edgesdk.converters.neon.plan import Attend, Dense
from edgesdk.converters.neon.toolchain import find, find_all
from edgesdk.errors import UnsupportedOp
from edgesdk.targets import load_target
from edgesdk.testing.needs import need

QEMU = {"host": [], "raspberry-pi/5": ["qemu-aarch64", "-cpu", "cortex-a76"]}
S, H = 5, 7


class Writer:
    """A graph from `features` [1, S, H]; the results of all nodes that are `shown` are its output, side by side."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.parts: list[str] = []

    def constant(self, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"{op}.{len(self.nodes)}"
        names = [name, *(f"{name}.{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), names, name, **attributes))
        return name

    def show(self, name: str) -> None:
        plain = self.node("Cast", name, to=TensorProto.FLOAT)
        self.parts.append(self.node("Reshape", plain, self.constant(np.array([1, -1], np.int64))))

    def model(self) -> bytes:
        whole = self.parts[0] if len(self.parts) == 1 else self.node("Concat", *self.parts, axis=1)
        self.nodes.append(helper.make_node("Identity", [whole], ["output"], "last"))
        source = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", "sequence", H])
        output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "all"])
        graph = helper.make_graph(self.nodes, "test", [source], [output], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        model.ir_version = 10
        return bytes(model.SerializeToString())


def axes(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def write_elementwise(g: Writer) -> None:
    x = "features"
    positive = g.node("Add", g.node("Abs", x), g.constant(np.float32(0.5)))
    row, column = g.constant(np.linspace(-2, 2, H, dtype=np.float32)), g.constant(np.ones((S, 1), np.float32) * 0.3)
    for op in ("Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus",
               "Softsign", "Tanh", "Gelu", "LeakyRelu"):
        g.show(g.node(op, x))
    g.show(g.node("Gelu", x, approximate="tanh"))
    for op in ("Log", "Reciprocal", "Sqrt"):
        g.show(g.node(op, positive))
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
        g.show(g.node(op, x, row))
        g.show(g.node(op, column, x))
    g.show(g.node("Pow", positive, row))
    g.show(g.node("Max", x, row, column))
    g.show(g.node("Clip", x, g.constant(np.float32(-0.4)), g.constant(np.float32(0.6))))
    g.show(g.node("Clip", x, "", g.constant(np.float32(0.1))))
    more, less = g.node("Greater", x, row), g.node("LessOrEqual", x, column)
    for op in ("Less", "GreaterOrEqual", "Equal"):
        g.show(g.node(op, x, row))
    for op in ("And", "Or", "Xor"):
        g.show(g.node(op, more, less))
    g.show(g.node("Where", g.node("Not", more), x, row))
    g.show(g.node("Cast", g.node("Mul", x, g.constant(np.float32(3))), to=TensorProto.INT64))


def write_shapes(g: Writer) -> None:
    x = "features"
    cube = g.node("Reshape", x, g.constant(axes(S, 1, H)))
    g.show(g.node("Transpose", x, perm=[2, 0, 1]))
    g.show(g.node("Transpose", cube))
    g.show(g.node("Slice", x, g.constant(axes(1, -1)), g.constant(axes(2**62, -100)), g.constant(axes(1, 2)),
                  g.constant(axes(2, -2))))
    g.show(g.node("Concat", x, g.node("Neg", x), g.constant(np.ones((1, 2, H), np.float32)), axis=1))
    g.show(g.node("Concat", cube, g.node("Neg", cube), axis=-1))
    g.show(g.node("Expand", cube, g.constant(axes(2, S, 3, H))))
    g.show(g.node("Squeeze", cube, g.constant(axes(1))))
    g.show(g.node("Unsqueeze", x, g.constant(axes(0, 3))))
    g.show(g.node("Flatten", x, axis=2))
    first = g.node("Split", x, g.constant(axes(3, 4)), outputs=2, axis=2)
    g.show(first)
    g.show(f"{first}.1")
    g.show(g.node("Gather", x, g.constant(axes(4, 0, -1)), axis=1))
    g.show(g.node("Gather", x, g.constant(np.array([[6, 1], [0, -7]], np.int64)), axis=2))
    table = g.constant(np.arange(12, dtype=np.float32).reshape(4, 3))
    g.show(g.node("Gather", table, g.node("ArgMax", g.node("Slice", x, g.constant(axes(0)), g.constant(axes(4)),
                                                        g.constant(axes(2))), axis=2, keepdims=0)))


def write_reductions(g: Writer) -> None:
    x = "features"
    for op in ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceSumSquare", "ReduceL1",
               "ReduceL2"):
        g.show(g.node(op, x, g.constant(axes(-1)), keepdims=0))
        g.show(g.node(op, x, g.constant(axes(1, 2))))
        g.show(g.node(op, x, g.constant(axes(1)), keepdims=1))
        g.show(g.node(op, x, keepdims=0))
    g.show(g.node("ReduceSum", x, noop_with_empty_axes=1))
    g.show(g.node("ArgMax", x, axis=1))
    for axis in (0, 1, 2):
        g.show(g.node("Softmax", x, axis=axis))
    left = g.constant(np.random.default_rng(0).normal(size=(3, 4, S)).astype(np.float32))
    g.show(g.node("MatMul", left, x))
    g.show(g.node("MatMul", x, g.node("Transpose", x, perm=[0, 2, 1])))
    weight, bias = g.constant(np.linspace(0.5, 2, H, dtype=np.float32)), g.constant(np.ones(H, np.float32))
    g.show(g.node("LayerNormalization", x, weight, axis=-1, epsilon=1e-3))
    g.show(g.node("LayerNormalization", g.node("Transpose", x, perm=[1, 0, 2]), weight, bias, axis=2))
    both = g.constant(np.linspace(0.5, 2, S * H, dtype=np.float32).reshape(S, H))
    g.show(g.node("LayerNormalization", x, both, axis=1))


def run(
    target: str, graph: bytes, sequence: int, inputs: dict[str, np.ndarray], width: int, folder: Path
) -> np.ndarray:
    """Outputs [rows, width] of a graph compiled for a target."""
    kernels = choose(load_target(target))
    need(bool(find_all(kernels.triple)), f"no C compiler for {kernels.triple}")
    need(target == "host" or shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
    rows = len(next(iter(inputs.values())))
    tensors = [Tensor(name, str(value.dtype), (1, *value.shape[1:])) for name, value in inputs.items()]
    sources = emit(make_plan(graph, sequence), kernels, "test", tensors, [Tensor("output", "float32", (1, width))])
    build(sources, kernels, find(kernels.triple), folder / "model")
    (folder / "in.bin").write_bytes(b"".join(value.tobytes() for value in inputs.values()))
    words = ["run", "--inputs", "in.bin", "--n", str(rows), "--outputs", "out.bin"]
    subprocess.run([*QEMU[target], str(folder / "model"), *words], cwd=folder, check=True, timeout=60)
    return np.fromfile(folder / "out.bin", "<f4").reshape(rows, width)


@pytest.mark.parametrize(
    ("target", "write"),
    [("host", write_elementwise), ("host", write_shapes), ("host", write_reductions), ("raspberry-pi/5", write_shapes),
     ("raspberry-pi/5", write_reductions)],
)
def test_plain_operators_like_onnx_runtime(tmp_path: Path, target: str, write: Callable[[Writer], None]) -> None:
    writer = Writer()
    write(writer)
    graph = writer.model()
    x = np.random.default_rng(1).normal(size=(2, S, H)).astype(np.float32)
    session = onnxruntime.InferenceSession(graph)
    expected = np.concatenate([session.run(None, {"features": x[row : row + 1]})[0] for row in range(2)])
    found = run(target, graph, S, {"features": x}, expected.shape[1], tmp_path)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def rewritten(kind: str, change: Callable[[onnx.GraphProto], None]) -> tuple[Sample, bytes, np.ndarray]:
    """The fp32 graph of a sample with a change that breaks a pattern, and what ONNX Runtime answers."""
    case = sample(kind, "fp32")
    model = onnx.load_from_string(case.graph)
    change(model.graph)
    graph = bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(graph)
    rows = [{name: value[row : row + 1] for name, value in case.inputs.items()} for row in range(ROWS)]
    return case, graph, np.concatenate([session.run(None, row)[0] for row in rows])


def behind(graph: onnx.GraphProto, index: int, op: str, *more: str, which: str) -> None:
    """Put an operator behind the `index`-th node of a kind."""
    at = [number for number, node in enumerate(graph.node) if node.op_type == which][index]
    node = graph.node[at]
    name = node.output[0]
    node.output[0] = f"{name}.before"
    graph.node.insert(at + 1, helper.make_node(op, [f"{name}.before", *more], [name], f"{name}.{op.lower()}"))


def scale_scores(graph: onnx.GraphProto) -> None:
    """Scores · 1.5 behind the mask: attention of layer 0 is no pattern any more."""
    graph.initializer.append(numpy_helper.from_array(np.float32(1.5), "factor"))
    at = [number for number, node in enumerate(graph.node) if node.op_type == "Softmax"][0]
    node = graph.node[at]
    graph.node.insert(at, helper.make_node("Mul", [node.input[0], "factor"], ["scaled"], "scale.scores"))
    graph.node[at + 1].input[0] = "scaled"


def sigmoid_instead_of_gelu(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "Gelu")
    node.op_type = "Sigmoid"
    del node.attribute[:]


def scale_embedding(graph: onnx.GraphProto) -> None:
    """Rows of the table · 2 before the positions come: the embedding is no pattern any more."""
    graph.initializer.append(numpy_helper.from_array(np.float32(2), "factor"))
    behind(graph, 0, "Mul", "factor", which="Gather")


@pytest.mark.parametrize(
    ("target", "kind", "change"),
    [
        ("host", "bert_pooler", scale_scores), ("host", "bert_pooler", sigmoid_instead_of_gelu),
        ("host", "bert_mean_grouped", scale_embedding), ("host", "vit", scale_scores),
        ("raspberry-pi/5", "bert_pooler", scale_scores),
    ],
)
def test_broken_patterns_cost_speed_and_nothing_else(
    tmp_path: Path, target: str, kind: str, change: Callable[[onnx.GraphProto], None]
) -> None:
    case, graph, expected = rewritten(kind, change)
    found = run(target, graph, case.sequence, case.inputs, math.prod(expected.shape[1:]), tmp_path)
    assert sqnr_db(expected, found.reshape(expected.shape)) >= 90
    assert sqnr_db(case.expected, expected) < 60  # the change is one


def test_only_what_is_broken_is_plain_and_it_is_named() -> None:
    case, graph, _ = rewritten("bert_pooler", scale_scores)
    plan = make_plan(graph, SEQUENCE)
    assert sum(isinstance(step, Attend) for step in plan.steps) == len(case.spec.layers) - 1
    assert sum(isinstance(step, Dense) for step in plan.steps) >= 6
    shares = plain_shares(plan)
    assert {"MatMul", "Softmax"} <= set(shares) and list(shares.values()) == sorted(shares.values(), reverse=True)
    plain = sum(instructions(step) for step in plan.steps if isinstance(step, Generic))
    total = sum(shares.values())
    assert total == pytest.approx(plain / sum(instructions(step) for step in plan.steps)) and 0.2 < total < 0.8
    (note,) = plain_notes(plan)
    assert note.startswith(f"plain float operators, about {100 * total:.1f} % of the time (estimated in instructions)")
    assert f"MatMul × 2 {100 * shares['MatMul']:.1f} %" in note and "Softmax " in note


def test_a_plain_multiplication_costs_more_than_a_fused_one() -> None:
    """What the report is for: the same graph with a matrix product by plain kernels is estimated slower."""
    case, graph, _ = rewritten("bert_pooler", scale_scores)
    slow, fast = make_plan(graph, SEQUENCE), make_plan(case.graph, SEQUENCE)
    assert sum(map(instructions, slow.steps)) > 1.1 * sum(map(instructions, fast.steps))


@functools.cache
def plans() -> list[Any]:
    return [make_plan(sample(kind, scheme).graph, sample(kind, scheme).sequence)
            for kind in ("vit", "bert_pooler", "decoder") for scheme in ("fp32", "w8a8")]


def test_graphs_of_packages_need_no_fallback() -> None:
    for plan in plans():
        assert not any(isinstance(step, Generic) for step in plan.steps)
        assert plain_notes(plan) == () and not plan.whole


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [("Hardmax", 1, {}), ("LpNormalization", 1, {}), ("CumSum", 2, {}), ("ArgMax", 1, {"select_last_index": 1})],
)
def test_unsupported_operators_are_named_when_converting(op: str, inputs: int, attributes: dict[str, Any]) -> None:
    writer = Writer()
    extra = [writer.constant(np.int64(1))] if inputs == 2 else []
    name = writer.node(op, "features", *extra, **attributes)
    writer.show(name)
    with pytest.raises(UnsupportedOp, match=name.replace(".", r"\.")):
        make_plan(writer.model(), S)


def test_seven_axes_are_refused() -> None:
    writer = Writer()
    writer.show(writer.node("Unsqueeze", "features", writer.constant(axes(0, 1, 2, 3))))
    with pytest.raises(UnsupportedOp, match="Unsqueeze"):
        make_plan(writer.model(), S)
