"""The report is made from result files alone, and says what they say."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from ttm_lab import analysis
from ttm_lab.course import evidence, kept, paper, report
from ttm_lab.files import find_root


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
    """The report of a folder, without kept tables: those there are none of in the folder."""
    return Page(report.write(folder, folder).read_text(encoding="utf-8"))


def soup(folder, kept_folder=None):
    text = report.write(folder, kept_folder or folder).read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser")


def test_report_shows_measurements_with_scope_and_links(folder):
    contrasts = pd.DataFrame(
        {
            "name": ["H(q), TTM - KD", "H(q), WTTM - TTM"],
            "difference": [0.51234, 0.01],
            "low": [0.25, -0.2],
            "high": [1.2, 1.2345e-7 + 0.02],
            "p": [0.00123, 0.5],
            "quantity": "entropy",
            "seeds": 8,
            "deviation": 0.2,
            "contrasts": 14,
        }
    )
    about = {"note": "8 seeds & teachers", "settings": "tuned & fixed", "teachers": 8}
    evidence.record("B4", contrasts, scope="digits", notebook="01_first", **about)
    page = read(folder)
    for words in (
        "0.512 [0.25, 1.2] nats",
        "0.01 [−0.2, 0.02] nats",
        "H(q), TTM - KD",
        "0.00246",  # Holm's p
        "8 seeds & teachers",
        "tuned & fixed",
        "8 seeds, 8 teachers, 14 contrasts judged at once",
        "ttm-lab reproduce --only 01",
        "? not decided digits, by H(q), WTTM - TTM",
        "Digits: not decided; not run elsewhere.",
        "0.3 points of accuracy, 0.02 nats of NLL",
        "1. First & best",
        "1 of 2 notebooks finished; together they took 2 min 3 s",
        "61.5 over 60 s",
        "Not finished: 02_second",
        "E: <b>",
        "torch 2.11.0",
    ):
        assert words in page.text
    section = soup(folder).find(id="B4")
    assert len(section.select(".mark")) == 1  # one verdict for the claim in this scope
    smallest = section.select("td[data-label='Smallest detectable']")[0].text
    part = contrasts.iloc[0].to_dict()
    assert float(smallest.split()[0]) == pytest.approx(evidence.smallest_effect(part), rel=0.005)
    assert {"01_first.ipynb", "logs/01_first.log", "logs/02_second.log"} == {
        link for link in page.links if not link.startswith("#")
    }
    assert section.find("a", href="01_first.ipynb").text == "1. First & best"


def test_the_report_opens_with_one_verdict_a_claim_and_place(folder):
    high = pd.DataFrame([{"name": "a", "difference": 2.0, "low": 1.0, "high": 3.0, "p": 0.01}])
    high = high.assign(quantity="accuracy")
    evidence.record("B1", high, scope="CIFAR-100, resnet56 to resnet20, 5 seeds", notebook="07")
    page = soup(folder)
    assert page.find("h2").text == "What holds where"
    table = page.find("table", class_="matrix")
    heads = [th.text for th in table.thead.find_all("th")]
    assert heads == ["Claim", *evidence.PLACES]
    found = {}
    for row in table.find_all("tr")[1:]:
        claim_id = row.th.strong.text
        for place, cell in zip(evidence.PLACES, row.find_all("td"), strict=True):
            found[claim_id, place] = cell.text
            if cell.a:
                assert page.find(id=cell.a["href"].removeprefix("#")).h3.text.startswith(claim_id)
    empirical = [c for c in evidence.claims().values() if c["kind"] == "empirical"]
    assert len(found) == len(empirical) * len(evidence.PLACES)
    assert found["B1", "CIFAR-100, the paper's recipe"] == "✓ holds1 pair"
    assert found["B1", "published tables"] == "✓ holds13 pairs"
    assert found["B2", "published tables"] == "≈ negligible13 pairs"
    assert found["B1", "digits"] == found["B10", "ImageNet"] == "not run"
    words = {text.split(" ", 1)[1] for text in found.values() if text[0] in "✓✗≈?"}
    assert {re.sub(r"\d+ pairs?$", "", word) for word in words} <= set(evidence.VERDICTS)


def test_drawings_show_both_intervals_and_the_margin_on_one_scale(folder):
    d = {"wide": [0.1, 0.9, 0.4, 1.6], "narrow": [0.02, 0.03, 0.04, 0.01]}
    contrasts = analysis.contrasts(d).assign(quantity="entropy")
    evidence.record("B4", contrasts, scope="digits", notebook="01_first")
    drawings = soup(folder).find(id="B4").find_all("svg")
    rows = evidence.collect(folder / "results").query("id == 'B4'").to_dict("records")
    zero, scale = None, None
    for drawing, row in zip(drawings, rows, strict=True):
        shade, (line, alone, judged) = drawing.rect, drawing.find_all("line")
        here = float(line["x1"]), float(shade["width"]) / (2 * row["margin"])
        zero, scale = zero or here[0], scale or here[1]
        assert here == pytest.approx((zero, scale), rel=0.05)
        for shape, ends in ((alone, ("alone_low", "alone_high")), (judged, ("low", "high"))):
            drawn = [(float(shape[x]) - zero) / scale for x in ("x1", "x2")]
            assert drawn == pytest.approx([row[end] for end in ends], abs=0.02)
        assert drawing["aria-label"].startswith(report._plain(row["measured"]))
    ticks = {text.text: (float(text["x"]) - zero) / scale for text in drawings[1].find_all("text")}
    assert ticks == pytest.approx({tick: float(tick.replace("−", "-")) for tick in ticks}, abs=0.02)
    assert "0" in ticks
    assert len(ticks) > 1


def test_kept_tables_and_the_paper_s_stand_in_the_report(folder):
    page = soup(folder, find_root(__file__) / "data" / "results")
    cell = page.find(id="B4").text
    assert "✓ holds CIFAR-100, resnet56 to resnet20, 5 seeds, 10 epochs, validation part" in cell
    assert "5 seeds, 1 teacher, 17 contrasts judged at once" in cell
    assert "python benchmarks/gpu.py train" in cell
    tables = {d.summary.text: d for d in page.find_all("details") if "Table" in d.summary.text}
    assert next(iter(tables)) == "Table 1, CIFAR-100"
    shown = paper.results()
    numbers = sum(len(table.select("td[data-label]")) for table in tables.values())
    assert numbers == len(shown)  # every published number has its cell
    row = next(r for r in tables["Table 1, CIFAR-100"].find_all("tr") if "resnet56" in r.text)
    cells = {td["data-label"]: td.text for td in row.select("td[data-label]")}
    ours = [one.students for one in kept.tables() if one.pair == ("resnet56", "resnet20")]
    short, long = (one.xs("TTM", level="arm")["accuracy"].mean() for one in ours)
    assert cells["TTM"] == f"71.83 ± 0.16 (5)ours {short:.2f}, {long:.2f}"
    assert cells["FitNet"] == "69.21 ± 0.36not run"
    ours = [tr.text for tr in page.find_all("tr") if "resnet56 to resnet20, TTM" in tr.text]
    for words in ("bfloat16", "epochs 10 (paper: 240)", "validation part", "weight 36 (paper: 7)"):
        assert words in ours[0]
    assert ours[1].endswith("test part; bfloat16, epochs 56 (paper: 240)")


@pytest.mark.parametrize("low", [0.1, -0.3, -0.1, -0.001])
def test_every_verdict_has_its_mark(folder, low):
    contrasts = pd.DataFrame([{"name": "a", "difference": low + 0.002, "p": 0.5}])
    contrasts = contrasts.assign(low=low, high=abs(low) * 1.2 if low > -0.2 else -0.2)
    evidence.record("B5", contrasts.assign(quantity="nll"), scope="digits", notebook="01_first")
    verdict = evidence.collect(folder / "results").query("id == 'B5'")["verdict"].iloc[0]
    assert f"{report.MARKS[verdict][1]} {verdict}" in read(folder).text


def test_claims_about_the_paper_keep_its_values(folder):
    assert "The paper: higher in 10 of 13 pairs, mean +0.12 points" in read(folder).text


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
    claims = evidence.collect(folder / "results").astype(object)
    for column in ("measure", "unit", "scope", "note", "because"):
        claims.loc[0, column] = MARKUP
    claims.loc[0, ["verdict", "verdict_in_scope", "notebook"]] = ["holds", f"holds {MARKUP}", name]
    claims.loc[0, "measured"] = 0.0
    b1 = claims.index[claims["id"] == "B1"]
    claims.loc[b1, ["verdict", "measured", "margin"]] = ["holds", 0.0, 0.1]
    texts = ["measure", "because", "flip", "scope", "note", "command", "settings", "unit"]
    claims.loc[b1, texts] = MARKUP
    monkeypatch.setattr(report, "collect", lambda *_: claims)
    page = read(folder)
    assert {"script", "img"}.isdisjoint(page.elements)
    assert page.elements.count("main") == 1
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert not any(":" in link for link in page.links)
    linked = [folder / unquote(link) for link in page.links if not link.startswith("#")]
    assert folder / f"{name}.ipynb" in linked
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
