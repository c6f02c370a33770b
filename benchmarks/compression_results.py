"""What the cache knows of the rows, for the table: facts and figures by the recipes, teachers and rows of now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compression_rows import Row

if TYPE_CHECKING:
    from compression_run import Bench


def teacher_results(bench: Bench, corpus: str) -> dict[str, Any]:
    """Figures of the fp32 model; those of the test split only where a row was tested."""
    subject = bench.subjects[corpus]
    package = subject.teacher
    document: dict[str, Any] = {
        "bytes": (bench.artifact(package, []) / "model.onnx").stat().st_size,
        "parameters": package.spec.parameters(), "sequence": package.sequence,
        "macs_worst": package.spec.macs(package.sequence), "cpu": subject.cpu, "accuracy": None, "rows": 0,
    }
    for row in (row for row in bench.rows if row.corpus == corpus):
        facts = bench.made(row)
        known = None if facts is None else bench.figures("tested", row, facts)
        if known is not None:
            return document | {"accuracy": known["figures"]["reference"], "rows": known["figures"]["rows"]}
    return document


def row_results(bench: Bench, row: Row) -> dict[str, Any]:
    """Everything that is known of a row, for the table."""
    document: dict[str, Any] = {
        "corpus": row.corpus, "name": row.name, "family": row.family, "part": row.part, "recovery": row.recovery,
        "preset": row.preset,
    }
    known, facts = bench.settled(row), bench.made(row)
    if facts is None:
        failed = {"error": "not made yet"} if known is None else {"error": known["error"], "failed": True}
        return document | failed
    keys = ("recipe", "bytes", "size", "scheme", "parameters", "encoder", "cpu", "together", "choice")
    document |= {key: facts[key] for key in keys}
    document["macs_worst"] = facts["macs"]
    for kind, label in (("tested", "test"), ("latency", "latency")):
        found = bench.figures(kind, row, facts)
        if found is not None:
            document[label] = found["figures"]
    return document


def spent_seconds(bench: Bench) -> float:
    """CPU seconds of the whole table: every piece of work counts once, whoever needed it and wherever it failed."""
    works = {subject.work for subject in bench.subjects.values()}
    for row in bench.rows:
        known, facts = bench.settled(row), bench.made(row)
        documents = [] if facts is None else [bench.figures(kind, row, facts) for kind in ("tested", "latency")]
        for document in (known, *documents):
            works |= set([] if document is None else document.get("works", []))
    return sum(bench.book.seconds(what) for what in works)


def thawed_lines(bench: Bench) -> list[str]:
    """What changed after a freeze, of all corpora."""
    documents = (bench.store.read("freeze", corpus) for corpus in bench.subjects)
    return [line for document in documents if document is not None for line in document["thawed"]]
