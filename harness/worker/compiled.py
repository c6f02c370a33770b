"""The runtime `neon-source`: a NEON build in source form, which the board's own C compiler makes a program of. It then
runs as the program of any NEON artifact does.

Programs lie in `STATE/programs`, under a digest of what they depend on: the artifact, the compiler's version, all
options. What artifact.json says is words from outside: files of the artifact and options of the lists below, given to
the compiler one by one, and nothing else.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from typing import Any

from edgesdk.harness.worker import store, tuning
from edgesdk.harness.worker.child import BAD_INPUT, INTERNAL
from edgesdk.harness.worker.kept import Kept

COMPILERS = ("gcc", "cc", "clang")
# For all files of a program: a Cortex-A53 takes minutes for a large model. The job's child is killed then.
LIMIT_S = 1800.0
ASK_SECONDS = 20.0
PROGRAM = "program"
MOST_UNITS, MOST_OPTIONS = 64, 64
SOURCE = re.compile(r"[A-Za-z0-9_]{1,64}\.[cS]")
OPTION = re.compile(
    r"-std=gnu[0-9]{2}|-O[0-3]|-Wall|-Wextra|-ffp-contract=off|-fwrapv|-fno-[a-z0-9-]{1,40}|"
    r"-m(?:arch|tune|cpu)=[a-z0-9.+-]{1,60}|-m[a-z0-9]{1,20}|-D[A-Z0-9_]{1,40}=[0-9]{1,12}"
)
LINK = ("-static", "-no-pie", "-s", "-Wl,--build-id=none", "-lm", "-pthread")


class Failed(Exception):
    """There is no compiler, or it did not do what was asked; the text is for people."""


def compiler() -> "tuple[str, str] | None":
    """Path and first line of `--version` of this board's C compiler; None where there is none that answers."""
    for name in COMPILERS:
        lines = (tuning.run([name, "--version"], seconds=ASK_SECONDS) or "").splitlines()
        path = shutil.which(name)
        if path is not None and lines and lines[0].strip():
            return path, re.sub(r"[^ -~]", "?", lines[0].strip())[:200]
    return None


def version() -> "str | None":
    """The version of `compiler`, for the facts."""
    found = compiler()
    return found[1] if found else None


def parse_recipe(document: "dict[str, Any]") -> "tuple[list[list[str]], list[str]]":
    """`units` (a source and its options each) and `link` of an artifact in source form (ValueError, KeyError,
    TypeError for anything that is not of the lists above)."""
    files = {file["path"] for file in document["files"]}
    units, link = document["runtime"]["units"], document["runtime"]["link"]
    if not isinstance(units, list) or not 0 < len(units) <= MOST_UNITS or not isinstance(link, list):
        raise ValueError("artifact.json: units is not a list of sources, or link is not a list")
    for unit in units:
        if not isinstance(unit, list) or not 0 < len(unit) <= MOST_OPTIONS:
            raise ValueError(f"artifact.json: {unit!r:.80} is not a source with its options")
        if not isinstance(unit[0], str) or not SOURCE.fullmatch(unit[0]) or unit[0] not in files:
            raise ValueError(f"artifact.json: {unit[0]!r:.80} is not a source of the artifact")
        for word in unit[1:]:
            if not isinstance(word, str) or not OPTION.fullmatch(word):
                raise ValueError(f"artifact.json: {word!r:.80} is not an option that is given to a compiler here")
    for word in link:
        if word not in LINK:
            raise ValueError(f"artifact.json: {word!r:.80} is not an option that is given to a linker here")
    if len({unit[0].rpartition(".")[0] for unit in units}) != len(units):
        raise ValueError("artifact.json: two sources have one name")
    return units, link


def build(folder: str, work: str) -> str:
    """Make `PROGRAM` in the folder `work`, of the artifact in `folder`: by the compiler, or what an earlier job kept.

    Returns:
        how it was made, in words.

    Raises:
        Failed, OSError; ValueError, KeyError, TypeError: artifact.json asks for something else.
    """
    folder = os.path.abspath(folder)
    units, link = parse_recipe(store.read_json(os.path.join(folder, "artifact.json")))
    found = compiler()
    if found is None:
        raise Failed("no C compiler is here ({}): install gcc".format(", ".join(COMPILERS)))
    path, by = found
    depends = json.dumps([os.path.basename(folder), by, units, link])
    state = os.path.dirname(os.path.dirname(folder))
    kept = Kept(os.path.join(state, "programs", hashlib.sha256(depends.encode()).hexdigest()))
    fault, known = kept.fault(), os.path.exists(kept.path)
    text = f"compiled on the board by {by}"
    if fault:
        kept.forget()
        os.makedirs(os.path.dirname(kept.path), exist_ok=True)
        started = time.monotonic()
        _compile(path, units, link, folder, work, kept)
        text += f" in {time.monotonic() - started:.1f} s"
        text += f"; an earlier program was not used: {fault}" if known else ""
    else:
        kept.used()
        text += " for an earlier job"
    program = os.path.join(work, PROGRAM)
    if os.path.lexists(program):
        os.unlink(program)
    try:
        os.link(kept.path, program)
    except OSError:  # a file system without links
        shutil.copy(kept.path, program)
    return text


def _compile(path: str, units: "list[list[str]]", link: "list[str]", folder: str, work: str, kept: Kept) -> None:
    """Compile in the artifact's folder, whose files name each other, and write to a folder below `work`."""
    made = os.path.join(work, "made")
    shutil.rmtree(made, ignore_errors=True)
    os.mkdir(made)
    try:
        objects = []
        for unit in units:
            objects.append(os.path.join(made, unit[0].rpartition(".")[0] + ".o"))
            _call([path] + unit[1:] + ["-c", unit[0], "-o", objects[-1]], folder, made, unit[0])
        part = os.path.join(made, PROGRAM)
        _call([path] + objects + link + ["-o", part], folder, made, "linking")
        if not os.path.isfile(part) or not os.path.getsize(part):
            raise Failed(f"{path} ended well and wrote no program")
        os.chmod(part, 0o755)
        kept.keep(part, {"compiler": path})
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _call(argv: "list[str]", folder: str, made: str, what: str) -> None:
    """One call of the compiler; what it says goes to this process's stderr, whose tail the job keeps. Its own temporary
    files are below `made`, so that nothing of them stays when it is killed."""
    sys.stderr.flush()
    environment = dict(os.environ, TMPDIR=made)
    ended = subprocess.call(argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if ended:
        raise Failed(f"{argv[0]} failed on {what} (exit {ended})")


def main(arguments: argparse.Namespace) -> int:
    """`build` of an artifact in source form, in the current folder; exit codes as of `runner`."""
    try:
        print(build(arguments.artifact, os.getcwd()))
    except (ValueError, KeyError, TypeError) as problem:
        sys.stderr.write(f"{problem}\n")
        return BAD_INPUT
    except (Failed, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return INTERNAL
    return 0
