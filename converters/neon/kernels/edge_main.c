/* The runner: one static binary that answers, times and counts its own model.
 *
 *   model info
 *   model run   --inputs IN.bin --n N --outputs OUT.bin [--exits EXITS.bin]
 *   model bench --inputs IN.bin --n N --samples SAMPLES.bin [--seed S] [--warmup-iterations I] [--warmup-seconds X]
 *               [--max-warmup-seconds C] [--window-seconds W] [--min-samples M] [--steady-percent P]
 *   model count --inputs IN.bin --n N
 *   model profile --inputs IN.bin --n N
 *   model generate --inputs IN.bin --n N --tokens T [--outputs OUT.bin]
 *
 * Every command but `info` takes --threads T (default 1). IN.bin holds for each input in order a raw little-endian
 * block [n, ...]. OUT.bin gets the first output, of `generate` the new tokens: int64 [n, T] (without it they are
 * computed, to be counted, and dropped). EXITS.bin gets the second output of a model with exits: int64 [n], the layer
 * after which each input left. Exit codes: 64 usage, 65 a bad input file, 70 anything else. */
#define _GNU_SOURCE
#include "edge_model.h"
#include "edge_pool.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum { USAGE = 64, BAD_INPUT = 65, INTERNAL = 70, BLOCK = 10, MARKER = 0x45444745, FIRST_STEP = 100, MOST_TENSORS = 4 };
static const int64_t SHORT_NS = 1000000; /* samples are at least this long */

typedef struct {
  const char *inputs, *outputs, *samples, *exits;
  long n, threads, tokens, seed, warmup_iterations, min_samples;
  double warmup_seconds, max_warmup_seconds, window_seconds, steady_percent;
} options;

static char *rows;     /* the whole input file */
static char *answers;  /* outputs of one row, or of all rows in `run` */
static size_t row_bytes[MOST_TENSORS], answer_bytes[MOST_TENSORS];
static edge_pool pool;
static edge_call model;

static _Noreturn void fail(int code, const char *what, const char *detail) {
  fprintf(stderr, "model: %s%s%s\n", what, detail ? ": " : "", detail ? detail : "");
  exit(code);
}

static int64_t now_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t now(void) { return now_ns(CLOCK_MONOTONIC_RAW); }

static void *allocate(size_t bytes) {
  void *memory = calloc(1, bytes ? bytes : 1);
  if (!memory) fail(INTERNAL, "out of memory", NULL);
  return memory;
}

static long whole(const char *text, const char *key) {
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (errno || *end || end == text || value < 0) fail(USAGE, "not a whole number", key);
  return value;
}

static double seconds(const char *text, const char *key) {
  char *end;
  double value = strtod(text, &end);
  if (*end || end == text || !(value >= 0) || isinf(value)) fail(USAGE, "not a number that is 0 or more", key);
  return value;
}

static options parse(int count, char **words) {
  options o = {.n = -1, .threads = 1, .warmup_iterations = 20, .min_samples = 100, .warmup_seconds = 0.5,
               .max_warmup_seconds = 10, .window_seconds = 1, .steady_percent = 5};
  for (int at = 0; at < count; at += 2) {
    const char *key = words[at];
    if (at + 1 == count) fail(USAGE, "missing value", key);
    const char *value = words[at + 1];
    if (!strcmp(key, "--inputs")) o.inputs = value;
    else if (!strcmp(key, "--outputs")) o.outputs = value;
    else if (!strcmp(key, "--samples")) o.samples = value;
    else if (!strcmp(key, "--exits")) o.exits = value;
    else if (!strcmp(key, "--threads")) o.threads = whole(value, key);
    else if (!strcmp(key, "--tokens")) o.tokens = whole(value, key);
    else if (!strcmp(key, "--n")) o.n = whole(value, key);
    else if (!strcmp(key, "--seed")) o.seed = whole(value, key);
    else if (!strcmp(key, "--warmup-iterations")) o.warmup_iterations = whole(value, key);
    else if (!strcmp(key, "--min-samples")) o.min_samples = whole(value, key);
    else if (!strcmp(key, "--warmup-seconds")) o.warmup_seconds = seconds(value, key);
    else if (!strcmp(key, "--max-warmup-seconds")) o.max_warmup_seconds = seconds(value, key);
    else if (!strcmp(key, "--window-seconds")) o.window_seconds = seconds(value, key);
    else if (!strcmp(key, "--steady-percent")) o.steady_percent = seconds(value, key);
    else fail(USAGE, "unknown option", key);
  }
  if (o.threads < 1 || o.threads > EDGE_MOST_THREADS) fail(USAGE, "--threads must be 1 to 16", NULL);
  if (!o.inputs || o.n < 1) fail(USAGE, "--inputs IN.bin and --n N (at least 1) are needed", NULL);
  return o;
}

/* Row `index` of every input. */
static void row_of(const options *o, long index, const void *inputs[]) {
  const char *block = rows;
  for (int i = 0; i < edge_model_inputs; i++) {
    inputs[i] = block + (size_t)index * row_bytes[i];
    block += (size_t)o->n * row_bytes[i];
  }
}

/* The tokens of row `index`, by its attention_mask: 0 where the model has none; -1 and `problem` where it is bad. */
static int length_of(const void *const inputs[], const char **problem) {
  const int64_t *mask = NULL;
  int length = 0;
  for (int i = 0; i < edge_model_inputs; i++)
    if (!strcmp(edge_model_input[i].name, "attention_mask")) mask = inputs[i];
  if (!mask) return 0;
  for (int at = 0; at < edge_model_sequence; at++) {
    if (mask[at] != 0 && mask[at] != 1) *problem = "attention_mask holds something else than 0 and 1";
    else if (at && mask[at] > mask[at - 1]) *problem = "attention_mask has padding in front of a token";
    else length += (int)mask[at];
    if (*problem) return -1;
  }
  if (!length) *problem = "attention_mask masks everything";
  return length;
}

static void read_inputs(const options *o) {
  size_t one = 0, expected;
  for (int i = 0; i < edge_model_inputs; i++) one += row_bytes[i] = edge_model_input[i].bytes;
  if (__builtin_mul_overflow(one, (size_t)o->n, &expected)) fail(BAD_INPUT, "--n is too large", NULL);
  FILE *file = fopen(o->inputs, "rb");
  if (!file) fail(BAD_INPUT, o->inputs, strerror(errno));
  if (fseek(file, 0, SEEK_END)) fail(BAD_INPUT, o->inputs, strerror(errno));
  long size = ftell(file);
  if (size < 0 || (size_t)size != expected) {
    char text[96];
    snprintf(text, sizeof text, "has %ld bytes, expected %zu for %ld rows", size, expected, o->n);
    fail(BAD_INPUT, o->inputs, text);
  }
  rewind(file);
  rows = allocate(expected);
  if (fread(rows, 1, expected, file) != expected) fail(BAD_INPUT, o->inputs, "cannot be read");
  fclose(file);
  for (long index = 0; index < o->n; index++) {
    const void *inputs[MOST_TENSORS];
    row_of(o, index, inputs);
    const char *problem = edge_model_check(inputs, edge_model_sequence);
    if (!problem) length_of(inputs, &problem);
    if (problem) {
      char text[160];
      snprintf(text, sizeof text, "row %ld: %s", index, problem);
      fail(BAD_INPUT, o->inputs, text);
    }
  }
}

static void infer(const options *o, long index) {
  const void *inputs[MOST_TENSORS];
  const char *problem = NULL;
  void *outputs[MOST_TENSORS];
  size_t at = 0;
  row_of(o, index, inputs);
  for (int i = 0; i < edge_model_outputs; at += answer_bytes[i++]) outputs[i] = answers + at;
  model.past = 0;
  model.length = length_of(inputs, &problem); /* that it is right was checked when it was read */
  model.rows = edge_model_padding ? edge_model_sequence : model.length;
  edge_model_run(&model, inputs, outputs);
}

static void write_file(const char *path, const void *data, size_t bytes) {
  FILE *file = fopen(path, "wb");
  if (!file) fail(INTERNAL, path, strerror(errno));
  if (fwrite(data, 1, bytes, file) != bytes || fflush(file) || fclose(file)) fail(INTERNAL, path, strerror(errno));
}

static void run(const options *o) {
  if (!o->outputs) fail(USAGE, "--outputs OUT.bin is needed", NULL);
  if (o->exits && edge_model_outputs < 2) fail(USAGE, "--exits: this model has no exits", NULL);
  const size_t first = answer_bytes[0], second = o->exits ? answer_bytes[1] : 0, n = (size_t)o->n;
  char *blocks = allocate(first * n), *exits = allocate(second * n);
  for (size_t index = 0; index < n; index++) {
    infer(o, (long)index);
    memcpy(blocks + index * first, answers, first);
    memcpy(exits + index * second, answers + first, second);
  }
  write_file(o->outputs, blocks, first * n);
  if (o->exits) write_file(o->exits, exits, second * n);
  free(blocks);
  free(exits);
}

static int ascending(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

static double median(const int64_t *values, size_t count) {
  int64_t *sorted = allocate(count * sizeof *sorted);
  memcpy(sorted, values, count * sizeof *sorted);
  qsort(sorted, count, sizeof *sorted, ascending);
  double middle = 0.5 * ((double)sorted[(count - 1) / 2] + (double)sorted[count / 2]);
  free(sorted);
  return middle;
}

/* The medians of the last two blocks differ by less than `percent`. */
static int is_steady(const int64_t *durations, size_t count, double percent) {
  if (count < 2 * BLOCK) return 0;
  double before = median(durations + count - 2 * BLOCK, BLOCK), last = median(durations + count - BLOCK, BLOCK);
  return fabs(last - before) < percent / 100 * before;
}

static void append(int64_t **values, size_t *count, int64_t value) {
  if ((*count & (*count - 1)) == 0) {
    *values = realloc(*values, (*count ? 2 * *count : 1) * sizeof **values);
    if (!*values) fail(INTERNAL, "out of memory", NULL);
  }
  (*values)[(*count)++] = value;
}

static uint64_t splitmix(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static long peak_rss_bytes(void) {
  char line[256];
  long kib = -1;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %ld kB", &kib) == 1) break;
  if (file) fclose(file);
  return kib < 0 ? -1 : kib * 1024;
}

static void bench(const options *o, int64_t cold_load) {
  if (!o->samples) fail(USAGE, "--samples SAMPLES.bin is needed", NULL);
  long *order = allocate((size_t)o->n * sizeof *order);
  uint64_t state = (uint64_t)o->seed;
  for (long i = 0; i < o->n; i++) order[i] = i;
  for (long i = o->n - 1; i > 0; i--) {
    long other = (long)(splitmix(&state) % (uint64_t)(i + 1)), kept = order[i];
    order[i] = order[other];
    order[other] = kept;
  }
  int64_t *warm = NULL, *samples = NULL;
  size_t warmed = 0, count = 0, position = 0;
  int steady = 0;
  int64_t start = now(), elapsed;
  for (;;) {
    int64_t before = now();
    infer(o, order[position++ % (size_t)o->n]);
    int64_t after = now();
    append(&warm, &warmed, after - before);
    elapsed = after - start;
    if (warmed >= (size_t)o->warmup_iterations && elapsed >= o->warmup_seconds * 1e9)
      steady = is_steady(warm, warmed, o->steady_percent);
    if (steady) break;
    if (elapsed >= o->max_warmup_seconds * 1e9) break;
  }
  size_t recent = warmed < 2 * BLOCK ? warmed : 2 * BLOCK;
  double typical = fmax(1.0, median(warm + warmed - recent, recent));
  long batch = typical >= SHORT_NS ? 1 : (long)ceil(SHORT_NS / typical);
  for (int i = 0; i < edge_model_branches; i++) model.taken[i] = 0;
  int64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID), window = now(), window_end;
  for (;;) {
    int64_t before = now();
    for (long i = 0; i < batch; i++) infer(o, order[position++ % (size_t)o->n]);
    window_end = now();
    append(&samples, &count, window_end - before);
    if (window_end - window >= o->window_seconds * 1e9 && count >= (size_t)o->min_samples) break;
  }
  cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
  write_file(o->samples, samples, count * sizeof *samples);
  printf("{\"format\":\"edgesdk.round\",\"version\":1,\"count\":%zu,\"batch\":%ld,\"p50_ns\":%.0f,"
         "\"cold_load_ns\":%lld,\"first_inference_ns\":%lld,\"warmup\":{\"iterations\":%zu,\"seconds\":%.6f},"
         "\"steady\":%s,\"peak_rss_bytes\":%ld,\"cpu_ns\":%lld,\"window_start_ns\":%lld,\"window_end_ns\":%lld",
         count, batch, median(samples, count) / (double)batch, (long long)cold_load, (long long)warm[0], warmed,
         (double)elapsed * 1e-9, steady ? "true" : "false", peak_rss_bytes(), (long long)cpu, (long long)window,
         (long long)window_end);
  /* How often each exit was taken and each gate let a layer run. */
  printf(",\"threads\":%ld,\"branches\":{", o->threads);
  for (int i = 0; i < edge_model_branches; i++)
    printf("%s\"%s\":%lld", i ? "," : "", edge_model_branch[i], (long long)model.taken[i]);
  printf("}}\n");
}

/* Instruction counters watch for these two calls; the kernel refuses them, which costs one system call. */
static void begin_count(void) { prctl(MARKER, 1, 0, 0, 0); }
static void end_count(void) { prctl(MARKER, 2, 0, 0, 0); }

#include "edge_generate.h"

static void count(const options *o) {
  for (int i = 0; i < 2; i++) infer(o, 0);
  for (long index = 0; index < o->n; index++) {
    begin_count();
    infer(o, index);
    end_count();
  }
}

static int64_t *step_ns, last_step;

/* Step `i` ended: its time is taken. Outside of it the marker FIRST_STEP + i tells a counter of instructions. */
static void step_done(int i) {
  step_ns[i] += now() - last_step;
  prctl(MARKER, FIRST_STEP + i, 0, 0, 0);
  last_step = now();
}

/* Where the time goes: the mean of each step over the rows, in ns. A step in a branch that was not taken has 0. */
static void profile(const options *o) {
  step_ns = allocate((size_t)edge_model_steps * sizeof *step_ns);
  for (int i = 0; i < 2; i++) infer(o, 0);
  model.done = step_done;
  for (long index = 0; index < o->n; index++) {
    begin_count();
    last_step = now();
    infer(o, index);
    end_count();
  }
  printf("{\"format\":\"edgesdk.profile\",\"version\":1,\"n\":%ld,\"threads\":%ld,\"steps\":[", o->n, o->threads);
  for (int i = 0; i < edge_model_steps; i++)
    printf("%s{\"name\":\"%s\",\"kind\":\"%s\",\"ns\":%.0f}", i ? "," : "", edge_model_step[i].name,
           edge_model_step[i].kind, (double)step_ns[i] / (double)o->n);
  printf("]}\n");
}

static void print_tensors(const char *key, const edge_tensor *tensors, int count) {
  printf(",\"%s\":[", key);
  for (int i = 0; i < count; i++)
    printf("%s{\"name\":\"%s\",\"dtype\":\"%s\",\"bytes\":%zu}", i ? "," : "", tensors[i].name, tensors[i].dtype,
           tensors[i].bytes);
  printf("]");
}

static void info(void) {
  printf("{\"name\":\"%s\",\"isa\":%s,\"arena_bytes\":%zu,\"weight_bytes\":%zu", edge_model_name, edge_model_isa,
         edge_model_arena_bytes, edge_model_weight_bytes);
  print_tensors("inputs", edge_model_input, edge_model_inputs);
  print_tensors("outputs", edge_model_output, edge_model_outputs);
  printf("}\n");
}

int main(int argc, char **argv) {
  int64_t started = now();
  const char *command = argc > 1 ? argv[1] : "";
  if (!strcmp(command, "info") && argc == 2) {
    info();
    return 0;
  }
  int running = !strcmp(command, "run"), benching = !strcmp(command, "bench"), profiling = !strcmp(command, "profile");
  int generating = !strcmp(command, "generate");
  if (!running && !benching && !profiling && !generating && strcmp(command, "count"))
    fail(USAGE, "expected info, run, bench, count, profile or generate", NULL);
  options o = parse(argc - 2, argv + 2);
  const char *lacking = edge_model_cpu();
  if (lacking) fail(INTERNAL, lacking, "build the artifact for this target");
  size_t one = 0;
  for (int i = 0; i < edge_model_outputs; i++) one += answer_bytes[i] = edge_model_output[i].bytes;
  answers = allocate(one);
  model.arena = edge_model_arena;
  model.taken = allocate((size_t)edge_model_branches * sizeof *model.taken);
  if (o.threads > 1) {
    model.scratch = aligned_alloc(64, edge_model_scratch_bytes * (size_t)o.threads + 64);
    if (!model.scratch || edge_pool_start(&pool, (int)o.threads)) fail(INTERNAL, "the threads cannot be started", NULL);
    model.pool = &pool;
  }
  int64_t cold_load = now() - started; /* there is nothing else to load: weights are pages of this file */
  read_inputs(&o);
  if (running) run(&o);
  else if (benching) bench(&o, cold_load);
  else if (profiling) profile(&o);
  else if (generating) generate(&o);
  else count(&o);
  return fflush(stdout) || ferror(stdout) ? INTERNAL : 0;
}
