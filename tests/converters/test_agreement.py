"""The three int8 artifacts of the demo over its whole test set: one package, one answer, at most a point lost."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litert_runtime import run
from numpy.typing import NDArray

from edgesdk import demo
from edgesdk.converters import converter
from edgesdk.converters.front import lower
from edgesdk.converters.integer_share import LEAST_SHARE, integer_share
from edgesdk.converters.neon.kernel_sets import choose
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.evaluate import accuracy, run_graph
from edgesdk.package import Package, read_package
from edgesdk.recipe import load_recipes
from edgesdk.stages import Context, run_stage
from edgesdk.targets import load_target
from edgesdk.testing.needs import need

INT8_CONVERTERS = sorted(load_target("host").converters)
RULE = "not int8 by EdgeSDK's rule"


@pytest.fixture(scope="module")
def packages() -> tuple[Package, Package]:
    """The demo model, and what the recipe `int8` makes of it."""
    original = read_package(demo.package_path())
    train, package = demo.train_data(), original
    context = Context(train, demo.test_data(), train, original, demo.SEED)
    for stage in load_recipes("int8")[0].stages:
        package = run_stage(stage, package, context)
    return original, package


@pytest.fixture(scope="module")
def artifacts(packages: tuple[Package, Package], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    host, folders = load_target("host"), {}
    triple = choose(host).triple
    need(bool(find_all(triple)), f"no C compiler for {triple}")
    for name in INT8_CONVERTERS:
        folders[name] = tmp_path_factory.mktemp(name)
        artifact = converter(name).convert(packages[1], host, folders[name])
        assert artifact.scheme == "w8a8"
        assert not [note for note in artifact.notes if RULE in note]
    return folders


@pytest.fixture(scope="module")
def answers(artifacts: dict[str, Path]) -> dict[str, NDArray[Any]]:
    """Logits [359, 10] of every artifact, by its own runtime."""
    inputs = demo.test_data().inputs
    pixels, folder = inputs["pixel_values"], artifacts["neon"]
    (folder / "in.bin").write_bytes(pixels.astype("<f4").tobytes())
    words = ["run", "--inputs", "in.bin", "--n", str(len(pixels)), "--outputs", "out.bin"]
    subprocess.run([str(folder / "model"), *words], cwd=folder, check=True, timeout=60)
    return {
        "neon": np.fromfile(folder / "out.bin", "<f4").reshape(len(pixels), 10),
        "onnx": run_graph((artifacts["onnx"] / "model.onnx").read_bytes(), inputs, batch=1),
        "tflite": run((artifacts["tflite"] / "model.tflite").read_bytes(), inputs),
    }


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(INT8_CONVERTERS, 2)))
def test_artifacts_of_one_package_agree(answers: dict[str, NDArray[Any]], one: str, other: str) -> None:
    assert (answers[one].argmax(1) == answers[other].argmax(1)).mean() >= 0.98


@pytest.mark.parametrize("name", INT8_CONVERTERS)
def test_int8_loses_at_most_a_point(
    packages: tuple[Package, Package], answers: dict[str, NDArray[Any]], name: str
) -> None:
    data = demo.test_data()
    assert data.labels is not None
    before = accuracy(run_graph(packages[0].graph, data.inputs), data.labels)
    assert accuracy(answers[name], data.labels) >= before - 0.01


def test_the_demo_is_int8_by_the_rule(packages: tuple[Package, Package]) -> None:
    original, package = packages
    share = integer_share(lower(package.graph, package.sequence))
    # By hand, for 17 tokens and 3 layers: linears 4 · 64² + 2 · 64 · 256 and attention 2 · 17 · 64 for each token,
    # patches 16 · 4 · 64, classifier (float) 640.
    integer = 3 * 17 * (4 * 64**2 + 2 * 64 * 256) + 16 * 4 * 64
    assert share == pytest.approx(integer / (integer + 640 + 3 * 17 * 2 * 17 * 64))
    assert share >= LEAST_SHARE
    assert integer_share(lower(original.graph, original.sequence)) == 0
