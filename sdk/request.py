"""What a build is asked for: the request, what it chooses, and the command line that asks for it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesdk.errors import ConfigError
from edgesdk.recipe import Recipe, load_recipes
from edgesdk.targets import load_target


@dataclass(frozen=True)
class Request:
    """What a build is asked for; see `edgesdk build --help`.

    `goals` None: those of the recipes, or the default. `seed` None: that of each recipe, and 0 for sampling and round
    order.
    """

    model: Any = None
    data: Any = None
    train_data: Any = None
    target: str = "host"
    recipes: Sequence[str] = ()
    converters: Sequence[str] = ()
    goals: Mapping[str, str] | Iterable[str] | None = None
    board: str | None = None
    farm: Path | None = None
    sequence: int | None = None
    seed: int | None = None
    profile: str = "smoke"
    out: Path | None = None
    state: Path = Path(".edgesdk")
    store: Path | None = None

    @property
    def sampling_seed(self) -> int:
        """Seed of sampling, splitting and round order."""
        return self.seed or 0

    def command(self) -> tuple[str, ...]:
        """The argv of `edgesdk build` for the same request; what came in as a Python object is named by its type."""
        words = ["edgesdk", "build", "--target", self.target]
        single = {
            "--model": self.model, "--data": self.data, "--train-data": self.train_data, "--board": self.board,
            "--farm": self.farm, "--sequence": self.sequence, "--seed": self.seed,
        }
        for option, value in single.items():
            if value is not None:
                plain = isinstance(value, (str, int, Path))
                words += [option, str(value) if plain else f"<{type(value).__name__}>"]
        goals = self.goals or ()
        texts = [f"{key}={value}" for key, value in goals.items()] if isinstance(goals, Mapping) else list(goals)
        for option, values in (("--recipe", self.recipes), ("--converter", self.converters), ("--goal", texts)):
            for value in values:
                words += [option, value]
        return (*words, "--profile", self.profile)


def chosen_recipes(request: Request) -> list[Recipe]:
    """The recipes asked for; empty means the default ones, which depend on the data."""
    recipes = [recipe for source in request.recipes for recipe in load_recipes(source)]
    names = [recipe.name for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two recipes are named {name!r}", "candidates are named by recipe: rename a file")
    return recipes


def chosen_converters(request: Request) -> list[str]:
    """The converters asked for, or all of the target."""
    target = load_target(request.target)
    for name in request.converters:
        if name in target.missing:
            raise ConfigError(f"converter {name}: {target.missing[name]}")
        if name not in target.converters:
            known = ", ".join(target.converters)
            raise ConfigError(f"target {target.name} has no converter {name!r}", f"one of {known}")
    return list(request.converters or target.converters)


def recipe_goals(recipes: Sequence[Recipe]) -> Mapping[str, str] | None:
    """The goals that the recipes ask for; two recipes must not contradict one another."""
    goals: dict[str, str] = {}
    for recipe in recipes:
        for key, value in recipe.goals.items():
            if goals.setdefault(key, value) != value:
                found = f"{goals[key]!r} in one recipe, {value!r} in {recipe.name}"
                raise ConfigError(f"goal {key}: {found}", "give the goals by --goal")
    return goals or None
