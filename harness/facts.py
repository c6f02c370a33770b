"""Facts of a board, collected by the worker there, and the check that the right machine answers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesdk.errors import BoardError, Corrupt, Identity
from edgesdk.files import sha256_bytes
from edgesdk.harness import answers
from edgesdk.harness.board import Board
from edgesdk.harness.deploy import deploy
from edgesdk.harness.pack import pack_worker
from edgesdk.harness.session import Session
from edgesdk.harness.transport import Completed

WORKER_SECONDS = 120.0


class NoPython(BoardError):
    """The board has no interpreter for the worker; NEON artifacts run by the shell one (`harness/shell`)."""


def deploy_worker(session: Session) -> str:
    """Put the worker on the board; returns its path there."""
    data = pack_worker()
    name = sha256_bytes(data)
    with tempfile.TemporaryDirectory(prefix="edgesdk-") as folder:
        local = Path(folder) / "worker.pyz"
        local.write_bytes(data)
        deploy(session, {name: local})
    session.keep.add(name)
    return f"{session.board.state}/blobs/{name}"


def ask_worker(session: Session, worker: str, *arguments: str) -> dict[str, Any]:
    """Run a command of the worker that prints one line of JSON: `facts`, or a status (see `answers`).

    Raises:
        BoardError: no Python on the board, or the worker failed; Corrupt: it answers something else; and what `Session`
            raises.
    """
    argv = [session.board.python, worker, *arguments]
    return worker_answer(session.board, arguments[0], session.step(lambda to: to.run(argv, WORKER_SECONDS)))


def worker_answer(board: Board, command: str, completed: Completed) -> dict[str, Any]:
    """The checked answer of a command of the worker that ended; raises as `ask_worker`."""
    if completed.returncode == 127:
        raise NoPython(
            f"{board.name}: {board.python} not found on the board", "apt install python3, or set `python` in farm.toml"
        )
    where = f"{board.name}: worker {command}"
    lines = completed.stdout.strip().split(b"\n")
    if completed.returncode or not lines[-1]:
        raise BoardError(
            f"{where}: exit {completed.returncode}: {completed.error_text or 'no output'}",
            f"try `{board.python} --version` on the board; the worker needs Python 3.6 or newer",
        )
    if completed.truncated:
        raise Corrupt(f"{where}: answers with too much output")
    model = answers.Facts if command == "facts" else answers.Status
    return answers.check(model, answers.parse_json(lines[-1], where), where)


def check_identity(board: Board, facts: Mapping[str, Any]) -> None:
    """Compare serial number, machine id and model with those that the farm file pins.

    A `serial` may be a machine id where the board has no serial number. A cloned SD card carries the machine id and the
    host keys of another board; the serial number, which is the processor's, gives it away.

    An emulated board says that it is one: where the farm file does not, its numbers would be called measured.

    Raises:
        Identity: another machine answers (E_IDENTITY).
    """
    if facts.get("emulated") and not board.emulated:
        raise Identity(
            f"{board.name}: an emulated board answers (E_IDENTITY), and nothing on it is measured",
            "use it by the name that `edgesdk boards list` shows, or set `emulated = true` in its table of farm.toml",
        )
    serial, machine, model = (facts.get(key) for key in ("serial", "machine_id", "board_model"))
    found = {"serial": (serial, machine), "machine_id": (machine,), "model": (model,)}
    for key, values in found.items():
        pinned = getattr(board, key)
        if pinned is not None and pinned not in values:
            raise Identity(
                f"{board.name}: another machine answers (E_IDENTITY): farm.toml pins {key} {pinned!r}; it has serial "
                f"{serial!r}, machine id {machine!r}, model {model!r}",
                "another board, or a cloned SD card, at this address? correct `host`, or the pinned values after an "
                "exchange of hardware",
            )


def identity_of(facts: Mapping[str, Any]) -> dict[str, str | None]:
    """What `farm.pin_identity` may pin of a board: `serial`, `machine_id`, `model`."""
    model = facts.get("board_model")
    return {"serial": serial_of(facts), "machine_id": facts.get("machine_id"), "model": model and str(model)}


def serial_of(facts: Mapping[str, Any]) -> str | None:
    """What identifies the machine: its serial number, or its machine id where it has none (or only zeros)."""
    for found in (facts.get("serial"), facts.get("machine_id")):
        if found and set(found) != {"0"}:
            return str(found)
    return None


def collect_facts(session: Session, worker: str) -> dict[str, Any]:
    """Facts as `harness/worker/facts.py` lists them; the identity is checked."""
    facts = ask_worker(session, worker, "facts")
    check_identity(session.board, facts)
    return facts
