"""The contract of stages, for each of them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages import STAGES, Outline, Stage
from edgesdk.stages.base import scope_matches
from edgesdk.stages.distill import Distill, DistillOptions
from edgesdk.stages.prune_neurons import PruneNeurons, PruneNeuronsOptions
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.testing.models import BERT, BERT_MEAN, FEATURES, VIT, VIT_MEAN, random_package
from edgesdk.testing.stages import StageTestCase


class TestDistill(StageTestCase):
    def stage(self) -> Stage:
        return Distill(DistillOptions(epochs=2, batch=8, learning_rate=1e-3))


class TestPruneNeurons(StageTestCase):
    def stage(self) -> Stage:
        return PruneNeurons(PruneNeuronsOptions(keep=0.5))

    def packages(self) -> list[Package]:
        return [random_package(spec) for spec in (VIT, BERT, BERT_MEAN)]


class TestPruneNeuronsByMagnitude(StageTestCase):
    def stage(self) -> Stage:
        return PruneNeurons(PruneNeuronsOptions(keep=0.7, importance="magnitude", multiple=1))

    def packages(self) -> list[Package]:
        return [random_package(VIT_MEAN), random_package(FEATURES)]


class TestQuantizePtq(StageTestCase):
    def stage(self) -> Stage:
        return QuantizePtq(QuantizePtqOptions(scheme="w8a8"))

    def packages(self) -> list[Package]:
        return [random_package(spec) for spec in (VIT, BERT, FEATURES)]

    def after(self) -> None:
        return None


class TestQuantizePtqDynamic(StageTestCase):
    def stage(self) -> Stage:
        return QuantizePtq(QuantizePtqOptions(scheme="w8a8-dynamic"))

    def packages(self) -> list[Package]:
        return [random_package(VIT_MEAN), random_package(BERT_MEAN)]

    def after(self) -> None:
        return None


def test_every_stage_has_its_suite() -> None:
    """Some file beside this one makes the stage and has a conformance suite."""
    files = [path.read_text() for path in Path(__file__).parent.glob("test_stages*.py")]
    suites = [text for text in files if re.search(r"^class \w+\(StageTestCase\):", text, re.MULTILINE)]
    for stage in STAGES.values():
        assert any(f" {stage.__name__}(" in text for text in suites), stage.name


def test_table_is_sorted_and_named_by_the_stages() -> None:
    assert list(STAGES) == sorted(STAGES)
    assert all(name == stage.name for name, stage in STAGES.items())


NEEDED = {
    "factorize": {"keep": 0.5}, "prune.heads": {"keep": 1}, "prune.layers": {"keep": 1}, "prune.neurons": {"keep": 0.5},
    "prune.vocabulary": {"size": 40}, "prune.weights": {"sparsity": 0.5}, "share.kv_heads": {"kv_heads": 1},
    "share.layers": {"distinct": 1},
}
EQUAL_LAYERS = dataclasses.replace(BERT, layers=(BERT.layers[0],) * 3)


@pytest.mark.parametrize("name", sorted(STAGES.keys() - {"exit.thresholds", "optimize"}))
def test_requirements_are_told_from_the_outline_alone(name: str) -> None:
    stage = STAGES[name](STAGES[name].options_type.model_validate(NEEDED.get(name, {})))
    outline = Outline(EQUAL_LAYERS, "fp32", "classification", True, True)
    assert stage.requires(outline) == []
    for scheme in ("w8a8", "w8a8-dynamic", "w4a8", "w4a8-dynamic"):
        reasons = stage.requires(dataclasses.replace(outline, scheme=scheme))
        assert any(scheme in reason for reason in reasons)


def test_scope_matches_as_a_glob() -> None:
    names = ["layers.0.ffn", "layers.1.ffn", "layers.10.ffn"]
    assert scope_matches("layers.?.ffn", names, "s") == names[:2]
    assert scope_matches("*", names, "s") == names
    with pytest.raises(StageError, match=r"'layers.9\*' matches nothing") as problem:
        scope_matches("layers.9*", names, "s")
    assert "layers.0.ffn" in problem.value.hint
