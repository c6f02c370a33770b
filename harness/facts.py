"""Facts of a board, collected by the worker there, and the check that the right machine answers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesdk.errors import BoardError, Identity
from edgesdk.files import sha256_bytes
from edgesdk.harness.board import Board
from edgesdk.harness.deploy import deploy
from edgesdk.harness.pack import pack_worker
from edgesdk.harness.session import Session
from edgesdk.harness.transport import Completed

WORKER_SECONDS = 120.0


def deploy_worker(session: Session) -> str:
    """Put the worker on the board; returns its path there."""
    data = pack_worker()
    name = sha256_bytes(data)
    with tempfile.TemporaryDirectory(prefix="edgesdk-") as folder:
        local = Path(folder) / "worker.pyz"
        local.write_bytes(data)
        deploy(session, {name: local})
    return f"{session.board.state}/blobs/{name}"


def ask_worker(session: Session, worker: str, *arguments: str) -> dict[str, Any]:
    """Run a command of the worker that prints one line of JSON.

    Raises:
        BoardError: no Python on the board, or the worker failed; and what `Session` raises.
    """
    board = session.board
    argv = [board.python, worker, *arguments]
    completed = session.step(lambda transport: transport.run(argv, WORKER_SECONDS))
    if completed.returncode == 127:
        raise BoardError(
            f"{board.name}: {board.python} not found on the board", "apt install python3, or set `python` in farm.toml"
        )
    answer = _last_json(completed)
    if completed.returncode or answer is None:
        raise BoardError(
            f"{board.name}: worker {arguments[0]}: exit {completed.returncode}: {completed.error_text or 'no output'}",
            f"try `{board.python} --version` on the board; the worker needs Python 3.6 or newer",
        )
    return answer


def _last_json(completed: Completed) -> dict[str, Any] | None:
    lines = completed.text.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def check_identity(board: Board, facts: Mapping[str, Any]) -> None:
    """Compare the serial number (or machine id) with the one that the farm file pins.

    Raises:
        Identity: another machine answers; cloned SD cards share host keys, so SSH alone does not notice.
    """
    found = [facts.get("serial"), facts.get("machine_id")]
    if board.serial is not None and board.serial not in found:
        raise Identity(
            f"{board.name}: farm.toml pins serial {board.serial!r}; the machine that answers has serial {found[0]!r}, "
            f"machine id {found[1]!r}",
            "another board at this address? correct `host`, or `serial` after an exchange of hardware",
        )


def collect_facts(session: Session, worker: str) -> dict[str, Any]:
    """Facts as `harness/worker/facts.py` lists them; the identity is checked."""
    facts = ask_worker(session, worker, "facts")
    check_identity(session.board, facts)
    return facts


def probe(board: Board) -> dict[str, Any]:
    """Facts of a board, for `edgesdk boards probe`.

    Raises:
        Unreachable, HostKey, Identity, and other board errors.
    """
    with Session(board) as session:
        return collect_facts(session, deploy_worker(session))
