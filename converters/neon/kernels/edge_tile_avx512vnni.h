/* AVX-512 VNNI: 8 x 32 outputs, 4 products a step. vpdpbusd wants unsigned A: A is stored as a + 128 (FLIP), and the
 * bias holds -128 * sum(weights).
 *
 * 16 accumulators hide the latency of vpdpbusd, of which Zen 4 starts one a cycle and Intel's servers two. Every tile
 * fetches the next panel of B into the L2 cache: hardware prefetchers stop at the end of a page, which is a third of a
 * panel or less. */
#pragma once
enum { MR = 8, NR = 32, KR = 4, FLIP = 0x80 };
#define EDGE_INTEGER_ATTENTION 1 /* edge_attention_avx512.h, which needs no tiles */
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, const int32_t *start,
                           vi acc[MR][NR / VW]) {
  const int8_t *next = b + (size_t)steps * NR * KR;
  __m512i sum[8][2];
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 2; j++) sum[i][j] = (__m512i)vi_load(start + j * VW);
  for (; steps; steps--, a += 32, b += 128, next += 128) {
    __m512i column[2];
    EDGE_UNROLL for (int j = 0; j < 2; j++) {
      column[j] = _mm512_loadu_si512(b + 64 * j);
      _mm_prefetch(next + 64 * j, _MM_HINT_T1);
    }
    EDGE_UNROLL for (int i = 0; i < rows; i++) {
      int32_t word;
      memcpy(&word, a + 4 * i, 4);
      __m512i row = _mm512_set1_epi32(word);
      EDGE_UNROLL for (int j = 0; j < 2; j++) sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], row, column[j]);
    }
  }
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 2; j++) acc[i][j] = (vi)sum[i][j];
}
