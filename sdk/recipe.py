"""Recipes: an ordered list of stages with options, goals and a seed (format `edgesdk.recipe`, version 1)."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesdk.errors import ConfigError
from edgesdk.files import canonical_json, sha256_bytes
from edgesdk.stages import STAGES, Outline, Stage


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["edgesdk.recipe"]
    version: Literal[1]
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    goals: dict[str, str] = {}
    stages: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Recipe:
    """A recipe that can run: its stages hold validated options. `goals` are those it asks for, as text."""

    name: str
    stages: tuple[Stage, ...]
    seed: int = 0
    goals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    description: str = ""

    @property
    def digest(self) -> str:
        """Digest of what decides the result: seed, stages and options."""
        return sha256_bytes(canonical_json(self.plain()))

    def plain(self) -> dict[str, Any]:
        """The recipe as `recipe.yaml` would say it, defaults written out."""
        stages = [{"stage": stage.name, **stage.options.model_dump(mode="json")} for stage in self.stages]
        return {
            "format": "edgesdk.recipe", "version": 1, "seed": self.seed, "goals": dict(self.goals), "stages": stages,
        }


FP32 = Recipe("fp32", (), description="the model as it is: staying float is a candidate too")


def preset_names() -> list[str]:
    """Names of the recipes that come with EdgeSDK."""
    folder = files("edgesdk").joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipes(source: str) -> list[Recipe]:
    """Read a preset by name or a YAML file; an option with a list of values makes one recipe for each value.

    Raises:
        ConfigError: no such recipe, not YAML, an unknown key, stage or option, or a value out of range.
    """
    if source == FP32.name:
        return [FP32]
    if source in preset_names():
        text = files("edgesdk").joinpath("recipes", f"{source}.yaml").read_text()
        return _parse(text, source, source)
    path = Path(source)
    if not path.is_file():
        near = difflib.get_close_matches(source, [FP32.name, *preset_names()], 1)
        hint = f"--recipe {near[0]}" if near else "a file, or one of " + ", ".join([FP32.name, *preset_names()])
        raise ConfigError(f"recipe {source!r}: no such preset or file", hint)
    return _parse(path.read_text(), path.stem, source)


def default_recipes(training: bool) -> list[Recipe]:
    """fp32 and all presets that need no more data than was given."""
    recipes = [FP32, *(recipe for name in preset_names() for recipe in load_recipes(name))]
    return [r for r in recipes if training or not any(stage.name == "distill" for stage in r.stages)]


def check_recipe(recipe: Recipe, outline: Outline) -> tuple[list[str], Outline]:
    """Walk a recipe over an outline: the reasons why it cannot run (each names stage and position), and what would
    come out of it."""
    for index, stage in enumerate(recipe.stages):
        reasons = stage.requires(outline)
        if reasons:
            return [f"recipe {recipe.name}: stages[{index}] {stage.name}: {reason}" for reason in reasons], outline
        outline = stage.ensures(outline)
    return [], outline


def _parse(text: str, name: str, where: str) -> list[Recipe]:
    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise ConfigError(f"recipe {where}: not YAML: {problem}") from problem
    try:
        document = _Document.model_validate(loaded)
    except ValidationError as problem:
        raise _config_error(f"recipe {where}", problem, list(_Document.model_fields)) from problem
    recipes = []
    entries = [_expand(entry, index, where) for index, entry in enumerate(document.stages)]
    for choice in itertools.product(*entries):
        labels = [label for label, _ in choice if label]
        recipes.append(
            Recipe(
                name + (f"[{','.join(labels)}]" if labels else ""),
                tuple(stage for _, stage in choice), document.seed, document.goals, document.description,
            )
        )
    return recipes


def _expand(entry: Mapping[str, Any], index: int, where: str) -> list[tuple[str, Stage]]:
    """The stages that one entry stands for, each with a label of its searched values (empty without a search)."""
    at = f"recipe {where}: stages[{index}]"
    values = dict(entry)
    name = values.pop("stage", None)
    if name not in STAGES:
        near = difflib.get_close_matches(str(name), STAGES, 1)
        hint = f"did you mean {near[0]}?" if near else "one of " + ", ".join(STAGES)
        raise ConfigError(f"{at}.stage: unknown stage {name!r}", hint)
    options_type = STAGES[name].options_type
    searched = [key for key, value in values.items() if isinstance(value, list)]
    stages = []
    for combination in itertools.product(*(values[key] for key in searched)):
        chosen = dict(zip(searched, combination, strict=True))
        try:
            options = options_type.model_validate({**values, **chosen})
        except ValidationError as problem:
            raise _config_error(f"{at} ({name})", problem, list(options_type.model_fields)) from problem
        stages.append((",".join(f"{key}={value}" for key, value in chosen.items()), STAGES[name](options)))
    if not stages:
        raise ConfigError(f"{at} ({name}): an empty list leaves nothing to try")
    return stages


def _config_error(where: str, problem: ValidationError, known: list[str]) -> ConfigError:
    first = problem.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "known keys: " + ", ".join(known)
        return ConfigError(f"{where}: unknown key {key!r}", hint)
    return ConfigError(f"{where}: {key}: {first['msg']}, found {first.get('input')!r}")
