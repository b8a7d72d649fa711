"""Exported pages read without scripts, kernel or network."""

import re

import nbformat
import nbformat.v4 as v4

from ttm_lab.execute import export_html


def page_of(tmp_path, *cells) -> str:
    source, page = tmp_path / "n.ipynb", tmp_path / "n.html"
    nbformat.write(v4.new_notebook(cells=list(cells)), source)
    export_html(source, page)
    return page.read_text(encoding="utf-8")


def test_formulas_become_mathml_and_nothing_is_fetched(tmp_path):
    text = (
        "# Title\n\nInline $p_T$ and `$HOME`, and a block\n\n$$\\frac{a_*b_*}{2}$$\n\n"
        "```\nprice = '$5 or $6'\n```\n"
    )
    shown = v4.new_output("display_data", {"text/latex": "$\\displaystyle \\log{q}$"})
    body = page_of(
        tmp_path, v4.new_markdown_cell(text), v4.new_code_cell("log(q)", outputs=[shown])
    )
    assert body.count("<math") == 3
    assert 'display="block"' in body
    assert "$HOME" in body
    assert "$5 or $6" in body
    assert "displaystyle" not in body
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', body)


def test_links_between_notebooks_lead_to_pages_and_solutions_stay_folded(tmp_path):
    text = "# T\n\n[next](02_next.ipynb)\n\n<details><summary>Solution</summary>\n\n1\n\n</details>"
    body = page_of(tmp_path, v4.new_markdown_cell(text))
    assert 'href="02_next.html"' in body
    assert "<details><summary>Solution</summary>" in body
