/* Tiles of the last 1 to MR / 2 rows, for the NEON sets. Included by a set's tile, which says what its sums are:
 * EDGE_SUM_ROWS(rows) times EDGE_STEP_VECTORS vectors, one for each vector of B in a k-step. */
#pragma once

enum { EDGE_STEP_BYTES = NR * KR, EDGE_TAIL_STEPS = 16 / KR };
typedef int32x4_t edge_sums[EDGE_SUM_ROWS(MR / 2)][EDGE_STEP_VECTORS];

EDGE_INLINE void edge_tail_step(const int8_t *a, const int8_t *b, const int rows, edge_sums sums) {
  int8x16_t columns[EDGE_STEP_VECTORS];
  EDGE_UNROLL for (int j = 0; j < EDGE_STEP_VECTORS; j++) columns[j] = vld1q_s8(b + 16 * j);
  edge_sums_step(a, columns, rows, sums);
}

/* acc [rows][NR] = start [NR] + a b; `steps` is a multiple of EDGE_TAIL_STEPS. */
EDGE_INLINE void edge_tail(const int8_t *a, const int8_t *b, int steps, const int rows, const int32_t *start,
                           vi acc[MR][NR / VW]) {
  edge_sums sums;
  edge_sums_begin(rows, start, sums);
  for (; steps; steps -= EDGE_TAIL_STEPS)
    EDGE_UNROLL for (int step = 0; step < EDGE_TAIL_STEPS; step++, a += MR * KR, b += EDGE_STEP_BYTES)
      edge_tail_step(a, b, rows, sums);
  edge_sums_end(rows, start, sums, acc);
}

#if defined(EDGE_BLOCKS)
/* acc [rows][NR] = start [NR] + a b over `steps` blocks of b. */
EDGE_INLINE void edge_tail_blocks(const int8_t *a, const int8_t *b, const int32_t *strides, int steps, const int rows,
                                  const int32_t *start, vi acc[MR][NR / VW]) {
  edge_sums sums;
  edge_sums_begin(rows, start, sums);
  for (int step = 0; step < steps; a += strides[step], step++, b += EDGE_STEP_BYTES) edge_tail_step(a, b, rows, sums);
  edge_sums_end(rows, start, sums, acc);
}
#endif

#if defined(EDGE_FOUR_BITS)
/* 4 bits (edge_four_bits.h) unpacked in registers. A half byte in the upper half of a byte is 16 times itself, which
 * spares a shift of each vector; in the base set two such products do not fit in int16. */
enum { EDGE_SCALED = KR == 16 ? 0 : 4, EDGE_DEEPEST = 8192 };

EDGE_INLINE void edge_tail_pair(const int8_t *a, const int8_t *b, const int rows, edge_sums sums) {
  int8x16_t low[EDGE_STEP_VECTORS], high[EDGE_STEP_VECTORS];
  EDGE_UNROLL for (int j = 0; j < EDGE_STEP_VECTORS; j++) {
    const int8x16_t both = vld1q_s8(b + 16 * j);
    low[j] = EDGE_SCALED ? vshlq_n_s8(both, 4) : vshrq_n_s8(vshlq_n_s8(both, 4), 4);
    high[j] = EDGE_SCALED ? vandq_s8(both, vdupq_n_s8(-16)) : vshrq_n_s8(both, 4);
  }
  edge_sums_step(a, low, rows, sums);
  edge_sums_step(a + MR * KR, high, rows, sums);
}

/* acc [rows][NR] = start [NR] + a b. The multipliers meet the sums of a group in place of its weights; all sums fit in
 * int32 up to k = EDGE_DEEPEST: |16 multiplier q| <= 16 * 127. */
EDGE_INLINE void edge_tail_four_bits(const int8_t *a, const int8_t *b, const uint8_t *multipliers, int pairs, int group,
                                     const int rows, const int32_t *start, vi acc[MR][NR / VW]) {
  enum { PAIRS = 4, NEXT_A = 2 * MR * KR };
  edge_sums sums, first;
#define EDGE_EACH_SUM EDGE_UNROLL for (int i = 0; i < EDGE_SUM_ROWS(rows); i++) \
  EDGE_UNROLL for (int j = 0; j < EDGE_STEP_VECTORS; j++)
  EDGE_EACH_SUM sums[i][j] = vdupq_n_s32(0);
  for (; pairs > 0; pairs -= group, multipliers += NR) {
    edge_sums part;
    EDGE_EACH_SUM part[i][j] = vdupq_n_s32(0);
    int left = pairs < group ? pairs : group;
    for (; left >= PAIRS; left -= PAIRS)
      EDGE_UNROLL for (int pair = 0; pair < PAIRS; pair++, a += NEXT_A, b += EDGE_STEP_BYTES)
        edge_tail_pair(a, b, rows, part);
    for (; left; left--, a += NEXT_A, b += EDGE_STEP_BYTES) edge_tail_pair(a, b, rows, part);
    int32x4_t factor[EDGE_STEP_VECTORS];
    edge_sums_factors(multipliers, factor);
    EDGE_EACH_SUM sums[i][j] = vmlaq_s32(sums[i][j], part[i][j], factor[j]);
  }
  edge_sums_begin(rows, start, first);
  EDGE_EACH_SUM sums[i][j] = vaddq_s32(first[i][j], EDGE_SCALED ? vshrq_n_s32(sums[i][j], 4) : sums[i][j]);
#undef EDGE_EACH_SUM
  edge_sums_end(rows, start, sums, acc);
}
#endif
