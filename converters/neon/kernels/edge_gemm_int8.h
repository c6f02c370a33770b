/* int8 linear layers: packed activations x packed weights, an epilogue per kind of output.
 *
 * Layouts. packed_a: panels of MR rows, each [k / KR][MR][KR]; k is padded to 16 (padding meets zero weights, so its
 * content does not matter). packed_b: panels of NR columns, each [k / KR][NR][KR]. row_major floats have rows of
 * `stride` (a multiple of 16) floats; all buffers hold whole tiles of rows, so a tile may be read or stored without a
 * row check. The rows and columns of padding may hold anything, NaN too. */
#pragma once

enum { NV = NR / VW };

typedef struct {
  const int8_t *weights; /* packed_b */
  const int32_t *bias;   /* [n]: static: bias - zero_x * sum(w) (- 128 sum(w) if FLIP); dynamic: sum(w) */
  const float *scale;    /* [n]: static: s_x * s_w / s_y; dynamic: s_w */
  const float *zero;     /* zero point of the output; dynamic: float bias [n] */
  const float *step;     /* scale s_y of the output */
  int varied;            /* 1: zero and step are [n]; 0: they are [NR], the same for all columns */
  int k;                 /* padded inputs */
  int n;                 /* padded outputs */
} edge_int8;

/* The quantized output as a float integer in [-128, 127]. */
EDGE_INLINE vf edge_requantize(vi acc, vi bias, vf scale, vf zero) {
  return vf_clamp(vf_round(vf_from_int(acc + bias) * scale) + zero, -128.0f, 127.0f);
}

/* Put VW int8 values (columns `column`...) of row `row` into a packed_a buffer. */
EDGE_INLINE void edge_put_packed(int8_t *packed, int k, int row, int column, vi value) {
  int8_t bytes[VW];
  vi_store_int8(bytes, value ^ vi_splat(FLIP));
  int8_t *panel = packed + (size_t)(row / MR) * MR * k + (row % MR) * KR;
  const int group = (int)VW < (int)KR ? (int)VW : (int)KR;
  EDGE_UNROLL for (int lane = 0; lane < VW; lane += group) {
    int at = column + lane;
    memcpy(panel + (size_t)(at / KR) * MR * KR + at % KR, bytes + lane, (size_t)group);
  }
}

/* Call TILE(m, n, tile rows) for all tiles of [rows, layer->n]: whole tiles, then the smallest of MR, MR / 2 and 1 rows
 * that covers the rest (a compile-time constant inside of TILE). */
#define EDGE_FOR_TILES(TILE, ...)                            \
  for (int n = 0; n < layer->n; n += NR)                     \
    for (int m = 0; m < rows; m += MR) {                     \
      if (rows - m > MR / 2) TILE(__VA_ARGS__, m, n, MR);    \
      else if (rows - m > 1) TILE(__VA_ARGS__, m, n, MR / 2); \
      else TILE(__VA_ARGS__, m, n, 1);                       \
    }

EDGE_INLINE void edge_products(const edge_int8 *layer, const int8_t *x, int m, int n, const int rows, vi acc[MR][NV]) {
  edge_tile(x + (size_t)m * layer->k, layer->weights + (size_t)n * layer->k, layer->k / KR, rows, acc);
}

/* out [rows, stride] = dequantize(requantize(x W + bias)) (+ residual). */
EDGE_INLINE void edge_tile_to_float(const edge_int8 *layer, const int8_t *x, const float *residual, float *out,
                                    int stride, int m, int n, const int rows) {
  vi acc[MR][NV];
  edge_products(layer, x, m, n, rows, acc);
  EDGE_UNROLL for (int j = 0; j < NV; j++) {
    int column = n + j * VW;
    if (column >= stride) break;
    int at = layer->varied ? column : j * VW;
    vi bias = vi_load(layer->bias + column);
    vf scale = vf_load(layer->scale + column);
    vf zero = vf_load(layer->zero + at);
    vf step = vf_load(layer->step + at);
    EDGE_UNROLL for (int i = 0; i < rows; i++) {
      size_t place = (size_t)(m + i) * stride + column;
      vf value = (edge_requantize(acc[i][j], bias, scale, zero) - zero) * step;
      if (residual) value = value + vf_load(residual + place);
      vf_store(out + place, value);
    }
  }
}

EDGE_KERNEL void edge_int8_to_float(const edge_int8 *layer, const int8_t *x, int rows, const float *residual,
                                    float *out, int stride) {
  EDGE_FOR_TILES(edge_tile_to_float, layer, x, residual, out, stride)
}

/* out (packed_a with `k` columns) = requantize(x W + bias). */
EDGE_INLINE void edge_tile_to_packed(const edge_int8 *layer, const int8_t *x, int8_t *out, int k, int m, int n,
                                     const int rows) {
  vi acc[MR][NV];
  edge_products(layer, x, m, n, rows, acc);
  EDGE_UNROLL for (int j = 0; j < NV; j++) {
    int column = n + j * VW;
    if (column >= k) break;
    int at = layer->varied ? column : j * VW;
    vi bias = vi_load(layer->bias + column);
    vf scale = vf_load(layer->scale + column);
    vf zero = vf_load(layer->zero + at);
    EDGE_UNROLL for (int i = 0; i < rows; i++)
      edge_put_packed(out, k, m + i, column, vf_to_int(edge_requantize(acc[i][j], bias, scale, zero)));
  }
}

EDGE_KERNEL void edge_int8_to_packed(const edge_int8 *layer, const int8_t *x, int rows, int8_t *out, int k) {
  EDGE_FOR_TILES(edge_tile_to_packed, layer, x, out, k)
}

/* out [rows, stride] = s_row * s_w * (x - zero_row) W + bias (+ residual); scales and zero points of rows in
 * `row_scale` and `row_zero` (with 128 added if FLIP). */
EDGE_INLINE void edge_tile_dynamic(const edge_int8 *layer, const int8_t *x, const float *row_scale,
                                   const int32_t *row_zero, const float *residual, float *out, int stride, int m, int n,
                                   const int rows) {
  vi acc[MR][NV];
  edge_products(layer, x, m, n, rows, acc);
  EDGE_UNROLL for (int j = 0; j < NV; j++) {
    int column = n + j * VW;
    if (column >= stride) break;
    vi sums = vi_load(layer->bias + column);
    vf scale = vf_load(layer->scale + column);
    vf bias = vf_load(layer->zero + column);
    EDGE_UNROLL for (int i = 0; i < rows; i++) {
      size_t place = (size_t)(m + i) * stride + column;
      vf exact = vf_from_int(acc[i][j] - sums * vi_splat(row_zero[m + i]));
      vf value = vf_fma(exact, scale * vf_splat(row_scale[m + i]), bias);
      if (residual) value = value + vf_load(residual + place);
      vf_store(out + place, value);
    }
  }
}

EDGE_KERNEL void edge_int8_dynamic(const edge_int8 *layer, const int8_t *x, const float *row_scale,
                                   const int32_t *row_zero, int rows, const float *residual, float *out, int stride) {
  EDGE_FOR_TILES(edge_tile_dynamic, layer, x, row_scale, row_zero, residual, out, stride)
}

/* Static quantization of float rows into packed_a: clamp(round(x * inverse) + zero). */
EDGE_KERNEL void edge_quantize(const float *x, int stride, int rows, int columns, float inverse, float zero,
                               int8_t *out, int k) {
  for (int row = 0; row < rows; row++, x += stride)
    for (int column = 0; column < columns; column += VW) {
      vf value = vf_round(vf_load(x + column) * vf_splat(inverse)) + vf_splat(zero);
      edge_put_packed(out, k, row, column, vf_to_int(vf_clamp(value, -128.0f, 127.0f)));
    }
}

/* Dynamic quantization, one scale and zero point for each row, whose range is made to hold 0. */
EDGE_KERNEL void edge_quantize_rows(const float *x, int stride, int rows, int columns, float *row_scale,
                                    int32_t *row_zero, int8_t *out, int k) {
  for (int row = 0; row < rows; row++, x += stride) {
    vf low = vf_splat(0.0f);
    vf high = vf_splat(0.0f);
    for (int column = 0; column < columns; column += VW) {
      vf value = vf_load_upto(x + column, columns - column, 0.0f);
      low = vf_min(low, value);
      high = vf_max(high, value);
    }
    float least = vf_hmin(low);
    float scale = (vf_hmax(high) - least) / 255.0f;
    if (!(scale > 1e-30f)) scale = 1.0f;
    float zero = rintf(-128.0f - least / scale);
    zero = zero > 127.0f ? 127.0f : zero;
    row_scale[row] = scale;
    row_zero[row] = (int32_t)zero + FLIP;
    vf inverse = vf_splat(1.0f / scale);
    for (int column = 0; column < columns; column += VW) {
      vf value = vf_round(vf_load(x + column) * inverse) + vf_splat(zero);
      edge_put_packed(out, k, row, column, vf_to_int(vf_clamp(value, -128.0f, 127.0f)));
    }
  }
}

/* Replace every byte of a packed buffer by table[byte]. */
EDGE_KERNEL void edge_table(int8_t *values, size_t count, const uint8_t *table) {
  uint8_t *bytes = (uint8_t *)values;
  size_t at = 0;
#if defined(EDGE_ISA_BASE) || defined(EDGE_ISA_DOTPROD)
  uint8x16x4_t quarter[4];
  EDGE_UNROLL for (int i = 0; i < 4; i++) quarter[i] = vld1q_u8_x4(table + 64 * i);
  for (; at + 16 <= count; at += 16) {
    uint8x16_t index = vld1q_u8(bytes + at);
    uint8x16_t found = vqtbl4q_u8(quarter[0], index);
    EDGE_UNROLL for (int i = 1; i < 4; i++) {
      index = vsubq_u8(index, vdupq_n_u8(64));
      found = vqtbx4q_u8(found, quarter[i], index);
    }
    vst1q_u8(bytes + at, found);
  }
#endif
  for (; at < count; at++) bytes[at] = table[bytes[at]];
}
