"""`edgesdk boards list|add|probe|trust|emulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgesdk.boards import FARM
from edgesdk.cli.output import print_json, print_mapping, print_table, say
from edgesdk.errors import ConfigError, EdgeSDKError
from edgesdk.harness.board import Board

app = typer.Typer(help="The boards you own, and emulated ones.", no_args_is_help=True)

Farm = Annotated[Path, typer.Option(help="farm file")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Name = Annotated[str, typer.Argument(help="name of the board")]


@app.command("list", epilog="Example: edgesdk boards list")
def list_boards(farm: Farm = FARM, json: Json = False) -> None:
    """Boards of farm.toml, this machine, and emulated boards that run."""
    from edgesdk.harness import emulate
    from edgesdk.harness.farm import load_farm

    boards = [*load_farm(farm).values(), *emulate.running()]
    rows = [(b.name, b.target, "this machine" if b.host is None else f"{b.user}@{b.host}:{b.port}", b.provenance)
            for b in boards]
    if json:
        keys = ("name", "target", "address", "provenance")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    print_table(("board", "target", "address", "its numbers are"), rows)


@app.command(epilog="Example: edgesdk boards add edge@192.0.2.17 --name pi5-desk --target rpi5 --key ~/.ssh/edge")
def add(
    address: Annotated[str, typer.Argument(help="user@host or user@host:port")],
    target: Annotated[str, typer.Option(help="class of hardware of the board")],
    name: Annotated[str | None, typer.Option(help="name of the board; default: the host's name")] = None,
    key: Annotated[str | None, typer.Option(help="private key file, e.g. ~/.ssh/edge_ed25519")] = None,
    farm: Farm = FARM,
) -> None:
    """Write a board into farm.toml; `edgesdk boards trust` pins its host key next."""
    from edgesdk.harness.farm import add_board
    from edgesdk.targets import load_target

    user, at, host = address.rpartition("@")
    host, colon, port = host.partition(":")
    if not at or not user or not host or (colon and not port.isdigit()):
        raise ConfigError(f"address {address!r} is not user@host or user@host:port")
    values = {
        "target": load_target(target).name, "host": host, "user": user, "port": int(port) if port else None, "key": key,
    }
    board = add_board(farm, name or host.partition(".")[0].lower(), values)
    say(f"added {board.name} to {farm}; next: edgesdk boards trust {board.name}")


@app.command(epilog="Example: edgesdk boards probe host")
def probe(name: Name, farm: Farm = FARM, json: Json = False) -> None:
    """Facts of a board: CPU, memory, kernel, runtimes."""
    from edgesdk.harness.measure import probe as probe_board

    facts = probe_board(_board(name, farm))
    if json:
        print_json(facts)
    else:
        print_mapping(facts)


@app.command(epilog="Example: edgesdk boards trust pi5-desk --fingerprint SHA256:…")
def trust(
    name: Name,
    fingerprint: Annotated[str | None, typer.Option(help="the key's SHA256 fingerprint, read on the board")] = None,
    farm: Farm = FARM,
) -> None:
    """Pin a board's host key; the fingerprint must be typed, as `ssh-keygen -lf` shows it on the board itself."""
    from edgesdk.harness.hostkeys import scan_host_key
    from edgesdk.harness.hostkeys import trust as pin

    board = _board(name, farm)
    if board.host is None:
        raise ConfigError(f"board {name!r} is this machine; it has no host key")
    if fingerprint is None:
        found = scan_host_key(board.host, board.port)
        say(f"{board.host} offers {found.kind} {found.fingerprint}")
        say("compare on the board: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
        fingerprint = typer.prompt("type the fingerprint that the board shows", err=True)
    pinned = pin(board, fingerprint)
    say(f"pinned {pinned.kind} {pinned.fingerprint} in {board.known_hosts}")
    _pin_serial(board, farm)


def _pin_serial(board: Board, farm: Path) -> None:
    """Ask the trusted board for its serial number and write it into the farm file; say so where that cannot be."""
    from edgesdk.harness.facts import serial_of
    from edgesdk.harness.farm import load_farm, pin_serial
    from edgesdk.harness.measure import probe as probe_board

    if board.serial is not None or board.name not in load_farm(farm):
        return
    by_hand = f"the serial number is not pinned; add `serial` to [boards.{board.name}] in {farm}"
    try:
        serial = serial_of(probe_board(board))
        if serial is None:
            say(f"{board.name} tells no serial number and no machine id: {by_hand}")
        elif pin_serial(farm, board.name, serial):
            say(f"pinned serial {serial} in {farm}")
    except EdgeSDKError as problem:
        say(f"{problem.message}: {by_hand}, or run `edgesdk boards trust {board.name}` again")


@app.command("emulate", epilog="Example: edgesdk boards emulate rpi5; edgesdk boards emulate rpi5 --stop")
def emulate_board(
    target: Annotated[str, typer.Argument(help="target to emulate: rpi5, rpi4, jetson, …")],
    stop: Annotated[bool, typer.Option("--stop", help="stop the emulated board of this target")] = False,
    json: Json = False,
) -> None:
    """Start (or stop) an emulated board: real SSH and real ARM programs under qemu; its numbers are `emulated`."""
    from edgesdk.harness import emulate
    from edgesdk.targets import load_target

    wanted = load_target(target)
    if stop:
        name = f"{wanted.short}-emulated"
        say(f"stopped {name}" if emulate.stop(name) else f"{name} was not running")
        return
    board = emulate.start(wanted, say)
    if json:
        print_json({"name": board.name, "host": board.host, "port": board.port, "key": str(board.key)})
    else:
        say(f"{board.name} listens on {board.host}:{board.port}, until `edgesdk boards emulate {target} --stop`")


def _board(name: str, farm: Path) -> Board:
    from edgesdk.harness import emulate
    from edgesdk.harness.farm import load_farm

    boards = load_farm(farm) | {board.name: board for board in emulate.running()}
    if name not in boards:
        raise ConfigError(f"board {name!r} is not in {farm} and not running", "one of " + ", ".join(boards))
    return boards[name]
