/* Kernels on all threads of a pool. Rows are split in whole panels of 8 and attention by heads, and every output is
 * computed as one thread would: the results are the same bits for any number of threads.
 *
 * The names of the kernels are redirected below, so generated calls are the same with and without threads; they see the
 * variables `pool` (NULL: one thread), `scratch` (for threads behind the first one) and `scratch_bytes`. */
#pragma once
#include "edge_pool.h"

enum { EDGE_PANEL = 8 };

/* The first of `count` items of a part; parts begin at multiples of `unit`. */
EDGE_INLINE int edge_begin(int count, int unit, int part, int parts) {
  const int units = (count + unit - 1) / unit;
  const int64_t first = (int64_t)units * part / parts * unit;
  return first < count ? (int)first : count;
}

/* A kernel by rows: NAME_job holds `rows` and the other arguments, CALL is the kernel on `rows` rows from `row` on. */
#define EDGE_BY_ROWS(NAME, FIELDS, CALL)                                                      \
  typedef struct {                                                                            \
    int rows;                                                                                 \
    FIELDS                                                                                    \
  } NAME##_job;                                                                               \
  static void NAME##_part(void *job, int part, int parts) {                                   \
    const NAME##_job *j = job;                                                                \
    const int row = edge_begin(j->rows, EDGE_PANEL, part, parts);                             \
    const int rows = edge_begin(j->rows, EDGE_PANEL, part + 1, parts) - row;                  \
    if (rows > 0) CALL;                                                                       \
  }

EDGE_INLINE const float *edge_from_row(const float *x, int row, int stride) {
  return x ? x + (size_t)row * stride : NULL;
}

#define EDGE_RUN(NAME, ROWS, ...)                                                             \
  NAME##_job job = {ROWS, __VA_ARGS__};                                                       \
  if (pool && (ROWS) > EDGE_PANEL) edge_pool_run(pool, NAME##_part, &job);                    \
  else NAME##_part(&job, 0, 1)

EDGE_BY_ROWS(edge_to_float, const edge_int8 *layer; const int8_t *x; const float *residual; float *out; int stride;,
             edge_int8_to_float(j->layer, j->x + (size_t)row * j->layer->k, rows,
                                edge_from_row(j->residual, row, j->stride), j->out + (size_t)row * j->stride,
                                j->stride))
EDGE_INLINE void edge_threaded_to_float(edge_pool *pool, const edge_int8 *layer, const int8_t *x, int count,
                                        const float *residual, float *out, int stride) {
  EDGE_RUN(edge_to_float, count, layer, x, residual, out, stride);
}

EDGE_BY_ROWS(edge_to_packed, const edge_int8 *layer; const int8_t *x; int8_t *out; int k;,
             edge_int8_to_packed(j->layer, j->x + (size_t)row * j->layer->k, rows, j->out + (size_t)row * j->k, j->k))
EDGE_INLINE void edge_threaded_to_packed(edge_pool *pool, const edge_int8 *layer, const int8_t *x, int count,
                                         int8_t *out, int k) {
  EDGE_RUN(edge_to_packed, count, layer, x, out, k);
}

EDGE_BY_ROWS(edge_dynamic, const edge_int8 *layer; const int8_t *x; const float *scale; const int32_t *zero;
             const float *residual; float *out; int stride;,
             edge_int8_dynamic(j->layer, j->x + (size_t)row * j->layer->k, j->scale + row, j->zero + row, rows,
                               edge_from_row(j->residual, row, j->stride), j->out + (size_t)row * j->stride, j->stride))
EDGE_INLINE void edge_threaded_dynamic(edge_pool *pool, const edge_int8 *layer, const int8_t *x, const float *scale,
                                       const int32_t *zero, int count, const float *residual, float *out, int stride) {
  EDGE_RUN(edge_dynamic, count, layer, x, scale, zero, residual, out, stride);
}

EDGE_BY_ROWS(edge_linear, const edge_float *layer; const float *x; int stride; const float *residual; float *out;
             int out_stride;,
             edge_float_linear(j->layer, j->x + (size_t)row * j->stride, j->stride, rows,
                               edge_from_row(j->residual, row, j->out_stride), j->out + (size_t)row * j->out_stride,
                               j->out_stride))
EDGE_INLINE void edge_threaded_linear(edge_pool *pool, const edge_float *layer, const float *x, int stride, int count,
                                      const float *residual, float *out, int out_stride) {
  EDGE_RUN(edge_linear, count, layer, x, stride, residual, out, out_stride);
}

#if defined(EDGE_ISA_HALF)
EDGE_BY_ROWS(edge_half_rows, const edge_half *layer; const edge_f16 *x; const float *residual; float *out;
             int out_stride;,
             edge_half_linear(j->layer, j->x + (size_t)row * j->layer->k, rows,
                              edge_from_row(j->residual, row, j->out_stride), j->out + (size_t)row * j->out_stride,
                              j->out_stride))
EDGE_INLINE void edge_threaded_half(edge_pool *pool, const edge_half *layer, const edge_f16 *x, int count,
                                    const float *residual, float *out, int out_stride) {
  EDGE_RUN(edge_half_rows, count, layer, x, residual, out, out_stride);
}
#define edge_half_linear(...) edge_threaded_half(pool, __VA_ARGS__)

EDGE_BY_ROWS(edge_to_half, const float *x; int stride; int columns; edge_f16 *out; int k;,
             edge_halve(j->x + (size_t)row * j->stride, j->stride, rows, j->columns, j->out + (size_t)row * j->k, j->k))
EDGE_INLINE void edge_threaded_halve(edge_pool *pool, const float *x, int stride, int count, int columns, edge_f16 *out,
                                     int k) {
  EDGE_RUN(edge_to_half, count, x, stride, columns, out, k);
}
#define edge_halve(...) edge_threaded_halve(pool, __VA_ARGS__)
#endif

EDGE_BY_ROWS(edge_static, const float *x; int stride; int columns; float inverse; float zero; int8_t *out; int k;,
             edge_quantize(j->x + (size_t)row * j->stride, j->stride, rows, j->columns, j->inverse, j->zero,
                           j->out + (size_t)row * j->k, j->k))
EDGE_INLINE void edge_threaded_quantize(edge_pool *pool, const float *x, int stride, int count, int columns,
                                        float inverse, float zero, int8_t *out, int k) {
  EDGE_RUN(edge_static, count, x, stride, columns, inverse, zero, out, k);
}

EDGE_INLINE edge_quantized edge_quantized_from(edge_quantized to, int row) {
  return (edge_quantized){to.scale + row, to.zero + row, to.packed + (size_t)row * to.k, to.k};
}

EDGE_BY_ROWS(edge_by_row, const float *x; int stride; int columns; edge_quantized to;,
             edge_quantize_rows(j->x + (size_t)row * j->stride, j->stride, rows, j->columns,
                                edge_quantized_from(j->to, row)))
EDGE_INLINE void edge_threaded_quantize_rows(edge_pool *pool, const float *x, int stride, int count, int columns,
                                             edge_quantized to) {
  EDGE_RUN(edge_by_row, count, x, stride, columns, to);
}

EDGE_BY_ROWS(edge_norm, const float *x; int width; int stride; const float *weight; const float *bias; float epsilon;
             float *out;,
             edge_layernorm(j->x + (size_t)row * j->stride, rows, j->width, j->stride, j->weight, j->bias, j->epsilon,
                            j->out + (size_t)row * j->stride))
EDGE_INLINE void edge_threaded_layernorm(edge_pool *pool, const float *x, int count, int width, int stride,
                                         const float *weight, const float *bias, float epsilon, float *out) {
  EDGE_RUN(edge_norm, count, x, width, stride, weight, bias, epsilon, out);
}

EDGE_BY_ROWS(edge_norm_quantized, const float *x; int width; int stride; const float *weight; const float *bias;
             float epsilon; float *out; edge_quantized to;,
             edge_layernorm_quantized(j->x + (size_t)row * j->stride, rows, j->width, j->stride, j->weight, j->bias,
                                      j->epsilon, j->out + (size_t)row * j->stride, edge_quantized_from(j->to, row)))
EDGE_INLINE void edge_threaded_layernorm_quantized(edge_pool *pool, const float *x, int count, int width, int stride,
                                                   const float *weight, const float *bias, float epsilon, float *out,
                                                   edge_quantized to) {
  EDGE_RUN(edge_norm_quantized, count, x, width, stride, weight, bias, epsilon, out, to);
}

EDGE_BY_ROWS(edge_norm_packed, const float *x; int width; int stride; const float *weight; const float *bias;
             float epsilon; float *out; float scale; int zero; int8_t *packed; int k;,
             edge_layernorm_packed(j->x + (size_t)row * j->stride, rows, j->width, j->stride, j->weight, j->bias,
                                   j->epsilon, j->out ? j->out + (size_t)row * j->stride : NULL, j->scale, j->zero,
                                   j->packed + (size_t)row * j->k, j->k))
EDGE_INLINE void edge_threaded_layernorm_packed(edge_pool *pool, const float *x, int count, int width, int stride,
                                                const float *weight, const float *bias, float epsilon, float *out,
                                                float scale, int zero, int8_t *packed, int k) {
  EDGE_RUN(edge_norm_packed, count, x, width, stride, weight, bias, epsilon, out, scale, zero, packed, k);
}

EDGE_BY_ROWS(edge_root_norm, const float *x; int width; int stride; const float *weight; float epsilon; float *out;,
             edge_rmsnorm(j->x + (size_t)row * j->stride, rows, j->width, j->stride, j->weight, j->epsilon,
                          j->out + (size_t)row * j->stride))
EDGE_INLINE void edge_threaded_rmsnorm(edge_pool *pool, const float *x, int count, int width, int stride,
                                       const float *weight, float epsilon, float *out) {
  EDGE_RUN(edge_root_norm, count, x, width, stride, weight, epsilon, out);
}

EDGE_BY_ROWS(edge_root_norm_quantized, const float *x; int width; int stride; const float *weight; float epsilon;
             float *out; edge_quantized to;,
             edge_rmsnorm_quantized(j->x + (size_t)row * j->stride, rows, j->width, j->stride, j->weight, j->epsilon,
                                    j->out + (size_t)row * j->stride, edge_quantized_from(j->to, row)))
EDGE_INLINE void edge_threaded_rmsnorm_quantized(edge_pool *pool, const float *x, int count, int width, int stride,
                                                 const float *weight, float epsilon, float *out, edge_quantized to) {
  EDGE_RUN(edge_root_norm_quantized, count, x, width, stride, weight, epsilon, out, to);
}

EDGE_BY_ROWS(edge_turn, const float *x; int heads; int size; int stride; const float *cosine; const float *sine;
             float *out;,
             edge_rotate(j->x + (size_t)row * j->stride, rows, j->heads, j->size, j->stride,
                         j->cosine + (size_t)row * j->size, j->sine + (size_t)row * j->size,
                         j->out + (size_t)row * j->stride))
EDGE_INLINE void edge_threaded_rotate(edge_pool *pool, const float *x, int count, int heads, int size, int stride,
                                      const float *cosine, const float *sine, float *out) {
  EDGE_RUN(edge_turn, count, x, heads, size, stride, cosine, sine, out);
}

#define EDGE_THREADED_ACTIVATION(NAME)                                                        \
  EDGE_BY_ROWS(edge_all_##NAME, const float *x; int width; int stride; float *out;,           \
               edge_##NAME(j->x + (size_t)row * j->stride, rows, j->width, j->stride,         \
                           j->out + (size_t)row * j->stride))                                 \
  EDGE_INLINE void edge_threaded_##NAME(edge_pool *pool, const float *x, int count, int width, int stride, \
                                        float *out) {                                         \
    EDGE_RUN(edge_all_##NAME, count, x, width, stride, out);                                  \
  }                                                                                           \
  EDGE_BY_ROWS(edge_quantized_##NAME, const float *x; int width; int stride; float *out; edge_quantized to;, \
               edge_##NAME##_quantized(j->x + (size_t)row * j->stride, rows, j->width, j->stride, \
                                       j->out + (size_t)row * j->stride, edge_quantized_from(j->to, row))) \
  EDGE_INLINE void edge_threaded_##NAME##_quantized(edge_pool *pool, const float *x, int count, int width, int stride, \
                                                    float *out, edge_quantized to) {          \
    EDGE_RUN(edge_quantized_##NAME, count, x, width, stride, out, to);                        \
  }
EDGE_THREADED_ACTIVATION(gelu)
EDGE_THREADED_ACTIVATION(gelu_tanh)
EDGE_THREADED_ACTIVATION(relu)
EDGE_THREADED_ACTIVATION(silu)
EDGE_THREADED_ACTIVATION(tanh)

typedef struct {
  const float *q, *k, *v;
  int q_stride, k_stride, v_stride, queries, keys, causal, heads, group, size, out_stride;
  float scale, *out;
  unsigned char *scratch, *more;
  size_t bytes;
} edge_attention_job;

static void edge_attention_part(void *job, int part, int parts) {
  const edge_attention_job *j = job;
  const int head = edge_begin(j->heads, j->group, part, parts);
  const int heads = edge_begin(j->heads, j->group, part + 1, parts) - head;
  unsigned char *scratch = part ? j->more + (size_t)(part - 1) * j->bytes : j->scratch;
  const int shared = head / j->group * j->size;
  if (heads > 0)
    edge_attention(j->q + head * j->size, j->q_stride, j->k + shared, j->k_stride, j->v + shared, j->v_stride,
                   j->queries, j->keys, j->causal, heads, j->group, j->size, j->scale, j->out + head * j->size,
                   j->out_stride, (float *)scratch);
}

EDGE_INLINE void edge_threaded_attention(edge_pool *pool, unsigned char *more, size_t bytes, const float *q,
                                         int q_stride, const float *k, int k_stride, const float *v, int v_stride,
                                         int queries, int keys, int causal, int heads, int group, int size, float scale,
                                         float *out, int out_stride, float *scratch) {
  edge_attention_job job = {q, k, v, q_stride, k_stride, v_stride, queries, keys, causal, heads, group, size,
                            out_stride, scale, out, (unsigned char *)scratch, more, bytes};
  if (pool) edge_pool_run(pool, edge_attention_part, &job);
  else edge_attention_part(&job, 0, 1);
}

typedef struct {
  const float *q, *k, *v;
  int q_stride, k_stride, v_stride, queries, past, count, heads, group, size, capacity, out_stride;
  float scale, *cache, *out;
  unsigned char *scratch, *more;
  size_t bytes;
} edge_cached_job;

static void edge_cached_part(void *job, int part, int parts) {
  const edge_cached_job *j = job;
  const int head = edge_begin(j->heads, j->group, part, parts), shared = head / j->group;
  const int heads = edge_begin(j->heads, j->group, part + 1, parts) - head;
  unsigned char *scratch = part ? j->more + (size_t)(part - 1) * j->bytes : j->scratch;
  if (heads > 0)
    edge_attention_cached(j->q + head * j->size, j->q_stride, j->k + shared * j->size, j->k_stride,
                          j->v + shared * j->size, j->v_stride, j->queries, j->past, j->count, heads, j->group, j->size,
                          j->scale, j->cache + shared * edge_cached_head(j->capacity, j->size), j->capacity,
                          j->out + head * j->size, j->out_stride, (float *)scratch);
}

EDGE_INLINE void edge_threaded_cached(edge_pool *pool, unsigned char *more, size_t bytes, const float *q, int q_stride,
                                      const float *k, int k_stride, const float *v, int v_stride, int queries, int past,
                                      int count, int heads, int group, int size, float scale, float *cache,
                                      int capacity, float *out, int out_stride, float *scratch) {
  edge_cached_job job = {q, k, v, q_stride, k_stride, v_stride, queries, past, count, heads, group, size, capacity,
                         out_stride, scale, cache, out, (unsigned char *)scratch, more, bytes};
  if (pool) edge_pool_run(pool, edge_cached_part, &job);
  else edge_cached_part(&job, 0, 1);
}

#if defined(EDGE_INTEGER_ATTENTION)
typedef struct {
  const edge_attention8 *layer;
  edge_attention_rows rows;
  int8_t *out;
  int depth;
  unsigned char *scratch, *more;
  size_t bytes;
} edge_attention8_job;

static void edge_attention8_part(void *job, int part, int parts) {
  const edge_attention8_job *j = job;
  edge_attention8 layer = *j->layer;
  const int head = edge_begin(layer.heads, layer.group, part, parts);
  const ptrdiff_t own = (ptrdiff_t)head * layer.size * MR, shared = (ptrdiff_t)(head / layer.group) * layer.size * MR;
  const edge_attention_rows r = j->rows;
  layer.heads = edge_begin(layer.heads, layer.group, part + 1, parts) - head;
  if (layer.heads > 0)
    edge_attention_int8(&layer, r.q + own, r.q_depth, r.k + shared, r.k_depth, r.v + shared, r.v_depth, r.queries,
                        r.keys, j->out + own, j->depth, part ? j->more + (size_t)(part - 1) * j->bytes : j->scratch);
}

EDGE_INLINE void edge_threaded_attention8(edge_pool *pool, unsigned char *more, size_t bytes,
                                          const edge_attention8 *layer, const int8_t *q, int q_depth, const int8_t *k,
                                          int k_depth, const int8_t *v, int v_depth, int queries, int keys, int8_t *out,
                                          int depth, unsigned char *scratch) {
  edge_attention8_job job = {layer, {q, k, v, q_depth, k_depth, v_depth, queries, keys}, out, depth, scratch, more,
                             bytes};
  if (pool) edge_pool_run(pool, edge_attention8_part, &job);
  else edge_attention8_part(&job, 0, 1);
}
#define edge_attention_int8(...) edge_threaded_attention8(pool, scratch, scratch_bytes, __VA_ARGS__)
#endif

#define edge_layernorm_packed(...) edge_threaded_layernorm_packed(pool, __VA_ARGS__)
#define edge_int8_to_float(...) edge_threaded_to_float(pool, __VA_ARGS__)
#define edge_int8_to_packed(...) edge_threaded_to_packed(pool, __VA_ARGS__)
#define edge_int8_dynamic(...) edge_threaded_dynamic(pool, __VA_ARGS__)
#define edge_float_linear(...) edge_threaded_linear(pool, __VA_ARGS__)
#define edge_quantize(...) edge_threaded_quantize(pool, __VA_ARGS__)
#define edge_quantize_rows(...) edge_threaded_quantize_rows(pool, __VA_ARGS__)
#define edge_layernorm(...) edge_threaded_layernorm(pool, __VA_ARGS__)
#define edge_layernorm_quantized(...) edge_threaded_layernorm_quantized(pool, __VA_ARGS__)
#define edge_rmsnorm(...) edge_threaded_rmsnorm(pool, __VA_ARGS__)
#define edge_rmsnorm_quantized(...) edge_threaded_rmsnorm_quantized(pool, __VA_ARGS__)
#define edge_gelu(...) edge_threaded_gelu(pool, __VA_ARGS__)
#define edge_gelu_quantized(...) edge_threaded_gelu_quantized(pool, __VA_ARGS__)
#define edge_gelu_tanh(...) edge_threaded_gelu_tanh(pool, __VA_ARGS__)
#define edge_gelu_tanh_quantized(...) edge_threaded_gelu_tanh_quantized(pool, __VA_ARGS__)
#define edge_relu(...) edge_threaded_relu(pool, __VA_ARGS__)
#define edge_relu_quantized(...) edge_threaded_relu_quantized(pool, __VA_ARGS__)
#define edge_silu(...) edge_threaded_silu(pool, __VA_ARGS__)
#define edge_silu_quantized(...) edge_threaded_silu_quantized(pool, __VA_ARGS__)
#define edge_tanh(...) edge_threaded_tanh(pool, __VA_ARGS__)
#define edge_tanh_quantized(...) edge_threaded_tanh_quantized(pool, __VA_ARGS__)
#define edge_rotate(...) edge_threaded_rotate(pool, __VA_ARGS__)
#define edge_attention(...) edge_threaded_attention(pool, scratch, scratch_bytes, __VA_ARGS__)
#define edge_attention_cached(...) edge_threaded_cached(pool, scratch, scratch_bytes, __VA_ARGS__)
