/* Integer attention on the packed int8 results of the projections: scores and context are exact sums of int8 products,
 * the softmax between them has up to 15 bits (edge_softmax_integer.h), and the context is quantized into the next
 * layer's packed_a.
 *
 * A panel of MR queries or keys in packed_a is the left and the right operand of a tile, so nothing is copied but the
 * values, which are transposed once for each head. For kernel sets with edge_tile_scores and edge_tile_values; AVX-512
 * has a form of its own. */
#pragma once

enum { GV = MR / VW }; /* vectors of MR columns */

typedef struct {
  edge_exponents softmax;
  int32_t zero_query;             /* its zero point; a key's shifts all scores of a row, which changes nothing */
  float ratio, offset;            /* s_value / s_out; zero_out - zero_value * ratio */
  int heads, group, size, causal; /* size: a multiple of 16 */
} edge_attention8;

typedef struct {
  const int8_t *q, *k, *v; /* packed_a, at the first column of query, key and value */
  int q_depth, k_depth, v_depth, queries, keys;
} edge_attention_rows;

#if defined(EDGE_ISA_AVX512VNNI)
#include "edge_attention_avx512.h"
#else
/* [size / MR][padded / KR][MR columns][KR keys] of one head; keys behind the last panel are 0. */
EDGE_INLINE void edge_pack_values_int8(const int8_t *v, int depth, int keys, int padded, int size, int8_t *out) {
#if defined(EDGE_ISA_DOTPROD)
  static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t index = vld1q_u8(order);
  for (int key = 0; key < padded; key += 8)
    for (int column = 0; column < size; column += 4) {
      int8_t *to = out + (size_t)(column / 8) * padded * 8 + key * 8 + column % 8 * 4;
      const int8_t *from = v + (size_t)key * depth + column * 8;
      EDGE_UNROLL for (int half = 0; half < 2; half++)
        vst1q_s8(to + 32 * half, key < keys ? vqtbl1q_s8(vld1q_s8(from + 16 * half), index) : vdupq_n_s8(0));
    }
#elif defined(EDGE_ISA_I8MM)
  for (int key = 0; key < padded; key += 8)
    for (int column = 0; column < size; column += 8) { /* three zips of the halves transpose 8 x 8 bytes */
      int8_t *to = out + (size_t)column * padded + key * 8;
      const int8_t *from = v + (size_t)key * depth + column * 8;
      int8x16_t bytes[4], next[4];
      EDGE_UNROLL for (int i = 0; i < 4; i++) bytes[i] = key < keys ? vld1q_s8(from + 16 * i) : vdupq_n_s8(0);
      EDGE_UNROLL for (int round = 0; round < 3; round++) {
        EDGE_UNROLL for (int i = 0; i < 2; i++) {
          next[2 * i] = vzip1q_s8(bytes[i], bytes[i + 2]);
          next[2 * i + 1] = vzip2q_s8(bytes[i], bytes[i + 2]);
        }
        EDGE_UNROLL for (int i = 0; i < 4; i++) bytes[i] = next[i];
      }
      EDGE_UNROLL for (int i = 0; i < 4; i++) vst1q_s8(to + 16 * i, bytes[i]);
    }
#else
  for (int key = 0; key < padded; key++)
    for (int column = 0; column < size; column++) {
      size_t from = (size_t)(key / MR) * MR * depth + (size_t)(column / KR) * MR * KR + key % MR * KR + column % KR;
      int8_t *to = out + (size_t)(column / MR) * padded * MR + (size_t)(key / KR) * MR * KR;
      to[column % MR * KR + key % KR] = key < keys ? v[from] : 0;
    }
#endif
}

/* start[key] = -zero_query * sum of the key's row, for whole panels. */
EDGE_INLINE void edge_key_starts(const int8_t *k, int depth, int keys, int size, int32_t zero_query, int32_t *start) {
  for (int key = 0; key < keys; key += MR, k += (size_t)MR * depth) {
    int32_t sums[MR] = {0};
#if defined(EDGE_ISA_DOTPROD)
    int32x4_t low = vdupq_n_s32(0), high = low;
    const int8x16_t one = vdupq_n_s8(1);
    for (int at = 0; at < size; at += 4) {
      low = vdotq_s32(low, vld1q_s8(k + 8 * at), one);
      high = vdotq_s32(high, vld1q_s8(k + 8 * at + 16), one);
    }
    vst1q_s32(sums, low);
    vst1q_s32(sums + 4, high);
#elif defined(EDGE_ISA_I8MM)
    int32x4_t pair[4]; /* two lanes are one row */
    const int8x16_t one = vdupq_n_s8(1);
    EDGE_UNROLL for (int i = 0; i < 4; i++) pair[i] = vdupq_n_s32(0);
    for (int at = 0; at < size; at += 8)
      EDGE_UNROLL for (int i = 0; i < 4; i++) pair[i] = vdotq_s32(pair[i], vld1q_s8(k + 8 * at + 16 * i), one);
    vst1q_s32(sums, vpaddq_s32(pair[0], pair[1]));
    vst1q_s32(sums + 4, vpaddq_s32(pair[2], pair[3]));
#else
    for (int at = 0; at < size; at += KR)
      for (int row = 0; row < MR; row++)
        for (int lane = 0; lane < KR; lane++) sums[row] += k[(size_t)at * MR + row * KR + lane];
#endif
    for (int row = 0; row < MR; row++) start[key + row] = -zero_query * sums[row];
  }
}

/* The scores of MR queries from row m on, [padded / KR][MR][KR], and the largest of each row. */
EDGE_INLINE void edge_scores_int8(const edge_attention_rows *rows, const edge_attention8 *layer, const int8_t *q,
                                  const int8_t *k, const int32_t *start, int m, int padded, int32_t *scores,
                                  int32_t most[MR]) {
  const int fewest = layer->causal && m + 1 < rows->keys ? m + 1 : rows->keys;
  vi largest[MR];
  EDGE_UNROLL for (int i = 0; i < MR; i++) largest[i] = vi_splat(EDGE_LEAST);
  int n = 0;
  for (; n < rows->keys; n += MR) {
    vi acc[MR][GV];
    edge_tile_scores(q, k + (size_t)n * rows->k_depth, layer->size / KR, start + n, acc);
    if (n + MR > fewest) /* some of these keys are hidden from some of the rows */
      for (int i = 0; i < MR; i++) {
        int seen = layer->causal && m + i + 1 < rows->keys ? m + i + 1 : rows->keys;
        int32_t lanes[MR];
        memcpy(lanes, acc[i], sizeof lanes);
        for (int lane = 0; lane < MR; lane++) lanes[lane] = n + lane < seen ? lanes[lane] : EDGE_LEAST;
        memcpy(acc[i], lanes, sizeof lanes);
      }
    EDGE_UNROLL for (int j = 0; j < GV; j++) {
      int column = n + j * VW;
      int32_t *to = scores + (size_t)(column / KR) * MR * KR + column % KR;
      EDGE_UNROLL for (int i = 0; i < MR; i++) {
        memcpy(to + i * KR, &acc[i][j], sizeof(vi));
        largest[i] = vi_max(largest[i], acc[i][j]);
      }
    }
  }
  for (; n < padded; n++)
    for (int i = 0; i < MR; i++) scores[(size_t)(n / KR) * MR * KR + i * KR + n % KR] = EDGE_LEAST;
  EDGE_UNROLL for (int i = 0; i < MR; i++) most[i] = vi_hmax(largest[i]);
}

/* The context of MR queries: columns `column`... of packed_a `out`. */
EDGE_INLINE void edge_context_int8(const edge_attention8 *layer, const int8_t *p, const int32_t sums[MR],
                                   const int8_t *values, int padded, int8_t *out, int depth, int m, int column) {
  float ratio[MR];
  EDGE_UNROLL for (int i = 0; i < MR; i++) ratio[i] = layer->ratio / (float)sums[i];
  const vf offset = vf_splat(layer->offset);
  for (int at = 0; at < layer->size; at += MR) {
    vi acc[MR][GV];
    edge_tile_values(p, values + (size_t)at * padded, padded / KR, acc);
#if defined(EDGE_ISA_I8MM)
    EDGE_UNROLL for (int i = 0; i < MR; i++)
      EDGE_UNROLL for (int j = 0; j < GV; j++)
        acc[i][j] = vf_to_int(vmulq_n_f32(vf_from_int(acc[i][j]), ratio[i]) + offset);
    edge_put_tile(out, depth, m, column + at, acc, MR, vdupq_n_s16(0), 0);
#else
    EDGE_UNROLL for (int j = 0; j < GV; j++) {
#if defined(EDGE_NEON)
      vi integers[MR];
      EDGE_UNROLL for (int i = 0; i < MR; i++)
        integers[i] = vf_to_int(vmulq_n_f32(vf_from_int(acc[i][j]), ratio[i]) + offset);
      edge_put_rows(out, depth, m, column + at + j * VW, integers, vdup_n_s16(0), 0);
#else
      EDGE_UNROLL for (int i = 0; i < MR; i++) {
        vf value = vf_from_int(acc[i][j]) * vf_splat(ratio[i]) + offset;
        edge_put_packed(out, depth, m + i, column + at + j * VW, vf_to_int(vf_clamp(vf_round(value), -128.0f, 127.0f)));
      }
#endif
    }
#endif
  }
}

/* out[:, h * size ...] (packed_a) = quantized softmax(q k^T) v for each head h; query head h uses key/value head
 * h / group; scratch holds padded * (4 + 6 * MR + size) bytes, padded: keys rounded up to 16. */
EDGE_KERNEL void edge_attention_int8(const edge_attention8 *layer, const int8_t *q, int q_depth, const int8_t *k,
                                     int k_depth, const int8_t *v, int v_depth, int queries, int keys, int8_t *out,
                                     int depth, unsigned char *scratch) {
  const edge_attention_rows rows = {q, k, v, q_depth, k_depth, v_depth, queries, keys};
  const int padded = (keys + 15) / 16 * 16;
  int32_t *start = (int32_t *)scratch, *scores = start + padded;
  int8_t *values = (int8_t *)(scores + padded * MR), *p = values + (size_t)layer->size * padded;
  for (int head = 0; head < layer->heads; head++) {
    const size_t shared = (size_t)(head / layer->group) * layer->size * MR, own = (size_t)head * layer->size * MR;
    if (head % layer->group == 0) {
      edge_pack_values_int8(v + shared, v_depth, keys, padded, layer->size, values);
      edge_key_starts(k + shared, k_depth, keys, layer->size, layer->zero_query, start);
    }
    for (int m = 0; m < queries; m += MR) {
      int32_t most[MR], sums[MR];
      edge_scores_int8(&rows, layer, q + own + (size_t)m * q_depth, k + shared, start, m, padded, scores, most);
      edge_softmax_rows(&layer->softmax, scores, padded / KR, most, p, sums);
      edge_context_int8(layer, p, sums, values, padded, out, depth, m, head * layer->size);
    }
  }
}
#endif
