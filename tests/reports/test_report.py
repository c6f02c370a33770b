"""Reports of one build: contents, text golden, escaping of hostile strings."""

import csv
import html.parser
import io
import os
import re
from pathlib import Path

import pytest

from edgesdk.errors import ConfigError
from edgesdk.files import read_document
from edgesdk.record import BuildRecord
from edgesdk.reports.lineage import work
from edgesdk.reports.report import write_report
from edgesdk.store import COLUMNS, Store
from edgesdk.testing.sample_record import HOSTILE, sample_record

GOLDEN = Path(__file__).parents[1] / "golden"


def write(folder: Path, record: BuildRecord) -> Path:
    store = Store(folder / "results.sqlite")
    return write_report(store, store.add_build(record), folder / "report")


@pytest.mark.parametrize("name", ["measured", "emulated"])
def test_markdown_is_the_golden_text(tmp_path: Path, name: str) -> None:
    page = write(tmp_path, sample_record(tmp_path / "raw", emulated=name == "emulated"))
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    golden = GOLDEN / f"report-{name}.md"
    if os.environ.get("EDGESDK_GOLDEN") == "1":
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), "`make golden` writes it again; look at the difference"


def test_all_four_files_say_the_same(tmp_path: Path) -> None:
    record = sample_record(tmp_path / "raw")
    page = write(tmp_path, record)
    document = read_document(page.parent / "report.json", "edgesdk.report", 1, ConfigError)
    assert document["document"]["selected"] == document["selection"]["selected"] == "digits-small-neon"
    assert len(document["measurements"]) == sum(entry.measurement is not None for entry in record.candidates)
    rows = list(csv.DictReader(io.StringIO((page.parent / "results.csv").read_text())))
    assert list(rows[0]) == COLUMNS
    assert [row["name"] for row in rows] == [entry.name for entry in record.candidates]
    html = page.read_text(encoding="utf-8")
    for entry in record.candidates:
        assert entry.name in html
        assert document["document"]["selected"] == entry.name or entry.name in document["document"]["why_not"]


@pytest.mark.parametrize("held_out", [1, 0])
def test_report_says_what_the_promise_of_exits_rests_on(held_out: int) -> None:
    figures = {"proof.rows": 719, "proof.worse": 3, "proof.better": 1, "proof.held_out": held_out}
    rows = "held-out rows" if held_out else "validation rows that training has looked at"
    words = f"proven on 719 {rows}: leaving early loses 3 right answers and wins 1"
    assert work(figures) == words
    assert work({"macs_mean": 1.2e6, "left.0": 0.5} | figures) == f"mean 1.20 M, 50.0 % leave after layer 0, {words}"
    assert work({"accuracy": 0.5}) == ""


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("mine")
    write(tmp_path, sample_record(tmp_path / "raw"))
    assert (tmp_path / "report" / "mine.txt").read_text() == "mine"


def test_unknown_build_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no build 7"):
        write_report(Store(tmp_path / "results.sqlite"), 7, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_emulated_report_claims_no_milliseconds(tmp_path: Path) -> None:
    page = write(tmp_path, sample_record(tmp_path / "raw", emulated=True))
    for path in (page, page.parent / "report.md"):
        text = path.read_text(encoding="utf-8")
        assert "Emulated board: candidates are ranked by executed instructions" in text
        assert not re.search(r"\d\s*(ms|mJ)\b", text)
        assert "2.31 M" in text


def test_goal_that_cannot_be_answered_is_said_in_the_report(tmp_path: Path) -> None:
    record = sample_record(tmp_path / "raw", emulated=True)
    record = BuildRecord(**{**vars(record), "goals": {"latency_p90": "max 30ms"}})
    text = write(tmp_path, record).with_name("report.md").read_text(encoding="utf-8")
    assert "Nothing selected" in text and "an emulated board measures no time" in text


def test_metric_without_labels_is_called_what_it_is(tmp_path: Path) -> None:
    record = BuildRecord(**{**vars(sample_record(tmp_path / "raw")), "metric": "cosine"})
    text = write(tmp_path, record).with_name("report.md").read_text(encoding="utf-8")
    assert "| cosine |" in text and "mean cosine of the outputs" in text and "needs more rows" in text
    assert "Wilson" not in text


def test_build_where_everything_was_refused(tmp_path: Path) -> None:
    record = sample_record(tmp_path / "raw")
    record = BuildRecord(**{**vars(record), "candidates": record.candidates[-1:]})
    text = write(tmp_path, record).read_text(encoding="utf-8")
    assert "Nothing selected" in text and "no candidate is valid" in text.lower()
    assert "<svg" not in text.partition("</main>")[0].partition('id="pareto"')[2]


class Tags(html.parser.HTMLParser):
    """Collects the elements, attributes and text of a page, and checks that elements close in order."""

    VOID = {"meta", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("emulated", [False, True])
def test_hostile_strings_stay_text(tmp_path: Path, emulated: bool) -> None:
    page = write(tmp_path, sample_record(tmp_path / "raw", emulated=emulated, hostile=True))
    parser = Tags()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    assert "script" not in parser.names and parser.links == []
    assert not any(name.startswith("on") for name in parser.attributes)
    # In the title, the heading, a candidate's name, a reason, a note and a fact.
    assert parser.text.count(HOSTILE) >= 6
    assert "49" not in HOSTILE and "{{ 7*7 }}" in parser.text
    markdown = (page.parent / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<script", markdown)
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    cells = {len(re.split(r"(?<!\\)\|", row)) for row in rows if re.match(r"\| \d+ \|", row)}
    assert len(cells) == 1


def test_page_forbids_itself_scripts_and_requests(tmp_path: Path) -> None:
    text = write(tmp_path, sample_record(tmp_path / "raw")).read_text(encoding="utf-8")
    assert "default-src 'none'; style-src 'unsafe-inline'\">" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in text and "@media (max-width" in text


def test_work_of_a_dynamic_package_is_told_whole(tmp_path: Path) -> None:
    page = write(tmp_path, sample_record(tmp_path / "raw"))
    for text in (page.read_text(encoding="utf-8"), (page.parent / "report.md").read_text(encoding="utf-8")):
        for part in ("mean 1.20 M (47.0 % of every layer)", "p50 900 k", "p99 2.60 M", "62.5 % leave after layer 0",
                     "37.5 % leave after layer 2", "80.0 % run layer 1"):
            assert part in text.replace("\u00a0", " ").replace("\u202f", " "), part
