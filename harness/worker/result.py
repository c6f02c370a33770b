"""The result file: a zip of raw files and `result.json`, whole or not at all."""

import json
import os
import zipfile
from typing import Any

from edgesdk.harness.worker import store


def write_result(folder: str, work: str, result: "dict[str, Any]", raw: "list[str]") -> "dict[str, Any]":
    """Write `result.zip` into `folder`; returns its {"sha256", "bytes"}.

    Args:
        raw: names of raw files in `work`.
    """
    path = os.path.join(folder, "result.zip")
    temporary = path + ".part"
    with open(temporary, "wb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in raw:
                archive.write(os.path.join(work, name), name)
            archive.writestr("result.json", json.dumps(result, sort_keys=True, allow_nan=False))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    return {"sha256": store.sha256_file(path), "bytes": os.path.getsize(path)}
