"""Threads of the NEON build: the same bits for every number of them, and a pool that neither hangs nor loses work."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_graphs import BRANCHED, ROWS, SEQUENCE, Sample, make, sample
from sanitizers import with_sanitizer

from edgesdk.converters.neon import convert
from edgesdk.converters.neon.build import kernel_sources, write_files
from edgesdk.converters.neon.kernel_sets import choose
from edgesdk.converters.neon.toolchain import COMMON, find, find_all
from edgesdk.targets import load_target
from edgesdk.testing.needs import need

I8MM = str(Path(__file__).with_name("i8mm.toml"))
QEMU = {"host": [], "raspberry-pi/4": ["qemu-aarch64", "-cpu", "cortex-a72"],
        "raspberry-pi/5": ["qemu-aarch64", "-cpu", "cortex-a76"], I8MM: ["qemu-aarch64", "-cpu", "max"]}
POOL = r"""
#include "edge_pool.h"
#include <stdio.h>
#include <string.h>
static int done[EDGE_MOST_THREADS];
static void work(void *job, int part, int parts) { done[part] += *(int *)job; (void)parts; }
int main(void) {
  for (int threads = 1; threads <= EDGE_MOST_THREADS; threads += 3) {
    edge_pool pool;
    if (edge_pool_start(&pool, threads)) return 2;
    memset(done, 0, sizeof done);
    for (int round = 1; round <= ROUNDS; round++) edge_pool_run(&pool, work, &round);
    for (int part = 0; part < EDGE_MOST_THREADS; part++)
      if (done[part] != (part < threads ? ROUNDS * (ROUNDS + 1) / 2 : 0)) return 3;
    edge_pool_stop(&pool);
  }
  edge_pool pool;
  if (!edge_pool_start(&pool, 0) || !edge_pool_start(&pool, EDGE_MOST_THREADS + 1)) return 4;
  puts("ok");
  return 0;
}
"""


@functools.cache
def case_of(kind: str, scheme: str) -> Sample:
    return make(BRANCHED, scheme, SEQUENCE, seed=3) if kind == "branched" else sample(kind, scheme)


@pytest.mark.parametrize(
    ("target", "kind", "scheme"),
    [
        ("host", "bert_pooler", "fp32"), ("host", "bert_mean_grouped", "w8a8"), ("host", "vit", "w8a8-dynamic"),
        ("host", "branched", "w8a8"), ("host", "decoder", "fp32"), ("host", "llama", "w8a8-dynamic"),
        ("host", "vit_mean_grouped", "w8a8-dynamic"),
        ("raspberry-pi/5", "bert_pooler", "w8a8"), ("raspberry-pi/4", "bert_mean_grouped", "w8a8-dynamic"),
        (I8MM, "bert_mean_grouped", "w8a8"),
        ("host", "blocks", "w8a8"), ("host", "blocks", "w8a8-dynamic"), ("host", "bert_pooler", "w4a8"),
        ("raspberry-pi/5", "blocks", "w8a8"), ("raspberry-pi/4", "blocks", "w8a8-dynamic"), (I8MM, "blocks", "w8a8"),
        ("raspberry-pi/5", "bert_pooler", "w4a8"), (I8MM, "bert_mean_grouped", "w4a8-dynamic"),
    ],
)
def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path, target: str, kind: str, scheme: str) -> None:
    triple = choose(load_target(target)).triple
    need(bool(find_all(triple)), f"no C compiler for {triple}")
    need(target == "host" or shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
    case = case_of(kind, scheme)
    artifact = convert(case.package(), load_target(target), tmp_path)
    for stored, meant in (("block-sparse", kind == "blocks"), ("4-bit weights", scheme.startswith("w4"))):
        assert not meant or any(note.startswith(stored) for note in artifact.notes)
    (tmp_path / "in.bin").write_bytes(b"".join(case.inputs[tensor.name].tobytes() for tensor in artifact.inputs))
    answers = []
    for threads in (1, 2, 3, 5) if target == "host" else (1, 3):
        words = ["run", "--inputs", "in.bin", "--n", str(ROWS), "--outputs", "out.bin", "--threads", str(threads)]
        subprocess.run([*QEMU[target], str(tmp_path / "model"), *words], cwd=tmp_path, check=True, timeout=60)
        answers.append((tmp_path / "out.bin").read_bytes())
    assert answers[0] and len(set(answers)) == 1


@pytest.mark.parametrize("threads", ["0", "17", "x", "-1"])
def test_bad_number_of_threads_is_refused(tmp_path: Path, threads: str) -> None:
    case = case_of("vit", "w8a8-dynamic")
    artifact = convert(case.package(), load_target("host"), tmp_path)
    (tmp_path / "in.bin").write_bytes(b"".join(case.inputs[tensor.name].tobytes() for tensor in artifact.inputs))
    words = ["run", "--inputs", "in.bin", "--n", str(ROWS), "--outputs", "out.bin", "--threads", threads]
    done = subprocess.run([str(tmp_path / "model"), *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 64 and "threads" in done.stderr


@pytest.mark.parametrize("sanitizer", ["", "thread"])
def test_pool_runs_every_part_of_every_round(tmp_path: Path, sanitizer: str) -> None:
    """Rounds with more threads than cores, so that they sleep and wake; once under ThreadSanitizer."""
    triple = choose(load_target("host")).triple
    need(bool(find_all(triple)), f"no C compiler for {triple}")
    write_files(tmp_path, {**kernel_sources(), "main.c": POOL.encode()})
    plain, watched = (*COMMON, "-no-pie", "-DROUNDS=100"), ("-O1", "-g", f"-fsanitize={sanitizer}", "-DROUNDS=20")
    flags = watched if sanitizer else plain
    toolchain = with_sanitizer(triple, sanitizer) if sanitizer else find(triple)
    toolchain.run((*flags, "main.c", "edge_pool.c", "-pthread", "-o", "pool"), tmp_path)
    done = subprocess.run([str(tmp_path / "pool")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-2000:]
