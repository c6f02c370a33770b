"""Measure artifacts on a board: the public entry of the harness. See docs/architecture.md for the document it makes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.artifact import DTYPES, Artifact, artifact_sha256, read_artifact
from edgesdk.files import sha256_bytes, sha256_file, write_atomic
from edgesdk.harness.agents import hire
from edgesdk.harness.board import Board
from edgesdk.harness.clock import clock_skew
from edgesdk.harness.document import Outcome, write_measurement
from edgesdk.harness.preflight import problems
from edgesdk.harness.privileges import privileges
from edgesdk.harness.protocol import E_PREFLIGHT, Profile, load_profile, refuses
from edgesdk.harness.reserve import reserved
from edgesdk.harness.session import Session
from edgesdk.harness.verify import verify_measurement
from edgesdk.harness.worker.traits import traits_of
from edgesdk.targets.target import Target

__all__ = ["Evaluation", "load_profile", "measure", "probe", "verify_measurement"]

LOCK_WAIT_SECONDS = 300
COUNTED_ROUNDS = 2


@dataclass(frozen=True)
class Evaluation:
    """Inputs of the evaluation set, [n, ...] each, in the order of the artifacts' inputs."""

    inputs: Sequence[NDArray[Any]]
    n: int


@dataclass(frozen=True)
class _Candidate:
    folder: Path
    sha256: str
    artifact: Artifact

    def files(self) -> dict[str, Path]:
        """Path in the artifact → local file, for everything that the board needs."""
        names = [file.path for file in self.artifact.files]
        names += ["artifact.json", *self.artifact.golden.blocks.values()]
        return {name: self.folder / name for name in names}


def measure(
    board: Board, target: Target, candidates: Sequence[Path], *,
    evaluation: Evaluation | Sequence[Evaluation] | None, profile: Profile, seed: int, workdir: Path,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> list[dict[str, Any]]:
    """Measure candidates against one another on one board.

    Each candidate is checked against its golden outputs, runs over the evaluation inputs, and takes part in rounds of
    fresh processes, interleaved in seeded random order. Boards with a counting plugin count instructions instead.

    Args:
        candidates: artifact folders; equal artifacts are measured once.
        evaluation: inputs whose outputs are wanted, the same for all or one for each candidate (models of different
            vocabularies get the same rows in different tokens), or None.
        workdir: gets one folder per artifact, named by its sha256, with `measurement.json` and the raw files that it
            names; while the job runs it also remembers the job, so that calling again goes on where it was.
        progress: called with (step, done, total).

    Returns:
        one `edgesdk.measurement` document per candidate, in order. A candidate that cannot run, fails or gives wrong
        outputs has `valid` false and `reasons`.

    Raises:
        ConvertError: an artifact folder is broken. BoardError: the board cannot be reached or used.
    """
    chosen = [_Candidate(folder, artifact_sha256(folder), read_artifact(folder)) for folder in candidates]
    unique = {candidate.sha256: candidate for candidate in chosen}
    each = evaluation if isinstance(evaluation, Sequence) else [evaluation] * len(chosen)
    evaluations = {candidate.sha256: rows for candidate, rows in zip(chosen, each, strict=True)}
    workdir.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with reserved(board, LOCK_WAIT_SECONDS) as lease, Session(board) as session:
        progress("connect", 0, 1)
        agent = hire(session)
        facts = {**agent.facts, "clock": clock_skew(session)}
        facts["privileges"] = session.step(privileges).document()
        if facts["privileges"]["lost"]:
            progress("without root: no " + ", no ".join(facts["privileges"]["lost"]), 0, 1)
        outcomes = {name: Outcome(problems(c.folder, c.artifact, board, facts)) for name, c in unique.items()}
        inputs = _write_inputs(unique, outcomes, evaluations, workdir)
        runnable = [candidate for name, candidate in unique.items() if not outcomes[name].reasons]
        if runnable:
            request = _request(board, runnable, inputs, profile, seed)
            blobs = {sha256_file(path): path for c in runnable for path in c.files().values()}
            blobs |= {name: path for name, path, _ in inputs.values()}
            result, records, raw = agent.run(request, blobs, workdir, progress, lease, profile.name)
            for candidate, record in zip(runnable, records, strict=True):
                outcomes[candidate.sha256] = Outcome([], record, raw, result["job"])
            facts |= {**result["before"], **{key: result[key] for key in ("after", "starts", "ready", "notes")}}
    documents = {
        name: write_measurement(
            workdir / name, outcomes[name], candidate.artifact, name, board, target, facts, profile, seed, started
        )
        for name, candidate in unique.items()
    }
    shutil.rmtree(workdir / "raw", ignore_errors=True)
    shutil.rmtree(workdir / "inputs", ignore_errors=True)
    return [documents[candidate.sha256] for candidate in chosen]


def probe(board: Board) -> dict[str, Any]:
    """Facts of a board, for `edgesdk boards probe`.

    Raises:
        Unreachable, HostKey, Identity, and other board errors.
    """
    with Session(board) as session:
        return hire(session).facts


def _request(
    board: Board, candidates: Sequence[_Candidate], inputs: Mapping[str, tuple[str, Path, int]], profile: Profile,
    seed: int,
) -> dict[str, Any]:
    """The job document without its id; equal requests of one work folder are one job."""
    mode = "counted" if board.counting_plugin else "none" if board.emulated else "timed"
    specs = []
    for candidate in candidates:
        files = [
            {"path": name, "sha256": sha256_file(path), "executable": name == candidate.artifact.executable}
            for name, path in candidate.files().items()
        ]
        # What a stand-in of a GPU answers on an emulated board is looked at, and no more.
        runtime = str(candidate.artifact.runtime["name"])
        evaluation = inputs.get(candidate.sha256) if traits_of(runtime).countable or mode == "timed" else None
        specs.append({
            "artifact": candidate.sha256, "name": candidate.artifact.name, "files": files, "runtime": runtime,
            "evaluation": {"sha256": evaluation[0], "n": evaluation[2]} if evaluation else None,
        })
    return {
        "format": "edgesdk.job", "version": 1, "board": board.name, "mode": mode,
        "counting_plugin": board.counting_plugin, "rounds": COUNTED_ROUNDS if mode == "counted" else profile.rounds,
        "profile": profile.worker_numbers(), "strict": refuses(profile, board), "seed": seed,
        "lock_wait_s": LOCK_WAIT_SECONDS, "candidates": specs,
    }


def _write_inputs(
    candidates: Mapping[str, _Candidate], outcomes: dict[str, Outcome],
    evaluations: Mapping[str, Evaluation | None], workdir: Path,
) -> dict[str, tuple[str, Path, int]]:
    """Raw evaluation blocks by artifact: (sha256, file, n). A candidate whose inputs do not fit gets a reason."""
    written: dict[str, tuple[str, Path, int]] = {}
    for name, candidate in candidates.items():
        evaluation = evaluations[name]
        if evaluation is None or outcomes[name].reasons:
            continue
        data = _block(candidate.artifact, evaluation)
        if isinstance(data, str):
            outcomes[name] = Outcome([f"{E_PREFLIGHT}: {data}"])
            continue
        digest = sha256_bytes(data)
        path = workdir / "inputs" / digest
        write_atomic(path, data)
        written[name] = (digest, path, evaluation.n)
    return written


def _block(artifact: Artifact, evaluation: Evaluation) -> bytes | str:
    """The raw block of an artifact's inputs, or why there is none."""
    if len(evaluation.inputs) != len(artifact.inputs):
        return f"takes {len(artifact.inputs)} inputs, the evaluation set has {len(evaluation.inputs)}"
    parts = []
    for tensor, array in zip(artifact.inputs, evaluation.inputs, strict=True):
        shape = (evaluation.n, *tensor.shape[1:])
        if array.shape != shape:
            return f"input {tensor.name} takes {shape}, the evaluation set has {array.shape}"
        parts.append(np.ascontiguousarray(array, DTYPES[tensor.dtype]).tobytes())
    return b"".join(parts)
