"""Where the instructions go, by step of the plan and by class: the part `profile` of `neon.py`.

`model profile` tells the counting plugin when each step ends. Steps that do the same in every layer are one row.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import neon_peers as peers
from _parts import Found
from neon_count import Counter, Counts
from neon_peers import A72, A76, Builder

PLACES = ((A76, 128, "w8a8"), (A76, 32, "w8a8"), (A72, 128, "w8a8"))
LAYER, PACKED = re.compile(r"layers\.\d+\."), re.compile(r"\.packed\d+")


def run(builder: Builder) -> Found:
    """One table for each CPU and sequence."""
    tables = []
    for cpu, sequence, scheme in PLACES:
        artifact = builder.artifact("neon", scheme, cpu, sequence)
        with Counter(cpu) as counter:
            steps = counter.steps(artifact)
        groups: dict[str, list[Counts]] = {}
        for name, counts in zip(_names(artifact), steps, strict=True):
            groups.setdefault(PACKED.sub("", LAYER.sub("layers.N.", name)), []).append(counts)
        whole = sum(step["total"] for step in steps)
        rows = []
        for name, members in [*groups.items(), ("all", steps)]:
            added = {key: sum(member[key] for member in members) for key in members[0]}
            rows.append([name, len(members), f"{100 * added['total'] / whole:.2f} %", *peers.classes(added)])
        title = f"Where the {whole:,} instructions of {scheme}, S = {sequence}, {cpu} go, in millions by step:"
        tables.append({"title": title, "columns": ["step", "times", "share", *peers.CLASSES], "rows": rows})
    return [], tables


def _names(artifact: Path) -> list[str]:
    """Name and kind of each step, as the program itself lists them."""
    document = json.loads((artifact / "artifact.json").read_bytes())
    words = ["profile", "--inputs", str(artifact / "golden/in.bin"), "--n", str(document["golden"]["n"])]
    done = subprocess.run(
        ["qemu-aarch64", "-cpu", "max", str(artifact / "model"), *words], check=True, capture_output=True, text=True
    )
    return [f"{step['name']} ({step['kind']})" for step in json.loads(done.stdout)["steps"]]
