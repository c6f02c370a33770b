/* Integer attention for AVX-512 VNNI: the bits of edge_attention_int8.h in another order of work. Keys become panels of
 * 32 columns, which the tile of linear layers takes as they are; p are int16 and meet values widened to int16
 * (vpdpwssd). */
#pragma once

enum { KEYS = NR }; /* in a panel */

/* [size / 4][32 keys][4] signed, of one panel of keys from `n` on, and -(zero + 128) * the sum of each key's row.
 * Panels of 8 rows that are not there are left out: their scores are hidden. */
EDGE_INLINE void edge_pack_keys_int8(const int8_t *k, int depth, int n, int keys, int size, int32_t zero_query,
                                     int8_t *panel, int32_t *start) {
  const int rows = keys - n < KEYS ? keys - n : KEYS;
  const __m256i flip = _mm256_set1_epi8((char)FLIP), factor = _mm256_set1_epi32(-(zero_query + FLIP));
  for (int row = 0; row < rows; row += MR) {
    const int8_t *from = k + (size_t)(n + row) * depth;
    __m256i sum = _mm256_setzero_si256();
    for (int at = 0; at < size; at += KR, from += MR * KR) {
      __m256i bytes = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)from), flip);
      _mm256_storeu_si256((__m256i *)(panel + (size_t)at * KEYS + row * KR), bytes);
      sum = _mm256_dpbusd_epi32(sum, _mm256_set1_epi8(1), bytes);
    }
    _mm256_storeu_si256((__m256i *)(start + row), _mm256_mullo_epi32(sum, factor));
  }
}

/* [keys / 2][size][2] signed int16; rows of the last panel that are no keys meet p = 0. */
EDGE_INLINE void edge_pack_values_int16(const int8_t *v, int depth, int keys, int size, int16_t *out) {
  const __m256i flip = _mm256_set1_epi8((char)FLIP);
  const __m256i pairs = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
  for (int key = 0; key < keys; key += MR)
    for (int column = 0; column < size; column += 4) {
      __m256i bytes = _mm256_loadu_si256((const __m256i *)(v + (size_t)key * depth + column * MR));
      bytes = _mm256_shuffle_epi8(_mm256_xor_si256(bytes, flip), pairs);
      __m512i words = _mm512_cvtepi8_epi16(bytes);
      int16_t *to = out + ((size_t)key / 2 * size + column) * 2;
      _mm_storeu_si128((__m128i *)to, _mm512_castsi512_si128(words));
      _mm_storeu_si128((__m128i *)(to + 2 * size), _mm512_extracti32x4_epi32(words, 1));
      _mm_storeu_si128((__m128i *)(to + 4 * size), _mm512_extracti32x4_epi32(words, 2));
      _mm_storeu_si128((__m128i *)(to + 6 * size), _mm512_extracti32x4_epi32(words, 3));
    }
}

/* t of 32 differences to the largest score, in order. */
EDGE_INLINE __m512i edge_exponents_of(const edge_exponents *softmax, __m512i left, __m512i right, const int shifted) {
  if (shifted) {
    const __m512i least = _mm512_set1_epi16((short)(INT16_MIN >> softmax->shift)); /* shifted, it is where int16 ends */
    __m512i apart = _mm512_max_epi16(_mm512_packs_epi32(left, right), least);
    apart = _mm512_sll_epi16(apart, _mm_cvtsi32_si128(softmax->shift));
    return _mm512_mulhrs_epi16(apart, _mm512_set1_epi16((short)(softmax->multiplier >> 16)));
  }
  const __m512i multiplier = _mm512_set1_epi32(softmax->multiplier), half = _mm512_set1_epi64(1 << 30);
  __m512i part[2] = {left, right};
  EDGE_UNROLL for (int i = 0; i < 2; i++) {
    __m512i even = _mm512_add_epi64(_mm512_mul_epi32(part[i], multiplier), half);
    __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(part[i], 32), multiplier), half);
    part[i] = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 31), 0xaaaa, _mm512_slli_epi64(odd, 1));
  }
  return _mm512_packs_epi32(part[0], part[1]);
}

/* One row of scores, `padded` of them -> p; returns their sum. */
EDGE_INLINE int32_t edge_softmax_row_int16(const edge_exponents *softmax, const int32_t *scores, int padded, int16_t *p,
                                           const int shifted) {
  const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), one = _mm512_set1_epi16(1);
  __m512i most = _mm512_set1_epi32(EDGE_LEAST), total = _mm512_setzero_si512();
  for (int at = 0; at < padded; at += VW) most = _mm512_max_epi32(most, _mm512_loadu_si512(scores + at));
  most = _mm512_set1_epi32(_mm512_reduce_max_epi32(most));
  for (int at = 0; at < padded; at += 2 * VW) {
    __m512i left = _mm512_sub_epi32(_mm512_loadu_si512(scores + at), most);
    __m512i right = _mm512_sub_epi32(_mm512_loadu_si512(scores + at + VW), most);
    __m512i t = edge_exponents_of(softmax, left, right, shifted);
    __m512i g = _mm512_slli_epi16(t, 16 - EDGE_FRACTION), value = _mm512_set1_epi16(softmax->power[3]);
    EDGE_UNROLL for (int i = 2; i >= 0; i--)
      value = _mm512_add_epi16(_mm512_mulhrs_epi16(value, g), _mm512_set1_epi16(softmax->power[i]));
    __m512i whole = _mm512_srai_epi16(_mm512_add_epi16(t, _mm512_set1_epi16(1 << (EDGE_FRACTION - 1))), EDGE_FRACTION);
    __m512i down = _mm512_sub_epi16(_mm512_setzero_si512(), whole);
    value = _mm512_add_epi16(value, _mm512_srli_epi16(_mm512_sllv_epi16(one, down), 1));
    value = _mm512_srlv_epi16(value, down);
    total = _mm512_dpwssd_epi32(total, value, one);
    _mm512_storeu_si512(p + at, _mm512_permutexvar_epi64(in_order, value));
  }
  return _mm512_reduce_add_epi32(total);
}

typedef struct {
  int8_t *keys;     /* panels of 32 */
  int32_t *start;   /* [padded] */
  int16_t *values;  /* [padded / 2][size][2] */
  int32_t *scores;  /* [8][padded] */
  int16_t *p;       /* [8][padded] */
  int padded, seen; /* keys rounded up to 32; real ones */
} edge_head8;

/* The scores of 8 queries from row m on. */
EDGE_INLINE void edge_scores_avx512(const edge_attention8 *layer, const edge_head8 *head, const int8_t *q, int m) {
  const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int fewest = layer->causal && m + 1 < head->seen ? m + 1 : head->seen;
  for (int n = 0; n < head->padded; n += KEYS) {
    vi acc[MR][NV];
    edge_tile(q, head->keys + (size_t)n * layer->size, layer->size / KR, MR, head->start + n, acc);
    EDGE_UNROLL for (int i = 0; i < MR; i++)
      EDGE_UNROLL for (int j = 0; j < NV; j++) {
        __m512i value = (__m512i)acc[i][j];
        if (n + KEYS > fewest) { /* some of these keys are hidden from some of the rows */
          int seen = layer->causal && m + i + 1 < head->seen ? m + i + 1 : head->seen;
          __mmask16 hidden = _mm512_cmpge_epi32_mask((__m512i)(lane + (n + j * VW)), _mm512_set1_epi32(seen));
          value = _mm512_mask_mov_epi32(value, hidden, _mm512_set1_epi32(EDGE_LEAST));
        }
        _mm512_storeu_si512(head->scores + (size_t)i * head->padded + n + j * VW, value);
      }
  }
}

/* The context of 8 queries, `vectors` (a constant) of 16 columns, at `column` of packed_a `out`. */
EDGE_INLINE void edge_context_avx512(const edge_attention8 *layer, const edge_head8 *head, const float ratio[MR],
                                     const int16_t *values, int8_t *out, int depth, int m, int column,
                                     const int vectors) {
  __m512i sum[MR][2];
  EDGE_UNROLL for (int i = 0; i < MR; i++)
    EDGE_UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_setzero_si512();
  for (int key = 0; key < head->seen; key += 2, values += 2 * layer->size) {
    __m512i pair[2];
    EDGE_UNROLL for (int j = 0; j < vectors; j++) pair[j] = _mm512_loadu_si512(values + 2 * VW * j);
    EDGE_UNROLL for (int i = 0; i < MR; i++) {
      int32_t two;
      memcpy(&two, head->p + (size_t)i * head->padded + key, 4);
      EDGE_UNROLL for (int j = 0; j < vectors; j++)
        sum[i][j] = _mm512_dpwssd_epi32(sum[i][j], _mm512_set1_epi32(two), pair[j]);
    }
  }
  EDGE_UNROLL for (int j = 0; j < vectors; j++) {
    vi integers[MR];
    EDGE_UNROLL for (int i = 0; i < MR; i++)
      integers[i] = edge_nearest(vf_from_int((vi)sum[i][j]) * vf_splat(ratio[i]) + vf_splat(layer->offset));
    edge_put_rows(out, depth, m, column + j * VW, integers, vi_splat(0));
  }
}

/* As edge_attention_int8.h says; scratch holds padded * (3 * size + 52) bytes, padded: keys rounded up to 32. */
EDGE_KERNEL void edge_attention_int8(const edge_attention8 *layer, const int8_t *q, int q_depth, const int8_t *k,
                                     int k_depth, const int8_t *v, int v_depth, int queries, int keys, int8_t *out,
                                     int depth, unsigned char *scratch) {
  const int size = layer->size, padded = (keys + KEYS - 1) / KEYS * KEYS;
  edge_head8 head = {.start = (int32_t *)scratch, .padded = padded, .seen = keys};
  head.scores = head.start + padded;
  head.values = (int16_t *)(head.scores + (size_t)MR * padded);
  head.p = head.values + (size_t)size * padded;
  head.keys = (int8_t *)(head.p + (size_t)MR * padded);
  for (int index = 0; index < layer->heads; index++) {
    const size_t shared = (size_t)(index / layer->group) * size * MR, own = (size_t)index * size * MR;
    if (index % layer->group == 0) {
      for (int n = 0; n < keys; n += KEYS)
        edge_pack_keys_int8(k + shared, k_depth, n, keys, size, layer->zero_query, head.keys + (size_t)n * size,
                            head.start + n);
      edge_pack_values_int16(v + shared, v_depth, keys, size, head.values);
    }
    for (int m = 0; m < queries; m += MR) {
      float ratio[MR];
      edge_scores_avx512(layer, &head, q + own + (size_t)m * q_depth, m);
      for (int i = 0; i < MR; i++) {
        const int32_t *scores = head.scores + (size_t)i * padded;
        int16_t *p = head.p + (size_t)i * padded;
        int32_t sum = layer->softmax.shift ? edge_softmax_row_int16(&layer->softmax, scores, padded, p, 1)
                                           : edge_softmax_row_int16(&layer->softmax, scores, padded, p, 0);
        ratio[i] = layer->ratio / (float)sum;
      }
      for (int at = 0; at < size; at += 2 * VW) {
        const int16_t *values = head.values + 2 * at;
        if (size - at > VW) edge_context_avx512(layer, &head, ratio, values, out, depth, m, index * size + at, 2);
        else edge_context_avx512(layer, &head, ratio, values, out, depth, m, index * size + at, 1);
      }
    }
  }
}
