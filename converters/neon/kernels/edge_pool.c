#include "edge_pool.h"

#include <errno.h>

enum { SPINS = 1 << 12 };

static void pause_briefly(void) {
#if defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory"); /* `yield` is over at once */
#elif defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/* Wait until *word is no longer `seen`. */
static void await(edge_pool *pool, atomic_uint *word, unsigned seen) {
  for (int spin = 0; spin < SPINS; spin++) {
    if (atomic_load(word) != seen) return;
    pause_briefly();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleepers, 1); /* before the word is read again: who changes it then sees the sleeper */
  while (atomic_load(word) == seen) pthread_cond_wait(&pool->changed, &pool->lock);
  atomic_fetch_sub(&pool->sleepers, 1);
  pthread_mutex_unlock(&pool->lock);
}

static void advance(edge_pool *pool, atomic_uint *word) {
  atomic_fetch_add(word, 1);
  if (!atomic_load(&pool->sleepers)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->lock);
}

static void *worker(void *argument) {
  edge_pool *pool = argument;
  const int part = 1 + (int)atomic_fetch_add(&pool->ready, 1);
  for (unsigned seen = 0;; seen++) {
    await(pool, &pool->begun, seen);
    if (pool->stopping) return NULL;
    pool->work(pool->job, part, pool->threads);
    if (atomic_fetch_sub(&pool->left, 1) == 1) advance(pool, &pool->finished);
  }
}

int edge_pool_start(edge_pool *pool, int threads) {
  if (threads < 1 || threads > EDGE_MOST_THREADS) return EINVAL;
  pool->threads = 1;
  pool->stopping = 0;
  atomic_init(&pool->begun, 0);
  atomic_init(&pool->finished, 0);
  atomic_init(&pool->left, 0);
  atomic_init(&pool->sleepers, 0);
  atomic_init(&pool->ready, 0);
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->changed, NULL);
  for (; pool->threads < threads; pool->threads++) {
    int problem = pthread_create(&pool->workers[pool->threads - 1], NULL, worker, pool);
    if (problem) {
      edge_pool_stop(pool);
      return problem;
    }
  }
  return 0;
}

void edge_pool_run(edge_pool *pool, edge_work *work, void *job) {
  if (pool->threads == 1) {
    work(job, 0, 1);
    return;
  }
  const unsigned before = atomic_load(&pool->finished);
  pool->work = work;
  pool->job = job;
  atomic_store(&pool->left, (unsigned)pool->threads - 1);
  advance(pool, &pool->begun);
  work(job, 0, pool->threads);
  await(pool, &pool->finished, before);
}

void edge_pool_stop(edge_pool *pool) {
  pool->stopping = 1;
  advance(pool, &pool->begun);
  for (int at = 0; at < pool->threads - 1; at++) pthread_join(pool->workers[at], NULL);
  pthread_mutex_destroy(&pool->lock);
  pthread_cond_destroy(&pool->changed);
}
