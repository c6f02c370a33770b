/* What a generated model offers to the runner, or to an application that links it.
 *
 * The model has no state but its static arena: one thread at a time. Inputs and outputs are raw little-endian arrays
 * of one row (batch 1) with the sizes below. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct {
  const char *name;
  const char *dtype; /* "float32" or "int64" */
  size_t bytes;      /* of one row */
} edge_tensor;

extern const char edge_model_name[];
extern const char edge_model_isa[]; /* JSON list of CPU features */
extern const size_t edge_model_arena_bytes;
extern const size_t edge_model_weight_bytes;
extern const int edge_model_inputs, edge_model_outputs;
extern const edge_tensor edge_model_input[], edge_model_output[];

/* NULL, or what this CPU lacks. Call it before anything else. */
const char *edge_model_cpu(void);
/* NULL, or why these inputs are refused (an id outside of the vocabulary, a mask that is not 1...1 0...0). */
const char *edge_model_check(const void *const inputs[]);
/* One inference; the inputs must have passed edge_model_check. */
void edge_model_run(const void *const inputs[], void *const outputs[]);
