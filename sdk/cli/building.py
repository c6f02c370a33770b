"""`edgesdk build`, `edgesdk plan`, `edgesdk bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesdk.cli.output import print_json, print_table, progress_bar, say

if TYPE_CHECKING:
    from edgesdk.pipeline import Build

Model = Annotated[str | None, typer.Option(help="transformers folder, module:function, or .edgepkg; default: the demo")]
Data = Annotated[str | None, typer.Option(help="evaluation data: module:function, .csv, .jsonl or .npz")]
TrainData = Annotated[str | None, typer.Option(help="training data for calibration and recovery, same forms")]
TargetName = Annotated[str, typer.Option(help="class of hardware: host, rpi5, rpi4, jetson, … or a .toml file")]
Recipes = Annotated[list[str] | None, typer.Option("--recipe", help="preset or recipe.yaml; may be given again")]
Converters = Annotated[
    list[str] | None,
    typer.Option("--converter", help="onnx, tflite, neon, neon-fp16 or tensorrt; may be given again"),
]
Goals = Annotated[list[str] | None, typer.Option("--goal", help="e.g. accuracy='max-degradation 1', size='max 30%'")]
BoardName = Annotated[str | None, typer.Option("--board", help="board of farm.toml; default: one of the target")]
Farm = Annotated[Path | None, typer.Option(help="farm file; default: farm.toml")]
Sequence = Annotated[int | None, typer.Option(help="tokens of the artifacts; default: those of the data")]
Seed = Annotated[
    int | None, typer.Option(min=0, max=2**31 - 1, help="seed of everything random; default: the recipe's")
]
RoundSeed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="seed of the round order")]
Profile = Annotated[str, typer.Option(help="measuring profile: smoke, nightly, publish")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: edgesdk build --target rpi5 --recipe int8 --goal accuracy='max-degradation 1'")(build)
    app.command(epilog="Example: edgesdk plan --model ./my-bert --data test.csv --target rpi4")(plan)
    app.command(epilog="Example: edgesdk bench out/artifacts/int8-neon --board host")(bench)


def build(
    model: Model = None, data: Data = None, train_data: TrainData = None, target: TargetName = "host",
    recipe: Recipes = None, converter: Converters = None, goal: Goals = None, board: BoardName = None,
    farm: Farm = None, sequence: Sequence = None, seed: Seed = None, profile: Profile = "smoke",
    out: Annotated[Path | None, typer.Option(help="folder of the build; default: .edgesdk/builds/…")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the recipes that would run, and stop")] = False,
    json: Json = False,
) -> int:
    """Compress, convert, deploy, measure, choose, report."""
    from edgesdk.pipeline import build as run_build
    from edgesdk.request import Request

    request = Request(
        model=model, data=data, train_data=train_data, target=target, recipes=recipe or (), converters=converter or (),
        goals=goal or None, board=board, farm=farm, sequence=sequence, seed=seed, profile=profile, out=out,
    )
    if dry_run:
        from edgesdk.plan import recipes_of

        documents = {entry.name: entry.plain() for entry in recipes_of(request)}
        print_json(documents)
        return 0
    with progress_bar() as progress:
        result = run_build(request, progress, say)
    if json:
        print_json(result.document)
    else:
        _print_build(result)
    if result.selection.selected is not None:
        return 0
    return 1 if any(candidate.valid for candidate in result.record.candidates) else 3


def plan(
    model: Model = None, data: Data = None, train_data: TrainData = None, target: TargetName = "host",
    recipe: Recipes = None, converter: Converters = None, goal: Goals = None, board: BoardName = None,
    farm: Farm = None, sequence: Sequence = None, seed: Seed = None, json: Json = False,
) -> int:
    """Say what a build would run, and what it would refuse and why, without doing it."""
    from edgesdk.plan import make_plan
    from edgesdk.request import Request

    request = Request(
        model=model, data=data, train_data=train_data, target=target, recipes=recipe or (), converters=converter or (),
        goals=goal or None, board=board, farm=farm, sequence=sequence, seed=seed,
    )
    document = make_plan(request)
    if json:
        print_json(document)
        return int(document["exit_code"])
    say(f"target {document['target']}, board {document['board']} ({document['provenance']})")
    rows = [
        (c["name"], c["scheme"], c["bytes"]["value"], c["macs"]["value"], "; ".join(c["reasons"]) or "would run")
        for c in document["candidates"]
    ]
    print_table(("candidate", "scheme", "weight bytes (predicted)", "MACs (predicted)", "verdict"), rows)
    for note in document["notes"]:
        say(f"note: {note}")
    for reason in document["reasons"]:
        say(f"refused: {reason}")
    return int(document["exit_code"])


def bench(
    artifact: Annotated[list[Path], typer.Argument(help="artifact folders of a build")],
    board: BoardName = None, farm: Farm = None, profile: Profile = "smoke", seed: RoundSeed = 0,
    out: Annotated[Path, typer.Option(help="folder of the raw samples")] = Path(".edgesdk/bench"),
    json: Json = False,
) -> int:
    """Measure artifacts again, interleaved, on a board of their target."""
    from edgesdk.bench import run_bench

    with progress_bar() as progress:
        documents = run_bench(artifact, board, farm, profile, seed, out, progress, say)
    if json:
        print_json(documents)
    else:
        from edgesdk import units

        rows = [
            (d["name"], d["board"], units.milliseconds(d["latency_ms"]["p50"]),
             units.milliseconds(d["latency_ms"]["p90"]), units.count(d["instructions"]["value"]),
             "; ".join(d["reasons"]) or "valid")
            for d in documents
        ]
        print_table(("artifact", "board", "p50 ms", "p90 ms", "instructions", "verdict"), rows)
    return 0 if all(document["valid"] for document in documents) else 5


def _print_build(result: Build) -> None:
    document, record, selection = result.document, result.record, result.selection
    rows = [_row(candidate, document) for candidate in document["candidates"]]
    columns = ("candidate", "accuracy", "size", "p50", "p90", "instructions", "peak RSS", "verdict")
    title = f"{record.model} for {record.target} on {record.board} (figures are {record.provenance})"
    print_table(columns, rows, title)
    print_table(("result", ""), [
        ("selected", selection.selected or "none: no candidate meets the goals"), ("because", selection.reason),
        ("goals", "; ".join(selection.goals)), ("report", document["report"]), ("fp32 package", document["package"]),
    ])
    for note in dict.fromkeys((*selection.notes, *record.notes)):
        say(f"note: {note}")


def _row(candidate: dict[str, Any], document: dict[str, Any]) -> tuple[str, ...]:
    from edgesdk import units

    name, accuracy, latency = candidate["name"], candidate["accuracy"], candidate["latency_ms"]
    judged = f"{units.percent(accuracy['value'])} of {accuracy['n']}" if accuracy["n"] else units.NONE
    chosen = "selected" if name == document["selected"] else document["why_not"].get(name, "")
    return (
        name, judged, units.size(candidate["artifact"]["bytes"]),
        units.milliseconds(latency["p50"]), units.milliseconds(latency["p90"]),
        units.count(candidate["instructions"]["value"]), units.size(candidate["peak_rss_bytes"]["value"]), chosen,
    )
