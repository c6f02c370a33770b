/* `model generate`: greedy continuation by a causal decoder, a part of edge_main.c. */
#pragma once

/* Compute `count` tokens behind the `past` ones; the most likely next one. */
static int64_t step(int past, const int64_t *ids, int count) {
  const void *inputs[MOST_TENSORS];
  void *outputs[MOST_TENSORS] = {answers};
  for (int i = 0; i < edge_model_inputs; i++) inputs[i] = ids; /* the mask is not read */
  model.past = past;
  model.length = model.rows = count;
  begin_count();
  edge_model_run(&model, inputs, outputs);
  end_count();
  const int vocabulary = (int)edge_model_output[0].shape[2];
  const float *logits = (const float *)answers + (size_t)(count - 1) * (size_t)vocabulary;
  int best = 0;
  for (int at = 1; at < vocabulary; at++)
    if (logits[at] > logits[best]) best = at;
  return best;
}

/* The prompt of row `index`: its ids, and how many there are. Ends the program where the new tokens have no place. */
static int prompt_of(const options *o, long index, const int64_t **ids) {
  const void *inputs[MOST_TENSORS];
  const char *problem = NULL;
  row_of(o, index, inputs);
  for (int i = 0; i < edge_model_inputs; i++)
    if (!strcmp(edge_model_input[i].name, "input_ids")) *ids = inputs[i];
  const int length = length_of(inputs, &problem);
  if (length + o->tokens - 1 > edge_model_sequence) {
    char text[160];
    snprintf(text, sizeof text, "row %ld: %d tokens and %ld new ones do not fit: %d at most", index, length, o->tokens,
             edge_model_sequence + 1);
    fail(BAD_INPUT, o->inputs, text);
  }
  return length;
}

/* o->tokens tokens behind each prompt, each the most likely one: int64 [n, tokens]. The prompt is one counted
 * inference, and so is each token but the last, which nothing follows. All rows are checked before one is computed. */
static void generate(const options *o) {
  if (!edge_model_decodes || strcmp(edge_model_output[0].name, "token_logits"))
    fail(USAGE, "--tokens: this model is no causal decoder with token_logits", NULL);
  if (o->tokens < 1) fail(USAGE, "--tokens T (at least 1) is needed", NULL);
  const size_t wanted = (size_t)o->tokens;
  if (o->tokens > edge_model_sequence) fail(USAGE, "--tokens is larger than the longest sequence", NULL);
  int64_t *made = allocate((size_t)o->n * wanted * sizeof *made);
  const int64_t *prompt = NULL;
  for (long index = 0; index < o->n; index++) prompt_of(o, index, &prompt);
  for (long index = 0; index < o->n; index++) {
    const int length = prompt_of(o, index, &prompt);
    int64_t *to = made + (size_t)index * wanted;
    to[0] = step(0, prompt, length);
    for (int at = 1; at < o->tokens; at++) to[at] = step(length + at - 1, to + at - 1, 1);
  }
  if (o->outputs) write_file(o->outputs, made, (size_t)o->n * wanted * sizeof *made);
  free(made);
}
