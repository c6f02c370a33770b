/* What a generated model offers to the runner (`edge_main.c`) and to the library (`edge_library.c`).
 *
 * The model itself has no state: an inference works in the memory that its `edge_call` names. Inputs and outputs are
 * raw little-endian arrays of one row (batch 1) with the sizes below. */
#pragma once
#include "edge_api.h"

struct edge_pool;

typedef struct {
  unsigned char *arena;   /* edge_model_arena_bytes, aligned to 64 */
  unsigned char *scratch; /* edge_model_scratch_bytes for each thread but the first, aligned to 64 */
  struct edge_pool *pool; /* NULL: one thread */
  int64_t *taken;         /* [edge_model_branches] how often each condition has been true: counted up */
  int length;             /* tokens of the input, where there is an attention_mask */
  int past;               /* tokens of earlier calls that this one goes on behind; 0 unless edge_model_decodes */
  int rows;               /* rows to compute: `length`, or edge_model_sequence with the rows of padding */
  void (*done)(int step); /* NULL, or told after each step: for profiles; never in libraries */
} edge_call;

typedef struct {
  const char *name, *kind;
} edge_step_info;

extern const char edge_model_name[];
extern const char edge_model_isa[]; /* JSON list of CPU features */
extern const size_t edge_model_arena_bytes, edge_model_scratch_bytes, edge_model_weight_bytes;
extern const int edge_model_sequence; /* the most tokens; 0 where the inputs are not tokens */
extern const int edge_model_padding;  /* rows of padding: 0 never read, 1 part of the output, 2 needed within */
extern const int edge_model_decodes;  /* 1: the arena keeps what a call needs to go on behind the calls before it */
extern const int edge_model_inputs, edge_model_outputs;
extern const edge_tensor edge_model_input[], edge_model_output[];
extern const int edge_model_branches;
extern const char *const edge_model_branch[]; /* their names: exits and gates */
#ifdef EDGE_LIBRARY
#define EDGE_DONE(step)
#else
extern unsigned char edge_model_arena[];
extern const int edge_model_steps;
extern const edge_step_info edge_model_step[];
#define EDGE_DONE(step) \
  if (call->done) call->done(step)
#endif

/* NULL, or what this CPU lacks. Call it before anything else. */
const char *edge_model_cpu(void);
/* NULL, or why `length` tokens are refused: too many, or an id outside of the vocabulary. */
const char *edge_model_check(const void *const inputs[], int length);
/* One inference; the inputs must have passed edge_model_check. Outputs behind the first one may be NULL. */
void edge_model_run(const edge_call *call, const void *const inputs[], void *const outputs[]);
