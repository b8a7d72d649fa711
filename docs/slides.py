"""Slides from the executed notebooks, for the lectures that ``docs/teaching.md`` plans.

Each row of a plan asks its question, then shows what the row names: formulas with the sentence
before them, figures, and explorers that move. No code, one idea a slide. Arrow keys turn the pages,
N shows what to do. A page is whole in itself, but for the font of the site's formulas.
"""

import html
import re
from dataclasses import dataclass, replace
from pathlib import Path

import formulas
import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

STYLE = """
@font-face { font-family: "STIX Two Math"; src: url("_static/STIXTwoMath-Regular.ttf"); }
:root { color-scheme: light dark; }
body { margin: 0; font: 3.4vmin/1.35 system-ui, sans-serif; }
math { font-family: "STIX Two Math", math; font-size: 1.1em; }
section { box-sizing: border-box; min-height: 100vh; padding: 4vmin 7vmin 9vmin; display: flex;
  flex-direction: column; justify-content: center; overflow-x: auto; }
.moving section:not(.now) { display: none; }
section:focus { outline: none; }
h1, h2 { line-height: 1.2; font-size: 1.7em; margin: 0 0 0.8em; }
.place { font-size: 0.75em; opacity: 0.7; margin: 0 0 auto; }
.after { margin: auto 0 0; }
.question { font-size: 1.7em; }
.formula { font-size: 1.4em; }
.todo { font-size: 0.85em; visibility: hidden; }
.noted .todo { visibility: visible; }
table { border-collapse: collapse; font-size: 0.9em; }
th, td { padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #8886; }
section img { display: block; margin: 0 auto; background: white;
  width: auto !important; height: auto !important;
  min-height: 50vh; max-height: 68vh; max-width: 100% !important; object-fit: contain; }
.ttm-frames img { min-height: 40vh; max-height: 48vh; }
.ttm-frames { font-size: 0.8em; }
.ttm-frames .note { display: none; }
.ttm-frames input, .ttm-frames select { font-size: inherit; }
nav { position: fixed; right: 2vmin; bottom: 2vmin; font-size: 0.7em; }
nav button { font: inherit; padding: 0.3em 0.9em; }
@media (prefers-color-scheme: dark) { section img { filter: brightness(0.85); } }
@media print {
  @page { size: 297mm 167mm; margin: 0; }
  section, .moving section:not(.now) { display: flex; break-after: page; min-height: 165mm; }
  nav { display: none; }
  .todo { visibility: visible; }
}
"""
SCRIPT = """
const slides = [...document.querySelectorAll("section")], count = document.querySelector("nav b");
const now = () => Math.min(Math.max(parseInt(location.hash.slice(1)) || 1, 1), slides.length);
const show = () => {
  if (slides[now() - 1].classList.contains("now")) return;
  slides.forEach((slide, k) => slide.classList.toggle("now", k === now() - 1));
  count.textContent = `${now()} / ${slides.length}`;
  slides[now() - 1].focus({preventScroll: true});
  scrollTo(0, 0);
};
const go = to => { location.hash = Math.min(Math.max(to, 1), slides.length); show(); };
const steps = {ArrowRight: 1, PageDown: 1, " ": 1, ArrowLeft: -1, PageUp: -1,
               Home: -Infinity, End: Infinity};
addEventListener("hashchange", show);
addEventListener("keydown", event => {
  if (event.target.closest("input, select, button, summary, a")) return;
  if (event.key === "n") document.body.classList.toggle("noted");
  if (event.key in steps && !event.ctrlKey && !event.altKey && !event.metaKey) {
    event.preventDefault();
    go(now() + steps[event.key]);
  }
});
document.querySelectorAll("nav button").forEach((button, k) => {
  button.onclick = () => go(now() + (k ? 1 : -1));
});
document.body.classList.add("moving");
show();
"""


def _formula(latex: str, options: dict) -> str:
    try:
        return formulas.mathml(latex, block=options["display_mode"])
    except Exception:  # latex2mathml raises what comes; the site's own page names the formula
        return f"<code>{html.escape(latex)}</code>"


MARKDOWN = MarkdownIt().enable("table")
MARKDOWN.use(dollarmath_plugin, double_inline=True, renderer=_formula)


@dataclass(frozen=True)
class Row:
    """One row of a plan: sections are (notebook's number, title)."""

    minutes: str
    sections: tuple[tuple[int, str], ...]
    explorer: str
    do: str
    ask: str


def plans(teaching: str) -> dict[str, list[Row]]:
    """The tables of minutes below the headings that begin with minutes, by heading."""
    found: dict[str, list[Row]] = {}
    earlier: list[Row] = []
    for title, text in re.findall(r"^## (\d+ minutes.*)\n((?:(?!## ).*\n?)*)", teaching, re.M):
        rows, number, sections = [], 0, ()
        for line in re.findall(r"^\| (\d+-\d+ \|.*) \|$", text, flags=re.M):
            minutes, where, do, ask = (cell.strip() for cell in line.split(" | "))
            if named := re.search(r"\bnb (\d+)", where):
                number = int(named[1])
            titles = re.findall(r"(?<!\*)\*([^*]+)\*", where)
            if titles:
                sections = tuple((number, one) for one in titles)
            explorer = re.search(r"`explore\.(\w+)`", where)
            row = Row(minutes, sections, explorer[1] if explorer else "", do, ask)
            before = [old for old in [*earlier, *rows] if old.sections[0] == sections[0]]
            if before:
                say = {n: getattr(row, n).replace("as above", getattr(before[0], n))
                       for n in ("do", "ask")}  # fmt: skip
                row = replace(row, **say)
            rows.append(row)
        found[title] = rows
        earlier += rows
    return found


def deck(title: str, rows: list[Row], executed: Path) -> str:
    """A plan's slides as an HTML page, from the notebooks of a batch's folder."""
    notebooks = {int(path.stem[:2]): path for path in executed.glob("[0-9][0-9]_*.ipynb")}
    minutes, _, name = title.partition(": ")
    shown = name[:1].upper() + name[1:] or minutes
    hint = "Arrow keys turn the pages, N shows notes for the lecturer. Sliders move here, too."
    slides = [f"<h1>{html.escape(shown)}</h1><p>{minutes}. {hint}</p>"]
    for row in rows:
        place = f'<p class="place">minutes {row.minutes} · notebook {row.sections[0][0]}, '
        place += f"{html.escape(row.sections[0][1])}</p>"
        todo = f'<div class="after todo">{_words(row.do)}</div>'
        asked = _words(row.ask[:1].upper() + row.ask[1:])
        slides.append(f'{place}<div class="question">{asked}</div>{todo}')
        slides += [f'{place}{idea}<div class="after"></div>' for idea in ideas(row, notebooks)]
    sections = "".join(
        f'<section id="{k}" tabindex="-1" aria-label="slide {k}">{_own_names(slide, k)}</section>'
        for k, slide in enumerate(slides, start=1)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(shown)}</title><style>{STYLE}</style></head><body>{sections}"
        '<nav><button aria-label="back">‹</button> <b></b> <button aria-label="on">›</button>'
        f"</nav><script>{SCRIPT}</script></body></html>"
    )


def ideas(row: Row, notebooks: dict[int, Path]) -> list[str]:
    """What a row shows, an HTML text a slide, in the order of the notebook.

    Of a section with explorers a row shows the part that ends with its own.
    """
    found = []
    for number, title in row.sections:
        cells = nbformat.read(notebooks[number], as_version=4).cells
        part, explorers = [], [k for k, cell in enumerate(cells) if _explorer(cell)]
        inside = section(cells, title)
        mine = [k for k in explorers if _explorer(cells[k]) == row.explorer]
        if mine and mine[0] in inside:
            start = max([k for k in explorers if k < mine[0]], default=-1)
            part = [k for k in inside if start < k <= mine[0]]
        else:
            part = [k for k in inside if k not in explorers] + mine[:1]
        for k in part:
            found += _formulas(cells[k]) if cells[k].cell_type == "markdown" else _shown(cells[k])
        if not found:  # a section of words alone
            words = "\n\n".join(cells[k].source for k in part if cells[k].cell_type == "markdown")
            found.append(_words(words))
    return found


def section(cells: list, title: str) -> range:
    """The places of a section's cells, found by its heading with or without a number.

    Raises ``ValueError`` where no heading says so.
    """
    headings = [
        (k, len(found[1]), re.sub(r"^\d+\. ", "", found[2].strip()))
        for k, cell in enumerate(cells)
        if cell.cell_type == "markdown"
        for found in re.finditer(r"^(#{1,4}) +(.+)$", cell.source, flags=re.M)
    ]
    for k, level, name in headings:
        if name == title:
            ends = [end for end, other, _ in headings if end > k and other <= level]
            return range(k, ends[0] if ends else len(cells))
    raise ValueError(f"docs/teaching.md names the section {title!r}, which no notebook has")


def _words(source: str) -> str:
    """A text as HTML, without headings, which the slide has above.

    Its links lead from the notebook, not from a slide, so their words stay.
    """
    text = re.sub(r"^#+ .*$", "", source, flags=re.M)
    return MARKDOWN.render(re.sub(r"(?<!!)\[([^\]]+)\]\([^)\s]*\)", r"\1", text))


def _explorer(cell) -> str:
    called = re.search(r"\bexplore\.(\w+)\(", cell.source) if cell.cell_type == "code" else None
    return called[1] if called else ""


def _formulas(cell) -> list[str]:
    """Each formula that has lines of its own, with the paragraph before it."""
    text = re.sub(r"<details>.*?</details>", "", cell.source, flags=re.S)
    blocks, found = re.split(r"\n\s*\n", text), []
    for before, block in zip(["", *blocks], blocks, strict=False):
        if block.strip().startswith("$$"):
            said = "" if before.startswith(("#", "$$")) else _words(before)
            found.append(f'{said}<div class="formula">{_words(block)}</div>')
    return found


def _shown(cell) -> list[str]:
    """Figures, explorers and tables of a cell."""
    outputs = (output.get("data", {}).get("text/html", "") for output in cell.outputs)
    return [shown for shown in outputs if re.search(r"<(img|table)\b", shown)]


def _own_names(slide: str, number: int) -> str:
    """An explorer that two slides show has two names."""
    return re.sub(r"\bexplorer-\w+", lambda found: f"{found[0]}-{number}", slide)
