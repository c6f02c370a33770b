"""A board's A/A noise: the same artifact measured against itself, under two names, in one job."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesdk.errors import ConvertError, Unmeasured
from edgesdk.files import canonical_json
from edgesdk.harness.board import Board
from edgesdk.harness.compare import Comparison, compare
from edgesdk.harness.measure import measure
from edgesdk.harness.protocol import Profile
from edgesdk.targets.target import Target


@dataclass(frozen=True)
class NoiseFloor:
    """`noise` as a share: the larger of the effect that was found between identical artifacts and the half-width of its
    95 % interval. `half_width` is that of the artifact's own median; `documents` are the two measurements."""

    noise: float
    half_width: float
    comparison: Comparison
    documents: tuple[dict[str, Any], dict[str, Any]]


def noise_floor(
    board: Board, artifact: Path, target: Target, profile: Profile, workdir: Path, *, seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> NoiseFloor:
    """Measure an artifact against itself.

    Args:
        workdir: gets the measurement documents and their raw files.

    Raises:
        Unmeasured: the artifact gives no valid latency on this board (an emulated one has none); the reasons are said.
        and what `measure` raises.
    """
    with tempfile.TemporaryDirectory(prefix="edgesdk-noise-") as folder:
        again = _twin(artifact, Path(folder) / "again")
        first, second = measure(
            board, target, [artifact, again], evaluation=None, profile=profile, seed=seed, workdir=workdir,
            progress=progress,
        )
    for document in (first, second):
        if not document["valid"]:
            raise Unmeasured(f"{board.name}: no noise floor: {'; '.join(document['reasons'])}", "repair that first")
    found = compare(first, second)
    noise = max(abs(math.log(found.ratio)), (math.log(found.high) - math.log(found.low)) / 2)
    low, high = first["latency_ms"]["ci95"]
    half_width = (high - low) / (2 * first["latency_ms"]["p50"])
    return NoiseFloor(noise, half_width, found, (first, second))


def _twin(artifact: Path, folder: Path) -> Path:
    """A copy under another name: equal artifacts would be measured once."""
    try:
        shutil.copytree(artifact, folder)
        document = json.loads((folder / "artifact.json").read_bytes())
        document["name"] = f"{document['name']}-again"
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConvertError(f"{artifact}: not an artifact: {problem!r}") from problem
    (folder / "artifact.json").write_bytes(canonical_json(document))
    return folder
