/* ARMv8.0 (A53, A72): 4 x 4 outputs, 16 products a step. smull + smlal2 add two int8 products in int16, which is exact
 * because |weight| <= 127 (2 * 128 * 127 = 32512); sadalp widens to int32. */
#pragma once
enum { MR = 4, NR = 4, KR = 16, FLIP = 0 };
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, vi acc[MR][NR / VW]) {
  int32x4_t sum[4][4];
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 4; j++) sum[i][j] = vdupq_n_s32(0);
  for (; steps; steps--, a += 64, b += 64) {
    int8x16_t row[4];
    EDGE_UNROLL for (int i = 0; i < rows; i++) row[i] = vld1q_s8(a + 16 * i);
    EDGE_UNROLL for (int j = 0; j < 4; j++) {
      int8x16_t column = vld1q_s8(b + 16 * j);
      EDGE_UNROLL for (int i = 0; i < rows; i++) {
        int16x8_t pair = vmull_s8(vget_low_s8(row[i]), vget_low_s8(column));
        pair = vmlal_high_s8(pair, row[i], column);
        sum[i][j] = vpadalq_s16(sum[i][j], pair);
      }
    }
  }
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    acc[i][0] = vpaddq_s32(vpaddq_s32(sum[i][0], sum[i][1]), vpaddq_s32(sum[i][2], sum[i][3]));
}
