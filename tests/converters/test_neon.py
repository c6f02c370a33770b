"""The NEON converter under the contract of converters, its executable on this machine; and what its sizes count."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from sample_graphs import make

from edgesdk.converters import neon
from edgesdk.converters.artifact import Artifact
from edgesdk.converters.elf import read_only_bytes
from edgesdk.converters.neon.kernel_sets import choose
from edgesdk.converters.neon.toolchain import COMMON, find, find_all
from edgesdk.errors import ConvertError
from edgesdk.targets import load_target
from edgesdk.testing.converters import ConverterTestCase
from edgesdk.testing.needs import need
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    triple = choose(load_target("host")).triple
    need(bool(find_all(triple)), f"no C compiler for {triple}")


class TestNeon(ConverterTestCase):
    converter: ClassVar[Any] = neon

    def run(self, folder: Path, artifact: Artifact, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        assert artifact.executable is not None
        (folder / "row.bin").write_bytes(b"".join(np.ascontiguousarray(value).tobytes() for value in inputs))
        command = [str(folder / artifact.executable), "run", "--inputs", "row.bin", "--n", "1", "--outputs", "out.bin"]
        subprocess.run(command, cwd=folder, check=True, timeout=60)
        return np.fromfile(folder / "out.bin", "<f4").reshape(artifact.outputs[0].shape)


def test_padding_that_is_output_is_not_cut(tmp_path: Path) -> None:
    """Token inputs without a pooling: every row is an answer, so the mask may not shorten the input."""
    spec = TransformerSpec(TokenEmbedding(20, 8), 16, (Layer(2, 2, 8, 16),), "post", 1e-12, "gelu", "none")
    artifact = neon.convert(make(spec, "fp32", 6).package(), load_target("host"), tmp_path)
    assert artifact.outputs[0].name == "hidden_states"
    assert artifact.length_input is None


@pytest.mark.parametrize("target", ["host", "raspberry-pi/5"])
def test_read_only_bytes_are_code_and_constants(tmp_path: Path, target: str) -> None:
    """Constants count, zeroed and writable data do not."""
    triple = choose(load_target(target)).triple
    need(bool(find_all(triple)), f"no C compiler for {triple}")
    sizes = {}
    for name, text in {
        "code": "int f(int x) { return 3 * x; }",
        "constants": "int f(int x) { return 3 * x; } const char table[5000] = {1};",
        "data": "int f(int x) { return 3 * x; } char data[7000] = {1}; char zeros[90000];",
    }.items():
        (tmp_path / f"{name}.c").write_text(text)
        find(triple).run((*COMMON, "-c", f"{name}.c", "-o", f"{name}.o"), tmp_path)
        sizes[name] = read_only_bytes((tmp_path / f"{name}.o").read_bytes())
    assert 4 <= sizes["code"] < 500
    assert sizes["constants"] == sizes["code"] + 5000
    assert sizes["data"] == sizes["code"]


@pytest.mark.parametrize("cut", [0, 5, 40, 70])
def test_object_file_that_is_none_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.c").write_text("int f(void) { return 1; }")
    find(choose(load_target("host")).triple).run(("-c", "a.c", "-o", "a.o"), tmp_path)
    with pytest.raises(ConvertError):
        read_only_bytes((tmp_path / "a.o").read_bytes()[:cut])
