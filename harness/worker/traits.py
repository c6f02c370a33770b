"""What sets a runtime apart from the others, for the host and for the worker; most of them are as `USUAL`."""

from typing import NamedTuple


class Traits(NamedTuple):
    """`built`: something is built of the artifact on the board before it runs; `countable`: it runs on the processor,
    whose instructions an emulated board counts; `edges`: it tells on a clock of the board when its window starts and
    ends, so that energy can be had of it."""

    built: bool
    countable: bool
    edges: bool


USUAL = Traits(built=False, countable=True, edges=True)
TRAITS = {
    "neon-source": USUAL._replace(built=True),
    "trtexec": Traits(built=True, countable=False, edges=False),
}


def traits_of(runtime: str) -> Traits:
    """The traits of a runtime, by its name in artifact.json."""
    return TRAITS.get(runtime, USUAL)
