"""The table of compression recipes: what each family buys on real data, alone and in combination.

    python benchmarks/compression.py --data DATA/clinc150 --model PATH --banking DATA/banking77
    python benchmarks/compression.py --data DATA/clinc150 --model PATH --only teacher goal-a
    python benchmarks/compression.py          (writes docs/recipes.md anew from the results that are there)

DATA holds CLINC150 (data_full.json) and Banking77 (train.csv, test.csv); PATH is the folder of all-MiniLM-L6-v2. The
whole table takes up to three CPU hours; everything is kept in the cache, so a killed run goes on where it was.

Parts run apart: `teacher`; the goals' presets `goal-a` … `goal-e`, `goal-fast`, `banking-a` … `banking-c`; families
`family-prune` … ; then `latency`, `test` and `table`. Recipes are chosen by what they keep on rows for choosing, which
each part prints; rows that prove the promises of exits are never among them. `test` first writes the digests of all
recipes, data and made files down (the freeze), then reads the test split; when anything changed since, it refuses, and
`--thaw` goes on and leaves a record in the results.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from compression_cpu import CpuBook
from compression_data import read_banking, read_clinc
from compression_jobs import make_all
from compression_progress import Lines, shown_progress
from compression_rows import BANKING, CLINC, ROWS, parts
from compression_run import Bench
from compression_table import write_page, write_results
from compression_teacher import Subject, check_model, make_subject

from edgesdk.cli.output import say
from edgesdk.errors import EdgeSDKError
from edgesdk.stages import Progress
from edgesdk.stages.train import TrainingOptions

TEACHER = TrainingOptions(epochs=2, learning_rate=2e-4, head_learning_rate=3e-3, batch=64)
# Banking77 has two thirds of the rows, and its classes are closer to one another.
TEACHER_EPOCHS = {CLINC: 2.0, BANKING: 4.0}


def main() -> int:
    """Run the parts that were asked for; 1 where a row could not be made, 2 where the command was wrong."""
    asked = arguments()
    if asked.data is None:
        write_page()
        return 0
    wanted = asked.only or parts()
    try:
        with shown_progress() as progress:
            return run(asked, wanted, progress)
    except EdgeSDKError as problem:
        say(f"error: {problem}")
        return problem.exit_code


def run(asked: argparse.Namespace, wanted: list[str], progress: Progress) -> int:
    """Teacher, rows, latency, test, table: those of them that are wanted."""
    check_model(asked.model)
    bench = opened(asked, wanted, progress)
    chosen = [row for row in bench.rows if row.part in wanted]
    done = make_all(chosen, asked.jobs, partial(opened_quietly, asked, wanted), bench)
    if "latency" in wanted:
        for row in bench.rows:
            bench.latency(row)
    if "test" in wanted:
        for corpus in bench.subjects:
            bench.freeze(corpus, asked.thaw)
        for row in bench.rows:
            bench.test(row)
    if "table" in wanted:
        write_results(bench, bench.cache / "compression.json" if trial(asked) else None)
        if trial(asked):
            say("a trial (--epochs-scale, --rows): its results stay in the cache")
        else:
            write_page()
    return 0 if all(done) else 1


def opened(asked: argparse.Namespace, wanted: list[str], progress: Progress) -> Bench:
    """The benchmark with the teachers that the wanted parts need, and their rows; one thread from here on."""
    torch.set_num_threads(1)
    rows = tuple(row for row in ROWS if row.corpus == CLINC or asked.banking is not None)
    # A part of Banking77 alone need not wait for the other teacher.
    needed = {row.corpus for row in rows if row.part in wanted}
    if needed == set() or {"teacher", "latency", "test", "table"} & set(wanted):
        needed = {row.corpus for row in rows}
    subjects = {name: subject(name, asked, progress) for name in (CLINC, BANKING) if name in needed}
    rows = tuple(row for row in rows if row.corpus in subjects)
    return Bench(subjects, rows, cache_of(asked), asked.epochs_scale, asked.seed, progress)


def opened_quietly(asked: argparse.Namespace, wanted: list[str]) -> Bench:
    """The same in a process of its own."""
    return opened(asked, wanted, Lines())


def trial(asked: argparse.Namespace) -> bool:
    """Whether the run only tries out: its figures are no results."""
    return asked.epochs_scale != 1.0 or asked.rows is not None


def cache_of(asked: argparse.Namespace) -> Path:
    """The cache; each kind of trial has one of its own below, so that no figure of a trial is taken for a result."""
    folder: Path = asked.cache
    return folder / f"trial-rows-{asked.rows}-epochs-{asked.epochs_scale:g}" if trial(asked) else folder


def subject(name: str, asked: argparse.Namespace, progress: Progress) -> Subject:
    """A corpus with its teacher."""
    corpus = read_clinc(asked.data, asked.seed) if name == CLINC else read_banking(asked.banking, asked.seed)
    if asked.rows is not None:
        corpus = corpus.limited(asked.rows)
    options = TEACHER.model_copy(update={"epochs": TEACHER_EPOCHS[name] * asked.epochs_scale})
    cache = cache_of(asked)
    book = CpuBook(cache / "cpu")
    found = make_subject(corpus, asked.model, options, asked.seed, cache, book, progress, asked.rows)
    baseline = found.teacher.baseline
    say(
        f"{name}: {len(corpus.train)} training rows, sequence {found.teacher.sequence}, teacher "
        f"{100 * (baseline.accuracy or 0):.2f} % of {baseline.n} validation rows, {found.cpu / 60:.1f} CPU minutes"
    )
    return found


def arguments() -> argparse.Namespace:
    """The command line; argparse ends the process with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="CLINC150: the folder of data_full.json")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="all-MiniLM-L6-v2: config, weights, tokenizer")
    parser.add_argument("--banking", type=Path, metavar="FOLDER", help="Banking77: train.csv and test.csv")
    parser.add_argument("--cache", type=Path, default=Path(".edgesdk/compression"), metavar="FOLDER",
                        help="packages, files and figures (default: .edgesdk/compression; about 15 GB)")
    parser.add_argument("--only", nargs="+", choices=parts(), metavar="PART",
                        help="one or more of " + ", ".join(parts()))
    parser.add_argument("--seed", type=int, default=0, help="of splits, training and resampling (default: 0)")
    parser.add_argument("--epochs-scale", type=float, default=1.0, metavar="X",
                        help="all epochs times X: a trial, whose results stay in the cache")
    parser.add_argument("--rows", type=int, metavar="N", help="at most N rows of each split: likewise a trial")
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="make rows in N processes at once, one thread each (default: 1); each takes about 2.5 GB")
    parser.add_argument("--thaw", action="store_true", help="test although recipes changed since the freeze; recorded")
    asked = parser.parse_args()
    if asked.data is not None and asked.model is None:
        parser.error("--data needs --model: the folder of all-MiniLM-L6-v2")
    if not 1 <= asked.jobs <= 64:
        parser.error("--jobs must be from 1 to 64")
    if not 0 < asked.epochs_scale <= 100 or (asked.rows is not None and asked.rows < 100):
        parser.error("--epochs-scale must be above 0 and at most 100, --rows at least 100")
    return asked


if __name__ == "__main__":
    sys.exit(main())
