"""What a build is asked for, and the command line that asks for it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
