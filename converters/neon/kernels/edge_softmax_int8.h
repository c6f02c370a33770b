/* Integer softmax: p = round(255 * 2^(c (score - largest))) in 8 bits, by integers alone, so that every kernel set gives
 * the same bits. The sum of a row's p divides its context later, which takes the rounding of large p out of the result.
 *
 * t = c (score - largest) has EDGE_FRACTION bits behind the point in int16; scores are shifted left by `shift` first where
 * c is so large that its multiplier would be above 1. The whole part of t, rounded, becomes a shift; the
 * rest g / 2, g in Q15, goes into 2^(g / 2) ~ 1 + 0.34664 g + 0.06055 g^2 + 0.00688 g^3 (minimax, error below 2e-4),
 * times 64 * 255. */
#pragma once

enum { EDGE_FRACTION = 10, EDGE_P0 = 16320, EDGE_P1 = 5657, EDGE_P2 = 988, EDGE_P3 = 112, EDGE_LEAST = -(1 << 30) };

#if defined(EDGE_NEON)
typedef struct {
  int32x4_t multiplier, shift;
  int16x8_t left, right, least, p0, p1, p2;
} edge_powers;

EDGE_INLINE edge_powers edge_powers_of(int32_t multiplier, int shift) {
  return (edge_powers){vdupq_n_s32(multiplier), vdupq_n_s32(shift), vdupq_n_s16(16 - EDGE_FRACTION),
                       vdupq_n_s16(-EDGE_FRACTION), vdupq_n_s16(-16 * (1 << EDGE_FRACTION)), vdupq_n_s16(EDGE_P0),
                       vdupq_n_s16(EDGE_P1), vdupq_n_s16(EDGE_P2)};
}

/* Eight p from differences to the largest score. */
EDGE_INLINE uint8x8_t edge_power(const edge_powers *c, int32x4_t low, int32x4_t high) {
  low = vqshlq_s32(low, c->shift);
  high = vqshlq_s32(high, c->shift);
  int16x8_t t = vqmovn_high_s32(vqmovn_s32(vqrdmulhq_s32(low, c->multiplier)), vqrdmulhq_s32(high, c->multiplier));
  t = vmaxq_s16(t, c->least); /* 2^-16 is 0, and a shift by more than 127 would wrap */
  int16x8_t g = vshlq_s16(t, c->left);
  int16x8_t value = vaddq_s16(vqrdmulhq_n_s16(g, EDGE_P3), c->p2);
  value = vaddq_s16(vqrdmulhq_s16(value, g), c->p1);
  value = vaddq_s16(vqrdmulhq_s16(value, g), c->p0);
  return vqrshrun_n_s16(vshlq_s16(value, vrshlq_s16(t, c->right)), 6);
}

/* `blocks` of [MR][KR] scores with the largest of each row -> p in the same layout, and their sums by row. */
EDGE_INLINE void edge_softmax_int8(const int32_t *scores, int blocks, const int32_t most[MR], int32_t multiplier,
                                   int shift, uint8_t *p, int32_t sums[MR]) {
  enum { VECTORS = KR / 4, HALVES = MR * KR / 32, PER = 16 / KR }; /* vectors of a row, and rows in 16 bytes */
  const edge_powers constants = edge_powers_of(multiplier, shift);
  int32x4_t largest[MR];
  uint32x4_t total[MR / PER];
  EDGE_UNROLL for (int i = 0; i < MR; i++) largest[i] = vdupq_n_s32(most[i]);
  EDGE_UNROLL for (int i = 0; i < MR / PER; i++) total[i] = vdupq_n_u32(0);
  for (; blocks; blocks--, scores += MR * KR, p += MR * KR)
    EDGE_UNROLL for (int half = 0; half < 2 * HALVES; half++) {
      int32x4_t apart[4];
      EDGE_UNROLL for (int v = 0; v < 4; v++)
        apart[v] = vsubq_s32(vld1q_s32(scores + 16 * half + 4 * v), largest[(4 * half + v) / VECTORS]);
      uint8x16_t bytes = vcombine_u8(edge_power(&constants, apart[0], apart[1]), edge_power(&constants, apart[2], apart[3]));
      vst1q_u8(p + 16 * half, bytes);
#if defined(EDGE_ISA_BASE)
      total[half] = vpadalq_u16(total[half], vpaddlq_u8(bytes));
#else
      total[half] = vdotq_u32(total[half], bytes, vdupq_n_u8(1));
#endif
    }
#if defined(EDGE_ISA_BASE)
  vst1q_s32(sums, vreinterpretq_s32_u32(vpaddq_u32(vpaddq_u32(total[0], total[1]), vpaddq_u32(total[2], total[3]))));
#else
  EDGE_UNROLL for (int i = 0; i < MR / PER; i++) vst1q_s32(sums + 4 * i, vreinterpretq_s32_u32(total[i]));
#endif
}

#else
EDGE_INLINE int32_t edge_high_product(int64_t a, int64_t b, int bits) { /* sqrdmulh */
  return (int32_t)((2 * a * b + ((int64_t)1 << (bits - 1))) >> bits);
}

EDGE_INLINE uint8_t edge_power(int32_t apart, int32_t multiplier, int shift) {
  enum { LEAST = -16 * (1 << EDGE_FRACTION) };
  int64_t shifted = (int64_t)apart * (1 << shift);
  int32_t t = edge_high_product(shifted < INT32_MIN ? INT32_MIN : shifted, multiplier, 32);
  t = t < LEAST ? LEAST : t;
  int32_t g = (int16_t)((uint32_t)t << (16 - EDGE_FRACTION)), whole = (t + (1 << (EDGE_FRACTION - 1))) >> EDGE_FRACTION;
  int32_t value = edge_high_product(g, EDGE_P3, 16) + EDGE_P2;
  value = edge_high_product(value, g, 16) + EDGE_P1;
  value = edge_high_product(value, g, 16) + EDGE_P0;
  value >>= -whole;
  value = (value + 32) >> 6;
  return (uint8_t)(value > 255 ? 255 : value);
}

EDGE_INLINE void edge_softmax_int8(const int32_t *scores, int blocks, const int32_t most[MR], int32_t multiplier,
                                   int shift, uint8_t *p, int32_t sums[MR]) {
  for (int i = 0; i < MR; i++) sums[i] = 0;
  for (int block = 0; block < blocks; block++)
    for (int i = 0; i < MR; i++)
      for (int lane = 0; lane < KR; lane++) {
        size_t at = ((size_t)block * MR + i) * KR + lane;
        p[at] = edge_power(scores[at] - most[i], multiplier, shift);
        sums[i] += p[at];
      }
}
#endif
