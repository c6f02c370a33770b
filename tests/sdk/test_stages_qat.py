"""`quantize.qat`: rounding against numpy and ONNX Runtime, LSQ's gradients, the graph is the model that was trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from edgesdk import demo
from edgesdk.encodings import ActivationEncoding, Encodings, WeightEncoding
from edgesdk.errors import StageError
from edgesdk.evaluate import run_graph, sqnr_db
from edgesdk.package import Package, read_package
from edgesdk.stages import Context, Outline, Stage, run_stage
from edgesdk.stages.calibrate import weight_encoding
from edgesdk.stages.fake_quantize import (
    FakeActivations,
    FakeEmbedding,
    FakeLinear,
    FakeQuantization,
    RoundRange,
    RoundToGrid,
)
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.stages.quantize_qat import QuantizeQat, QuantizeQatOptions
from edgesdk.testing.models import (
    BERT,
    BERT_MEAN,
    FEATURES,
    VIT,
    VIT_MEAN,
    random_context,
    random_inputs,
    random_package,
    random_weights,
    with_weights,
)
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.module import build, run
from edgesdk.transformer.quantize import dequantized
from edgesdk.transformer.spec import Exit, Layer, TransformerSpec

SCHEMES = ["w8a8", "w8a8-dynamic", "w4a8", "w4a8-dynamic"]
FAST = QuantizeQatOptions(epochs=2, batch=8, learning_rate=1e-3, group=4)
# Shared layers, a low-rank part, an exit, a gate, fewer key/value heads.
RICH = TransformerSpec(
    VIT.embedding, 16,
    (
        Layer(4, 2, 4, 32, ranks={"ffn.up": 8}, exit=Exit("confidence", 0.4)),
        Layer(4, 2, 4, 32, ranks={"ffn.up": 8}, share=0, gate=True),
    ),
    "pre", 1e-6, "gelu", "cls", final_norm=True, classes=5,
)


def _options(scheme: Any, **changes: Any) -> QuantizeQatOptions:
    return FAST.model_copy(update={"scheme": scheme, **changes})


class _Suite(StageTestCase):
    def after(self) -> None:
        return None


class TestStatic(_Suite):
    def stage(self) -> Stage:
        return QuantizeQat(_options("w8a8"))


class TestDynamic(_Suite):
    def stage(self) -> Stage:
        return QuantizeQat(_options("w8a8-dynamic"))

    def packages(self) -> list[Package]:
        return [random_package(VIT_MEAN), random_package(BERT_MEAN)]


class TestFourBits(_Suite):
    def stage(self) -> Stage:
        return QuantizeQat(_options("w4a8"))

    def packages(self) -> list[Package]:
        return [random_package(BERT), random_package(FEATURES)]


class TestFourBitsDynamic(_Suite):
    def stage(self) -> Stage:
        return QuantizeQat(_options("w4a8-dynamic"))


# Rounding


def test_rounding_to_a_grid_and_its_gradients() -> None:
    """LSQ (Esser et al. 2020, equations 3 and 5), by hand."""
    value = torch.tensor([[0.26, -5.0, 3.9, 0.74]], requires_grad=True)
    step = torch.tensor([[0.5]], requires_grad=True)
    found = RoundToGrid.apply(value, step, -8.0, 7.0)  # type: ignore[no-untyped-call]
    assert found.tolist() == [[0.5, -4.0, 3.5, 0.5]]
    (found * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert value.grad is not None and step.grad is not None
    assert value.grad.tolist() == [[1.0, 0.0, 0.0, 4.0]]
    reaction = 1 * (1 - 0.52) + 2 * -8 + 3 * 7 + 4 * (1 - 1.48)
    assert step.grad.item() == pytest.approx(reaction / (4 * 7) ** 0.5, rel=1e-5)


def test_dynamic_ranges_are_those_of_dynamic_quantize_linear() -> None:
    """Each input by itself, against ONNX Runtime."""
    names = ("q", "scale", "zero")
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], list(names)),
        helper.make_node("DequantizeLinear", list(names), ["y"]),
    ]
    shape = [1, 5, 7]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    random = np.random.default_rng(0)
    values = random.normal(size=(6, 5, 7)).astype(np.float32) * np.array([1, 10, 0.1, 1, 1, 0])[:, None, None]
    values[3], values[4] = np.abs(values[3]), -np.abs(values[4])
    values = values.astype(np.float32)
    found = RoundRange.apply(torch.from_numpy(values)).numpy()  # type: ignore[no-untyped-call]
    expected = run_graph(model, {"x": values}, batch=1)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert np.abs(found - values).max() > 1e-3


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 4), (4, None)])
def test_layers_round_as_the_encodings_do(bits: int, group: int | None) -> None:
    random = np.random.default_rng(0)
    linear, table = nn.Linear(8, 5), nn.Embedding(5, 8)
    with torch.no_grad():
        for layer in (linear, table):
            layer.weight.copy_(torch.from_numpy(random.normal(size=(5, 8)).astype(np.float32)))
    for layer, fake_type in ((linear, FakeLinear), (table, FakeEmbedding)):
        weight = layer.weight.detach().numpy()
        encoding = weight_encoding(weight, bits, group)
        expected = dequantized(weight, encoding)
        fake = fake_type(layer, encoding)  # type: ignore[arg-type]
        found = fake.rounded() if isinstance(fake, FakeLinear) else fake(torch.arange(5))
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-6)
        assert fake.weight is layer.weight


def test_static_activations_round_as_the_encodings_do_and_learn_their_scale() -> None:
    encodings = Encodings("w8a8", "minmax", 1, {"a": ActivationEncoding(0.1, -100)}, {})
    fake, value = FakeActivations(encodings), torch.tensor([-9.0, 0.26, 30.0])
    assert fake("a", value).tolist() == pytest.approx([-2.8, 0.3, 22.7])
    assert fake("b", value) is value
    assert fake.encodings()["a"].scale == pytest.approx(0.1)
    assert fake.encodings()["a"].zero_point == -100
    fake("a", value).sum().backward()
    gradient = fake.change[0].grad
    assert gradient is not None and gradient.item() > 0  # more is clipped above than below


# The stage


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("spec", [RICH, BERT], ids=["rich", "bert"])
def test_graph_is_the_model_that_was_trained(scheme: str, spec: TransformerSpec) -> None:
    """The encodings that come out, put into the float weights that come out, change them no more; and the module that
    trains computes what the graph does."""
    package = random_package(spec)
    made = run_stage(QuantizeQat(_options(scheme)), package, random_context(package))
    assert made.encodings is not None
    for name, encoding in made.encodings.weights.items():
        np.testing.assert_allclose(dequantized(made.weights[name], encoding), made.weights[name], rtol=1e-5, atol=1e-7)
    module = build(made.spec, made.weights)
    fake = FakeQuantization(module, made.encodings)
    inputs = random_inputs(spec, 8, seed=9)
    if "attention_mask" in inputs:
        inputs["attention_mask"][:] = 1
    found = run(module, inputs, fake.tap)
    expected = run_graph(made.graph, inputs, optimize=False, batch=1)
    assert sqnr_db(expected, found) > 30
    assert sqnr_db(run(build(package.spec, package.weights), inputs), expected) < 60


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bits_and_scales_are_as_promised(scheme: Any) -> None:
    package = random_package(BERT)
    context = random_context(package)
    made = run_stage(QuantizeQat(_options(scheme)), package, context).encodings
    start = run_stage(QuantizePtq(QuantizePtqOptions(scheme=scheme, group=4)), package, context).encodings
    assert made is not None and start is not None
    bits = {name: encoding.bits for name, encoding in made.weights.items()}
    assert bits == {name: encoding.bits for name, encoding in start.weights.items()}
    assert bits["classifier.weight"] == bits["embedding.positions.weight"] == 8
    assert bits["layers.0.ffn.up.weight"] == bits["embedding.tokens.weight"] == int(scheme[1])
    assert made.activations.keys() == start.activations.keys()
    assert (not made.activations) == scheme.endswith("-dynamic")
    moved = [
        not np.array_equal(made.weights[name].scale, start.weights[name].scale)
        for name in made.weights if not name.startswith("embedding.")
    ]
    assert all(moved)


def test_four_bits_train_to_more_than_rounding_gives() -> None:
    """The trained demo ViT in w4a8: nearer to its float answers than rounding to nearest with searched steps."""
    package, test = read_package(demo.package_path()), demo.test_data()
    train, validation = demo.train_data().split(0.1, 0)
    context = Context(train.head(640), validation, train.head(128), package, seed=0)
    rounded = run_stage(QuantizePtq(QuantizePtqOptions(scheme="w4a8", group="row")), package, context)
    options = QuantizeQatOptions(scheme="w4a8", group="row", epochs=2, batch=32, learning_rate=1e-4, alpha=0.0)
    trained = run_stage(QuantizeQat(options), package, context)
    reference = run_graph(package.graph, test.inputs)
    before, after = (_divergence(reference, run_graph(made.graph, test.inputs)) for made in (rounded, trained))
    assert after < 0.6 * before


def _divergence(reference: NDArray[Any], outputs: NDArray[Any]) -> float:
    wanted, found = (torch.from_numpy(value).log_softmax(-1) for value in (reference, outputs))
    return torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True).item()


def test_structural_zeros_stay_zero() -> None:
    weights = random_weights(VIT)
    name = "layers.0.ffn.down.weight"
    pattern = np.random.default_rng(0).random(weights[name].shape) < 0.5
    weights[name] = np.where(pattern, 0, weights[name]).astype(np.float32)
    spec = dataclasses.replace(VIT, sparse={"layers.0.ffn.down": "unstructured"})
    package = random_package(spec)
    package = with_weights(package, **{key.replace(".", "__"): value for key, value in weights.items()})
    made = run_stage(QuantizeQat(_options("w4a8")), package, random_context(package))
    assert (made.weights[name][pattern] == 0).all()
    assert (made.weights[name] != 0).any()


def test_encoders_are_trained_to_their_own_answers() -> None:
    package = random_package(BERT_MEAN)
    context = random_context(package)
    options = _options("w4a8", epochs=30, learning_rate=2e-3, group="row")
    rounded = run_stage(QuantizePtq(QuantizePtqOptions(scheme="w4a8", group="row")), package, context)
    trained = run_stage(QuantizeQat(options), package, context)
    assert context.train is not None
    inputs = context.train.inputs
    reference = run_graph(package.graph, inputs)
    before, after = (sqnr_db(reference, run_graph(made.graph, inputs)) for made in (rounded, trained))
    assert after > before + 1


def test_bias_fits_its_integers() -> None:
    """A row of tiny weights with a large bias: its scale grows until the bias fits int32."""
    weights = dict(random_package(VIT).weights)
    weights["layers.0.ffn.up.weight"] = weights["layers.0.ffn.up.weight"].copy()
    weights["layers.0.ffn.up.weight"][3] *= 1e-12
    package = with_weights(random_package(VIT), layers__0__ffn__up__weight=weights["layers.0.ffn.up.weight"])
    made = run_stage(QuantizeQat(_options("w8a8", epochs=0.1)), package, random_context(package))
    assert made.encodings is not None
    scale = made.encodings.weights["layers.0.ffn.up.weight"].scale[3]
    source = made.encodings.activations["layers.0.ffn.input"].scale
    assert abs(made.weights["layers.0.ffn.up.bias"][3]) / (scale * source) < 2**30 * 1.01


# Refusals


def test_refuses_without_training_data_and_quantized_packages() -> None:
    stage = QuantizeQat(FAST)
    package = random_package(VIT)
    with pytest.raises(StageError, match="--train-data"):
        run_stage(stage, package, random_context(package, training=False))
    (reason,) = stage.requires(Outline(VIT, "w8a8", "classification", True))
    assert reason == "the package is w8a8 already"
    decoder = dataclasses.replace(
        BERT_MEAN, pooling="none", lm_head=True, causal=True, norm="pre", final_norm=True,
    )
    assert any("token logits" in reason for reason in stage.requires(Outline(decoder, "fp32", "encoding", True)))


@pytest.mark.parametrize("wrong", [{"scheme": "w2a8"}, {"group": 0}, {"group": "column"}, {"grup": 8}, {"epochs": 0}])
def test_refuses_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuantizeQatOptions.model_validate(wrong)


def test_weight_encoding_of_a_fake_layer_is_plain_data() -> None:
    encoding = WeightEncoding(8, 0, np.ones(3, np.float32))
    assert FakeLinear(nn.Linear(2, 3), encoding).scale().tolist() == [1.0, 1.0, 1.0]
