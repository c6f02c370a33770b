"""The contract of stages, for each of them."""

from __future__ import annotations

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
    suites = [value for value in globals().values() if isinstance(value, type) and issubclass(value, StageTestCase)]
    covered = {suite().stage().name for suite in suites if suite is not StageTestCase}
    assert covered == set(STAGES)


def test_table_is_sorted_and_named_by_the_stages() -> None:
    assert list(STAGES) == sorted(STAGES)
    assert all(name == stage.name for name, stage in STAGES.items())


@pytest.mark.parametrize("name", STAGES)
def test_requirements_are_told_from_the_outline_alone(name: str) -> None:
    stage = STAGES[name](STAGES[name].options_type.model_validate({"keep": 0.5} if name == "prune.neurons" else {}))
    assert stage.requires(Outline(VIT, "fp32", "classification", True)) == []
    for scheme in ("w8a8", "w8a8-dynamic"):
        (reason,) = stage.requires(Outline(VIT, scheme, "classification", True))
        assert scheme in reason


def test_scope_matches_as_a_glob() -> None:
    names = ["layers.0.ffn", "layers.1.ffn", "layers.10.ffn"]
    assert scope_matches("layers.?.ffn", names, "s") == names[:2]
    assert scope_matches("*", names, "s") == names
    with pytest.raises(StageError, match=r"'layers.9\*' matches nothing") as problem:
        scope_matches("layers.9*", names, "s")
    assert "layers.0.ffn" in problem.value.hint
