"""The report is made from result files alone, and says what they say."""

import json
import re
from html.parser import HTMLParser

import nbformat
import pytest

from ttm_lab import evidence, report


class Page(HTMLParser):
    """Text and links of a page; fails on elements that are not closed in order."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.links = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TTM_LAB_RESULTS", str(tmp_path / "results" / "01_first"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 1. First & best")])
    nbformat.write(notebook, tmp_path / "01_first.ipynb")
    (tmp_path / "01_first.html").write_text("<html></html>")
    entry = {"error": "", "seconds": 61.5, "parameters": {"profile": "quick"}, "results": []}
    entry["inputs"] = "0f"
    status = {
        "profile": "quick",
        "finished": "2026-03-04T05:06:07+00:00",
        "jobs": 2,
        "environment": {"python": "3.12.1", "gpu": None, "packages": {"torch": "2.11.0"}},
        "notebooks": {
            "01_first": {**entry, "status": "done", "log": "logs/01_first.log"},
            "02_second": {**entry, "status": "failed", "error": "E: <b>", "log": "logs/02.log"},
        },
    }
    (tmp_path / "status.json").write_text(json.dumps(status))
    return tmp_path


def read(folder):
    return Page(report.write(folder).read_text(encoding="utf-8"))


def test_report_shows_measurements_with_scope_and_links(folder):
    evidence.record(
        *("B4", 0.51234),
        low=-0.2,
        high=1.2345e-7,
        unit="nats",
        verdict="not decided",
        scope="digits",
        measure="H(q), TTM - KD",
        note="8 seeds & teachers",
        notebook="01_first",
    )
    page = read(folder)
    for words in (
        "0.512 [−0.2, 1.23 × 10−7] nats",
        "H(q), TTM - KD",
        "8 seeds & teachers",
        "? not decided",
        "on digits",
        "1. First & best",
        "1 of 2 notebooks finished; together they took 2 min 3 s",
        "Not finished: 02_second",
        "E: <b>",
        "torch 2.11.0",
        "Not run in this batch: 21 claims",
    ):
        assert words in page.text
    assert {"01_first.html", "01_first.ipynb", "logs/01_first.log", "logs/02.log"} == set(
        page.links
    )


def test_claims_about_the_paper_keep_its_values(folder):
    assert "paper: higher in 10 of 13 pairs, mean +0.12 points" in read(folder).text


def test_cut_short_and_outdated_runs_say_so(folder):
    status = json.loads((folder / "status.json").read_text())
    status["notebooks"]["01_first"] |= {"parameters": {"max_steps": 2}, "outdated": True}
    (folder / "status.json").write_text(json.dumps(status))
    text = read(folder).text
    assert "cut short by max_steps" in text
    assert "Made from earlier notebooks, code or packages: 01_first" in text
