"""What counts as int8: the share of MACs in integer kernels, the note below 95 %, and what a BERT-like model weighs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sample_graphs import Sample, make, sample

from edgesdk.converters import converter
from edgesdk.converters.front import lower
from edgesdk.converters.integer_share import LEAST_SHARE, integer_share, share_notes
from edgesdk.converters.neon.convert import plan_of
from edgesdk.converters.neon.kernel_sets import KERNEL_SETS
from edgesdk.converters.neon.specialize import integer_attention_macs
from edgesdk.converters.tflite.model import translate
from edgesdk.targets import load_target
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

SEQUENCE = 64
BERT = TransformerSpec(
    TokenEmbedding(8000, 512), 256, (Layer(4, 4, 64, 1024),) * 4, "post", 1e-12, "gelu", "cls", pooler=True, classes=4
)
INT8_CONVERTERS = sorted(load_target("host").converters)
INT8 = ("w8a8", "w8a8-dynamic")


@pytest.fixture(scope="module")
def bert() -> dict[str, Sample]:
    """4 layers, hidden 256, feed-forward 1024, vocabulary 8000, at most 512 tokens."""
    return {scheme: make(BERT, scheme, SEQUENCE) for scheme in ("fp32", *INT8)}


@pytest.mark.parametrize("scheme", INT8)
def test_files_are_a_quarter_of_the_fp32_file(bert: dict[str, Sample], scheme: str) -> None:
    limit = 0.27 * len(bert["fp32"].graph)
    assert len(bert[scheme].graph) <= limit
    assert len(translate(lower(bert[scheme].graph, SEQUENCE))) <= limit


@pytest.mark.parametrize("scheme", INT8)
def test_weights_alone_are_a_quarter(bert: dict[str, Sample], scheme: str) -> None:
    """int8 matrices with their scales, from the graph itself, against the fp32 matrices that they replace."""
    whole = {tensor.name: tensor for tensor in onnx.load_from_string(bert["fp32"].graph).graph.initializer}
    quantized = {tensor.name: tensor for tensor in onnx.load_from_string(bert[scheme].graph).graph.initializer}
    int8 = onnx.TensorProto.INT8
    matrices = {name for name, tensor in quantized.items() if name in whole and tensor.data_type == int8}
    scales = {f"{name}.scale" for name in matrices}
    assert scales <= quantized.keys()
    assert len(matrices) == 2 + 6 * 4 + 2
    before = sum(numpy_helper.to_array(whole[name]).nbytes for name in matrices)
    after = sum(numpy_helper.to_array(quantized[name]).nbytes for name in matrices | scales)
    assert before == 4 * sum(value.size for value in bert["fp32"].weights.values() if value.ndim == 2)
    assert after <= 0.255 * before


@pytest.mark.parametrize("scheme", INT8)
def test_an_encoder_is_int8_by_the_rule(bert: dict[str, Sample], scheme: str) -> None:
    graph = lower(bert[scheme].graph, SEQUENCE)
    assert integer_share(graph) >= LEAST_SHARE
    assert share_notes(graph, scheme) == ()


def test_share_is_what_can_be_counted_by_hand(bert: dict[str, Sample]) -> None:
    layers = 4 * SEQUENCE * (4 * 256**2 + 2 * 256 * 1024)
    attention = 4 * SEQUENCE * 2 * SEQUENCE * 256
    pooler, classifier = 256**2, 4 * 256
    total = layers + attention + pooler + classifier
    static, dynamic = (integer_share(lower(bert[scheme].graph, SEQUENCE)) for scheme in INT8)
    assert static == pytest.approx((layers + pooler) / total)  # the classifier of `w8a8` multiplies in float
    assert dynamic == pytest.approx((layers + pooler + classifier) / total)
    assert integer_share(lower(bert["fp32"].graph, SEQUENCE)) == 0


@pytest.mark.parametrize("name", INT8_CONVERTERS)
def test_long_sequences_are_not_called_int8(tmp_path: Path, name: str) -> None:
    """Attention grows with the square of the sequence; the artifact is made all the same, with a note. The Cortex-A72
    attends in floats in NEON builds too."""
    board = load_target("raspberry-pi/4")
    package = make(BERT_LONG, "w8a8", 200).package()
    share = integer_share(lower(package.graph, package.sequence))
    assert share < 0.5
    assert converter(name).check(package, board) == []
    (note,) = [note for note in converter(name).convert(package, board, tmp_path).notes if "integer kernels" in note]
    percent = f"{np.floor(1000 * share) / 10:g} %"
    assert note == f"only {percent} of the MACs run in integer kernels: not int8 by EdgeSDK's rule"


BERT_LONG = TransformerSpec(
    TokenEmbedding(20, 200), 32, (Layer(2, 2, 16, 64),), "post", 1e-12, "gelu", "cls", pooler=True, classes=3
)


@pytest.mark.parametrize("name", INT8_CONVERTERS)
def test_float_models_need_no_note(tmp_path: Path, name: str) -> None:
    artifact = converter(name).convert(sample("vit", "fp32").package(), load_target("host"), tmp_path)
    assert not [note for note in artifact.notes if "integer" in note]


def test_attention_in_integers_counts() -> None:
    """At a long sequence attention is a large part: float attention is below the limit, integer attention is all."""
    long = make(BERT, "w8a8", 512)
    graph = lower(long.graph, 512, branches="marked")
    share = integer_share(graph)
    assert share < LEAST_SHARE
    plan = plan_of(graph)
    macs = {name: integer_attention_macs(plan, KERNEL_SETS[name]) for name in ("base", "dotprod")}
    assert macs == {"base": 0, "dotprod": 4 * 2 * 512 * 512 * 4 * 64}
    assert integer_share(graph, macs["dotprod"]) > 0.999
    assert share_notes(graph, "w8a8", macs["dotprod"]) == () != share_notes(graph, "w8a8", macs["base"])
