"""`edgesdk select`, `edgesdk report`, `edgesdk verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgesdk.cli.output import print_json, print_mapping, print_table, say
from edgesdk.errors import ConfigError

StorePath = Annotated[Path | None, typer.Option("--store", help="results store; default: .edgesdk/results.sqlite")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: edgesdk select --target rpi5 --goal accuracy='max-degradation 0.5'")(select)
    app.command(epilog="Example: edgesdk report --csv > results.csv")(report)
    app.command(epilog="Example: edgesdk verify .edgesdk/results.sqlite")(verify)


def select(
    target: Annotated[str, typer.Option(help="class of hardware")],
    goal: Annotated[list[str] | None, typer.Option("--goal", help="e.g. size='max 30%'; may be given again")] = None,
    board: Annotated[str | None, typer.Option(help="only builds on this board")] = None,
    model: Annotated[str | None, typer.Option(help="only builds of this model")] = None,
    store: StorePath = None, json: Json = False,
) -> int:
    """Choose again from the stored measurements, under other goals, without a board."""
    from edgesdk.documents import selection_document
    from edgesdk.select import select as choose
    from edgesdk.store import Store
    from edgesdk.targets import load_target

    results = Store(store, create=False)
    record = results.build(results.latest(load_target(target).name, board, model))
    selection = choose(record, goal or None)
    if json:
        print_json(selection_document(record, selection))
    else:
        say(f"{record.model} for {record.target} on {record.board}, built {record.started} ({record.provenance})")
        rows = [("selected", selection.selected or "none"), *selection.why_not.items()]
        print_table(("candidate", "why not"), rows)
        for note in selection.notes:
            say(note)
    return 0 if selection.selected is not None else 1


def report(
    build: Annotated[int | None, typer.Option(help="number of the build; default: the latest")] = None,
    out: Annotated[Path, typer.Option(help="folder of the report")] = Path("report"),
    csv: Annotated[bool, typer.Option("--csv", help="print all results as CSV instead")] = False,
    store: StorePath = None, json: Json = False,
) -> None:
    """Write a build's report (HTML, Markdown, JSON, CSV), or print all results."""
    from edgesdk.reports.report import write_report
    from edgesdk.store import Store

    if csv and json:
        raise ConfigError("--csv and --json are two forms of the same table", "give one of them")
    results = Store(store, create=False)
    if csv:
        results.results().to_csv(sys.stdout, index=False)
        return
    if json:
        sys.stdout.write(results.results().to_json(orient="records", indent=2) + "\n")
        return
    number = results.latest() if build is None else build
    record = results.build(number)
    page = write_report(results, number, out)
    say(f"report of build {number} ({record.model} for {record.target}, {record.started}): {page}")


def verify(
    path: Annotated[Path, typer.Argument(help="a package, an artifact, a measurement, or a results store")],
    json: Json = False,
) -> None:
    """Audit what EdgeSDK wrote: digests, consistency, and every figure from its raw samples."""
    from edgesdk.audit import audit

    findings = audit(path)
    if json:
        print_json(findings)
    else:
        print_mapping(findings)
    if not findings:
        raise ConfigError(f"{path}: nothing to verify")
