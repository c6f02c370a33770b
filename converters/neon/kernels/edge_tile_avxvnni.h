/* AVX-VNNI (Alder Lake and later, Zen 5): 4 x 24 outputs, 4 products a step, in 256 bits. vpdpbusd wants unsigned A: A
 * is stored as a + 128 (FLIP), and the bias holds -128 * sum(weights).
 *
 * Whole tiles are assembly: 12 sums, 3 registers of B and one of A are all 16 registers, and both compilers would move
 * sums through memory. vpdpbusd has two encodings: the VEX one of AVX-VNNI, and the EVEX one of AVX512-VNNI with VL, in
 * which the same tile runs on CPUs that have only that (the tests do so). */
#pragma once
enum { MR = 4, NR = 24, KR = 4, FLIP = 0x80 };

#if defined(__AVXVNNI__)
#define EDGE_DPBUSD _mm256_dpbusd_avx_epi32
#define EDGE_VPDPBUSD "%{vex%} vpdpbusd "
#else
#define EDGE_DPBUSD _mm256_dpbusd_epi32
#define EDGE_VPDPBUSD "vpdpbusd "
#endif

/* Row of A at byte AT of the step times three registers of B; sums are operands 0 to 11. */
#define EDGE_DPBUSD_3(X, Y, Z, AT)                                                                           \
  "vpbroadcastd " #AT "(%[a]), %%ymm3\n" EDGE_VPDPBUSD "%%ymm0, %%ymm3, %" #X "\n" EDGE_VPDPBUSD              \
  "%%ymm1, %%ymm3, %" #Y "\n" EDGE_VPDPBUSD "%%ymm2, %%ymm3, %" #Z "\n"
#define EDGE_DPBUSD_12(B0, B1, B2, A0, A1, A2, A3)                                                           \
  "vmovdqu " #B0 "(%[b]), %%ymm0\nvmovdqu " #B1 "(%[b]), %%ymm1\nvmovdqu " #B2 "(%[b]), %%ymm2\n"             \
  EDGE_DPBUSD_3(0, 1, 2, A0) EDGE_DPBUSD_3(3, 4, 5, A1) EDGE_DPBUSD_3(6, 7, 8, A2) EDGE_DPBUSD_3(9, 10, 11, A3)
#define EDGE_START_3(X, Y, Z)                                                                                \
  "vmovdqu (%[start]), %" #X "\nvmovdqu 32(%[start]), %" #Y "\nvmovdqu 64(%[start]), %" #Z "\n"
#define EDGE_OUT_3(I) "=&x"(sum[I][0]), "=&x"(sum[I][1]), "=&x"(sum[I][2])

EDGE_INLINE void edge_tile_4x24(const int8_t *a, const int8_t *b, int steps, const int32_t *start, __m256i sum[4][3]) {
  __asm__(EDGE_START_3(0, 1, 2) EDGE_START_3(3, 4, 5) EDGE_START_3(6, 7, 8) EDGE_START_3(9, 10, 11)
          "1:\n" EDGE_DPBUSD_12(0, 32, 64, 0, 4, 8, 12) EDGE_DPBUSD_12(96, 128, 160, 16, 20, 24, 28)
          EDGE_DPBUSD_12(192, 224, 256, 32, 36, 40, 44) EDGE_DPBUSD_12(288, 320, 352, 48, 52, 56, 60)
          "add $64, %[a]\n"
          "add $384, %[b]\n"
          "sub $4, %[steps]\n"
          "jnz 1b\n"
          : EDGE_OUT_3(0), EDGE_OUT_3(1), EDGE_OUT_3(2), EDGE_OUT_3(3), [a] "+r"(a), [b] "+r"(b), [steps] "+r"(steps)
          : [start] "r"(start)
          : "xmm0", "xmm1", "xmm2", "xmm3", "cc", "memory");
}

/* acc [rows][24] = start [24] + a b; `steps` is a multiple of 4 (K is one of 16), `rows` is 4, 2 or 1. */
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, const int32_t *start,
                           vi acc[MR][NR / VW]) {
  __m256i sum[4][3];
  if (rows == 4) {
    edge_tile_4x24(a, b, steps, start, sum);
  } else {
    EDGE_UNROLL for (int i = 0; i < rows; i++)
      EDGE_UNROLL for (int j = 0; j < 3; j++) sum[i][j] = (__m256i)vi_load(start + j * VW);
    for (; steps; steps--, a += 16, b += 96)
      EDGE_UNROLL for (int j = 0; j < 3; j++) {
        __m256i column = _mm256_loadu_si256((const __m256i *)(b + 32 * j));
        EDGE_UNROLL for (int i = 0; i < rows; i++) {
          int32_t word;
          memcpy(&word, a + 4 * i, 4);
          sum[i][j] = EDGE_DPBUSD(sum[i][j], _mm256_set1_epi32(word), column);
        }
      }
  }
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 3; j++) acc[i][j] = (vi)sum[i][j];
}
