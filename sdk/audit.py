"""`edgesdk verify`: look at the format of what is given and audit that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgesdk.errors import ConfigError


def audit(path: Path) -> dict[str, Any]:
    """Audit a package, an artifact, a measurement document or a results store.

    Returns:
        what was checked, by name.

    Raises:
        ConfigError: the path is none of these.
        EdgeSDKError: naming the first thing that is wrong.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    if (path / "manifest.json").is_file():
        return _package(path)
    if (path / "artifact.json").is_file():
        from edgesdk.converters.artifact import artifact_sha256, read_artifact

        artifact = read_artifact(path)
        return {
            "format": "edgesdk.artifact", "name": artifact.name, "sha256": artifact_sha256(path),
            "files": len(artifact.files), "golden rows": artifact.golden.n, "verified": True,
        }
    if path.is_file() and path.read_bytes()[:15] == b"SQLite format 3":
        from edgesdk.store_verify import verify_store

        return {"format": "edgesdk.store", **verify_store(path), "verified": True}
    if path.suffix == ".json" and path.is_file():
        from edgesdk.harness.measure import verify_measurement

        return {"format": "edgesdk.measurement", **(verify_measurement(path) or {}), "verified": True}
    raise ConfigError(
        f"{path}: neither a package, an artifact, a measurement nor a results store",
        "give a .edgepkg folder, a folder with artifact.json, a measurement's .json, or results.sqlite",
    )


def _package(path: Path) -> dict[str, Any]:
    from edgesdk.package import package_digest, read_package
    from edgesdk.verify import verify

    package = read_package(path)
    verify(package)
    return {
        "format": "edgesdk.package", "name": package.name, "digest": package_digest(path), "scheme": package.scheme,
        "parameters": package.spec.parameters(), "stages": [entry.stage for entry in package.lineage], "verified": True,
    }
