/* Block-sparse tiles for ARMv8.0: the inner loop of edge_tile_base.h, with A by a list of strides. */
#pragma once

#define EDGE_BLOCK_4x4(STRIDE) \
  "ld1 {v0.16b-v3.16b}, [x9], " STRIDE "\nld1 {v4.16b-v7.16b}, [x10], #64\n" EDGE_PRODUCTS_4x4

EDGE_INLINE void edge_blocks_4x4(const int8_t *a, const int8_t *b, const int32_t *strides, int steps,
                                 int32x4_t sum[4][4]) {
  __asm__("mov x9, %[a]\n"
          "mov x10, %[b]\n"
          "mov x13, %[strides]\n"
          "subs w11, %w[steps], #2\n" EDGE_ZERO_4(0, 1, 2, 3) EDGE_ZERO_4(4, 5, 6, 7) EDGE_ZERO_4(8, 9, 10, 11)
          EDGE_ZERO_4(12, 13, 14, 15)
          "b.lt 2f\n"
          "1:\n"
          "ldp w12, w14, [x13], #8\n" EDGE_BLOCK_4x4("x12") EDGE_BLOCK_4x4("x14")
          "subs w11, w11, #2\n"
          "b.ge 1b\n"
          "2:\n"
          "tbz w11, #0, 3f\n"
          "mov x12, xzr\n" EDGE_BLOCK_4x4("x12")
          "3:\n"
          : EDGE_OUT_4(0), EDGE_OUT_4(1), EDGE_OUT_4(2), EDGE_OUT_4(3)
          : [a] "r"(a), [b] "r"(b), [strides] "r"(strides), [steps] "r"(steps)
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "x9", "x10", "x11", "x12", "x13",
            "x14", "cc", "memory");
}

/* acc [rows][4] = start [4] + a b over `steps` blocks of b; `rows` is 4, 2 or 1. */
EDGE_INLINE void edge_tile_blocks(const int8_t *a, const int8_t *b, const int32_t *strides, int steps, const int rows,
                                  const int32_t *start, vi acc[MR][NR / VW]) {
  if (rows < MR) {
    edge_tail_blocks(a, b, strides, steps, rows, start, acc);
    return;
  }
  int32x4_t sum[4][4];
  edge_blocks_4x4(a, b, strides, steps, sum);
  edge_add_up(MR, start, sum, acc);
}
