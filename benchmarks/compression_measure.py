"""What a row of the compression table measures: the shipped ONNX file in ONNX Runtime, as a board would run it.

N rows; a "kept" accuracy is a share of the fp32 model's on the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.dynamic_report import dynamic_figures, lengths_of, row_macs
from edgesdk.encode import encoded_for
from edgesdk.package import Package
from edgesdk.stages.base import Progress, silent
from edgesdk.transformer.spec import is_dynamic

RESAMPLES = 20_000
LATENCY_ROWS, WARM_UP_ROWS, LATENCY_PASSES = 200, 20, 3
LOADS = 7
Array = NDArray[Any]
Answers = NDArray[np.int64]


@dataclass(frozen=True)
class Kept:
    """Accuracy as a share of the reference's, with its one-sided 95 % lower bound by a paired bootstrap."""

    accuracy: float
    reference: float
    kept: float
    lower95: float


def session(model: Path) -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def answers(model: Path, package: Package, data: Dataset, progress: Progress = silent) -> Answers:
    """The class that the file answers for each row, int64 [N].

    Rows run at their real lengths, so nothing is padded: one by one where scales or branches depend on the input,
    else together with rows of equal length.
    """
    rows = encoded_for(package, data)
    running = session(model)
    alone = package.scheme.endswith("-dynamic") or is_dynamic(package.spec)
    found = np.empty(len(rows), np.int64)
    done = 0
    for chosen, inputs in unpadded(rows, package, 1 if alone else 64):
        progress("rows", done, len(rows))
        done += len(chosen)
        found[chosen] = running.run(None, inputs)[0].argmax(-1)
    return found


def unpadded(data: Dataset, package: Package, batch: int) -> Iterator[tuple[Array, dict[str, Array]]]:
    """(row numbers, inputs) in batches of rows of one length, cut to it."""
    lengths = lengths_of(package.spec, data)
    masked = "attention_mask" in data.inputs
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        for start in range(0, len(same), batch):
            chosen = same[start : start + batch]
            inputs = {name: value[chosen] for name, value in data.inputs.items()}
            if masked:
                inputs = {name: np.ascontiguousarray(value[:, :length]) for name, value in inputs.items()}
            yield chosen, inputs


def kept(found: Answers, reference: Answers, labels: Answers, seed: int) -> Kept:
    """Kept accuracy, and the 5 % quantile of its paired bootstrap: resampled rows keep what both models said of them,
    so only four counts matter (both right, one, the other, neither) and a resample is a multinomial draw."""
    mine, theirs = found == labels, reference == labels
    cells = np.array([(mine & theirs).sum(), (mine & ~theirs).sum(), (~mine & theirs).sum(), (~mine & ~theirs).sum()])
    draws = np.random.default_rng(seed).multinomial(len(labels), cells / len(labels), RESAMPLES)
    shares = (draws[:, 0] + draws[:, 1]) / np.maximum(draws[:, 0] + draws[:, 2], 1)
    share = float(mine.mean() / max(theirs.mean(), 1 / len(labels)))
    return Kept(float(mine.mean()), float(theirs.mean()), share, float(np.quantile(shares, 0.05)))


def work(package: Package, teacher: Package, data: Dataset) -> dict[str, Any]:
    """MACs: the worst case at the package's sequence, and over the rows at their real lengths; `share` is the mean as a
    share of the teacher's mean. Where work depends on the input, also where inputs leave and which layers run."""
    rows, theirs = encoded_for(package, data), encoded_for(teacher, data)
    reference = float(row_macs(teacher.spec, lengths_of(teacher.spec, theirs)).mean())
    document: dict[str, Any] = {"worst": package.spec.macs(package.sequence)}
    if is_dynamic(package.spec):
        figures = dynamic_figures(package, rows)
        mean, points = figures.macs_mean, [figures.macs_p50, figures.macs_p90, figures.macs_p99]
        document |= {"left": _text_keys(figures.left), "runs": _text_keys(figures.runs)}
    else:
        macs = row_macs(package.spec, lengths_of(package.spec, rows))
        mean = float(macs.mean())
        points = [float(np.percentile(macs, at, method="higher")) for at in (50, 90, 99)]
    document |= {"mean": round(mean), "share": mean / reference}
    return document | {name: round(value) for name, value in zip(("p50", "p90", "p99"), points, strict=True)}


def _text_keys(shares: Mapping[int, float]) -> dict[str, float]:
    return {str(layer): round(share, 4) for layer, share in shares.items()}


def latency_ratio(
    model: Path, package: Package, base: Path, teacher: Package, data: Dataset, seed: int,
    progress: Progress = silent,
) -> dict[str, Any]:
    """CPU time of the file against that of the fp32 file: one thread, one row at its real length, both in this
    process and by turns. `ratio` is the median over rows of the two best times; `ci95` a bootstrap of that median.
    `load` is the same for making the session."""
    sample = data.take(np.random.default_rng(seed).permutation(len(data))[: LATENCY_ROWS + WARM_UP_ROWS])
    pairs = [
        (session(model), [inputs for _, inputs in _one_by_one(encoded_for(package, sample), package)]),
        (session(base), [inputs for _, inputs in _one_by_one(encoded_for(teacher, sample), teacher)]),
    ]
    load = _load_ms(model, base)
    count = len(pairs[0][1])
    times = np.full((2, count), np.inf)
    for turn in range(LATENCY_PASSES):
        for row in range(count):
            progress("rows", turn * count + row, LATENCY_PASSES * count)
            for which in (0, 1) if (row + turn) % 2 else (1, 0):
                running, inputs = pairs[which]
                start = time.process_time_ns()
                running.run(None, inputs[row])
                times[which, row] = min(times[which, row], time.process_time_ns() - start)
    times = times[:, min(WARM_UP_ROWS, count - 1) :]
    ratios = times[0] / times[1]
    draws = np.random.default_rng(seed).integers(0, len(ratios), (2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    return {
        "ratio": float(np.median(ratios)), "ci95": [float(low), float(high)],
        "ms": float(np.median(times[0]) / 1e6), "fp32_ms": float(np.median(times[1]) / 1e6),
        "load": load[0] / load[1], "load_ms": load[0], "fp32_load_ms": load[1],
    }


def _load_ms(model: Path, base: Path) -> list[float]:
    """CPU milliseconds to make a session of each file: the best of some, by turns."""
    best = [np.inf, np.inf]
    for _ in range(LOADS):
        for which, path in enumerate((model, base)):
            start = time.process_time_ns()
            session(path)
            best[which] = min(best[which], (time.process_time_ns() - start) / 1e6)
    return best


def _one_by_one(data: Dataset, package: Package) -> list[tuple[int, dict[str, Array]]]:
    """(row, inputs) in the order of the rows: both models see the same texts by turns."""
    found = [(int(chosen[0]), inputs) for chosen, inputs in unpadded(data, package, 1)]
    return sorted(found, key=lambda entry: entry[0])
