/* AVX2: 4 x 16 outputs, 2 products a step, in int16 pairs (vpmaddwd), which is exact for all int8 values. */
#pragma once
enum { MR = 4, NR = 16, KR = 2, FLIP = 0 };
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, vi acc[MR][NR / VW]) {
  __m256i sum[4][2];
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 2; j++) sum[i][j] = _mm256_setzero_si256();
  for (; steps; steps--, a += 8, b += 32) {
    __m256i left = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)b));
    __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + 16)));
    EDGE_UNROLL for (int i = 0; i < rows; i++) {
      uint32_t pair = (uint16_t)a[2 * i] | (uint32_t)(uint16_t)a[2 * i + 1] << 16;
      __m256i row = _mm256_set1_epi32((int)pair);
      sum[i][0] = _mm256_add_epi32(sum[i][0], _mm256_madd_epi16(row, left));
      sum[i][1] = _mm256_add_epi32(sum[i][1], _mm256_madd_epi16(row, right));
    }
  }
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 2; j++) acc[i][j] = (vi)sum[i][j];
}
