"""Recipes: an ordered list of stages with options, goals and a seed (format `edgesdk.recipe`, version 1)."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from edgesdk.errors import ConfigError
from edgesdk.files import canonical_json, sha256_bytes
from edgesdk.stages import STAGES, Outline, Stage

# A search multiplies; each recipe is a training or a calibration and several artifacts.
MOST_RECIPES = 1000


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["edgesdk.recipe"]
    version: Literal[1]
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    goals: dict[str, str] = {}
    default: bool = True
    stages: list[Any] = []


@dataclass(frozen=True)
class Recipe:
    """A recipe that can run: its stages hold validated options. `goals` are those it asks for, as text. `default`:
    whether a build that names no recipe tries it; those that train for long are asked for by name. `lines`: the lines
    of its file at which the stages begin, for messages."""

    name: str
    stages: tuple[Stage, ...]
    seed: int = 0
    goals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    description: str = ""
    default: bool = True
    lines: tuple[int, ...] = ()

    def where(self, index: int) -> str:
        """Where a stage stands, such as `stages[1] (line 9) prune.neurons`."""
        line = f" (line {self.lines[index]})" if self.lines else ""
        return f"stages[{index}]{line} {self.stages[index].name}"

    @property
    def digest(self) -> str:
        """Digest of what decides the result: seed, stages and options, defaults written out."""
        return sha256_bytes(canonical_json({key: self.plain()[key] for key in ("seed", "stages")}))

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
    if not os.path.isfile(source):
        near = difflib.get_close_matches(source, [FP32.name, *preset_names()], 1)
        hint = f"--recipe {near[0]}" if near else "a file, or one of " + ", ".join([FP32.name, *preset_names()])
        raise ConfigError(f"recipe {source[:200]!r}: no such preset or file", hint)
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:
        raise ConfigError(f"recipe {source}: not readable as UTF-8 text: {problem}") from problem
    return _parse(text, Path(source).stem, source)


def default_recipes(training: bool) -> list[Recipe]:
    """fp32 and all presets that are meant for it (`default`) and need no more data than was given."""
    recipes = [FP32, *(recipe for name in preset_names() for recipe in load_recipes(name) if recipe.default)]
    return [r for r in recipes if training or not any(stage.trains for stage in r.stages)]


def check_recipe(recipe: Recipe, outline: Outline) -> tuple[list[str], Outline]:
    """Walk a recipe over an outline: the reasons why it cannot run (each names stage and position), and what would
    come out of it."""
    for index, stage in enumerate(recipe.stages):
        reasons = stage.requires(outline)
        if reasons:
            return [f"recipe {recipe.name}: {recipe.where(index)}: {reason}" for reason in reasons], outline
        outline = stage.ensures(outline)
    return [], outline


def _parse(text: str, name: str, where: str) -> list[Recipe]:
    try:
        loaded = yaml.safe_load(text)
    except Exception as problem:  # PyYAML's tags (`!!bool x`) raise KeyError, IndexError and others too
        raise ConfigError(f"recipe {where}: not YAML: {problem or type(problem).__name__}") from problem
    try:
        document = _Document.model_validate(loaded)
    except ValidationError as problem:
        raise _config_error(f"recipe {where}", problem, _Document.model_fields) from problem
    recipes: list[Recipe] = []
    lines = _lines(text)
    entries = [
        _expand(entry, f"recipe {where}: stages[{index}]" + (f" (line {lines[index]})" if lines else ""))
        for index, entry in enumerate(document.stages)
    ]
    _check_size([len(entry) for entry in entries], f"recipe {where}")
    for choice in itertools.product(*entries):
        # The name becomes a file name, and a searched value (a scope) is any text.
        labels = [re.sub(r"[^A-Za-z0-9_.,=*-]", "_", label) for label, _ in choice if label]
        recipes.append(
            Recipe(
                name + (f"[{','.join(labels)}]" if labels else ""),
                tuple(stage for _, stage in choice), document.seed, document.goals, document.description,
                document.default, lines,
            )
        )
    names = [recipe.name for recipe in recipes]
    for found in names:
        if names.count(found) > 1:
            raise ConfigError(f"recipe {where}: two choices of its search are both {found[:200]!r}", "remove one")
    return recipes


def _lines(text: str) -> tuple[int, ...]:
    """The lines, from 1, at which the entries of `stages` begin; empty where they cannot be told."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode):
        for key, value in reversed(root.value):  # of a key that is given twice the last counts
            if key.value == "stages" and isinstance(value, yaml.SequenceNode):
                return tuple(entry.start_mark.line + 1 for entry in value.value)
    return ()


def _check_size(counts: Sequence[int], where: str) -> None:
    if math.prod(counts) > MOST_RECIPES:
        raise ConfigError(
            f"{where}: its lists make {math.prod(counts)} recipes, more than {MOST_RECIPES}", "search fewer values"
        )


def _expand(entry: Any, at: str) -> list[tuple[str, Stage]]:
    """The stages that one entry stands for, each with a label of its searched values (empty without a search)."""
    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        raise ConfigError(
            f"{at}: expected a stage with its options, found {reprlib.repr(entry)[:200]}",
            "write it as in `- stage: quantize.ptq`",
        )
    values = dict(entry)
    name = values.pop("stage", None)
    if not isinstance(name, str) or name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, 1) if isinstance(name, str) else []
        hint = f"did you mean {near[0]}?" if near else "one of " + ", ".join(STAGES)
        raise ConfigError(f"{at}.stage: unknown stage {reprlib.repr(name)[:200]}", hint)
    options_type = STAGES[name].options_type
    searched = [key for key, value in values.items() if isinstance(value, list)]
    _check_size([len(values[key]) for key in searched], at)
    stages = []
    for combination in itertools.product(*(values[key] for key in searched)):
        chosen = dict(zip(searched, combination, strict=True))
        try:
            options = options_type.model_validate({**values, **chosen})
        except ValidationError as problem:
            raise _config_error(f"{at} ({name})", problem, options_type.model_fields) from problem
        stages.append((",".join(f"{key}={value}" for key, value in chosen.items()), STAGES[name](options)))
    if not stages:
        raise ConfigError(f"{at} ({name}): an empty list leaves nothing to try", "give a value, or a list of them")
    return stages


def _config_error(where: str, problem: ValidationError, fields: Mapping[str, FieldInfo]) -> ConfigError:
    """What is wrong with the first bad key, what was found there, and what to try; in words of recipes."""
    # A misspelt key is also a missing one: say the misspelling.
    first = min(problem.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"] if part != "[key]"]
    known = "known keys: " + ", ".join(fields)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], fields, 1)
        return ConfigError(f"{where}: unknown key {'.'.join(place)!r}", f"did you mean {near[0]!r}?" if near else known)
    # Values are hostile and YAML aliases make a small file a huge one: only the beginning is shown.
    found = reprlib.repr(first.get("input"))[:200]
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = re.sub("a valid dictionary( or instance of \\w+)?", "a mapping of keys to values", message)
    if not place:
        return ConfigError(f"{where}: {message}, found {found}", known)
    field = fields.get(place[0])
    if field is not None and len(place) > 1 and field.description:  # of a choice of types: none fits
        return ConfigError(f"{where}: {place[0]}: expected {field.description}, found {found}", f"change {place[0]}")
    if first["type"] == "missing":
        return ConfigError(f"{where}: {place[0]}: {message}, found {found}", f"add {place[0]}{_advice(field)}")
    if first["type"] == "string_type" and isinstance(first.get("input"), (bool, int, float)):
        hint = f"write the value of {place[0]} in quotes, or YAML reads a number or a truth value"
    else:
        hint = f"change {place[0]}{_advice(field)}"
    return ConfigError(f"{where}: {'.'.join(place)}: {message}, found {found}", hint)


def _advice(field: FieldInfo | None) -> str:
    """What a field takes, or that it may be left out."""
    if field is None:
        return ""
    if field.is_required():
        return f": {field.description}" if field.description else ""
    return ", or leave it out" + ("" if field.default in (None, "", [], {}) else f" for {str(field.default)[:50]}")
