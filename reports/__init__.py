"""Reports of builds: HTML, Markdown, JSON and CSV, from the store alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesdk.store import Store


def write_report(store: Store, build: int, folder: Path) -> Path:
    """Write report.html, report.md, report.json and results.csv of a build; see `edgesdk.reports.report`."""
    # Imported late: selection needs `reports.units`, and this report needs selection.
    from edgesdk.reports import report

    return report.write_report(store, build, folder)
