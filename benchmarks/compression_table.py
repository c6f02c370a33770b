"""Figures against the goals, `results/compression.json`, and `docs/recipes.md` written from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _results import FOLDER, figure, write_result
from compression_results import row_results, spent_seconds, teacher_results, thawed_lines
from compression_rows import BANKING, CLINC, LETTERS, Goal, Row

from edgesdk.cli.output import say

if TYPE_CHECKING:
    from compression_run import Bench

ROOT = Path(__file__).parents[1]
COMMAND = "python benchmarks/compression.py --data DATA/clinc150 --model PATH --banking DATA/banking77"
PRESET_CPU_MINUTES, TABLE_CPU_HOURS, TEACHER_ACCURACY = 20.0, 3.0, 0.955
CORPORA = {CLINC: "CLINC150", BANKING: "Banking77"}
WORDS = {"none": "", "training": "yes", "own": "trains itself"}
Results = Mapping[str, Any]


def write_results(bench: Bench, path: Path | None) -> None:
    """Write the document of the run: to `path`, or where the benchmarks' results lie."""
    rows = {row.key: row_results(bench, row) for row in bench.rows}
    teachers = {name: teacher_results(bench, name) for name in bench.subjects}
    complete = all(("test" in row and "latency" in row) or "failed" in row for row in rows.values())
    spent = spent_seconds(bench)
    extra = {
        "rows": list(rows.values()), "teachers": teachers, "seed": bench.seed, "thawed": thawed_lines(bench),
        "epochs_scale": bench.epochs_scale,
    }
    write_result("compression", figures_of(bench.rows, rows, teachers, spent, complete), COMMAND, extra, path)


def figures_of(
    rows: Sequence[Row], found: Mapping[str, Results], teachers: Mapping[str, Results], spent: float, complete: bool
) -> list[dict[str, Any]]:
    """One entry for every goal, missed ones and those of rows that could not be made too."""
    figures = []
    for name, teacher in teachers.items():
        accuracy = teacher.get("accuracy")
        goal, met = None, None
        if name == CLINC:
            goal, met = f"≥ {100 * TEACHER_ACCURACY:g}", accuracy is not None and bool(accuracy >= TEACHER_ACCURACY)
        value = None if accuracy is None else 100 * accuracy
        figures.append(figure(f"{CORPORA[name]}: fp32 accuracy on the test split", value, "%", goal, met))
        figures.append(figure(f"{CORPORA[name]}: fp32 ONNX", teacher["bytes"], "B"))
    for row in rows:
        figures += [_goal_figure(row, goal, found) for goal in row.goals]
        if row.family == "preset" and row.stages == ():
            minutes = found[row.key].get("cpu")
            minutes = None if minutes is None else minutes / 60
            met = minutes is not None and minutes <= PRESET_CPU_MINUTES
            name = f"{_title(row)}: CPU of its own stages, teacher apart"
            figures.append(figure(name, minutes, "minutes", f"≤ {PRESET_CPU_MINUTES:g}", met))
    whole = "the whole table, CPU" if complete else "the table as far as it was made, CPU"
    within = False if spent / 3600 > TABLE_CPU_HOURS else True if complete else None
    figures.append(figure(whole, spent / 3600, "hours", f"≤ {TABLE_CPU_HOURS:g}", within))
    return figures


def _title(row: Row) -> str:
    letter = f"goal {LETTERS[row.preset]}: " if row.preset in LETTERS else ""
    return f"{CORPORA[row.corpus]}, {letter}{row.name if row.preset else f'{row.family}: {row.name}'}"


def _goal_figure(row: Row, goal: Goal, found: Mapping[str, Results]) -> dict[str, Any]:
    value, interval = goal_value(row, goal, found)
    names = {
        "size": "ONNX file, of the fp32 file", "kept": "accuracy kept (paired 95 % lower bound)",
        "macs": "mean MACs at real lengths, of fp32", "encoder": "parameters of the layers, of fp32",
        "over": f"accuracy kept, above “{goal.than}”",
        "over-best": f"accuracy kept, above the best `{goal.than}` of the same scheme",
    }
    met = value is not None and (value >= goal.limit if goal.at_least else value <= goal.limit)
    sign, unit = "≥" if goal.at_least else "≤", "points" if goal.figure.startswith("over") else "%"
    entry = figure(f"{_title(row)}: {names[goal.figure]}", value, unit, f"{sign} {goal.limit:g}", met)
    if value is not None:
        entry["value"] = round(value, 3)
    if interval is not None:
        entry["lower95"] = round(interval, 2)
    if "error" in found[row.key]:
        entry["reason"] = found[row.key]["error"]
    return entry


def goal_value(row: Row, goal: Goal, found: Mapping[str, Results]) -> tuple[float | None, float | None]:
    """The figure that a goal is about in percent (points), None where it was not measured; and its lower bound."""
    mine = found[row.key]
    test = mine.get("test")
    if goal.figure in ("size", "encoder"):
        share = mine.get(goal.figure)
        return (None if share is None else 100 * share), None
    if test is None:
        return None, None
    if goal.figure == "macs":
        return 100 * test["macs"]["share"], None
    if goal.figure == "kept":
        return 100 * test["kept"], 100 * test["lower95"]
    others = [other["test"]["kept"] for other in _compared(row, goal, found) if "test" in other]
    return (100 * (test["kept"] - max(others)) if others else None), None


def _compared(row: Row, goal: Goal, found: Mapping[str, Results]) -> list[Results]:
    """The rows that a goal of `row` is measured against."""
    if goal.figure == "over":
        return [found.get(f"{row.corpus}: {goal.than}", {})]
    alike = ("corpus", "scheme")
    mine = found[row.key]
    return [
        other for other in found.values()
        if other["family"] == goal.than and all(other.get(key) == mine.get(key) for key in alike)
    ]


def write_page(source: Path = FOLDER / "compression.json", page: Path = ROOT / "docs" / "recipes.md") -> None:
    """Write `docs/recipes.md` from the results."""
    if not source.is_file():
        say(f"{source.name}: no results yet; give --data and --model (see --help)")
        return
    page.write_text(page_of(json.loads(source.read_text())))
    say(f"wrote docs/{page.name}")


def page_of(document: Results) -> str:
    """The page as Markdown."""
    parts = [HEAD.format(command=document["command"], machine=document["machine"])]
    if document["thawed"]:
        parts.append(
            "\n**The test split had been read before these rows were what they are now:** "
            + "; ".join(document["thawed"]) + ".\n"
        )
    for corpus, title in CORPORA.items():
        rows = [row for row in document["rows"] if row["corpus"] == corpus]
        if rows:
            parts.append(_section(title, document["teachers"][corpus], rows))
    goals = [entry for entry in document["figures"] if entry["goal"]]
    return "".join([*parts, GOALS_HEAD, *(_goal_line(entry) for entry in goals)])


def _goal_line(entry: Results) -> str:
    value = "not measured" if entry["value"] is None else f"{entry['value']:g} {entry['unit']}"
    bound = f" (≥ {entry['lower95']:g})" if "lower95" in entry else ""
    met = {True: "yes", False: "**missed**", None: ""}[entry["met"]]
    return f"| {entry['figure']} | {value}{bound} | {entry['goal']} | {met} |\n"


def _section(title: str, teacher: Results, rows: Sequence[Results]) -> str:
    accuracy = "not tested" if teacher.get("accuracy") is None else f"{100 * teacher['accuracy']:.2f} %"
    text = [
        f"\n## {title}\n\nfp32: {teacher['bytes'] / 1e6:.2f} MB, {teacher['parameters'] / 1e6:.2f} M parameters, "
        f"{teacher['macs_worst'] / 1e6:.0f} M MACs at {teacher['sequence']} tokens, {accuracy} of {teacher['rows']} "
        f"test queries, {teacher['cpu'] / 60:.1f} CPU minutes of training.\n\n", TABLE_HEAD,
    ]
    text += [_line(row) for row in sorted(rows, key=lambda row: row["family"] != "preset")]
    dynamic = [row for row in rows if row.get("test", {}).get("macs", {}).get("left") or _runs(row)]
    if dynamic:
        text.append(DYNAMIC_HEAD)
        text += [_dynamic_line(row) for row in dynamic]
    return "".join(text)


def _runs(row: Results) -> Any:
    return row.get("test", {}).get("macs", {}).get("runs")


def _line(row: Results) -> str:
    name = f"`{row['preset']}`" if row["preset"] else row["name"]
    family = "preset" if row["preset"] else f"`{row['family']}`" if "." in row["family"] else row["family"]
    cells = [family, name, WORDS[row["recovery"]]]
    if "error" in row:
        return f"| {' | '.join(cells)} | not made: {row['error'].replace('|', '/')} | | | | | | | | | |\n"
    test, latency = row.get("test"), row.get("latency")
    cells += [
        f"{row['bytes'] / 1e6:.2f}", f"{100 * row['size']:.2f}", f"{row['parameters'] / 1e6:.2f}",
        f"{row['macs_worst'] / 1e6:.0f}", "" if test is None else f"{100 * test['macs']['share']:.0f}",
        "" if test is None else f"{100 * test['accuracy']:.2f}",
        "" if test is None else f"{100 * test['kept']:.2f} ({100 * test['lower95']:.2f})",
        "" if latency is None else f"{latency['ratio']:.2f}",
        "" if latency is None else f"{latency['load']:.2f}", f"{row['cpu'] / 60:.1f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _dynamic_line(row: Results) -> str:
    macs, teacher = row["test"]["macs"], row["test"]["macs"]["mean"] / row["test"]["macs"]["share"]
    shares = " / ".join(f"{100 * macs[key] / teacher:.0f}" for key in ("mean", "p50", "p90", "p99"))
    left = ", ".join(f"{int(layer) + 1}: {100 * share:.0f}" for layer, share in (macs.get("left") or {}).items())
    runs = ", ".join(f"{int(layer) + 1}: {100 * share:.0f}" for layer, share in (macs.get("runs") or {}).items())
    return f"| {row['preset'] or row['name']} | {shares} | {left} | {runs} |\n"


TABLE_HEAD = (
    "| family | recipe | recovery | MB | size % | M parameters | M MACs | mean MACs % | accuracy % | kept % (≥) | "
    "time | load | CPU min |\n" + "| --- | --- | --- " + "| ---: " * 10 + "|\n"
)
DYNAMIC_HEAD = (
    "\nWhere work depends on the input (MACs of fp32's mean, in percent; layers count from 1):\n\n"
    "| recipe | MACs mean / p50 / p90 / p99 | leave after layer, % | layer runs, % |\n| --- | --- | --- | --- |\n"
)
GOALS_HEAD = "\n## Goals\n\n| figure | value | goal | met |\n| --- | --- | --- | --- |\n"
HEAD = """# Recipes

What each family of compression buys on real data, alone and together, with recovery and without. Written from
`benchmarks/results/compression.json` by `{command}` on {machine}; do not edit. What did not help stays in the table.

- **MB, size %**: the shipped ONNX file, embeddings counted, against the fp32 ONNX file. **M MACs**: the worst case at
  the longest sequence, zeros of sparse matrices counted; **mean MACs %**: over the test split at real lengths, gates
  and exits included, of fp32's.
- **accuracy %, kept %**: the shipped file in ONNX Runtime over the test split, at real lengths; kept of fp32's accuracy
  on the same rows, in brackets its one-sided 95 % lower bound (paired bootstrap).
- **time**: median CPU time of the file over that of fp32, ONNX Runtime on this machine, one thread, one query at its
  real length, both by turns in one process. **load**: the same for making the session. They say nothing about ARM.
- **CPU min**: CPU minutes of all its stages on this machine, one thread; the teacher, which all rows share, is apart.

All recipes were frozen by digest before the test split was read, and chosen on other rows; the benchmark prints no
figure of the rows that prove the promises of exits. The presets are the same for both data sets:
`edgesdk build --recipe tenth`.
"""
