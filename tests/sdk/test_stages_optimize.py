"""The stage `optimize` under the contract of stages, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest

from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages import Stage, outline_of, run_stage
from edgesdk.stages.optimize import Optimize, OptimizeOptions
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.testing.models import BERT, random_context, random_package
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.passes import PASSES


def optimize(passes: str = "") -> Optimize:
    return Optimize(OptimizeOptions(passes=passes))


def quantized(scheme: str) -> Package:
    package = random_package(BERT)
    stage = QuantizePtq(QuantizePtqOptions.model_validate({"scheme": scheme}))
    return run_stage(stage, package, random_context(package))


class TestOptimize(StageTestCase):
    def stage(self) -> Stage:
        return optimize()

    def refused(self) -> list[Package]:
        """What is optimized already has nothing left to do."""
        package = random_package(BERT)
        return [run_stage(optimize(), package, random_context(package))]


class TestNamedPasses(StageTestCase):
    def stage(self) -> Stage:
        return optimize("merge_qkv, fold_constants, drop_identities")


def test_default_is_what_changes_the_model() -> None:
    package = random_package(BERT)
    made = run_stage(optimize(), package, random_context(package))
    assert made.spec.passes == ("fold_constants", "merge_qkv")
    assert made.spec == dataclasses.replace(package.spec, passes=made.spec.passes)
    static = quantized("w8a8")
    assert run_stage(optimize(), static, random_context(static)).spec.passes == ("fuse_quantized",)


def test_fusing_for_the_runtime_leaves_the_package_s_graph_alone() -> None:
    for scheme in ("w8a8", "w8a8-dynamic"):
        package = quantized(scheme)
        made = run_stage(optimize("fuse_quantized"), package, random_context(package))
        assert made.graph == package.graph


def test_passes_go_on_behind_later_stages() -> None:
    package = random_package(BERT)
    context = random_context(package)
    made = run_stage(optimize(), package, context)
    static = QuantizePtq(QuantizePtqOptions(scheme="w8a8"))
    both = run_stage(static, made, context)
    assert both.spec.passes == made.spec.passes
    assert both.graph == run_stage(static, package, context).graph, "quantized forms are left alone"


def test_second_run_adds_what_is_left() -> None:
    package = random_package(BERT)
    context = random_context(package)
    made = run_stage(optimize(), run_stage(optimize("merge_qkv"), package, context), context)
    assert made.spec.passes == ("merge_qkv", "fold_constants")


@pytest.mark.parametrize(
    ("passes", "reason"),
    [
        ("no_such", "no graph pass 'no_such'"), ("merge_qkv,,fold_constants", "no graph pass ''"),
        ("merge_qkv,merge_qkv", "given twice"), ("fuse_quantized", "loads? the fused form no faster"),
        ("merge_qkv;fold_constants", "no graph pass"),
    ],
)
def test_options_are_refused_with_the_reason(passes: str, reason: str) -> None:
    package = random_package(BERT)
    assert optimize(passes).requires(outline_of(package, True))
    with pytest.raises(StageError, match=reason):
        run_stage(optimize(passes), package, random_context(package))


def test_float_passes_are_refused_on_integers_with_what_was_measured() -> None:
    reasons = optimize("merge_qkv,fold_constants").requires(outline_of(quantized("w8a8"), True))
    assert len(reasons) == 2
    assert "was measured to be slower" in reasons[0]


def test_nothing_to_do_says_so_pass_by_pass() -> None:
    package = random_package(BERT)
    outline = outline_of(run_stage(optimize(), package, random_context(package)), True)
    (reason,) = optimize().requires(outline)
    assert all(name in reason for name, entry in PASSES.items() if entry.by_default)
