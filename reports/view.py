"""What a report shows, as plain text and numbers: one view for HTML and Markdown.

Reads a build and its selection; formats every number; decides nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgesdk import units
from edgesdk.bounds import wilson_lower95
from edgesdk.figures import judged, missing
from edgesdk.goals import parse_goals
from edgesdk.record import BuildRecord, CandidateRecord
from edgesdk.select import Selection, baseline_accuracy, floor_accuracy, interval, unproven

BADGES = {"measured": "M", "emulated": "E", "predicted": "P", "unmeasured": ""}


@dataclass(frozen=True)
class Cell:
    """A number of the verdict table: text, lines of detail, and its provenance (`unmeasured` shows no badge)."""

    text: str
    details: tuple[str, ...] = ()
    provenance: str = "unmeasured"

    @property
    def badge(self) -> str:
        return BADGES.get(self.provenance, self.provenance)


@dataclass(frozen=True)
class Row:
    """A candidate. `number` is its place in the tables and plots; `state` is `selected`, `meets`, `misses` or
    `invalid`; `x` and `y` are where it stands in the Pareto plot, with (low, high) around them."""

    number: int
    name: str
    scheme: str
    converter: str
    recipe: str
    state: str
    verdict: str
    reason: str
    cells: Mapping[str, Cell]
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    x: float | None
    x_range: tuple[float, float] | None
    y: float | None
    y_range: tuple[float, float] | None
    rounds_ms: tuple[float, ...]
    classes: Mapping[str, int]


VERDICTS = {
    "selected": "★ selected", "meets": "✓ meets the goals", "misses": "✕ misses a goal", "invalid": "⊘ not valid"
}
COLUMNS = {
    "accuracy": "accuracy", "latency_p50": "p50", "latency_p90": "p90", "instructions": "instructions", "size": "size",
    "peak_rss": "peak RSS", "energy": "energy",
}


def rows(record: BuildRecord, selection: Selection) -> list[Row]:
    """One row per candidate: the ranking first, then what misses a goal, then what is not valid."""
    order = {name: index for index, name in enumerate(selection.ranking)}

    def place(candidate: CandidateRecord) -> tuple[bool, int]:
        return not candidate.valid, order.get(candidate.name, len(order))

    ordered = sorted(record.candidates, key=place)
    return [_row(number, candidate, record, selection) for number, candidate in enumerate(ordered, 1)]


def columns(table: list[Row], metric: str) -> dict[str, str]:
    """The columns of the verdict table that hold at least one number; `metric` is what accuracies are."""
    titles = COLUMNS | {"accuracy": metric}
    return {key: title for key, title in titles.items() if any(row.cells[key].text != units.NONE for row in table)}


def not_measured(record: BuildRecord) -> list[tuple[str, str]]:
    """What no candidate has a figure for, with the reason in the words of the measurement."""
    measured = [candidate for candidate in record.candidates if candidate.measurement is not None]
    missed = []
    for metric in ("accuracy", "latency_p50", "instructions", "peak_rss", "energy"):
        if measured and all(judged(candidate, metric, record) is None for candidate in measured):
            title = "latency" if metric == "latency_p50" else COLUMNS[metric]
            missed.append((title, missing(measured[0], metric, record)))
    return missed


def banner(record: BuildRecord) -> str:
    """The provenance of the build's numbers in words."""
    if record.emulated:
        return (
            "Emulated board: candidates are ranked by executed instructions. No milliseconds and no joules are "
            "claimed: a real board gives them."
        )
    return f"Measured on {record.board}: every time below was taken there, on real hardware."


def methods(record: BuildRecord) -> list[str]:
    """How the numbers were taken, with the numbers of the protocol."""
    measured = [candidate for candidate in record.candidates if candidate.measurement is not None]
    golden = sorted({str(candidate.figure("golden", "n")) for candidate in measured if candidate.figure("golden", "n")})
    texts = [
        "Outputs on golden inputs are compared with the reference before any timing"
        + (f" ({', '.join(golden)} inputs); " if golden else "; ")
        + "a wrong artifact is not timed.",
        "Accuracy is that of the artifact run on the board over the evaluation rows; its bound is Wilson's score "
        "interval (one-sided, 95 %)."
        if record.metric == "accuracy"
        else f"There are no labels: accuracy is the mean {record.metric} of the outputs on the board with those of the "
        "fp32 reference; its bound is that of a normal mean (one-sided, 95 %).",
        "Sizes: model data (weights and graph), and with the runtime what is copied to the board; percentages are of "
        "the fp32 ONNX file with embeddings.",
    ]
    if record.emulated:
        texts.append(
            "Instructions are those executed for one inference under emulation, counted per instruction; they say "
            "nothing about caches, memory or clocks."
        )
    else:
        texts.append(
            f"Latency, {record.profile} profile: each round is a fresh process with warm-up; p50 is the geometric mean "
            "of the round medians, its 95 % interval is Student's t on their logarithms, because samples of one "
            "process are not independent."
        )
        texts.append(
            "A goal on latency is judged by the upper bound: p50 or p90, or the upper end of the interval where that "
            "is higher. Raw samples are kept in the results store under their sha256."
        )
    return texts


def accuracy_floor(record: BuildRecord, selection: Selection) -> float | None:
    """The lowest accuracy that meets the goal, as a fraction; None where no goal asks for one."""
    if record.baseline.accuracy is None:
        return None
    goals = [goal for goal in parse_goals(selection.goals) if goal.metric == "accuracy"]
    baselines = [baseline_accuracy(candidate, record) for candidate in record.candidates if candidate.accuracy]
    return floor_accuracy(goals[0], baselines[0]) if goals and baselines else None


def tiles(record: BuildRecord, selection: Selection) -> list[tuple[str, Cell]]:
    """The chosen artifact's figures for the headline."""
    chosen = [row for row in rows(record, selection) if row.state == "selected"]
    return [
        (COLUMNS[key], cell) for row in chosen for key, cell in row.cells.items() if cell.text != units.NONE
    ]


def baseline(record: BuildRecord) -> str:
    """The fp32 reference in one line."""
    reference = record.baseline
    size = f"ONNX file of {units.size(reference.bytes)}"
    if reference.accuracy is None:
        return f"{size}, accuracy not measured"
    rows = f"{reference.n:,} rows, {reference.provenance}"
    sampled = {
        f"; {units.percent(accuracy.baseline)} over the {accuracy.n:,} rows evaluated on this board"
        for accuracy in (candidate.accuracy for candidate in record.candidates)
        if accuracy is not None and accuracy.baseline is not None and accuracy.n != reference.n
    }
    return f"{units.percent(reference.accuracy)} {record.metric} ({rows}{''.join(sorted(sampled))}), {size}"


def instruction_classes(table: list[Row]) -> tuple[list[str], list[tuple[Row, list[str]]]]:
    """Executed instructions by class: the class names, most frequent first, and each row's counts."""
    totals: dict[str, int] = {}
    for row in table:
        for name, count in row.classes.items():
            totals[name] = totals.get(name, 0) + count
    names = sorted(totals, key=lambda name: (-totals[name], name))[:8]
    return names, [(row, [units.count(row.classes.get(name, 0)) for name in names]) for row in table if row.classes]


def facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Facts of the board as (dotted name, text)."""
    flat: list[tuple[str, str]] = []
    for key, value in sorted(values.items()):
        if isinstance(value, Mapping):
            flat += facts(value, f"{prefix}{key}.")
        elif str(key).endswith("_bytes") and isinstance(value, int):
            flat.append((f"{prefix}{key.removesuffix('_bytes')}", units.size(value)))
        elif isinstance(value, (list, tuple)):
            flat.append((f"{prefix}{key}", ", ".join(str(item) for item in value) or units.NONE))
        else:
            flat.append((f"{prefix}{key}", units.NONE if value is None else str(value)))
    return flat


def reproduce(record: BuildRecord) -> str:
    """The command that makes this build again, quoted for a shell."""
    return shlex.join(record.command)


def _row(number: int, candidate: CandidateRecord, record: BuildRecord, selection: Selection) -> Row:
    state = "misses"
    if candidate.name == selection.selected:
        state = "selected"
    elif candidate.name in selection.ranking:
        state = "meets"
    elif not candidate.valid:
        state = "invalid"
    metric = "instructions" if record.emulated else "latency_p50"
    x = judged(candidate, metric, record) if record.emulated else candidate.figure("latency_ms", "p50")
    accuracy = candidate.accuracy if candidate.valid else None
    y_range = None
    if accuracy is not None:
        upper = 1 - wilson_lower95(1 - accuracy.value, accuracy.n) if record.metric == "accuracy" else accuracy.value
        y_range = (accuracy.lower95, upper)
    rounds = candidate.figure("rounds") or []
    times = tuple(entry["p50_ns"] / 1e6 for entry in rounds if entry.get("p50_ns") and not record.emulated)
    labels = (*(candidate.figure("latency_ms", "labels") or ()), *(candidate.figure("instructions", "labels") or ()))
    goals = parse_goals(selection.goals)
    if state in ("selected", "meets") and any(unproven(candidate, goal, record) for goal in goals):
        labels += ("unproven",)
    return Row(
        number, candidate.name, candidate.scheme, candidate.converter, candidate.recipe, state, VERDICTS[state],
        selection.reason if state == "selected" else selection.why_not.get(candidate.name, ""),
        _cells(candidate, record), labels, candidate.notes,
        x if candidate.valid else None,
        interval(candidate, record) if candidate.valid and x is not None else None,
        accuracy.value if accuracy else None, y_range, times, candidate.figure("instructions", "classes") or {},
    )


def _cells(candidate: CandidateRecord, record: BuildRecord) -> dict[str, Cell]:
    cells = {key: Cell(units.NONE) for key in COLUMNS}
    accuracy = candidate.accuracy
    if accuracy is not None:
        change = units.points(accuracy.value - baseline_accuracy(candidate, record))
        bound = f"≥ {units.percent(accuracy.lower95)}, n {accuracy.n:,}"
        cells["accuracy"] = Cell(units.percent(accuracy.value), (change, bound), accuracy.provenance)
    if not record.emulated and candidate.figure("latency_ms", "p50") is not None:
        latency = candidate.figure("latency_ms")
        low, high = candidate.figure("latency_ms", "ci95", 0), candidate.figure("latency_ms", "ci95", 1)
        span = () if low is None else (f"{units.number(low)} … {units.number(high)}",)
        cells["latency_p50"] = Cell(units.milliseconds(latency["p50"]), span, latency["provenance"])
        cells["latency_p90"] = Cell(units.milliseconds(latency["p90"]), (), latency["provenance"])
    for metric, key, show in (
        ("instructions", "instructions", units.count), ("peak_rss", "peak_rss_bytes", units.size),
        ("energy", "energy_mj", units.millijoules),
    ):
        if (value := judged(candidate, metric, record)) is not None:
            boundary = candidate.figure(key, "boundary")
            cells[metric] = Cell(
                show(value), (str(boundary),) if boundary else (), str(candidate.figure(key, "provenance"))
            )
    if candidate.bytes is not None:
        details = [f"{100 * candidate.bytes / record.baseline.bytes:.1f} % of fp32"] if record.baseline.bytes else []
        # Only an artifact that carries its runtime is larger than its model.
        whole = candidate.bytes_with_runtime or candidate.bytes
        carried = whole > candidate.bytes
        details.append(f"{units.size(whole)} with runtime" if carried else "runtime on the board, not counted")
        cells["size"] = Cell(units.size(candidate.bytes), tuple(details), "measured")
    return cells
