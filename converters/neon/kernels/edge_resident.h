/* Only the rows of a large table that are read stay resident.
 *
 * Linux maps what lies around a page that is read first: 64 KB, or 2 MB where the page cache holds the file in large
 * folios. A few hundred rows here and there would make all of a table resident. Here pages are read first, and
 * those that no row has asked for are given back: once for each page, never again for rows that come again. It is done
 * only where the pages belong to a file: memory that an unusual loader has copied would be lost. */
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { EDGE_AROUND = 1 << 21 };

/* A table's pages, from `start` (which may hold something else in front) up to `end`; `seen` has a byte for each. */
typedef struct {
  uintptr_t page, start, end;
  uint8_t *seen;
} edge_pages;

EDGE_INLINE int edge_is_seen(const edge_pages *pages, uintptr_t at) {
  return __atomic_load_n(pages->seen + (at - pages->start) / pages->page, __ATOMIC_RELAXED);
}

/* Unmap the pages from `from` up to `to` that no row has asked for. */
EDGE_INLINE void edge_give_back(const edge_pages *pages, uintptr_t from, uintptr_t to) {
  uintptr_t run = from > pages->start ? from : pages->start + pages->page;
  to = to < pages->end ? to : pages->end;
  for (uintptr_t at = run; at <= to; at += pages->page) {
    if (at < to && !edge_is_seen(pages, at)) continue;
    if (at > run) madvise((void *)run, at - run, MADV_DONTNEED);
    run = at + pages->page;
  }
}

/* Whether a page that has been read belongs to a file (bits 63 and 61 of its entry). */
EDGE_INLINE int edge_is_of_file(uintptr_t at, uintptr_t page) {
  uint64_t entry = 0;
  int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  if (pread(file, &entry, sizeof entry, (off_t)(at / page * sizeof entry)) != sizeof entry) entry = 0;
  close(file);
  return (entry >> 63 & 1) && (entry >> 61 & 1);
}

/* Read the pages of the rows `ids` of a table; `seen`, zeros at first, has a byte for each of its pages. The first call
 * gives back at its end, when little else is resident; later ones after each new page. Several models may share a
 * table: a page that is given back once too often is mapped again. */
EDGE_KERNEL void edge_touch_rows(const int64_t *ids, int rows, const void *table, size_t row_bytes, size_t table_bytes,
                                 uint8_t *seen) {
  static int of_file; /* 1 yes, -1 no */
  const int known = __atomic_load_n(&of_file, __ATOMIC_RELAXED);
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)table;
  const edge_pages pages = {page, first / page * page, (first + table_bytes) / page * page, seen};
  if (!known) madvise((void *)pages.start, pages.end - pages.start, MADV_NOHUGEPAGE); /* of which no part can go */
  for (int row = 0; known >= 0 && row < rows; row++) {
    const uintptr_t begin = first + (size_t)ids[row] * row_bytes;
    for (uintptr_t at = begin / page * page; at < begin + row_bytes; at += page) {
      if (edge_is_seen(&pages, at)) continue;
      __atomic_store_n(seen + (at - pages.start) / page, 1, __ATOMIC_RELAXED);
      (void)*(const volatile uint8_t *)(at < begin ? begin : at);
      if (known) edge_give_back(&pages, at / EDGE_AROUND * EDGE_AROUND, at / EDGE_AROUND * EDGE_AROUND + EDGE_AROUND);
    }
  }
  if (known || rows < 1) return;
  const int found = edge_is_of_file((first + (size_t)ids[0] * row_bytes) / page * page, page) ? 1 : -1;
  if (found > 0) edge_give_back(&pages, pages.start, pages.end);
  __atomic_store_n(&of_file, found, __ATOMIC_RELAXED);
}
