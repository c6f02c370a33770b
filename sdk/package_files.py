"""The folder of a package on disk: its manifest, what may lie in it, and reading it without trusting it.

A package's files are a closed set (`REQUIRED`, `OPTIONAL` and `preprocess/NAME`); the manifest names each with its
sha256 and size. Every file is opened once, without following links, and only the bytes that were checked are used.
`run.json` is the one file that the manifest does not name, so that it may differ between equal packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgesdk.errors import EdgeSDKError, PackageError
from edgesdk.files import atomic_folder, canonical_json, check_document, sha256_bytes

FORMAT, VERSION = "edgesdk.package", 1
RUN_FORMAT, RUN_VERSION = "edgesdk.run", 1
MANIFEST, RUN = "manifest.json", "run.json"
TRANSFORMER, WEIGHTS, ENCODINGS = "transformer.json", "weights.safetensors", "encodings.json"
GRAPH, SAMPLES, PREPROCESS = "graph/model.onnx", "samples.npz", "preprocess/"
REQUIRED, OPTIONAL = frozenset({TRANSFORMER, WEIGHTS, GRAPH, SAMPLES}), frozenset({ENCODINGS})
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
LARGEST_DOCUMENT = 64 << 20
LARGEST_PACKAGE = 8 << 30
MOST_FILES = 100


@contextlib.contextmanager
def hostile(where: str) -> Iterator[None]:
    """Turn whatever a parser trips over inside the block into a PackageError that names `where`, the file."""
    try:
        yield
    except EdgeSDKError as problem:
        if problem.message.startswith(where):
            raise
        raise PackageError(f"{where}: {problem.message}", problem.hint) from None
    except Exception as problem:  # the bytes are not ours: no list of exceptions would be complete
        found = repr(problem)[:300]
        raise PackageError(f"{where}: malformed: {found}", "make the package again with `edgesdk build`") from problem


def parse_json(data: bytes, where: str) -> Any:
    """Parse strict JSON: UTF-8, no duplicate keys, no NaN or infinity, no lone surrogates, no bottomless nesting.

    Raises:
        PackageError: anything else.
    """
    with hostile(where):
        document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        canonical_json(document)  # what cannot be written again (1e999, "\ud800") is refused here
        return document


def write_folder(path: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes], run: Mapping[str, Any]) -> str:
    """Write the folder whole or not at all, and return its digest.

    An existing package at `path` is replaced in the last step; anything else there is left alone and refused.
    """
    data = manifest_bytes(manifest, files)
    with hostile(f"{path}/{RUN}"):
        run_data = canonical_json({"format": RUN_FORMAT, "version": RUN_VERSION, **run})
    try:
        if path.is_symlink() or (path.exists() and not _replaceable(path)):
            raise PackageError(f"{path}: exists and is not a package; not replaced", "choose another path or remove it")
        with atomic_folder(path) as folder:
            for relative, content in {**files, MANIFEST: data, RUN: run_data}.items():
                (folder / relative).parent.mkdir(exist_ok=True)
                (folder / relative).write_bytes(content)
    except OSError as problem:
        raise PackageError(f"{path}: not written: {problem}", "check the free space and your rights there") from problem
    return digest_of(data)


def manifest_bytes(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """manifest.json: `manifest` with format, version and the digests and sizes of `files`."""
    listed = {name: {"sha256": sha256_bytes(data), "bytes": len(data)} for name, data in files.items()}
    with hostile(MANIFEST):
        return canonical_json({**manifest, "format": FORMAT, "version": VERSION, "files": listed})


def digest_of(manifest: bytes) -> str:
    """The content digest of a package: that of its manifest, which names the digest of every other file."""
    return f"sha256:{sha256_bytes(manifest)}"


def read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    """Read and check `manifest.json`; returns the document and the package's digest. Other files are not opened.

    Raises:
        PackageError: no package at `path`, another format or version, or a file list that no package can have.
    """
    if not path.exists():
        raise PackageError(f"{path}: no such package", "check the path; `edgesdk build` writes packages")
    if not path.is_dir():
        raise PackageError(f"{path}: is a file", "a package is a folder, `name.edgepkg`; give its path")
    if not os.path.lexists(path / MANIFEST):
        raise PackageError(f"{path}: not a package: it has no {MANIFEST}", "give the path of a `name.edgepkg` folder")
    data = _read(path / MANIFEST, LARGEST_DOCUMENT)
    where = f"{path}/{MANIFEST}"
    document = check_document(parse_json(data, where), where, FORMAT, VERSION, PackageError)
    files = document.get("files")
    if not isinstance(files, dict) or len(files) > MOST_FILES:
        raise PackageError(f"{where}: `files` must map at most {MOST_FILES} paths to their sha256 and size")
    for name, entry in files.items():
        _check_entry(name, entry, where)
    total = sum(entry["bytes"] for entry in files.values())
    if total > LARGEST_PACKAGE:
        raise PackageError(f"{where}: claims {total} bytes; packages have at most {LARGEST_PACKAGE}")
    for name in sorted(REQUIRED - files.keys()):
        raise PackageError(f"{where}: does not list {name}, which every package has")
    return document, digest_of(data)


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """Read a package folder: (manifest, content of every listed file, digest), all sizes and digests checked.

    Raises:
        PackageError: see `read_manifest`; or a file is missing, unlisted, a link, or differs from the manifest.
    """
    manifest, digest = read_manifest(path)
    listed: dict[str, dict[str, Any]] = manifest["files"]
    try:
        _check_listing(path, "", {MANIFEST, RUN, *listed})
    except OSError as problem:
        raise PackageError(f"{path}: not readable: {problem}") from problem
    files: dict[str, bytes] = {}
    for name, entry in sorted(listed.items()):
        content = _read(path / name, LARGEST_PACKAGE, entry["bytes"])
        if sha256_bytes(content) != entry["sha256"]:
            raise PackageError(
                f"{path}/{name}: its sha256 differs from {MANIFEST}", "the file was changed: copy or build it again"
            )
        files[name] = content
    return manifest, files, digest


def read_run(path: Path) -> dict[str, Any]:
    """The content of `run.json` (seconds, host, date), without `format` and `version`; empty where there is none.

    Raises:
        PackageError: it is a link, is not JSON, or has another format or version.
    """
    if not os.path.lexists(path / RUN):
        return {}
    where = f"{path}/{RUN}"
    document = parse_json(_read(path / RUN, LARGEST_DOCUMENT), where)
    document = check_document(document, where, RUN_FORMAT, RUN_VERSION, PackageError)
    return {key: value for key, value in document.items() if key not in ("format", "version")}


def legal_path(name: Any) -> bool:
    """Whether a package may hold a file of this name."""
    if not isinstance(name, str):
        return False
    return name in REQUIRED | OPTIONAL or (
        name.startswith(PREPROCESS) and NAME.fullmatch(name.removeprefix(PREPROCESS)) is not None
    )


def _check_entry(name: str, entry: Any, where: str) -> None:
    if not legal_path(name):
        raise PackageError(f"{where}: illegal path {name[:200]!r}", "packages hold a fixed set of files, all inside")
    if not isinstance(entry, dict) or entry.keys() != {"sha256", "bytes"}:
        raise PackageError(f"{where}: {name} needs exactly `sha256` and `bytes`")
    if not isinstance(entry["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
        raise PackageError(f"{where}: {name}: `sha256` is not 64 hexadecimal digits")
    if type(entry["bytes"]) is not int or not 0 <= entry["bytes"] <= LARGEST_PACKAGE:
        raise PackageError(f"{where}: {name}: `bytes` must be an integer from 0 to {LARGEST_PACKAGE}")


def _check_listing(root: Path, folder: str, expected: set[str]) -> None:
    """Refuse links, special files and unlisted entries; only folders that hold listed files are entered."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = folder + entry.name
            if entry.is_symlink():
                raise PackageError(f"{root}/{name}: is a link; packages hold none", "copy the file in its place")
            if entry.is_dir() and any(other.startswith(f"{name}/") for other in expected):
                _check_listing(root, f"{name}/", expected)
            elif name not in expected:
                raise PackageError(f"{root}/{name}: not listed in {MANIFEST}", "remove it: packages hold nothing else")


def _read(path: Path, largest: int, size: int | None = None) -> bytes:
    """The bytes of a regular file that is no link; its size is checked before anything is read."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise PackageError(f"{path}: not a regular file")
            if facts.st_size > largest or size is not None and facts.st_size != size:
                expected = f"at most {largest}" if size is None else str(size)
                raise PackageError(
                    f"{path}: has {facts.st_size} bytes, expected {expected}", "the file is truncated or was changed"
                )
            return stream.read(facts.st_size)
    except FileNotFoundError:
        raise PackageError(f"{path}: missing", "copy or build the package again") from None
    except OSError as problem:
        found = "is a link; packages hold none" if path.is_symlink() else f"not readable: {problem}"
        raise PackageError(f"{path}: {found}") from problem


def _replaceable(path: Path) -> bool:
    """A package, whole or broken, or an empty folder."""
    return path.is_dir() and (not any(path.iterdir()) or ((path / MANIFEST).is_file() and (path / WEIGHTS).is_file()))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key appears twice")
    return document


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
