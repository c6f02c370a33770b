/* One inference with inputs of zeros: cc example.c -Iinclude lib/libmodel.a -lm -pthread -o example */
#include <edge_api.h>
#include <stdio.h>
#include <stdlib.h>

int main(void) {
  edge_model *model;
  if (edge_create(&model, NULL, 0, 1) != EDGE_OK) return 1;
  const void *inputs[4] = {NULL};
  void *outputs[4] = {NULL};
  for (int at = 0; at < edge_inputs(); at++) inputs[at] = calloc(1, edge_input(at)->bytes);
  for (int at = 0; at < edge_outputs(); at++) outputs[at] = calloc(1, edge_output(at)->bytes);
  if (edge_infer(model, inputs, edge_max_length(), outputs) != EDGE_OK) return puts(edge_message(model)), 1;
  const float *answer = outputs[0];
  for (size_t at = 0; at < edge_output(0)->bytes / sizeof *answer && at < 10; at++) printf("%.9g\n", answer[at]);
  edge_destroy(model);
  return 0;
}
