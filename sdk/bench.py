"""`edgesdk bench`: measure existing artifacts again, interleaved, without building anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgesdk.boards import board_for
from edgesdk.converters.artifact import artifact_sha256, read_artifact
from edgesdk.errors import ConfigError
from edgesdk.files import canonical_json, sha256_bytes
from edgesdk.harness.measure import measure
from edgesdk.harness.protocol import load_profile
from edgesdk.targets import load_target


def run_bench(
    folders: Sequence[Path], board_name: str | None, farm: Path | None, profile: str, seed: int, out: Path,
    progress: Callable[[str, int, int], None], say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure artifacts of one target; documents and raw samples are written into a new folder of `out`.

    Raises:
        ConfigError: the artifacts are for different targets.
        ConvertError: a folder is not an artifact.
        BoardError, MeasureError: see `edgesdk.harness.measure`.
    """
    for folder in folders:
        if not (folder / "artifact.json").is_file():
            raise ConfigError(f"{folder} is not an artifact", "give folders such as OUT/artifacts/int8-neon of a build")
    targets = {read_artifact(folder).target for folder in folders}
    if len(targets) != 1:
        raise ConfigError(f"the artifacts are for different targets: {', '.join(sorted(targets))}", "bench one target")
    target = load_target(targets.pop())
    numbers = load_profile(profile)
    with board_for(target, board_name, farm, say) as board:
        request = [[artifact_sha256(folder) for folder in folders], board.name, profile, seed]
        folder = run_folder(out, sha256_bytes(canonical_json(request))[:8])
        documents = measure(
            board, target, list(folders), evaluation=None, profile=numbers, seed=seed, workdir=folder,
            progress=progress,
        )
    say(f"raw samples and documents are in {folder}")
    return documents


def run_folder(out: Path, digest: str) -> Path:
    """A new folder `STAMP-DIGEST` of `out`, so that no run overwrites another; or that of an equal run that was cut,
    whose job the board may still hold."""
    for memory in sorted(out.glob(f"*-{digest}/job.json")):
        return memory.parent
    folder = out / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{digest}"
    folder.mkdir(parents=True)
    return folder
