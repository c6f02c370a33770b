"""Executed instructions with smmla (i8mm), ours and the peers': the part `i8mm` of `neon.py`.

No board of the table has it, so there is no goal. qemu's `max` would also have SVE, which ONNX Runtime then takes
instead; without it both peers multiply by smmla.
"""

from __future__ import annotations

import neon_peers as peers
from _parts import ROOT, Found
from _results import figure
from neon_count import remembered
from neon_models import macs

from edgesdk.converters import converter
from edgesdk.targets import load_target

CPU, SEQUENCE = "max,sve=off", 128
TARGET = ROOT / "tests" / "converters" / "i8mm.toml"


def run(builder: peers.Builder) -> Found:
    """w8a8, S = 128, against the best int8 form of each peer; peers' files do not depend on the CPU."""
    path = builder.folder / "neon-w8a8-i8mm"
    path.mkdir()
    converter("neon").convert(builder.model.package("w8a8", SEQUENCE), load_target(str(TARGET)), path)
    ours = remembered([path], CPU)[0]
    forms = [form for form in peers.FORMS if form.int8]
    counts = remembered([form.write(builder, peers.A76, SEQUENCE) for form in forms], CPU)
    found = list(zip(forms, counts, strict=True))
    title, share = f"w8a8, S = {SEQUENCE}, i8mm", peers.int8_macs(ours) / macs(SEQUENCE, builder.model.spec)
    figures = [figure(f"{title}, instructions", ours["total"], "", provenance="emulated")]
    for runtime in (peers.ONNX, peers.LITE):
        best = peers.best(found, runtime, True, CPU, builder.model, SEQUENCE)
        name = f"{title}, of {runtime}'s best int8"
        entry = figure(name, ours["total"] / best.total, "×", provenance="emulated")
        figures.append(entry | {"note": f"against: {best.form}, {best.total / 1e6:.1f} M"})
    rows = [["i8mm", SEQUENCE, "**EdgeSDK**", "NEON build, w8a8", *peers.classes(ours), f"{100 * share:.1f} %",
             peers.our_work(ours, builder.model, SEQUENCE)]]
    rows += peers.table(found, builder.model, "i8mm", SEQUENCE)
    return figures, [{"title": "The same with int8 matrix multiply (i8mm):", "columns": peers.COLUMNS, "rows": rows}]
