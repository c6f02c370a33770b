"""Stages in long recipes: every family in one of three, the package whole behind each, and the chain resumable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk.compress import compress
from edgesdk.converters import converter
from edgesdk.dynamic_report import dynamic_figures
from edgesdk.evaluate import run_graph
from edgesdk.package import Package, content_digest
from edgesdk.recipe import Recipe
from edgesdk.stages import STAGES, Context, Stage
from edgesdk.targets import load_target
from edgesdk.testing.models import BERT, VIT, random_context, random_package
from edgesdk.testing.texts import text_context, text_package
from edgesdk.transformer.spec import Layer

QUICK = {"epochs": 1, "batch": 8, "learning_rate": 1e-3}
TEXT = dataclasses.replace(BERT, layers=(Layer(4, 4, 4, 32),) * 4)
IMAGE = dataclasses.replace(VIT, layers=(Layer(4, 4, 4, 32),) * 4)

SMALL = (
    ("prune.vocabulary", {"size": 140}), ("prune.layers", {"keep": 3}), ("prune.heads", {"keep": 2}),
    ("prune.neurons", {"keep": 0.5, "importance": "obs"}), ("factorize", {"parts": "embedding", "rank": 8}),
    ("distill", QUICK), ("quantize.qat", {**QUICK, "scheme": "w4a8-dynamic", "group": 8}),
)
SHARED = (
    ("share.kv_heads", {"kv_heads": 2}), ("share.layers", {"groups": "0,0,1,1"}),
    ("prune.weights", {"pattern": "2:4", "score": "activation"}), ("distill", QUICK),
    ("exit.early", {**QUICK, "layers": "0,1"}),
    ("quantize.ptq", {"scheme": "w8a8", "bias_correction": True}),
    ("exit.thresholds", {"risk": 0.7, "delta": 0.4, "thresholds": "common"}),
)
GATED = (
    ("factorize", {"parts": "layers.*.ffn.*", "keep": 0.7, "multiple": 1}), ("prune.heads", {"keep": 2}),
    ("route.skip", {**QUICK, "layers": "1,2", "budget": 0.5}), ("distill", QUICK), ("optimize", {}),
    ("quantize.ptq", {"scheme": "w4a8", "rounding": "gptq", "group": 8}),
)
RECIPES = {"small": (SMALL, TEXT), "shared": (SHARED, TEXT), "gated": (GATED, IMAGE)}


def recipe_of(name: str) -> Recipe:
    def made(stage: str, options: dict[str, Any]) -> Stage:
        return STAGES[stage](STAGES[stage].options_type.model_validate(options))

    return Recipe(name, tuple(made(stage, options) for stage, options in RECIPES[name][0]))


def start_of(name: str) -> tuple[Package, Context]:
    spec = RECIPES[name][1]
    if name == "small":
        package = text_package(spec)
        return package, text_context(package)
    package = random_package(spec)
    return package, random_context(package)


def test_the_three_recipes_hold_every_stage() -> None:
    assert {stage for stages, _ in RECIPES.values() for stage, _ in stages} == STAGES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_long_recipe(name: str, tmp_path: Path) -> None:
    """`compress` verifies the package behind every stage (spec, weights, ONNX against torch, encodings)."""
    package, context = start_of(name)
    recipe = recipe_of(name)
    made = compress(package, recipe, context, tmp_path / "cache").package
    entries = made.lineage[-len(recipe.stages) :]
    assert [entry.stage for entry in entries] == [stage.name for stage in recipe.stages]
    for before, after in zip(entries, entries[1:], strict=False):
        assert (before.bytes_after, before.macs_after) == (after.bytes_before, after.macs_before)
        assert before.parameters_after == after.parameters_before
        assert before.metrics_after == after.metrics_before
    # A killed build begins again: what its first stages made is read back, and the end is the same.
    shorter = dataclasses.replace(recipe, stages=recipe.stages[:3])
    compress(package, shorter, context, tmp_path / "other")
    again = compress(package, recipe, context, tmp_path / "other").package
    assert content_digest(again) == content_digest(made)
    # What ships answers as the package does.
    target = load_target("host")
    assert converter("onnx").check(made, target) == []
    folder = tmp_path / "onnx"
    folder.mkdir()
    converter("onnx").convert(made, target, folder)
    golden = made.samples.golden_inputs
    outputs = run_graph((folder / "model.onnx").read_bytes(), dict(golden), optimize=False, batch=1)
    np.testing.assert_allclose(outputs, made.samples.golden_outputs, atol=1e-4)


def test_dynamic_recipes_say_where_inputs_go(tmp_path: Path) -> None:
    package, context = start_of("shared")
    made = compress(package, recipe_of("shared"), context, tmp_path).package
    figures = dynamic_figures(made, context.validation)
    assert sum(figures.left.values()) == pytest.approx(1.0)
    assert figures.macs_p50 <= figures.macs_p90 <= figures.macs_p99
    metrics = made.lineage[-1].metrics_after
    assert metrics["macs_mean"] == pytest.approx(figures.macs_mean)
