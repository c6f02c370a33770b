"""`edgesdk bench`: measure existing artifacts again, interleaved, without building anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgesdk.boards import board_for
from edgesdk.converters.artifact import read_artifact
from edgesdk.errors import ConfigError
from edgesdk.harness.measure import measure
from edgesdk.harness.protocol import load_profile
from edgesdk.targets import load_target


def run_bench(
    folders: Sequence[Path], board_name: str | None, farm: Path | None, profile: str, seed: int, out: Path,
    progress: Callable[[str, int, int], None], say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure artifacts of one target; documents and raw samples are written under `out`.

    Raises:
        ConfigError: the artifacts are for different targets.
        ConvertError: a folder is not an artifact.
        BoardError, MeasureError: see `edgesdk.harness.measure`.
    """
    targets = {read_artifact(folder).target for folder in folders}
    if len(targets) != 1:
        raise ConfigError(f"the artifacts are for different targets: {', '.join(sorted(targets))}", "bench one target")
    target = load_target(targets.pop())
    with board_for(target, board_name, farm, say) as board:
        documents = measure(
            board, target, list(folders), evaluation=None, profile=load_profile(profile), seed=seed, workdir=out,
            progress=progress,
        )
    return documents
