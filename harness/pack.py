"""The worker as one file: a zip that Python runs, equal bytes for equal sources."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from importlib.resources import files

ENTRY = "from edgesdk.harness.worker.main import main\n\nraise SystemExit(main())\n"
EPOCH = (1980, 1, 1, 0, 0, 0)


@cache
def pack_worker() -> bytes:
    """Bytes of the zip. Inside, the worker keeps its import name; the packages around it are empty."""
    members = {"__main__.py": ENTRY, "edgesdk/__init__.py": "", "edgesdk/harness/__init__.py": ""}
    for entry in files("edgesdk.harness.worker").iterdir():
        if entry.name.endswith(".py"):
            members[f"edgesdk/harness/worker/{entry.name}"] = entry.read_text()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), members[name], zipfile.ZIP_DEFLATED)
    return stream.getvalue()
