/* One inference by ONNX Runtime's C API, in a process of its own:
 *   neon_process_ort MODEL.onnx IDS.bin MASK.bin OUT.bin   (int64 [1, n] each; OUT.bin gets the first output)
 * It prints its peak RSS in bytes. The library's wheel has no header; functions are named by their place in the table
 * OrtApi, which only grows at its end. That they are the right ones shows in OUT.bin, which the caller compares. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *object;
typedef struct {
  object *(*get_api)(uint32_t version);
  const char *(*version)(void);
} api_base;
extern const api_base *OrtGetApiBase(void);

enum { API_VERSION = 13, ERROR_LEVEL = 3, INT64 = 7, ALL_OPTIMIZATIONS = 99, MOST_TOKENS = 4096 };
enum { /* places in OrtApi */
  GET_ERROR_MESSAGE = 2, CREATE_ENV = 3, CREATE_SESSION = 7, RUN = 9, CREATE_SESSION_OPTIONS = 10,
  SET_OPTIMIZATION_LEVEL = 23, SET_INTRA_OP_THREADS = 24, SET_INTER_OP_THREADS = 25, CREATE_TENSOR_WITH_DATA = 49,
  GET_TENSOR_DATA = 51, GET_ELEMENT_COUNT = 64, GET_TENSOR_TYPE_AND_SHAPE = 65, CREATE_CPU_MEMORY_INFO = 69
};
static object *api;

static void check(object status) {
  if (!status) return;
  fprintf(stderr, "onnxruntime: %s\n", ((const char *(*)(object))api[GET_ERROR_MESSAGE])(status));
  exit(1);
}

static size_t read_ids(const char *path, int64_t *values) {
  FILE *file = fopen(path, "rb");
  if (!file) exit(2);
  size_t count = fread(values, sizeof *values, MOST_TOKENS, file);
  fclose(file);
  return count;
}

static long peak_rss(void) {
  char line[256];
  long kib = -1;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %ld kB", &kib) == 1) break;
  return kib * 1024;
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  static int64_t values[2][MOST_TOKENS];
  static const char *const names[] = {"input_ids", "attention_mask"};
  api = OrtGetApiBase()->get_api(API_VERSION);
  object environment, options, session, memory, inputs[2], output = NULL, shape;
  check(((object(*)(int, const char *, object *))api[CREATE_ENV])(ERROR_LEVEL, "edge", &environment));
  check(((object(*)(object *))api[CREATE_SESSION_OPTIONS])(&options));
  check(((object(*)(object, int))api[SET_OPTIMIZATION_LEVEL])(options, ALL_OPTIMIZATIONS));
  check(((object(*)(object, int))api[SET_INTRA_OP_THREADS])(options, 1));
  check(((object(*)(object, int))api[SET_INTER_OP_THREADS])(options, 1));
  check(((object(*)(object, const char *, object, object *))api[CREATE_SESSION])(environment, argv[1], options,
                                                                                &session));
  check(((object(*)(int, int, object *))api[CREATE_CPU_MEMORY_INFO])(0, 0, &memory));
  for (int i = 0; i < 2; i++) {
    size_t count = read_ids(argv[2 + i], values[i]);
    int64_t dimensions[] = {1, (int64_t)count};
    check(((object(*)(object, void *, size_t, const int64_t *, size_t, int, object *))api[CREATE_TENSOR_WITH_DATA])(
        memory, values[i], count * sizeof(int64_t), dimensions, 2, INT64, &inputs[i]));
  }
  static const char *const results[] = {"logits"};
  typedef const char *const *strings;
  check(((object(*)(object, object, strings, object *, size_t, strings, size_t, object *))api[RUN])(
      session, NULL, names, inputs, 2, results, 1, &output));
  size_t count;
  float *data;
  check(((object(*)(object, object *))api[GET_TENSOR_TYPE_AND_SHAPE])(output, &shape));
  check(((object(*)(object, size_t *))api[GET_ELEMENT_COUNT])(shape, &count));
  check(((object(*)(object, void **))api[GET_TENSOR_DATA])(output, (void **)&data));
  FILE *file = fopen(argv[4], "wb");
  if (!file || fwrite(data, sizeof *data, count, file) != count || fclose(file)) return 3;
  printf("%ld\n", peak_rss());
  return 0;
}
