"""The stage cache: by content, shared by recipes, never trusted when damaged."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgesdk import compress as compress_module
from edgesdk import stages
from edgesdk.compress import Compressed, compress
from edgesdk.errors import ConfigError, StageError
from edgesdk.package import Package, content_digest, replace
from edgesdk.recipe import FP32, Recipe
from edgesdk.stages import Context, Stage
from edgesdk.stages.prune_neurons import PruneNeurons, PruneNeuronsOptions
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.testing.models import VIT, random_context, random_dataset, random_package

PRUNE = PruneNeurons(PruneNeuronsOptions(keep=0.5))
STATIC = QuantizePtq(QuantizePtqOptions())
DYNAMIC = QuantizePtq(QuantizePtqOptions(scheme="w8a8-dynamic"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that ran."""
    names: list[str] = []
    original = stages.run_stage

    def run_stage(stage: Stage, package: Package, context: Context) -> Package:
        names.append(stage.name)
        return original(stage, package, context)

    monkeypatch.setattr(compress_module, "run_stage", run_stage)
    return names


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Compressed]:
    package = random_package(VIT)

    def run(*stages: Stage, context: Context | None = None, package: Package = package) -> Compressed:
        return compress(package, Recipe("mine", stages), context or random_context(package), tmp_path / "cache")

    return run


def test_recipe_without_stages_gives_the_package(tmp_path: Path, calls: list[str]) -> None:
    package = random_package(VIT)
    result = compress(package, FP32, random_context(package), tmp_path / "cache")
    assert result.package is package
    assert result.seconds == ()
    assert calls == []


def test_second_run_reads_the_cache(run: Any, calls: list[str]) -> None:
    first = run(PRUNE, STATIC)
    assert calls == ["prune.neurons", "quantize.ptq"]
    second = run(PRUNE, STATIC)
    assert calls == ["prune.neurons", "quantize.ptq"]
    assert content_digest(second.package) == content_digest(first.package)
    assert second.seconds == first.seconds
    assert [entry.stage for entry in second.package.lineage] == ["prune.neurons", "quantize.ptq"]


def test_recipes_share_their_beginning(run: Any, calls: list[str]) -> None:
    run(PRUNE, STATIC)
    run(PRUNE, DYNAMIC)
    assert calls == ["prune.neurons", "quantize.ptq", "quantize.ptq"]


def _truncate(entry: Path) -> None:
    (entry / "weights.safetensors").write_bytes(b"")


def _flip(entry: Path) -> None:
    data = bytearray((entry / "graph" / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (entry / "graph" / "model.onnx").write_bytes(data)


def _no_manifest(entry: Path) -> None:
    (entry / "manifest.json").unlink()


def _empty(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.mkdir()


def _foreign(entry: Path) -> None:
    _empty(entry)
    (entry / "other").write_text("x")


def _seconds(entry: Path) -> None:
    (entry / "run.json").write_text(json.dumps({"format": "edgesdk.run", "version": 1, "seconds": "many"}))


def _no_number(entry: Path) -> None:
    (entry / "run.json").write_text(json.dumps({"format": "edgesdk.run", "version": 1, "seconds": [1]}))


@pytest.mark.parametrize(
    "damage", [_truncate, _flip, _no_manifest, _empty, _foreign, _seconds, _no_number],
    ids=lambda damage: str(damage.__name__),
)
def test_damaged_entry_is_made_again(
    run: Any, calls: list[str], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first = run(PRUNE)
    (entry,) = (tmp_path / "cache").iterdir()
    damage(entry)
    again = run(PRUNE)
    assert calls == ["prune.neurons", "prune.neurons"]
    assert content_digest(again.package) == content_digest(first.package)
    run(PRUNE)
    assert len(calls) == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]


def test_what_decides_the_result_decides_the_key(run: Any, calls: list[str]) -> None:
    package = random_package(VIT)
    context = random_context(package)
    data = random_dataset(VIT, 24, 99)
    run(STATIC)
    others = [
        dataclasses.replace(context, seed=1), dataclasses.replace(context, calibration=data),
        dataclasses.replace(context, validation=data), dataclasses.replace(context, train=data),
        dataclasses.replace(context, train=None), dataclasses.replace(context, teacher=random_package(VIT, 5)),
    ]
    for count, other in enumerate(others, 2):
        run(STATIC, context=other)
        assert len(calls) == count
    run(QuantizePtq(QuantizePtqOptions(percentile=99.0)))
    run(STATIC, package=random_package(VIT, 3), context=context)
    run(STATIC, package=replace(package, name="other"), context=context)
    assert len(calls) == len(others) + 4
    run(STATIC, context=dataclasses.replace(context, progress=lambda what, done, total: None))
    assert len(calls) == len(others) + 4


def test_key_knows_the_versions(run: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run(STATIC)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99")
    run(STATIC)
    assert len(calls) == 2


def test_recipe_that_cannot_run_does_nothing(run: Any, calls: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\[1\] prune.neurons"):
        run(STATIC, PRUNE)
    assert calls == []
    assert not (tmp_path / "cache").exists()


def test_failure_in_the_second_stage_keeps_the_first(
    run: Any, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise StageError("broken on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(QuantizePtq, "apply", fail)
        with pytest.raises(StageError, match="on purpose"):
            run(PRUNE, STATIC)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    run(PRUNE, STATIC)
    assert calls == ["prune.neurons", "quantize.ptq", "quantize.ptq"]


def test_progress_names_recipe_and_stage(tmp_path: Path) -> None:
    package, seen = random_package(VIT), []
    context = dataclasses.replace(random_context(package), progress=lambda *step: seen.append(step))
    compress(package, Recipe("mine", (PRUNE, STATIC)), context, tmp_path)
    assert seen == [("mine: prune.neurons", 0, 2), ("mine: quantize.ptq", 1, 2)]
