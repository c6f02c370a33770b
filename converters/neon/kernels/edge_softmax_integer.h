/* Integer softmax: p = about first * 2^(c (score - largest)) in up to 15 bits, by integers alone, so that every kernel
 * set gives the same bits. The sum of a row's p divides its context later, which takes the rounding of large p out of
 * the result. 8 bits would not do: heads that rest on one token, whose value is small, are read through the others' p,
 * far below 1/255 of the largest.
 *
 * p goes out as two signed digits, p = 256 high + low with low from -128 to 127, for tiles of int8 products.
 *
 * t = c (score - largest) has EDGE_FRACTION bits behind the point in int16, which saturates: 2^-16 and less are 0.
 * Where c is so large that its multiplier would be above 1, differences of 16 bits reach so far, and are shifted left
 * by `shift` before they are multiplied. The whole part of t, rounded, becomes a shift; the rest g / 2, g in Q15, goes
 * into 2^(g / 2) ~ 1 + 0.34666 g + 0.06066 g^2 + 0.00690 g^3 (minimax, error below 1e-4), times `first`, at most 23160
 * so that 2^(1 / 2) first fits. */
#pragma once

enum { EDGE_FRACTION = 10, EDGE_LEAST = -(1 << 30) };

typedef struct {
  int32_t multiplier; /* of differences, Q31; Q15 and 16 zeros where there is a shift */
  int32_t shift;
  int16_t power[4];   /* `first` and the other factors of the polynomial */
} edge_exponents;

#if defined(EDGE_NEON)
typedef struct {
  int32x4_t wide;
  int16x8_t narrow, shift, first, second, third;
  int16_t fourth;
} edge_powers;

EDGE_INLINE edge_powers edge_powers_of(const edge_exponents *softmax) {
  return (edge_powers){vdupq_n_s32(softmax->multiplier), vdupq_n_s16((int16_t)(softmax->multiplier >> 16)),
                       vdupq_n_s16((int16_t)softmax->shift), vdupq_n_s16(softmax->power[0]),
                       vdupq_n_s16(softmax->power[1]), vdupq_n_s16(softmax->power[2]), softmax->power[3]};
}

/* Eight p from differences to the largest score; `shifted`, a constant, says that there is a shift. */
EDGE_INLINE int16x8_t edge_power(const edge_powers *c, int32x4_t low, int32x4_t high, const int shifted) {
  int16x8_t t;
  if (shifted) {
    t = vqrdmulhq_s16(vqshlq_s16(vqmovn_high_s32(vqmovn_s32(low), high), c->shift), c->narrow);
  } else {
    t = vqmovn_high_s32(vqmovn_s32(vqrdmulhq_s32(low, c->wide)), vqrdmulhq_s32(high, c->wide));
  }
  int16x8_t g = vshlq_n_s16(t, 16 - EDGE_FRACTION);
  int16x8_t value = vaddq_s16(vqrdmulhq_n_s16(g, c->fourth), c->third);
  value = vaddq_s16(vqrdmulhq_s16(value, g), c->second);
  value = vaddq_s16(vqrdmulhq_s16(value, g), c->first);
  return vrshlq_s16(value, vrshrq_n_s16(t, EDGE_FRACTION));
}

/* `blocks` of [MR][KR] scores with the largest of each row -> high digits of p in the same layout, low digits behind
 * them, and the sums of p by row. */
EDGE_INLINE void edge_softmax_blocks(const edge_exponents *softmax, const int32_t *scores, int blocks,
                                     const int32_t most[MR], int8_t *p, int32_t sums[MR], const int shifted) {
  enum { VECTORS = KR / 4, GROUPS = MR * KR / 16 }; /* vectors of a row; groups of 16 p, 16 / KR rows each */
  const edge_powers constants = edge_powers_of(softmax);
  const int8x16_t one = vdupq_n_s8(1);
  const size_t low = (size_t)blocks * MR * KR;
  int32x4_t largest[MR], total[GROUPS], rest[GROUPS];
  EDGE_UNROLL for (int i = 0; i < MR; i++) largest[i] = vdupq_n_s32(most[i]);
  EDGE_UNROLL for (int i = 0; i < GROUPS; i++) total[i] = rest[i] = vdupq_n_s32(0);
  for (; blocks; blocks--, scores += MR * KR, p += MR * KR)
    EDGE_UNROLL for (int group = 0; group < GROUPS; group++) {
      int32x4_t apart[4];
      EDGE_UNROLL for (int v = 0; v < 4; v++)
        apart[v] = vsubq_s32(vld1q_s32(scores + 16 * group + 4 * v), largest[(4 * group + v) / VECTORS]);
      int16x8_t first = edge_power(&constants, apart[0], apart[1], shifted);
      int16x8_t second = edge_power(&constants, apart[2], apart[3], shifted);
      int8x16_t highs = vrshrn_high_n_s16(vrshrn_n_s16(first, 8), second, 8);
      int8x16_t lows = vuzp1q_s8(vreinterpretq_s8_s16(first), vreinterpretq_s8_s16(second));
      vst1q_s8(p + 16 * group, highs);
      vst1q_s8(p + low + 16 * group, lows);
      total[group] = vdotq_s32(total[group], highs, one);
      rest[group] = vdotq_s32(rest[group], lows, one);
    }
  int32x4_t sum[GROUPS]; /* 4 / VECTORS rows each */
  EDGE_UNROLL for (int i = 0; i < GROUPS; i++) sum[i] = vmlaq_n_s32(rest[i], total[i], 256);
  if (VECTORS == 2) /* i8mm: two lanes are one row */
    EDGE_UNROLL for (int i = 0; i < GROUPS; i += 2) sum[i / 2] = vpaddq_s32(sum[i], sum[i + 1]);
  EDGE_UNROLL for (int i = 0; i < MR / 4; i++) vst1q_s32(sums + 4 * i, sum[i]);
}

EDGE_INLINE void edge_softmax_rows(const edge_exponents *softmax, const int32_t *scores, int blocks,
                                   const int32_t most[MR], int8_t *p, int32_t sums[MR]) {
  if (softmax->shift) edge_softmax_blocks(softmax, scores, blocks, most, p, sums, 1);
  else edge_softmax_blocks(softmax, scores, blocks, most, p, sums, 0);
}

#elif !defined(EDGE_ISA_AVX512VNNI) /* edge_attention_avx512.h has its own */
EDGE_INLINE int32_t edge_high_product(int64_t a, int64_t b, int bits) { /* sqrdmulh */
  return (int32_t)((2 * a * b + ((int64_t)1 << (bits - 1))) >> bits);
}

EDGE_INLINE int32_t edge_short(int64_t x) { return x < INT16_MIN ? INT16_MIN : (int32_t)x; } /* x <= 0: saturates */

EDGE_INLINE int32_t edge_power(const edge_exponents *softmax, int32_t apart) {
  int64_t shifted = (int64_t)edge_short(apart) * (1 << softmax->shift);
  int32_t t = softmax->shift ? edge_high_product(edge_short(shifted), softmax->multiplier >> 16, 16)
                             : edge_short(edge_high_product(apart, softmax->multiplier, 32));
  int32_t g = (int16_t)((uint32_t)t << (16 - EDGE_FRACTION)), whole = (t + (1 << (EDGE_FRACTION - 1))) >> EDGE_FRACTION;
  int32_t value = softmax->power[3];
  for (int i = 2; i >= 0; i--) value = edge_high_product(value, g, 16) + softmax->power[i];
  return whole ? (int32_t)((value + ((int64_t)1 << (-whole - 1))) >> -whole) : value;
}

EDGE_INLINE void edge_softmax_rows(const edge_exponents *softmax, const int32_t *scores, int blocks,
                                   const int32_t most[MR], int8_t *p, int32_t sums[MR]) {
  int8_t *low = p + (size_t)blocks * MR * KR;
  for (int i = 0; i < MR; i++) sums[i] = 0;
  for (int block = 0; block < blocks; block++)
    for (int i = 0; i < MR; i++)
      for (int lane = 0; lane < KR; lane++) {
        size_t at = ((size_t)block * MR + i) * KR + lane;
        int32_t value = edge_power(softmax, scores[at] - most[i]);
        p[at] = (int8_t)((value + 128) >> 8);
        low[at] = (int8_t)value;
        sums[i] += value;
      }
}
#endif
