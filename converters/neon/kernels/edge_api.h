/* A model as a library: one model, compiled for one kind of CPU, with its weights inside.
 *
 *   edge_model *model;
 *   if (edge_create(&model, NULL, 0, 1) != EDGE_OK) return 1;             // in the library's own static memory
 *   int64_t ids[] = {101, 7592, 102};
 *   float logits[5];                                                      // see edge_output(0)
 *   if (edge_infer(model, (const void *[]){ids}, 3, (void *[]){logits}) != EDGE_OK) puts(edge_message(model));
 *   edge_destroy(model);
 *
 * Nothing is allocated after edge_create, and before it only the stacks of its threads. One model runs one inference at
 * a time; models in memory of their own may run at the same time. Arrays are little-endian and of one row (batch 1). */
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGE_API __attribute__((visibility("default")))

enum edge_status {
  EDGE_OK = 0,
  EDGE_BAD_ARGUMENT = 1, /* a null pointer, a number of threads that is not 1 to 16 */
  EDGE_BAD_INPUT = 2,    /* too many tokens, or an id outside of the vocabulary: nothing has been computed */
  EDGE_NO_MEMORY = 3,    /* the memory is smaller than edge_memory says, or the static memory is in use */
  EDGE_WRONG_CPU = 4,    /* this CPU lacks instructions that the library uses */
  EDGE_NO_THREADS = 5    /* the system starts no more threads */
};

typedef struct {
  const char *name;
  const char *dtype; /* "float32" or "int64" */
  size_t bytes;      /* of the largest input or output */
  int rank;
  int64_t shape[4]; /* batch first (1) */
} edge_tensor;

typedef struct edge_model edge_model;

EDGE_API int edge_version(void); /* of this interface: 2 (1 was without edge_decodes to edge_rewind) */
EDGE_API const char *edge_name(void);

/* Inputs and outputs in order; NULL for an index beyond them. Where the inputs are token ids, the length that
 * edge_infer gets stands for the attention mask, which is no input here. A model that inputs may leave early has a
 * second output `exit`: the layer after which they did. */
EDGE_API int edge_inputs(void);
EDGE_API int edge_outputs(void);
EDGE_API const edge_tensor *edge_input(int index);
EDGE_API const edge_tensor *edge_output(int index);

/* The most tokens of an input; 0 where the inputs are not token ids. */
EDGE_API int edge_max_length(void);

/* Bytes that edge_create needs for a number of threads; 0 where that is not 1 to 16. */
EDGE_API size_t edge_memory(int threads);

/* Make the model in `memory`, which stays the caller's and must outlive it; NULL is the library's static memory, which
 * holds one model at a time. With several threads the results are the same bits as with one. */
EDGE_API int edge_create(edge_model **model, void *memory, size_t bytes, int threads);

/* One inference. `length` is the number of tokens in inputs[0], 1 to edge_max_length() (ignored where the inputs are
 * not tokens). Of outputs with a row for each token the first `length` rows are written. outputs[1] may be NULL. */
EDGE_API int edge_infer(edge_model *model, const void *const inputs[], int length, void *const outputs[]);

/* Causal decoders (edge_decodes() is 1) answer token by token: keys and values of earlier tokens stay in the model's
 * memory. edge_step computes `count` new tokens behind the edge_past() ones that it holds, a prompt as well as one
 * token, and writes their `count` rows of the first output: those that edge_infer gives for the whole sequence.
 * edge_infer begins anew, and the model then holds its tokens. EDGE_BAD_INPUT: more tokens than edge_max_length() in
 * all. */
EDGE_API int edge_decodes(void);
EDGE_API int edge_step(edge_model *model, const int64_t *ids, int count, void *output);
EDGE_API int edge_past(const edge_model *model);
/* Forget all but the first `length` tokens: 0 for a new sequence. */
EDGE_API int edge_rewind(edge_model *model, int length);

/* What was wrong with the last edge_infer, edge_step or edge_rewind; "" where nothing was. */
EDGE_API const char *edge_message(const edge_model *model);

/* Stop the threads. The memory may then be used for anything. */
EDGE_API void edge_destroy(edge_model *model);

#ifdef __cplusplus
}
#endif
