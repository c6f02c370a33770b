"""RMSNorm, rotary positions and SwiGLU in the NEON build: recognised, computed right, and never needed to be."""

from __future__ import annotations

import math
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from sample_graphs import ROWS, SEQUENCE, sample, sqnr_db
from test_neon_generic import run
from test_neon_models import Built

from edgesdk.converters import tflite
from edgesdk.converters.neon.cache import decodes
from edgesdk.converters.neon.convert import make_plan
from edgesdk.converters.neon.cost import plain_notes, plain_shares
from edgesdk.converters.neon.kernel_sets import choose
from edgesdk.converters.neon.plan import Activate, Attend, Product, RootNormalize, Rotate
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.targets import load_target
from edgesdk.testing.needs import need


@pytest.mark.parametrize("scheme", ["fp32", "w8a8", "w8a8-dynamic"])
def test_every_operator_belongs_to_a_pattern(scheme: str) -> None:
    plan = make_plan(sample("llama", scheme).graph, SEQUENCE)
    assert plain_notes(plan) == ()
    count = Counter(type(step) for step in plan.steps)
    assert (count[RootNormalize], count[Rotate], count[Product], count[Activate]) == (5, 4, 2, 2)
    assert {step.kind for step in plan.steps if isinstance(step, Activate)} == {"silu"}


@pytest.mark.parametrize(
    ("target", "scheme"),
    [("host", "fp32"), ("host", "w8a8"), ("host", "w8a8-dynamic"), ("raspberry-pi/5", "fp32"),
     ("raspberry-pi/5", "w8a8"), ("raspberry-pi/4", "w8a8")],
)
def test_answers_like_onnx_runtime(tmp_path: Path, target: str, scheme: str) -> None:
    need(bool(find_all(choose(load_target(target)).triple)), "no C compiler")
    case = Built(target, sample("llama", scheme), tmp_path)
    found = case.outputs(tmp_path)
    if scheme == "w8a8-dynamic":
        assert sqnr_db(case.case.reference, found) >= 20
    else:
        assert sqnr_db(case.case.expected, found) >= (90 if scheme == "fp32" else 36)


def test_broken_patterns_cost_speed_and_nothing_else(tmp_path: Path) -> None:
    """A root that is no root, a gate through tanh, halves that are not negated: plain operators run instead."""
    case = sample("llama", "fp32")
    model = onnx.load_from_string(case.graph)
    nodes = {node.name: node for node in model.graph.node}
    nodes["layers.0.ffn.glu.sigmoid"].op_type = "Tanh"
    nodes["layers.1.attention.normed.root"].op_type = "Abs"
    nodes["layers.0.attention.query.negated"].op_type = "Abs"
    graph = bytes(model.SerializeToString())
    plan = make_plan(graph, SEQUENCE)
    counts = Counter(type(step) for step in plan.steps)
    assert (counts[Attend], counts[Rotate], counts[RootNormalize], counts[Product]) == (1, 2, 4, 3)
    assert not decodes(plan) and {"Softmax", "Abs"} <= set(plain_shares(plan))
    session = onnxruntime.InferenceSession(graph)
    rows = [{name: value[row : row + 1] for name, value in case.inputs.items()} for row in range(ROWS)]
    expected = np.concatenate([session.run(None, row)[0] for row in rows])
    need(bool(find_all(choose(load_target("host")).triple)), "no C compiler")
    found = run("host", graph, SEQUENCE, case.inputs, math.prod(expected.shape[1:]), tmp_path).reshape(expected.shape)
    kept = case.inputs["attention_mask"] == 1
    assert sqnr_db(expected[kept], found[kept]) >= 90
    assert sqnr_db(case.expected[kept], expected[kept]) < 60  # the change is one


def test_tflite_refuses_them_by_name() -> None:
    absent = [module for module in ("ai_edge_litert", "flatbuffers") if find_spec(module) is None]
    need(not absent, f"not installed: {', '.join(absent)}")
    reasons = tflite.check(sample("llama", "w8a8").package(), load_target("rpi5"))
    for op in ("Neg", "Sqrt", "Sigmoid"):
        assert any(f"operator {op} 'layers.0." in reason for reason in reasons), reasons
