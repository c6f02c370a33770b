/* ARMv8.2 with dot product (A76, A78AE): 8 x 12 outputs, 4 products a step, sdot by lane of A.
 *
 * Whole tiles are assembly: 24 accumulators, 4 registers of A (two steps by one ld1) and 3 of B fill the 32 registers,
 * and both compilers spill accumulators as soon as they allocate tuples for ld1 themselves. 8 steps are 192 sdot in 206
 * instructions, 32 MAC a cycle on Neoverse N1 (llvm-mca). */
#pragma once
enum { MR = 8, NR = 12, KR = 4, FLIP = 0 };
#define EDGE_INTEGER_ATTENTION 1 /* by edge_tile_scores and edge_tile_values */

#define EDGE_START_ROWS 8

/* The accumulators of row I are v(8 + 3 I) and the two behind it, so that 6 loads fill all of them. Each row: lane L of
 * register A times the three registers of B. */
#define EDGE_DOT_3(X, Y, Z, A, L)               \
  "sdot v" #X ".4s, v4.16b, v" #A ".4b[" #L "]\n" \
  "sdot v" #Y ".4s, v5.16b, v" #A ".4b[" #L "]\n" \
  "sdot v" #Z ".4s, v6.16b, v" #A ".4b[" #L "]\n"
#define EDGE_SDOT_24(A, B)                                                                                        \
  "ld1 {v4.16b-v6.16b}, [x10], #48\n" EDGE_DOT_3(8, 9, 10, A, 0) EDGE_DOT_3(11, 12, 13, A, 1)         \
      EDGE_DOT_3(14, 15, 16, A, 2) EDGE_DOT_3(17, 18, 19, A, 3) EDGE_DOT_3(20, 21, 22, B, 0)    \
          EDGE_DOT_3(23, 24, 25, B, 1) EDGE_DOT_3(26, 27, 28, B, 2) EDGE_DOT_3(29, 30, 31, B, 3)
#define EDGE_SDOT_48 "ld1 {v0.16b-v3.16b}, [%[a]], #64\n" EDGE_SDOT_24(0, 1) EDGE_SDOT_24(2, 3)
#define EDGE_START_24                                                                   \
  "ld1 {v8.4s-v11.4s}, [x11], #64\nld1 {v12.4s-v15.4s}, [x11], #64\n"                   \
  "ld1 {v16.4s-v19.4s}, [x11], #64\nld1 {v20.4s-v23.4s}, [x11], #64\n"                  \
  "ld1 {v24.4s-v27.4s}, [x11], #64\nld1 {v28.4s-v31.4s}, [x11]\n"
/* Around an asm statement: names for the registers, the operands, and the way into acc. */
#define EDGE_ROW_3(I, X, Y, Z)                                                                          \
  register int32x4_t c##I##0 __asm__("v" #X), c##I##1 __asm__("v" #Y), c##I##2 __asm__("v" #Z);
#define EDGE_ROWS_24                                                                                    \
  EDGE_ROW_3(0, 8, 9, 10) EDGE_ROW_3(1, 11, 12, 13) EDGE_ROW_3(2, 14, 15, 16) EDGE_ROW_3(3, 17, 18, 19) \
  EDGE_ROW_3(4, 20, 21, 22) EDGE_ROW_3(5, 23, 24, 25) EDGE_ROW_3(6, 26, 27, 28) EDGE_ROW_3(7, 29, 30, 31)
#define EDGE_OUT_3(I) "=&w"(c##I##0), "=&w"(c##I##1), "=&w"(c##I##2)
#define EDGE_OUT_24                                                                                     \
  EDGE_OUT_3(0), EDGE_OUT_3(1), EDGE_OUT_3(2), EDGE_OUT_3(3), EDGE_OUT_3(4), EDGE_OUT_3(5), EDGE_OUT_3(6), EDGE_OUT_3(7)
#define EDGE_PUT_3(I) acc[I][0] = c##I##0, acc[I][1] = c##I##1, acc[I][2] = c##I##2;
#define EDGE_PUT_24                                                                                     \
  EDGE_PUT_3(0) EDGE_PUT_3(1) EDGE_PUT_3(2) EDGE_PUT_3(3) EDGE_PUT_3(4) EDGE_PUT_3(5) EDGE_PUT_3(6) EDGE_PUT_3(7)

EDGE_INLINE void edge_tile_8x12(
    const int8_t *a, const int8_t *b, int steps, const int32_t *start, int32x4_t acc[8][3]) {
  EDGE_ROWS_24
  __asm__("mov x10, %[b]\n"
          "mov x11, %[start]\n" EDGE_START_24
          "subs w11, %w[steps], #8\n"
          "b.lt 2f\n"
          "1:\n"
          EDGE_SDOT_48 EDGE_SDOT_48 EDGE_SDOT_48 EDGE_SDOT_48
          "subs w11, w11, #8\n"
          "b.ge 1b\n"
          "2:\n"
          "tbz w11, #2, 3f\n" /* 4 steps are left: -4 has this bit, -8 has not */
          EDGE_SDOT_48 EDGE_SDOT_48
          "3:\n"
          : EDGE_OUT_24, [a] "+r"(a)
          : [b] "r"(b), [steps] "r"(steps), [start] "r"(start)
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "x10", "x11", "cc", "memory");
  EDGE_PUT_24
}

/* What edge_tail.h asks for: sums are outputs, 4 columns in each vector. */
enum { EDGE_STEP_VECTORS = 3 };
#define EDGE_SUM_ROWS(ROWS) (ROWS)

EDGE_INLINE void edge_sums_begin(const int rows, const int32_t *start, int32x4_t sums[][3]) {
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 3; j++) sums[i][j] = vld1q_s32(start + 4 * j);
}

EDGE_INLINE void edge_sums_step(const int8_t *a, const int8x16_t b[3], const int rows, int32x4_t sums[][3]) {
  int8x16_t row = vld1q_s8(a);
  EDGE_UNROLL for (int j = 0; j < 3; j++) {
    sums[0][j] = vdotq_laneq_s32(sums[0][j], b[j], row, 0);
    if (rows == 1) continue;
    sums[1][j] = vdotq_laneq_s32(sums[1][j], b[j], row, 1);
    sums[2][j] = vdotq_laneq_s32(sums[2][j], b[j], row, 2);
    sums[3][j] = vdotq_laneq_s32(sums[3][j], b[j], row, 3);
  }
}

EDGE_INLINE void edge_sums_end(const int rows, const int32_t *start, int32x4_t sums[][3], vi acc[MR][NR / VW]) {
  (void)start;
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 3; j++) acc[i][j] = sums[i][j];
}

EDGE_INLINE void edge_sums_factors(const uint8_t *multipliers, int32x4_t factor[3]) {
  const uint8x16_t bytes = vld1q_u8(multipliers);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
  factor[0] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low)));
  factor[1] = vreinterpretq_s32_u32(vmovl_high_u16(low));
  factor[2] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high)));
}

#include "edge_tail.h"

/* acc [rows][12] = start + a b; `steps` is a multiple of 4 (K is one of 16), `rows` is 8, 4 or 1; `start` is
 * [EDGE_START_ROWS][12] for 8 rows, else [12]. */
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, const int32_t *start,
                           vi acc[MR][NR / VW]) {
  if (rows == MR) edge_tile_8x12(a, b, steps, start, acc);
  else edge_tail(a, b, steps, rows, start, acc);
}

/* 8 x 8 tiles of attention: A and B are panels of 8 rows, [steps][8][4], `steps` a multiple of 4. */
#define EDGE_DOT_2(X, Y, C, D, A, L) \
  "sdot %" #X ".4s, v" #C ".16b, v" #A ".4b[" #L "]\nsdot %" #Y ".4s, v" #D ".16b, v" #A ".4b[" #L "]\n"
#define EDGE_DOT_16(C, D, A, B)                                                               \
  EDGE_DOT_2(0, 1, C, D, A, 0) EDGE_DOT_2(2, 3, C, D, A, 1) EDGE_DOT_2(4, 5, C, D, A, 2)      \
      EDGE_DOT_2(6, 7, C, D, A, 3) EDGE_DOT_2(8, 9, C, D, B, 0) EDGE_DOT_2(10, 11, C, D, B, 1) \
          EDGE_DOT_2(12, 13, C, D, B, 2) EDGE_DOT_2(14, 15, C, D, B, 3)
#define EDGE_DOT_32                                                      \
  "ld1 {v0.16b-v3.16b}, [x9], #64\nld1 {v4.16b-v7.16b}, [x10], #64\n" \
  EDGE_DOT_16(4, 5, 0, 1) EDGE_DOT_16(6, 7, 2, 3)
#define EDGE_DOT_LOOP(LABEL)                                     \
  "mov x10, %[b]\nmov w11, %w[steps]\n" LABEL ":\n" EDGE_DOT_32 EDGE_DOT_32 \
  "subs w11, w11, #4\nb.gt " LABEL "b\n"
#define EDGE_OUT_2(I) "=&w"(acc[I][0]), "=&w"(acc[I][1])
#define EDGE_OUT_16                                                                                         \
  EDGE_OUT_2(0), EDGE_OUT_2(1), EDGE_OUT_2(2), EDGE_OUT_2(3), EDGE_OUT_2(4), EDGE_OUT_2(5), EDGE_OUT_2(6), \
      EDGE_OUT_2(7)
#define EDGE_CLOBBERS "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "x9", "x10", "x11", "cc", "memory"
#define EDGE_EACH_16(DO) \
  DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
#define EDGE_ZERO_1(X) "movi %" #X ".4s, #0\n"
#define EDGE_TIMES_256(X) "shl %" #X ".4s, %" #X ".4s, #8\n"
#define EDGE_COLUMNS_2(X, Y) "ldp %q" #X ", %q" #Y ", [%[start]]\n"

/* acc = start [8 columns] + a b. */
EDGE_INLINE void edge_tile_scores(const int8_t *a, const int8_t *b, int steps, const int32_t *start,
                                  int32x4_t acc[8][2]) {
  __asm__("mov x9, %[a]\n" EDGE_COLUMNS_2(0, 1) EDGE_COLUMNS_2(2, 3) EDGE_COLUMNS_2(4, 5) EDGE_COLUMNS_2(6, 7)
              EDGE_COLUMNS_2(8, 9) EDGE_COLUMNS_2(10, 11) EDGE_COLUMNS_2(12, 13) EDGE_COLUMNS_2(14, 15)
                  EDGE_DOT_LOOP("1")
          : EDGE_OUT_16
          : [a] "r"(a), [b] "r"(b), [steps] "r"(steps), [start] "r"(start)
          : EDGE_CLOBBERS);
}

/* acc = 256 high b + low b, where `digits` holds the panels of high and of low. */
EDGE_INLINE void edge_tile_values(const int8_t *digits, const int8_t *b, int steps, int32x4_t acc[8][2]) {
  __asm__("mov x9, %[digits]\n" EDGE_EACH_16(EDGE_ZERO_1) EDGE_DOT_LOOP("1") EDGE_EACH_16(EDGE_TIMES_256)
              EDGE_DOT_LOOP("2")
          : EDGE_OUT_16
          : [digits] "r"(digits), [b] "r"(b), [steps] "r"(steps)
          : EDGE_CLOBBERS);
}
