"""`edgesdk sensitivity`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgesdk.cli.building import Data, Json, Sequence, TrainData
from edgesdk.cli.output import print_json, progress_bar, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: edgesdk sensitivity my-bert.edgepkg --data test.csv --json")(sensitivity)


def sensitivity(
    model: Annotated[
        str | None, typer.Argument(help="fp32 .edgepkg, transformers folder or module:function; default: the demo")
    ] = None,
    data: Data = None, train_data: TrainData = None, sequence: Sequence = None,
    group: Annotated[int, typer.Option(min=1, max=1 << 16, help="inputs that share a 4-bit step")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="rows that are run once for each matrix, at most 128")] = 128,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="seed of the choice of rows")] = 0,
    json: Json = False,
) -> None:
    """What each matrix at 4 bits costs by itself, the most sensitive first: divergence of the outputs (KL in nats; for
    encoders 1 - mean cosine), their SQNR, and the increase of the cross-entropy."""
    from edgesdk.importing import import_job
    from edgesdk.stages.sensitivity import sensitivity as judge
    from edgesdk.stages.sensitivity import to_json, to_markdown

    job = import_job(model, data, train_data, sequence=sequence, seed=seed)
    with progress_bar() as progress:
        rows = judge(job.package, job.context(seed, progress), group=group, samples=samples)
    if json:
        print_json(to_json(rows))
    else:
        sys.stdout.write(to_markdown(rows))
    for note in job.notes:
        say(f"note: {note}")
