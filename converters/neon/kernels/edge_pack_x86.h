/* int32 results into packed_a on x86. */
#pragma once

/* The nearest integers, saturated where int16 is: what is behind that saturates further on. */
EDGE_INLINE vi edge_nearest(vf x) { return vf_to_int(vf_min(x, vf_splat(32767.0f))); /* too low is INT_MIN already */ }

#if defined(EDGE_ISA_AVX512VNNI)
/* Columns `column` to column + 15 of the 8 rows from `row` on (a multiple of 8): clamp(integers + zero). The packs work
 * in lanes of 4 columns, which is the order of packed_a: [4 columns][8 rows][4]. */
EDGE_INLINE void edge_put_rows(int8_t *packed, int k, int row, int column, const vi integers[MR], vi zero) {
  const __m512i flipped = (__m512i)(zero + FLIP), zeros = _mm512_packs_epi32(flipped, flipped);
  __m512i half[2]; /* 4 rows each */
  EDGE_UNROLL for (int i = 0; i < 2; i++) {
    const vi *four = integers + 4 * i;
    __m512i first = _mm512_packs_epi32((__m512i)four[0], (__m512i)four[1]);
    __m512i second = _mm512_packs_epi32((__m512i)four[2], (__m512i)four[3]);
    half[i] = _mm512_packus_epi16(_mm512_adds_epi16(first, zeros), _mm512_adds_epi16(second, zeros));
  }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  int8_t *to = packed + (size_t)row * k + (size_t)column * MR;
  _mm512_storeu_si512(to, _mm512_permutex2var_epi64(half[0], low, half[1]));
  _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi64(half[0], high, half[1]));
}

#else
/* Columns `column` to column + 7 of the 4 rows from `row` on (a multiple of 4): clamp(integers + zero). A lane is 4
 * columns, [4 rows][4], which becomes [2 pairs of columns][4 rows][2] where a step has 2 products. */
EDGE_INLINE void edge_put_rows(int8_t *packed, int k, int row, int column, const vi integers[MR], vi zero) {
  const __m256i flipped = (__m256i)(zero + FLIP), zeros = _mm256_packs_epi32(flipped, flipped);
  const __m256i pairs = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  __m256i first = _mm256_packs_epi32((__m256i)integers[0], (__m256i)integers[1]);
  __m256i second = _mm256_packs_epi32((__m256i)integers[2], (__m256i)integers[3]);
  first = _mm256_adds_epi16(first, zeros);
  second = _mm256_adds_epi16(second, zeros);
  __m256i bytes = FLIP ? _mm256_packus_epi16(first, second) : _mm256_packs_epi16(first, second);
  if (KR == 2) bytes = _mm256_shuffle_epi8(bytes, pairs);
  _mm256_storeu_si256((__m256i *)(packed + (size_t)row * k + (size_t)column * MR), bytes);
}
#endif

/* clamp(round(value) + zero) of 16 columns from `column` on of one row. */
EDGE_INLINE void edge_put_row(int8_t *packed, int k, int row, int column, const vf *value, int zero) {
#if defined(EDGE_ISA_AVX512VNNI)
  __m256i half = _mm512_cvtsepi32_epi16((__m512i)edge_nearest(value[0]));
#else
  __m256i half = _mm256_packs_epi32((__m256i)edge_nearest(value[0]), (__m256i)edge_nearest(value[1]));
  half = _mm256_permute4x64_epi64(half, 0xd8);
#endif
  half = _mm256_adds_epi16(half, _mm256_set1_epi16((short)zero));
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  bytes = _mm_xor_si128(bytes, _mm_set1_epi8((char)FLIP));
  int8_t *to = packed + (size_t)(row / MR) * MR * k + (row % MR) * KR + (size_t)column * MR;
#define EDGE_PUT(G)                                                    \
  {                                                                    \
    int part = KR == 4 ? _mm_extract_epi32(bytes, (G) % 4) : _mm_extract_epi16(bytes, G); \
    memcpy(to + (G) * MR * KR, &part, KR);                             \
  }
  EDGE_PUT(0) EDGE_PUT(1) EDGE_PUT(2) EDGE_PUT(3)
  if (KR == 2) {
    EDGE_PUT(4) EDGE_PUT(5) EDGE_PUT(6) EDGE_PUT(7)
  }
#undef EDGE_PUT
}

/* Replace bytes by table[byte], as many as make whole vectors; returns how many. */
EDGE_INLINE size_t edge_table_x86(uint8_t *bytes, size_t count, const uint8_t *table) {
  size_t at = 0;
#if defined(__AVX512VBMI__)
  __m512i quarter[4];
  EDGE_UNROLL for (int i = 0; i < 4; i++) quarter[i] = _mm512_loadu_si512(table + 64 * i);
  for (; at + 64 <= count; at += 64) {
    __m512i index = _mm512_loadu_si512(bytes + at);
    __m512i low = _mm512_permutex2var_epi8(quarter[0], index, quarter[1]);
    __m512i high = _mm512_permutex2var_epi8(quarter[2], index, quarter[3]);
    _mm512_storeu_si512(bytes + at, _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high));
  }
#else
  /* Sixteenths of the table: an index that is not in one gets its highest bit set, for which the shuffle gives 0. */
  __m256i part[16];
  EDGE_UNROLL for (int i = 0; i < 16; i++)
    part[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + 16 * i)));
  for (; at + 32 <= count; at += 32) {
    __m256i index = _mm256_loadu_si256((const __m256i *)(bytes + at)), found = _mm256_setzero_si256();
    EDGE_UNROLL for (int i = 0; i < 16; i++) {
      __m256i within = _mm256_adds_epu8(index, _mm256_set1_epi8(0x70));
      found = _mm256_or_si256(found, _mm256_shuffle_epi8(part[i], within));
      index = _mm256_sub_epi8(index, _mm256_set1_epi8(16));
    }
    _mm256_storeu_si256((__m256i *)(bytes + at), found);
  }
#endif
  return at;
}
