"""The contract of stages as tests: inherit `StageTestCase`, say which stage, and get the whole suite.

    class TestMyStage(StageTestCase):
        def stage(self) -> Stage:
            return MyStage(MyStageOptions(keep=0.5))
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk.compress import compress
from edgesdk.errors import ConfigError, StageError
from edgesdk.evaluate import run_graph
from edgesdk.package import Package, content_digest, read_package, signature, write_package
from edgesdk.recipe import Recipe
from edgesdk.stages import Context, Stage, run_stage
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.testing.models import BERT, VIT, random_context, random_package
from edgesdk.verify import verify

_APPLIED: dict[type, list[tuple[Package, Package]]] = {}


class StageTestCase:
    """What every stage must keep. Override `packages` where the stage does not take these, and `after` where no
    quantization can follow."""

    @abstractmethod
    def stage(self) -> Stage:
        """A new stage with options that change something."""

    def packages(self) -> list[Package]:
        """Packages that the stage can be applied to."""
        return [random_package(VIT), random_package(BERT)]

    def refused(self) -> list[Package]:
        """Packages that its `requires` must refuse; by default quantized ones."""
        static = QuantizePtq(QuantizePtqOptions(scheme="w8a8"))
        return [run_stage(static, package, self.context(package)) for package in self.packages()[:1]]

    def after(self) -> Stage | None:
        """A stage that must work on what comes out; None where there is none."""
        return QuantizePtq(QuantizePtqOptions(scheme="w8a8"))

    def context(self, package: Package) -> Context:
        """What the stage may use with a package (or with what was made of it)."""
        return random_context(package)

    def apply(self, package: Package) -> Package:
        return run_stage(self.stage(), package, self.context(package))

    def applied(self) -> list[tuple[Package, Package]]:
        """Each of `packages` with what the stage makes of it, made once for the suite."""
        if type(self) not in _APPLIED:
            _APPLIED[type(self)] = [(package, self.apply(package)) for package in self.packages()]
        return _APPLIED[type(self)]

    def test_requires_is_content_where_the_stage_works(self) -> None:
        for package, _ in self.applied():
            assert self.stage().requires(self.context(package).outline(package)) == []

    def test_ensures_tells_spec_and_scheme_before_any_work(self) -> None:
        for package, made in self.applied():
            promised = self.stage().ensures(self.context(package).outline(package))
            assert (made.scheme, made.task) == (promised.scheme, promised.task)
            assert signature(made.spec) == signature(promised.spec)
            if self.stage().exact:
                assert made.spec == promised.spec
            assert {name: value.shape for name, value in made.weights.items()} == made.spec.weight_shapes()

    def test_result_verifies_and_onnx_equals_torch(self) -> None:
        from edgesdk.transformer.module import build, run

        for package, made in self.applied():
            verify(made)
            inputs = self.context(package).encoded_for(made).validation.inputs
            expected = run(build(made.spec, made.weights), inputs)
            outputs = run_graph(made.graph, inputs, batch=1)
            assert outputs.shape == expected.shape
            if made.encodings is None:
                np.testing.assert_allclose(outputs, expected, atol=1e-4, rtol=1e-4)
            else:
                noise = np.square(outputs - expected).sum() / np.square(expected).sum()
                assert noise < 0.05, f"relative squared error of the quantized graph is {noise:.3f}"

    def test_stage_changes_its_package_and_not_its_input(self) -> None:
        for package in self.packages():
            digest = content_digest(package)
            made = self.apply(package)
            assert content_digest(package) == digest
            assert content_digest(made) != digest
            assert made.graph != package.graph

    def test_lineage_says_what_was_done(self) -> None:
        stage = self.stage()
        package, made = self.applied()[0]
        assert len(made.lineage) == len(package.lineage) + 1
        entry = made.lineage[-1]
        assert entry.stage == stage.name
        assert entry.parameters == stage.options.model_dump(mode="json")
        assert entry.parent == content_digest(package)
        assert (entry.bytes_before, entry.bytes_after) == (len(package.graph), len(made.graph))
        assert entry.parameters_after == sum(value.size for value in made.weights.values())
        assert entry.macs_after == made.spec.macs(made.sequence)

    def test_equal_seeds_give_equal_bytes(self) -> None:
        for package, made in self.applied():
            assert content_digest(self.apply(package)) == content_digest(made)

    def test_trains_in_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Small models never get autocast by themselves, so large ones would be the first to meet it."""
        import functools

        import torch

        from edgesdk.stages import train_loop

        if not self.stage().trains:
            return
        contexts = functools.partial(torch.autocast, "cpu", torch.bfloat16)
        monkeypatch.setattr(train_loop, "autocast", lambda spec, device: contexts)
        for package in self.packages():
            verify(self.apply(package))

    def test_reloaded_package_goes_on(self, tmp_path: Path) -> None:
        following = self.after()
        for package, made in self.applied():
            write_package(made, tmp_path / "made.edgepkg")
            read = read_package(tmp_path / "made.edgepkg")
            verify(read)
            if following is None:
                continue
            context = self.context(package)
            assert following.requires(self.context(read).outline(read)) == []
            direct = run_stage(following, made, context)
            assert content_digest(run_stage(following, read, context)) == content_digest(direct)

    def test_wrong_order_is_refused_before_any_work(self, tmp_path: Path) -> None:
        stage = _watched(self.stage())
        for package in self.refused():
            assert stage.requires(self.context(package).outline(package))
            with pytest.raises(StageError, match=stage.name):
                run_stage(stage, package, self.context(package))
            with pytest.raises(ConfigError, match=stage.name):
                compress(package, Recipe("wrong", (stage,)), self.context(package), tmp_path)
        assert stage.calls == 0
        assert list(tmp_path.iterdir()) == []

    def test_failure_in_the_middle_leaves_no_cache_entry(self, tmp_path: Path) -> None:
        package = self.packages()[0]
        context = self.context(package)
        stage = _watched(self.stage(), fail=True)
        with pytest.raises(ZeroDivisionError):
            compress(package, Recipe("failing", (stage,)), context, tmp_path)
        assert list(tmp_path.iterdir()) == []
        made = compress(package, Recipe("working", (self.stage(),)), context, tmp_path)
        assert made.package.lineage[-1].stage == stage.name

    def test_broken_promise_is_an_error(self) -> None:
        package = self.packages()[0]
        stage = _watched(self.stage(), lie=True)
        with pytest.raises(StageError, match="promised"):
            run_stage(stage, package, self.context(package))


def _watched(stage: Stage, fail: bool = False, lie: bool = False) -> Any:
    """The stage, counting calls of `apply`; `fail` breaks them after the work, `lie` makes another model."""
    kind = type(stage)

    class Watched(kind):  # type: ignore[valid-type, misc]
        calls = 0

        def apply(self, package: Package, context: Context) -> Any:
            type(self).calls += 1
            change = super().apply(package, context)
            if fail:
                raise ZeroDivisionError
            if lie:
                spec = dataclasses.replace(change.spec or package.spec, norm_epsilon=0.5)
                change = dataclasses.replace(change, spec=spec)
            return change

    return Watched(stage.options)
