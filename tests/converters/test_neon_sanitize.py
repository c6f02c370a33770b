"""AddressSanitizer and UndefinedBehaviorSanitizer over the test models on x86, with fuzzed inputs; bad input by kind.

The program is built so that every buffer of the arena has memory of its own with poisoned bytes behind it.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from sample_graphs import BRANCHED, ROWS, SEQUENCE, Sample, make, sample, without
from sanitizers import with_sanitizer

from edgesdk.converters.artifact import read_artifact
from edgesdk.converters.base import input_tensors, output_tensors
from edgesdk.converters.neon import check, convert
from edgesdk.converters.neon import emit as emit_module
from edgesdk.converters.neon.arena import Life
from edgesdk.converters.neon.build import kernel_sources, model_flags, write_files
from edgesdk.converters.neon.convert import make_plan
from edgesdk.converters.neon.emit import Sources
from edgesdk.converters.neon.kernel_sets import KERNEL_SETS, KernelSet, host_features
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.errors import ConvertError, UnsupportedOp
from edgesdk.targets import load_target
from edgesdk.testing.needs import need
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

GAP = 128
SANITIZE = (
    "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
    "-fwrapv",  # as in the real build
)
MODELS = [
    ("avx2", "bert_pooler", "w8a8"), ("avx2", "bert_mean_grouped", "w8a8-dynamic"), ("scalar", "vit", "fp32"),
    ("avx512vnni", "bert_pooler", "w8a8-dynamic"), ("avx512vnni", "decoder", "fp32"), ("avx2", "low_rank", "w8a8"),
    ("avx512vbmi", "branched", "w8a8"), ("scalar", "features", "w8a8"), ("avx2", "decoder", "w8a8"),
    ("avxvnni", "bert_pooler", "w8a8"), ("avx2", "llama", "w8a8"),
    ("avx2", "blocks", "w8a8-dynamic"), ("avx512vbmi", "blocks", "w8a8"), ("scalar", "blocks", "w8a8"),
    ("avx2", "bert_pooler", "w4a8-dynamic"), ("avx512vbmi", "decoder", "w4a8"),
]
DRIVER = r"""
#include "edge_model.h"
#include <stdlib.h>
#include <string.h>
/* Any bytes are an input; arrays are exactly as long as the interface says. */
int main(void) {
  srand(SEED);
  size_t bytes = edge_memory(THREADS);
  void *memory = malloc(bytes);
  edge_model *model;
  if (edge_create(&model, memory, bytes, THREADS)) return 2;
  for (int round = 0; round < 60; round++) {
    const void *inputs[4];
    void *outputs[4];
    int most = edge_max_length(), length = most ? rand() % (most + 3) - 1 : 0, bad = round % 3 == 2;
    for (int at = 0; at < edge_inputs(); at++) {
      size_t size = most ? 8 * (size_t)(length > 0 ? length : 0) : edge_input(at)->bytes;
      unsigned char *array = malloc(size + 1);
      for (size_t byte = 0; byte < size; byte++) array[byte] = (unsigned char)rand();
      for (int token = 0; most && token < length && !bad; token++) ((int64_t *)array)[token] = rand() % VOCABULARY;
      inputs[at] = array;
    }
    for (int at = 0; at < edge_outputs(); at++) outputs[at] = malloc(edge_output(at)->bytes);
    int status = edge_infer(model, inputs, length, outputs);
    if (most && status != (length < 1 || length > most || bad ? EDGE_BAD_INPUT : EDGE_OK)) return 3;
    if (!most && status) return 4;
    for (int at = 0; at < edge_inputs(); at++) free((void *)inputs[at]);
    for (int at = 0; at < edge_outputs(); at++) free(outputs[at]);
  }
  /* Steps of any size: refused where they do not fit, and then nothing is forgotten. */
  for (int round = 0; edge_decodes() && round < 60; round++) {
    const int most = edge_max_length(), past = edge_past(model), count = rand() % (most / 3 + 2);
    const int bad = round % 7 == 6, fits = count > 0 && count <= most - past && !bad;
    int64_t *ids = malloc(8 * (size_t)count + 1);
    for (int token = 0; token < count; token++) ids[token] = bad ? -1 : rand() % VOCABULARY;
    void *output = malloc(edge_output(0)->bytes / (size_t)most * (size_t)(count ? count : 1));
    if (edge_step(model, ids, count, output) != (fits ? EDGE_OK : EDGE_BAD_INPUT)) return 5;
    if (edge_past(model) != (fits ? past + count : past)) return 6;
    free(ids);
    free(output);
    if (!fits && edge_rewind(model, rand() % (past + 1))) return 7;
  }
  edge_destroy(model);
  free(memory);
  return 0;
}
"""


@functools.cache
def case_of(kind: str, scheme: str) -> Sample:
    return make(BRANCHED, scheme, SEQUENCE, seed=3) if kind == "branched" else sample(kind, scheme)


def spread(lives: list[Life]) -> tuple[dict[str, int], int]:
    """Every buffer in memory of its own, with a gap behind it."""
    offsets, end = {}, 0
    for life in lives:
        offsets[life.name] = end
        end += -(-life.size // 64) * 64 + GAP
    return offsets, end


def poisoned_sources(kernels: KernelSet, case: Sample, patch: pytest.MonkeyPatch) -> Sources:
    """The program of a model; it poisons what lies behind each buffer before it works."""
    found: list[Life] = []

    def place(lives: list[Life]) -> tuple[dict[str, int], int]:
        found.extend(lives)
        return spread(lives)

    patch.setattr(emit_module, "place", place)
    package = case.package()
    plan = make_plan(case.graph, case.sequence)
    sources = emit_module.emit(plan, kernels, "fuzzed", input_tensors(package), output_tensors(package))
    offsets, _ = spread(found)
    begin = "edge_model_run(const edge_call *call, const void *const inputs[], void *const outputs[]) {"
    text = sources.files["model.c"].decode()
    assert text.count(begin) == 1
    poison = "".join(
        f"\n  __asan_poison_memory_region(call->arena + {offsets[life.name] + life.size}, "
        f"{-life.size % 64 + GAP});" for life in found
    )
    text = "#include <sanitizer/asan_interface.h>\n" + text.replace(begin, begin + poison)
    sources.files["model.c"] = text.encode()
    return sources


def build(folder: Path, kernels: KernelSet, sources: Sources, units: dict[str, str], *defines: str) -> Path:
    toolchain = with_sanitizer(kernels.triple, "address,undefined")
    write_files(folder, {**kernel_sources(), **sources.files, **{name: text.encode() for name, text in units.items()}})
    flags = (*SANITIZE, *model_flags(kernels, toolchain), *defines)
    files = ["model.c", "edge_pool.c", "edge_cpu.c", "weights.S", *units]
    toolchain.run((*flags, *files, "-o", "fuzz", "-lm", "-pthread"), folder)
    return folder / "fuzz"


@pytest.mark.parametrize(("isa", "kind", "scheme"), MODELS)
def test_fuzzed_inputs_stay_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str, kind: str, scheme: str
) -> None:
    """Lengths and ids inside and outside of what is allowed, floats of any bits; two threads."""
    kernels = KERNEL_SETS[isa]
    need(bool(find_all(kernels.triple)), f"no C compiler for {kernels.triple}")
    if not set(kernels.isa) <= host_features():
        pytest.skip(f"this CPU lacks {kernels.isa}")
    case = case_of(kind, scheme)
    vocabulary = getattr(case.spec.embedding, "vocabulary", 1)
    sources = poisoned_sources(kernels, case, monkeypatch)
    text = sources.files["model.c"].decode()
    assert kind != "blocks" or "#define EDGE_BLOCKS 1" in text
    assert not scheme.startswith("w4") or "#define EDGE_FOUR_BITS" in text
    units = {"driver.c": DRIVER, "library.c": '#include "edge_library.c"\n'}
    program = build(
        tmp_path, kernels, sources, units, "-DEDGE_LIBRARY=1", f"-DVOCABULARY={vocabulary}", "-DSEED=7", "-DTHREADS=2"
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_poison_is_felt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes one byte behind a buffer is stopped, so the test above can fail."""
    kernels, case = KERNEL_SETS["scalar"], case_of("vit", "fp32")
    need(bool(find_all(kernels.triple)), f"no C compiler for {kernels.triple}")
    sources = poisoned_sources(kernels, case, monkeypatch)
    text = sources.files["model.c"].decode()
    place = text.index("__asan_poison_memory_region(")
    line = text[place : text.index(";", place)]
    address = line.split("(", 1)[1].split(",")[0]
    sources.files["model.c"] = text.replace(f"{line};", f"{line}; *({address}) = 1;", 1).encode()
    units = {"driver.c": DRIVER, "library.c": '#include "edge_library.c"\n'}
    program = build(
        tmp_path, kernels, sources, units, "-DEDGE_LIBRARY=1", "-DVOCABULARY=1", "-DSEED=7", "-DTHREADS=1"
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "use-after-poison" in done.stderr


def test_fuzzed_files_of_the_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input files of random bytes, masks and sizes: an exit code and a message, never a report of a sanitizer."""
    kernels, case = KERNEL_SETS["avx2"], case_of("bert_pooler", "w8a8")
    need(bool(find_all(kernels.triple)), f"no C compiler for {kernels.triple}")
    need(set(kernels.isa) <= host_features(), "this CPU has no AVX2")
    sources = poisoned_sources(kernels, case, monkeypatch)
    program = build(tmp_path, kernels, sources, {"main.c": '#include "edge_main.c"\n'})
    random = np.random.default_rng(5)
    codes = []
    for index in range(24):
        rows = int(random.integers(1, 4))
        ids = random.integers(0, case.spec.embedding.vocabulary, (rows, SEQUENCE))
        mask = (np.arange(SEQUENCE) < random.integers(1, SEQUENCE + 1, (rows, 1))).astype(np.int64)
        if index % 4 == 1:
            ids[0, random.integers(SEQUENCE)] = random.integers(-(2**63), 2**63 - 1)
        if index % 4 == 2:
            mask[0] = random.integers(-1, 3, SEQUENCE)
        data = ids.tobytes() + mask.tobytes()
        data = data[: random.integers(len(data))] if index % 4 == 3 else data
        (tmp_path / "in.bin").write_bytes(data)
        words = ["run", "--inputs", "in.bin", "--n", str(rows), "--outputs", "out.bin"]
        done = subprocess.run([str(program), *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 65) and "Sanitizer" not in done.stderr, done.stderr[-3000:]
        assert (done.returncode == 65) == done.stderr.startswith("model: ")
        codes.append(done.returncode)
    assert set(codes[::4]) == {0} and set(codes[1::4]) == {65} and set(codes[3::4]) == {65}


# --- bad input by kind ------------------------------------------------------------------------------------------------


def changed(case: Sample, name: str, value: float) -> Sample:
    """The sample's graph with one element of an initializer changed."""
    model = onnx.load_from_string(case.graph)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return without(case, graph=bytes(model.SerializeToString()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["layers.0.ffn.up.weight", "layers.0.ffn.up.bias", "embedding.positions.weight"])
def test_weights_that_are_not_finite_are_named(name: str, value: float) -> None:
    case = changed(sample("bert_pooler", "fp32"), name, value)
    with pytest.raises(ConvertError, match=f"{name.removesuffix('.weight').removesuffix('.bias')}.*NaN or infinity"):
        make_plan(case.graph, case.sequence)
    assert any("NaN or infinity" in reason for reason in check(case.package(), load_target("host")))


def test_missing_encoding_is_named() -> None:
    """A static layer whose output has no encoding: no QuantizeLinear behind it."""
    model = onnx.load_from_string(sample("bert_pooler", "w8a8").graph)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    quantize = next(node for node in model.graph.node if gemm.output[0] in node.input)
    dequantize = next(node for node in model.graph.node if quantize.output[0] in node.input)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == dequantize.output[0]:
                node.input[at] = gemm.output[0]
    for node in (quantize, dequantize):
        model.graph.node.remove(node)
    with pytest.raises(UnsupportedOp, match=gemm.name):
        make_plan(bytes(model.SerializeToString()), SEQUENCE)


@pytest.mark.parametrize("target", ["host", "raspberry-pi/5"])
def test_truncated_weights_stop_the_build(tmp_path: Path, target: str) -> None:
    from edgesdk.converters.neon.kernel_sets import choose

    case = sample("vit", "w8a8")
    kernels, package = choose(load_target(target)), case.package()
    plan = make_plan(case.graph, case.sequence)
    sources = emit_module.emit(plan, kernels, "cut", input_tensors(package), output_tensors(package))
    for toolchain in find_all(kernels.triple):
        write_files(tmp_path, sources.files)
        toolchain.run(("-c", "weights.S", "-o", "weights.o"), tmp_path)
        (tmp_path / "weights.bin").write_bytes(sources.files["weights.bin"][:-1])
        with pytest.raises(ConvertError, match=f"weights.bin does not have {sources.weight_bytes} bytes"):
            toolchain.run(("-c", "weights.S", "-o", "weights.o"), tmp_path)


def test_truncated_binary_is_refused(tmp_path: Path) -> None:
    case = sample("vit", "w8a8")
    convert(case.package(), load_target("host"), tmp_path)
    data = (tmp_path / "model").read_bytes()
    (tmp_path / "model").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConvertError, match="bytes"):
        read_artifact(tmp_path)


@pytest.mark.parametrize("op", ["NonZero", "Range"])
def test_a_shape_that_the_input_decides_is_named(op: str) -> None:
    """How many numbers are not zero; as many numbers as the largest of the input says."""
    model = onnx.load_from_string(sample("features", "fp32").graph)
    if op == "Range":
        model.graph.node.extend([
            helper.make_node("ReduceMax", ["features"], ["largest"], "largest", keepdims=0),
            helper.make_node("Range", ["none", "largest", "one"], ["places"], "places"),
        ])
        constants = (numpy_helper.from_array(np.float32(value), name) for name, value in (("none", 0), ("one", 1)))
        model.graph.initializer.extend(constants)
    else:
        model.graph.node.append(helper.make_node("NonZero", ["features"], ["places"], "places"))
    with pytest.raises(UnsupportedOp, match=f"{op} 'places': the shape of 'places' is not static"):
        make_plan(bytes(model.SerializeToString()), SEQUENCE)


@pytest.mark.parametrize("size", ["frames", None])
def test_an_input_without_a_bound_is_named(size: str | None) -> None:
    model = onnx.load_from_string(sample("features", "fp32").graph)
    dim = model.graph.input[0].type.tensor_type.shape.dim[1]
    dim.Clear()
    if size:
        dim.dim_param = size
    with pytest.raises(UnsupportedOp, match=f"input 'features': nothing says how large its axis 1 .*{size or ''}"):
        make_plan(bytes(model.SerializeToString()), SEQUENCE)


@pytest.mark.parametrize("size", [1, 5, 13, 30])
def test_head_sizes_that_are_no_multiple_of_four_work(tmp_path: Path, size: int) -> None:
    """Accepted for every kernel set, and right; `test_neon_kernels.py` has attention of such sizes on ARM."""
    spec = TransformerSpec(
        TokenEmbedding(40, 16), 2 * size, (Layer(2, 1, size, 7),), "post", 1e-5, "gelu", "mean", classes=2
    )
    case = make(spec, "fp32", 11, seed=size)
    for target in ("rpi4", "rpi5", "host"):
        assert check(case.package(), load_target(target)) == []
    convert(case.package(), load_target("host"), tmp_path)
    (tmp_path / "in.bin").write_bytes(b"".join(value.tobytes() for value in case.inputs.values()))
    words = ["run", "--inputs", "in.bin", "--n", str(ROWS), "--outputs", "out.bin"]
    subprocess.run([str(tmp_path / "model"), *words], cwd=tmp_path, check=True, timeout=60)
    found = np.fromfile(tmp_path / "out.bin", "<f4").reshape(case.expected.shape)
    assert np.abs(found - case.expected).max() <= 1e-4


@pytest.mark.parametrize("version", [9999, 17, 0])
def test_opset_that_is_not_known_is_refused(version: int) -> None:
    model = onnx.load_from_string(sample("vit", "fp32").graph)
    model.opset_import[0].version = version
    with pytest.raises(UnsupportedOp, match=f"opset {version}"):
        make_plan(bytes(model.SerializeToString()), 17)
