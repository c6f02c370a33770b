"""The figures of the harness: faults, statistics, overhead, upload, many boards, energy, hostile boards.

    python benchmarks/boards.py                       all parts, one after another (about an hour, cores to itself)
    python benchmarks/boards.py --only fuzz,upload    these parts; the others keep what they had

Every part is kept as soon as it is done, so that a run that was stopped goes on with `--only`; a figure whose part was
not run is `unmeasured`. `load` of a figure is the load average of the machine before its part: what others did there.
Where others work, `chrt -r 1 python benchmarks/boards.py --only PART` runs a part before them; `real_time` says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

from _results import FOLDER, figure, write_result

from edgesdk.cli.output import say
from edgesdk.files import canonical_json, write_atomic

KEPT = Path(__file__).parents[1] / ".edgesdk" / "benchmark-boards"
# Part → (module, function, its figures: name, unit, goal).
PARTS: dict[str, tuple[str, str, list[tuple[str, str, str | None]]]] = {
    "statistics": ("boards_statistics", "run", [
        ("simulated: 95 % interval covers the truth, 5 rounds, 1000 tries", "%", "93 to 97"),
        ("simulated: identical artifacts called changed, 200 A/B runs", "%", "≤ 1"),
    ]),
    "fuzz": ("boards_fuzz", "run", [
        ("hostile board outputs without a crash and without injected text", "of 10000", "10000"),
    ]),
    "upload": ("boards_host", "upload", [("upload through a 100 Mbit/s link", "% of the link", "≥ 80")]),
    "energy": ("boards_energy", "run", [
        ("replayed INA3221: energy of windows against the known integral, largest error", "%", "≤ 1"),
        ("an energy goal selects by the replayed figure, labelled emulated", "", "true"),
    ]),
    "intrusion": ("boards_host", "intrusion", [("sampler intrusion on host, INA3221 read at 20 Hz", "%", "≤ 1")]),
    "overhead": ("boards_host", "overhead", [
        ("harness overhead per candidate on host by loopback SSH", "s", "≤ 1.5"),
    ]),
    "nasty": ("boards_nasty", "run", [("ten faults at random times, 20 times each, as expected", "of 200", "200")]),
    "faults": ("boards_faults", "run", [("fault tests with the expected outcome", "of 43", "43")]),
    "fleet": ("boards_fleet", "many", [
        ("one harness driving 20 light boards, peak resident memory", "MB", "≤ 300"),
    ]),
    "shared": ("boards_fleet", "shared_machine", [
        ("boards measured at the same time on one machine, medians against a board alone, largest difference", "%",
         "≤ 5"),
    ]),
    "aa": ("boards_host", "same_artifact", [("host: identical artifacts called changed, real A/A runs", "of 10", "0")]),
}
# name → (value, met, provenance, more keys of the entry); what a part does not give stays unmeasured.
Found = dict[str, tuple[Any, bool | None, str, dict[str, Any]]]


def main() -> None:
    """Run the parts that were asked for and write `results/boards.json` from all that are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="parts, separated by commas: " + ", ".join(PARTS))
    parser.add_argument("--again", action="store_true", help="run parts that are kept already once more")
    parser.add_argument("--no-run", action="store_true", help="only write the document from what is kept")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        parser.error(f"unknown parts: {', '.join(unknown)}")
    for name in [] if arguments.no_run else wanted:
        kept = KEPT / f"{name}.json"
        if kept.exists() and not (arguments.again or arguments.only):
            say(f"{name}: kept")
            continue
        started, load = time.monotonic(), os.getloadavg()[0]
        say(f"{name}: running, load {load:.1f}")
        module, function, figures = PARTS[name]
        found = getattr(importlib.import_module(module), function)([entry[0] for entry in figures])
        write_atomic(kept, canonical_json({
            "figures": found, "seconds": round(time.monotonic() - started, 1), "load": round(load, 1),
            "real_time": os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO),
        }))
        say(f"{name}: {found}")
        write()
    write()


def write() -> None:
    """Write the document: parts that are kept here, and of the others what the document says already."""
    path = FOLDER / "boards.json"
    before = json.loads(path.read_bytes()) if path.exists() else {"figures": [], "part_seconds": {}}
    known = {entry["figure"]: entry for entry in before["figures"]}
    entries = []
    seconds = {}
    for part, (_, _, figures) in PARTS.items():
        kept = KEPT / f"{part}.json"
        found = json.loads(kept.read_bytes()) if kept.exists() else {"figures": {}, "seconds": None}
        seconds[part] = found["seconds"] if kept.exists() else before["part_seconds"].get(part)
        for name, unit, goal in figures:
            if not kept.exists() and name in known:
                entries.append(known[name])
                continue
            value, met, provenance, more = found["figures"].get(name, (None, False, "unmeasured", {}))
            met = False if value is None else met
            how = {} if value is None else {key: found[key] for key in ("load", "real_time") if key in found}
            entries.append(figure(name, value, unit, goal, met, provenance) | more | how)
    write_result("boards", entries, extra={"part_seconds": seconds}, path=path)


if __name__ == "__main__":
    main()
