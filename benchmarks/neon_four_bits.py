"""Executed instructions of `w4a8` against `w8a8`, MiniLM with random weights, for `benchmarks/neon.py`.

    python benchmarks/neon_four_bits.py

Up to 4 rows (2 on `base`) unpack in registers; more share panels that are unpacked into the L1 cache.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import neon_models as models
from _results import figure
from neon_count import remembered

from edgesdk.converters import converter
from edgesdk.targets import load_target

CPU, TARGET = "cortex-a76", "raspberry-pi/5"
SEQUENCES = (1, 2, 4, 8, 32, 128)


def four_bit_figures(sequences: tuple[int, ...] = SEQUENCES) -> list[dict[str, Any]]:
    """Instructions at each sequence, and bytes of the weights."""
    weights, entries, neon = models.random_weights(models.SPEC), [], converter("neon")
    bytes_of: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="edgesdk-four-bits-") as place:
        for sequence in sequences:
            folders = []
            for scheme in ("w8a8", "w4a8"):
                folders.append(Path(place) / f"{scheme}-s{sequence}")
                folders[-1].mkdir()
                package = models.package(weights, scheme, sequence)
                bytes_of[scheme] = neon.convert(package, load_target(TARGET), folders[-1]).bytes
            eight, four = (counts["total"] for counts in remembered(folders, CPU))
            title = f"w4a8, S = {sequence}, {CPU}"
            entries += [
                figure(f"{title}, instructions", four, "", provenance="emulated"),
                figure(f"{title}, instructions of w8a8", four / eight, "×", provenance="emulated"),
            ]
    return [*entries, figure("w4a8, bytes of w8a8", bytes_of["w4a8"] / bytes_of["w8a8"], "×")]


def main() -> None:
    """Print the figures."""
    for entry in four_bit_figures():
        print(f"{entry['figure']}: {entry['value']} {entry['unit']}")


if __name__ == "__main__":
    main()
