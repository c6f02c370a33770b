/* int8 linear layers: packed activations x packed weights, an epilogue per kind of output.
 *
 * Layouts. packed_a: panels of MR rows, each [k / KR][MR][KR]; k is padded to 16 (padding meets zero weights, so its
 * content does not matter). packed_b: panels of NR columns, each [k / KR][NR][KR]. row_major floats have rows of
 * `stride` (a multiple of 16) floats; all buffers hold whole tiles of rows, so a tile may be read or stored without a
 * row check. The rows and columns of padding may hold anything, NaN too. */
#pragma once

enum { NV = NR / VW };
#if defined(EDGE_X86)
#include "edge_pack_x86.h"
#endif

/* A panel of a block-sparse matrix: `count` blocks [NR][KR] from block `begin` on; `offset` bytes from the start of a
 * packed_a panel to the k-step of the first one. */
typedef struct {
  int32_t begin, count, offset;
} edge_blocks;

typedef struct {
  const int8_t *weights; /* packed_b; block-sparse: its blocks that are not zero */
  const int32_t *bias;   /* [n]: static: bias - zero_x * sum(w) (- 128 sum(w) if FLIP); dynamic: sum(w) */
  const float *scale;    /* [n]: static: s_x * s_w / s_y; dynamic: s_w */
  const float *zero;     /* zero point of the output; dynamic: float bias [n] */
  const float *step;     /* scale s_y of the output */
  int varied;            /* 1: zero and step are [n]; 0: they are [NR], the same for all columns */
  int k;                 /* padded inputs */
  int n;                 /* padded outputs */
  const edge_blocks *blocks; /* block-sparse: [n / NR]; else NULL */
  const int32_t *strides;    /* of each block: bytes from its k-step in packed_a to that of the next block */
  const uint8_t *multipliers; /* 4 bits: [n / NR][k / group][NR] (edge_four_bits.h); else NULL */
  int group;                  /* pairs of k-steps for each multiplier */
} edge_int8;

/* What the tiles of one panel of NR columns work with: all that does not depend on the row. */
typedef struct {
  const int8_t *weights;
  const int32_t *strides; /* NULL: all k-steps */
  int steps, offset;
  const int32_t *start; /* [EDGE_START_ROWS][NR], or [NR] where no tile is whole */
  const float *scale, *zero, *step;
  int depth; /* layer->k */
#if defined(EDGE_FOUR_BITS)
  const uint8_t *multipliers; /* of 4 bits that are still packed; else NULL */
  int group;
#endif
#if defined(EDGE_NEON)
  int16x4_t shift[NV]; /* `zero` as integers */
#endif
} edge_panel;

#ifndef EDGE_START_ROWS
#define EDGE_START_ROWS 1 /* how many times the tile wants its first sums side by side */
#endif

/* EDGE_FOUR_BITS is the largest k of a layer of 4 bits, of which a panel is unpacked at a time, or, for few rows, a
 * vector in registers. */
#if defined(EDGE_FOUR_BITS)
#if defined(EDGE_NEON)
enum { EDGE_IN_REGISTERS = 1 };
#else
enum { EDGE_IN_REGISTERS = 0, EDGE_DEEPEST = 0 };
#endif
#define EDGE_UNPACKED _Alignas(64) int8_t unpacked[NR * EDGE_FOUR_BITS]
#else
#define EDGE_UNPACKED int8_t *const unpacked = NULL
#endif

EDGE_INLINE edge_panel edge_panel_at(const edge_int8 *layer, int n, int rows, const int32_t *start, int32_t *starts,
                                     int8_t *unpacked) {
  const int at = layer->varied ? n : 0;
  edge_panel panel = {
      .weights = layer->weights + (size_t)n * layer->k, .steps = layer->k / KR, .start = start,
      .scale = layer->scale + n, .zero = layer->zero + at, .step = layer->step ? layer->step + at : NULL,
      .depth = layer->k,
  };
#if defined(EDGE_NEON)
  EDGE_UNROLL for (int j = 0; j < NV; j++) panel.shift[j] = vqmovn_s32(vf_to_int(vf_load(panel.zero + j * VW)));
#endif
#if defined(EDGE_BLOCKS)
  if (layer->blocks) {
    const edge_blocks *blocks = layer->blocks + n / NR;
    panel.weights = layer->weights + (size_t)blocks->begin * NR * KR;
    panel.strides = layer->strides + blocks->begin;
    panel.steps = blocks->count;
    panel.offset = blocks->offset;
  }
#endif
#if defined(EDGE_FOUR_BITS)
  if (layer->multipliers) {
    const int pairs = panel.steps / 2, groups = (pairs + layer->group - 1) / layer->group;
    const int8_t *packed = layer->weights + (size_t)n * layer->k / 2;
    const uint8_t *multipliers = layer->multipliers + (size_t)n * groups;
    if (EDGE_IN_REGISTERS && rows <= MR / 2 && layer->k <= EDGE_DEEPEST) {
      panel.weights = packed;
      panel.multipliers = multipliers;
      panel.group = layer->group;
    } else {
      edge_unpack(packed, multipliers, pairs, layer->group, unpacked);
      panel.weights = unpacked;
    }
  }
#else
  (void)unpacked;
#endif
  if (EDGE_START_ROWS > 1 && rows > MR / 2) {
    EDGE_UNROLL for (int i = 0; i < EDGE_START_ROWS; i++) memcpy(starts + i * NR, start, NR * sizeof *start);
    panel.start = starts;
  }
  return panel;
}

/* The quantized output as a float integer in [-128, 127]. */
EDGE_INLINE vf edge_requantize(vi acc, vf scale, vf zero) {
  return vf_clamp(vf_round(vf_from_int(acc) * scale) + zero, -128.0f, 127.0f);
}

/* Put VW int8 values (columns `column`...) of row `row` into a packed_a buffer. */
EDGE_INLINE void edge_put_packed(int8_t *packed, int k, int row, int column, vi value) {
  int8_t bytes[VW];
  vi_store_int8(bytes, value ^ vi_splat((int8_t)FLIP)); /* stays in the range of int8: stores may saturate */
  int8_t *panel = packed + (size_t)(row / MR) * MR * k + (row % MR) * KR;
  const int group = (int)VW < (int)KR ? (int)VW : (int)KR;
  EDGE_UNROLL for (int lane = 0; lane < VW; lane += group) {
    int at = column + lane;
    memcpy(panel + (size_t)(at / KR) * MR * KR + at % KR, bytes + lane, (size_t)group);
  }
}

#if defined(EDGE_NEON)
/* Columns `column` to column + 3 of the MR rows from `row` on (a multiple of MR) into a packed_a buffer:
 * clamp(integers + zero); `shifted`, a constant, says that there is a zero. */
EDGE_INLINE void edge_put_rows(int8_t *packed, int k, int row, int column, const vi integers[MR], int16x4_t zero,
                               const int shifted) {
  int16x8_t both = vcombine_s16(zero, zero);
  int8_t *panel = packed + (size_t)row * k + (size_t)(column / KR) * MR * KR + column % KR;
  EDGE_UNROLL for (int i = 0; i < MR; i += 4) {
    int16x8_t first = vcombine_s16(vqmovn_s32(integers[i]), vqmovn_s32(integers[i + 1]));
    int16x8_t second = vcombine_s16(vqmovn_s32(integers[i + 2]), vqmovn_s32(integers[i + 3]));
    if (shifted) {
      first = vqaddq_s16(first, both);
      second = vqaddq_s16(second, both);
    }
    int8x16_t bytes = vcombine_s8(vqmovn_s16(first), vqmovn_s16(second));
    if (KR == 4) {
      vst1q_s8(panel + i * KR, bytes);
    } else {
      int32x4_t words = vreinterpretq_s32_s8(bytes);
      vst1q_lane_s32((void *)(panel + i * KR), words, 0);
      vst1q_lane_s32((void *)(panel + (i + 1) * KR), words, 1);
      vst1q_lane_s32((void *)(panel + (i + 2) * KR), words, 2);
      vst1q_lane_s32((void *)(panel + (i + 3) * KR), words, 3);
    }
  }
}
#endif

#if defined(EDGE_ISA_I8MM)
/* Columns `column` to column + 7 (a step) of `rows` rows from `row` on (multiples of 8) into a packed_a buffer:
 * as edge_put_rows does. Two rows are 16 bytes beside each other. */
EDGE_INLINE void edge_put_tile(int8_t *packed, int k, int row, int column, vi integers[MR][2], const int rows,
                               int16x8_t zero, const int shifted) {
  int8x8_t bytes[MR];
  EDGE_UNROLL for (int i = 0; i < rows; i++) {
    int16x8_t both = vcombine_s16(vqmovn_s32(integers[i][0]), vqmovn_s32(integers[i][1]));
    bytes[i] = vqmovn_s16(shifted ? vqaddq_s16(both, zero) : both);
  }
  int8_t *step = packed + (size_t)row * k + (size_t)column * MR;
  EDGE_UNROLL for (int i = 0; i < rows; i += 2)
    vst1q_s8(step + i * KR, vcombine_s8(bytes[i], bytes[i + 1 < rows ? i + 1 : i]));
}
#endif

/* Call TILE(panel, m, n, tile rows) for all tiles of [rows, layer->n], whose sums begin with START: whole tiles, then
 * the smallest of MR, MR / 2 and 1 rows that covers the rest (a compile-time constant inside of TILE). */
#define EDGE_FOR_TILES(TILE, START, ...)                                             \
  EDGE_UNPACKED;                                                                     \
  for (int n = 0; n < layer->n; n += NR) {                                           \
    int32_t starts[EDGE_START_ROWS * NR];                                            \
    const edge_panel panel = edge_panel_at(layer, n, rows, START, starts, unpacked); \
    int m = 0;                                                                       \
    for (; m < rows - MR / 2; m += MR) TILE(__VA_ARGS__, &panel, m, n, MR);          \
    if (rows - m > 1) TILE(__VA_ARGS__, &panel, m, n, MR / 2);                       \
    else if (rows - m > 0) TILE(__VA_ARGS__, &panel, m, n, 1);                       \
  }

/* acc = start + the rows of x from `m` on times a panel. */
EDGE_INLINE void edge_products(const int8_t *x, const edge_panel *panel, int m, const int rows, vi acc[MR][NV]) {
  const int8_t *a = x + panel->offset + (size_t)m * panel->depth;
#if defined(EDGE_BLOCKS)
  if (panel->strides) {
    edge_tile_blocks(a, panel->weights, panel->strides, panel->steps, rows, panel->start, acc);
    return;
  }
#endif
#if defined(EDGE_FOUR_BITS) && defined(EDGE_NEON)
  if (rows <= MR / 2 && panel->multipliers) {
    edge_tail_four_bits(a, panel->weights, panel->multipliers, panel->steps / 2, panel->group, rows, panel->start, acc);
    return;
  }
#endif
  edge_tile(a, panel->weights, panel->steps, rows, panel->start, acc);
}

/* out [rows, stride] = dequantize(requantize(x W + bias)) (+ residual). */
EDGE_INLINE void edge_tile_to_float(const int8_t *x, const float *residual, float *out, int stride,
                                    const edge_panel *panel, int m, int n, const int rows) {
  vi acc[MR][NV];
  edge_products(x, panel, m, rows, acc);
  EDGE_UNROLL for (int j = 0; j < NV; j++) {
    int column = n + j * VW;
    if (j && column >= stride) break;
    vf scale = vf_load(panel->scale + j * VW);
    vf zero = vf_load(panel->zero + j * VW);
    vf step = vf_load(panel->step + j * VW);
    vf low = vf_splat(-128.0f) - zero;
    vf high = vf_splat(127.0f) - zero;
    EDGE_UNROLL for (int i = 0; i < rows; i++) {
      size_t place = (size_t)(m + i) * stride + column;
      vf value = vf_min(vf_max(vf_round(vf_from_int(acc[i][j]) * scale), low), high) * step;
      if (residual) value = value + vf_load(residual + place);
      vf_store(out + place, value);
    }
  }
}

EDGE_KERNEL void edge_int8_to_float(const edge_int8 *layer, const int8_t *x, int rows, const float *residual,
                                    float *out, int stride) {
  EDGE_FOR_TILES(edge_tile_to_float, layer->bias + n, x, residual, out, stride)
}

/* out (packed_a with `k` columns) = requantize(x W + bias). */
#if defined(EDGE_ISA_I8MM)
EDGE_INLINE void edge_tile_to_packed(const int8_t *x, int8_t *out, int k, const edge_panel *panel, int m, int n,
                                     const int rows) {
  vi acc[MR][NV];
  edge_products(x, panel, m, rows, acc);
  const vf left = vf_load(panel->scale), right = vf_load(panel->scale + VW);
  EDGE_UNROLL for (int i = 0; i < rows; i++) {
    acc[i][0] = vf_to_int(vf_from_int(acc[i][0]) * left);
    acc[i][1] = vf_to_int(vf_from_int(acc[i][1]) * right);
  }
  edge_put_tile(out, k, m, n, acc, rows, vcombine_s16(panel->shift[0], panel->shift[1]), 1);
}
#else
EDGE_INLINE void edge_tile_to_packed(const int8_t *x, int8_t *out, int k, const edge_panel *panel, int m, int n,
                                     const int rows) {
  vi acc[MR][NV];
  edge_products(x, panel, m, rows, acc);
  EDGE_UNROLL for (int j = 0; j < NV; j++) {
    int column = n + j * VW;
    if (j && column >= k) break;
    vf scale = vf_load(panel->scale + j * VW);
#if defined(EDGE_NEON)
    vi integers[MR];
    EDGE_UNROLL for (int i = 0; i < rows; i++) integers[i] = vf_to_int(vf_from_int(acc[i][j]) * scale);
    EDGE_UNROLL for (int i = rows; i < MR; i++) integers[i] = integers[0];
    edge_put_rows(out, k, m, column, integers, panel->shift[j], 1);
#elif defined(EDGE_X86)
    vi integers[MR];
    EDGE_UNROLL for (int i = 0; i < rows; i++) integers[i] = edge_nearest(vf_from_int(acc[i][j]) * scale);
    EDGE_UNROLL for (int i = rows; i < MR; i++) integers[i] = integers[0];
    edge_put_rows(out, k, m, column, integers, vf_to_int(vf_load(panel->zero + j * VW)));
#else
    vf zero = vf_load(panel->zero + j * VW);
    EDGE_UNROLL for (int i = 0; i < rows; i++)
      edge_put_packed(out, k, m + i, column, vf_to_int(edge_requantize(acc[i][j], scale, zero)));
#endif
  }
}
#endif

EDGE_KERNEL void edge_int8_to_packed(const edge_int8 *layer, const int8_t *x, int rows, int8_t *out, int k) {
  EDGE_FOR_TILES(edge_tile_to_packed, layer->bias + n, x, out, k)
}

/* out [rows, stride] = s_row * s_w * (x - zero_row) W + bias (+ residual); scales and zero points of rows in
 * `row_scale` and `row_zero` (with 128 added if FLIP). */
EDGE_INLINE void edge_tile_dynamic(const edge_int8 *layer, const int8_t *x, const float *row_scale,
                                   const int32_t *row_zero, const float *residual, float *out, int stride,
                                   const edge_panel *panel, int m, int n, const int rows) {
  vi acc[MR][NV];
  edge_products(x, panel, m, rows, acc);
  EDGE_UNROLL for (int j = 0; j < NV; j++) {
    int column = n + j * VW;
    if (j && column >= stride) break;
    vi sums = vi_load(layer->bias + column);
    vf scale = vf_load(panel->scale + j * VW);
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
  static const int32_t zeros[NR];
  EDGE_FOR_TILES(edge_tile_dynamic, zeros, layer, x, row_scale, row_zero, residual, out, stride)
}

#if !defined(EDGE_X86)
/* clamp(round(value) + zero) of the 16 columns from `column` on of one row into a packed_a buffer. */
EDGE_INLINE void edge_put_row(int8_t *packed, int k, int row, int column, const vf *value, int zero) {
#if defined(EDGE_NEON)
  int16x8_t both = vdupq_n_s16((int16_t)zero);
  int16x8_t first = vcombine_s16(vqmovn_s32(vf_to_int(value[0])), vqmovn_s32(vf_to_int(value[1])));
  int16x8_t second = vcombine_s16(vqmovn_s32(vf_to_int(value[2])), vqmovn_s32(vf_to_int(value[3])));
  int8x16_t bytes = vcombine_s8(vqmovn_s16(vqaddq_s16(first, both)), vqmovn_s16(vqaddq_s16(second, both)));
  int8_t *to = packed + (size_t)(row / MR) * MR * k + (row % MR) * KR + (size_t)column * MR;
  if (KR == 16) {
    vst1q_s8(to, bytes);
  } else if (KR == 8) {
    vst1_s8(to, vget_low_s8(bytes));
    vst1_s8(to + MR * KR, vget_high_s8(bytes));
  } else {
    int32x4_t words = vreinterpretq_s32_s8(bytes);
    vst1q_lane_s32((void *)to, words, 0);
    vst1q_lane_s32((void *)(to + MR * KR), words, 1);
    vst1q_lane_s32((void *)(to + 2 * MR * KR), words, 2);
    vst1q_lane_s32((void *)(to + 3 * MR * KR), words, 3);
  }
#else
  for (int i = 0; i < 16; i++) {
    vf integer = vf_clamp(vf_round(value[i]) + vf_splat((float)zero), -128.0f, 127.0f);
    edge_put_packed(packed, k, row, column + i, vf_to_int(integer));
  }
#endif
}
#endif

/* Replace every byte of a packed buffer by table[byte]. */
EDGE_KERNEL void edge_table(int8_t *values, size_t count, const uint8_t *table) {
  uint8_t *bytes = (uint8_t *)values;
  size_t at = 0;
#if defined(EDGE_NEON)
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
#elif defined(EDGE_X86)
  at = edge_table_x86(bytes, count, table);
#endif
  for (; at < count; at++) bytes[at] = table[bytes[at]];
}
