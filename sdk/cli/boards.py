"""`edgesdk boards list|add|remove|probe|trust|lift|record|emulate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgesdk.boards import FARM
from edgesdk.cli.output import print_json, print_mapping, print_table, progress_bar, say
from edgesdk.cli.survey import look, noise_floor_of, print_survey
from edgesdk.errors import ConfigError, EdgeSDKError
from edgesdk.harness.board import Board
from edgesdk.harness.text import plain

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
    python: Annotated[str | None, typer.Option(help="interpreter on the board; default: python3")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="its host key's fingerprint, read on the board")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="write farm.toml only; do not look at the board")] = False,
    noise: Annotated[bool, typer.Option("--noise/--no-noise", help="measure the board's noise floor")] = True,
    farm: Farm = FARM,
) -> None:
    """Write a board into farm.toml, pin its host key and identity, and say what can be measured on it."""
    from edgesdk.harness import emulate
    from edgesdk.harness.connection import scan_board
    from edgesdk.harness.farm import add_board
    from edgesdk.harness.unlist import remove_board
    from edgesdk.targets import load_target

    user, host, port = _address(address)
    wanted = load_target(target)
    if wanted.name == "host":
        raise ConfigError("target host is this machine, which needs no entry", "edgesdk boards probe host")
    twin = next((board for board in emulate.running() if (board.host, board.port) == (host, port)), None)
    if twin is not None:  # under another name its numbers would be called measured
        raise ConfigError(f"{plain(address, 120)} is the emulated board {twin.name}", f"--board {twin.name}, as it is")
    name = name or host.partition(".")[0].lower()
    values = {"target": wanted.name, "host": host, "user": user, "port": port, "key": key, "python": python}
    board = add_board(farm, name, values)
    if offline:
        say(f"added {name} to {farm}; next: edgesdk boards trust {name}")
        return
    try:
        found = scan_board(board)
        if fingerprint is None and not sys.stdin.isatty():
            say(f"added {name} to {farm}; {host} offers {found.kind} {found.fingerprint}")
            say(f"next, with the fingerprint that the board itself shows: edgesdk boards trust {name}")
            return
        _pin_key(board, fingerprint)
        _survey(_listed(farm, name), farm, noise)
    except BaseException:
        remove_board(farm, name)  # a board that could not be added leaves no entry
        raise
    say(f"added {name} to {farm}")


@app.command(epilog="Example: edgesdk boards remove pi5-desk")
def remove(name: Name, farm: Farm = FARM) -> None:
    """Take a board out of farm.toml; its pinned host key stays in known_hosts, its results stay in the store."""
    from edgesdk.harness.unlist import remove_board

    remove_board(farm, name)
    say(f"removed {plain(name)} from {farm}")


@app.command(epilog="Example: edgesdk boards probe host")
def probe(
    name: Name,
    noise: Annotated[bool, typer.Option("--noise", help="measure the board's noise floor too")] = False,
    farm: Farm = FARM, json: Json = False,
) -> None:
    """Facts of a board, where it differs from its target, and what can be measured on it and what cannot."""
    board = _board(name, farm)
    facts, contradictions, able = look(board)
    floor = noise_floor_of(board) if noise else None
    if json:
        print_json({**facts, "differences": contradictions, "abilities": [vars(entry) for entry in able],
                    "noise_floor": floor})
        return
    print_mapping(facts)
    print_survey(board, contradictions, able, floor)


@app.command(epilog="Example: edgesdk boards trust pi5-desk --fingerprint SHA256:…")
def trust(
    name: Name,
    fingerprint: Annotated[str | None, typer.Option(help="the key's SHA256 fingerprint, read on the board")] = None,
    farm: Farm = FARM,
) -> None:
    """Pin a board's host key; the fingerprint must be typed, as `ssh-keygen -lf` shows it on the board itself."""
    board = _board(name, farm)
    if board.host is None:
        raise ConfigError(f"board {name!r} is this machine; it has no host key")
    _pin_key(board, fingerprint)
    _pin_identity(board, farm)


@app.command(epilog="Example: edgesdk boards lift pi5-desk")
def lift(name: Name, farm: Farm = FARM) -> None:
    """End the quarantine of a board, once what it was set aside for is mended."""
    from edgesdk.harness.leases import Leases

    found = Leases().lift(_board(name, farm))
    say(f"{plain(name)} may be used again" if found else f"{plain(name)} was not in quarantine")


@app.command(epilog="Example: edgesdk boards record pi5-desk --seconds 20 --output pi5.json")
def record(
    name: Name,
    output: Annotated[Path, typer.Option(help="file to write")],
    seconds: Annotated[float, typer.Option(min=0, max=3600, help="how long")] = 10.0,
    farm: Farm = FARM,
) -> None:
    """Record what a board's sensors and vendor commands say, to send it in or to replay it on an emulated board."""
    from edgesdk.harness.record import record as record_board
    from edgesdk.harness.replay import write_recording

    board = _board(name, farm)
    if board.host is None:
        raise ConfigError("this machine cannot be recorded", "record a board that is reached by SSH")
    with progress_bar() as progress:
        recording = record_board(board, seconds, progress)
    write_recording(output, recording)
    said = f"{len(recording.files)} files and {len(recording.commands)} commands over {recording.period_s:g} s"
    say(f"wrote {output}: {said}; read it before you send it")


def _address(address: str) -> tuple[str, str, int | None]:
    """User, host and port of `user@host` or `user@host:port` (ConfigError)."""
    user, at, host = address.rpartition("@")
    host, colon, port = host.partition(":")
    if not at or not user or not host or (colon and not (port.isascii() and port.isdigit() and len(port) < 6)):
        raise ConfigError(f"address {plain(address, 120)!r} is not user@host or user@host:port")
    return user, host, int(port) if port else None


def _pin_key(board: Board, fingerprint: str | None) -> None:
    """Pin the board's host key, asking for the fingerprint where it was not given."""
    from edgesdk.harness.connection import scan_board
    from edgesdk.harness.hostkeys import trust as pin

    found = scan_board(board)
    if fingerprint is None:
        say(f"{board.host} offers {found.kind} {found.fingerprint}")
        say("compare on the board: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
        fingerprint = str(typer.prompt("type the fingerprint that the board shows", err=True))
    pinned = pin(board, fingerprint, found)
    say(f"pinned {pinned.kind} {pinned.fingerprint} in {board.known_hosts}")


def _pin_identity(board: Board, farm: Path) -> None:
    """Ask the trusted board who it is and write it into the farm file; say so where that cannot be."""
    from edgesdk.harness.facts import identity_of
    from edgesdk.harness.farm import load_farm, pin_identity
    from edgesdk.harness.measure import probe as probe_board

    if board.serial is not None or board.name not in load_farm(farm):
        return
    by_hand = f"the serial number is not pinned; add `serial` to [boards.{board.name}] in {farm}"
    try:
        identity = identity_of(probe_board(board))
        if identity["serial"] is None:
            say(f"{board.name} tells no serial number and no machine id: {by_hand}")
        elif pin_identity(farm, board.name, identity):
            say(f"pinned serial {plain(identity['serial'])} in {farm}")
    except EdgeSDKError as problem:
        say(f"{problem.message}: {by_hand}, or run `edgesdk boards trust {board.name}` again")


def _survey(board: Board, farm: Path, noise: bool) -> None:
    """Probe a new board, refuse it where it cannot be one of its target, pin its identity, print what it can do."""
    from edgesdk.harness.abilities import wrong_machine
    from edgesdk.harness.facts import identity_of
    from edgesdk.harness.farm import pin_identity
    from edgesdk.targets import load_target

    facts, contradictions, able = look(board)
    wrong = wrong_machine(load_target(board.target), facts)
    if wrong is not None:
        raise ConfigError(f"{board.name}: {wrong}", "take the target of this board: edgesdk boards add --target …")
    pin_identity(farm, board.name, identity_of(facts))
    print_survey(board, contradictions, able, noise_floor_of(board) if noise else None)


@app.command("emulate", epilog="Example: edgesdk boards emulate rpi5; edgesdk boards emulate rpi5 --stop")
def emulate_board(
    target: Annotated[str, typer.Argument(help="target to emulate: rpi5, rpi4, jetson, …")],
    stop: Annotated[bool, typer.Option("--stop", help="stop the emulated board of this target")] = False,
    vm: Annotated[bool, typer.Option("--vm", help="a full system: guest time repeats, memory is true")] = False,
    sensors: Annotated[bool, typer.Option("--sensors", help="feed the recording that EdgeSDK ships")] = False,
    replay: Annotated[Path | None, typer.Option(help="feed a recording of `edgesdk boards record`")] = None,
    json: Json = False,
) -> None:
    """Start (or stop) an emulated board: real SSH and real ARM programs under qemu; its numbers are `emulated`."""
    from edgesdk.harness import emulate
    from edgesdk.harness.replay import read_recording, shipped
    from edgesdk.targets import load_target

    wanted = load_target(target)
    if stop:
        name = f"{wanted.short}{'-vm' * vm}-emulated"
        say(f"stopped {name}" if emulate.stop(name) else f"{name} was not running")
        return
    if vm and (sensors or replay):
        raise ConfigError("--vm takes no --sensors and no --replay", "its /sys is the kernel's; use the light board")
    recording = read_recording(replay) if replay else shipped(wanted.name) if sensors else None
    if recording is not None and recording.target != wanted.name:
        raise ConfigError(f"{replay}: is a recording of {plain(recording.target, 80)}, not of {wanted.name}")
    board = emulate.start(wanted, say, recording, full=vm)
    if json:
        print_json({"name": board.name, "host": board.host, "port": board.port, "key": str(board.key)})
    else:
        command = f"edgesdk boards emulate {target}{' --vm' * vm} --stop"
        say(f"{board.name} listens on {board.host}:{board.port}, until `{command}`")


def _listed(farm: Path, name: str) -> Board:
    """A board of the farm file as it stands now."""
    from edgesdk.harness.farm import load_farm

    return load_farm(farm)[name]


def _board(name: str, farm: Path) -> Board:
    from edgesdk.harness import emulate
    from edgesdk.harness.farm import load_farm

    boards = load_farm(farm) | {board.name: board for board in emulate.running()}
    if name not in boards:
        raise ConfigError(f"board {plain(name, 80)!r} is not in {farm} and not running", "one of " + ", ".join(boards))
    return boards[name]
