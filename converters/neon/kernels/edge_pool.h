/* A fixed pool of threads for one model: work is split by part number, so what a part computes never depends on how
 * fast the others are. Waiting threads spin for a moment, then sleep. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>

enum { EDGE_MOST_THREADS = 16 };

typedef void edge_work(void *job, int part, int parts);

typedef struct edge_pool {
  int threads; /* parts: the caller of edge_pool_run is one of them */
  edge_work *work;
  void *job;
  atomic_uint begun, finished, left, sleepers, ready;
  int stopping;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  pthread_t workers[EDGE_MOST_THREADS - 1];
} edge_pool;

/* Start `threads` - 1 workers; 0, or the errno of what failed (nothing is left running then). The only allocation is
 * that of the threads' stacks. */
int edge_pool_start(edge_pool *pool, int threads);
/* work(job, part, threads) for every part, at the same time; returns when all are done. */
void edge_pool_run(edge_pool *pool, edge_work *work, void *job);
void edge_pool_stop(edge_pool *pool);
