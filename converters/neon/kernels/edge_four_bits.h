/* int8 panels from 4 bits: weight = multiplier * q, q from -8 to 7, a multiplier for each column and group of inputs.
 *
 * Two k-steps lie in the bytes of one, the first in the low halves: [k / KR / 2][NR][KR]. A panel is unpacked once and
 * serves all tiles of rows, out of the L1 cache; MR / 2 rows or less unpack in registers (edge_tail.h). */
#pragma once

#if defined(EDGE_ISA_DOTPROD)
typedef int8x16x3_t edge_vectors;
#define edge_load_vectors vld1q_s8_x3
#define edge_store_vectors vst1q_s8_x3
#elif defined(EDGE_NEON)
typedef int8x16x4_t edge_vectors;
#define edge_load_vectors vld1q_s8_x4
#define edge_store_vectors vst1q_s8_x4
#else
enum { EDGE_STEP_BYTES = NR * KR };
#endif

/* `pairs` of steps, `group` pairs for each row of multipliers [NR]; rows of multipliers may be read 16 bytes far. */
EDGE_KERNEL void edge_unpack(const int8_t *packed, const uint8_t *multipliers, int pairs, int group, int8_t *out) {
#if defined(EDGE_NEON)
  uint8x16_t places[EDGE_STEP_VECTORS]; /* the column of each byte */
  EDGE_UNROLL for (int i = 0; i < EDGE_STEP_VECTORS; i++) {
    uint8_t columns[16];
    EDGE_UNROLL for (int lane = 0; lane < 16; lane++) columns[lane] = (uint8_t)((16 * i + lane) / KR);
    places[i] = vld1q_u8(columns);
  }
  for (; pairs > 0; pairs -= group, multipliers += NR) {
    int8x16_t factors[EDGE_STEP_VECTORS];
    EDGE_UNROLL for (int i = 0; i < EDGE_STEP_VECTORS; i++)
      factors[i] = vreinterpretq_s8_u8(vqtbl1q_u8(vld1q_u8(multipliers), places[i]));
    for (int pair = pairs < group ? pairs : group; pair; pair--, packed += EDGE_STEP_BYTES) {
      edge_vectors both = edge_load_vectors(packed), low, high;
      EDGE_UNROLL for (int i = 0; i < EDGE_STEP_VECTORS; i++) {
        low.val[i] = vmulq_s8(vshrq_n_s8(vshlq_n_s8(both.val[i], 4), 4), factors[i]);
        high.val[i] = vmulq_s8(vshrq_n_s8(both.val[i], 4), factors[i]);
      }
      edge_store_vectors(out, low);
      edge_store_vectors(out + EDGE_STEP_BYTES, high);
      out += 2 * EDGE_STEP_BYTES;
    }
  }
#else
  for (int pair = 0; pair < pairs; pair++, packed += EDGE_STEP_BYTES, out += 2 * EDGE_STEP_BYTES) {
    const uint8_t *factors = multipliers + (size_t)(pair / group) * NR;
    for (int i = 0; i < EDGE_STEP_BYTES; i++) {
      int low = (packed[i] & 15) - ((packed[i] & 8) << 1);
      out[i] = (int8_t)(low * factors[i / KR]);
      out[EDGE_STEP_BYTES + i] = (int8_t)((packed[i] >> 4) * factors[i / KR]);
    }
  }
#endif
}
