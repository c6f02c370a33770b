"""Every kernel of every kernel set against slow numpy, on sizes around the tiles; ARM sets run under qemu-aarch64."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.converters.front import Encoding
from edgesdk.converters.neon import reference
from edgesdk.converters.neon.build import kernel_sources
from edgesdk.converters.neon.kernel_sets import AARCH64, KERNEL_SETS, KernelSet, host_features
from edgesdk.converters.neon.packing import (
    ALIGN,
    ROWS,
    pack_a,
    pack_b,
    pack_float,
    pad,
    pad_rows,
    round_up,
    unpack_a,
)
from edgesdk.converters.neon.specialize import exponent, powers
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.testing.needs import need

DRIVER = r"""
#include "edge_kernels.h"
#include <stdio.h>
#include <stdlib.h>

static FILE *in, *out;
static int p[12];
static void *array[12];

static size_t size_of(int index, int element) { return ((size_t *)array[index])[-8] / (size_t)element; }
static void get(int count) {
  memset(array, 0, sizeof array);
  for (int i = 0; i < count; i++) {
    int64_t bytes;
    if (fread(&bytes, 8, 1, in) != 1) exit(3);
    char *block = aligned_alloc(64, ((size_t)bytes + 64 + 64 + 63) / 64 * 64);
    *(size_t *)block = (size_t)bytes;
    array[i] = bytes ? block + 64 : NULL;
    if (fread(block + 64, 1, (size_t)bytes, in) != (size_t)bytes) exit(4);
  }
}
static void put(const void *data, size_t bytes) { fwrite(data, 1, bytes, out); }

/* Rows of a kernel by its place in `BY_ROW`: p is that, rows, width and stride; quantized unless `to` is NULL. */
static void make_rows(int kind, const float *x, float epsilon, float *out, const edge_quantized *to) {
  typedef void floats(const float *, int, int, int, float *);
  typedef void integers(const float *, int, int, int, float *, edge_quantized);
  floats *const makers[] = {edge_gelu, edge_gelu_tanh, edge_relu, edge_silu, edge_tanh};
  integers *const quantizers[] = {edge_gelu_quantized, edge_gelu_tanh_quantized, edge_relu_quantized,
                                  edge_silu_quantized, edge_tanh_quantized};
  if (kind == 0 && to) edge_layernorm_quantized(x, p[1], p[2], p[3], array[1], array[2], epsilon, out, *to);
  else if (kind == 0) edge_layernorm(x, p[1], p[2], p[3], array[1], array[2], epsilon, out);
  else if (kind == 1 && to) edge_rmsnorm_quantized(x, p[1], p[2], p[3], array[1], epsilon, out, *to);
  else if (kind == 1) edge_rmsnorm(x, p[1], p[2], p[3], array[1], epsilon, out);
  else if (to) quantizers[kind - 2](x, p[1], p[2], p[3], out, *to);
  else makers[kind - 2](x, p[1], p[2], p[3], out);
}

int main(int argc, char **argv) {
  if (argc != 3 || !(in = fopen(argv[1], "rb")) || !(out = fopen(argv[2], "wb"))) return 2;
  int command;
  static float result[1 << 18], scratch[1 << 18];
  static int8_t packed[1 << 16];
  while (fread(&command, 4, 1, in) == 1) {
    if (fread(p, 4, 12, in) != 12) return 3;
    float real;
    memcpy(&real, &p[11], 4);
    memset(result, 0, sizeof result);
    memset(packed, 0, sizeof packed);
    get(p[10]);
    edge_int8 layer = {array[0], array[1], array[2], array[3], array[4], p[0], p[1], p[2], array[8], array[9],
                       array[10], p[6]};
    edge_float dense = {array[0], array[1], p[1], p[2]};
    size_t floats = 0; /* how many of `result` are the answer */
    switch (command) {
      case 1:
        edge_int8_to_float(&layer, array[5], p[3], array[6], result, p[4]);
        floats = (size_t)p[3] * p[4];
        break;
      case 2:
        edge_int8_to_packed(&layer, array[5], p[3], packed, p[4]);
        put(packed, (size_t)p[5]);
        break;
      case 3:
        edge_int8_dynamic(&layer, array[5], array[6], array[7], p[3], NULL, result, p[4]);
        floats = (size_t)p[3] * p[4];
        break;
      case 4:
        edge_quantize(array[0], p[0], p[1], p[2], real, (float)p[3], packed, p[4]);
        put(packed, (size_t)p[5]);
        break;
      case 5: {
        static int32_t zeros[64];
        edge_quantize_rows(array[0], p[0], p[1], p[2], (edge_quantized){result, zeros, packed, p[4]});
        put(packed, (size_t)p[5]);
        put(result, (size_t)p[1] * 4);
        put(zeros, (size_t)p[1] * 4);
        break;
      }
      case 6:
        edge_table(array[0], size_of(0, 1), array[1]);
        put(array[0], size_of(0, 1));
        break;
      case 7:
        edge_float_linear(&dense, array[2], p[0], p[3], array[3], result, p[4]);
        floats = (size_t)p[3] * p[4];
        break;
      case 8:
        edge_w8_linear(array[0], array[1], array[2], p[0], p[1], p[2], array[3], p[3], p[4], result, p[5]);
        floats = (size_t)p[4] * p[5];
        break;
      case 9:
        edge_layernorm(array[0], p[0], p[1], p[2], array[1], array[2], real, result);
        floats = (size_t)p[0] * p[2];
        break;
      case 10: {
        void (*const kinds[])(const float *, int, int, int, float *) = {edge_gelu, edge_gelu_tanh, edge_relu, edge_tanh,
                                                                        edge_silu};
        kinds[p[2]](array[0], p[0], p[1], p[1], result);
        floats = (size_t)p[0] * p[1];
        break;
      }
      case 11:
        edge_attention(array[0], p[0], array[1], p[1], array[2], p[1], p[2], p[3], p[8], p[4], p[5], p[6], real, result,
                       p[7], scratch);
        floats = (size_t)p[2] * p[7];
        break;
      case 12:
        edge_mean(array[0], p[0], p[1], p[2], result);
        floats = (size_t)p[1];
        break;
      case 13:
        edge_embed(array[0], p[0], p[1], &(edge_lookup){array[1], array[2], array[5], p[3], p[4]},
                   array[3] ? &(edge_lookup){array[3], array[4], NULL, 0, 0} : NULL, p[5], result, p[2]);
        floats = (size_t)p[0] * p[2];
        break;
      case 14:
        edge_patches(array[0], p[0], p[1], p[2], result, p[3]);
        floats = (size_t)p[4] * p[3];
        break;
      case 15:
        edge_add_positions(array[0], p[0], p[1], p[2], array[1], p[4],
                           &(edge_lookup){array[2], array[3], NULL, 0, 0}, result);
        floats = (size_t)p[3] * p[2];
        break;
      case 16:
        edge_add(array[0], array[1], p[0], p[1], result);
        floats = (size_t)p[0] * p[1];
        break;
#if defined(EDGE_INTEGER_ATTENTION)
      case 17: {
        const int *z = array[3];
        edge_exponents softmax = {z[2], z[3], {(int16_t)z[4], (int16_t)z[5], (int16_t)z[6], (int16_t)z[7]}};
        edge_attention8 heads = {softmax, z[0], real, (float)z[8] - (float)z[1] * real, p[4], p[5], p[6], p[8]};
        edge_attention_int8(&heads, array[0], p[0], array[1], p[1], array[2], p[1], p[2], p[3], packed, p[7],
                            (unsigned char *)scratch);
        put(packed, (size_t)p[9]);
        break;
      }
#endif
      case 18: {
        const float *f = array[3];
        edge_layernorm_packed(array[0], p[0], p[1], p[2], array[1], array[2], real, p[3] ? result : NULL, f[0], p[4],
                              packed, p[2]);
        put(packed, (size_t)p[5]);
        floats = p[3] ? (size_t)p[0] * p[2] : 0;
        break;
      }
      case 34: { /* rows that are made, then quantized; p[4]: by two kernels, by one, by one in the place of x */
        static int32_t zeros[64];
        const edge_quantized to = {scratch, zeros, packed, p[3]};
        if (p[4] == 2) memcpy(result, array[0], size_of(0, 1));
        make_rows(p[0], p[4] == 2 ? result : array[0], real, result, p[4] ? &to : NULL);
        if (!p[4]) edge_quantize_rows(result, p[3], p[1], p[2], to);
        put(packed, (size_t)p[5]);
        put(scratch, (size_t)p[1] * 4);
        put(zeros, (size_t)p[1] * 4);
        floats = (size_t)p[1] * p[3];
        break;
      }
      case 31:
        edge_rmsnorm(array[0], p[0], p[1], p[2], array[1], real, result);
        floats = (size_t)p[0] * p[2];
        break;
      case 32:
        edge_rotate(array[0], p[0], p[1], p[2], p[3], array[1], array[2], result);
        floats = (size_t)p[0] * p[3];
        break;
      case 33:
        edge_multiply(array[0], array[1], p[0], p[1], result);
        floats = (size_t)p[0] * p[1];
        break;
      case 30:
        edge_attention_cached(array[0], p[0], array[1], p[1], array[2], p[1], p[2], p[3], p[8], p[4], p[5], p[6], real,
                              array[3], p[9], result, p[7], scratch);
        floats = (size_t)p[2] * p[7];
        if (p[3] + p[8] == p[9]) put(array[3], size_of(3, 1));
        break;
#if defined(EDGE_ISA_HALF)
      case 40:
        edge_half_linear(&(edge_half){array[0], array[1], p[0], p[1]}, array[2], p[2], array[3], result, p[1]);
        floats = (size_t)p[2] * p[1];
        break;
      case 41:
        edge_halve(array[0], p[0], p[1], p[2], (edge_f16 *)packed, p[3]);
        put(packed, (size_t)p[4]);
        break;
#endif
      default: return 5;
    }
    put(result, floats * 4);
  }
  return fclose(out) ? 6 : 0;
}
"""
BY_ROW = ("layernorm", "rmsnorm", "gelu", "gelu_tanh", "relu", "silu", "tanh")  # the kinds of `make_rows`
QEMU_CPU = {"base": "cortex-a72", "dotprod": "cortex-a76", "half": "cortex-a76", "i8mm": "max"}
# The tile of AVX-VNNI in the encoding of AVX512-VNNI, for CPUs that have only that.
EVEX = replace(
    KERNEL_SETS["avxvnni"], isa=("avx2", "fma", "avx512f", "avx512vl", "avx512_vnni"),
    flags=("-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512vnni"),
)
SETS = {**KERNEL_SETS, "avxvnni as EVEX": EVEX}
INTEGER_ATTENTION = sorted(name for name, kernels in SETS.items() if kernels.integer_attention)


class Driver:
    """Collects kernel calls, runs them all in one process, and hands their results to the checks in order."""

    def __init__(self, kernels: KernelSet, program: Path, folder: Path) -> None:
        self.kernels, self.program, self.folder = kernels, program, folder
        self.calls: list[bytes] = []
        self.expected: list[int] = []

    def call(
        self, command: int, numbers: list[int], arrays: Sequence[np.ndarray | None], output: int, real: float = 0.0
    ) -> None:
        """`numbers` are the parameters p[0]...; `output` is the number of bytes that the call answers."""
        parameters = np.zeros(12, np.int32)
        parameters[: len(numbers)] = numbers
        parameters[10] = len(arrays)
        parameters[11] = np.array(real, np.float32).view(np.int32)
        blocks = [b"" if array is None else np.ascontiguousarray(array).tobytes() for array in arrays]
        body = b"".join(len(block).to_bytes(8, "little") + block for block in blocks)
        self.calls.append(command.to_bytes(4, "little") + parameters.tobytes() + body)
        self.expected.append(output)

    def run(self) -> list[bytes]:
        (self.folder / "in").write_bytes(b"".join(self.calls))
        command = [str(self.program), str(self.folder / "in"), str(self.folder / "out")]
        if self.kernels.triple == AARCH64:
            command = ["qemu-aarch64", "-cpu", QEMU_CPU[self.kernels.name], *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        data = (self.folder / "out").read_bytes()
        assert len(data) == sum(self.expected)
        ends = np.cumsum(self.expected)
        return [data[end - size : end] for end, size in zip(ends, self.expected, strict=True)]


@pytest.fixture(scope="module", params=sorted(SETS))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[KernelSet, Path]:
    """The driver, compiled for one kernel set."""
    kernels = SETS[request.param]
    toolchains = find_all(kernels.triple)
    need(bool(toolchains), f"no C compiler for {kernels.triple}")
    need(kernels.triple != AARCH64 or shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
    if kernels.triple != AARCH64 and not set(kernels.isa) <= host_features():
        pytest.skip(f"this CPU lacks {kernels.isa}")
    folder = tmp_path_factory.mktemp(kernels.name)
    for name, content in kernel_sources().items():
        (folder / name).write_bytes(content)
    (folder / "driver.c").write_text(DRIVER)
    flags = (f"-D{kernels.macro}=1", "-DEDGE_BLOCKS=1", "-DEDGE_FOUR_BITS=128", "-Werror", *kernels.flags)
    toolchains[0].compile("driver.c", "driver.o", flags, folder)
    toolchains[0].link(("driver.o",), "driver", folder)
    return kernels, folder / "driver"


@pytest.fixture
def driver(program: tuple[KernelSet, Path], tmp_path: Path) -> Driver:
    return Driver(*program, tmp_path)


def rows_of(values: np.ndarray, stride: int | None = None) -> np.ndarray:
    """[M, N] floats in a buffer: rows padded to `stride` and to whole tiles, with NaN, which must not spread."""
    rows, columns = values.shape
    stride = stride or round_up(columns, ALIGN)
    buffer = np.full((round_up(rows, ROWS), stride), np.nan, np.float32)
    buffer[:rows, :columns] = values
    return buffer


def floats(data: bytes, stride: int, columns: int, rows: int | None = None) -> np.ndarray:
    return np.frombuffer(data, np.float32).reshape(-1, stride)[:rows, :columns]


def around(tile: int, prime: int) -> list[int]:
    return sorted({1, max(1, tile - 1), tile, tile + 1, prime})


def shapes(kernels: KernelSet, n_tile: int) -> list[tuple[int, int, int]]:
    """(M, K, N) around the tile; every size of each axis meets several of the others."""
    ms, ns = [*around(kernels.mr, 13), kernels.mr + 2, 2 * kernels.mr + 3], around(n_tile, 37)
    ks = [1, 3, 15, 16, 17, 64, 97]
    return [(m, ks[(i * 5 + j * 3) % len(ks)], n) for i, m in enumerate(ms) for j, n in enumerate(ns)]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(KERNEL_SETS)), m=st.integers(1, 40), k=st.integers(1, 70), n=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_packed_panels_hold_the_product(name: str, m: int, k: int, n: int, seed: int) -> None:
    """Any size: a panel of A times a panel of B, step by step, is the plain product; unpacking gives A back."""
    kernels, rng = KERNEL_SETS[name], np.random.default_rng(seed)
    x, weight = rng.integers(-128, 128, (m, k)).astype(np.int8), rng.integers(-127, 128, (n, k)).astype(np.int8)
    packed = pack_a(x, kernels)
    np.testing.assert_array_equal(unpack_a(packed, m, k, kernels), x)
    signed = (packed.view(np.uint8) ^ np.uint8(kernels.flip)).view(np.int8).astype(np.int64)
    tiles = np.einsum("msik,nsjk->minj", signed, pack_b(weight, kernels).astype(np.int64), optimize=True)
    product = tiles.reshape(tiles.shape[0] * kernels.mr, -1)[:m, :n]
    np.testing.assert_array_equal(product, reference.accumulate(x, weight))


def check_static_layers(
    driver: Driver, rng: np.random.Generator, matrix: Callable[[int, int, int], np.ndarray],
    operands: Callable[..., list[np.ndarray | None]],
) -> None:
    """Static int8 layers to floats (with and without residual) and to packed int8 are right bit by bit, with extreme
    activations and output encodings for each column: `matrix` gives the weights of layer (index, N, K), `operands` the
    arrays of the driver's commands from the weights and all that follow them."""
    kernels, checks = driver.kernels, []
    for index, (m, k, n) in enumerate(shapes(kernels, kernels.nr)):
        x = rng.integers(-128, 128, (m, k)).astype(np.int8)
        x[0] = -128
        weight = matrix(index, n, k)
        bias = rng.integers(-5000, 5000, n)
        scale = (rng.uniform(0.2, 3.0, n) / (40 * k)).astype(np.float32)
        varied = index % 3 == 0
        zero = rng.integers(-128, 128, n if varied else 1).astype(np.float32)
        step = rng.uniform(0.01, 0.1, n if varied else 1).astype(np.float32)
        residual = rng.standard_normal((m, n)).astype(np.float32) if index % 2 else None
        count, depth, stride = round_up(n, kernels.nr), round_up(k, ALIGN), round_up(n, ALIGN)
        folded = bias - kernels.flip * weight.astype(np.int64).sum(1)
        columns = [pad(part, count, np.float32) if varied else part.repeat(kernels.nr) for part in (zero, step)]
        arrays = operands(
            weight, pad(folded, count, np.int32), pad(scale, count, np.float32), *columns, pack_a(x, kernels),
            None if residual is None else rows_of(residual),
        )
        driver.call(1, [varied, depth, count, m, stride], arrays, m * stride * 4)
        checks.append((stride, n, reference.linear_static(x, weight, bias, scale, zero, step, residual)))
        size = round_up(m, ROWS) * stride
        driver.call(2, [varied, depth, count, m, stride, size], arrays, size)
        checks.append((None, (m, n), reference.requantize(x, weight, bias, scale, zero)))
    for data, (stride, columns, expected) in zip(driver.run(), checks, strict=True):
        if stride is None:
            found = unpack_a(np.frombuffer(data, np.int8), *columns, kernels)
        else:
            found = floats(data, stride, columns)
        np.testing.assert_array_equal(found, expected)


def test_static_int8_linear_is_bit_exact(driver: Driver) -> None:
    rng = np.random.default_rng(0)

    def matrix(index: int, n: int, k: int) -> np.ndarray:
        weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
        weight[0] = -127 if index % 2 else 127
        return weight

    check_static_layers(driver, rng, matrix, lambda weight, *rest: [pack_b(weight, driver.kernels), *rest])


def test_dynamic_int8_linear(driver: Driver) -> None:
    rng, kernels, checks = np.random.default_rng(1), driver.kernels, []
    for m, k, n in shapes(kernels, kernels.nr):
        values = rng.standard_normal((m, k)).astype(np.float32) * rng.uniform(0.1, 10, (m, 1)).astype(np.float32)
        x, row_scale, row_zero = reference.quantize_rows(values)
        weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
        scale = rng.uniform(0.001, 0.01, n).astype(np.float32)
        bias = rng.standard_normal(n).astype(np.float32)
        count, depth, stride = round_up(n, kernels.nr), round_up(k, ALIGN), round_up(n, ALIGN)
        arrays = [
            pack_b(weight, kernels),
            pad(weight.astype(np.int64).sum(1), count, np.int32), pad(scale, count, np.float32),
            pad(bias, count, np.float32), None, pack_a(x, kernels), pad(row_scale, round_up(m, ROWS), np.float32),
            pad(row_zero + kernels.flip, round_up(m, ROWS), np.int32),
        ]
        driver.call(3, [0, depth, count, m, stride], arrays, m * stride * 4)
        checks.append((stride, n, reference.linear_dynamic(x, row_scale, row_zero, weight, scale, bias)))
    for data, (stride, n, expected) in zip(driver.run(), checks, strict=True):
        np.testing.assert_allclose(floats(data, stride, n), expected, rtol=1e-5, atol=1e-5)


def test_quantization(driver: Driver) -> None:
    """Static: exact, also at ties and beyond the range. By row: exact integers, scales and zero points."""
    rng, kernels, checks = np.random.default_rng(2), driver.kernels, []
    for m, k in [(1, 1), (3, 5), (4, 16), (7, 17), (8, 31), (9, 48), (13, 97)]:
        x = rng.standard_normal((m, k)).astype(np.float32) * 3
        x.reshape(-1)[::3] = np.rint(x.reshape(-1)[::3] * 4) / 8  # ties at inverse 4
        x[0, 0] = 1e9
        x[-1, -1] = -1e9 if m > 1 else 0.0
        depth, stride = round_up(k, ALIGN), round_up(k, ALIGN)
        size = round_up(m, ROWS) * depth
        driver.call(4, [stride, m, k, -3, depth, size], [rows_of(x)], size, real=4.0)
        checks.append((m, k, reference.quantize(x, 4.0, -3), None, None))
        x = np.clip(x, -20, 20) if m % 2 else np.abs(np.clip(x, 0.5, 20))
        x[-1] = 0.0
        driver.call(5, [stride, m, k, 0, depth, size], [rows_of(x)], size + 8 * m)
        checks.append((m, k, *reference.quantize_rows(x)))
    for data, (m, k, integers, scale, zero) in zip(driver.run(), checks, strict=True):
        size = round_up(m, ROWS) * round_up(k, ALIGN)
        np.testing.assert_array_equal(unpack_a(np.frombuffer(data[:size], np.int8), m, k, kernels), integers)
        if scale is not None:
            np.testing.assert_array_equal(np.frombuffer(data[size : size + 4 * m], np.float32), scale)
            np.testing.assert_array_equal(np.frombuffer(data[size + 4 * m :], np.int32), zero + kernels.flip)


def test_table(driver: Driver) -> None:
    rng = np.random.default_rng(3)
    table = rng.permutation(256).astype(np.uint8)
    values = [rng.integers(0, 256, count).astype(np.uint8) for count in (1, 15, 16, 17, 256, 1000)]
    for value in values:
        driver.call(6, [], [value, table], len(value))
    for data, value in zip(driver.run(), values, strict=True):
        np.testing.assert_array_equal(np.frombuffer(data, np.uint8), table[value])


def test_float_linear(driver: Driver) -> None:
    rng, kernels, checks = np.random.default_rng(4), driver.kernels, []
    for index, (m, k, n) in enumerate(shapes(kernels, kernels.nf)):
        x, weight = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((n, k)).astype(np.float32)
        bias, residual = rng.standard_normal(n).astype(np.float32), rng.standard_normal((m, n)).astype(np.float32)
        count, stride = round_up(n, kernels.nf), round_up(n, ALIGN)
        arrays = [pack_float(weight, kernels), pad(bias, count, np.float32), rows_of(x), rows_of(residual)]
        if index % 2:
            arrays[3] = None
        driver.call(7, [round_up(k, ALIGN), k, count, m, stride], arrays, m * stride * 4)
        checks.append((stride, n, x.astype(np.float64) @ weight.T + bias + (0 if index % 2 else residual)))
        if index % 4 == 0:
            integers = rng.integers(-127, 128, (n, k)).astype(np.int8)
            scale = rng.uniform(0.01, 0.02, n).astype(np.float32)
            arrays = [pad_rows(integers), scale, bias, rows_of(x)]
            driver.call(8, [n, k, round_up(k, ALIGN), round_up(k, ALIGN), m, stride], arrays, m * stride * 4)
            checks.append((stride, n, x.astype(np.float64) @ (integers * scale[:, None].astype(np.float64)).T + bias))
    for data, (stride, n, expected) in zip(driver.run(), checks, strict=True):
        np.testing.assert_allclose(floats(data, stride, n), expected, rtol=2e-5, atol=2e-5)


def test_layernorm(driver: Driver) -> None:
    rng, checks = np.random.default_rng(5), []
    for m, n in [(1, 1), (2, 3), (3, 15), (4, 16), (5, 17), (2, 64), (3, 97), (2, 384)]:
        x = (rng.standard_normal((m, n)) * 3 + 20).astype(np.float32)
        weight, bias = rng.standard_normal(n).astype(np.float32), rng.standard_normal(n).astype(np.float32)
        stride = round_up(n, ALIGN)
        driver.call(9, [m, n, stride], [rows_of(x), weight, bias], m * stride * 4, real=1e-5)
        checks.append((stride, n, reference.layernorm(x, weight, bias, 1e-5)))
    for data, (stride, n, expected) in zip(driver.run(), checks, strict=True):
        np.testing.assert_allclose(floats(data, stride, n), expected, rtol=1e-5, atol=2e-5)


def test_elementwise(driver: Driver) -> None:
    """GELU (erf), GELU (tanh), ReLU, tanh, SiLU from -30 to 30, denser around 0."""
    line = np.concatenate([np.linspace(-30, 30, 512), np.linspace(-3, 3, 480), [0.0] * 32]).astype(np.float32)
    kinds = ("gelu", "gelu_tanh", "relu", "tanh", "silu")
    for index in range(len(kinds)):
        driver.call(10, [4, 256, index], [line], line.nbytes)
    for data, kind in zip(driver.run(), kinds, strict=True):
        found = np.frombuffer(data, np.float32)
        np.testing.assert_allclose(found, reference.elementwise(kind, line), rtol=1e-6, atol=1e-6)


def test_attention(driver: Driver) -> None:
    """Sizes around the tiles, fewer keys than queries, shared key/value heads, odd head sizes, large scores."""
    rng, checks = np.random.default_rng(6), []
    cases = [
        (1, 1, 1, 1, 1), (3, 3, 2, 1, 4), (8, 8, 2, 2, 16), (9, 9, 3, 1, 13), (17, 17, 4, 2, 16), (17, 5, 2, 1, 32),
        (33, 31, 1, 1, 20), (16, 33, 2, 1, 33),
    ]
    for queries, keys, heads, group, size in cases:
        width, shared = heads * size, heads // group * size
        q = rng.standard_normal((queries, width)).astype(np.float32) * 4
        k, v = (rng.standard_normal((keys, shared)).astype(np.float32) for _ in range(2))
        stride, scale = round_up(width, ALIGN), size**-0.5
        for causal in (False, True):
            numbers = [stride, round_up(shared, ALIGN), queries, keys, heads, group, size, stride, int(causal)]
            driver.call(11, numbers, [rows_of(q), rows_of(k), rows_of(v)], queries * stride * 4, real=scale)
            checks.append((stride, width, reference.attention(q, k, v, heads, group, size, scale, causal)))
    for data, (stride, width, expected) in zip(driver.run(), checks, strict=True):
        np.testing.assert_allclose(floats(data, stride, width), expected, rtol=1e-5, atol=5e-6)


def test_attention_with_a_cache(driver: Driver) -> None:
    """Calls of several sizes in a row on one cache: each gives the last rows of attention over all, and the cache that
    a single call leaves. What is not written yet holds NaN, which must not spread."""
    rng, kernels, checks = np.random.default_rng(16), driver.kernels, []
    cases = [(1, 1, 1, 1), (7, 2, 1, 4), (17, 4, 2, 16), (33, 3, 1, 13), (37, 2, 2, 33), (16, 4, 4, 32)]
    for total, heads, group, size in cases:
        width, shared = heads * size, heads // group * size
        q = rng.standard_normal((total, width)).astype(np.float32) * 4
        k, v = (rng.standard_normal((total, shared)).astype(np.float32) for _ in range(2))
        stride, scale = round_up(width, ALIGN), size**-0.5
        expected = reference.attention(q, k, v, heads, group, size, scale, True)
        floats_of_head = round_up(total, kernels.nf) * size + total * round_up(size, kernels.nf)
        for past in sorted({0, min(1, total - 1), total // 2, max(0, total - 9), total - 1}):
            cache = reference.cache_of(k[:past], v[:past], total, heads // group, size, kernels.nf)
            assert cache.size == floats_of_head * (heads // group)
            new = [rows_of(part[past:]) for part in (q, k, v)]
            numbers = [stride, round_up(shared, ALIGN), total - past, past, heads, group, size, stride, total - past]
            answer = (total - past) * stride * 4
            driver.call(30, [*numbers, total], [*new, cache], answer + cache.nbytes, real=scale)
            full = reference.cache_of(k, v, total, heads // group, size, kernels.nf)
            checks.append((answer, stride, width, expected[past:], full))
    for data, (answer, stride, width, expected, cache) in zip(driver.run(), checks, strict=True):
        # The cache is written before the result: it is the first part of the answer.
        np.testing.assert_array_equal(np.frombuffer(data[:-answer], np.float32), cache)
        np.testing.assert_allclose(floats(data[-answer:], stride, width), expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("program", INTEGER_ATTENTION, indirect=True)
def test_integer_attention_is_bit_exact(driver: Driver) -> None:
    """Sizes around the tiles, fewer keys than queries, shared heads, zero points, flat and sharp distributions."""
    rng, kernels, checks = np.random.default_rng(8), driver.kernels, []
    cases = [
        (1, 1, 1, 1, 16), (3, 3, 2, 1, 16), (8, 8, 2, 2, 32), (9, 9, 3, 1, 48), (17, 17, 4, 2, 16), (17, 5, 2, 1, 32),
        (33, 31, 1, 1, 64), (16, 37, 2, 1, 32),
    ]
    for index, (queries, keys, heads, group, size) in enumerate(cases):
        width, shared = heads * size, heads // group * size
        q = rng.integers(-128, 128, (queries, width)).astype(np.int8)
        k, v = (rng.integers(-128, 128, (keys, shared)).astype(np.int8) for _ in range(2))
        q[0], k[0], v[-1] = -128, -128, 127
        zeros = [(0, 0), (-128, 127), (127, -128), (5, -9)][index % 4]
        factor = [3e-8, 3e-5, 5e-4, 0.004, 0.2][index % 5]
        query, key = Encoding(factor, zeros[0]), Encoding(1 / math.log2(math.e), 3)
        softmax = exponent(query, key, 1.0)
        assert softmax is not None
        for causal in (False, True):
            numbers = [round_up(width, ALIGN), round_up(shared, ALIGN), queries, keys, heads, group, size]
            numbers += [round_up(width, ALIGN), int(causal), round_up(queries, ROWS) * round_up(width, ALIGN)]
            factors = powers([keys, 5000][index % 2])
            extra = np.array([*zeros, *softmax, *factors, -3], np.int32)
            arrays = [*(pack_a(part, kernels) for part in (q, k, v)), extra]
            driver.call(17, numbers, arrays, numbers[9], real=0.3)
            wanted = reference.attention_int8(
                q, k, v, zeros, softmax, factors, 0.3, -3, heads, group, size, causal
            )
            checks.append((queries, width, wanted))
    for data, (queries, width, expected) in zip(driver.run(), checks, strict=True):
        np.testing.assert_array_equal(unpack_a(np.frombuffer(data, np.int8), queries, width, kernels), expected)


@pytest.mark.parametrize(("factor", "integers"), [(0.0, False), (1e-8, False), (3e-8, True), (0.2, True), (0.3, False)])
def test_scores_too_fine_or_too_coarse_stay_floats(factor: float, integers: bool) -> None:
    """A hidden key has the score -2^30: it must have p = 0 at the smallest factor."""
    softmax = exponent(Encoding(factor, 0), Encoding(1 / math.log2(math.e), 0), 1.0)
    assert (softmax is not None) is integers
    if softmax is not None:
        assert reference.power(np.array([0, -(1 << 30) + (1 << 24)]), *softmax, powers(64)).tolist() == [23160, 0]


def test_integer_attention_is_attention() -> None:
    """The integer softmax against float64, for scores of an ordinary and of a very sharp distribution."""
    rng = np.random.default_rng(9)
    for scale, least in ((0.04, 40.0), (0.4, 30.0)):
        q, k, v = (rng.integers(-128, 128, (40, 32)).astype(np.int8) for _ in range(3))
        query, key, value = Encoding(scale, 7), Encoding(0.02, -11), Encoding(0.03, 4)
        softmax = exponent(query, key, 32**-0.5)
        assert softmax is not None
        found = reference.attention_int8(q, k, v, (7, 4), softmax, powers(40), 0.03 / 0.02, 0, 1, 1, 32) * 0.02
        pairs = ((q, query), (k, key), (v, value))
        left, middle, right = (((x.astype(np.float32) - e.zero_point) * np.float32(e.scale)) for x, e in pairs)
        expected = reference.attention(left, middle, right, 1, 1, 32, 32**-0.5)
        expected = np.clip(expected, -128 * 0.02, 127 * 0.02)
        noise = np.square(found - expected).sum()
        assert 10 * np.log10(np.square(expected).sum() / noise) >= least


def test_root_norm_rotation_and_product(driver: Driver) -> None:
    """Widths and head sizes around the vectors; every pair of a head is turned by the angles of its row."""
    rng, checks = np.random.default_rng(12), []
    for m, n in [(1, 1), (2, 3), (3, 15), (4, 16), (5, 17), (2, 64), (3, 97), (2, 384)]:
        x = (rng.standard_normal((m, n)) * 3 + 1).astype(np.float32)
        weight, stride = rng.standard_normal(n).astype(np.float32), round_up(n, ALIGN)
        driver.call(31, [m, n, stride], [rows_of(x), weight], m * stride * 4, real=1e-5)
        checks.append((stride, n, reference.rmsnorm(x, weight, 1e-5)))
        other = rng.standard_normal((m, n)).astype(np.float32)
        driver.call(33, [m, stride], [rows_of(x), rows_of(other)], m * stride * 4)
        checks.append((stride, n, x * other))
    for m, heads, size in [(1, 1, 2), (3, 2, 6), (5, 3, 8), (2, 1, 26), (9, 2, 32), (3, 4, 34), (2, 2, 64)]:
        x = rng.standard_normal((m, heads * size)).astype(np.float32)
        angles = rng.uniform(-3, 3, (m, size)).astype(np.float32)
        cosine, sine, stride = np.cos(angles), np.sin(angles), round_up(heads * size, ALIGN)
        driver.call(32, [m, heads, size, stride], [rows_of(x), cosine, sine], m * stride * 4)
        checks.append((stride, heads * size, reference.rotate(x, heads, cosine, sine)))
    for data, (stride, columns, expected) in zip(driver.run(), checks, strict=True):
        np.testing.assert_allclose(floats(data, stride, columns), expected, rtol=1e-5, atol=5e-6)


def test_layernorm_into_packed(driver: Driver) -> None:
    """The floats are those of LayerNorm; the integers are exactly their quantization."""
    rng, kernels, checks = np.random.default_rng(10), driver.kernels, []
    for m, n in [(1, 1), (2, 3), (3, 15), (4, 16), (5, 17), (9, 64), (13, 97), (2, 384)]:
        x = (rng.standard_normal((m, n)) * 3 + 20).astype(np.float32)
        weight, bias = rng.standard_normal(n).astype(np.float32), rng.standard_normal(n).astype(np.float32)
        stride = round_up(n, ALIGN)
        size = round_up(m, ROWS) * stride
        for kept in (1, 0):
            arrays = [rows_of(x), weight, bias, np.array([40.0], np.float32)]
            driver.call(18, [m, n, stride, kept, -5, size], arrays, size + kept * m * stride * 4, real=1e-5)
            checks.append((m, n, size, kept, reference.layernorm(x, weight, bias, 1e-5)))
    before = None
    for data, (m, n, size, kept, expected) in zip(driver.run(), checks, strict=True):
        integers = unpack_a(np.frombuffer(data[:size], np.int8), m, n, kernels)
        if kept:
            made = floats(data[size:], round_up(n, ALIGN), n)
            np.testing.assert_allclose(made, expected, rtol=1e-5, atol=2e-5)
            np.testing.assert_array_equal(integers, reference.quantize(made, 40.0, -5))
            before = integers
        else:
            np.testing.assert_array_equal(integers, before)


def quantized_rows(data: bytes, m: int, n: int, kernels: KernelSet) -> list[np.ndarray]:
    """The answer to command 34: floats and integers [m, n], scales and zero points [m]."""
    stride = round_up(n, ALIGN)
    integers, rest = data[: round_up(m, ROWS) * stride], data[round_up(m, ROWS) * stride :]
    scale, zero = np.frombuffer(rest[: 4 * m], np.float32), np.frombuffer(rest[4 * m : 8 * m], np.int32)
    return [floats(rest[8 * m :], stride, n), unpack_a(np.frombuffer(integers, np.int8), m, n, kernels), scale, zero]


@pytest.mark.parametrize("padding", [np.nan, 1e9])
def test_rows_quantized_as_they_are_made(driver: Driver, padding: float) -> None:
    """One kernel that makes and quantizes rows, also in the place of its source, gives the bits of the two kernels, and
    numpy's integers of these floats; whatever the columns of padding hold."""
    rng, kernels, checks = np.random.default_rng(17), driver.kernels, []
    for kind, name in enumerate(BY_ROW):
        for m, n in [(1, 1), (2, 3), (3, 15), (4, 16), (5, 17), (9, 63), (8, 64), (7, 65), (13, 97), (2, 384)]:
            x = (rng.standard_normal((m, n)) * 3 + rng.choice([-20, 0, 20])).astype(np.float32)
            x[-1] = 0.0
            arrays = [rows_of(x), *(rng.standard_normal(n).astype(np.float32) for _ in range(2))]
            arrays[0][:, n:] = padding
            stride = round_up(n, ALIGN)
            size = round_up(m, ROWS) * stride
            for way in range(3):
                driver.call(34, [kind, m, n, stride, way, size], arrays, size + 8 * m + 4 * m * stride, real=1e-5)
            checks.append((name, m, n))
    answers = iter(driver.run())
    for name, m, n in checks:
        apart, together, in_place = (quantized_rows(next(answers), m, n, kernels) for _ in range(3))
        integers, scale, zero = reference.quantize_rows(apart[0])
        for found, expected in zip(apart[1:], (integers, scale, zero + kernels.flip), strict=True):
            np.testing.assert_array_equal(found, expected, f"{name} {m} x {n}")
        bits = [part.tobytes() for part in apart]
        assert [part.tobytes() for part in together] == bits, f"{name} {m} x {n}"
        assert [part.tobytes() for part in in_place] == bits, f"{name} {m} x {n}, in place"


def test_rows(driver: Driver) -> None:
    """Mean, embedding from float and int8 tables, patches, positions with and without class token, sums."""
    rng, checks = np.random.default_rng(7), []
    x = rng.standard_normal((5, 19)).astype(np.float32)
    driver.call(12, [5, 19, 32], [rows_of(x)], 19 * 4)
    checks.append((19, 19, x.astype(np.float64).mean(0)[None]))
    ids = np.array([3, 0, 6, 6], np.int64)
    kind = np.float16 if driver.kernels.halves else np.float32
    tokens, positions = rng.standard_normal((7, 19)).astype(kind), rng.standard_normal((5, 19)).astype(kind)
    driver.call(13, [4, 19, 32], [ids, tokens, None, positions, None], 4 * 32 * 4)
    checks.append((32, 19, tokens[ids].astype(np.float32) + positions[:4]))
    integers, scale = rng.integers(-127, 128, (7, 19)).astype(np.int8), rng.uniform(0.1, 1, 7).astype(np.float32)
    driver.call(13, [4, 19, 32], [ids, integers, scale, positions, None], 4 * 32 * 4)
    checks.append((32, 19, integers[ids] * scale[ids][:, None] + positions[:4]))
    driver.call(13, [4, 19, 32], [ids, integers, scale, None, None], 4 * 32 * 4)
    checks.append((32, 19, integers[ids] * scale[ids][:, None]))
    pixels = rng.standard_normal((3, 6, 6)).astype(np.float32)
    driver.call(14, [3, 6, 2, 16, 9], [pixels], 9 * 16 * 4)
    checks.append((16, 12, reference.patches(pixels, 2)))
    cls = rng.standard_normal(19).astype(np.float32)
    driver.call(15, [4, 19, 32, 5, 1], [rows_of(x[:4]), cls, positions, None], 5 * 32 * 4)
    checks.append((32, 19, np.concatenate([cls[None], x[:4]]) + positions))
    driver.call(15, [5, 19, 32, 5], [rows_of(x), None, integers, scale], 5 * 32 * 4)
    checks.append((32, 19, x + integers[:5] * scale[:5, None]))
    two = rng.standard_normal((2, 19)).astype(np.float32)
    driver.call(15, [3, 19, 32, 5, 2], [rows_of(x[:3]), two, positions, None], 5 * 32 * 4)
    checks.append((32, 19, np.concatenate([two, x[:3]]) + positions))
    driver.call(16, [5, 32], [rows_of(x), rows_of(positions.astype(np.float32))], 5 * 32 * 4)
    checks.append((32, 19, x + positions))
    for data, (stride, columns, expected) in zip(driver.run(), checks, strict=True):
        np.testing.assert_allclose(floats(data, stride, columns), expected, rtol=1e-6, atol=1e-6)
