/* fp32 linear layers: row_major activations x weight panels [k][NF]. */
#pragma once

#if defined(EDGE_ISA_BASE) || defined(EDGE_ISA_DOTPROD)
enum { MF = 8, FV = 2 };
#elif defined(EDGE_ISA_AVX512VNNI)
enum { MF = 8, FV = 2 };
#elif defined(EDGE_ISA_AVX2)
enum { MF = 4, FV = 2 };
#else
enum { MF = 4, FV = 4 };
#endif
enum { NF = FV * VW };

/* acc [rows][NF] = a [rows of `stride`][k] x b [k][NF]; `rows` is a constant, at most MF */
EDGE_INLINE void edge_tile_float(const float *a, size_t stride, const float *b, int k, const int rows,
                                 vf acc[MF][FV]) {
  EDGE_UNROLL for (int i = 0; i < rows; i++)
    EDGE_UNROLL for (int j = 0; j < FV; j++) acc[i][j] = vf_splat(0.0f);
  int at = 0;
#if defined(EDGE_ISA_BASE) || defined(EDGE_ISA_DOTPROD)
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
