"""Audit of a results store: every stored figure is computed again from the raw samples."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgesdk.errors import MeasureError
from edgesdk.files import canonical_json
from edgesdk.harness.verify import verify_measurement
from edgesdk.record import candidate_from_plain
from edgesdk.store import Store, columns_of


def verify_store(store: Store) -> list[str]:
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
