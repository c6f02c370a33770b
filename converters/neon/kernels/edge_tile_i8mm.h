/* ARMv8.6 (or 8.2 with i8mm): 8 x 8 outputs, 8 products a step. smmla multiplies two rows of A by two columns of B into
 * a block of 2 x 2 outputs: [row 0 column 0, row 0 column 1, row 1 column 0, row 1 column 1].
 *
 * Whole tiles are assembly: 16 blocks, 4 registers of A and 4 of B; 4 steps are 64 smmla in 74 instructions, 64 MAC a
 * cycle on Neoverse N2 (llvm-mca). Blocks become rows by one zip for each vector. */
#pragma once
enum { MR = 8, NR = 8, KR = 8, FLIP = 0 };
#define EDGE_INTEGER_ATTENTION 1 /* by edge_tile_scores and edge_tile_values */

/* Two rows: register A times the four registers of B; blocks are operands 0 to 15. */
#define EDGE_SMMLA_4(X, Y, Z, W, A)                                                                    \
  "smmla %" #X ".4s, v" #A ".16b, v4.16b\nsmmla %" #Y ".4s, v" #A ".16b, v5.16b\n"                      \
  "smmla %" #Z ".4s, v" #A ".16b, v6.16b\nsmmla %" #W ".4s, v" #A ".16b, v7.16b\n"
#define EDGE_SMMLA_16                                                                                  \
  "ld1 {v4.16b-v7.16b}, [x10], #64\n" EDGE_SMMLA_4(0, 1, 2, 3, 0) EDGE_SMMLA_4(4, 5, 6, 7, 1)           \
  EDGE_SMMLA_4(8, 9, 10, 11, 2) EDGE_SMMLA_4(12, 13, 14, 15, 3)
#define EDGE_STEP_8x8 "ld1 {v0.16b-v3.16b}, [x9], #64\n" EDGE_SMMLA_16
#define EDGE_START_4(X, Y, Z, W)                                                                       \
  "dup %" #X ".2d, v4.d[0]\ndup %" #Y ".2d, v4.d[1]\ndup %" #Z ".2d, v5.d[0]\ndup %" #W ".2d, v5.d[1]\n"
#define EDGE_START_16                                                                                  \
  "ld1 {v4.4s-v5.4s}, [%[start]]\n" EDGE_START_4(0, 1, 2, 3) EDGE_START_4(4, 5, 6, 7)                   \
  EDGE_START_4(8, 9, 10, 11) EDGE_START_4(12, 13, 14, 15)
#define EDGE_OUT_4(I) "=&w"(block[I][0]), "=&w"(block[I][1]), "=&w"(block[I][2]), "=&w"(block[I][3])
#define EDGE_OUT_16 EDGE_OUT_4(0), EDGE_OUT_4(1), EDGE_OUT_4(2), EDGE_OUT_4(3)

EDGE_INLINE void edge_tile_8x8(const int8_t *a, const int8_t *b, int steps, const int32_t *start,
                               int32x4_t block[4][4]) {
  __asm__("mov x9, %[a]\n"
          "mov x10, %[b]\n"
          "subs w11, %w[steps], #4\n" EDGE_START_16
          "b.lt 2f\n"
          "1:\n" EDGE_STEP_8x8 EDGE_STEP_8x8 EDGE_STEP_8x8 EDGE_STEP_8x8
          "subs w11, w11, #4\n"
          "b.ge 1b\n"
          "2:\n"
          "tbz w11, #1, 3f\n" /* 2 steps are left: -2 has this bit, -4 has not */
          EDGE_STEP_8x8 EDGE_STEP_8x8
          "3:\n"
          : EDGE_OUT_16
          : [a] "r"(a), [b] "r"(b), [steps] "r"(steps), [start] "r"(start)
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "x9", "x10", "x11", "cc", "memory");
}

/* Rows from the blocks beside each other; a single row brings the one below it with it. */
EDGE_INLINE void edge_rows_of(int32x4_t block[][4], const int rows, vi acc[MR][NR / VW]) {
  EDGE_UNROLL for (int i = 0; i < (rows + 1) / 2; i++)
    EDGE_UNROLL for (int j = 0; j < 2; j++) {
      int64x2_t left = vreinterpretq_s64_s32(block[i][2 * j]), right = vreinterpretq_s64_s32(block[i][2 * j + 1]);
      acc[2 * i][j] = vreinterpretq_s32_s64(vzip1q_s64(left, right));
      acc[2 * i + 1][j] = vreinterpretq_s32_s64(vzip2q_s64(left, right));
    }
}

/* What edge_tail.h asks for: sums are the blocks of 2 x 2 outputs. */
enum { EDGE_STEP_VECTORS = 4 };
#define EDGE_SUM_ROWS(ROWS) (((ROWS) + 1) / 2)

EDGE_INLINE void edge_sums_begin(const int rows, const int32_t *start, int32x4_t sums[][4]) {
  EDGE_UNROLL for (int i = 0; i < EDGE_SUM_ROWS(rows); i++)
    EDGE_UNROLL for (int j = 0; j < 4; j++) sums[i][j] = vcombine_s32(vld1_s32(start + 2 * j), vld1_s32(start + 2 * j));
}

EDGE_INLINE void edge_sums_step(const int8_t *a, const int8x16_t b[4], const int rows, int32x4_t sums[][4]) {
  EDGE_UNROLL for (int j = 0; j < 4; j++)
    EDGE_UNROLL for (int i = 0; i < EDGE_SUM_ROWS(rows); i++)
      sums[i][j] = vmmlaq_s32(sums[i][j], vld1q_s8(a + 16 * i), b[j]);
}

EDGE_INLINE void edge_sums_end(const int rows, const int32_t *start, int32x4_t sums[][4], vi acc[MR][NR / VW]) {
  (void)start;
  edge_rows_of(sums, rows, acc);
}

EDGE_INLINE void edge_sums_factors(const uint8_t *multipliers, int32x4_t factor[4]) {
  const uint16x8_t wide = vmovl_u8(vld1_u8(multipliers));
  const int64x2_t left = vreinterpretq_s64_u32(vmovl_u16(vget_low_u16(wide)));
  const int64x2_t right = vreinterpretq_s64_u32(vmovl_high_u16(wide));
  factor[0] = vreinterpretq_s32_s64(vdupq_laneq_s64(left, 0));
  factor[1] = vreinterpretq_s32_s64(vdupq_laneq_s64(left, 1));
  factor[2] = vreinterpretq_s32_s64(vdupq_laneq_s64(right, 0));
  factor[3] = vreinterpretq_s32_s64(vdupq_laneq_s64(right, 1));
}

#include "edge_tail.h"

/* acc [rows][8] = start [8] + a b; `steps` is even (K is one of 16), `rows` is 8, 4 or 1. */
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, const int32_t *start,
                           vi acc[MR][NR / VW]) {
  if (rows < MR) {
    edge_tail(a, b, steps, rows, start, acc);
    return;
  }
  int32x4_t block[4][4];
  edge_tile_8x8(a, b, steps, start, block);
  edge_rows_of(block, MR, acc);
}

/* Tiles of attention: A and B are panels of 8 rows, [steps][8][8], as in the GEMM. acc = start [8 columns] + a b. */
EDGE_INLINE void edge_tile_scores(const int8_t *a, const int8_t *b, int steps, const int32_t *start, vi acc[MR][2]) {
  edge_tile(a, b, steps, MR, start, acc);
}

/* acc = 256 high b + low b, where `digits` holds the panels of high and of low. */
EDGE_INLINE void edge_tile_values(const int8_t *digits, const int8_t *b, int steps, vi acc[MR][2]) {
  static const int32_t zeros[NR];
  int32x4_t high[4][4], block[4][4];
  edge_tile_8x8(digits, b, steps, zeros, high);
  edge_tile_8x8(digits + (size_t)steps * MR * KR, b, steps, zeros, block);
  EDGE_UNROLL for (int i = 0; i < 4; i++)
    EDGE_UNROLL for (int j = 0; j < 4; j++) block[i][j] = vmlaq_n_s32(block[i][j], high[i][j], 256);
  edge_rows_of(block, MR, acc);
}
