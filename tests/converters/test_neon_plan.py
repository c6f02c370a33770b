"""The compiler without the compiler: arena, rewrites, refusals, toolchains, ELF notes."""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from sample_graphs import SPECS, sample, without

from edgesdk.converters.front import Encoding, lower
from edgesdk.converters.isa_note import read_isa
from edgesdk.converters.neon import check, toolchain
from edgesdk.converters.neon.arena import ALIGNMENT, Life, place
from edgesdk.converters.neon.convert import make_plan
from edgesdk.converters.neon.cost import plain_shares
from edgesdk.converters.neon.fuse import fuse, table_entries
from edgesdk.converters.neon.generic import trace_all
from edgesdk.converters.neon.kernel_sets import KERNEL_SETS, choose
from edgesdk.converters.neon.library import write_library
from edgesdk.converters.neon.memory import lives
from edgesdk.converters.neon.packing import pack_a, pack_b, unpack_a
from edgesdk.converters.neon.plan import (
    Activate,
    Attend,
    Dense,
    DenseDynamic,
    DenseStatic,
    Lookup,
    Normalize,
    Plan,
    Quantize,
    QuantizeRows,
    RootNormalize,
    Step,
    Sum,
    Tensor,
)
from edgesdk.converters.neon.specialize import NormalizeStatic, QuantizeAsMade, quantize_in_place, specialize
from edgesdk.errors import ConvertError, UnsupportedOp
from edgesdk.targets import load_target

LIVES = st.lists(
    st.tuples(st.integers(1, 10_000), st.integers(0, 30), st.integers(0, 8)).map(lambda v: (v[0], v[1], v[1] + v[2])),
    max_size=40,
)


def assert_no_overlap(buffers: list[Life]) -> None:
    offsets, size = place(buffers)
    for index, life in enumerate(buffers):
        assert offsets[life.name] % ALIGNMENT == 0 and offsets[life.name] + life.size <= size
        for other in buffers[:index]:
            apart = (
                offsets[life.name] + life.size <= offsets[other.name]
                or offsets[other.name] + other.size <= offsets[life.name]
            )
            assert apart or not life.overlaps(other)


@given(LIVES)
def test_buffers_that_live_together_lie_apart(spans: list[tuple[int, int, int]]) -> None:
    assert_no_overlap([Life(str(index), *span) for index, span in enumerate(spans)])


def test_arena_shares_memory() -> None:
    """A chain needs two buffers, not ten."""
    chain = [Life(str(index), 640, index, index + 1) for index in range(10)]
    assert place(chain)[1] == 2 * 640
    assert place([]) == ({}, 0)


def kinds(plan: Plan, kind: type[Step]) -> list[Step]:
    return [step for step in plan.steps if type(step) is kind]


def assert_reads_what_was_written(plan: Plan) -> None:
    written: set[str] = set()
    for step in plan.steps:
        mine = {step.result.name}
        if isinstance(step, QuantizeRows):
            mine.add(step.scales.name)
        if isinstance(step, NormalizeStatic) and step.floats is not None:
            mine.add(step.floats.name)
        if isinstance(step, QuantizeAsMade):
            assert {tensor.name for tensor in step.maker.reads()} <= written
            mine.add(step.maker.result.name)
        assert {tensor.name for tensor in step.reads()} <= written | mine
        written |= mine
    assert plan.output.name in written


@pytest.mark.parametrize("kind", sorted(SPECS))
@pytest.mark.parametrize("scheme", ["fp32", "w8a8", "w8a8-dynamic"])
def test_plans_of_every_model(kind: str, scheme: str) -> None:
    """Steps read only what was written before; the arena of every kernel set is sound; layers fuse."""
    case = sample(kind, scheme)
    plan = make_plan(case.graph, case.sequence)
    assert_reads_what_was_written(plan)
    for kernels in KERNEL_SETS.values():
        special = specialize(plan, kernels)
        assert_reads_what_was_written(special)
        assert_no_overlap(lives(special, kernels))
    layers = len(case.spec.layers)
    assert len(kinds(plan, Attend)) == layers and not kinds(plan, Sum)
    merged = [step for step in plan.steps if isinstance(step, Dense) and len(step.linears) == 3]
    assert len(merged) == layers
    assert sum(isinstance(step, Dense) and step.residual is not None for step in plan.steps) == 2 * layers


def test_static_plans_use_tables_and_share_quantization() -> None:
    case = sample("vit", "w8a8")
    plan = make_plan(case.graph, case.sequence)
    layers = len(case.spec.layers)
    assert len(kinds(plan, Lookup)) == layers and not kinds(plan, Activate)
    # the patches, and for each layer: attention input, context, ffn input
    assert len(kinds(plan, Quantize)) == 1 + 3 * layers
    assert len(kinds(plan, DenseStatic)) == 1 + 4 * layers


def test_dynamic_plans_quantize_each_source_once() -> None:
    case = sample("bert_pooler", "w8a8-dynamic")
    plan = make_plan(case.graph, case.sequence)
    assert len(kinds(plan, QuantizeRows)) == len(kinds(plan, DenseDynamic)) == 4 * len(case.spec.layers) + 2


@pytest.mark.parametrize(
    ("kind", "makers"),
    [
        ("vit", {Normalize: 6, Activate: 3}), ("bert_pooler", {Normalize: 4, Activate: 3}),
        ("features", {Normalize: 1, Activate: 1}), ("low_rank", {Normalize: 4, Activate: 3}),
        ("llama", {RootNormalize: 4}), ("decoder", {Normalize: 4, Activate: 2}),
    ],
)
def test_rows_are_quantized_as_they_are_made(kind: str, makers: dict[type[Step], int]) -> None:
    """No norm and no activation is left in front of a quantization by rows; what is left follows attention, tiles, the
    product of SwiGLU, the patches or the pooling, whose rows are not made one after the other."""
    case = sample(kind, "w8a8-dynamic")
    steps = specialize(make_plan(case.graph, case.sequence), KERNEL_SETS["dotprod"]).steps
    assert Counter(type(step.maker) for step in steps if isinstance(step, QuantizeAsMade)) == makers
    for last, step in itertools.pairwise(steps):
        assert type(step) is not QuantizeRows or not isinstance(last, (Normalize, RootNormalize, Activate))
    quantized = [step.source.name for step in steps if isinstance(step, QuantizeRows)]
    assert len(quantized) == len(set(quantized))


def test_rows_are_made_in_the_place_of_a_source_that_nobody_reads_again() -> None:
    """Only a source and floats that serve nothing else share a buffer; floats of the output keep their own."""
    one, two, packed, out = (Tensor(name, 4, 16) for name in ("one", "two", "packed", "out"))
    scales = Tensor("scales", 4, 2, layout="row_scales")
    steps: list[Step] = [Activate(two, one, "gelu"), QuantizeRows(packed, two, scales)]
    (alone,) = quantize_in_place(steps, out)
    assert alone == QuantizeAsMade(packed, one, scales, Activate(one, one, "gelu"))
    apart = QuantizeAsMade(packed, two, scales, Activate(two, one, "gelu"))
    for other in (Sum(out, one, packed), Sum(out, two, packed)):
        assert quantize_in_place([*steps, other], out) == [apart, other]
    assert quantize_in_place(steps, two) == quantize_in_place(steps, one) == [apart]
    between = [steps[0], Sum(out, one, one), steps[1]]
    assert quantize_in_place(between, out) == between


def test_gelu_table_is_the_graph_arithmetic() -> None:
    """int8 → float → GELU → int8 for all 256 values, against a plain loop."""
    import math

    before, after = Encoding(0.05, -20), Encoding(0.02, -110)
    expected = []
    for q in range(-128, 128):
        x = (q + 20) * 0.05
        y = 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
        expected.append(max(-128, min(127, round(y / 0.02) - 110)))
    found = table_entries("gelu", before, after)
    assert np.abs(found.astype(int) - expected).max() <= 1  # rounding of ties in float32
    assert (found == expected).mean() > 0.98
    relu = table_entries("relu", Encoding(1.0, 0), Encoding(1.0, -128))
    assert list(relu[[0, 128, 129, 255]]) == [-128, -128, -127, -1]


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 70), st.sampled_from(sorted(KERNEL_SETS)))
def test_packing_is_invertible(rows: int, columns: int, name: str) -> None:
    kernels = KERNEL_SETS[name]
    values = np.random.default_rng(rows * 100 + columns).integers(-128, 128, (rows, columns)).astype(np.int8)
    np.testing.assert_array_equal(unpack_a(pack_a(values, kernels), rows, columns, kernels), values)
    packed = pack_b(values, kernels)
    assert packed.astype(int).sum() == values.astype(int).sum() and packed.shape[2:] == (kernels.nr, kernels.kr)


# --- refusals -------------------------------------------------------------------------------------------------------


def changed(kind: str, change: str) -> bytes:
    """The graph of a model with one thing in it that the build does not understand."""
    model = onnx.load_from_string(sample(kind, "fp32").graph)
    nodes = model.graph.node
    if change == "operator":
        next(node for node in nodes if node.op_type == "Gelu").op_type = "Mish"
    if change == "softmax axis":
        node = next(node for node in nodes if node.op_type == "Softmax")
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("axis", 1))
    if change == "permutation":
        node = next(node for node in nodes if node.op_type == "Transpose" and "query" in node.name)
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("perm", [0, 1, 2, 3]))
    if change == "mask value":
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "mask.value")
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(-1.0, np.float32), "mask.value"))
    if change == "no mask":
        for node in nodes:
            if node.op_type == "Softmax":
                node.input[0] = node.input[0].removesuffix(".masked")
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [("vit", "operator", "Mish"), ("vit", "permutation", "Transpose|shape")],
)
def test_unknown_graphs_are_refused_by_name(kind: str, change: str, named: str) -> None:
    with pytest.raises((UnsupportedOp, onnx.shape_inference.InferenceError), match=named):
        make_plan(changed(kind, change), sample(kind, "fp32").sequence)


@pytest.mark.parametrize(
    ("kind", "change"), [("vit", "softmax axis"), ("bert_pooler", "mask value"), ("bert_pooler", "no mask")]
)
def test_known_operators_in_no_pattern_run_on_plain_kernels(kind: str, change: str) -> None:
    plan = make_plan(changed(kind, change), sample(kind, "fp32").sequence)
    assert "Softmax" in plain_shares(plan)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["vit", "bert_mean_grouped"]), st.sampled_from(["fp32", "w8a8"]), st.data())
def test_damaged_graphs_are_understood_or_refused(kind: str, scheme: str, data: st.DataObject) -> None:
    """One node loses an input, loses its attributes, or reads another tensor: a plan, or an error that says so."""
    case = sample(kind, scheme)
    model = onnx.load_from_string(case.graph)
    node = data.draw(st.sampled_from(list(model.graph.node)))
    change = data.draw(st.sampled_from(["input", "attributes", "other input"]))
    if change == "input":
        del node.input[-1]
    elif change == "attributes":
        del node.attribute[:]
    else:
        node.input[0] = data.draw(st.sampled_from([name for other in model.graph.node for name in other.output]))
    try:
        graph = lower(model.SerializeToString(), case.sequence)
    except Exception:
        return  # the shared front has its own tests
    try:
        plan = fuse(trace_all(graph))
    except UnsupportedOp:
        return
    assert_no_overlap(lives(plan, KERNEL_SETS["dotprod"]))


def test_check_names_the_operator_and_a_library_the_missing_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An artifact needs no compiler here (`test_neon_source.py`), a library does."""
    package = sample("vit", "fp32").package()
    monkeypatch.setattr(toolchain, "find_all", lambda triple: ())
    assert check(package, load_target("rpi5")) == []
    foreign = without(sample("vit", "fp32"), graph=changed("vit", "operator")).package()
    (reason,) = check(foreign, load_target("rpi5"))
    assert "Mish" in reason
    with pytest.raises(ConvertError, match="no C compiler for aarch64") as problem:
        write_library(package, load_target("rpi5"), tmp_path)
    assert "apt install" in str(problem.value) and list(tmp_path.iterdir()) == []


def test_compiler_errors_are_shown(tmp_path: Path) -> None:
    broken = toolchain.Toolchain("cc", "1", ("sh", "-c", "echo this is wrong >&2; exit 1"))
    with pytest.raises(ConvertError, match="this is wrong"):
        broken.compile("model.c", "model.o", (), tmp_path)
    with pytest.raises(ConvertError, match="cannot be started"):
        toolchain.Toolchain("cc", "1", ("/nonexistent/cc",)).compile("model.c", "model.o", (), tmp_path)


def test_kernel_sets_by_target() -> None:
    assert choose(load_target("rpi4")).name == "base"
    assert choose(load_target("rpi5")).name == choose(load_target("jetson")).name == "dotprod"
    assert choose(load_target("host")).triple == "x86_64-linux-gnu"


@pytest.mark.parametrize(
    ("triple", "features", "name"),
    [
        ("aarch64-linux-gnu", (), "base"), ("aarch64-linux-gnu", ("dotprod",), "dotprod"),
        ("aarch64-linux-gnu", ("neon", "dotprod", "i8mm"), "i8mm"), ("x86_64-linux-gnu", (), "scalar"),
        ("x86_64-linux-gnu", ("avx2", "fma"), "avx2"),
        ("x86_64-linux-gnu", ("avx2", "fma", "avx_vnni"), "avxvnni"),
        ("x86_64-linux-gnu", ("avx_vnni", *KERNEL_SETS["avx512vnni"].isa), "avx512vnni"),
    ],
)
def test_kernel_set_by_features(triple: str, features: tuple[str, ...], name: str) -> None:
    target = load_target("rpi5")
    cpu = target.cpu.model_copy(update={"features": features})
    assert choose(target.model_copy(update={"triple": triple, "cpu": cpu})).name == name


# --- ELF notes ------------------------------------------------------------------------------------------------------


def elf(note: bytes, offset: int = 120, size: int | None = None, entries: int = 1) -> bytes:
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0, 64, 0, 0, 64, 56, entries, 0, 0, 0)
    length = len(note) if size is None else size
    return header + struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, length, length, 4) + note


NOTE = struct.pack("<III", 8, 12, 1) + b"EdgeSDK\0" + b"neon,dotprod"


def test_isa_is_read_from_the_note(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(elf(struct.pack("<III", 4, 5, 3) + b"GNU\0" + b"build\0\0\0" + NOTE))
    assert read_isa(path) == ["neon", "dotprod"]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(80), elf(NOTE)[:90], elf(b""), elf(NOTE, offset=1 << 62),
        elf(NOTE, size=1 << 60), elf(NOTE, entries=65535)[:100],
        elf(struct.pack("<III", 1 << 31, 1 << 31, 1) + bytes(40)), elf(NOTE[:20] + b"\xff" * 12),
    ],
)
def test_hostile_files_have_no_isa(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model"
    path.write_bytes(data)
    with pytest.raises(ConvertError):
        read_isa(path)
