"""The HTML page of an executed notebook, which is read without a kernel."""

import re

import nbformat
import pytest
from bs4 import BeautifulSoup

from ttm_lab.course import execute
from ttm_lab.course.execute import export_html


def output(cell, kind="display_data", **fields):
    cell.outputs.append(nbformat.v4.new_output(kind, **fields))


@pytest.fixture
def page(tmp_path):
    v4 = nbformat.v4
    cell = v4.new_code_cell("1 + 1", execution_count=1)
    output(cell, "stream", name="stderr", text="epoch 1 of 30")
    output(cell, "stream", name="stdout", text="a printed line")
    picture = {"text/html": '<img alt="a rising curve" src="data:,">', "image/png": "AAAA"}
    output(cell, data=picture)
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": "VBox()"}
    output(cell, data=widget)
    output(cell, data=widget | {"text/html": "<p>frames of an explorer</p>"})
    text = "# A & B\n\nText."
    folded = "<details><summary>Solution</summary>\n\n```python\nx = 1\n```\n\n</details>"
    cells = [v4.new_markdown_cell(text), cell, v4.new_markdown_cell(folded)]
    state = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    notebook = v4.new_notebook(cells=cells, metadata={"widgets": state})
    nbformat.write(notebook, tmp_path / "01_this.ipynb")
    export_html(tmp_path / "01_this.ipynb", tmp_path / "01_this.html")
    return (tmp_path / "01_this.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("seconds", "found"), [(0.0, 1), (600.0, 0)])
def test_a_notebook_is_written_while_it_runs_but_not_at_each_cell(
    tmp_path, monkeypatch, seconds, found
):
    """What a later cell finds in the file of the answer to an earlier one."""
    monkeypatch.setattr(execute, "SECONDS_UNWRITTEN", seconds)
    sources = ["6 * 7", "print(open('out.ipynb').read().count('\"42\"'))"]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    execute.execute(tmp_path / "n.ipynb", tmp_path / "out.ipynb", {}, cell_timeout=60)
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    answer, printed = [cell.outputs[0] for cell in cells]
    assert answer.data["text/plain"] == "42"
    assert printed.text == f"{found}\n"


def test_title_is_the_heading(page):
    assert "<title>A &amp; B</title>" in page


def test_pictures_keep_their_text_and_explorers_their_frames(page):
    assert 'alt="a rising curve"' in page
    assert "VBox" not in page
    assert "<p>frames of an explorer</p>" in page


def test_progress_is_left_to_the_log(page):
    assert "a printed line" in page
    assert "epoch 1 of 30" not in page


def test_solutions_stay_folded(page):
    start = page.index("<details><summary>Solution</summary>")
    assert "<pre>" in page[start : page.index("</details>", start)]


def test_no_scripts_for_widgets_are_loaded(page):
    assert "require.min.js" not in page
    assert "html-manager" not in page


def test_formulas_become_mathml_and_nothing_is_fetched(tmp_path):
    v4 = nbformat.v4
    text = (
        "# Title\n\nInline $p_T$ and `$HOME`, and a block\n\n$$\\frac{a_*b_*}{2}$$\n\n"
        "```\nprice = '$5 or $6'\n```\n"
    )
    cell = v4.new_code_cell("log(q)")
    output(cell, data={"text/latex": "$\\displaystyle \\log{q}$"})
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell(text), cell])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    export_html(tmp_path / "n.ipynb", tmp_path / "n.html")
    body = (tmp_path / "n.html").read_text(encoding="utf-8")
    assert body.count("<math") == 3
    assert 'display="block"' in body
    assert "$HOME" in body
    assert "$5 or $6" in body
    assert "displaystyle" not in body
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', body)


def test_a_formula_in_a_heading_stays_out_of_its_anchor(tmp_path):
    cells = [nbformat.v4.new_markdown_cell("# T\n\n## Where $T^2$ comes from")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    export_html(tmp_path / "n.ipynb", tmp_path / "n.html")
    body = (tmp_path / "n.html").read_text(encoding="utf-8")
    assert body.count("<math") == 1
    assert not re.search(r"<[^<>]*=\"[^\"<>]*<math", body)
    assert 'id="Where-T2-comes-from"' in body


@pytest.mark.parametrize("latex", ["x^", r"\left( x", r"\sqrt[", "{{{", "<b>^"])
def test_latex_that_cannot_be_read_stays_as_typed(tmp_path, latex):
    cell = nbformat.v4.new_code_cell("Math(...)")
    output(cell, data={"text/latex": f"${latex}$"})
    cells = [nbformat.v4.new_markdown_cell(f"# T\n\nLet ${latex}$ be, and $x^2$"), cell]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    export_html(tmp_path / "n.ipynb", tmp_path / "n.html")
    shown = BeautifulSoup((tmp_path / "n.html").read_text(encoding="utf-8"), "html.parser")
    assert shown.find("msup").text == "x2"
    assert [code.text for code in shown.find_all("code")] == [latex, latex]


@pytest.mark.parametrize(
    "text",
    [
        r"\$5 for one and \$6 for two",
        "``a `$HOME` and $PATH b``",
        "~~~sh\necho $HOME $PATH\n~~~",
        "````\n```\n$HOME and $PATH\n```\n````",
        "text\n\n    echo $HOME $PATH\n",
    ],
)
def test_a_dollar_in_code_or_behind_a_backslash_begins_no_formula(tmp_path, text):
    cells = [nbformat.v4.new_markdown_cell(f"# T\n\n{text}\n\nand $q$")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    export_html(tmp_path / "n.ipynb", tmp_path / "n.html")
    shown = BeautifulSoup((tmp_path / "n.html").read_text(encoding="utf-8"), "html.parser")
    assert [formula.text for formula in shown.find_all("math")] == ["q"]
    assert shown.find("main").text.count("$") == 2


DRAWING = "x = [1]\ny = [2]\nax.plot(x, y)\nfigures.show(\n    ax,\n    alt='A line'\n)"


@pytest.mark.parametrize(
    ("source", "tag", "folded"),
    [
        ("import torch\n\ntorch.set_num_threads(1)", None, True),
        ('profile = "quick"', "parameters", True),
        ("for x in (1, 2):\n    evidence.record('A1', x)", None, True),
        (DRAWING, None, True),
        ("figures.show(ax, alt='A line')", None, False),
        ("print(kd_loss(z, v, 4.0))", None, False),
        ("print(kd_loss(z, v, 4.0))", "hide-input", True),
        ("from scipy import stats\n\ndef mine():\n    raise Unsolved()", "exercise", False),
        ("import numpy as np\n\ndef half(x):\n    return x / 2", None, False),
        ("%time 1 + 1", None, False),
    ],
)
def test_plumbing_is_folded_and_what_teaches_is_shown(tmp_path, source, tag, folded):
    v4 = nbformat.v4
    cell = v4.new_code_cell(source, metadata={"tags": [tag] if tag else []})
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# A"), cell])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    export_html(tmp_path / "a.ipynb", tmp_path / "a.html")
    page = BeautifulSoup((tmp_path / "a.html").read_text(encoding="utf-8"), "html.parser")
    code = page.select_one(".jp-CodeCell .highlight")
    assert code.get_text(strip=True)
    assert bool(code.find_parent("details")) == folded
