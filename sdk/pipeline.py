"""The story of a build: import → compress → convert → deploy and measure → judge → select → report.

One function an arrow, `build` calls them in order; the parts live in the modules named in the imports.
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesdk.assemble import assemble
from edgesdk.boards import board_for
from edgesdk.candidates import Candidate, evaluation_sample, make_candidates
from edgesdk.compress import Compressed, compress
from edgesdk.data import Dataset
from edgesdk.documents import build_document, write_selection
from edgesdk.encode import encoded_for
from edgesdk.errors import BoardError, ConfigError
from edgesdk.goals import parse_goals
from edgesdk.harness.board import Board
from edgesdk.harness.measure import probe
from edgesdk.harness.protocol import load_profile
from edgesdk.importing import Job, import_job
from edgesdk.package import write_package
from edgesdk.recipe import Recipe, check_recipe, default_recipes
from edgesdk.record import BuildRecord
from edgesdk.reports.report import write_report
from edgesdk.request import Request, chosen_converters, chosen_recipes, recipe_goals
from edgesdk.select import Selection, check_measurable, select
from edgesdk.stopwatch import Stopwatch
from edgesdk.store import Store
from edgesdk.targets import Target, load_target

BASELINE = "fp32.edgepkg"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Build:
    """What a build gives: the record, the selection, the document that `edgesdk build --json` prints, and the (wall,
    CPU) seconds of each step."""

    record: BuildRecord
    selection: Selection
    document: dict[str, Any]
    report: Path
    out: Path
    seconds: Mapping[str, tuple[float, float]]


def build(request: Request, progress: Progress, say: Callable[[str], None]) -> Build:
    """Run a whole build. On an error nothing is left behind but the stage cache; where the board is lost the folder
    stays, and the same request goes on in it.

    Raises:
        EdgeSDKError: see `edgesdk.errors`; a candidate that fails is a result with its reason, never an exception.
    """
    target, recipes, converters = load_target(request.target), chosen_recipes(request), chosen_converters(request)
    clock = Stopwatch()
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with board_for(target, request.board, request.farm, say) as board:
        goals = request.goals if request.goals is not None else recipe_goals(recipes)
        check_measurable(goals, board.provenance)
        facts = probe(board)
        clock.lap("board")
        if request.model is None:
            say("no model was given: this builds the demo model (a ViT on scikit-learn's digits)")
        job = import_job(
            request.model, request.data, request.train_data, sequence=request.sequence, seed=request.sampling_seed
        )
        clock.lap("import")
        recipes = recipes or default_recipes(job.train is not None)
        stamp = started.replace(":", "").replace("-", "").partition("+")[0]
        out = request.out or request.state / "builds" / f"{stamp}-{job.package.name}-{target.short}"
        fresh = not out.exists()
        store = Store(request.store)
        try:
            compressed = compress_all(job, recipes, request, target, out, progress)
            packages = {name: result.package for name, result in compressed.items()}
            clock.lap("compress")
            candidates = make_candidates(packages, target, converters, out / "artifacts", progress)
            clock.lap("convert")
            data = evaluation_sample(job.evaluation, job.package, board.emulated, request.sampling_seed)
            inputs = {name: encoded_for(package, data) for name, package in packages.items()}
            documents = measure_all(candidates, board, target, inputs, request, out / "measurements", progress)
            clock.lap("deploy and measure")
            record = assemble(job, compressed, candidates, documents, data, board, target, facts, out)
            record = dataclasses.replace(
                record, started=started, seed=request.sampling_seed, profile=request.profile, command=request.command(),
                goals={goal.metric: goal.text for goal in parse_goals(goals)},
            )
        except BaseException as problem:
            # A job that a lost board still runs is found again by the same request in the same folder.
            if isinstance(problem, BoardError) and (out / "measurements" / "job.json").is_file():
                problem.hint = f"{problem.hint}; then go on with the same command and --out {out}".lstrip("; ")
            elif fresh:
                shutil.rmtree(out, ignore_errors=True)
            raise
        # Stored and reported before the choice: a goal that turns out to be unmeasured must not lose the measurements.
        page = write_report(store, store.add_build(record), out / "report")
        selection = select(record, goals)
        write_selection(record, selection, out)
        clock.lap("judge, select, report")
        return Build(record, selection, build_document(record, selection, page), page, out, clock.laps)


def compress_all(
    job: Job, recipes: Sequence[Recipe], request: Request, target: Target, out: Path, progress: Progress
) -> dict[str, Compressed]:
    """Apply every recipe; the packages are written under `out/packages`, the imported one as `fp32.edgepkg`. A
    recipe that cannot run stops the build before any work."""
    checkpoints = request.state / "checkpoints"
    outline = job.context(0, progress, target.sparse_block).outline(job.package)
    refused = [reason for recipe in recipes for reason in check_recipe(recipe, outline)[0]]
    if refused:
        raise ConfigError("; ".join(refused), "edgesdk plan shows what would run")
    results = {}
    write_package(job.package, out / "packages" / BASELINE)
    for recipe in recipes:
        seed = recipe.seed if request.seed is None else request.seed
        context = job.context(seed, progress, target.sparse_block, checkpoints)
        results[recipe.name] = compress(job.package, recipe, context, request.state / "cache")
        write_package(results[recipe.name].package, out / "packages" / f"{recipe.name}.edgepkg")
    return results


def measure_all(
    candidates: Sequence[Candidate], board: Board, target: Target, data: Mapping[str, Dataset], request: Request,
    workdir: Path, progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Deploy every artifact and measure it: candidate name → measurement document. `data` holds the evaluation rows
    in the tokens of each recipe's package."""
    from edgesdk.harness.measure import Evaluation, measure

    runnable = [candidate for candidate in candidates if candidate.artifact is not None]
    documents = measure(
        board, target, [candidate.folder for candidate in runnable],
        evaluation=[
            Evaluation(list(data[candidate.recipe].inputs.values()), len(data[candidate.recipe]))
            for candidate in runnable
        ],
        profile=load_profile(request.profile), seed=request.sampling_seed, workdir=workdir, progress=progress,
    )
    return dict(zip([candidate.name for candidate in runnable], documents, strict=True))
