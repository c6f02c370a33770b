/* The functions of edge_api.h around a generated model. */
#include "edge_model.h"
#include "edge_pool.h"

#include <string.h>

enum { ALIGN = 64, MOST_TENSORS = 4 };

struct edge_model {
  edge_call call;
  edge_pool pool;
  int64_t *ids, *mask; /* [edge_model_sequence]: the input with its padding */
  int past;            /* tokens in the cache of a decoder */
  const char *message;
};

#ifndef EDGE_STATIC_BYTES
#define EDGE_STATIC_BYTES 0 /* no static memory */
#endif
static _Alignas(64) unsigned char static_memory[EDGE_STATIC_BYTES + 1];
static edge_model *static_model;

static size_t aligned(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

static size_t tokens_bytes(void) { return aligned((size_t)edge_model_sequence * sizeof(int64_t)); }

static int is_mask(int index) { return !strcmp(edge_model_input[index].name, "attention_mask"); }

int edge_version(void) { return 2; }
const char *edge_name(void) { return edge_model_name; }
int edge_max_length(void) { return edge_model_sequence; }
int edge_outputs(void) { return edge_model_outputs; }
int edge_decodes(void) { return edge_model_decodes; }

int edge_inputs(void) {
  int count = 0;
  for (int at = 0; at < edge_model_inputs; at++) count += !is_mask(at);
  return count;
}

const edge_tensor *edge_input(int index) {
  for (int at = 0; at < edge_model_inputs && index >= 0; at++)
    if (!is_mask(at) && !index--) return &edge_model_input[at];
  return NULL;
}

const edge_tensor *edge_output(int index) {
  return index >= 0 && index < edge_model_outputs ? &edge_model_output[index] : NULL;
}

size_t edge_memory(int threads) {
  if (threads < 1 || threads > EDGE_MOST_THREADS) return 0;
  return ALIGN + aligned(sizeof(edge_model)) + 2 * tokens_bytes() +
         aligned((size_t)edge_model_branches * sizeof(int64_t)) + aligned(edge_model_arena_bytes) +
         (size_t)(threads - 1) * aligned(edge_model_scratch_bytes);
}

int edge_create(edge_model **made, void *memory, size_t bytes, int threads) {
  if (!made) return EDGE_BAD_ARGUMENT;
  *made = NULL;
  const size_t needed = edge_memory(threads);
  if (!needed) return EDGE_BAD_ARGUMENT;
  if (edge_model_cpu()) return EDGE_WRONG_CPU;
  const int own = !memory;
  if (own) {
    if (static_model) return EDGE_NO_MEMORY;
    memory = static_memory;
    bytes = EDGE_STATIC_BYTES;
  }
  if (bytes < needed) return EDGE_NO_MEMORY;
  unsigned char *at = (unsigned char *)aligned((uintptr_t)memory);
  edge_model *model = (edge_model *)at;
  memset(model, 0, sizeof *model);
  at += aligned(sizeof *model);
  model->ids = (int64_t *)at;
  at += tokens_bytes();
  model->mask = (int64_t *)at;
  at += tokens_bytes();
  model->call.taken = (int64_t *)at;
  memset(at, 0, (size_t)edge_model_branches * sizeof(int64_t));
  at += aligned((size_t)edge_model_branches * sizeof(int64_t));
  model->call.arena = at;
  model->call.scratch = at + aligned(edge_model_arena_bytes);
  model->message = "";
  if (threads > 1) {
    if (edge_pool_start(&model->pool, threads)) return EDGE_NO_THREADS;
    model->call.pool = &model->pool;
  }
  if (own) static_model = model;
  *made = model;
  return EDGE_OK;
}

static int refuse(edge_model *model, int status, const char *message) {
  model->message = message;
  return status;
}

int edge_infer(edge_model *model, const void *const inputs[], int length, void *const outputs[]) {
  if (!model) return EDGE_BAD_ARGUMENT;
  if (!inputs || !outputs || !outputs[0]) return refuse(model, EDGE_BAD_ARGUMENT, "an array is NULL");
  const void *all[MOST_TENSORS];
  void *answers[MOST_TENSORS] = {NULL};
  for (int at = 0; at < edge_model_inputs; at++) {
    all[at] = is_mask(at) ? (const void *)model->mask : *inputs++;
    if (!all[at]) return refuse(model, EDGE_BAD_ARGUMENT, "an input is NULL");
  }
  for (int at = 0; at < edge_model_outputs; at++) answers[at] = outputs[at];
  if (edge_model_sequence) {
    const char *problem = edge_model_check(all, length);
    if (problem) return refuse(model, EDGE_BAD_INPUT, problem);
    for (int at = 0; at < edge_model_inputs; at++)
      if (!strcmp(edge_model_input[at].name, "input_ids")) {
        memset(model->ids, 0, (size_t)edge_model_sequence * sizeof(int64_t));
        memcpy(model->ids, all[at], (size_t)length * sizeof(int64_t));
        all[at] = model->ids;
      }
    for (int at = 0; at < edge_model_sequence; at++) model->mask[at] = at < length;
    model->call.length = length;
    model->call.rows = edge_model_padding == 2 ? edge_model_sequence : length;
  }
  model->message = "";
  model->call.past = 0;
  edge_model_run(&model->call, all, answers);
  model->past = edge_model_decodes ? length : 0;
  return EDGE_OK;
}

int edge_step(edge_model *model, const int64_t *ids, int count, void *output) {
  if (!model) return EDGE_BAD_ARGUMENT;
  if (!edge_model_decodes) return refuse(model, EDGE_BAD_ARGUMENT, "not a causal decoder: it has no steps");
  if (!ids || !output) return refuse(model, EDGE_BAD_ARGUMENT, "an array is NULL");
  const void *inputs[MOST_TENSORS];
  for (int at = 0; at < edge_model_inputs; at++) inputs[at] = is_mask(at) ? (const void *)model->mask : ids;
  const char *problem = edge_model_check(inputs, count);
  if (problem) return refuse(model, EDGE_BAD_INPUT, problem);
  if (count > edge_model_sequence - model->past)
    return refuse(model, EDGE_BAD_INPUT, "there are more tokens than edge_max_length, those before included");
  model->message = "";
  model->call.past = model->past;
  model->call.length = model->call.rows = count;
  edge_model_run(&model->call, inputs, &output);
  model->past += count;
  return EDGE_OK;
}

int edge_past(const edge_model *model) { return model ? model->past : 0; }

int edge_rewind(edge_model *model, int length) {
  if (!model) return EDGE_BAD_ARGUMENT;
  if (length < 0 || length > model->past) return refuse(model, EDGE_BAD_ARGUMENT, "there are not so many tokens");
  model->message = "";
  model->past = length;
  return EDGE_OK;
}

const char *edge_message(const edge_model *model) { return model ? model->message : "there is no model"; }

void edge_destroy(edge_model *model) {
  if (!model) return;
  if (model->call.pool) edge_pool_stop(&model->pool);
  if (model == static_model) static_model = NULL;
}
