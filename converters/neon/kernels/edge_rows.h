/* Row-wise float kernels: embedding, patches, LayerNorm, pooling. Rows of `stride` floats, `width` of them used. */
#pragma once

EDGE_KERNEL void edge_layernorm(const float *x, int rows, int width, int stride, const float *weight, const float *bias,
                                float epsilon, float *out) {
  for (int row = 0; row < rows; row++, x += stride, out += stride) {
    vf total = vf_splat(0.0f);
    for (int at = 0; at < width; at += VW) total = total + vf_load_upto(x + at, width - at, 0.0f);
    float mean = vf_sum(total) / (float)width;
    vf square = vf_splat(0.0f);
    for (int at = 0; at < width; at += VW) {
      vf apart = vf_load_upto(x + at, width - at, mean) - vf_splat(mean);
      square = vf_fma(apart, apart, square);
    }
    float inverse = 1.0f / sqrtf(vf_sum(square) / (float)width + epsilon);
    for (int at = 0; at < width; at += VW) {
      vf value = (vf_load(x + at) - vf_splat(mean)) * vf_splat(inverse);
      int left = width - at;
      value = vf_fma(value, vf_load_upto(weight + at, left, 0.0f), vf_load_upto(bias + at, left, 0.0f));
      vf_store(out + at, value);
    }
  }
}

EDGE_KERNEL void edge_add(const float *a, const float *b, int rows, int stride, float *out) {
  for (size_t at = 0; at < (size_t)rows * stride; at += VW) vf_store(out + at, vf_load(a + at) + vf_load(b + at));
}

/* One row of a table that is float (scale == NULL) or int8 with a scale for each row. */
EDGE_INLINE float edge_entry(const void *table, const float *scale, int64_t row, int width, int at) {
  size_t place = (size_t)row * width + at;
  return scale ? (float)((const int8_t *)table)[place] * scale[row] : ((const float *)table)[place];
}

/* out[r] = tokens[ids[r]] (+ positions[r], unless NULL) */
EDGE_KERNEL void edge_embed(const int64_t *ids, int rows, int width, const void *tokens, const float *token_scale,
                            const void *positions, const float *position_scale, float *out, int stride) {
  for (int row = 0; row < rows; row++, out += stride)
    for (int at = 0; at < width; at++)
      out[at] = edge_entry(tokens, token_scale, ids[row], width, at) +
                (positions ? edge_entry(positions, position_scale, row, width, at) : 0.0f);
}

/* out[0] = cls + positions[0] (where there is a cls), then patches + positions */
EDGE_KERNEL void edge_add_positions(const float *patches, int count, int width, int stride, const float *cls,
                                    int first, const void *positions, const float *position_scale, float *out) {
  for (int row = 0; row < count + first; row++) {
    const float *source = row < first ? cls + (size_t)row * width : patches + (size_t)(row - first) * stride;
    for (int at = 0; at < width; at++)
      out[(size_t)row * stride + at] = source[at] + edge_entry(positions, position_scale, row, width, at);
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
