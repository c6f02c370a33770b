/* Block-sparse tiles for the dot product: the inner loop of edge_tile_dotprod.h, with A by a list of strides. A pair of
 * strides is one load, and ld1 adds them to the address itself: 8 steps are 192 sdot in 214 instructions. */
#pragma once

#define EDGE_BLOCK_PAIR                                                                 \
  "ldp w12, w14, [x13], #8\nld1 {v0.16b-v1.16b}, [%[a]], x12\n" EDGE_SDOT_24(0, 1)        \
  "ld1 {v2.16b-v3.16b}, [%[a]], x14\n" EDGE_SDOT_24(2, 3)

EDGE_INLINE void edge_blocks_8x12(const int8_t *a, const int8_t *b, const int32_t *strides, int steps,
                                  const int32_t *start, int32x4_t acc[8][3]) {
  EDGE_ROWS_24
  __asm__("mov x10, %[b]\n"
          "mov x13, %[strides]\n"
          "mov x11, %[start]\n" EDGE_START_24
          "subs w11, %w[steps], #8\n"
          "b.lt 2f\n"
          "1:\n"
          EDGE_BLOCK_PAIR EDGE_BLOCK_PAIR EDGE_BLOCK_PAIR EDGE_BLOCK_PAIR
          "subs w11, w11, #8\n"
          "b.ge 1b\n"
          "2:\n" /* the low bits of w11 are those of the steps that are left */
          "tbz w11, #2, 3f\n"
          EDGE_BLOCK_PAIR EDGE_BLOCK_PAIR
          "3:\n"
          "tbz w11, #1, 4f\n"
          EDGE_BLOCK_PAIR
          "4:\n"
          "tbz w11, #0, 5f\n"
          "ld1 {v0.16b-v1.16b}, [%[a]]\n" EDGE_SDOT_24(0, 1)
          "5:\n"
          : EDGE_OUT_24, [a] "+r"(a)
          : [b] "r"(b), [strides] "r"(strides), [steps] "r"(steps), [start] "r"(start)
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "x10", "x11", "x12", "x13", "x14", "cc", "memory");
  EDGE_PUT_24
}

/* acc [rows][12] = start + a b over `steps` blocks of b; `rows` and `start` as for edge_tile. */
EDGE_INLINE void edge_tile_blocks(const int8_t *a, const int8_t *b, const int32_t *strides, int steps, const int rows,
                                  const int32_t *start, vi acc[MR][NR / VW]) {
  if (rows == MR) edge_blocks_8x12(a, b, strides, steps, start, acc);
  else edge_tail_blocks(a, b, strides, steps, rows, start, acc);
}
