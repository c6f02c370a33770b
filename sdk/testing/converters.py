"""The contract of converters as tests: inherit `ConverterTestCase`, say which converter and how its artifacts run.

    class TestMyConverter(ConverterTestCase):
        converter: ClassVar[Any] = edgesdk.converters.mine
        target = "host"

        def run(self, folder: Path, artifact: Artifact, inputs: list[Array]) -> Array:
            return my_runtime(folder / "model.bin", inputs)
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesdk.converters.artifact import DTYPES, Artifact, read_artifact, tolerance
from edgesdk.converters.base import Converter, length_input
from edgesdk.evaluate import sqnr_db
from edgesdk.files import atomic_folder
from edgesdk.package import Package, content_digest
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.targets import Target, load_target
from edgesdk.testing.models import SPECS, random_package, staged

SCHEMES = ("fp32", "w8a8", "w8a8-dynamic")
Converted = tuple[Package, Path, Artifact]


@cache
def sample_package(kind: str, scheme: str) -> Package:
    """A random package of `edgesdk.testing.models.SPECS` in one of SCHEMES."""
    package = random_package(SPECS[kind])
    if scheme == "fp32":
        return package
    return staged(package, QuantizePtq(QuantizePtqOptions.model_validate({"scheme": scheme})))


class ConverterTestCase:
    """What every converter must keep, over all kinds and schemes that it does not refuse."""

    converter: ClassVar[Any]
    target: ClassVar[str] = "host"

    @abstractmethod
    def run(self, folder: Path, artifact: Artifact, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        """Outputs [1, …] of the artifact for one row of inputs, each [1, …]."""

    def module(self) -> Converter:
        module: Converter = self.converter
        return module

    def board(self) -> Target:
        return load_target(self.target)

    def packages(self) -> list[Package]:
        """The packages that the converter does not refuse; at least one of every scheme that the target lists."""
        every = [sample_package(kind, scheme) for kind in SPECS for scheme in SCHEMES]
        taken = [package for package in every if not self.module().check(package, self.board())]
        assert {package.scheme for package in taken} == set(self.board().schemes) & set(SCHEMES)
        return taken

    def convert(self, package: Package, folder: Path) -> Artifact:
        with atomic_folder(folder) as temporary:
            return self.module().convert(package, self.board(), temporary)

    @pytest.fixture(scope="class")
    @classmethod
    def converted(cls, tmp_path_factory: pytest.TempPathFactory) -> list[Converted]:
        """All packages, converted once for all tests: compilers take their time."""
        case, folder = cls(), tmp_path_factory.mktemp("converted")
        folders = [(package, folder / str(number)) for number, package in enumerate(case.packages())]
        return [(package, path, case.convert(package, path)) for package, path in folders]

    def test_artifact_of_every_package_is_read_again(self, converted: list[Converted]) -> None:
        for package, folder, artifact in converted:
            assert read_artifact(folder) == _as_read(artifact)
            assert artifact.converter == self.module().name
            assert (artifact.scheme, artifact.target) == (self.module().scheme or package.scheme, self.board().name)
            assert artifact.package == content_digest(package)
            assert 0 < artifact.bytes <= artifact.bytes_with_runtime

    def test_runtime_gives_the_golden_outputs(self, converted: list[Converted]) -> None:
        for package, folder, artifact in converted:
            inputs = golden_block(folder / artifact.golden.inputs, artifact.golden.n, artifact.inputs)
            (expected,) = golden_block(folder / artifact.golden.outputs, artifact.golden.n, artifact.outputs)
            rows = [
                self.run(folder, artifact, [value[row : row + 1] for value in inputs])
                for row in range(artifact.golden.n)
            ]
            outputs = np.concatenate(rows)
            where = f"{package.spec} {package.scheme}"
            if artifact.golden.kind == "max_abs":
                assert np.abs(outputs - expected).max() <= artifact.golden.limit, where
            else:  # on these small models without the help of `noise_db`
                assert sqnr_db(expected, outputs) >= artifact.golden.limit, where
            if artifact.golden.labels_equal is not None and artifact.outputs[0].name == "logits":
                equal = (outputs.argmax(-1) == expected.argmax(-1)).mean()
                assert equal >= artifact.golden.labels_equal, where

    def test_tolerance_is_the_one_of_the_scheme(self, converted: list[Converted]) -> None:
        for package, _, artifact in converted:
            golden = artifact.golden
            assert (golden.kind, golden.limit, golden.labels_equal, golden.noise_db) == tolerance(package.scheme)
            assert golden.n == len(package.samples.golden_outputs)

    def test_golden_outputs_are_those_of_the_package(self, converted: list[Converted]) -> None:
        for package, folder, artifact in converted:
            (outputs,) = golden_block(folder / artifact.golden.outputs, artifact.golden.n, artifact.outputs)
            static = package.scheme == "w8a8"
            expected = package.samples.golden_outputs if static else package.samples.golden_float
            np.testing.assert_array_equal(outputs, expected)

    def test_padding_is_cut_only_where_no_row_of_it_is_output(self, converted: list[Converted]) -> None:
        for package, _, artifact in converted:
            assert artifact.length_input in (None, length_input(package))
            assert artifact.length_input is None or artifact.work == "per_input"

    def test_equal_packages_give_equal_files(self, tmp_path: Path) -> None:
        for package in self.packages()[:3]:
            files = []
            for name in ("one", "two"):
                self.convert(package, tmp_path / name)
                folder = tmp_path / name
                files.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
            assert files[0] == files[1]

    def test_unlisted_scheme_is_refused_with_a_reason(self) -> None:
        target = self.board().model_copy(update={"schemes": ("w4",)})
        for scheme in SCHEMES:
            reasons = self.module().check(sample_package("vit", scheme), target)
            assert reasons
            assert all(isinstance(reason, str) and reason for reason in reasons)
            assert any(scheme in reason for reason in reasons)


def golden_block(path: Path, rows: int, tensors: tuple[Any, ...]) -> list[NDArray[Any]]:
    """The arrays [rows, …] of a golden file, read as a board reads it: raw blocks, one tensor after the other."""
    data, arrays = path.read_bytes(), []
    for tensor in tensors:
        dtype = np.dtype(DTYPES[tensor.dtype])
        size = rows * math.prod(tensor.shape[1:]) * dtype.itemsize
        arrays.append(np.frombuffer(data[:size], dtype).reshape(rows, *tensor.shape[1:]))
        data = data[size:]
    assert not data, f"{path}: {len(data)} bytes belong to no tensor"
    return arrays


def _as_read(artifact: Artifact) -> Artifact:
    """The artifact as JSON gives it back: sequences are lists there."""
    segments = None if artifact.segments is None else list(artifact.segments)
    return dataclasses.replace(artifact, runtime=dict(artifact.runtime), segments=segments)
