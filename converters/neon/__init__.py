"""The NEON build: an ahead-of-time compiler from packages to static executables.

    package's graph ─front.lower─▶ Graph ─trace─▶ Plan ─fuse─▶ Plan ─emit─▶ C + packed weights ─build─▶ executable

`kernels/` holds the C kernels: one tile per kernel set (`kernel_sets.py`), everything else written once for all.
"""

from __future__ import annotations

from edgesdk.converters.neon.convert import check, convert, name, scheme

__all__ = ["check", "convert", "name", "scheme"]
