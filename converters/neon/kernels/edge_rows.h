/* Row-wise float kernels: embedding, patches, LayerNorm, pooling. Rows of `stride` floats, `width` of them used. */
#pragma once

/* Mean and 1 / deviation of a row, in two passes with four sums each. */
EDGE_INLINE void edge_statistics(const float *x, int width, float epsilon, float *mean, float *inverse) {
  vf total[4], square[4];
  EDGE_UNROLL for (int i = 0; i < 4; i++) total[i] = square[i] = vf_splat(0.0f);
  int at = 0;
  for (; at + 4 * VW <= width; at += 4 * VW)
    EDGE_UNROLL for (int i = 0; i < 4; i++) total[i] = total[i] + vf_load(x + at + i * VW);
  for (; at < width; at += VW) total[0] = total[0] + vf_load_upto(x + at, width - at, 0.0f);
  *mean = vf_sum((total[0] + total[1]) + (total[2] + total[3])) / (float)width;
  const vf middle = vf_splat(*mean);
  for (at = 0; at + 4 * VW <= width; at += 4 * VW)
    EDGE_UNROLL for (int i = 0; i < 4; i++) {
      vf apart = vf_load(x + at + i * VW) - middle;
      square[i] = vf_fma(apart, apart, square[i]);
    }
  for (; at < width; at += VW) {
    vf apart = vf_load_upto(x + at, width - at, *mean) - middle;
    square[0] = vf_fma(apart, apart, square[0]);
  }
  float sum = vf_sum((square[0] + square[1]) + (square[2] + square[3]));
  *inverse = 1.0f / sqrtf(sum / (float)width + epsilon);
}

EDGE_INLINE vf edge_normal(const float *x, vf mean, vf inverse, const float *weight, const float *bias, int left) {
  return vf_fma((vf_load(x) - mean) * inverse, vf_load_upto(weight, left, 0.0f), vf_load_upto(bias, left, 0.0f));
}

EDGE_INLINE void edge_layernorm_rows(const float *x, int rows, int width, int stride, const float *weight,
                                     const float *bias, float epsilon, float *out, edge_quantized to,
                                     const int quantized) {
  for (int row = 0; row < rows; row++, x += stride, out += stride) {
    float mean, inverse;
    edge_statistics(x, width, epsilon, &mean, &inverse);
    const vf middle = vf_splat(mean), factor = vf_splat(inverse);
    edge_range range = edge_range_of_zero();
    EDGE_BY_VECTORS(width, edge_put_made(out + at, edge_normal(x + at, middle, factor, weight + at, bias + at, left),
                                         left, quantized ? &range : NULL, part));
    if (quantized) edge_quantize_row(out, width, &range, to, row);
  }
}

EDGE_KERNEL void edge_layernorm(const float *x, int rows, int width, int stride, const float *weight, const float *bias,
                                float epsilon, float *out) {
  edge_layernorm_rows(x, rows, width, stride, weight, bias, epsilon, out, (edge_quantized){0}, 0);
}

EDGE_KERNEL void edge_layernorm_quantized(const float *x, int rows, int width, int stride, const float *weight,
                                          const float *bias, float epsilon, float *out, edge_quantized to) {
  edge_layernorm_rows(x, rows, width, stride, weight, bias, epsilon, out, to, 1);
}

/* LayerNorm into packed_a, quantized as edge_quantize does; also into `out` unless it is NULL. */
EDGE_KERNEL void edge_layernorm_packed(const float *x, int rows, int width, int stride, const float *weight,
                                       const float *bias, float epsilon, float *out, float scale, int zero,
                                       int8_t *packed, int k) {
  enum { GROUP = VW < 16 ? 16 / VW : 1 }; /* vectors of 16 columns */
  for (int row = 0; row < rows; row++, x += stride) {
    float mean, inverse;
    edge_statistics(x, width, epsilon, &mean, &inverse);
    const vf middle = vf_splat(mean), factor = vf_splat(inverse);
    int at = 0;
    for (; at + GROUP * VW <= width; at += GROUP * VW) {
      vf value[GROUP];
      EDGE_UNROLL for (int i = 0; i < GROUP; i++) {
        int column = at + i * VW;
        value[i] = (vf_load(x + column) - middle) * factor;
        value[i] = vf_fma(value[i], vf_load(weight + column), vf_load(bias + column));
        if (out) vf_store(out + (size_t)row * stride + column, value[i]);
        value[i] = value[i] * vf_splat(scale);
      }
      edge_put_row(packed, k, row, at, value, zero);
    }
    for (; at < width; at += VW) {
      vf value = edge_normal(x + at, middle, factor, weight + at, bias + at, width - at);
      if (out) vf_store(out + (size_t)row * stride + at, value);
      value = vf_clamp(vf_round(value * vf_splat(scale)) + vf_splat((float)zero), -128.0f, 127.0f);
      edge_put_packed(packed, k, row, at, vf_to_int(value));
    }
  }
}

/* out = x / sqrt(mean of squares + epsilon) * weight */
EDGE_INLINE void edge_rmsnorm_rows(const float *x, int rows, int width, int stride, const float *weight, float epsilon,
                                   float *out, edge_quantized to, const int quantized) {
  for (int row = 0; row < rows; row++, x += stride, out += stride) {
    vf square[4];
    EDGE_UNROLL for (int i = 0; i < 4; i++) square[i] = vf_splat(0.0f);
    EDGE_BY_VECTORS(width, const vf value = vf_load_upto(x + at, left, 0.0f);
                    square[part] = vf_fma(value, value, square[part]));
    const float sum = vf_sum((square[0] + square[1]) + (square[2] + square[3]));
    const vf inverse = vf_splat(1.0f / sqrtf(sum / (float)width + epsilon));
    edge_range range = edge_range_of_zero();
    EDGE_BY_VECTORS(width, edge_put_made(out + at, vf_load(x + at) * inverse * vf_load_upto(weight + at, left, 0.0f),
                                         left, quantized ? &range : NULL, part));
    if (quantized) edge_quantize_row(out, width, &range, to, row);
  }
}

EDGE_KERNEL void edge_rmsnorm(const float *x, int rows, int width, int stride, const float *weight, float epsilon,
                              float *out) {
  edge_rmsnorm_rows(x, rows, width, stride, weight, epsilon, out, (edge_quantized){0}, 0);
}

EDGE_KERNEL void edge_rmsnorm_quantized(const float *x, int rows, int width, int stride, const float *weight,
                                        float epsilon, float *out, edge_quantized to) {
  edge_rmsnorm_rows(x, rows, width, stride, weight, epsilon, out, to, 1);
}

/* Rotary positions: elements i and i + size / 2 of each head are turned by the angles of their row; cosine and sine are
 * [rows][size]. */
EDGE_KERNEL void edge_rotate(const float *x, int rows, int heads, int size, int stride, const float *cosine,
                             const float *sine, float *out) {
  const int half = size / 2;
  for (int row = 0; row < rows; row++, x += stride, out += stride, cosine += size, sine += size)
    for (int head = 0; head < heads; head++) {
      const float *first = x + head * size, *second = first + half;
      float *to = out + head * size;
      for (int at = 0; at < half; at += VW) {
        const int left = half - at;
        const vf a = vf_load_upto(first + at, left, 0.0f), b = vf_load_upto(second + at, left, 0.0f);
        const vf down = b * vf_load_upto(sine + at, left, 0.0f), up = a * vf_load_upto(sine + half + at, left, 0.0f);
        vf_store_upto(to + at, a * vf_load_upto(cosine + at, left, 0.0f) - down, left);
        vf_store_upto(to + half + at, b * vf_load_upto(cosine + half + at, left, 0.0f) + up, left);
      }
    }
}

EDGE_KERNEL void edge_multiply(const float *a, const float *b, int rows, int stride, float *out) {
  for (size_t at = 0; at < (size_t)rows * stride; at += VW) vf_store(out + at, vf_load(a + at) * vf_load(b + at));
}

EDGE_KERNEL void edge_add(const float *a, const float *b, int rows, int stride, float *out) {
  for (size_t at = 0; at < (size_t)rows * stride; at += VW) vf_store(out + at, vf_load(a + at) + vf_load(b + at));
}

/* A table of rows [width]: float (half precision in the set `half`); int8 with a scale for each row; or 4 bits, two
 * columns in a byte, the even one in its low half, with `groups` multipliers for each row too, one for 2^shift
 * columns. */
typedef struct {
  const void *values;
  const float *scale;         /* NULL: float */
  const uint8_t *multipliers; /* NULL: not 4 bits */
  int groups, shift;
} edge_lookup;

EDGE_INLINE float edge_entry(const edge_lookup *table, int64_t row, int width, int at) {
  const size_t place = (size_t)row * width + at;
#if defined(EDGE_ISA_HALF)
  if (!table->scale) return (float)((const edge_f16 *)table->values)[place];
#else
  if (!table->scale) return ((const float *)table->values)[place];
#endif
  if (!table->multipliers) return (float)((const int8_t *)table->values)[place] * table->scale[row];
  const int8_t both = ((const int8_t *)table->values)[(size_t)row * ((width + 1) / 2) + at / 2];
  const int value = at & 1 ? both >> 4 : (both & 15) - ((both & 8) << 1);
  return (float)(value * table->multipliers[(size_t)row * table->groups + (at >> table->shift)]) * table->scale[row];
}

/* out[r] = tokens[ids[r]] (+ positions[first + r], unless NULL) */
EDGE_KERNEL void edge_embed(const int64_t *ids, int rows, int width, const edge_lookup *tokens,
                            const edge_lookup *positions, int first, float *out, int stride) {
  for (int row = 0; row < rows; row++, out += stride)
    for (int at = 0; at < width; at++)
      out[at] = edge_entry(tokens, ids[row], width, at) +
                (positions ? edge_entry(positions, first + row, width, at) : 0.0f);
}

/* out[0] = cls + positions[0] (where there is a cls), then patches + positions */
EDGE_KERNEL void edge_add_positions(const float *patches, int count, int width, int stride, const float *cls,
                                    int first, const edge_lookup *positions, float *out) {
  for (int row = 0; row < count + first; row++) {
    const float *source = row < first ? cls + (size_t)row * width : patches + (size_t)(row - first) * stride;
    for (int at = 0; at < width; at++)
      out[(size_t)row * stride + at] = source[at] + edge_entry(positions, row, width, at);
  }
}

/* [channels, size, size] -> [(size / patch)^2, channels * patch * patch] */
EDGE_KERNEL void edge_patches(const float *pixels, int channels, int size, int patch, float *out, int stride) {
  for (int top = 0; top < size; top += patch)
    for (int left = 0; left < size; left += patch, out += stride)
      for (int channel = 0, at = 0; channel < channels; channel++)
        for (int row = 0; row < patch; row++, at += patch)
          memcpy(out + at, pixels + ((size_t)channel * size + top + row) * size + left, (size_t)patch * sizeof(float));
}

/* Copy rows between buffers of different strides (inputs and outputs have stride == width). */
EDGE_KERNEL void edge_copy(const float *x, int stride, int rows, int width, float *out, int out_stride) {
  for (int row = 0; row < rows; row++)
    memcpy(out + (size_t)row * out_stride, x + (size_t)row * stride, (size_t)width * sizeof(float));
}

/* The mean over the first `rows` rows. */
EDGE_KERNEL void edge_mean(const float *x, int rows, int width, int stride, float *out) {
  for (int at = 0; at < width; at += VW) {
    vf total = vf_splat(0.0f);
    for (int row = 0; row < rows; row++) total = total + vf_load(x + (size_t)row * stride + at);
    vf_store(out + at, total / vf_splat((float)rows));
  }
}
