/* AVX2: 4 x 16 outputs, 2 products a step, in int16 pairs (vpmaddwd), which is exact for all int8 values. A is widened
 * in blocks first, so that each pair is one broadcast load. */
#pragma once
enum { MR = 4, NR = 16, KR = 2, FLIP = 0 };
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, const int32_t *start,
                           vi acc[MR][NR / VW]) {
  enum { BLOCK = 32 }; /* steps; K is a multiple of 16, so steps are one of 8 */
  _Alignas(32) int32_t pairs[BLOCK][MR];
  __m256i sum[4][2];
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 2; j++) sum[i][j] = (__m256i)vi_load(start + j * VW);
  for (int done = 0; done < steps; done += BLOCK) {
    int count = steps - done < BLOCK ? steps - done : BLOCK;
    for (int step = 0; step < count; step += 2, a += 16)
      _mm256_store_si256((__m256i *)pairs[step], _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)a)));
    for (int step = 0; step < count; step++, b += 32) {
      __m256i left = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)b));
      __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + 16)));
      EDGE_UNROLL for (int i = 0; i < rows; i++) {
        __m256i row = _mm256_set1_epi32(pairs[step][i]);
        sum[i][0] = _mm256_add_epi32(sum[i][0], _mm256_madd_epi16(row, left));
        sum[i][1] = _mm256_add_epi32(sum[i][1], _mm256_madd_epi16(row, right));
      }
    }
  }
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 2; j++) acc[i][j] = (vi)sum[i][j];
}
