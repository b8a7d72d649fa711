"""Build the site from the executed course: ``make site``.

Lays out a source folder that mirrors the checkout, so that relative links between its files hold,
lets Sphinx render it (settings in ``conf.py``), and checks every page (``check.py``).
"""

import argparse
import ast
import base64
import re
import shutil
import sys
from pathlib import Path

import nbformat
from sphinx.cmd.build import build_main

sys.path.insert(0, str(Path(__file__).parent))
import check
import course
import slides

from ttm_lab.course import report
from ttm_lab.course.batch import Refused, batch_folder, find_notebooks, reproduce, same_cells

ROOT = Path(__file__).resolve().parents[1]
LONG = 6  # lines of code from which a cell that draws a figure is folded
# Links to folders of the checkout, and the page that shows each.
FOLDER_PAGES = {
    "benchmarks/results": "benchmarks/results/index.md",
    "data/results": "data/README.md",
}


# The executed course --------------------------------------------------------------------------


def misfit(executed: Path, notebooks: list[Path], *, cut_short: bool = False) -> str:
    """Why a batch's folder cannot be shown as the present course, or an empty text."""
    if not (executed / "status.json").exists():
        return f"{executed} holds no finished batch"
    status = report.read_status(executed)
    if status is None:
        return f"{executed / 'status.json'} is damaged"
    entries = status["notebooks"]
    for path in notebooks:
        entry = entries.get(path.stem, {})
        if entry.get("status") != "done":
            return f"{path.stem} did not finish in {executed}"
        if entry["parameters"].get("max_steps") is not None and not cut_short:
            return f"{path.stem} was cut short in {executed}"
        if not same_cells(path, executed / path.name):
            return f"{path.stem} in {executed} was made from other cells"
    return ""


# Notebook pages -------------------------------------------------------------------------------


def page_of(
    executed: Path, uses: dict[str, list[course.Section]], figures: Path, source: Path
) -> nbformat.NotebookNode:
    """An executed notebook as the site shows it: still outputs, targets, links to functions."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    save = _Figures(figures, executed.stem)
    # A batch writes its parameters into a cell of their own; the profile is as the notebook has it.
    notebook.cells = [c for c in notebook.cells if c.source != '# Parameters\nprofile = "quick"\n']
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "markdown":
            cell.source = site_links(with_targets(cell.source, executed.stem), "notebooks", source)
        elif cell.cell_type == "code":
            if is_plumbing(cell):
                cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), "hide-input"})
            cell.outputs = [still for output in cell.outputs if (still := _still(output, save))]
    notebook.cells.append(nbformat.v4.new_markdown_cell(_functions_used(executed, uses)))
    return notebook


def is_plumbing(cell: nbformat.NotebookNode) -> bool:
    """Whether a page folds this code cell: it serves the notebook and teaches nothing by itself.

    That is the profile, what begins with imports, what records evidence, what draws a figure in
    six lines or more, and what is tagged ``hide-input``. Exercises stay open.
    """
    tags = set(cell.metadata.get("tags", []))
    if tags & {"exercise", "check"}:
        return False
    if tags & {"parameters", "injected-parameters", "hide-input"}:
        return True
    try:
        body = ast.parse(cell.source).body
    except SyntaxError:  # a magic command
        return False
    calls = [node.func for statement in body for node in ast.walk(statement)
             if isinstance(node, ast.Call)]  # fmt: skip
    called = {ast.unparse(function).rpartition(".")[2] for function in calls}
    defines = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in body)
    imports = bool(body) and isinstance(body[0], (ast.Import, ast.ImportFrom)) and not defines
    draws = "show" in called and len(cell.source.splitlines()) >= LONG
    return imports or "record" in called or draws


class _Figures:
    """Moves the pictures inside HTML to files, which load as they are needed."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name, self.count = folder, name, 0

    def __call__(self, markup: str) -> str:
        return re.sub(r'src="data:image/png;base64,([^"]+)"', self._save, markup)

    def _save(self, found: re.Match) -> str:
        self.count += 1
        path = self.folder / f"{self.name[:2]}-{self.count:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(found[1]))
        return f'src="{self.folder.name}/{path.name}"'


def with_targets(source: str, notebook: str) -> str:
    """Put a target that other pages can link to above each heading."""
    for title in course.headings(source):
        heading = re.search(rf"^#+ +{re.escape(title)}\s*$", source, flags=re.MULTILINE)
        target = f"({course.label(notebook, title)})=\n"
        source = source[: heading.start()] + target + source[heading.start() :]
    return source


def _still(output, save: _Figures):
    """What a page can show of an output; None for progress bars and messages to the log."""
    if output.get("name") == "stderr":
        return None
    data = output.get("data", {})
    if data.pop("application/vnd.jupyter.widget-view+json", None) and "text/html" not in data:
        return None
    if "text/html" in data:
        data["text/html"] = save(data["text/html"])
        data.pop("image/png", None)
    return output


def _functions_used(executed: Path, uses: dict[str, list[course.Section]]) -> str:
    known = course.documented()
    lines = [
        f"- {{py:obj}}`{name.removeprefix('ttm_lab.')} <{name}>`: {course.summary(known[name])}"
        for name, sections in sorted(uses.items())
        if any(section.notebook == executed.stem for section in sections)
    ]
    link = f'<a href="{executed.name}" download>this notebook with its outputs</a>'
    return "\n".join(["## Functions used here", "", *lines, "", f"Download: {link}."])


# Other pages ----------------------------------------------------------------------------------


def site_links(text: str, folder: str, source: Path) -> str:
    """Links of a text in ``folder`` as the site needs them.

    Some pages have another name there. Linked files that are no pages, and pictures, are copied.
    """

    def follow(found: re.Match) -> str:
        path = (ROOT / folder / found[1]).resolve()
        if not path.is_relative_to(ROOT):
            return found[0]
        here = path.relative_to(ROOT)
        if page := {"README.md": "index.md", **FOLDER_PAGES}.get(here.as_posix()):
            return f"](/{page}{found[2] or ''})"
        if path.is_file() and path.suffix not in (".md", ".ipynb"):
            shutil.copy(path, _made((source / here).parent))
        return found[0]

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", follow, text)


def api_page(module: str) -> str:
    """A page with a module's text and each of its public functions and classes."""
    known, blocks = course.documented(), []
    for part in course.modules()[module]:
        heading = f"{part.__name__}\n{'=' if part.__name__ == module else '-'}"
        heading += heading[-1] * (len(part.__name__) - 1)
        names = [n for n in course.public_names(part) if f"{part.__name__}.{n}" in known]
        if not names and part.__name__ != module:
            continue
        blocks.append(f"{heading}\n\n.. automodule:: {part.__name__}\n")
        for name in names:
            dotted = f"{part.__name__}.{name}"
            if isinstance(known[dotted], type):
                blocks.append(f".. autoclass:: {dotted}\n   :members:\n")
            else:
                blocks.append(f".. autofunction:: {dotted}\n")
    return "\n".join(blocks)


def report_page(executed: Path) -> str:
    """The batch's report with the site around it."""
    whole = (executed / "report.html").read_text(encoding="utf-8")
    body = re.search(r"<h1>.*?</h1>(.*)</main>", whole, flags=re.DOTALL)[1]
    body = re.sub(r' <a href="logs/[^"]*">log</a>', "", body)
    body = re.sub(r'href="([^"/:]+)\.ipynb"', r'href="notebooks/\1.html"', body)
    start, *sections = re.split(r"<h2>(.*?)</h2>", body)
    wrapped = "<div class='batch-report'>{}</div>"
    page = ["# Report", _raw(wrapped.format(start))]
    for title, content in zip(sections[::2], sections[1::2], strict=True):
        page += [f"## {title}", _raw(wrapped.format(content))]
    return "\n\n".join(page)


def explorers_page(executed: Path, taught: dict[str, list[course.Section]]) -> str:
    """All explorers, moving as they do in the course."""
    known = course.documented()
    page = [
        "# Explorers",
        "Sliders, and a picture that follows them. The main ones move here and in the course's "
        "pages; all do in JupyterLab: `make lab`, or in your own notebook through "
        "`ttm_lab.course.explore`.",
    ]
    for name in course.explorers():
        dotted = f"ttm_lab.course.explore.{name}"
        about = course.summary(known[dotted])
        page += [f"## {name}", f"{{py:obj}}`ttm_lab.course.explore.{name} <{dotted}>`. {about}"]
        for section in taught[dotted][:1]:
            page.append(f"In the course: {{ref}}`{section.shown} <{section.label}>`.")
            cells = nbformat.read(executed / f"{section.notebook}.ipynb", as_version=4).cells
            page += [
                _raw(output.data["text/html"])
                for cell in cells
                if cell.cell_type == "code" and f"explore.{name}(" in cell.source
                for output in cell.outputs
                if "ttm-frames" in output.get("data", {}).get("text/html", "")
            ]
    return "\n\n".join(page)


def _raw(markup: str) -> str:
    """HTML for a page in Markdown, in a fence longer than any inside."""
    fence = "`" * (2 + max(map(len, re.findall("`+", markup)), default=1))
    return f"{fence}{{raw}} html\n{markup}\n{fence}\n"


def benchmarks_page(measured: list[str]) -> str:
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Measured by `make bench` and the scripts beside it, with hardware, versions and date.",
            "",
            *(f"- [](/benchmarks/results/{stem}.md), `{stem}`" for stem in measured),
            "",
            contents({"": [f"{stem} </benchmarks/results/{stem}>" for stem in measured]}),
        ]
    )


def contents(groups: dict[str, list[str]]) -> str:
    """Navigation: a table of contents, not shown in the text, for each group of pages."""
    blocks = []
    for caption, pages in groups.items():
        named = f":caption: {caption}\n" if caption else ""
        listed = "\n".join(page if " </" in page else f"/{page}" for page in pages)
        blocks.append(f"```{{toctree}}\n:hidden:\n{named}\n{listed}\n```\n")
    return "\n".join(blocks)


def lay_out(executed: Path, source: Path, extra: Path) -> None:
    """Write all pages to ``source``, and to ``extra`` what goes into the site as it is."""
    notebooks = find_notebooks(ROOT)
    taught = course.taught(notebooks)
    _made(source / "notebooks")
    for path in notebooks:
        page = page_of(executed / path.name, taught, extra / "notebooks" / "figures", source)
        nbformat.write(page, source / "notebooks" / path.name)
        shutil.copy(executed / path.name, _made(extra / "notebooks") / path.name)

    reading = sorted(path.name for path in ROOT.glob("docs/*.md"))
    measured = sorted(path.stem for path in ROOT.glob("benchmarks/results/*.md"))
    texts = ["CONTRIBUTING.md", "data/README.md", *(f"docs/{name}" for name in reading)]
    for name in [*texts, *(f"benchmarks/results/{stem}.md" for stem in measured)]:
        text = site_links((ROOT / name).read_text(encoding="utf-8"), str(Path(name).parent), source)
        if name == "docs/teaching.md":  # each plan leads to its slides
            link = r'\n<p><a href="../slides-\2.html">Slides for these \2 minutes</a></p>\n'
            text = re.sub(r"^(## (\d+) minutes.*\n)", r"\1" + link, text, flags=re.M)
        (_made((source / name).parent) / Path(name).name).write_text(text, encoding="utf-8")
    write = {
        "benchmarks/results/index.md": benchmarks_page(measured),
        "report.md": report_page(executed),
        "explorers.md": explorers_page(executed, taught),
        **{f"api/{module}.rst": api_page(module) for module in course.modules()},
    }
    decks = slides.plans((ROOT / "docs/teaching.md").read_text(encoding="utf-8"))
    for title, rows in decks.items():
        page = slides.deck(title, rows, executed)
        (extra / f"slides-{title.split()[0]}.html").write_text(page, encoding="utf-8")
    groups = {
        "The course": [f"notebooks/{path.stem}" for path in notebooks],
        "Beside the course": ["explorers", *(f"docs/{Path(name).stem}" for name in reading)],
        "Results": ["report", "benchmarks/results/index", "data/README"],
        "The package": [f"api/{module}" for module in course.modules()],
        "The project": ["CONTRIBUTING"],
    }
    home = site_links((ROOT / "README.md").read_text(encoding="utf-8"), ".", source)
    home = home.replace("[report](#two-commands)", "[report](/report.md)")  # here there is one
    write["index.md"] = f"{home}\n\n{contents(groups)}"
    for name, text in write.items():
        (_made((source / name).parent) / Path(name).name).write_text(text, encoding="utf-8")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# The command ----------------------------------------------------------------------------------


def render(source: Path, extra: Path, output: Path) -> int:
    """Let Sphinx make pages of ``source`` beside the files of ``extra``; return 0 if all is well.

    Every warning counts as a fault and is printed.
    """
    styles = f".batch-report {{\n{report.STYLE}\n}}\n"
    (_made(extra / "_static") / "report.css").write_text(styles, encoding="utf-8")
    return build_main(
        [
            *("-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs")),
            *("-d", str(output.with_name("doctrees")), "-D", f"html_extra_path={extra}"),
            *(str(source), str(output)),
        ]
    )


def build(executed: Path, output: Path) -> int:
    """Render the site into ``output`` and check it; return 0, or 1 if something is wrong."""
    if output.exists() and not (output / ".buildinfo").exists():
        raise SystemExit(f"{output} is not a site that this command made: remove it first")
    work = output.with_name(output.name + "-work")
    shutil.rmtree(work, ignore_errors=True)
    source, extra = _made(work / "source"), _made(work / "extra")
    lay_out(executed, source, extra)
    (extra / ".nojekyll").touch()  # a code host would else leave out folders such as _static
    if render(source, extra, work / "site"):
        print(f"Sphinx found faults in the pages below {source}, see above.", file=sys.stderr)
        return 1
    shutil.rmtree(output, ignore_errors=True)
    shutil.move(work / "site", output)
    shutil.rmtree(work)
    faults, outside = check.check_site(output)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(
        f"{len(list(output.rglob('*.html')))} pages checked, {len(faults)} faults; "
        f"{len(outside)} links lead outside:"
    )
    print("\n".join(f"  {address}" for address in outside))
    print(f"\nSite: {output / 'index.html'}")
    return 1 if faults else 0


def main() -> int:
    folder = batch_folder(ROOT, "quick")
    parser = argparse.ArgumentParser(description="Build the course's site.")
    parser.add_argument(
        "--executed",
        type=Path,
        metavar="DIR",
        help="a batch's folder to show, cut short or not (default: runs/reproduce/quick, "
        "which is made first unless it belongs to the present notebooks)",
    )
    site = folder.parents[1] / "site"
    parser.add_argument("--output", type=Path, default=site, metavar="DIR")
    parser.add_argument("--jobs", type=int, help="notebooks at a time, if any must run")
    given = parser.parse_args()
    try:
        notebooks = find_notebooks(ROOT)
    except Refused as refused:
        raise SystemExit(str(refused)) from None
    executed = given.executed or folder
    why = misfit(executed, notebooks, cut_short=given.executed is not None)
    if why and given.executed:
        raise SystemExit(f"{why}: nothing was built")
    if why:
        print(f"{why}: running the course first")
        try:
            failed = reproduce("quick", jobs=given.jobs, root=ROOT)
        except Refused as refused:
            raise SystemExit(str(refused)) from None
        if failed:
            return failed
    return build(executed.resolve(), given.output.resolve())


if __name__ == "__main__":
    sys.exit(main())
