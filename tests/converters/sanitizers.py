"""Which compiler of this machine can build with a sanitizer: clang's runtime is a package of its own."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from edgesdk.converters.neon.toolchain import Toolchain, find_all
from edgesdk.errors import ConvertError
from edgesdk.testing.needs import need


@cache
def with_sanitizer(triple: str, sanitizer: str) -> Toolchain:
    """The first compiler for the triple that links a program with `-fsanitize=SANITIZER`."""
    for toolchain in find_all(triple):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "a.c").write_text("int main(void) { return 0; }")
            try:
                toolchain.run((f"-fsanitize={sanitizer}", "a.c", "-o", "a"), Path(folder))
            except ConvertError:
                continue
            return toolchain
    need(False, f"no compiler for {triple} with -fsanitize={sanitizer}")
    raise AssertionError("need(False) returned")
