/* Causal float attention of new tokens over themselves and the tokens of earlier calls.
 *
 * A cache holds for each key/value head the panels that the products read: keys [capacity / NF][size][NF], then values
 * [size / NF][capacity][NF]. New tokens are put behind the old ones, so a call packs nothing but its own rows. Sums are
 * taken in the same order for one query as for a whole tile: how tokens are cut into calls changes no bit. */
#pragma once

typedef struct {
  float *keys, *values; /* of one key/value head */
  const float *q;
  float *scores, *out; /* scores: [MF][score_stride] */
  int q_stride, out_stride, score_stride, past, known, capacity, size;
  float scale;
} edge_recall;

/* Floats of the keys of one head in a cache, and of keys and values. */
EDGE_INLINE size_t edge_cached_keys(int capacity, int size) { return (size_t)((capacity + NF - 1) / NF * NF) * size; }
EDGE_INLINE size_t edge_cached_head(int capacity, int size) {
  return edge_cached_keys(capacity, size) + (size_t)((size + NF - 1) / NF * NF) * capacity;
}

/* Put `count` rows of keys and values behind the `past` ones. */
EDGE_INLINE void edge_remember(const edge_recall *head, const float *k, int k_stride, const float *v, int v_stride,
                               int count) {
  for (int place = head->past; place < head->past + count; place++, k += k_stride, v += v_stride) {
    float *panel = head->keys + (size_t)(place / NF * NF) * head->size + place % NF;
    for (int at = 0; at < head->size; at++) panel[(size_t)at * NF] = k[at];
    for (int column = 0; column < (head->size + NF - 1) / NF * NF; column += VW) {
      const int left = head->size - column;
      vf value = left > 0 ? vf_load_upto(v + column, left, 0.0f) : vf_splat(0.0f);
      vf_store(head->values + (size_t)(column / NF * NF) * head->capacity + (size_t)place * NF + column % NF, value);
    }
  }
}

/* `rows` queries from row m on; row i sees the keys up to its own. Columns behind the last key hold anything: their
 * scores are not read. */
EDGE_INLINE void edge_recall_rows(const edge_recall *head, int m, const int rows) {
  vf acc[MF][FV];
  float inverse[MF];
  const int last = head->past + m + rows, keys = last < head->known ? last : head->known;
  const float *query = head->q + (size_t)m * head->q_stride;
  for (int n = 0; n < keys; n += NF) {
    edge_tile_float(query, head->q_stride, head->keys + (size_t)n * head->size, head->size, rows, acc);
    EDGE_UNROLL for (int i = 0; i < rows; i++)
      EDGE_UNROLL for (int j = 0; j < FV; j++) vf_store(head->scores + i * head->score_stride + n + j * VW, acc[i][j]);
  }
  for (int i = 0; i < rows; i++) {
    float *scores = head->scores + i * head->score_stride;
    const int own = head->past + m + i + 1, seen = own < keys ? own : keys;
    inverse[i] = 1.0f / edge_softmax_row(scores, seen, head->scale);
    for (int at = seen; at < keys; at++) scores[at] = 0.0f;
  }
  edge_weighted_values(head->scores, head->score_stride, head->values, head->capacity, keys, head->size, inverse,
                       head->out + (size_t)m * head->out_stride, head->out_stride, rows);
}

/* out[:, h * size ...] for each head h, as edge_attention gives it for the last `queries` rows of the past + queries
 * that there are; the first `count` of them are tokens, and go into the cache of `capacity` tokens. */
EDGE_KERNEL void edge_attention_cached(const float *q, int q_stride, const float *k, int k_stride, const float *v,
                                       int v_stride, int queries, int past, int count, int heads, int group, int size,
                                       float scale, float *cache, int capacity, float *out, int out_stride,
                                       float *scratch) {
  edge_recall head = {.scores = scratch, .q_stride = q_stride, .out_stride = out_stride, .past = past};
  head.known = past + count;
  head.score_stride = (head.known + NF - 1) / NF * NF;
  head.score_stride = (head.score_stride + 15) / 16 * 16;
  head.capacity = capacity;
  head.size = size;
  head.scale = scale;
  for (int index = 0; index < heads; index++) {
    const int shared = index / group;
    head.keys = cache + shared * edge_cached_head(capacity, size);
    head.values = head.keys + edge_cached_keys(capacity, size);
    if (index % group == 0) edge_remember(&head, k + shared * size, k_stride, v + shared * size, v_stride, count);
    head.q = q + index * size;
    head.out = out + index * size;
    for (int m = 0; m < queries; m += MF) {
      if (queries - m > MF / 2) edge_recall_rows(&head, m, MF);
      else if (queries - m > 1) edge_recall_rows(&head, m, MF / 2);
      else edge_recall_rows(&head, m, 1);
    }
  }
}
