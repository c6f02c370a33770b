"""The fine-tuned model of the NEON benchmarks: MiniLM-L6 on CLINC150 in fp32 and int8, and its test rows.

    python benchmarks/neon_trained.py --data CLINC150 --model MINILM --out FOLDER [--cache FOLDER]

Writes `fp32.edgepkg`, `w8a8.edgepkg` (by `neon_w8a8.yaml`) and `w8a8-dynamic.edgepkg` (the preset; both calibrated on
training rows) and `test.npz` (input_ids, attention_mask, labels). The teacher is that of `compression.py`, which shares
its cache; training it takes about ten minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from compression import TEACHER, TEACHER_EPOCHS
from compression_cpu import CpuBook
from compression_data import read_clinc
from compression_progress import Lines
from compression_rows import CLINC
from compression_teacher import check_model, make_subject

from edgesdk.compress import compress
from edgesdk.package import write_package
from edgesdk.recipe import load_recipes

SEED = 0
RECIPES = {"w8a8": str(Path(__file__).with_name("neon_w8a8.yaml")), "w8a8-dynamic": "int8-dynamic"}


def main() -> None:
    """Train or read the teacher, quantize it, write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with data_full.json")
    parser.add_argument("--model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist")
    parser.add_argument("--cache", type=Path, default=Path(".edgesdk/compression"))
    options = parser.parse_args()
    check_model(options.model)
    training = TEACHER.model_copy(update={"epochs": TEACHER_EPOCHS[CLINC]})
    corpus, book = read_clinc(options.data, SEED), CpuBook(options.cache / "cpu")
    subject = make_subject(corpus, options.model, training, SEED, options.cache, book, Lines())
    options.out.mkdir(parents=True)
    write_package(subject.teacher, options.out / "fp32.edgepkg")
    for scheme, source in RECIPES.items():
        (recipe,) = load_recipes(source)
        made = compress(subject.teacher, recipe, subject.context, options.cache / "stages")
        write_package(made.package, options.out / f"{scheme}.edgepkg")
    np.savez(options.out / "test.npz", labels=subject.test.labels, **subject.test.inputs)


if __name__ == "__main__":
    main()
