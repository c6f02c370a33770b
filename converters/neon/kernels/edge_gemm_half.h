/* Half-precision linear layers (ARMv8.2 with fp16): packed activations x weight panels, sums widened to float.
 *
 * Layouts. packed_half: panels of 8 rows, each [k / 8][8 rows][8]; k is padded to 16 with zeros. Weights: panels of 16
 * columns, each [k][16]. An fmla makes 8 products, twice those of float, but adds in half precision: after each
 * EDGE_HALF_BLOCK products the sums go into floats, which keeps their error near that of rounding the weights.
 *
 * Whole tiles are assembly: 16 sums, 8 rows of A (8 products each, by lane) and 8 registers of B (four products); 8
 * products are 128 fmla in 136 instructions, 16 MAC a cycle on Neoverse N1 (llvm-mca). */
#pragma once

enum { MH = 8, NH = 16, KH = 8, EDGE_HALF_BLOCK = 128 };
typedef __fp16 edge_f16;

#define EDGE_HALF_2(X, Y, C, D, A, L) \
  "fmla %" #X ".8h, v" #C ".8h, v" #A ".h[" #L "]\nfmla %" #Y ".8h, v" #D ".8h, v" #A ".h[" #L "]\n"
#define EDGE_HALF_16(C, D, L)                                                                             \
  EDGE_HALF_2(0, 1, C, D, 0, L) EDGE_HALF_2(2, 3, C, D, 1, L) EDGE_HALF_2(4, 5, C, D, 2, L)               \
      EDGE_HALF_2(6, 7, C, D, 3, L) EDGE_HALF_2(8, 9, C, D, 4, L) EDGE_HALF_2(10, 11, C, D, 5, L)         \
          EDGE_HALF_2(12, 13, C, D, 6, L) EDGE_HALF_2(14, 15, C, D, 7, L)
#define EDGE_HALF_64(K, L, M, N)                                                                          \
  "ld1 {v8.8h-v11.8h}, [x10], #64\nld1 {v12.8h-v15.8h}, [x10], #64\n"                                     \
  EDGE_HALF_16(8, 9, K) EDGE_HALF_16(10, 11, L) EDGE_HALF_16(12, 13, M) EDGE_HALF_16(14, 15, N)
#define EDGE_HALVES_2(I) "=&w"(acc[I][0]), "=&w"(acc[I][1])
#define EDGE_NO_HALVES(X, Y, Z, W) \
  "movi %" #X ".8h, #0\nmovi %" #Y ".8h, #0\nmovi %" #Z ".8h, #0\nmovi %" #W ".8h, #0\n"

/* `eights`: k / 8 */
EDGE_INLINE void edge_tile_half_8x16(const edge_f16 *a, const edge_f16 *b, int eights, float16x8_t acc[8][2]) {
  __asm__("mov x9, %[a]\n"
          "mov x10, %[b]\n"
          "mov w11, %w[eights]\n" EDGE_NO_HALVES(0, 1, 2, 3) EDGE_NO_HALVES(4, 5, 6, 7) EDGE_NO_HALVES(8, 9, 10, 11)
          EDGE_NO_HALVES(12, 13, 14, 15)
          "1:\n"
          "ld1 {v0.8h-v3.8h}, [x9], #64\nld1 {v4.8h-v7.8h}, [x9], #64\n" EDGE_HALF_64(0, 1, 2, 3)
          EDGE_HALF_64(4, 5, 6, 7)
          "subs w11, w11, #1\n"
          "b.gt 1b\n"
          : EDGE_HALVES_2(0), EDGE_HALVES_2(1), EDGE_HALVES_2(2), EDGE_HALVES_2(3), EDGE_HALVES_2(4), EDGE_HALVES_2(5),
            EDGE_HALVES_2(6), EDGE_HALVES_2(7)
          : [a] "r"(a), [b] "r"(b), [eights] "r"(eights)
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "x9",
            "x10", "x11", "cc", "memory");
}

#define EDGE_HALF_LANE(L)                                                                              \
  {                                                                                                    \
    const float16x8_t left = vld1q_f16(b + L * NH), right = vld1q_f16(b + L * NH + 8);                 \
    EDGE_UNROLL for (int i = 0; i < rows; i++) {                                                       \
      acc[i][0] = vfmaq_laneq_f16(acc[i][0], left, row[i], L);                                         \
      acc[i][1] = vfmaq_laneq_f16(acc[i][1], right, row[i], L);                                        \
    }                                                                                                  \
  }

/* acc [rows][16] = a b, both of `eights` times 8 products; `rows`, a constant, is 8, 4 or 1. */
EDGE_INLINE void edge_tile_half(const edge_f16 *a, const edge_f16 *b, int eights, const int rows,
                                float16x8_t acc[MH][2]) {
  if (rows == MH) {
    edge_tile_half_8x16(a, b, eights, acc);
    return;
  }
  EDGE_UNROLL for (int i = 0; i < rows; i++) acc[i][0] = acc[i][1] = vdupq_n_f16(0);
  for (; eights; eights--, a += MH * KH, b += KH * NH) {
    float16x8_t row[MH];
    EDGE_UNROLL for (int i = 0; i < rows; i++) row[i] = vld1q_f16(a + i * KH);
    EDGE_HALF_LANE(0) EDGE_HALF_LANE(1) EDGE_HALF_LANE(2) EDGE_HALF_LANE(3)
    EDGE_HALF_LANE(4) EDGE_HALF_LANE(5) EDGE_HALF_LANE(6) EDGE_HALF_LANE(7)
  }
}

typedef struct {
  const edge_f16 *weights; /* panels [n / NH][k][NH] */
  const float *bias;       /* [n] */
  int k, n;                /* padded to 16 */
} edge_half;

/* out [rows, out_stride] = x W + bias (+ residual) */
EDGE_INLINE void edge_tile_half_linear(const edge_half *layer, const edge_f16 *x, const float *residual, float *out,
                                       int out_stride, int m, int n, const int rows) {
  const edge_f16 *a = x + (size_t)m * layer->k, *b = layer->weights + (size_t)n * layer->k;
  vf total[MH][4];
  EDGE_UNROLL for (int j = 0; j < 4; j++) {
    const vf bias = vf_load(layer->bias + n + j * VW);
    EDGE_UNROLL for (int i = 0; i < rows; i++) total[i][j] = bias;
  }
  for (int left = layer->k; left > 0; left -= EDGE_HALF_BLOCK, a += EDGE_HALF_BLOCK * MH, b += EDGE_HALF_BLOCK * NH) {
    const int depth = left < EDGE_HALF_BLOCK ? left : EDGE_HALF_BLOCK;
    float16x8_t acc[MH][2];
    edge_tile_half(a, b, depth / KH, rows, acc);
    EDGE_UNROLL for (int i = 0; i < rows; i++)
      EDGE_UNROLL for (int j = 0; j < 2; j++) {
        total[i][2 * j] = total[i][2 * j] + vcvt_f32_f16(vget_low_f16(acc[i][j]));
        total[i][2 * j + 1] = total[i][2 * j + 1] + vcvt_high_f32_f16(acc[i][j]);
      }
  }
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < 4; j++) {
      const size_t place = (size_t)(m + i) * out_stride + n + j * VW;
      vf_store(out + place, residual ? total[i][j] + vf_load(residual + place) : total[i][j]);
    }
}

/* `x` is packed_half, `out_stride` is layer->n. */
EDGE_KERNEL void edge_half_linear(const edge_half *layer, const edge_f16 *x, int rows, const float *residual,
                                  float *out, int out_stride) {
  for (int n = 0; n < layer->n; n += NH)
    for (int m = 0; m < rows; m += MH) {
      if (rows - m > MH / 2) edge_tile_half_linear(layer, x, residual, out, out_stride, m, n, MH);
      else if (rows - m > 1) edge_tile_half_linear(layer, x, residual, out, out_stride, m, n, MH / 2);
      else edge_tile_half_linear(layer, x, residual, out, out_stride, m, n, 1);
    }
}

/* Float rows into packed_half with `k` columns. */
EDGE_KERNEL void edge_halve(const float *x, int stride, int rows, int columns, edge_f16 *out, int k) {
  for (int row = 0; row < rows; row++, x += stride) {
    edge_f16 *to = out + (size_t)(row / MH) * MH * k + (row % MH) * KH;
    int at = 0;
    for (; at + KH <= columns; at += KH, to += MH * KH)
      vst1q_f16(to, vcvt_high_f16_f32(vcvt_f16_f32(vf_load(x + at)), vf_load(x + at + VW)));
    for (; at < k; at += KH, to += MH * KH) {
      const vf left = vf_load_upto(x + at, columns - at, 0.0f);
      const vf right = vf_load_upto(x + at + VW, columns - at - VW, 0.0f);
      vst1q_f16(to, vcvt_high_f16_f32(vcvt_f16_f32(left), right));
    }
  }
}
