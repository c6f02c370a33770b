/* ARMv8.2 with dot product (A76, A78AE): 8 x 12 outputs, 4 products a step, sdot by lane of A; `rows` is 8, 4 or 1. */
#pragma once
enum { MR = 8, NR = 12, KR = 4, FLIP = 0 };
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, vi acc[MR][NR / VW]) {
  int32x4_t sum[8][3];
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 3; j++) sum[i][j] = vdupq_n_s32(0);
  for (; steps; steps -= 4) /* K is a multiple of 16 */
    EDGE_UNROLL for (int step = 0; step < 4; step++, a += 32, b += 48) {
      int8x16_t low = vld1q_s8(a);
      int8x16_t high = rows > 4 ? vld1q_s8(a + 16) : low;
      int8x16_t column[3];
      EDGE_UNROLL for (int j = 0; j < 3; j++) column[j] = vld1q_s8(b + 16 * j);
      EDGE_UNROLL for (int j = 0; j < 3; j++) {
        sum[0][j] = vdotq_laneq_s32(sum[0][j], column[j], low, 0);
        if (rows == 1) continue;
        sum[1][j] = vdotq_laneq_s32(sum[1][j], column[j], low, 1);
        sum[2][j] = vdotq_laneq_s32(sum[2][j], column[j], low, 2);
        sum[3][j] = vdotq_laneq_s32(sum[3][j], column[j], low, 3);
        if (rows == 4) continue;
        sum[4][j] = vdotq_laneq_s32(sum[4][j], column[j], high, 0);
        sum[5][j] = vdotq_laneq_s32(sum[5][j], column[j], high, 1);
        sum[6][j] = vdotq_laneq_s32(sum[6][j], column[j], high, 2);
        sum[7][j] = vdotq_laneq_s32(sum[7][j], column[j], high, 3);
      }
    }
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 3; j++) acc[i][j] = sum[i][j];
}
