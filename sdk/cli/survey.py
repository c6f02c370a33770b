"""What a board can measure and what it cannot: facts, abilities and noise floor of `edgesdk boards add` and `probe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk.cli.output import print_table, progress_bar, say
from edgesdk.errors import ConvertError, Unmeasured
from edgesdk.harness.board import Board

if TYPE_CHECKING:
    from edgesdk.harness.abilities import Ability
    from edgesdk.targets import Target


def look(board: Board) -> tuple[dict[str, Any], list[str], list[Ability]]:
    """Facts, contradictions to the target's table, abilities."""
    from edgesdk.harness.abilities import abilities, differences
    from edgesdk.harness.agents import hire
    from edgesdk.harness.privileges import privileges
    from edgesdk.harness.session import Session
    from edgesdk.targets import load_target

    target = load_target(board.target)
    with Session(board) as session:
        facts = hire(session).facts
        rights = session.step(privileges)
    return facts, differences(board, target, facts), abilities(board, target, facts, rights.by)


def print_survey(board: Board, contradictions: list[str], able: list[Ability], floor: dict[str, Any] | None) -> None:
    for text in contradictions:
        say(f"{board.name} is not what target {board.target} says: {text}")
    print_table(("measurement", "possible", "how, or why not"),
                [(entry.what, "yes" if entry.possible else "no", entry.how) for entry in able])
    if floor is not None:
        say(f"{board.name}: noise floor {floor_text(floor)}")


def noise_floor_of(board: Board) -> dict[str, Any]:
    """The demo model measured against itself on a board; where it cannot be, `noise` is None and `reason` says why."""
    import tempfile

    from edgesdk.harness.measure import load_profile
    from edgesdk.harness.noise import noise_floor
    from edgesdk.targets import load_target

    target = load_target(board.target)
    if board.emulated:
        return {"noise": None, "reason": "an emulated board has no time of its own"}
    with tempfile.TemporaryDirectory(prefix="edgesdk-noise-") as folder, progress_bar() as progress:
        try:
            artifact = _demo_artifact(target, Path(folder))
            smoke, work = load_profile("smoke"), Path(folder) / "work"
            floor = noise_floor(board, artifact, target, smoke, work, progress=progress)
        except (ConvertError, Unmeasured) as problem:
            return {"noise": None, "reason": problem.message}
    return {"noise": floor.noise, "half_width": floor.half_width, "artifact": artifact.name, "profile": "smoke"}


def _demo_artifact(target: Target, folder: Path) -> Path:
    """The shipped demo model for a target, by the first of its converters that works here (ConvertError)."""
    from edgesdk.converters import converter
    from edgesdk.demo import package_path
    from edgesdk.package import read_package

    package = read_package(package_path())
    problems = []
    for name in target.converters:
        made = folder / f"digits-fp32-{name}"
        made.mkdir()
        try:
            converter(name).convert(package, target, made)
            return made
        except ConvertError as problem:
            problems.append(problem.message)
    raise ConvertError("no converter works here: " + "; ".join(problems))


def floor_text(floor: dict[str, Any]) -> str:
    if floor["noise"] is None:
        return f"unmeasured: {floor['reason']}"
    return f"{100 * floor['noise']:.1f} % between two runs of {floor['artifact']} in one job ({floor['profile']})"
