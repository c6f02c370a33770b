/* Block-sparse tiles for i8mm: the inner loop of edge_tile_i8mm.h, with A by a list of strides. A pair of strides is
 * one load, and ld1 adds them to the address itself: 4 steps are 64 smmla in 76 instructions. */
#pragma once

#define EDGE_BLOCK_PAIR                                                             \
  "ldp w12, w14, [x13], #8\nld1 {v0.16b-v3.16b}, [x9], x12\n" EDGE_SMMLA_16          \
  "ld1 {v0.16b-v3.16b}, [x9], x14\n" EDGE_SMMLA_16

EDGE_INLINE void edge_blocks_8x8(const int8_t *a, const int8_t *b, const int32_t *strides, int steps,
                                 const int32_t *start, int32x4_t block[4][4]) {
  __asm__("mov x9, %[a]\n"
          "mov x10, %[b]\n"
          "mov x13, %[strides]\n"
          "subs w11, %w[steps], #4\n" EDGE_START_16
          "b.lt 2f\n"
          "1:\n" EDGE_BLOCK_PAIR EDGE_BLOCK_PAIR
          "subs w11, w11, #4\n"
          "b.ge 1b\n"
          "2:\n" /* the low bits of w11 are those of the steps that are left */
          "tbz w11, #1, 3f\n" EDGE_BLOCK_PAIR
          "3:\n"
          "tbz w11, #0, 4f\n"
          "ld1 {v0.16b-v3.16b}, [x9]\n" EDGE_SMMLA_16
          "4:\n"
          : EDGE_OUT_16
          : [a] "r"(a), [b] "r"(b), [strides] "r"(strides), [steps] "r"(steps), [start] "r"(start)
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "x9", "x10", "x11", "x12", "x13", "x14", "cc", "memory");
}

/* acc [rows][8] = start [8] + a b over `steps` blocks of b; `rows` is 8, 4 or 1. */
EDGE_INLINE void edge_tile_blocks(const int8_t *a, const int8_t *b, const int32_t *strides, int steps, const int rows,
                                  const int32_t *start, vi acc[MR][NR / VW]) {
  if (rows < MR) {
    edge_tail_blocks(a, b, strides, steps, rows, start, acc);
    return;
  }
  int32x4_t block[4][4];
  edge_blocks_8x8(a, b, strides, steps, start, block);
  edge_rows_of(block, MR, acc);
}
