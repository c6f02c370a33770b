"""Write docs/benchmarks.md from benchmarks/results/*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HEAD = """# Benchmarks

Made by `make bench` from `benchmarks/results/*.json`; do not edit. Every figure says how it was obtained. Goals that
were missed stay here with their value. No ARM milliseconds are claimed: on emulated boards instructions are counted.
"""


def main() -> None:
    """Generate the page."""
    parts = [HEAD]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        document = json.loads(path.read_text())
        versions = ", ".join(f"{name} {number}" for name, number in sorted(document["versions"].items()))
        parts.append(f"\n## {path.stem}\n\n`{document['command']}` · {document.get('machine', '')} · {versions}\n")
        parts.append("\n| figure | value | goal | met | provenance |\n| --- | --- | --- | --- | --- |\n")
        for entry in document["figures"]:
            interval = f" ({entry['ci95'][0]} … {entry['ci95'][1]})" if entry.get("ci95") else ""
            value = f"{entry['value']:,}" if isinstance(entry["value"], int) else entry["value"]
            value = str(entry["value"]).lower() if isinstance(entry["value"], bool) else value
            met = {True: "yes", False: "**missed**", None: ""}[entry["met"]]
            interval += f" (≥ {entry['lower95']})" if "lower95" in entry else ""
            interval += f" ({entry['note']})" if "note" in entry else ""
            text = f"{value} {entry['unit']}".strip() + interval
            if entry["value"] is None:
                text = f"not measured: {entry['reason']}" if "reason" in entry else "not measured"
            label = entry["provenance"] + (f", load {entry['load']:g} before" if "load" in entry else "")
            label += ", with real-time priority" if entry.get("real_time") else ""
            parts.append(f"| {entry['figure']} | {text} | {entry['goal'] or ''} | {met} | {label} |\n")
        parts += [_part(name, part) for name, part in document.get("parts", {}).items()]
        parts += [_table(table) for table in document.get("tables", [])]
    (ROOT / "docs" / "benchmarks.md").write_text("".join(parts))


def _part(name: str, part: dict[str, Any]) -> str:
    """What must be known of a part of a document; empty for one that was made like the others, whose command shows."""
    words = [f"{key} {_said(part.get(key))}" for key in part["differs"]]
    text = f"made in another state than this document's: {'; '.join(words)}" if words else ""
    if "failed" in part:
        text += f"{'. ' if text else ''}Kept from before, as a later run failed: {part['failed']}"
    return f"\nPart `{name}`: {text}.\n" if text else ""


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in sorted(value.items()))
    return str(value) if value else "unknown"


def _table(table: dict[str, Any]) -> str:
    """A table of a document: `title`, `columns`, `rows` of cells."""
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    text = "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)
    return f"\n{table['title']}\n\n{text}"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
