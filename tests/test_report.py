"""The report is made from result files alone, and says what they say."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from ttm_lab.course import evidence, execute, report


class Page(HTMLParser):
    """Text and links of a page; fails on elements that are not closed in order."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.links, self.elements = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
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
    entry["inputs"] = "0"
    status = {
        "profile": "quick",
        "budget": 60,
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
    contrasts = pd.DataFrame(
        {
            "name": ["H(q), TTM - KD", "H(q), WTTM - TTM"],
            "difference": [0.51234, 0.01],
            "low": [0.25, -0.2],
            "high": [1.2, 1.2345e-7 + 0.02],
            "p": [0.00123, 0.5],
            "quantity": "entropy",
        }
    )
    evidence.record("B4", contrasts, scope="digits", note="8 seeds & teachers", notebook="01_first")
    page = read(folder)
    for words in (
        "0.512 [0.25, 1.2] nats",
        "0.01 [−0.2, 0.02] nats",
        "H(q), TTM - KD",
        "Holm’s p 0.00246",
        "8 seeds & teachers",
        "? not decidedon digitsby H(q), WTTM - TTM",
        "0.3 points of accuracy, 0.02 nats of NLL",
        "1. First & best",
        "1 of 2 notebooks finished; together they took 2 min 3 s",
        "61.5 over 60 s",
        "Not finished: 02_second",
        "E: <b>",
        "torch 2.11.0",
        "Not run in this batch: 21 claims",
    ):
        assert words in page.text
    assert page.text.count("? not decided") == 1  # one verdict for the claim in this scope
    assert {"01_first.html", "01_first.ipynb", "logs/01_first.log", "logs/02_second.log"} == set(
        page.links
    )


@pytest.mark.parametrize("low", [0.1, -0.3, -0.1, -0.001])
def test_every_verdict_has_its_mark(folder, low):
    contrasts = pd.DataFrame([{"name": "a", "difference": low + 0.002, "p": 0.5}])
    contrasts = contrasts.assign(low=low, high=abs(low) * 1.2 if low > -0.2 else -0.2)
    evidence.record("B5", contrasts.assign(quantity="nll"), scope="digits", notebook="01_first")
    verdict = evidence.collect(folder / "results").query("id == 'B5'")["verdict"].iloc[0]
    assert f"{report.MARKS[verdict][1]} {verdict}" in read(folder).text


def test_claims_about_the_paper_keep_its_values(folder):
    assert "paper: higher in 10 of 13 pairs, mean +0.12 points" in read(folder).text


def test_cut_short_and_outdated_runs_say_so(folder):
    status = json.loads((folder / "status.json").read_text())
    status["notebooks"]["01_first"] |= {"parameters": {"max_steps": 2}, "outdated": True}
    (folder / "status.json").write_text(json.dumps(status))
    text = read(folder).text
    assert "cut short by max_steps" in text
    assert "Made from earlier notebooks, code or packages: 01_first" in text


MARKUP = "<script>alert(1)</script> & \"'><img src=x> ```\n</main>"


def test_names_labels_and_notes_with_markup_stay_text(folder, monkeypatch):
    status = json.loads((folder / "status.json").read_text())
    name = MARKUP.replace("/", "|").replace("\n", " ")
    odd = {"log": "javascript:alert(1)", "status": "failed", "error": MARKUP + "\udc80"}
    status["notebooks"][name] = status["notebooks"]["01_first"] | odd
    status["notebooks"][name] |= {"outdated": True, "parameters": {MARKUP: MARKUP}}
    status |= {"profile": MARKUP, "environment": {MARKUP: MARKUP, "packages": {MARKUP: MARKUP}}}
    (folder / "status.json").write_text(json.dumps(status))
    cells = [nbformat.v4.new_markdown_cell(f"# {MARKUP}")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    (folder / f"{name}.html").write_text("<html></html>")
    claims = evidence.collect(folder / "results").astype(object)
    for column in ("measure", "unit", "scope", "note", "because"):
        claims.loc[0, column] = MARKUP
    claims.loc[0, ["verdict", "verdict_in_scope", "notebook"]] = ["holds", f"holds {MARKUP}", name]
    claims.loc[0, "measured"] = 0.0
    monkeypatch.setattr(report, "collect", lambda _: claims)
    page = read(folder)
    assert {"script", "img"}.isdisjoint(page.elements)
    assert page.elements.count("main") == 1
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert not any(":" in link for link in page.links)
    linked = [folder / unquote(link) for link in page.links]
    assert {folder / f"{name}.html", folder / f"{name}.ipynb"} <= set(linked)
    assert all(path.parent in (folder, folder / "logs") for path in linked)


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "null", "{}", "", "\x00", "1e999", "[" * 100_000, '{"profile": "quick"}'),
        *(f'{{"profile": "quick", "notebooks": {wrong}}}' for wrong in ("null", "[]", '{"a": {}}')),
    ],
)
def test_a_status_of_another_shape_is_none(folder, content):
    assert report.read_status(folder) is not None
    (folder / "status.json").write_text(content)
    assert report.read_status(folder) is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "/a", "a\0", "a" * 300, "../../../../victim"]
)
def test_a_status_that_names_what_is_elsewhere_is_none(folder, name):
    status = json.loads((folder / "status.json").read_text())
    status["notebooks"][name] = status["notebooks"]["01_first"]
    (folder / "status.json").write_text(json.dumps(status))
    assert report.read_status(folder) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("status", []), ("status", "x"), ("seconds", float("nan")), ("seconds", 10**400)),
        *(
            ("parameters", None),
            ("error", 1),
            ("inputs", None),
            ("results", [1]),
            ("results", None),
        ),
    ],
)
def test_a_status_with_a_field_of_another_kind_is_none(folder, key, value):
    status = json.loads((folder / "status.json").read_text())
    status["notebooks"]["01_first"][key] = value
    (folder / "status.json").write_text(json.dumps(status))
    assert report.read_status(folder) is None


@pytest.mark.parametrize("budget", ["60", [60], -1, float("nan")])
def test_a_status_with_a_budget_of_another_kind_is_none(folder, budget):
    status = json.loads((folder / "status.json").read_text()) | {"budget": budget}
    (folder / "status.json").write_text(json.dumps(status))
    assert report.read_status(folder) is None


@pytest.mark.parametrize("content", ["", "[]", '{"cells": 3}', '{"nbformat": 4, "cells": [1]}'])
def test_an_executed_notebook_that_is_none_is_shown_by_its_name(folder, content):
    (folder / "01_first.ipynb").write_text(content)
    assert "01_first" in read(folder).text


def test_pages_lead_to_each_other_to_the_report_and_into_the_checkout(tmp_path):
    folder, notebooks = tmp_path / "runs" / "reproduce" / "quick", tmp_path / "notebooks"
    for made in (folder, notebooks, tmp_path / "docs"):
        made.mkdir(parents=True)
    (tmp_path / "docs" / "a note.md").write_text("note")
    (folder / "report.html").write_text("report")
    text = (
        "# Title\n\n[two](02_b%20c.ipynb#top), [three](03_d.ipynb), [note](../docs/a%20note.md), "
        "[out](https://arxiv.org/abs/2402.11148), [here](#Title), [gone](gone.md)"
    )
    paths = [notebooks / f"{stem}.ipynb" for stem in ("01_a", "02_b c", "03_d")]
    for path in paths:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
        nbformat.write(notebook, path)
    for path in paths[:2]:
        execute.export_html(path, folder / f"{path.stem}.html")

    def links(page):
        report.link_pages(folder, paths)
        shown = BeautifulSoup((folder / page).read_text(encoding="utf-8"), "html.parser")
        return [a["href"] for a in shown.find("main").find_all("a")]

    source = "../../../notebooks/"
    for _ in range(2):  # a second batch in the folder changes nothing
        for page, around in {
            "01_a.html": ["02_b%20c.html", "report.html"],
            "02_b c.html": ["01_a.html", f"{source}03_d.ipynb", "report.html"],
        }.items():
            body = ["#Title", "02_b%20c.html#top", f"{source}03_d.ipynb"]
            body += ["../../../docs/a%20note.md", "https://arxiv.org/abs/2402.11148"]
            assert links(page) == [*around, *body, "#Title", "gone.md", *around]
            for link in [*around, *body[1:4]]:
                assert (folder / unquote(link).split("#")[0]).exists()
    # A page that comes later is found, and one that went is no longer linked.
    execute.export_html(paths[2], folder / "03_d.html")
    assert "03_d.html" in links("02_b c.html")
    (folder / "02_b c.html").unlink()
    assert f"{source}02_b%20c.ipynb#top" in links("01_a.html")
