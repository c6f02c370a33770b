"""Audit of a results store: every stored figure is computed again from the raw samples."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgesdk.errors import MeasureError, VerifyError
from edgesdk.files import canonical_json
from edgesdk.harness.verify import verify_measurement
from edgesdk.record import candidate_from_plain
from edgesdk.store import Store, columns_of, raw_files


def verify_store(path: Path) -> dict[str, int]:
    """Audit the store at `path`; returns how many builds, attempts and files of raw samples were checked.

    Raises:
        ConfigError: not a results store.
        VerifyError: naming what is wrong (the first ten).
    """
    store = Store(path, create=False)
    problems = store_problems(store)
    if problems:
        more = f"\nand {len(problems) - 10} more" if len(problems) > 10 else ""
        message = f"{path}: {len(problems)} problems:\n" + "\n".join(problems[:10]) + more
        raise VerifyError(message, "measure these candidates again with `edgesdk build`")
    attempts = store.attempts()
    samples = {holder["sha256"] for row in attempts for holder, _ in raw_files(row["document"]["measurement"] or {})}
    return {"builds": len({row["build"] for row in attempts}), "attempts": len(attempts), "samples": len(samples)}


def store_problems(store: Store) -> list[str]:
    """Problems of a store, each naming its build and candidate; an empty list says that all is well.

    Checked: raw samples are there and have their digests, figures follow from them (by the harness's own
    `verify_measurement`), and the columns say what the documents say.
    """
    problems = []
    for attempt in store.attempts():
        where = f"build {attempt['build']}, {attempt['name']}"
        candidate = candidate_from_plain(dict(attempt["document"]))
        for column, value in columns_of(candidate).items():
            if attempt[column] != value:
                problems.append(f"{where}: column {column} is {attempt[column]!r}, the document has {value!r}")
        if candidate.measurement is not None:
            # The document's paths are relative to the folder of the store.
            with tempfile.NamedTemporaryFile(dir=store.path.parent, prefix=".verify.", suffix=".json") as stream:
                stream.write(canonical_json(candidate.measurement))
                stream.flush()
                try:
                    verify_measurement(Path(stream.name))
                except MeasureError as problem:
                    problems.append(f"{where}: {problem.message.replace(stream.name, 'measurement')}")
    return problems
