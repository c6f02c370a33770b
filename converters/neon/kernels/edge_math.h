/* Vector exp, GELU, tanh. */
#pragma once

/* exp(x), x clamped to [-87, 88]: range reduction by ln 2 in two parts and a polynomial of degree 5 (about 2 ulp). */
EDGE_INLINE vf edge_exp(vf x) {
  x = vf_clamp(x, -87.0f, 88.0f);
  vf power = vf_round(x * vf_splat(1.442695041f));
  vf rest = vf_fma(power, vf_splat(-0x1.62E400p-1f), x);
  rest = vf_fma(power, vf_splat(-0x1.7F7D1Cp-20f), rest);
  vf sum = vf_fma(vf_splat(0x1.0F9F9Cp-7f), rest, vf_splat(0x1.573A1Ap-5f));
  sum = vf_fma(sum, rest, vf_splat(0x1.555A80p-3f));
  sum = vf_fma(sum, rest, vf_splat(0x1.FFFDC6p-2f));
  sum = vf_fma(sum, rest, vf_splat(0x1.FFFFF6p-1f));
  sum = vf_fma(sum, rest, vf_splat(1.0f));
  return vf_scale2(sum, vf_to_int(power));
}

/* erf(x) after Abramowitz and Stegun 7.1.26: absolute error below 2e-7. */
EDGE_INLINE vf edge_erf(vf x) {
  vf size = vf_abs(x);
  vf t = vf_splat(1.0f) / vf_fma(size, vf_splat(0.3275911f), vf_splat(1.0f));
  vf sum = vf_fma(t, vf_splat(1.061405429f), vf_splat(-1.453152027f));
  sum = vf_fma(sum, t, vf_splat(1.421413741f));
  sum = vf_fma(sum, t, vf_splat(-0.284496736f));
  sum = vf_fma(sum, t, vf_splat(0.254829592f)) * t;
  vf value = vf_splat(1.0f) - sum * edge_exp(vf_splat(0.0f) - size * size);
  return vf_copysign(value, x);
}

EDGE_INLINE vf edge_gelu_of(vf x) {
  return vf_splat(0.5f) * x * (vf_splat(1.0f) + edge_erf(x * vf_splat(0.70710678f)));
}

/* 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3) */
EDGE_INLINE vf edge_gelu_tanh_of(vf x) {
  vf twice = x * vf_fma(x * x, vf_splat(2.0f * 0.7978845608f * 0.044715f), vf_splat(2.0f * 0.7978845608f));
  return x / (vf_splat(1.0f) + edge_exp(vf_splat(0.0f) - twice));
}

EDGE_INLINE vf edge_silu_of(vf x) { return x / (vf_splat(1.0f) + edge_exp(vf_splat(0.0f) - x)); }

EDGE_INLINE vf edge_relu_of(vf x) { return vf_max(x, vf_splat(0.0f)); }

EDGE_INLINE vf edge_tanh_of(vf x) {
  vf small = edge_exp(vf_splat(-2.0f) * vf_abs(x));
  return vf_copysign((vf_splat(1.0f) - small) / (vf_splat(1.0f) + small), x);
}

/* Each function over rows, alone or with each row quantized by its range, which has one part here: two more registers
 * beside the constants of GELU are too many. */
#define EDGE_ELEMENTWISE(NAME)                                                                                        \
  EDGE_INLINE void edge_##NAME##_rows(const float *x, int rows, int width, int stride, float *out, edge_quantized to, \
                                      const int quantized) {                                                          \
    for (int row = 0; row < rows; row++, x += stride, out += stride) {                                                \
      edge_range range = edge_range_of_zero();                                                                        \
      EDGE_BY_VECTORS(width, edge_put_made(out + at, edge_##NAME##_of(vf_load(x + at)), left,                         \
                                           quantized ? &range : NULL, 0));                                            \
      if (quantized) edge_quantize_row(out, width, &range, to, row);                                                  \
    }                                                                                                                 \
  }                                                                                                                   \
  EDGE_KERNEL void edge_##NAME(const float *x, int rows, int width, int stride, float *out) {                         \
    edge_##NAME##_rows(x, rows, width, stride, out, (edge_quantized){0}, 0);                                          \
  }                                                                                                                   \
  EDGE_KERNEL void edge_##NAME##_quantized(const float *x, int rows, int width, int stride, float *out,               \
                                           edge_quantized to) {                                                       \
    edge_##NAME##_rows(x, rows, width, stride, out, to, 1);                                                           \
  }
EDGE_ELEMENTWISE(gelu)
EDGE_ELEMENTWISE(gelu_tanh)
EDGE_ELEMENTWISE(relu)
EDGE_ELEMENTWISE(silu)
EDGE_ELEMENTWISE(tanh)
