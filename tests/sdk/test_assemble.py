"""The record of a build: what the imported package says is what boards are judged by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgesdk import assemble
from edgesdk.dynamic_report import trace_package
from edgesdk.evaluate import run_graph
from edgesdk.testing.models import VIT, random_dataset, random_package, with_weights


def test_record_holds_what_the_imported_package_says_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate follows the batch, so the reference of a gated package must not be run in one."""
    gated = dataclasses.replace(VIT, layers=(VIT.layers[0], dataclasses.replace(VIT.layers[1], gate=True)))
    package, data = random_package(gated), random_dataset(gated, 12)
    middle = np.median(trace_package(package, data).gates[1])
    package = with_weights(package, layers__1__gate__bias=package.weights["layers.1.gate.bias"] - middle)
    found: list[Any] = []
    monkeypatch.setattr(assemble, "record_candidate", lambda *given: found.append(given[-1]) or given[0])
    job: Any = SimpleNamespace(package=package, notes=(), evaluation=data)
    board: Any = SimpleNamespace(name="host", provenance="measured")
    candidate: Any = SimpleNamespace(name="fp32-onnx")
    target: Any = SimpleNamespace(name="host", missing={})
    assemble.assemble(job, {}, [candidate], {}, data, board, target, {}, tmp_path)
    alone = run_graph(package.graph, data.inputs, batch=1)
    assert np.abs(alone - run_graph(package.graph, data.inputs)).max() > 0.1
    np.testing.assert_array_equal(found[0], alone)
