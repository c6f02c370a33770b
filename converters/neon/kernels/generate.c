/* The likeliest continuation: generate N ID ID ... prints N tokens behind the prompt of the given ids.
 * cc generate.c -Iinclude lib/libmodel.a -lm -pthread -o generate */
#include <edge_api.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  edge_model *model;
  if (argc < 3 || edge_create(&model, NULL, 0, 1) != EDGE_OK) return 1;
  const int64_t vocabulary = edge_output(0)->shape[2];
  float *logits = malloc(edge_output(0)->bytes);
  int64_t *ids = calloc((size_t)argc, sizeof *ids); /* first the prompt, then one token at a time */
  int count = argc - 2;
  for (int at = 0; at < count; at++) ids[at] = atoll(argv[at + 2]);
  for (int made = atoi(argv[1]); made > 0; made--, count = 1) {
    if (edge_step(model, ids, count, logits) != EDGE_OK) return puts(edge_message(model)), 1;
    const float *last = logits + (count - 1) * vocabulary;
    ids[0] = 0;
    for (int64_t id = 1; id < vocabulary; id++)
      if (last[id] > last[ids[0]]) ids[0] = id;
    printf("%lld\n", (long long)ids[0]);
  }
  edge_destroy(model);
  return 0;
}
