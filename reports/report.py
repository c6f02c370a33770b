"""The report of one build: report.html, report.md, report.json and results.csv in one folder.

The HTML is one static file: no script, no request to any address (its content security policy forbids both), readable
from a disk, on a phone and in the dark. Every string is escaped; logs and names are hostile until proven otherwise.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jinja2

from edgesdk import markdown
from edgesdk.documents import build_document, selection_document
from edgesdk.errors import Unmeasured
from edgesdk.files import canonical_json, write_atomic
from edgesdk.record import BuildRecord
from edgesdk.reports import charts, view
from edgesdk.reports.lineage import lineage
from edgesdk.select import Selection, select
from edgesdk.store import Store

FORMAT, VERSION = "edgesdk.report", 1
# Width and height of the Pareto plot in pixels, and whether its points carry names.
WIDE, NARROW = (1080, 480, True), (360, 360, False)


def write_report(store: Store, build: int, folder: Path) -> Path:
    """Write the report of a build; other files in `folder` stay. Returns the path of report.html.

    Raises:
        ConfigError: the store has no such build.
    """
    record = store.build(build)
    selection = _select(record)
    table = store.results(build=build).to_csv(index=False)
    context = report_context(record, selection, build)
    document = {
        "format": FORMAT, "version": VERSION, "build": build, "document": build_document(record, selection),
        "selection": selection_document(record, selection),
        "lineage": {name: [dataclasses.asdict(stage) for stage in stages] for name, stages in record.lineage.items()},
        "measurements": [c.measurement for c in record.candidates if c.measurement is not None],
        "facts": dict(record.facts), "notes": list(record.notes), "command": list(record.command),
    }
    files = {
        "results.csv": table.encode(), "report.json": canonical_json(document),
        "report.md": render_markdown(context).encode(), "report.html": render_html(context).encode(),
    }
    for name, data in files.items():
        write_atomic(folder / name, data)
    return folder / "report.html"


def report_context(record: BuildRecord, selection: Selection, build: int) -> dict[str, Any]:
    """What both templates see."""
    rows = view.rows(record, selection)
    floor = view.accuracy_floor(record, selection)
    return {
        "record": record, "selection": selection, "build": build, "rows": rows,
        "columns": view.columns(rows, record.metric),
        "banner": view.banner(record), "tiles": view.tiles(record, selection), "lineage": lineage(record),
        "not_measured": view.not_measured(record), "facts": view.facts(record.facts),
        "methods": view.methods(record), "command": view.reproduce(record), "baseline": view.baseline(record),
        "pareto": [charts.pareto(rows, record.emulated, floor, *size) for size in (WIDE, NARROW)],
        "strip": [charts.strip(rows, *size) for size in ((1080, True), (360, False))],
        "classes": view.instruction_classes(rows),
    }


def render_html(context: dict[str, Any]) -> str:
    return _environment(autoescape=True).get_template("report.html").render(context)


def render_markdown(context: dict[str, Any]) -> str:
    environment = _environment(autoescape=False)
    environment.finalize = markdown.escape
    environment.filters["code"] = markdown.Code
    return environment.get_template("report.md").render(context)


def _environment(autoescape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("edgesdk.reports", "templates"), autoescape=autoescape,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )


def _select(record: BuildRecord) -> Selection:
    """The selection of the build's own goals; a goal that cannot be answered is said, not guessed."""
    try:
        return select(record)
    except Unmeasured as problem:
        names = [candidate.name for candidate in record.candidates]
        goals = tuple(f"{metric}: {value}" for metric, value in record.goals.items())
        ranked_by = "instructions" if record.emulated else "latency_p90"
        why_not = {name: "a goal cannot be answered on this board" for name in names}
        return Selection(None, problem.message, why_not, (f"try: {problem.hint}",), (), ranked_by, goals)
