"""How int8 matrices lie in a binary: block-sparse layers give what dense ones give, bit by bit, on every kernel set."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from sample_graphs import SEQUENCE, Sample, make, sample, sqnr_db
from test_neon_kernels import Driver, check_static_layers, driver, floats, program, round_up, shapes
from test_neon_models import Built

from edgesdk.converters.base import input_tensors, output_tensors
from edgesdk.converters.neon import reference, storage
from edgesdk.converters.neon.convert import make_plan
from edgesdk.converters.neon.emit import emit
from edgesdk.converters.neon.kernel_sets import AARCH64, KERNEL_SETS, KernelSet
from edgesdk.converters.neon.packing import ALIGN, ROWS, pack_a, pack_b, pad
from edgesdk.converters.neon.plan import Attend, Dense
from edgesdk.converters.neon.specialize import specialize
from edgesdk.converters.neon.storage import (
    Stored,
    kernel_macros,
    pack_blocks,
    pack_four_bits,
    pack_rows,
    sparse_from,
    storage_summary,
    store_matrix,
    unpack_blocks,
    unpack_four_bits,
    zero_share,
)
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.errors import UnsupportedOp
from edgesdk.testing.needs import need
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

SPARSE = TransformerSpec(
    TokenEmbedding(57, 24), 64, (Layer(4, 2, 16, 96),), "post", 1e-12, "gelu", "mean", classes=5,
    sparse={
        f"layers.0.{name}": "12x4"
        for name in ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")
    },
)
__all__ = ["driver", "program"]
DENSITIES = ("none", "one block", "half", "all")


def sparse_matrix(
    rng: np.random.Generator, n: int, k: int, kernels: KernelSet, density: str
) -> np.ndarray:
    """int8 [n, k] whose blocks are kept as the density says."""
    cells = (round_up(n, kernels.nr) // kernels.nr, round_up(k, kernels.kr) // kernels.kr)
    kept = {"none": np.zeros(cells, bool), "all": np.ones(cells, bool), "half": rng.random(cells) < 0.5}.get(density)
    if kept is None:
        kept = np.arange(cells[0] * cells[1]).reshape(cells) == rng.integers(cells[0] * cells[1])
    mask = kept.repeat(kernels.nr, 0).repeat(kernels.kr, 1)[:n, :k]
    return np.where(mask, rng.integers(-127, 128, (n, k)), 0).astype(np.int8)


def layer_arrays(stored: Stored, *arrays: np.ndarray | None) -> list[np.ndarray | None]:
    """The operands of the driver's commands for int8 layers: `arrays` are [1] to [7]."""
    padded = [*arrays, *(None,) * (7 - len(arrays))]
    multipliers = None if stored.multipliers is None else np.pad(stored.multipliers.reshape(-1), (0, 16))
    return [stored.weights, *padded, stored.blocks, stored.strides, multipliers]


@pytest.mark.parametrize("density", DENSITIES)
def test_static_layers_are_bit_exact(driver: Driver, density: str) -> None:
    rng, kernels = np.random.default_rng(len(density)), driver.kernels
    check_static_layers(
        driver, rng, lambda index, n, k: sparse_matrix(rng, n, k, kernels, density),
        lambda weight, *rest: layer_arrays(pack_blocks(pack_b(weight, kernels), kernels), *rest),
    )


def four_bit_matrix(rng: np.random.Generator, n: int, k: int, group: int) -> np.ndarray:
    """int8 [n, k] = multiplier · q, the smallest q in every row."""
    multiplier = rng.integers(1, 16, (n, -(-k // group))).repeat(group, 1)[:, :k]
    small = rng.integers(-8, 8, (n, k))
    small[:, 0] = -8
    return (multiplier * small).astype(np.int8)


def test_layers_of_four_bits_are_those_of_dense_weights(driver: Driver) -> None:
    """Groups of 32 and one group a row; tails of rows, columns and groups; few rows, which unpack in registers."""
    rng, kernels = np.random.default_rng(11), driver.kernels
    few = [(m, 0, n) for m in (2, 3, 4, 5) for n in (1, kernels.nr, 37)]
    for index, (m, _, n) in enumerate([*shapes(kernels, kernels.nr), *few]):
        k = (32, 64, 96, 128)[index % 4]
        x = rng.integers(-128, 128, (m, k)).astype(np.int8)
        weight = four_bit_matrix(rng, n, k, 32 if index % 3 else k)
        count, stride, size = round_up(n, kernels.nr), round_up(n, ALIGN), round_up(m, ROWS) * round_up(n, ALIGN)
        operands = [
            pad(rng.integers(-5000, 5000, n), count, np.int32),
            pad(rng.uniform(0.001, 0.01, n).astype(np.float32), count, np.float32),
            *(np.full(kernels.nr, value, np.float32) for value in (3, 0.05)), pack_a(x, kernels),
        ]
        small = pack_four_bits(pack_b(weight, kernels), kernels)
        assert small is not None and small.bytes < 0.6 * count * k
        for stored in (small, Stored(pack_b(weight, kernels))):
            pairs = stored.group // (2 * kernels.kr)
            driver.call(1, [0, k, count, m, stride, 0, pairs], layer_arrays(stored, *operands), m * stride * 4)
            driver.call(2, [0, k, count, m, stride, size, pairs], layer_arrays(stored, *operands), size)
    answers = driver.run()
    for small_floats, small_bytes, floats_, bytes_ in zip(*(answers[i::4] for i in range(4)), strict=True):
        assert small_floats == floats_ and small_bytes == bytes_


def test_the_largest_sums_of_four_bits_fit(driver: Driver) -> None:
    """The largest products of the deepest matrix: int32 sums in registers do not overflow."""
    kernels = driver.kernels
    deep = 8192 if kernels.triple == AARCH64 else 128  # others unpack into the test's 128
    weight = np.full((kernels.nr, deep), 127, np.int8)
    weight[1::2] = -127
    ones = [np.full(kernels.nr, value, np.float32) for value in (100 / (127 * 128 * deep), 0, 1)]
    small = pack_four_bits(pack_b(weight, kernels), kernels)
    assert small is not None
    x = pack_a(np.full((1, deep), -128, np.int8), kernels)
    bias = -kernels.flip * weight.sum(1, dtype=np.int32)
    for stored in (small, Stored(pack_b(weight, kernels))):
        numbers = [0, deep, kernels.nr, 1, ALIGN, 0, stored.group // (2 * kernels.kr)]
        driver.call(1, numbers, layer_arrays(stored, bias, *ones, x), ALIGN * 4)
    packed, whole = (floats(answer, ALIGN, kernels.nr) for answer in driver.run())
    np.testing.assert_array_equal(packed, whole)
    assert whole[0, :2].tolist() == [-100, 100]


def test_tables_of_four_bits_give_the_rows_of_int8(driver: Driver) -> None:
    """Odd widths, groups cut off at the end, positions from a row on; other numbers stay in 8 bits."""
    rng = np.random.default_rng(12)
    ids = np.array([3, 0, 6, 6], np.int64)
    for width, group in ((1, 8), (19, 8), (40, 32), (384, 64)):
        values, positions = four_bit_matrix(rng, 7, width, group), rng.standard_normal((6, width)).astype(np.float32)
        scale, stride = rng.uniform(0.1, 1, 7).astype(np.float32), round_up(width, ALIGN)
        small = pack_rows(values)
        assert small is not None and small.weights.shape == (7, (width + 1) // 2) and small.group >= group
        numbers = [4, width, stride, small.multipliers.shape[1], small.group.bit_length() - 1, 2]
        arrays = [ids, small.weights, scale, positions, None, small.multipliers]
        driver.call(13, numbers, arrays, 4 * stride * 4)
        driver.call(13, [4, width, stride, 0, 0, 2], [ids, values, scale, positions, None], 4 * stride * 4)
    answers = driver.run()
    assert answers[::2] == answers[1::2]
    assert pack_rows(np.array([[127, 126, 3]], np.int8)) is None


@pytest.mark.parametrize("name", sorted(KERNEL_SETS))
@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 40), k=st.integers(1, 140), group=st.sampled_from([8, 16, 32, 64, 200]), seed=st.integers(0, 9)
)
def test_four_bits_hold_the_matrix(name: str, n: int, k: int, group: int, seed: int) -> None:
    """What is packed is unpacked; groups finer than a pair of k-steps, and other numbers, stay in 8 bits."""
    kernels, rng = KERNEL_SETS[name], np.random.default_rng(seed)
    weight = four_bit_matrix(rng, n, k, group)
    stored = pack_four_bits(pack_b(weight, kernels), kernels)
    fits = round_up(k, ALIGN) % (2 * kernels.kr) == 0
    if stored is not None:
        np.testing.assert_array_equal(unpack_four_bits(stored, n, k, kernels), weight)
    assert stored is not None or not fits or group % (2 * kernels.kr)
    if k > 1:
        weight[-1, :2] = 127, 126
        assert pack_four_bits(pack_b(weight, kernels), kernels) is None


@pytest.mark.parametrize("density", DENSITIES)
def test_dynamic_layers_are_those_of_dense_weights(driver: Driver, density: str) -> None:
    rng, kernels = np.random.default_rng(len(density)), driver.kernels
    for m, k, n in shapes(kernels, kernels.nr):
        values = rng.standard_normal((m, k)).astype(np.float32) * rng.uniform(0.1, 10, (m, 1)).astype(np.float32)
        x, row_scale, row_zero = reference.quantize_rows(values)
        weight = sparse_matrix(rng, n, k, kernels, density)
        count, depth, stride = round_up(n, kernels.nr), round_up(k, ALIGN), round_up(n, ALIGN)
        operands = [
            pad(weight.astype(np.int64).sum(1), count, np.int32),
            pad(rng.uniform(0.001, 0.01, n).astype(np.float32), count, np.float32),
            pad(rng.standard_normal(n).astype(np.float32), count, np.float32), None, pack_a(x, kernels),
            pad(row_scale, round_up(m, ROWS), np.float32), pad(row_zero + kernels.flip, round_up(m, ROWS), np.int32),
        ]
        for stored in (pack_blocks(pack_b(weight, kernels), kernels), Stored(pack_b(weight, kernels))):
            driver.call(3, [0, depth, count, m, stride], layer_arrays(stored, *operands), m * stride * 4)
    answers = driver.run()
    assert answers[::2] == answers[1::2]


@pytest.mark.parametrize("name", sorted(KERNEL_SETS))
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 70), k=st.integers(1, 70), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_blocks_hold_the_matrix(name: str, n: int, k: int, share: float, seed: int) -> None:
    """Any zeros, in blocks or not: nothing is lost, and every list stays inside of its panel of activations."""
    kernels, rng = KERNEL_SETS[name], np.random.default_rng(seed)
    weight = np.where(rng.random((n, k)) < share, rng.integers(-127, 128, (n, k)), 0).astype(np.int8)
    stored = pack_blocks(pack_b(weight, kernels), kernels)
    assert stored.blocks is not None and stored.strides is not None
    np.testing.assert_array_equal(unpack_blocks(stored, n, k, kernels), weight)
    assert len(stored.blocks) == round_up(n, kernels.nr) // kernels.nr
    for begin, count, offset in stored.blocks.tolist():
        ends = offset + np.cumsum(stored.strides[begin : begin + count])
        assert begin + count <= len(stored.weights) == len(stored.strides)
        assert (ends >= 0).all() and (ends < round_up(k, ALIGN) * kernels.mr).all()


def test_the_form_follows_the_weights() -> None:
    """Zeros in blocks of the tile are left out, whoever made them; single zeros are not worth a list."""
    kernels, rng = KERNEL_SETS["dotprod"], np.random.default_rng(4)
    dense = rng.integers(1, 128, (48, 64)).astype(np.int8)
    assert store_matrix(dense, kernels).blocks is None
    single = np.where(rng.random(dense.shape) < 0.5, dense, 0).astype(np.int8)
    assert store_matrix(single, kernels).blocks is None
    few, many = dense.copy(), dense.copy()
    few[:12, :4] = 0
    many[:12] = 0
    assert store_matrix(few, kernels).blocks is None and 1 / 64 < sparse_from(kernels)
    stored = store_matrix(many, kernels)
    assert stored.left_out == 0.25 and stored.weights.nbytes == 0.75 * dense.nbytes
    assert kernel_macros([stored]) == ("EDGE_BLOCKS 1",) and kernel_macros([Stored(dense)]) == ()
    assert storage_summary([stored, Stored(dense)]) == (
        "block-sparse: 1 of 2 int8 matrices, 25 % of their k-steps left out",
    )
    halved = np.where(np.arange(48)[:, None] < 24, dense[:, :16], 0).astype(np.int8)  # a quarter of the blocks
    assert storage_summary([stored, store_matrix(halved, kernels)]) == (
        "block-sparse: 2 of 2 int8 matrices, 30 % of their k-steps left out",
    )
    assert storage_summary([Stored(dense)]) == ()
    small = store_matrix(four_bit_matrix(rng, 24, 64, 32), kernels)
    assert small.group == 32 and small.bytes == 24 * 64 // 2 + 24 * 2
    assert kernel_macros([small, stored]) == ("EDGE_BLOCKS 1", "EDGE_FOUR_BITS 64")
    assert storage_summary([small]) == ("4-bit weights: 1 of 1 int8 matrices, unpacked as they are read",)
    assert storage_summary([], 1) == ("4-bit tables of embeddings: 1, unpacked as they are read",)
    both = np.where(many != 0, four_bit_matrix(rng, 48, 64, 32), 0).astype(np.int8)
    assert store_matrix(both, kernels).multipliers is not None, "a quarter of the blocks saves less than 4 bits"


def sparse_sample(scheme: str) -> Sample:
    return make(SPARSE, scheme, 19, seed=3)


@pytest.mark.parametrize(
    ("kind", "scheme", "blocks", "multipliers"),
    [("block-sparse", "w8a8", True, False), ("block-sparse", "w4a8", True, False), ("low_rank", "w8a8", True, False),
     ("sparse", "w8a8", False, False), ("vit", "fp32", False, False), ("sparse", "w4a8", False, True)],
)
def test_sources_say_how_weights_lie(kind: str, scheme: str, blocks: bool, multipliers: bool) -> None:
    case = sparse_sample(scheme) if kind == "block-sparse" else sample(kind, scheme)
    tensors = input_tensors(case.package()), output_tensors(case.package())
    sources = emit(make_plan(case.graph, case.sequence), KERNEL_SETS["dotprod"], "sample", *tensors)
    assert (sources.blocks, sources.multipliers) == (blocks, multipliers)


def test_projections_side_by_side_begin_at_whole_panels() -> None:
    """Query, key and value of 64 and 32 outputs in panels of 12; dense ones stay as close as they were."""
    plan, kernels = make_plan(sparse_sample("w8a8").graph, 19), KERNEL_SETS["dotprod"]
    steps = specialize(plan, kernels).steps
    attend = next(step for step in steps if isinstance(step, Attend))
    merged = next(step for step in steps if isinstance(step, Dense) and step.result == attend.query)
    assert attend.starts == (0, 96, 144) and merged.result.columns == attend.value.columns == 192
    assert [len(linear.weight) for linear in merged.linears] == [96, 48, 48]
    assert min(zero_share(pack_b(linear.weight, kernels), kernels) for linear in merged.linears) > 0.5
    close = specialize(plan, KERNEL_SETS["base"]).steps
    assert next(step for step in close if isinstance(step, Attend)).starts == (0, 64, 96)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_sparse_models_answer_as_dense_ones(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, from fewer bytes."""
    need(bool(find_all(AARCH64)), "no C compiler for ARM")
    need(shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
    case, found, folders = sparse_sample(scheme), [], [tmp_path / "sparse", tmp_path / "dense"]
    for folder in folders:
        folder.mkdir()
        built = Built("raspberry-pi/5", case, folder)
        found.append(built)
        monkeypatch.setattr(storage, "SPARSE_FROM", 2.0)
    sparse, dense = (built.outputs(tmp_path) for built in found)
    np.testing.assert_array_equal(sparse, dense)
    assert sqnr_db(case.expected if scheme == "w8a8" else case.reference, sparse) >= (40 if scheme == "w8a8" else 20)
    assert any("block-sparse: 4 of " in note for note in found[0].artifact.notes)
    assert any("stored and computed dense" in note for note in found[1].artifact.notes)
    sizes = [built.artifact.runtime["weight_bytes"] for built in found]
    assert sizes[0] < 0.8 * sizes[1] and found[0].artifact.bytes < found[1].artifact.bytes


@pytest.mark.parametrize(("scheme", "change"), [
    *itertools.product(("w8a8", "w4a8"), ("mask cut", "values cut", "mask empty")), ("w4a8", "multipliers cut"),
])
def test_cut_sparse_data_is_refused(scheme: str, change: str) -> None:
    """One message that names the node and says what does not fit; nothing is built."""
    model = onnx.load_from_string(sample("sparse", scheme).graph)
    part, _, action = change.partition(" ")
    endings = {"mask": (".mask",), "values": (".values", ".q"), "multipliers": (".multiplier",)}[part]
    names = [entry.name for entry in model.graph.initializer if entry.name.startswith("layers.0.ffn.up.weight")]
    found = next(name for name in names if name.endswith(endings))
    tensor = next(entry for entry in model.graph.initializer if entry.name == found)
    size = tensor.dims[0]
    keep = 0 if action == "empty" else size // 2
    tensor.dims[0] = keep
    elements, two_in_a_byte = int(np.prod(tensor.dims)), tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)
    tensor.raw_data = tensor.raw_data[: (elements + 1) // 2 if two_in_a_byte else elements]
    with pytest.raises(UnsupportedOp, match=r"layers\.0\.ffn\.up\.weight"):
        make_plan(model.SerializeToString(), SEQUENCE)


def test_low_rank_pairs_stay_in_int8() -> None:
    """Static pairs hand over their integers: no float tensor lies between the two layers."""
    steps = make_plan(sample("low_rank", "w8a8").graph, SEQUENCE).steps
    first = [step for step in steps if isinstance(step, Dense) and step.linears[0].name.endswith(".v")]
    second = {step.source.name for step in steps if isinstance(step, Dense) and step.linears[0].name.endswith(".u")}
    assert len(first) == 4
    for step in first:
        assert step.result.layout == "packed_a" and step.result.name in second
