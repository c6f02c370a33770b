/* Reference tile: 4 x 4, one product at a time. */
#pragma once
enum { MR = 4, NR = 4, KR = 1, FLIP = 0 };
#define EDGE_INTEGER_ATTENTION 1 /* by edge_tile_scores and edge_tile_values */
EDGE_INLINE void edge_tile(const int8_t *a, const int8_t *b, int steps, const int rows, const int32_t *start,
                           vi acc[MR][NR / VW]) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < NR; j++) acc[i][j] = start[j];
  for (int k = 0; k < steps; k++, a += MR, b += NR)
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < NR; j++) acc[i][j] += a[i] * b[j];
}

EDGE_INLINE void edge_tile_scores(const int8_t *a, const int8_t *b, int steps, const int32_t *start,
                                  vi acc[MR][MR / VW]) {
  edge_tile(a, b, steps, MR, start, acc);
}

/* 256 high b + low b, where `digits` holds the panels of high and of low. */
EDGE_INLINE void edge_tile_values(const int8_t *digits, const int8_t *b, int steps, vi acc[MR][MR / VW]) {
  const int8_t *low = digits + (size_t)steps * MR;
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < MR; j++) acc[i][j] = 0;
  for (int k = 0; k < steps; k++, digits += MR, low += MR, b += MR)
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < MR; j++) acc[i][j] += (256 * digits[i] + low[i]) * b[j];
}
