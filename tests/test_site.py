"""The site: its checks find what they look for, and a built one reads without a network.

Three notebooks that hold all kinds of cells become pages here. The whole site is tested where
``TTM_LAB_SITE`` names it (``make site`` makes ``runs/site``), in Chromium with every request to
another host refused. ``TTM_LAB_BROWSER=1`` turns the absence of a browser from a skip into a
failure.
"""

import base64
import contextlib
import functools
import html
import http.server
import importlib.util
import io
import json
import os
import re
import shutil
import sys
import threading
from pathlib import Path

import lab
import nbformat
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from ttm_lab.files import find_root

ROOT = find_root(__file__)
sys.path.insert(0, str(ROOT / "docs"))  # whose modules import one another


def docs_module(name):
    """A module of docs/, which is no package and not installed."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


check = docs_module("check")
course = docs_module("course")
formulas = docs_module("formulas")
slides = docs_module("slides")


@pytest.fixture(scope="module")
def chromium():
    program = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        reason = "no Chromium, or the Python package playwright is missing"
        (pytest.fail if os.environ.get("TTM_LAB_BROWSER") == "1" else pytest.skip)(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def _page(built, pages, name):
    if name not in pages:
        pages[name] = BeautifulSoup((built / name).read_text(encoding="utf-8"), "html.parser")
    return pages[name]


# The checks -----------------------------------------------------------------------------------

GOOD = """<html><head><link rel="stylesheet" href="style.css"></head><body>
<h1 id="top">A page</h1>
<a href="other.html#below">on</a> <a href="#top">up</a> <a href="https://arxiv.org/abs/1">out</a>
<img src="figure.png" alt="A curve that rises from 0 to 1 and stays there">
<p>For $5 you get <code>$x$</code>; <math><mi>x</mi></math></p></body></html>"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "index.html").write_text(GOOD)
    (tmp_path / "other.html").write_text('<p id="below">text</p>')
    (tmp_path / "style.css").write_text("@font-face { src: url('font.woff') }")
    (tmp_path / "figure.png").touch()
    return tmp_path


def test_sound_site_has_no_fault(site):
    assert check.check_site(site) == ([], ["https://arxiv.org/abs/1"])


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("other.html#below", "gone.html", "broken link gone.html"),
        ("#below", "#above", "broken link other.html#above: no such place"),
        ("#top", "#bottom", "broken link #bottom: no such place"),
        ("figure.png", "gone.png", "broken link gone.png"),
        ("A curve that rises from 0 to 1 and stays there", "A curve", "alt text 'A curve'"),
        (' alt="A curve that rises from 0 to 1 and stays there"', "", "alt text None"),
        ("<body>", '<body><script src="https://cdn.org/x.js"></script>', "loads https://cdn.org"),
        ("<body>", '<body><img alt="a picture from elsewhere" src="//cdn.org/x.png">', "//cdn.org"),
        (
            "<body>",
            '<body><img alt="two pictures of one thing" srcset="a, http://b.org/a 2x">',
            "b.org",
        ),
        ("style.css", "https://fonts.org/all.css", "<link> loads https://fonts.org/all.css"),
        ("<body>", "<body><style>@import 'https://fonts.org/x'</style>", "fonts.org/x"),
        ("<body>", '<body style="background: url(https://pictures.org/x)">', "pictures.org"),
        ("<body>", "<body><p>Let $p_T$ be</p>", "formula not rendered"),
        ("<mi>x</mi>", r"<mtext>\foo</mtext>", r"LaTeX command \foo"),
        ("<mi>x</mi>", "", "empty formula"),
        ("<mi>x</mi>", "<merror>x</merror>", "formula error"),
        ("https://arxiv.org/abs/1", "https://arxiv", "malformed address https://arxiv"),
    ],
)
def test_each_fault_is_found(site, before, after, fault):
    assert before in GOOD
    (site / "index.html").write_text(GOOD.replace(before, after))
    (found,) = check.check_site(site)[0]
    assert fault in found


def test_style_sheets_are_looked_into(site):
    (site / "style.css").write_text("@import url(https://fonts.org/x.css);")
    assert check.check_site(site)[0] == ["style.css: style loads https://fonts.org/x.css"]


def test_empty_folder_is_no_site(tmp_path):
    assert check.check_site(tmp_path)[0]


# Who teaches what -----------------------------------------------------------------------------


def test_functions_are_found_with_their_section(tmp_path):
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("# 3. A title\n\n```\n# no heading\n```"),
        v4.new_code_cell(
            "from ttm_lab.course import figures as p\nfrom ttm_lab.losses import kd_loss, ttm_loss"
        ),
        v4.new_markdown_cell("## The answer in one picture"),
        v4.new_code_cell("kd_loss(1, 2, 3)\np.curves()\np._hidden"),
        v4.new_markdown_cell("## How it works\n\nText.\n\n### In detail"),
        v4.new_code_cell("def mine():\n    return kd_loss(a, b, 4)"),
    ]
    path = tmp_path / "03_from_kd_to_ttm.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), path)
    uses = course.uses(path, course.documented())
    titles = {name: [section.title for section in found] for name, found in uses.items()}
    assert titles["ttm_lab.losses.kd_loss"] == ["In detail", "The answer in one picture"]
    assert titles["ttm_lab.course.figures.curves"] == ["The answer in one picture"]
    assert "ttm_lab.losses.ttm_loss" not in titles  # imported and not called
    assert "ttm_lab.course.evidence.record" not in titles


def test_the_notebook_whose_text_names_a_function_comes_first():
    taught = course.taught(sorted((ROOT / "notebooks").glob("*.ipynb")))
    first = {
        "losses.ttm_loss": "03",
        "losses.decompose_ttm": "03",
        "probability.power_transform": "01",
        "training.distill_many": "05",
    }
    for name, number in first.items():
        assert taught[f"ttm_lab.{name}"][0].notebook.startswith(number), name


# Which batch is shown -------------------------------------------------------------------------


@pytest.fixture
def batch(tmp_path):
    """A notebook, and a batch's folder that holds it executed."""
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell("# A title"), v4.new_code_cell("x = 1")]
    injected = v4.new_code_cell("# Parameters", metadata={"tags": ["injected-parameters"]})
    notebook, folder = tmp_path / "01_one.ipynb", tmp_path / "quick"
    folder.mkdir()
    nbformat.write(v4.new_notebook(cells=cells), notebook)
    executed = v4.new_notebook(cells=[cells[0], injected, cells[1]])
    nbformat.write(executed, folder / notebook.name)
    entry = {"status": "done", "parameters": {"profile": "quick"}, "seconds": 1, "results": []}
    entry |= {"error": "", "inputs": "0f", "log": "logs/01_one.log"}
    return notebook, folder, entry


def write_status(folder, entry):
    status = {"profile": "quick", "environment": {}, "notebooks": {"01_one": entry}}
    (folder / "status.json").write_text(json.dumps(status))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"seconds": "long"}, "is damaged"),
        ({"log": "../../elsewhere"}, "is damaged"),
        ({"status": "failed"}, "did not finish"),
        ({"parameters": {"profile": "quick", "max_steps": 2}}, "was cut short"),
    ],
)
def test_only_a_whole_batch_is_shown(batch, change, why):
    build = pytest.importorskip("sphinx") and docs_module("build")
    notebook, folder, entry = batch
    assert "no finished batch" in build.misfit(folder, [notebook])
    write_status(folder, entry | change)
    found = build.misfit(folder, [notebook])
    assert why in found if why else found == ""


def test_a_batch_of_other_cells_is_not_shown(batch):
    build = pytest.importorskip("sphinx") and docs_module("build")
    notebook, folder, entry = batch
    write_status(folder, entry)
    changed = nbformat.read(notebook, as_version=4)
    changed.cells[1].source = "x = 2"
    nbformat.write(changed, notebook)
    assert "other cells" in build.misfit(folder, [notebook])
    (folder / notebook.name).write_text("[]")
    assert "other cells" in build.misfit(folder, [notebook])


def test_a_fence_in_a_note_does_not_end_the_report(tmp_path):
    build = pytest.importorskip("sphinx") and docs_module("build")
    note = "a note\n```\n# no heading of the site\n````\n<b>"
    page = f"<main><h1>T</h1>{html.escape(note)}<h2>Claims</h2>{html.escape(note)}</main>"
    (tmp_path / "report.html").write_text(page)
    document = pytest.importorskip("markdown_it").MarkdownIt().parse(build.report_page(tmp_path))
    assert [token.type for token in document if token.level == 0 and token.nesting >= 0] == [
        *("heading_open", "fence", "heading_open", "fence")
    ]


# Slides ---------------------------------------------------------------------------------------


def test_a_plan_becomes_slides_of_what_its_rows_name(tmp_path):
    v4 = nbformat.v4
    picture = '<img alt="%s" src="data:,">'

    def code(source, shown=""):
        outputs = [v4.new_output("display_data", {"text/html": shown})] if shown else []
        return v4.new_code_cell(source, outputs=outputs)

    cells = [
        v4.new_markdown_cell("# 3. A title"),
        v4.new_markdown_cell("## 1. The way\n\nIt is so:\n\n$$a = b^2$$\n\nAnd on."),
        code("secret = 1", picture % "the first figure"),
        code("explore.arrows()", picture % "arrows that move"),
        code("figures.show(ax)", picture % "between the two explorers"),
        code("explore.triangle()", picture % "a triangle that moves"),
        v4.new_markdown_cell("## The end\n\nOnly words of [one](../docs/x.md#there)."),
        code("figures.show(ax)"),
    ]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "03_this.ipynb")
    teaching = """
## 45 minutes: one way

| minutes | where | do | ask first |
| --- | --- | --- | --- |
| 0-5 | nb 3, *The way*, `explore.arrows` | move $T$ | what moves? |
| 5-9 | nb 3, same section, `explore.triangle` | as above | and then? |
| 9-45 | nb 3, *The end* | read | what is left? |

## What students answer

| 1-2 | no plan | of | minutes |
"""
    ((title, rows),) = slides.plans(teaching).items()
    assert title == "45 minutes: one way"
    assert [row.do for row in rows] == ["move $T$", "move $T$", "read"]
    page = BeautifulSoup(slides.deck(title, rows, tmp_path), "html.parser")
    shown = page.find_all("section")
    told = [[i["alt"] for i in s.find_all("img")] or s.get_text(" ", strip=True) for s in shown]
    assert "What moves?" in told[1]
    assert "It is so:" in told[2]
    assert shown[2].find("math")
    assert told[3:5] == [["the first figure"], ["arrows that move"]]
    assert told[6:8] == [["between the two explorers"], ["a triangle that moves"]]
    assert "Only words of one." in told[9]
    assert not page.find("a")
    assert len(shown) == 10
    assert "secret" not in page.get_text()
    with pytest.raises(ValueError, match="'The start', which no notebook has"):
        slides.section(cells, "The start")


def test_the_plans_of_the_course_name_sections_that_there_are():
    notebooks = {int(path.stem[:2]): path for path in (ROOT / "notebooks").glob("*.ipynb")}
    plans = slides.plans((ROOT / "docs" / "teaching.md").read_text(encoding="utf-8"))
    assert [title.split(":")[0] for title in plans] == ["45 minutes", "90 minutes"]
    for rows in plans.values():
        assert len(rows) > 5
        for row in rows:
            for number, title in row.sections:
                assert slides.section(nbformat.read(notebooks[number], 4).cells, title)


# Pages of notebooks ---------------------------------------------------------------------------


def output(cell, kind="display_data", **fields):
    cell.outputs.append(nbformat.v4.new_output(kind, **fields))


def picture(alt, width=1):
    """What ``figures.show`` leaves: the picture in HTML with its alternative, and the plain PNG."""
    packed = io.BytesIO()
    Image.new("RGB", (width, 90), "white").save(packed, "PNG")
    encoded = base64.b64encode(packed.getvalue()).decode()
    shown = f'<img class="wide" alt="{alt}" src="data:image/png;base64,{encoded}">'
    return {"text/html": shown, "image/png": encoded, "text/plain": "<Figure>"}


def every_kind_of_cell():
    """The cells of a notebook that shows what a notebook of the course can."""
    v4 = nbformat.v4
    ran = v4.new_code_cell("total = " + " + ".join(["1"] * 80), execution_count=1)
    output(ran, "stream", name="stderr", text="epoch 1 of 30")
    output(ran, "stream", name="stdout", text="a printed line " + "0.123 " * 40)
    output(ran, data=picture("a curve that rises and stays high", 1400))
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": "VBox()"}
    output(ran, data=widget)
    output(ran, data=widget | {"text/html": "<p>frames of an explorer</p>"})
    symbolic = v4.new_code_cell("log(q)")
    output(symbolic, data={"text/latex": "$\\displaystyle \\log{q}$", "text/plain": "log(q)"})
    texts = [
        "# A & B\n\n[two](02_two.ipynb), [note](../docs/notation.md), [up](#where-t-2-comes-from)",
        "## Where $T^2$ comes from\n\nInline $p_T$, and a block\n\n$$\\frac{a_*b_*}{2}$$",
        "<details><summary>Solution</summary>\n\n```python\nx = 1\n```\n\n</details>",
        *DOLLARS,
    ]
    words = [v4.new_markdown_cell(text) for text in texts]
    return [words[0], ran, symbolic, *words[1:]]


DOLLARS = [  # in code or behind a backslash, where no formula begins
    r"\$5 for one and \$6 for two",
    "``a `$HOME` and $PATH b``",
    "~~~sh\necho $HOME $PATH\n~~~",
    "````\n```\n$HOME and $PATH\n```\n````",
    "text\n\n    echo $HOME $PATH\n",
]
UNREADABLE = ["x^", r"\left( x", r"\sqrt[", "{{{", "<b>^"]
DRAWING = "x = [1]\ny = [2]\nax.plot(x, y)\nfigures.show(\n    ax,\n    alt='A line'\n)"
FOLDED = [  # source, tag, is it folded?
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
    (f"total = {'1' * 92}", None, False),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A site of three notebooks as a batch leaves them, and what was wrong with their pages."""
    build = pytest.importorskip("sphinx") and docs_module("build")
    folder, v4 = tmp_path_factory.mktemp("small"), nbformat.v4
    source, extra = folder / "source", folder / "extra"
    for made in (folder / "executed", source / "notebooks", source / "docs", extra / "notebooks"):
        made.mkdir(parents=True)
    plumbing = [
        v4.new_code_cell(code, metadata={"tags": [tag] if tag else []}) for code, tag, _ in FOLDED
    ]
    unreadable = []
    for latex in UNREADABLE:
        unreadable += [v4.new_markdown_cell(f"Let ${latex}$ be"), v4.new_code_cell("Math(...)")]
        output(unreadable[-1], data={"text/latex": f"${latex}$"})
    notebooks = {
        "01_one": every_kind_of_cell(),
        "02_two": [v4.new_markdown_cell("# Two"), *plumbing],
        "03_three": [v4.new_markdown_cell("# Three"), *unreadable],
    }
    state = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    python = {"name": "python", "pygments_lexer": "ipython3"}
    metadata = {"widgets": state, "language_info": python}
    for name, cells in notebooks.items():
        executed = folder / "executed" / f"{name}.ipynb"
        nbformat.write(v4.new_notebook(cells=cells, metadata=metadata), executed)
        page = build.page_of(executed, {}, extra / "notebooks" / "figures", source)
        nbformat.write(page, source / "notebooks" / executed.name)
        shutil.copy(executed, extra / "notebooks")
    (source / "docs" / "notation.md").write_text("# Notation")
    pages = [*(f"notebooks/{name}" for name in notebooks), "docs/notation"]
    (source / "index.md").write_text("# Home\n\n" + build.contents({"The course": pages}))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert build.render(source, extra, folder / "site") == 1
    told = re.sub(r"\x1b\[[\d;]*m", "", said.getvalue())
    return folder / "site", [line for line in told.splitlines() if "WARNING" in line]


def small_page(small, name):
    return _page(small[0], {}, f"notebooks/{name}.html")


def test_pages_of_notebooks_have_no_fault_and_load_nothing(small):
    site, _ = small
    assert check.check_site(site)[0] == []
    text = (site / "notebooks" / "01_one.html").read_text(encoding="utf-8")
    assert not re.findall(r'src="(?:https?:)?//|require\.min\.js|html-manager|vnd\.jupyter', text)


def test_a_page_leads_to_its_neighbours_and_into_the_course(small):
    page = small_page(small, "01_one")
    assert page.title.text.startswith("A & B")
    links = [a["href"] for a in page.select("article a.reference")]
    assert links == ["02_two.html", "../docs/notation.html", "#where-t-2-comes-from"]
    around = small_page(small, "02_two")
    assert around.find("a", class_="next-page")["href"] == "03_three.html"
    assert around.find("a", class_="prev-page")["href"] == "01_one.html"


def test_pictures_keep_their_words_explorers_their_frames_and_progress_is_left_to_the_log(small):
    shown = small_page(small, "01_one").article
    (drawn,) = shown.find_all("img")
    assert drawn["alt"] == "a curve that rises and stays high"
    assert (small[0] / "notebooks" / drawn["src"]).exists()
    text = shown.get_text()
    assert "frames of an explorer" in text
    assert "a printed line" in text
    assert "VBox" not in text
    assert "epoch 1 of 30" not in text


def test_formulas_become_mathml_and_a_dollar_in_code_begins_none(small):
    page = small_page(small, "01_one")
    drawn = page.article.find_all("math")
    assert [formula.text.replace(" ", "") for formula in drawn[:2]] == ["logq", "T2"]
    assert [formula.get("display") for formula in drawn] == ["block", "inline", "inline", "block"]
    assert "displaystyle" not in page.article.text
    assert page.article.text.count("$") == 10  # as typed
    assert page.article.find("span", class_="together").text.endswith("T,")
    # A formula in a heading stays out of its anchor and of the page's contents.
    assert page.find(id="where-t-2-comes-from")
    for element in page.find_all(True):
        assert not any("<math" in str(value) for value in element.attrs.values())


def test_each_formula_that_cannot_be_read_is_named_with_its_place(small):
    wanted = sorted(2 * UNREADABLE)
    assert sorted(line.partition("cannot be read: ")[2] for line in small[1]) == wanted
    assert all("03_three" in line for line in small[1])


@pytest.mark.parametrize("place", range(len(FOLDED)))
def test_plumbing_is_folded_and_what_teaches_is_shown(small, place):
    code = small_page(small, "02_two").select("div.cell div.highlight")[place]
    assert code.get_text(strip=True)
    assert bool(code.find_parent("details")) == FOLDED[place][-1]


def test_solutions_stay_folded(small):
    (solution,) = small_page(small, "01_one").article.find_all("details")
    assert solution.summary.text == "Solution"
    assert solution.find("pre").text == "x = 1\n"


def widths(page, selector):
    """How wide the content of each such element is, and how much is seen without scrolling."""
    return page.locator(selector).evaluate_all(
        "all => all.map(e => [e.scrollWidth, e.clientWidth])"
    )


def test_print_cuts_nothing_and_a_small_screen_splits_nothing(small, chromium):
    page = chromium.new_page(viewport={"width": 400, "height": 900})
    page.goto((small[0] / "notebooks" / "01_one.html").as_uri())
    code, printed = "div.cell_input pre", "div.cell_output pre"
    assert page.locator(printed).first.evaluate("e => getComputedStyle(e).whiteSpace") == "pre"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    # Panels side by side stay readable, and scroll in a box of their own.
    drawn = page.locator("div.cell_output img").bounding_box()
    assert drawn["width"] > 600
    page.emulate_media(media="print")
    for selector in (code, printed, "div.cell_output"):
        assert all(wide <= seen for wide, seen in widths(page, selector)), selector
    assert page.locator("div.cell_output img").bounding_box()["width"] <= 400
    page.close()


def test_a_line_of_code_of_100_letters_is_seen_whole_on_a_usual_screen(small, chromium):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto((small[0] / "notebooks" / "02_two.html").as_uri())
    wide, seen = widths(page, "div.cell_input pre")[-1]
    assert len(FOLDED[-1][0]) == 100
    assert wide <= seen
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_drawn_on_white_are_dimmed_in_the_dark(small, chromium, scheme):
    page = chromium.new_page(color_scheme=scheme)
    page.goto((small[0] / "notebooks" / "01_one.html").as_uri())
    dimmed = page.locator("article img").evaluate("e => getComputedStyle(e).filter")
    assert ("brightness" in dimmed) == (scheme == "dark")
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", back)[:3])) < 100) == (scheme == "dark")
    page.close()


# Formulas -------------------------------------------------------------------------------------


def test_formulas_have_the_spaces_that_tex_sets():
    drawn = BeautifulSoup(formulas.mathml(r"H=-\sum_i a_i\log a_i, \log(K)/T"), "html.parser")
    signs = [mo for mo in drawn.find_all("mo") if mo.text == "−"]
    assert [mo.get("form") for mo in signs] == ["prefix"]
    first, second = drawn.find_all("mi", string="log")
    assert (first.find_previous_sibling().name, first.find_next_sibling().name) == ("mspace",) * 2
    assert second.find_next_sibling().text == "("
    assert drawn.find("mo", string="/")["lspace"] == "0"


# The built site -------------------------------------------------------------------------------

needs_site = pytest.mark.skipif(
    "TTM_LAB_SITE" not in os.environ, reason="TTM_LAB_SITE names no built site (make site)"
)


@pytest.fixture(scope="module")
def built():
    folder = Path(os.environ["TTM_LAB_SITE"]).resolve()
    assert (folder / "index.html").exists()
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(params=["file", "server"])
def address(request, built):
    """The site's address, opened as a file and from a server."""
    if request.param == "file":
        yield built.as_uri()
        return
    handler = functools.partial(Quiet, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(chromium, address):
    """A page of a browser without a network; at its end nothing may have gone wrong in it."""
    context = chromium.new_context()
    page, wrong = context.new_page(), []
    page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def failed(request):  # a page that is left breaks off what it was still reading
        if request.failure != "net::ERR_ABORTED":
            wrong.append(f"{request.url} failed: {request.failure}")

    page.on("requestfailed", failed)

    def local_only(route):
        if route.request.url.startswith(address):
            route.continue_()
        else:
            wrong.append(f"{route.request.url} is outside")
            route.abort()

    context.route(re.compile(r"^(?!data:)"), local_only)
    yield page
    context.close()
    assert wrong == []


@needs_site
def test_built_site_has_no_fault(built):
    faults, outside = check.check_site(built)
    assert faults == []
    assert "https://arxiv.org/abs/2402.11148" in outside


@needs_site
def test_every_notebook_page_links_its_functions_and_they_link_back(built):
    taught = course.taught(sorted((ROOT / "notebooks").glob("*.ipynb")))
    pages = {}
    for name, sections in taught.items():
        module = ".".join(name.split(".")[:2])
        entry = _page(built, pages, f"api/{module}.html").find(id=name).parent.decode()
        for section in sections:
            assert f"../notebooks/{section.notebook}.html#" in entry, (name, section)
            notebook = _page(built, pages, f"notebooks/{section.notebook}.html")
            assert notebook.find("a", href=f"../api/{module}.html#{name}"), (name, section)


@needs_site
def test_every_page_keeps_the_pictures_of_its_notebook_and_folds_its_solutions(built):
    for executed in sorted((built / "notebooks").glob("*.ipynb")):
        cells, page = nbformat.read(executed, as_version=4).cells, executed.with_suffix(".html")
        shown = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").article
        outputs = [o.get("data", {}) for cell in cells for o in cell.get("outputs", [])]
        pictures = [o for o in outputs if "image/png" in o or "<img" in o.get("text/html", "")]
        assert len(shown.find_all("img")) >= len(pictures) > 0, executed.stem
        solutions = [c for c in cells if "solution" in c.metadata.get("tags", [])]
        folded = [d for d in shown.find_all("details") if d.summary.text == "Solution"]
        assert len(folded) == len(solutions), executed.stem
        assert not any(d.has_attr("open") for d in folded)


@needs_site
def test_all_explorers_of_the_course_move_on_one_page(page, address, built):
    taught = course.taught(sorted((ROOT / "notebooks").glob("*.ipynb")))
    shown = _page(built, {}, "explorers.html")
    used = [name for name in course.explorers() if taught[f"ttm_lab.course.explore.{name}"]]
    for name in used:
        section = shown.find(id=name.replace("_", "-"))  # as Sphinx writes it
        assert section.select(".ttm-frames"), name
    page.goto(f"{address}/explorers.html")
    assert len(lab.still_explorers(page)) >= len(used) > 0


@needs_site
def test_formulas_and_figures_are_drawn(page, address, built):
    for notebook in sorted((built / "notebooks").glob("*.html")):
        page.goto(f"{address}/notebooks/{notebook.name}")
        drawn = page.evaluate(
            "document.fonts.ready.then(() => document.fonts.check('16px \"STIX Two Math\"'))"
        )
        assert drawn, "the font of the formulas"
        sizes = page.locator("math:not(details math)").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
        )
        assert sizes
        assert min(sizes) > 0, notebook.name
        widths = page.locator("article img").evaluate_all("all => all.map(e => e.naturalWidth)")
        assert widths
        assert min(widths) > 0, notebook.name


@needs_site
def test_search_finds_a_word_and_leads_to_it(page, address):
    page.goto(f"{address}/index.html")
    page.locator("input[name=q]:visible").fill("Rényi")
    page.keyboard.press("Enter")
    hits = page.locator("#search-results li a")
    hits.first.wait_for()
    hits.filter(has_text="Rényi").first.click()
    page.wait_for_url("**/notebooks/**")
    assert "Rényi" in page.locator("article").inner_text()


@needs_site
def test_solutions_open_by_a_click(page, address):
    page.goto(f"{address}/notebooks/01_temperature_is_a_power_transform.html")
    solution = page.locator("details", has_text="Temperatures multiply")
    code = solution.locator("pre").first
    assert not code.is_visible()
    solution.locator("summary").click()
    assert code.is_visible()
    assert "def temper" in code.inner_text()


@needs_site
def test_every_explorer_of_the_course_moves(page, address, built):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if uses := lab.uses_of_explorers(path):
            page.goto(f"{address}/notebooks/{path.stem}.html")
            assert len(lab.still_explorers(page)) == len(uses), path.stem
            assert (built / "notebooks" / f"{path.stem}.html").stat().st_size < 1e6 * len(
                uses
            ) + 1e6


@needs_site
@pytest.mark.parametrize("minutes", [45, 90])
def test_slides_turn_by_keys_and_a_slider_keeps_its_own(page, address, minutes):
    page.goto(f"{address}/slides-{minutes}.html")
    place = page.locator("nav b")
    count = page.locator("section").count()
    assert place.text_content() == f"1 / {count}"
    page.keyboard.press("ArrowRight")
    assert place.text_content() == f"2 / {count}"
    assert page.locator("section:visible").count() == 1
    note = page.locator("section:visible .todo")
    assert not note.is_visible()
    page.keyboard.press("n")
    assert note.is_visible()
    turned = 2
    while not page.locator("section:visible input").count():
        page.keyboard.press("ArrowRight")
        turned += 1
        place.filter(has_text=f"{turned} / {count}").wait_for()
    here = place.text_content()
    slider = page.locator("section:visible input").first
    before = slider.get_attribute("aria-valuetext")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") != before
    assert place.text_content() == here
    page.locator("nav button").last.click()
    assert place.text_content() != here


# Over how many lines each word of the elements' last text goes.
LINES_OF_WORDS = """all => all.flatMap(element => {
    const text = element.lastChild;
    return [...text.data.matchAll(/\\w+/g)].map(word => {
        const range = document.createRange();
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        return range.getClientRects().length;
    });
})"""


@needs_site
@pytest.mark.parametrize("width", [400, 800, 1280, 1440])
def test_tables_of_the_report_keep_to_their_column_and_split_no_word(chromium, built, width):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto((built / "report.html").as_uri())
    end = page.locator("article").evaluate("e => e.getBoundingClientRect().right")
    ends = page.locator(".batch-report table:not(.wide table, details table)").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().right)"
    )
    assert len(ends) > 10
    assert max(ends) <= end + 1
    lines = page.locator(".matrix .mark, .matrix thead th").evaluate_all(LINES_OF_WORDS)
    assert len(lines) > 20
    assert set(lines) == {1}
    page.close()


@needs_site
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_no_page_is_wider_than_the_screen(chromium, built, width, scheme):
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    for path in sorted(built.rglob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
    context.close()
