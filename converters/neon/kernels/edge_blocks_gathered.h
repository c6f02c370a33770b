/* Block-sparse tiles for kernel sets without a loop of their own: the k-steps of A that meet blocks are gathered side
 * by side, and the dense tile multiplies them. Lists are a multiple of EDGE_DENSE_STEPS long, as its K is. */
#pragma once
enum { EDGE_DENSE_STEPS = 16 / KR, EDGE_GATHERED = 64 };

/* acc [rows][NR] = start [NR] + a b over `steps` blocks of b. */
EDGE_INLINE void edge_tile_blocks(const int8_t *a, const int8_t *b, const int32_t *strides, int steps, const int rows,
                                  const int32_t *start, vi acc[MR][NR / VW]) {
  static const int32_t zeros[NR];
  _Alignas(64) int8_t gathered[EDGE_GATHERED * MR * KR];
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < NR / VW; j++) acc[i][j] = vi_load(start + j * VW);
  for (int done = 0; done < steps; done += EDGE_GATHERED) {
    const int count = steps - done < EDGE_GATHERED ? steps - done : EDGE_GATHERED;
    for (int step = 0; step < count; a += strides[done + step], step++)
      memcpy(gathered + step * MR * KR, a, MR * KR);
    vi part[MR][NR / VW];
    edge_tile(gathered, b + (size_t)done * NR * KR, count, rows, zeros, part);
    EDGE_UNROLL for (int i = 0; i < rows; i++)
      EDGE_UNROLL for (int j = 0; j < NR / VW; j++) acc[i][j] = acc[i][j] + part[i][j];
  }
}
