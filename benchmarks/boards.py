"""The figures of the harness: faults, statistics, overhead, upload, many boards, energy, hostile boards.

    python benchmarks/boards.py                       all parts, one after another (about an hour, cores to itself)
    python benchmarks/boards.py --only fuzz,upload    these parts; the others keep what they had

Every part is kept as soon as it is done, with the state that it was made in (`_parts.py`). `load` of a figure is the
load average of the machine before its part: what others did there. Where others work, `chrt -r 1 python
benchmarks/boards.py --only PART` runs a part before them; `real_time` says so.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence

from _parts import Found, Part, parse, run_parts
from _results import figure


def _part(module: str, function: str, promised: Sequence[tuple[str, str, str]]) -> Part:
    """A part whose figures (name, unit, goal) `module.function` finds when it is given their names:
    {name: (value, met, provenance, more keys of the entry)}. The module is imported when the part runs."""

    def run() -> Found:
        how = {
            "load": round(os.getloadavg()[0], 1),
            "real_time": os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO),
        }
        found = getattr(importlib.import_module(module), function)([name for name, _, _ in promised])
        entries = []
        for name, unit, goal in promised:
            value, met, provenance, more = found[name]
            entries.append(figure(name, value, unit, goal, met, provenance) | more | how)
        return entries, []

    return Part(run, [(name, goal) for name, _, goal in promised])


PARTS: dict[str, Part] = {
    "statistics": _part("boards_statistics", "run", [
        ("simulated: 95 % interval covers the truth, 5 rounds, 1000 tries", "%", "93 to 97"),
        ("simulated: identical artifacts called changed, 200 A/B runs", "%", "≤ 1"),
    ]),
    "fuzz": _part("boards_fuzz", "run", [
        ("hostile board outputs without a crash and without injected text", "of 10000", "10000"),
    ]),
    "upload": _part("boards_host", "upload", [("upload through a 100 Mbit/s link", "% of the link", "≥ 80")]),
    "energy": _part("boards_energy", "run", [
        ("replayed INA3221: energy of windows against the known integral, largest error", "%", "≤ 1"),
        ("an energy goal selects by the replayed figure, labelled emulated", "", "true"),
    ]),
    "intrusion": _part("boards_host", "intrusion", [("sampler intrusion on host, INA3221 read at 20 Hz", "%", "≤ 1")]),
    "overhead": _part("boards_host", "overhead", [
        ("harness overhead per candidate on host by loopback SSH", "s", "≤ 1.5"),
    ]),
    "nasty": _part("boards_nasty", "run", [
        ("ten faults at random times, 20 times each, as expected", "of 200", "200"),
    ]),
    "faults": _part("boards_faults", "run", [("fault tests with the expected outcome", "of 43", "43")]),
    "fleet": _part("boards_fleet", "many", [
        ("one harness driving 20 light boards, peak resident memory", "MB", "≤ 300"),
    ]),
    "shared": _part("boards_fleet", "shared_machine", [
        ("boards measured at the same time on one machine, medians against a board alone, largest difference", "%",
         "≤ 5"),
    ]),
    "aa": _part("boards_host", "same_artifact", [
        ("host: identical artifacts called changed, real A/A runs", "of 10", "0"),
    ]),
}


def main() -> None:
    """Run the parts that were asked for, write `results/boards.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-run", action="store_true", help="only write the document from what is kept")
    options, wanted = parse(parser, list(PARTS))
    run_parts("boards", PARTS, [] if options.no_run else wanted, options.again)


if __name__ == "__main__":
    main()
