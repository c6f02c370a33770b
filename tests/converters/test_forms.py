"""What compression makes of a model (low-rank pairs, shared layers, 4 bits, structural zeros, factorized tables, two
leading tokens, decoders, exits and gates), through every converter."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from litert_runtime import run as run_litert
from sample_graphs import BRANCHED, FORMS, FOUR_BITS, ROWS, SCHEMES, SEQUENCE, Sample, make, sample, sqnr_db
from test_neon_models import least_db

from edgesdk.converters import neon, onnx, tflite
from edgesdk.converters.artifact import Artifact, read_artifact
from edgesdk.converters.base import golden
from edgesdk.converters.front import Linear, lower
from edgesdk.converters.integer_share import integer_share
from edgesdk.converters.neon.kernel_sets import AARCH64, choose
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.converters.tflite.model import translate, unsupported
from edgesdk.errors import ConvertError
from edgesdk.harness.worker.runtimes import OnnxRuntime
from edgesdk.targets import Target, load_target
from edgesdk.testing.needs import need
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.passes import PASSES
from edgesdk.transformer.quantize import integers
from edgesdk.transformer.spec import Exit, PatchEmbedding

ALL = (*SCHEMES, *FOUR_BITS)
NEON = [
    *(("host", kind, scheme) for kind in FORMS for scheme in ("fp32", "w8a8")),
    ("host", "low_rank", "w8a8-dynamic"), ("host", "low_rank", "w4a8"), ("host", "shared", "w4a8-dynamic"),
    ("host", "sparse", "w4a8"), ("host", "decoder", "w8a8-dynamic"), ("raspberry-pi/5", "low_rank", "w4a8"),
    ("raspberry-pi/4", "decoder", "w8a8"),
]
QEMU_CPU = {"raspberry-pi/4": "cortex-a72", "raspberry-pi/5": "cortex-a76"}


def board(name: str = "host") -> Target:
    """A target that lists every scheme."""
    return load_target(name).model_copy(update={"schemes": ALL})


@functools.cache
def branched(scheme: str) -> Sample:
    return make(BRANCHED, scheme, SEQUENCE, seed=3)


def assert_agrees(case: Sample, found: np.ndarray, scheme: str, static_db: float = 40) -> None:
    """Dynamic scales of activations are those of a runtime: ONNX Runtime has one for a tensor, others one a row."""
    found = found.reshape(case.expected.shape)
    if scheme == "fp32":
        assert np.abs(found - case.expected).max() <= 1e-4
    assert sqnr_db(case.expected, found) >= (28 if scheme.endswith("-dynamic") else static_db)


# --- the lowered graph ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ALL)
@pytest.mark.parametrize("kind", FORMS)
def test_every_linear_layer_is_found_with_the_integers_of_its_encoding(kind: str, scheme: str) -> None:
    case = sample(kind, scheme)
    graph = lower(case.graph, case.sequence)
    found = {node.name: node for node in graph.nodes if isinstance(node, Linear) and node.name != "lm_head"}
    assert list(found) == [name for name, _, _ in case.spec.linears()]
    forms = {"fp32": "fp32", "w8a8": "w8a8", "w4a8": "w8a8"}
    for name, node in found.items():
        stored = case.spec.stored(name)
        weight = case.weights[f"{stored}.weight"]
        if case.encodings is None:
            np.testing.assert_array_equal(node.weight, weight)
        else:
            encoding = case.encodings.weights[f"{stored}.weight"]
            np.testing.assert_array_equal(node.weight, integers(weight, encoding))
            np.testing.assert_array_equal(node.weight_scale, encoding.scale)
        static = not scheme.endswith("-dynamic")
        expected = "w8" if name == "classifier" and static and scheme != "fp32" else forms.get(scheme, "w8a8-dynamic")
        assert node.form == expected
        assert node.bias.shape == (len(weight),)
        assert node.bias.any() == (not name.endswith(".v"))


def test_unpacking_leaves_no_node_and_no_constant_behind() -> None:
    case = sample("sparse", "w4a8")
    graph = lower(case.graph, case.sequence)
    assert not [node for node in graph.nodes if not isinstance(node, Linear) and node.op in ("CumSum", "Mod", "Max")]
    assert not [name for name in graph.constants if "mask." in name and graph.constants[name].size > 1]
    table = graph.constants["embedding.tokens.weight"]
    assert table.dtype == np.int8


def test_layers_that_share_weights_share_the_array() -> None:
    for scheme in SCHEMES:
        case = sample("shared", scheme)
        found = {node.name: node for node in lower(case.graph, case.sequence).nodes if isinstance(node, Linear)}
        assert found["layers.1.ffn.up"].weight is found["layers.0.ffn.up"].weight


# --- TFLite -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ALL)
@pytest.mark.parametrize("kind", FORMS)
def test_tflite_answers_like_onnx_runtime(kind: str, scheme: str) -> None:
    case = sample(kind, scheme)
    assert tflite.check(case.package(), board()) == []
    data = translate(lower(case.graph, case.sequence))
    assert_agrees(case, run_litert(data, case.inputs), scheme)


def test_tflite_stores_shared_weights_once() -> None:
    sizes = []
    for layers in (1, 3):
        spec = dataclasses.replace(FORMS["shared"], layers=FORMS["shared"].layers[:layers])
        case = make(spec, "w8a8", SEQUENCE)
        sizes.append(len(translate(lower(case.graph, case.sequence))))
    weights = sum(value.size for name, value in case.weights.items() if name.startswith("layers.0"))
    assert sizes[1] - sizes[0] < 0.6 * weights


def test_tflite_reads_the_integers_of_a_pair_as_they_are() -> None:
    from litert_runtime import operators

    pairs = sum(len(layer.ranks) for layer in FORMS["low_rank"].layers)
    case = sample("low_rank", "w8a8")
    names = [name for name, _ in operators(translate(lower(case.graph, case.sequence)))]
    inputs = {node.input for node in lower(case.graph, case.sequence).nodes if isinstance(node, Linear) and node.input}
    assert names.count("QUANTIZE") == len(inputs) - pairs


# --- NEON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "kind", "scheme"), NEON)
def test_neon_answers_like_onnx_runtime(tmp_path: Path, target: str, kind: str, scheme: str) -> None:
    triple = choose(board(target)).triple
    need(bool(find_all(triple)), f"no C compiler for {triple}")
    need(triple != AARCH64 or shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
    case = sample(kind, scheme)
    assert neon.check(case.package(), board(target)) == []
    artifact = neon.convert(case.package(), board(target), tmp_path)
    assert read_artifact(tmp_path) == artifact
    blocks = [case.inputs[tensor.name].tobytes() for tensor in artifact.inputs]
    (tmp_path / "in.bin").write_bytes(b"".join(blocks))
    command = [str(tmp_path / "model"), "run", "--inputs", "in.bin", "--n", str(ROWS), "--outputs", "out.bin"]
    if target != "host":
        command = ["qemu-aarch64", "-cpu", QEMU_CPU[target], *command]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    least = 40 if scheme == "fp32" else least_db(target)
    assert_agrees(case, np.fromfile(tmp_path / "out.bin", "<f4"), scheme, least)


def test_neon_stores_shared_weights_once(tmp_path: Path) -> None:
    need(bool(find_all(choose(board()).triple)), "no C compiler for the host")
    sizes = []
    for layers in (1, 3):
        spec = dataclasses.replace(FORMS["shared"], layers=FORMS["shared"].layers[:layers])
        case, folder = make(spec, "w8a8", SEQUENCE), tmp_path / str(layers)
        folder.mkdir()
        sizes.append(neon.convert(case.package(), board(), folder).runtime["weight_bytes"])
    weights = sum(value.size for name, value in case.weights.items() if name.startswith("layers.0"))
    assert sizes[1] - sizes[0] < 0.6 * weights


# --- ONNX and what an artifact says -----------------------------------------------------------------------------------


def run_worker(folder: Path, artifact: Artifact) -> np.ndarray:
    """Outputs of the golden rows as the worker on a board computes them."""
    from edgesdk.files import read_document

    runtime = OnnxRuntime(str(folder), read_document(folder / "artifact.json", "edgesdk.artifact", 1, ConvertError))
    runtime.load()
    runtime.set_inputs((folder / artifact.golden.inputs).read_bytes(), artifact.golden.n)
    outputs = [runtime.infer(row) for row in range(artifact.golden.n)]
    assert all(len(output) == 1 for output in outputs)
    return np.concatenate([output[0] for output in outputs])


@pytest.mark.parametrize("scheme", ALL)
@pytest.mark.parametrize("kind", ["low_rank", "sparse", "decoder", "shared"])
def test_onnx_artifact_runs_in_the_worker(tmp_path: Path, kind: str, scheme: str) -> None:
    case = sample(kind, scheme)
    artifact = onnx.convert(case.package(), board(), tmp_path)
    assert read_artifact(tmp_path) == artifact
    assert_agrees(case, run_worker(tmp_path, artifact), scheme)


@pytest.mark.parametrize("scheme", ALL)
def test_exits_and_gates_run_in_the_worker(tmp_path: Path, scheme: str) -> None:
    case = branched(scheme)
    session = onnxruntime.InferenceSession(case.graph)
    assert [output.name for output in session.get_outputs()] == ["logits", "exit"]
    artifact = onnx.convert(case.package(), board(), tmp_path)
    assert [tensor.name for tensor in artifact.outputs] == ["logits"]
    assert artifact.work == "per_input"
    assert_agrees(case, run_worker(tmp_path, artifact), scheme)


def test_exits_of_patches_make_the_work_per_input(tmp_path: Path) -> None:
    layers = (dataclasses.replace(FORMS["deit"].layers[0], exit=Exit("confidence", 0.5)), FORMS["deit"].layers[0])
    spec = dataclasses.replace(FORMS["deit"], layers=layers)
    assert isinstance(spec.embedding, PatchEmbedding)
    artifact = onnx.convert(make(spec, "fp32", 1).package(), board(), tmp_path)
    assert (artifact.work, artifact.length_input) == ("per_input", None)


@pytest.mark.parametrize("module", [tflite])
def test_branches_are_refused_with_the_reason(module: object, tmp_path: Path) -> None:
    reasons = module.check(branched("w8a8").package(), board())  # type: ignore[attr-defined]
    assert [reason for reason in reasons if "early exits and gates run as branches of the ONNX artifact" in reason]
    with pytest.raises(ConvertError, match="branches of the ONNX artifact"):
        module.convert(branched("w8a8").package(), board(), tmp_path)  # type: ignore[attr-defined]


def test_integer_share_of_branches_is_that_of_the_longest_way() -> None:
    """Without exits and gates the same layers have the same share, but for the float gates and exits themselves."""
    layers = tuple(dataclasses.replace(layer, exit=None, gate=False) for layer in BRANCHED.layers)
    plain = make(dataclasses.replace(BRANCHED, layers=layers), "w8a8", SEQUENCE)
    whole = integer_share(lower(plain.graph, SEQUENCE))
    case = branched("w8a8")
    share = integer_share(lower(case.graph, SEQUENCE, branches=True))
    extra = sum(case.spec.gate_macs(index) + case.spec.exit_macs(index) for index in range(4))
    macs = plain.spec.macs(SEQUENCE)
    assert extra > 0
    assert share == pytest.approx(whole * macs / (macs + extra))


def test_integer_share_counts_low_rank_pairs_and_token_logits_by_hand() -> None:
    tokens, hidden, vocabulary = SEQUENCE, 64, 300
    linears = 2 * 2 * hidden * 128 + 4 * hidden * hidden + 2 * hidden * hidden + 2 * hidden * 32
    attention = 2 * 2 * tokens * 4 * 16
    share = integer_share(lower(sample("decoder", "w8a8").graph, SEQUENCE))
    assert share == pytest.approx(linears / (linears + attention + hidden * vocabulary))


@pytest.mark.parametrize("scheme", FOUR_BITS)
def test_golden_rows_of_four_bits_are_the_packages_own(scheme: str) -> None:
    case = sample("sparse", scheme)
    limits, _, outputs, _ = golden(case.package())
    np.testing.assert_array_equal(outputs[0], case.expected)
    assert sqnr_db(case.reference, case.expected) < 25, "float outputs would say nothing here"
    assert (limits.kind, limits.limit) == ("sqnr_db", 20.0 if scheme.endswith("-dynamic") else 30.0)


def test_golden_rows_of_exits_are_the_packages_own() -> None:
    _, _, outputs, _ = golden(branched("w8a8-dynamic").package())
    np.testing.assert_array_equal(outputs[0], branched("w8a8-dynamic").expected)


def test_notes_say_which_artifact_holds_four_bits(tmp_path: Path) -> None:
    need(bool(find_all(choose(board()).triple)), "no C compiler for the host")
    notes, sizes = {}, {}
    for scheme in ("w4a8", "w8a8"):
        for module in (onnx, tflite, neon):
            folder = tmp_path / scheme / module.name
            folder.mkdir(parents=True)
            artifact = module.convert(sample("low_rank", scheme).package(), board(), folder)
            notes[module.name, scheme] = " ".join(artifact.notes)
            sizes[module.name, scheme] = artifact.bytes
    assert "4-bit weights lie in the file" in notes["onnx", "w4a8"]
    assert sizes["onnx", "w4a8"] < sizes["onnx", "w8a8"]
    assert "the 4 bits are the ONNX file's" in notes["tflite", "w4a8"]
    assert sizes["tflite", "w4a8"] > 0.95 * sizes["tflite", "w8a8"]
    assert "4-bit weights: " in notes["neon", "w4a8"]
    assert sizes["neon", "w4a8"] < sizes["neon", "w8a8"]
    assert not [key for key, note in notes.items() if key[1] == "w8a8" and ("4-bit" in note or "4 bits" in note)]


def test_notes_say_that_zeros_are_left_out_of_the_onnx_file_only(tmp_path: Path) -> None:
    need(bool(find_all(choose(board()).triple)), "no C compiler for the host")
    package = sample("sparse", "w8a8").package()
    words_of = ((onnx, "zeros are left out"), (tflite, "computed dense here"), (neon, "dense here: few blocks"))
    for module, words in words_of:
        folder = tmp_path / module.name
        folder.mkdir()
        assert [note for note in module.convert(package, board(), folder).notes if words in note]


def test_tflite_names_what_it_refuses_of_a_decoder_mask() -> None:
    """A third input of Max has no counterpart."""
    import onnx as library

    model = library.load_from_string(sample("decoder", "fp32").graph)
    node = next(node for node in model.graph.node if node.op_type == "Max")
    node.input.append(node.input[0])
    problems = unsupported(lower(model.SerializeToString(), SEQUENCE))
    assert problems and "mask.causal" in problems[0]


# --- optimised packages -----------------------------------------------------------------------------------------------


@functools.cache
def optimised(kind: str, scheme: str) -> tuple[Sample, Sample]:
    """A model without and with every pass."""
    plain = sample(kind, scheme)
    spec = dataclasses.replace(plain.spec, passes=tuple(PASSES))
    graph = write_graph(spec, plain.weights, plain.encodings)
    return plain, dataclasses.replace(plain, spec=spec, graph=graph)


@pytest.mark.parametrize("scheme", ALL)
@pytest.mark.parametrize("kind", ["vit_mean_grouped", "bert_pooler", "low_rank", "shared", "sparse", "decoder"])
def test_optimised_package_lowers_to_the_same_layers(kind: str, scheme: str) -> None:
    """Merged projections are taken apart again: converters merge what suits their kernels."""
    found = [
        [(node.name, node.form, node.weight.shape) for node in lower(case.graph, case.sequence).nodes
         if isinstance(node, Linear)]
        for case in optimised(kind, scheme)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("scheme", ["fp32", "w8a8", "w8a8-dynamic", "w4a8"])
@pytest.mark.parametrize("kind", ["vit_mean_grouped", "bert_pooler", "shared", "decoder"])
def test_optimised_package_gives_equal_outputs_in_every_converter(tmp_path: Path, kind: str, scheme: str) -> None:
    need(bool(find_all(choose(board()).triple)), "no C compiler for the host")
    plain, changed = optimised(kind, scheme)
    assert (plain.graph != changed.graph) == (scheme == "fp32")
    answers = []
    for number, case in enumerate((plain, changed)):
        folder = tmp_path / str(number)
        artifacts = {}
        for module in (onnx, tflite, neon):
            (folder / module.name).mkdir(parents=True)
            assert module.check(case.package(), board()) == []
            artifacts[module.name] = module.convert(case.package(), board(), folder / module.name)
        (folder / "neon/in.bin").write_bytes(
            b"".join(case.inputs[tensor.name].tobytes() for tensor in artifacts["neon"].inputs)
        )
        words = ["run", "--inputs", "in.bin", "--n", str(ROWS), "--outputs", "out.bin"]
        subprocess.run([str(folder / "neon/model"), *words], cwd=folder / "neon", check=True, timeout=60)
        answers.append({
            "onnx": run_worker(folder / "onnx", artifacts["onnx"]),
            "tflite": run_litert((folder / "tflite/model.tflite").read_bytes(), case.inputs),
            "neon": np.fromfile(folder / "neon/out.bin", "<f4"),
        })
    for name, found in answers[1].items():
        np.testing.assert_allclose(found, answers[0][name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_fused_artifact_is_of_the_runtime_that_wrote_it(tmp_path: Path, scheme: str) -> None:
    import onnx as library

    _, case = optimised("bert_pooler", scheme)
    artifact = onnx.convert(case.package(), board(), tmp_path / _folder(tmp_path, "fused"))
    model = library.load_from_string((tmp_path / "fused/model.onnx").read_bytes())
    kinds = {node.op_type for node in model.graph.node if node.domain == "com.microsoft"}
    assert ("QGemm" if scheme == "w8a8" else "DynamicQuantizeMatMul") in kinds
    assert artifact.runtime["min"] == ">=" + ".".join(onnxruntime.__version__.split(".")[:2])
    assert [note for note in artifact.notes if "com.microsoft" in note]
    assert artifact.bytes == (tmp_path / "fused/model.onnx").stat().st_size
    onnx.convert(case.package(), board(), tmp_path / _folder(tmp_path, "again"))
    assert (tmp_path / "again/model.onnx").read_bytes() == (tmp_path / "fused/model.onnx").read_bytes()


@pytest.mark.parametrize(("kind", "scheme"), [("bert_pooler", "fp32"), ("bert_pooler", "w4a8"), ("sparse", "w8a8")])
def test_what_fusing_would_not_help_ships_as_it_is(tmp_path: Path, kind: str, scheme: str) -> None:
    _, case = optimised(kind, scheme)
    artifact = onnx.convert(case.package(), board(), tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == case.graph
    assert artifact.runtime["min"] == board().runtimes["onnxruntime"]


def test_exits_and_gates_are_fused_too(tmp_path: Path) -> None:
    plain = branched("w8a8")
    spec = dataclasses.replace(plain.spec, passes=("fuse_quantized",))
    case = dataclasses.replace(plain, spec=spec, graph=write_graph(spec, plain.weights, plain.encodings))
    artifact = onnx.convert(case.package(), board(), tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() != case.graph
    assert_agrees(case, run_worker(tmp_path, artifact), "w8a8")


def _folder(root: Path, name: str) -> str:
    (root / name).mkdir()
    return name
