"""What the notebooks and the package know of each other, read from both.

``taught`` finds, for each public function, the sections of the notebooks that use it; the site
links both ways. Nothing is kept by hand.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import nbformat
from ipywidgets import VBox

import ttm_lab
from ttm_lab.course import explore


@dataclass(frozen=True)
class Section:
    """A heading of a notebook. ``label`` is its target in the site."""

    notebook: str
    title: str
    label: str

    @property
    def shown(self) -> str:
        number = int(self.notebook.split("_")[0])
        return f"notebook {number}, {self.title}" if number else f"“Start here”, {self.title}"


def modules() -> dict[str, list[ModuleType]]:
    """The package's modules by the page that shows them: a subpackage has one page."""
    pages: dict[str, list[ModuleType]] = {}
    for found in pkgutil.walk_packages(ttm_lab.__path__, "ttm_lab."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            page = ".".join(found.name.split(".")[:2])
            pages.setdefault(page, []).append(importlib.import_module(found.name))
    return pages


def public_names(module: ModuleType) -> list[str]:
    """Functions and classes that a module shows, in the order of its source."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = (n for n, value in vars(module).items() if _is_from(value, module.__name__))
        names = [name for name in own if not name.startswith("_")]
    values = {name: vars(module)[name] for name in names}
    kept = [n for n, v in values.items() if inspect.isroutine(v) or inspect.isclass(v)]
    return sorted(kept, key=lambda name: _place(values[name]))


def _is_from(value, module: str) -> bool:
    return getattr(value, "__module__", None) == module


def _place(value) -> tuple[str, int]:
    code = inspect.unwrap(value)
    return inspect.getsourcefile(code), inspect.getsourcelines(code)[1]


def documented() -> dict[str, object]:
    """Every public function and class by the dotted name under which the site shows it."""
    found: dict[str, object] = {}
    for listed in modules().values():
        for module in listed:  # a package comes before its parts, so its names win
            for name in public_names(module):
                value = vars(module)[name]
                if not any(value is other for other in found.values()):
                    found[f"{module.__name__}.{name}"] = value
    return found


def explorers() -> list[str]:
    """The functions of ``explore`` that give a whole explorer, in the order of the course."""
    gives = {
        n: inspect.signature(vars(explore)[n]).return_annotation for n in public_names(explore)
    }
    return [n for n, what in gives.items() if what is VBox and n != explore.panel.__name__]


def headings(source: str) -> list[str]:
    """Headings of a Markdown cell, outside code blocks."""
    text = re.sub(r"^(```|~~~).*?^\1", "", source, flags=re.DOTALL | re.MULTILINE)
    return [found.strip() for found in re.findall(r"^#{1,4} +(.+)$", text, flags=re.MULTILINE)]


def label(notebook: str, title: str) -> str:
    words = re.sub(r"[^\w]+", "-", title.lower()).strip("-")
    return f"{notebook.split('_')[0]}-{words}"


def uses(path: Path, known: dict[str, object]) -> dict[str, list[Section]]:
    """The documented names that a notebook uses, with the sections that do, the teaching one first.

    A section whose text names the function teaches it; else the first whose code uses it does. The
    picture that opens a notebook shows and does not teach, so it comes last.
    """
    told, used, opening = _found(path, known)
    return {
        name: sorted(dict.fromkeys([*told.get(name, []), *sections]), key=lambda s: s in opening)
        for name, sections in used.items()
    }


def _found(path: Path, known: dict[str, object]) -> tuple[dict, dict, list[Section]]:
    """Sections whose text names what the notebook's code uses, those whose code does, and the
    sections that open the notebook."""
    by_identity = {id(value): name for name, value in known.items()}
    imported: dict[str, str] = {}
    told: dict[str, list[Section]] = {}
    used: dict[str, list[Section]] = {}
    words: list[tuple[str, Section]] = []
    title, opening, section = None, [], None
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for heading in headings(cell.source):
                shown = heading if title else re.sub(r"^\d+\. ", "", heading)
                section = Section(path.stem, shown, label(path.stem, heading))
                title = title or section
                if section is title or heading == "The answer in one picture":
                    opening.append(section)
            if "solution" not in cell.metadata.get("tags", []):
                found = re.findall(r"`[\w.]*?(\w+)(?:\(.*?\))?`", cell.source)
                words += [(word, section) for word in found]
        elif cell.cell_type == "code":
            for dotted in _dotted(ast.parse(cell.source), imported):
                if name := by_identity.get(id(_value(dotted))):
                    used.setdefault(name, []).append(section)
    short = {name.rpartition(".")[2]: name for name in used}
    for word, section in words:
        if word in short:
            told.setdefault(short[word], []).append(section)
    return told, used, opening


def _dotted(tree: ast.AST, imported: dict[str, str]) -> list[str]:
    """Names and attributes of the package in a cell, in full, in the order of the source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ttm_lab"):
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    names = []
    for node in ast.walk(tree):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id in imported:
            names.append((node.lineno, node.col_offset, ".".join([imported[inner.id], *parts])))
    return [name for _, _, name in sorted(names)]


def _value(dotted: str):
    """What a dotted name stands for, or None."""
    first, *rest = dotted.split(".")
    value = importlib.import_module(first)
    for part in rest:
        try:
            value = getattr(value, part)
        except AttributeError:
            return None
    return value


def taught(notebooks: list[Path]) -> dict[str, list[Section]]:
    """For each documented name its section in each notebook that uses it.

    First come notebooks whose text names it; the opening notebook, which only shows, comes last.
    Otherwise in reading order.
    """
    known = documented()
    sections: dict[str, dict[str, Section]] = {name: {} for name in known}
    place: dict[tuple[str, str], tuple[bool, bool]] = {}
    for path in notebooks:
        told, _, _ = _found(path, known)
        for name, (section, *_) in uses(path, known).items():
            sections[name][path.stem] = section
            place[name, path.stem] = (path.stem.startswith("00"), name not in told)
    return {
        name: sorted(found.values(), key=lambda s: place[name, s.notebook])
        for name, found in sections.items()
    }


def summary(value) -> str:
    """The first sentence of a docstring, as Markdown."""
    first = inspect.getdoc(value).split("\n\n")[0].replace("\n", " ")
    pieces = re.split(r"(`[^`]+`)", first.replace("``", "`"))
    pieces[::2] = [re.sub(r"[*_|]", r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces)
