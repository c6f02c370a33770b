"""The result file: a zip of raw files and `result.json`, whole or not at all."""

import json
import os
import shutil
import zipfile
from typing import Any

from edgesdk.harness.worker import store


def _member(name: str) -> zipfile.ZipInfo:
    """An entry without a time: zip knows none before 1980, where a board without a clock lives."""
    member = zipfile.ZipInfo(name)
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def write_result(folder: str, work: str, result: "dict[str, Any]", raw: "list[str]") -> "dict[str, Any]":
    """Write `result.zip` into `folder`; returns its {"sha256", "bytes"}.

    Args:
        raw: names of raw files in `work`.
    """
    path = os.path.join(folder, "result.zip")
    temporary = path + ".part"
    with open(temporary, "wb") as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            for name in raw:
                with open(os.path.join(work, name), "rb") as source, archive.open(_member(name), "w") as member:
                    shutil.copyfileobj(source, member)
            archive.writestr(_member("result.json"), json.dumps(result, sort_keys=True, allow_nan=False))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    return {"sha256": store.sha256_file(path), "bytes": os.path.getsize(path)}
