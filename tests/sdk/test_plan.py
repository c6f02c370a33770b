"""Plans: what would run and what would be refused, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgesdk import compress as compress_module
from edgesdk.converters import converter
from edgesdk.converters.neon.kernel_sets import AARCH64
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.errors import ConfigError
from edgesdk.files import canonical_json
from edgesdk.plan import make_plan, predicted_bytes, recipes_of
from edgesdk.request import Request
from edgesdk.stages import outline_of
from edgesdk.targets import load_target
from edgesdk.testing.converters import SCHEMES, sample_package
from edgesdk.testing.models import BERT, SPECS, VIT, random_dataset, random_package
from edgesdk.testing.needs import need
from edgesdk.transformer.module import build


def _request(spec: Any = VIT, **changes: Any) -> Request:
    package = random_package(spec)
    model = build(package.spec, package.weights)
    fields: dict[str, Any] = {"model": model, "data": random_dataset(spec, 20), "converters": ["onnx"]}
    return Request(**(fields | changes))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No farm.toml of whoever runs the tests, and no stage may run."""
    monkeypatch.chdir(tmp_path)

    def fail(*arguments: Any) -> Any:
        raise AssertionError("a plan ran a stage")

    monkeypatch.setattr(compress_module, "run_stage", fail)


def test_plan_lists_each_recipe_and_converter() -> None:
    plan = make_plan(_request(recipes=["fp32", "int8"]))
    assert (plan["format"], plan["version"], plan["target"]) == ("edgesdk.plan", 1, "host")
    assert [(item["name"], item["scheme"], item["reasons"]) for item in plan["candidates"]] == [
        ("fp32-onnx", "fp32", []), ("int8-onnx", "w8a8", [])]
    assert plan["reasons"] == []
    canonical_json(plan)


def test_every_number_is_called_predicted() -> None:
    for item in make_plan(_request())["candidates"]:
        assert item["bytes"]["provenance"] == item["macs"]["provenance"] == "predicted"
        assert item["bytes"]["value"] > 0
        assert item["macs"]["value"] == VIT.macs()


def test_stage_in_the_wrong_order_is_refused_with_its_position(tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(
        "format: edgesdk.recipe\nversion: 1\nstages: [{stage: quantize.ptq}, {stage: prune.neurons, keep: 0.5}]"
    )
    plan = make_plan(_request(recipes=[str(recipe)]))
    (reason,) = plan["reasons"]
    assert "stages[1] (line " in reason and ") prune.neurons: " in reason
    assert plan["candidates"][0]["reasons"] == [reason]


def test_scope_that_matches_nothing_is_a_reason(tmp_path: Path) -> None:
    recipe = tmp_path / "scope.yaml"
    recipe.write_text("format: edgesdk.recipe\nversion: 1\nstages: [{stage: prune.neurons, keep: 0.5, scope: encoder}]")
    (reason,) = make_plan(_request(recipes=[str(recipe)]))["reasons"]
    assert "matches nothing" in reason


def test_recipes_that_need_training_data_are_left_out_without_it() -> None:
    names = {item["recipe"] for item in make_plan(_request())["candidates"]}
    with_training = {item["recipe"] for item in make_plan(
        _request(train_data=random_dataset(VIT, 30, seed=50)))["candidates"]}
    assert names < with_training
    assert [recipe.name for recipe in recipes_of(_request())] == sorted(names, key=lambda name: (name != "fp32", name))


def test_pruned_candidate_is_predicted_smaller(tmp_path: Path) -> None:
    recipe = tmp_path / "half.yaml"
    recipe.write_text("format: edgesdk.recipe\nversion: 1\nstages: [{stage: prune.neurons, keep: 0.5}]")
    plain, half = make_plan(_request(recipes=["fp32", str(recipe)]))["candidates"]
    assert half["bytes"]["value"] < plain["bytes"]["value"]
    assert half["macs"]["value"] < plain["macs"]["value"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"target": "rpi9"}, "unknown target"), ({"recipes": ["int9"]}, "no such preset"),
     ({"converters": ["tensorrt"]}, "tensorrt"), ({"board": "nowhere"}, "nowhere"), ({"data": None}, "data"),
     ({"farm": Path("none.toml")}, "none.toml")],
)
def test_wrong_requests_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(_request(**changes))


def test_board_without_hardware_would_be_emulated() -> None:
    plan = make_plan(_request(target="rpi5", recipes=["int8"]))
    assert (plan["board"], plan["provenance"]) == ("rpi5-emulated", "emulated")


def test_goal_that_cannot_be_measured_is_a_reason() -> None:
    plan = make_plan(_request(target="rpi5", recipes=["int8"], goals={"latency_p90": "max 30ms"}))
    assert len(plan["reasons"]) == 1
    assert "latency" in plan["reasons"][0]


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_predicted_bytes_are_near_those_of_the_file(kind: str, scheme: str) -> None:
    """The file adds nodes and names: a constant that does not grow with the weights."""
    package = sample_package(kind, scheme)
    predicted = predicted_bytes(outline_of(package, False))
    assert predicted <= len(package.graph) <= predicted + 40_000


@pytest.mark.parametrize("kind", SPECS)
def test_predicted_bytes_of_halves_are_near_those_of_the_weights(kind: str, tmp_path: Path) -> None:
    """Norms and biases stay float32, and rows are padded to panels of 16."""
    need(bool(find_all(AARCH64)), f"no C compiler for {AARCH64}")
    package = sample_package(kind, "fp32")
    predicted = predicted_bytes(outline_of(package, False), "fp16")
    artifact = converter("neon-fp16").convert(package, load_target("rpi5"), tmp_path)
    assert predicted <= artifact.runtime["weight_bytes"] <= 1.35 * predicted


def test_a_refused_candidate_keeps_the_scheme_of_its_package() -> None:
    """A converter to fp16 that is asked for alone says why it makes nothing of int8, and promises no bytes of fp16."""
    plan = make_plan(_request(target="rpi5", recipes=["fp32", "int8"], converters=["neon-fp16"]))
    half, refused = plan["candidates"]
    assert (half["scheme"], half["reasons"]) == ("fp16", [])
    assert refused["scheme"] == "w8a8" and "of a package in fp32" in refused["reasons"][0]


def test_predicted_bytes_by_hand() -> None:
    outline = outline_of(sample_package("bert", "fp32"), False)
    assert predicted_bytes(outline) == 4 * BERT.parameters()
    quantized = outline_of(sample_package("bert", "w8a8"), False)
    matrices = [shape for shape in BERT.weight_shapes().values() if len(shape) == 2]
    saved = sum(3 * rows * columns - 4 * rows for rows, columns in matrices)
    assert predicted_bytes(quantized) == 4 * BERT.parameters() - saved


def test_target_of_the_plan_is_the_callers(tmp_path: Path) -> None:
    assert make_plan(_request(target="rpi4", recipes=["fp32"]))["target"] == load_target("rpi4").name
