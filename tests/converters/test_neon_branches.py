"""Early exits and gates in the NEON build: answers and exits like ONNX Runtime, and work that is really skipped."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sample_graphs import BRANCHED, ROWS, SEQUENCE, Sample, make, sqnr_db

from edgesdk.converters.front import lower
from edgesdk.converters.neon import convert
from edgesdk.converters.neon.branches import Assign, Branch, Join, Otherwise, check_regions, mark
from edgesdk.converters.neon.convert import make_plan
from edgesdk.converters.neon.kernel_sets import choose
from edgesdk.converters.neon.plan import Attend, Plan, Sum, Tensor
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.errors import UnsupportedOp
from edgesdk.targets import load_target
from edgesdk.testing.needs import need
from edgesdk.transformer.spec import Exit, TransformerSpec

QEMU = {"host": [], "raspberry-pi/5": ["qemu-aarch64", "-cpu", "cortex-a76"]}


def with_exits(*exits: Exit | None) -> TransformerSpec:
    """`BRANCHED` with these exits by layer, and its gate."""
    layers = [dataclasses.replace(layer, exit=exit_) for layer, exit_ in zip(BRANCHED.layers, exits, strict=True)]
    return dataclasses.replace(BRANCHED, layers=tuple(layers))


MODELS = {
    "mixed": BRANCHED,
    "confidence": with_exits(Exit("confidence", 0.38), Exit("confidence", 0.4), Exit("confidence", 0.42), None),
    "patience": with_exits(Exit("patience", 1.0), Exit("patience", 1.0), Exit("patience", 1.0), None),
    "gates": with_exits(None, None, None, None),
    "pre": dataclasses.replace(BRANCHED, norm="pre", final_norm=True, pooling="mean", pooler=False),
}


@functools.cache
def case_of(kind: str, scheme: str) -> Sample:
    return make(MODELS[kind], scheme, SEQUENCE, seed=3)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> functools._lru_cache_wrapper[Path]:
    @functools.cache
    def build(target: str, kind: str, scheme: str) -> Path:
        triple = choose(load_target(target)).triple
        need(bool(find_all(triple)), f"no C compiler for {triple}")
        need(target == "host" or shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
        case, folder = case_of(kind, scheme), tmp_path_factory.mktemp("branched")
        artifact = convert(case.package(), load_target(target), folder)
        (folder / "in.bin").write_bytes(b"".join(case.inputs[tensor.name].tobytes() for tensor in artifact.inputs))
        return folder

    return build


def run(target: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*QEMU[target], str(folder / "model"), *words, "--inputs", "in.bin", "--n", str(ROWS)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def exits_of(case: Sample) -> list[int]:
    """The second output of ONNX Runtime, row by row."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(case.graph, options)
    rows = [{name: value[row : row + 1] for name, value in case.inputs.items()} for row in range(ROWS)]
    return [int(session.run(["exit"], row)[0][0]) for row in rows]


@pytest.mark.parametrize(
    ("target", "kind", "scheme"),
    [
        ("host", "mixed", "fp32"), ("host", "mixed", "w8a8"), ("host", "mixed", "w8a8-dynamic"),
        ("host", "confidence", "fp32"), ("host", "patience", "fp32"), ("host", "pre", "w8a8"),
        ("raspberry-pi/5", "mixed", "fp32"), ("raspberry-pi/5", "mixed", "w8a8"),
    ],
)
def test_answers_and_exits_like_onnx_runtime(built, target: str, kind: str, scheme: str) -> None:
    case, folder = case_of(kind, scheme), built(target, kind, scheme)
    done = run(target, folder, "run", "--outputs", "out.bin", "--exits", "exits.bin")
    assert done.returncode == 0, done.stderr
    found = np.fromfile(folder / "out.bin", "<f4").reshape(case.expected.shape)
    assert np.fromfile(folder / "exits.bin", "<i8").tolist() == exits_of(case)
    assert sqnr_db(case.expected, found) >= (80 if scheme == "fp32" else 30)


def test_samples_take_different_ways() -> None:
    """Or the tests above would not test branches."""
    assert len(set(exits_of(case_of("mixed", "fp32")))) > 1
    assert len(set(exits_of(case_of("confidence", "fp32")))) > 1
    assert len(set(exits_of(case_of("patience", "fp32")))) > 1


def test_gates_alone_have_no_exit_output(built) -> None:
    case, folder = case_of("gates", "fp32"), built("host", "gates", "fp32")
    done = run("host", folder, "run", "--outputs", "out.bin")
    assert done.returncode == 0, done.stderr
    found = np.fromfile(folder / "out.bin", "<f4").reshape(case.expected.shape)
    assert np.abs(found - case.expected).max() <= 1e-4
    refused = run("host", folder, "run", "--outputs", "out.bin", "--exits", "exits.bin")
    assert refused.returncode == 64 and "no exits" in refused.stderr


def test_bench_counts_what_was_taken(built) -> None:
    """Every timed inference is counted: exit 0 is asked each time, what follows it only where it was not taken."""
    folder = built("host", "mixed", "fp32")
    words = ("--warmup-iterations", "20", "--warmup-seconds", "0", "--max-warmup-seconds", "0.05")
    done = run("host", folder, "bench", "--samples", "s", "--window-seconds", "0", "--min-samples", "12", *words)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    taken, inferences = result["branches"], result["count"] * result["batch"]
    assert list(taken) == ["layers.0.exit", "layers.1.gate", "layers.2.exit"]
    left = exits_of(case_of("mixed", "fp32")).count(0)
    assert 0 < left < ROWS
    share = taken["layers.0.exit"] / inferences
    assert abs(share - left / ROWS) <= ROWS / inferences
    assert taken["layers.1.gate"] <= inferences - taken["layers.0.exit"]


@pytest.mark.parametrize("scheme", ["fp32", "w8a8-dynamic"])
def test_layers_behind_an_exit_lie_in_its_branch(scheme: str) -> None:
    plan = make_plan(case_of("mixed", scheme).graph, SEQUENCE)
    depth, depths = 0, []
    for step in plan.steps:
        depth += isinstance(step, Branch) - isinstance(step, Join)
        if isinstance(step, Attend):
            depths.append(depth)
    assert depth == 0
    assert depths == [0, 2, 1, 2]  # layer 0; 1 in its gate, behind the exit; 2 behind the exit; 3 behind both exits


def test_work_is_skipped(built) -> None:
    """Layers with absurd weights behind the first exit do not touch the inputs that leave there, and do the others."""
    case = case_of("mixed", "fp32")
    weights = {
        name: np.full_like(value, 1e30) if name.startswith(("layers.2.", "layers.1.ffn")) else value
        for name, value in case.weights.items()
    }
    from edgesdk.transformer.graph import write_graph

    poisoned = dataclasses.replace(case, weights=weights, graph=write_graph(case.spec, weights))
    early = [row for row, layer in enumerate(exits_of(case)) if layer == 0]
    folder = built("host", "mixed", "fp32").parent / "poisoned"
    folder.mkdir()
    artifact = convert(poisoned.package(), load_target("host"), folder)
    (folder / "in.bin").write_bytes(b"".join(case.inputs[tensor.name].tobytes() for tensor in artifact.inputs))
    assert run("host", folder, "run", "--outputs", "out.bin").returncode == 0
    found = np.fromfile(folder / "out.bin", "<f4").reshape(case.expected.shape)
    assert np.isfinite(found[early]).all() and np.abs(found[early] - case.expected[early]).max() <= 1e-4
    late = [row for row in range(ROWS) if row not in early]
    assert np.isnan(found[late]).any() or np.abs(found[late] - case.expected[late]).max() > 0.1


def test_a_step_may_not_read_what_one_branch_makes() -> None:
    condition, left, right = Tensor("c", 1, 1), Tensor("left", 1, 4), Tensor("right", 1, 4)
    begin = Sum(condition, Tensor("input", 1, 1), Tensor("input", 1, 1))
    first = Sum(left, Tensor("input", 1, 4), Tensor("input", 1, 4))
    good = (
        begin, Branch(mark("b"), condition), first, Assign(right, left), Otherwise(mark("o")),
        Assign(right, Tensor("input", 1, 4)), Join(mark("j")),
    )
    assert check_regions(Plan(good, right, 0, False)).steps == good
    for output, steps in (
        (left, good), (right, good[:5] + good[6:]), (right, good[:-1]), (right, good[:1] + good[2:]),
        (right, (*good[:4], Otherwise(mark("o")), Sum(right, left, left), Join(mark("j")))),
    ):
        with pytest.raises(UnsupportedOp):
            check_regions(Plan(steps, output, 0, False))


def test_marks_and_the_longest_way_have_the_same_layers() -> None:
    graph = case_of("mixed", "w8a8").graph
    marked = lower(graph, SEQUENCE, branches="marked")
    inlined = lower(graph, SEQUENCE, branches=True)
    names = [
        {node.name for node in lowered.nodes if not node.name.startswith("edgesdk.")} for lowered in (marked, inlined)
    ]
    assert names[1] - names[0] == {name for name in names[1] if name.endswith(".inlined")}
    assert marked.outputs == ("logits", "exit") and inlined.outputs == ("logits",)
