/* Float attention, head by head: scores and softmax for MF queries at a time, so that they stay in the L1 cache. */
#pragma once

/* exp(scale (x - max)) of `count` values in place; the rest of the last vector becomes exp(-87), which adds nothing.
 * Returns their sum. */
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

/* out [rows, size] = inverse (weights [rows, keys] x values), `values` panels of NF columns and `panel` rows. */
EDGE_INLINE void edge_weighted_values(const float *weights, int weight_stride, const float *values, int panel, int keys,
                                      int size, const float inverse[MF], float *out, int out_stride, const int rows) {
  vf acc[MF][FV];
  for (int n = 0; n < size; n += NF) {
    edge_tile_float(weights, weight_stride, values + (size_t)n * panel, keys, rows, acc);
    EDGE_UNROLL for (int j = 0; j < FV; j++) {
      const int left = size - n - j * VW;
      if (left <= 0) break;
      EDGE_UNROLL for (int i = 0; i < rows; i++)
        vf_store_upto(out + i * out_stride + n + j * VW, acc[i][j] * vf_splat(inverse[i]), left);
    }
  }
}

typedef struct {
  const float *q;       /* rows of q_stride floats */
  float *keys_packed;   /* panels [key_columns / NF][size][NF] */
  float *values_packed; /* panels [value_columns / NF][keys][NF] */
  float *scores;        /* [MF][score_stride] */
  float *out;
  int q_stride, out_stride, score_stride, keys, key_columns, value_columns, size, causal;
  float scale;
} edge_head;

/* Columns of keys (rows of `k`) side by side. The last ones are repeated: their scores are masked. */
EDGE_INLINE void edge_pack_keys(const edge_head *head, const float *k, int stride) {
  for (int column = 0; column < head->key_columns; column += NF) {
    const float *row[NF];
    for (int lane = 0; lane < NF; lane++)
      row[lane] = k + (size_t)(column + lane < head->keys ? column + lane : head->keys - 1) * stride;
    float *panel = head->keys_packed + (size_t)column * head->size;
    for (int at = 0; at < head->size; at++)
      EDGE_UNROLL for (int lane = 0; lane < NF; lane++) panel[at * NF + lane] = row[lane][at];
  }
}

EDGE_INLINE void edge_pack_values(const edge_head *head, const float *v, int stride) {
  for (int column = 0; column < head->value_columns; column += VW) {
    float *panel = head->values_packed + (size_t)(column / NF * NF) * head->keys + column % NF;
    int left = head->size - column;
    for (int row = 0; row < head->keys; row++) {
      vf value = left > 0 ? vf_load_upto(v + (size_t)row * stride + column, left, 0.0f) : vf_splat(0.0f);
      vf_store(panel + (size_t)row * NF, value);
    }
  }
}

/* `rows` queries from row m on. */
EDGE_INLINE void edge_attend(const edge_head *head, int m, const int rows) {
  vf acc[MF][FV];
  float inverse[MF];
  const float *query = head->q + (size_t)m * head->q_stride;
  for (int n = 0; n < head->key_columns; n += NF) {
    edge_tile_float(query, head->q_stride, head->keys_packed + (size_t)n * head->size, head->size, rows, acc);
    EDGE_UNROLL for (int i = 0; i < rows; i++)
      EDGE_UNROLL for (int j = 0; j < FV; j++) vf_store(head->scores + i * head->score_stride + n + j * VW, acc[i][j]);
  }
  for (int i = 0; i < rows; i++) {
    float *scores = head->scores + i * head->score_stride;
    int seen = head->causal && m + i + 1 < head->keys ? m + i + 1 : head->keys;
    inverse[i] = 1.0f / edge_softmax_row(scores, seen, head->scale);
    for (int at = seen; at < head->keys; at++) scores[at] = 0.0f;
  }
  edge_weighted_values(head->scores, head->score_stride, head->values_packed, head->keys, head->keys, head->size,
                       inverse, head->out + (size_t)m * head->out_stride, head->out_stride, rows);
}

/* out[:, h * size ...] = softmax(q k^T * scale) v for each head h. q, k, v: rows of their strides; query head h uses
 * key/value head h / group; only the first `keys` rows are attended to, where `causal` those up to the query's own. */
EDGE_KERNEL void edge_attention(const float *q, int q_stride, const float *k, int k_stride, const float *v,
                                int v_stride, int queries, int keys, int causal, int heads, int group, int size,
                                float scale, float *out, int out_stride, float *scratch) {
  edge_head head = {.q_stride = q_stride, .out_stride = out_stride, .keys = keys, .size = size, .scale = scale};
  head.causal = causal;
  head.key_columns = (keys + NF - 1) / NF * NF;
  head.value_columns = (size + NF - 1) / NF * NF;
  head.score_stride = (head.key_columns + 15) / 16 * 16;
  head.keys_packed = scratch;
  head.values_packed = head.keys_packed + (size_t)head.key_columns * size;
  head.scores = head.values_packed + (size_t)head.value_columns * keys;
  for (int index = 0; index < heads; index++) {
    if (index % group == 0) {
      edge_pack_keys(&head, k + index / group * size, k_stride);
      edge_pack_values(&head, v + index / group * size, v_stride);
    }
    head.q = q + index * size;
    head.out = out + index * size;
    for (int m = 0; m < queries; m += MF) {
      if (queries - m > MF / 2) edge_attend(&head, m, MF);
      else if (queries - m > 1) edge_attend(&head, m, MF / 2);
      else edge_attend(&head, m, 1);
    }
  }
}
