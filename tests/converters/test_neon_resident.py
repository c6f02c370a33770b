"""Only the pages of a token table that rows have asked for stay mapped, and memory of no file is left alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgesdk.converters.neon.build import kernel_sources
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.testing.needs import need

ROWS, ROW_BYTES, SHIFT = 4000, 384, 100
DRIVER = r"""
#include "edge_vector.h"
#include "edge_resident.h"
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 4000, ROW_BYTES = 384, SHIFT = 100 }; /* the table does not begin at a page */
static uint8_t seen[ROWS * ROW_BYTES / 4096 + 2];

static int mapped(const char *table) { /* pages behind the first one, up to the last whole one */
  uintptr_t page = 4096, start = ((uintptr_t)table + page) / page * page;
  uintptr_t end = ((uintptr_t)table + ROWS * ROW_BYTES) / page * page;
  FILE *file = fopen("/proc/self/pagemap", "rb");
  int count = 0;
  for (uintptr_t at = start; at < end; at += page) {
    uint64_t entry = 0;
    fseek(file, (long)(at / page * 8), SEEK_SET);
    if (fread(&entry, 8, 1, file) == 1) count += entry >> 63;
  }
  fclose(file);
  return count;
}

static int sum(const char *table, int64_t row) {
  int total = 0;
  for (int at = 0; at < ROW_BYTES; at++) total += (unsigned char)table[row * ROW_BYTES + at];
  return total;
}

int main(int argc, char **argv) {
  int file = open(argv[1], O_RDONLY);
  size_t bytes = SHIFT + ROWS * ROW_BYTES;
  char *memory = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, 0);
  if (argc > 2) { /* a copy that belongs to no file */
    char *copy = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(copy, memory, bytes);
    memory = copy;
  }
  const char *table = memory + SHIFT;
  int64_t first[] = {1000, 3999, 0, 1001, 1000}, second[] = {2000, 1000, 1003};
  edge_touch_rows(first, 5, table, ROW_BYTES, ROWS * ROW_BYTES, seen);
  printf("%d ", mapped(table));
  edge_touch_rows(second, 3, table, ROW_BYTES, ROWS * ROW_BYTES, seen);
  printf("%d ", mapped(table));
  edge_touch_rows(first, 5, table, ROW_BYTES, ROWS * ROW_BYTES, seen);
  printf("%d ", mapped(table));
  printf("%d %d %d\n", sum(table, 1000), sum(table, 2000), sum(table, 2500));
  return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver, and beside it a file `table` of ROWS rows behind SHIFT other bytes."""
    toolchains = find_all("x86_64-linux-gnu")
    need(bool(toolchains), "no C compiler for x86-64")
    folder = tmp_path_factory.mktemp("resident")
    for name, content in kernel_sources().items():
        (folder / name).write_bytes(content)
    (folder / "driver.c").write_text(DRIVER)
    toolchains[0].compile("driver.c", "driver.o", ("-DEDGE_ISA_SCALAR=1", "-Werror"), folder)
    toolchains[0].link(("driver.o",), "driver", folder)
    (folder / "table").write_bytes(bytes(SHIFT) + table())
    return folder


def table() -> bytes:
    return b"".join(bytes([row % 251]) * ROW_BYTES for row in range(ROWS))


def answers(program: Path, *more: str) -> list[int]:
    done = subprocess.run([program / "driver", program / "table", *more], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def sums() -> list[int]:
    data = table()
    return [sum(data[row * ROW_BYTES : (row + 1) * ROW_BYTES]) for row in (1000, 2000, 2500)]


def pages(*rows: int) -> int:
    """Whole pages behind the table's first one that hold bytes of the rows."""
    found = {
        at // 4096 for row in rows for at in (SHIFT + row * ROW_BYTES, SHIFT + (row + 1) * ROW_BYTES - 1)
    }
    return len({page for page in found if 0 < page < (SHIFT + ROWS * ROW_BYTES) // 4096})


def test_only_pages_of_asked_rows_are_mapped(program: Path) -> None:
    """After a first call, after one with new rows, and after one that brings nothing new."""
    first, second = (0, 1000, 1001, 3999), (2000, 1003)
    *found, one, two, three = answers(program)
    assert found == [pages(*first), pages(*first, *second), pages(*first, *second)]
    assert [one, two, three] == sums()


def test_memory_of_no_file_keeps_its_content(program: Path) -> None:
    assert answers(program, "copy")[3:] == sums()
