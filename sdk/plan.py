"""`edgesdk plan`: what a build would run and what it would refuse, in seconds and without doing it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesdk.converters import converter, suitable
from edgesdk.converters.base import Converter
from edgesdk.encodings import ActivationEncoding, Encodings, static_activations
from edgesdk.errors import ConfigError, Unmeasured
from edgesdk.importing import import_job
from edgesdk.recipe import Recipe, check_recipe, default_recipes
from edgesdk.request import Request, chosen_converters, chosen_recipes, recipe_goals
from edgesdk.select import check_measurable
from edgesdk.stages import Outline
from edgesdk.stages.base import silent
from edgesdk.stages.calibrate import weight_bytes, weight_encoding
from edgesdk.stages.sensitivity import TOKENS, lowerable
from edgesdk.targets import Target, load_target
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.spec import TokenEmbedding, TransformerSpec


def recipes_of(request: Request) -> list[Recipe]:
    """The recipes that a build of this request would run."""
    recipes = chosen_recipes(request)
    return recipes or default_recipes(request.train_data is not None or request.model is None)


def make_plan(request: Request) -> dict[str, Any]:
    """The plan as one document (format `edgesdk.plan`, version 1). Sizes and MACs are `predicted`.

    Raises:
        EdgeSDKError: the model, the data, the target or a recipe cannot be read at all.
    """
    target, converters = load_target(request.target), chosen_converters(request)
    board, provenance = _board(target, request)
    asked = chosen_recipes(request)
    goals = request.goals if request.goals is not None else recipe_goals(asked)
    reasons: list[str] = []
    exit_code = 0
    try:
        check_measurable(goals, provenance)
    except Unmeasured as problem:
        reasons.append(str(problem))
        exit_code = problem.exit_code
    job = import_job(
        request.model, request.data, request.train_data, sequence=request.sequence, seed=request.sampling_seed
    )
    start = job.context(request.sampling_seed, silent, target.sparse_block).outline(job.package)
    candidates = []
    for recipe in asked or default_recipes(job.train is not None):
        refused, outline = check_recipe(recipe, start)
        reasons += refused
        exit_code = ConfigError.exit_code if refused else exit_code
        shadow = Shadow.of(outline, job.package.sequence)
        for name in suitable(converters, outline.scheme):
            module = converter(name)
            problems = refused or module.check(shadow, target)
            candidates.append(_candidate(recipe, module, outline, job.package.sequence, problems))
    return {
        "format": "edgesdk.plan", "version": 1, "target": target.name, "board": board, "provenance": provenance,
        "model": job.package.name, "candidates": candidates, "reasons": reasons, "exit_code": exit_code,
        "notes": [*job.notes, *(f"{name}: {reason}" for name, reason in target.missing.items())],
    }


@dataclass(frozen=True)
class Shadow:
    """A package that is yet to be made, as far as a converter's `check` looks at it: zeros for weights, one row for
    every table of embeddings."""

    spec: TransformerSpec
    scheme: str
    graph: bytes
    sequence: int

    @staticmethod
    def of(outline: Outline, sequence: int) -> Shadow:
        """Write the graph that the outline promises."""
        spec = outline.spec
        if isinstance(spec.embedding, TokenEmbedding):
            spec = dataclasses.replace(spec, embedding=dataclasses.replace(spec.embedding, vocabulary=1))
        weights = {name: np.zeros(shape, np.float32) for name, shape in spec.weight_shapes().items()}
        encodings = None
        if outline.scheme != "fp32":
            names = () if outline.scheme.endswith("-dynamic") else static_activations(spec)
            bits = bits_of(outline)
            encodings = Encodings(
                outline.scheme, "minmax" if names else None, int(bool(names)),
                {name: ActivationEncoding(1.0, 0) for name in names},
                {name: weight_encoding(w, bits[name], method="max") for name, w in weights.items() if name in bits},
            )
        return Shadow(spec, outline.scheme, write_graph(spec, weights, encodings), sequence)


def _candidate(
    recipe: Recipe, module: Converter, outline: Outline, sequence: int, problems: list[str]
) -> dict[str, Any]:
    scheme = outline.scheme if problems else module.scheme or outline.scheme
    return {
        "name": f"{recipe.name}-{module.name}", "recipe": recipe.name, "converter": module.name, "scheme": scheme,
        "bytes": {"value": predicted_bytes(outline, scheme), "provenance": "predicted"},
        "macs": {"value": outline.spec.macs(sequence), "provenance": "predicted"},
        "reasons": problems,
    }


def bits_of(outline: Outline) -> dict[str, int]:
    """Bits of each matrix by the scheme alone; none in fp32. A stage's options may choose others (mixed precision, the
    bits of the token table), which nobody knows before the work."""
    spec = outline.spec
    if outline.scheme == "fp32":
        return {}
    low = set(lowerable(spec)) if outline.scheme.startswith("w4") else set()
    low -= {TOKENS} if spec.lm_head else set()
    return {name: 4 if name in low else 8 for name, shape in spec.weight_shapes().items() if len(shape) == 2}


def predicted_bytes(outline: Outline, scheme: str | None = None) -> int:
    """Weight bytes by the scheme: matrices of 8 or 4 bits with their scales (and multipliers), everything else
    float, in `fp16` of half the size."""
    bits, size = bits_of(outline), 2 if scheme == "fp16" else 4
    return sum(
        weight_bytes(shape, bits[name]) if name in bits else size * math.prod(shape)
        for name, shape in outline.spec.weight_shapes().items()
    )


def _board(target: Target, request: Request) -> tuple[str, str]:
    """The board that a build would take, and what its numbers would be called; nothing is started."""
    from edgesdk.boards import planned_board

    return planned_board(target, request.board, request.farm)
