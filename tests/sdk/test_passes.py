"""Graph passes: what they change, and that the model computes the same afterwards."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk.errors import PackageError
from edgesdk.evaluate import run_graph
from edgesdk.testing.converters import SCHEMES, sample_package
from edgesdk.testing.models import BERT, BERT_MEAN, SPECS, VIT, random_inputs, random_weights
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.passes import PASSES
from edgesdk.transformer.passes.fold_constants import fold_constants
from edgesdk.transformer.passes.layout import drop_identities, merge_reshapes
from edgesdk.transformer.passes.merge_qkv import merge_qkv
from edgesdk.transformer.spec import Exit, TransformerSpec

LAYER = BERT.layers[0]
BRANCHED = dataclasses.replace(
    BERT,
    layers=(
        dataclasses.replace(LAYER, exit=Exit("confidence", 0.5)), dataclasses.replace(LAYER, gate=True),
        dataclasses.replace(LAYER, share=0),
    ),
)
LOW_RANK = dataclasses.replace(BERT, layers=(dataclasses.replace(LAYER, ranks={"attention.query": 4}), LAYER))
SPARSE = dataclasses.replace(BERT, sparse={"layers.0.attention.query": "unstructured"})
KINDS = {**SPECS, "branched": BRANCHED, "low_rank": LOW_RANK, "sparse": SPARSE}


def weights_of(spec: TransformerSpec) -> dict[str, Any]:
    weights = random_weights(spec, 3)
    for name in spec.sparse:
        weights[f"{name}.weight"] = np.where(np.arange(16) % 4 == 0, weights[f"{name}.weight"], np.float32(0))
    return weights


def written(spec: TransformerSpec, *passes: str) -> bytes:
    return write_graph(dataclasses.replace(spec, passes=passes), weights_of(spec))


def count(graph: bytes) -> Counter[str]:
    """Operators of a graph and its branches."""

    def nodes(scope: onnx.GraphProto) -> Any:
        for node in scope.node:
            yield node.op_type
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from nodes(attribute.g)

    return Counter(nodes(onnx.load_from_string(graph).graph))


def constants(graph: bytes) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(graph).graph.initializer}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", [*((name,) for name in PASSES), tuple(PASSES), tuple(PASSES)[::-1]], ids="+".join)
def test_model_computes_the_same(kind: str, passes: tuple[str, ...]) -> None:
    spec, inputs = KINDS[kind], random_inputs(KINDS[kind], 6, 4)
    before, after = written(spec), written(spec, *passes)
    onnx.checker.check_model(onnx.load_from_string(after), full_check=True)
    assert {node.domain for node in onnx.load_from_string(after).graph.node} == {""}, "packages hold standard ONNX"
    expected = run_graph(before, inputs, batch=1)
    np.testing.assert_allclose(run_graph(after, inputs, batch=1), expected, atol=1e-5)
    np.testing.assert_allclose(run_graph(after, inputs, batch=1, optimize=False), expected, atol=1e-5)
    assert written(spec, *passes) == after


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_quantized_graphs_are_left_alone(kind: str, scheme: str) -> None:
    package = sample_package(kind, scheme)
    spec = dataclasses.replace(package.spec, passes=tuple(PASSES))
    assert count(write_graph(spec, package.weights, package.encodings)) == count(package.graph)
    outputs = run_graph(write_graph(spec, package.weights, package.encodings), package.samples.golden_inputs)
    np.testing.assert_array_equal(outputs, run_graph(package.graph, package.samples.golden_inputs))


def test_scale_of_attention_is_folded_into_the_query() -> None:
    before, after = written(BERT), written(BERT, "fold_constants")
    assert count(before)["Mul"] - count(after)["Mul"] == 2
    found, weights = constants(after), weights_of(BERT)
    scale = np.float32(8**-0.5)
    for part in ("weight", "bias"):
        name = f"layers.0.attention.query.{part}"
        np.testing.assert_array_equal(found[f"{name}.scaled"], weights[name] * scale)
        assert name not in found


def test_low_rank_query_is_scaled_in_its_second_part() -> None:
    found = constants(written(LOW_RANK, "fold_constants"))
    assert "layers.0.attention.query.u.weight.scaled" in found
    assert "layers.0.attention.query.v.weight" in found


def test_shared_layers_share_the_scaled_weights() -> None:
    layers = (LAYER, dataclasses.replace(LAYER, share=0), dataclasses.replace(LAYER, share=0))
    spec = dataclasses.replace(BERT, layers=layers)
    scaled = [name for name in constants(written(spec, "fold_constants")) if name.endswith(".scaled")]
    assert sorted(scaled) == [f"layers.0.attention.query.{part}.scaled" for part in ("bias", "weight")]
    assert abs(len(written(spec, "fold_constants", "merge_qkv")) - len(written(spec))) < 0.1 * len(written(spec))


def test_sparse_query_keeps_its_scale_and_its_file_small() -> None:
    before, after = count(written(SPARSE)), count(written(SPARSE, "fold_constants"))
    assert before["Mul"] - after["Mul"] == 1, "of the two layers only the dense one"
    assert after["CumSum"] == before["CumSum"] == 1


def test_three_projections_become_one() -> None:
    before, after = count(written(BERT)), count(written(BERT, "merge_qkv"))
    assert (before["Gemm"] - after["Gemm"], after["Split"]) == (4, 2)
    weights = weights_of(BERT)
    merged = constants(written(BERT, "merge_qkv"))["layers.0.attention.qkv.weight"]
    expected = [weights[f"layers.0.attention.{part}.weight"] for part in ("query", "key", "value")]
    np.testing.assert_array_equal(merged, np.concatenate(expected))


def test_grouped_heads_are_split_by_their_own_widths() -> None:
    sizes = constants(written(BERT_MEAN, "merge_qkv"))
    assert sizes["split.16_4_4"].tolist() == [16, 4, 4]


def test_layers_behind_gates_and_exits_are_reached() -> None:
    assert count(written(BRANCHED, "merge_qkv"))["Split"] == 3
    before, after = count(written(BRANCHED)), count(written(BRANCHED, "fold_constants"))
    assert before["Mul"] - after["Mul"] == 3


def test_low_rank_or_sparse_projections_are_not_merged() -> None:
    for spec in (LOW_RANK, SPARSE):
        assert count(written(spec, "merge_qkv"))["Split"] == 1


def test_unknown_pass_is_an_error() -> None:
    with pytest.raises(PackageError, match="no_such_pass"):
        written(VIT, "no_such_pass")


# --- passes on graphs of other makers ---------------------------------------------------------------------------------


def model(nodes: list[Any], initializers: dict[str, Any], output: str = "y") -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(value), name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def both(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Equal outputs."""
    inputs = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}
    expected = run_graph(before.SerializeToString(), inputs, optimize=False)
    np.testing.assert_array_equal(run_graph(after.SerializeToString(), inputs, optimize=False), expected)


def ops(changed: onnx.ModelProto) -> list[str]:
    return [entry.op_type for entry in changed.graph.node]


def test_identities_go_and_the_output_stays() -> None:
    nodes = [
        node("Identity", ["x"], "a"), node("Transpose", ["a"], "b", perm=[0, 1, 2]), node("Relu", ["b"], "c"),
        node("Identity", ["c"], "y"),
    ]
    before = model(nodes, {})
    after = drop_identities(before)
    assert ops(after) == ["Relu", "Identity"]
    both(before, after)


def test_reshapes_and_transposes_in_a_row_are_one() -> None:
    nodes = [
        node("Reshape", ["x", "flat"], "a"), node("Reshape", ["a", "wide"], "b"), node("Reshape", ["b", "tall"], "c"),
        node("Transpose", ["c"], "d", perm=[1, 0]), node("Transpose", ["d"], "e", perm=[1, 0]),
        node("Relu", ["e"], "y"),
    ]
    before = model(nodes, {"flat": [-1], "wide": [4, 6], "tall": [6, 4]})
    after = merge_reshapes(before)
    assert ops(after) == ["Reshape", "Transpose", "Relu"]
    both(before, after)
    assert ops(drop_identities(after)) == ["Reshape", "Relu"]
    assert {tensor.name for tensor in after.graph.initializer} == {"tall"}


def test_transposes_are_composed_in_the_right_order() -> None:
    nodes = [node("Transpose", ["x"], "a", perm=[1, 2, 0]), node("Transpose", ["a"], "y", perm=[0, 2, 1])]
    before = model(nodes, {})
    after = merge_reshapes(before)
    assert ops(after) == ["Transpose"]
    both(before, after)


def test_reshape_that_copies_a_size_keeps_what_stands_before_it() -> None:
    nodes = [node("Reshape", ["x", "six"], "a"), node("Reshape", ["a", "copy"], "y")]
    before = model(nodes, {"six": [6, 4], "copy": [0, 2, 2]})
    after = merge_reshapes(before)
    assert ops(after) == ["Reshape", "Reshape"]
    both(before, after)


def test_second_reader_keeps_the_first_reshape() -> None:
    nodes = [
        node("Reshape", ["x", "flat"], "a"), node("Reshape", ["a", "wide"], "b"), node("ReduceSum", ["a"], "c"),
        node("Add", ["b", "c"], "y"),
    ]
    before = model(nodes, {"flat": [-1], "wide": [4, 6]})
    after = merge_reshapes(before)
    assert Counter(ops(after))["Reshape"] == 2
    both(before, after)


def test_constants_are_computed_where_that_takes_no_more_bytes() -> None:
    nodes = [
        node("Add", ["two", "three"], "five"), node("Mul", ["five", "two"], "ten"), node("Mul", ["x", "ten"], "a"),
        node("Cast", ["small"], "wide", to=TensorProto.FLOAT), node("Add", ["a", "wide"], "y"),
    ]
    two, three = np.array(2, np.float32), np.array(3, np.float32)
    before = model(nodes, {"two": two, "three": three, "small": np.arange(4, dtype=np.int8)})
    after = fold_constants(before)
    assert ops(after) == ["Mul", "Cast", "Add"]
    assert {tensor.name for tensor in after.graph.initializer} == {"ten", "small"}
    both(before, after)


def test_scale_is_not_folded_where_somebody_else_reads_the_query() -> None:
    for reader in ("layers.0.attention.query.output", "layers.0.attention.query.heads"):
        changed = onnx.load_from_string(written(BERT))
        changed.graph.node.append(node("Relu", [reader], "spy"))
        after = fold_constants(changed)
        assert "layers.0.attention.query.scaled" in [entry.name for entry in after.graph.node]
        assert "layers.1.attention.query.scaled" not in [entry.name for entry in after.graph.node]


def test_projections_of_different_tensors_are_not_merged() -> None:
    changed = onnx.load_from_string(written(BERT))
    key = next(entry for entry in changed.graph.node if entry.name == "layers.0.attention.key.output")
    key.input[0] = "embedding.output"
    assert Counter(ops(merge_qkv(changed)))["Split"] == 1


def test_passes_leave_their_input_alone() -> None:
    before = onnx.load_from_string(written(BRANCHED))
    copy = before.SerializeToString(deterministic=True)
    for entry in PASSES.values():
        entry.apply(before)
    assert before.SerializeToString(deterministic=True) == copy


@pytest.mark.parametrize("scheme", SCHEMES)
def test_objections_name_the_scheme(scheme: str) -> None:
    found = {name: entry.objection(BERT, scheme) for name, entry in PASSES.items()}
    assert (found["merge_qkv"] is None) == (found["fold_constants"] is None) == (scheme == "fp32")
    assert (found["fuse_quantized"] is None) == (scheme != "fp32")
    for objection in found.values():
        assert objection is None or objection.startswith(scheme)
