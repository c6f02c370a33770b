/* ARMv8.0 (A53, A72): 4 x 4 outputs, 16 products a step. smull + smlal2 add two int8 products in int16, which is exact
 * because |weight| <= 127 (2 * 128 * 127 = 32512); sadalp widens to int32.
 *
 * Whole tiles are assembly, as 4 registers of A and of B come by one ld1 each: 48 multiplies and adds in 50
 * instructions, 8 MAC a cycle on A72 (llvm-mca). */
#pragma once
enum { MR = 4, NR = 4, KR = 16, FLIP = 0 };

#define EDGE_MULTIPLY(OP, W, J)                                                                           \
  #OP " v8.8h, v0." #W ", v" #J "." #W "\n" #OP " v9.8h, v1." #W ", v" #J "." #W "\n"                       \
  #OP " v10.8h, v2." #W ", v" #J "." #W "\n" #OP " v11.8h, v3." #W ", v" #J "." #W "\n"
#define EDGE_PAIRS(X, Y, Z, W)                                                                           \
  "sadalp %" #X ".4s, v8.8h\nsadalp %" #Y ".4s, v9.8h\nsadalp %" #Z ".4s, v10.8h\nsadalp %" #W ".4s, v11.8h\n"
#define EDGE_COLUMN(J, X, Y, Z, W) EDGE_MULTIPLY(smull, 8b, J) EDGE_MULTIPLY(smlal2, 16b, J) EDGE_PAIRS(X, Y, Z, W)
#define EDGE_PRODUCTS_4x4                                                                                \
  EDGE_COLUMN(4, 0, 4, 8, 12) EDGE_COLUMN(5, 1, 5, 9, 13) EDGE_COLUMN(6, 2, 6, 10, 14) EDGE_COLUMN(7, 3, 7, 11, 15)
#define EDGE_STEP_4x4 "ld1 {v0.16b-v3.16b}, [x9], #64\nld1 {v4.16b-v7.16b}, [x10], #64\n" EDGE_PRODUCTS_4x4
#define EDGE_ZERO_4(X, Y, Z, W) \
  "movi %" #X ".4s, #0\nmovi %" #Y ".4s, #0\nmovi %" #Z ".4s, #0\nmovi %" #W ".4s, #0\n"
#define EDGE_OUT_4(I) "=&w"(sum[I][0]), "=&w"(sum[I][1]), "=&w"(sum[I][2]), "=&w"(sum[I][3])

EDGE_INLINE void edge_tile_4x4(const int8_t *a, const int8_t *b, int steps, int32x4_t sum[4][4]) {
  __asm__("mov x9, %[a]\n"
          "mov x10, %[b]\n"
          "subs w11, %w[steps], #2\n" EDGE_ZERO_4(0, 1, 2, 3) EDGE_ZERO_4(4, 5, 6, 7) EDGE_ZERO_4(8, 9, 10, 11)
          EDGE_ZERO_4(12, 13, 14, 15)
          "b.lt 2f\n"
          "1:\n" EDGE_STEP_4x4 EDGE_STEP_4x4
          "subs w11, w11, #2\n"
          "b.ge 1b\n"
          "2:\n"
          "tbz w11, #0, 3f\n" EDGE_STEP_4x4
          "3:\n"
          : EDGE_OUT_4(0), EDGE_OUT_4(1), EDGE_OUT_4(2), EDGE_OUT_4(3)
          : [a] "r"(a), [b] "r"(b), [steps] "r"(steps)
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "x9", "x10", "x11", "cc",
            "memory");
}

/* acc [rows][4] = start [4] + the sums across each vector. */
EDGE_INLINE void edge_add_up(const int rows, const int32_t *start, int32x4_t sum[][4], vi acc[MR][NR / VW]) {
  int32x4_t first = vld1q_s32(start);
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    acc[i][0] = vaddq_s32(first, vpaddq_s32(vpaddq_s32(sum[i][0], sum[i][1]), vpaddq_s32(sum[i][2], sum[i][3])));
}

/* What edge_tail.h asks for: each vector of sums is added up to one output at the end. */
enum { EDGE_STEP_VECTORS = 4 };
#define EDGE_SUM_ROWS(ROWS) (ROWS)

EDGE_INLINE void edge_sums_begin(const int rows, const int32_t *start, int32x4_t sums[][4]) {
  (void)start;
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 4; j++) sums[i][j] = vdupq_n_s32(0);
}

EDGE_INLINE void edge_sums_step(const int8_t *a, const int8x16_t b[4], const int rows, int32x4_t sums[][4]) {
  EDGE_UNROLL for (int j = 0; j < 4; j++)
    EDGE_UNROLL for (int i = 0; i < rows; i++) {
      int8x16_t row = vld1q_s8(a + 16 * i);
      int16x8_t pair = vmull_s8(vget_low_s8(row), vget_low_s8(b[j]));
      sums[i][j] = vpadalq_s16(sums[i][j], vmlal_high_s8(pair, row, b[j]));
    }
}

EDGE_INLINE void edge_sums_end(const int rows, const int32_t *start, int32x4_t sums[][4], vi acc[MR][NR / VW]) {
  edge_add_up(rows, start, sums, acc);
}

EDGE_INLINE void edge_sums_factors(const uint8_t *multipliers, int32x4_t factor[4]) {
  EDGE_UNROLL for (int j = 0; j < 4; j++) factor[j] = vdupq_n_s32(multipliers[j]);
}

#include "edge_tail.h"

/* acc [rows][4] = start [4] + a b; `rows` is 4, 2 or 1. */
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, const int32_t *start,
                           vi acc[MR][NR / VW]) {
  if (rows < MR) {
    edge_tail(a, b, steps, rows, start, acc);
    return;
  }
  int32x4_t sum[4][4];
  edge_tile_4x4(a, b, steps, sum);
  edge_add_up(MR, start, sum, acc);
}
