/* Float attention, head by head: scores and softmax for MF queries at a time, so that they stay in the L1 cache. */
#pragma once

/* exp(x - max) of `count` values in place (padded up to VW with zeros); returns their sum. */
EDGE_INLINE float edge_softmax_row(float *x, int count, float scale) {
  int whole = (count + VW - 1) / VW * VW;
  for (int at = count; at < whole; at++) x[at] = -INFINITY;
  vf most = vf_load(x);
  for (int at = VW; at < whole; at += VW) most = vf_max(most, vf_load(x + at));
  vf shift = vf_splat(-scale * vf_hmax(most));
  vf total = vf_splat(0.0f);
  for (int at = 0; at < whole; at += VW) {
    vf value = edge_exp(vf_fma(vf_load(x + at), vf_splat(scale), shift));
    vf_store(x + at, value);
    total = total + value;
  }
  return vf_sum(total);
}

/* out[:, h * size ...] = softmax(q k^T * scale) v for each head h. q, k, v: rows of their strides; query head h uses
 * key/value head h / group; only the first `keys` rows are attended to. */
EDGE_KERNEL void edge_attention(const float *q, int q_stride, const float *k, int k_stride, const float *v, int v_stride,
                                int queries, int keys, int heads, int group, int size, float scale, float *out,
                                int out_stride, float *scratch) {
  int key_columns = (keys + NF - 1) / NF * NF;
  int value_columns = (size + NF - 1) / NF * NF;
  float *key_panels = scratch;                             /* [keys / NF][size][NF] */
  float *value_panels = key_panels + (size_t)key_columns * size; /* [size / NF][keys][NF] */
  float *scores = value_panels + (size_t)value_columns * keys;   /* [MF][score_stride] */
  int score_stride = (key_columns + 15) / 16 * 16;
  for (int head = 0; head < heads; head++) {
    if (head % group == 0) {
      const float *key = k + (head / group) * size;
      const float *value = v + (head / group) * size;
      for (int column = 0; column < key_columns; column++)
        for (int at = 0; at < size; at++)
          key_panels[((size_t)(column / NF) * size + at) * NF + column % NF] =
              column < keys ? key[(size_t)column * k_stride + at] : 0.0f;
      for (int column = 0; column < value_columns; column += NF)
        for (int row = 0; row < keys; row++)
          for (int lane = 0; lane < NF; lane++)
            value_panels[((size_t)column * keys) + (size_t)row * NF + lane] =
                column + lane < size ? value[(size_t)row * v_stride + column + lane] : 0.0f;
    }
    for (int m = 0; m < queries; m += MF) {
      vf acc[MF][FV];
      float inverse[MF];
      for (int n = 0; n < key_columns; n += NF) {
        edge_tile_float(q + (size_t)m * q_stride + head * size, q_stride, key_panels + (size_t)n * size, size, acc);
        EDGE_UNROLL for (int i = 0; i < MF; i++)
          EDGE_UNROLL for (int j = 0; j < FV; j++) vf_store(scores + i * score_stride + n + j * VW, acc[i][j]);
      }
      for (int i = 0; i < MF; i++) inverse[i] = 1.0f / edge_softmax_row(scores + i * score_stride, keys, scale);
      for (int n = 0; n < value_columns; n += NF) {
        edge_tile_float(scores, score_stride, value_panels + (size_t)n * keys, keys, acc);
        EDGE_UNROLL for (int j = 0; j < FV; j++) {
          int left = size - n - j * VW;
          if (left <= 0) break;
          EDGE_UNROLL for (int i = 0; i < MF; i++)
            vf_store_upto(out + (size_t)(m + i) * out_stride + head * size + n + j * VW, acc[i][j] * vf_splat(inverse[i]),
                          left);
        }
      }
    }
  }
}
