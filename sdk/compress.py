"""Apply recipes to a package. Results are cached by content, so recipes share prefixes and a killed build resumes."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from edgesdk.code_digest import code_digest
from edgesdk.errors import ConfigError, PackageError
from edgesdk.files import canonical_json, sha256_bytes
from edgesdk.package import Package, content_digest, read_package, write_package
from edgesdk.package_files import read_run
from edgesdk.recipe import Recipe, check_recipe
from edgesdk.stages import Context, Stage, run_stage


@dataclass(frozen=True)
class Compressed:
    """What a recipe made, and the wall seconds of each of its stages (of the run that made it, where it was cached)."""

    recipe: Recipe
    package: Package
    seconds: tuple[float, ...]


def compress(package: Package, recipe: Recipe, context: Context, cache: Path) -> Compressed:
    """Run all stages of a recipe; finished stages are read back from `cache`.

    Raises:
        ConfigError: a stage's requirement is not met; nothing was done then.
        StageError, VerifyError: see `run_stage`.
    """
    reasons, _ = check_recipe(recipe, context.outline(package))
    if reasons:
        raise ConfigError("; ".join(reasons))
    seconds = []
    for index, stage in enumerate(recipe.stages):
        context.progress(f"{recipe.name}: {stage.name}", index, len(recipe.stages))
        package, spent = _cached(stage, package, context, cache)
        seconds.append(spent)
    return Compressed(recipe, package, tuple(seconds))


def _cached(stage: Stage, package: Package, context: Context, cache: Path) -> tuple[Package, float]:
    path = cache / f"{_key(stage, package, context)}.edgepkg"
    if path.is_dir():
        try:
            return read_package(path), float(read_run(path).get("seconds", 0.0))
        except (PackageError, TypeError, ValueError):
            shutil.rmtree(path)  # a damaged entry is made anew
    start = time.monotonic()
    package = run_stage(stage, package, context)
    seconds = round(time.monotonic() - start, 3)
    write_package(package, path, {"seconds": seconds})
    return read_package(path), seconds


def _key(stage: Stage, package: Package, context: Context) -> str:
    """Everything that decides what the stage makes."""
    sets = (context.train, context.validation, context.calibration, context.holdout)
    data = [None if rows is None else rows.digest for rows in sets]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "onnx", "onnxruntime")}
    options = stage.options.model_dump(mode="json")
    digests = [content_digest(package), content_digest(context.teacher)]
    parts = [*digests, stage.name, options, context.seed, context.sparse_block, data, versions, _code(stage)]
    return sha256_bytes(canonical_json(parts))[:32]


def _code(stage: Stage) -> str:
    """Digest of the stage's code, and of everything that it uses."""
    return code_digest(next(kind.__module__ for kind in type(stage).__mro__ if kind.__module__.startswith("edgesdk.")))
