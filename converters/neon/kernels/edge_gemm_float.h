/* fp32 linear layers: row_major activations x weight panels [k][NF]. */
#pragma once

#if defined(EDGE_NEON)
enum { MF = 8, FV = 2 };
#elif defined(EDGE_ISA_AVX512VNNI)
enum { MF = 8, FV = 2 };
#elif defined(EDGE_ISA_AVX2) || defined(EDGE_ISA_AVXVNNI)
enum { MF = 4, FV = 2 };
#else
enum { MF = 4, FV = 4 };
#endif
enum { NF = FV * VW };

#if defined(EDGE_NEON)
/* Whole tiles are assembly: 16 accumulators, 8 rows of A (4 products each, by lane) and 4 registers of B (two
 * products); 8 products are 128 fmla in 150 instructions. */
#define EDGE_FMLA_2(X, Y, C, D, A, L) \
  "fmla %" #X ".4s, v" #C ".4s, v" #A ".s[" #L "]\nfmla %" #Y ".4s, v" #D ".4s, v" #A ".s[" #L "]\n"
#define EDGE_FMLA_16(C, D, L)                                                                             \
  EDGE_FMLA_2(0, 1, C, D, 0, L) EDGE_FMLA_2(2, 3, C, D, 1, L) EDGE_FMLA_2(4, 5, C, D, 2, L)               \
      EDGE_FMLA_2(6, 7, C, D, 3, L) EDGE_FMLA_2(8, 9, C, D, 4, L) EDGE_FMLA_2(10, 11, C, D, 5, L)         \
          EDGE_FMLA_2(12, 13, C, D, 6, L) EDGE_FMLA_2(14, 15, C, D, 7, L)
#define EDGE_FMLA_64                                                                                      \
  "ld1 {v8.4s-v11.4s}, [x11], #64\n"                                                                      \
  "ldr q0, [x2], #16\nldr q1, [x3], #16\nldr q2, [x4], #16\nldr q3, [x5], #16\n"                          \
  "ldr q4, [x6], #16\nldr q5, [x7], #16\nldr q6, [x9], #16\nldr q7, [x10], #16\n" EDGE_FMLA_16(8, 9, 0) \
      EDGE_FMLA_16(10, 11, 1) "ld1 {v8.4s-v11.4s}, [x11], #64\n" EDGE_FMLA_16(8, 9, 2) EDGE_FMLA_16(10, 11, 3)
#define EDGE_FLOATS_2(I) "=&w"(acc[I][0]), "=&w"(acc[I][1])
#define EDGE_NO_4(X, Y, Z, W) \
  "movi %" #X ".4s, #0\nmovi %" #Y ".4s, #0\nmovi %" #Z ".4s, #0\nmovi %" #W ".4s, #0\n"

/* `fours`: k / 4. */
EDGE_INLINE void edge_tile_float_8x8(const float *a, size_t stride, const float *b, int fours, float32x4_t acc[8][2]) {
  __asm__("mov x2, %[a]\n"
          "add x3, %[a], %[stride]\n"
          "add x4, x3, %[stride]\n"
          "add x5, x4, %[stride]\n"
          "add x6, x5, %[stride]\n"
          "add x7, x6, %[stride]\n"
          "add x9, x7, %[stride]\n"
          "add x10, x9, %[stride]\n"
          "mov x11, %[b]\n"
          "subs w12, %w[fours], #2\n" EDGE_NO_4(0, 1, 2, 3) EDGE_NO_4(4, 5, 6, 7) EDGE_NO_4(8, 9, 10, 11)
          EDGE_NO_4(12, 13, 14, 15)
          "b.lt 2f\n"
          "1:\n" EDGE_FMLA_64 EDGE_FMLA_64
          "subs w12, w12, #2\n"
          "b.ge 1b\n"
          "2:\n"
          "tbz w12, #0, 3f\n" EDGE_FMLA_64
          "3:\n"
          : EDGE_FLOATS_2(0), EDGE_FLOATS_2(1), EDGE_FLOATS_2(2), EDGE_FLOATS_2(3), EDGE_FLOATS_2(4), EDGE_FLOATS_2(5),
            EDGE_FLOATS_2(6), EDGE_FLOATS_2(7)
          : [a] "r"(a), [b] "r"(b), [stride] "r"(stride * sizeof(float)), [fours] "r"(fours)
          : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "x2", "x3", "x4", "x5", "x6",
            "x7", "x9", "x10", "x11", "x12", "cc", "memory");
}
#endif

/* acc [rows][NF] = a [rows of `stride`][k] x b [k][NF]; `rows` is a constant, at most MF */
EDGE_INLINE void edge_tile_float(const float *a, size_t stride, const float *b, int k, const int rows,
                                 vf acc[MF][FV]) {
  int at = 0;
#if defined(EDGE_NEON)
  if (rows == 8) {
    edge_tile_float_8x8(a, stride, b, k / 4, acc);
    at = k / 4 * 4;
    b += (size_t)at * NF;
  } else
#endif
    EDGE_UNROLL for (int i = 0; i < rows; i++)
      EDGE_UNROLL for (int j = 0; j < FV; j++) acc[i][j] = vf_splat(0.0f);
#if defined(EDGE_NEON)
#define EDGE_LANE(L)                                                                                   \
  {                                                                                                    \
    vf column[FV];                                                                                     \
    EDGE_UNROLL for (int j = 0; j < FV; j++) column[j] = vf_load(b + L * NF + j * VW);                 \
    EDGE_UNROLL for (int i = 0; i < rows; i++)                                                           \
      EDGE_UNROLL for (int j = 0; j < FV; j++) acc[i][j] = vfmaq_laneq_f32(acc[i][j], column[j], row[i], L); \
  }
  for (; at + 4 <= k; at += 4, b += 4 * NF) {
    vf row[MF];
    size_t offset = (size_t)at * sizeof(float);
    __asm__("" : "+r"(offset)); /* one offset for all rows: else the compiler moves as many pointers */
    EDGE_UNROLL for (int i = 0; i < rows; i++)
      row[i] = vf_load((const float *)((const char *)(a + i * stride) + offset));
    EDGE_LANE(0) EDGE_LANE(1) EDGE_LANE(2) EDGE_LANE(3)
  }
#undef EDGE_LANE
#endif
  for (; at < k; at++, b += NF) {
    vf column[FV];
    EDGE_UNROLL for (int j = 0; j < FV; j++) column[j] = vf_load(b + j * VW);
    EDGE_UNROLL for (int i = 0; i < rows; i++) {
      vf row = vf_splat(a[i * stride + at]);
      EDGE_UNROLL for (int j = 0; j < FV; j++) acc[i][j] = vf_fma(row, column[j], acc[i][j]);
    }
  }
}

typedef struct {
  const float *weights; /* panels [n / NF][k][NF] */
  const float *bias;    /* [n] */
  int k;
  int n; /* padded outputs */
} edge_float;

/* out [rows, out_stride] = x W + bias (+ residual) */
EDGE_INLINE void edge_tile_linear(const edge_float *layer, const float *x, int stride, const float *residual,
                                  float *out, int out_stride, int m, int n, const int rows) {
  vf acc[MF][FV];
  edge_tile_float(x + (size_t)m * stride, stride, layer->weights + (size_t)n * layer->k, layer->k, rows, acc);
  EDGE_UNROLL for (int j = 0; j < FV; j++) {
    int column = n + j * VW;
    if (column >= out_stride) break;
    vf bias = vf_load(layer->bias + column);
    EDGE_UNROLL for (int i = 0; i < rows; i++) {
      size_t place = (size_t)(m + i) * out_stride + column;
      vf value = acc[i][j] + bias;
      if (residual) value = value + vf_load(residual + place);
      vf_store(out + place, value);
    }
  }
}

EDGE_KERNEL void edge_float_linear(const edge_float *layer, const float *x, int stride, int rows, const float *residual,
                                   float *out, int out_stride) {
  for (int n = 0; n < layer->n; n += NF)
    for (int m = 0; m < rows; m += MF) {
      if (rows - m > MF / 2) edge_tile_linear(layer, x, stride, residual, out, out_stride, m, n, MF);
      else if (rows - m > 1) edge_tile_linear(layer, x, stride, residual, out, out_stride, m, n, MF / 2);
      else edge_tile_linear(layer, x, stride, residual, out, out_stride, m, n, 1);
    }
}

/* Weight-only int8 (`w8`): out[r][n] = scale[n] * sum_k x[r][k] w[n][k] + bias[n]; weights row-major, rows of `k` bytes
 * padded to 16 with zeros; for the few rows after pooling. */
EDGE_KERNEL void edge_w8_linear(const int8_t *weights, const float *scale, const float *bias, int n, int columns, int k,
                                const float *x, int stride, int rows, float *out, int out_stride) {
  for (int row = 0; row < rows; row++)
    for (int output = 0; output < n; output++) {
      vf sum = vf_splat(0.0f);
      for (int at = 0; at < columns; at += VW)
        sum = vf_fma(vf_load_upto(x + (size_t)row * stride + at, columns - at, 0.0f),
                     vf_from_int8(weights + (size_t)output * k + at), sum);
      out[(size_t)row * out_stride + output] = vf_sum(sum) * scale[output] + bias[output];
    }
}
