/* Float rows to int8 in packed_a, by one encoding or each row by its own range; a kernel that makes rows may quantize
 * each of them as soon as it is made, while it is in the L1 cache. */
#pragma once

/* Static quantization of float rows into packed_a: clamp(round(x * inverse) + zero). */
EDGE_KERNEL void edge_quantize(const float *x, int stride, int rows, int columns, float inverse, float zero,
                               int8_t *out, int k) {
  enum { GROUP = VW < 16 ? 16 / VW : 1 }; /* rows have whole groups of 16 */
  for (int row = 0; row < rows; row++, x += stride)
    for (int column = 0; column < columns; column += GROUP * VW) {
      vf value[GROUP];
      EDGE_UNROLL for (int i = 0; i < GROUP; i++) value[i] = vf_load(x + column + i * VW) * vf_splat(inverse);
      edge_put_row(out, k, row, column, value, (int)zero);
    }
}

/* Where rows go that are quantized by their own range: the scale and the zero point (with 128 added if FLIP) of each
 * row, and its integers, packed_a with `k` columns. */
typedef struct {
  float *scale;
  int32_t *zero;
  int8_t *packed;
  int k;
} edge_quantized;

/* The least and the largest of values and 0, in two parts that do not wait for each other. */
typedef struct {
  vf low[2], high[2];
} edge_range;

EDGE_INLINE edge_range edge_range_of_zero(void) {
  const vf zero = vf_splat(0.0f);
  return (edge_range){{zero, zero}, {zero, zero}};
}

EDGE_INLINE void edge_widen(edge_range *range, int part, vf value) {
  range->low[part % 2] = vf_min(range->low[part % 2], value);
  range->high[part % 2] = vf_max(range->high[part % 2], value);
}

/* BODY for each vector of a row: `at` is its first column, `left` how many columns the row has from there on (VW where
 * there are more), `part` its place among four vectors, which need not wait for each other. */
#define EDGE_BY_VECTORS(WIDTH, BODY)                                 \
  do {                                                               \
    int column = 0;                                                  \
    for (; column + 4 * VW <= (WIDTH); column += 4 * VW)             \
      EDGE_UNROLL for (int part = 0; part < 4; part++) {             \
        const int at = column + part * VW, left = VW;                \
        BODY;                                                        \
      }                                                              \
    for (; column < (WIDTH); column += VW) {                         \
      const int at = column, left = (WIDTH) - column, part = 0;      \
      (void)part;                                                    \
      BODY;                                                          \
    }                                                                \
  } while (0)

/* Store a vector of a row that is being made; unless `range` is NULL, a constant, widen it by `left` real columns. */
EDGE_INLINE void edge_put_made(float *out, vf value, int left, edge_range *range, int part) {
  vf_store(out, value);
  if (range) edge_widen(range, part, left >= VW ? value : vf_load_part(out, left, 0.0f));
}

/* Quantize a row by its range, which is made to hold 0. */
EDGE_INLINE void edge_quantize_row(const float *x, int columns, const edge_range *range, edge_quantized to, int row) {
  enum { GROUP = VW < 16 ? 16 / VW : 1 }; /* rows have whole groups of 16 */
  const float least = vf_hmin(vf_min(range->low[0], range->low[1]));
  const float largest = vf_hmax(vf_max(range->high[0], range->high[1]));
  float scale = (largest - least) / 255.0f;
  if (!(scale > 1e-30f)) scale = 1.0f;
  float zero = rintf(-128.0f - least / scale);
  zero = zero > 127.0f ? 127.0f : zero;
  to.scale[row] = scale;
  to.zero[row] = (int32_t)zero + FLIP;
  const vf inverse = vf_splat(1.0f / scale);
  for (int column = 0; column < columns; column += GROUP * VW) {
    vf value[GROUP];
    EDGE_UNROLL for (int i = 0; i < GROUP; i++) value[i] = vf_load(x + column + i * VW) * inverse;
    edge_put_row(to.packed, to.k, row, column, value, (int)zero);
  }
}

/* Dynamic quantization, one scale and zero point for each row. */
EDGE_KERNEL void edge_quantize_rows(const float *x, int stride, int rows, int columns, edge_quantized to) {
  for (int row = 0; row < rows; row++, x += stride) {
    edge_range range = edge_range_of_zero();
    EDGE_BY_VECTORS(columns, edge_widen(&range, part, vf_load_upto(x + at, left, 0.0f)));
    edge_quantize_row(x, columns, &range, to, row);
  }
}
