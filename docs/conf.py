"""Settings of the site; ``docs/build.py`` lays out the pages and calls Sphinx with them."""

import re
import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path
from textwrap import indent

from docutils import nodes
from sphinx.util import logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import course  # noqa: E402
import formulas  # noqa: E402

import ttm_lab  # noqa: E402

project = "TTM Lab"
author = "TTM Lab"
copyright = "TTM Lab, MIT licence"
release = ttm_lab.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "TTM Lab"
html_static_path = ["static"]
html_css_files = ["site.css", "report.css"]
html_js_files = ["site.js"]
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_domain_indices = False  # the page of each module stands in the navigation
smartquotes = False
templates_path = []
html_theme_options = {
    "light_css_variables": {"font-stack": "system-ui, sans-serif"},
    "dark_css_variables": {"font-stack": "system-ui, sans-serif"},
}

# Notebooks come executed. Their figures carry text alternatives in HTML, which wins over PNG.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # by default scripts from a content network
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_number_source_lines = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 70
python_use_unqualified_type_names = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # a NamedTuple documents its fields by itself as well
suppress_warnings = ["mystnb.unknown_mime_type"]


# Formulas become MathML when the site is built, drawn with the font that the site brings.


def _inline_formula(self, node) -> None:
    self.body.append(_drawn(node))
    raise nodes.SkipNode


def _block_formula(self, node) -> None:
    self.body.append(f'<div class="formula">{_drawn(node, block=True)}</div>\n')
    raise nodes.SkipNode


def _drawn(node, *, block: bool = False) -> str:
    try:
        return formulas.mathml(node.astext(), block=block)
    except Exception:  # latex2mathml raises what comes
        message = f"formula that cannot be read: {node.astext()}"
        logging.getLogger(__name__).warning(message, location=node)
        return ""


def _bring_font(app, exception) -> None:
    if exception is None:
        with as_file(files("ziamath.fonts") / "STIXTwoMath-Regular.ttf") as font:
            shutil.copy(font, Path(app.outdir) / "_static" / font.name)


# Docstrings are plain text with ``code`` in backticks: no other character means markup. Lists of
# arguments get the heading that napoleon knows. The line that names a notebook is replaced by
# links to its sections.
ARGUMENT = r"[a-z]\w*(?:, \w+)*: "


def _docstring(app, what, name, obj, options, lines) -> None:
    text = "\n".join(lines)
    text = re.sub(r"^Parameters\n-+\n", "", text, flags=re.MULTILINE)
    listed = rf"(?:^|(?<=\n\n)){ARGUMENT}.*(?:\n(?:{ARGUMENT}|    ).*)*(?=\n\n|\n?$)"
    text = re.sub(listed, lambda found: "Args:\n" + indent(found[0], "    "), text)
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", text)
    text = re.sub(r"(?<!:):\n\n(?=    )", "::\n\n", text)  # tables set with spaces stay as they are
    literal = r"(``(?:[^`]|`(?!`))+``|::\n\n(?:    .*\n|\n)+)"
    pieces = re.split(literal, text)
    pieces[::2] = [re.sub(r"[*|`]|(?<=\w)_(?!\w)", r"\\\g<0>", piece) for piece in pieces[::2]]
    lines[:] = "".join(pieces).split("\n")
    if name not in TAUGHT:
        return
    links = [f":ref:`{section.shown} <{section.label}>`" for section in TAUGHT[name]]
    first, *others = links or [""]
    lines += [
        "",
        f":Taught in: {first}" if first else ":In the course: no notebook uses it directly",
    ]
    if others:
        lines += [f":Also used in: {'; '.join(others)}"]
    lines += [""]


def _dashes(app, doctree, page) -> None:
    """Sphinx puts two hyphens between an argument and its meaning."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(": "))


def _commas(app, doctree, page) -> None:
    """Keep a formula and the comma behind it in one line: browsers would break between them."""
    for formula in list(doctree.findall(nodes.math)):
        parent, place = formula.parent, formula.parent.index(formula)
        after = parent[place + 1] if place + 1 < len(parent) else ""
        if isinstance(after, nodes.Text) and (sign := re.match(r"[,.;:!?)]+", after)):
            both = nodes.inline("", "", formula, nodes.Text(sign[0]), classes=["together"])
            parent[place : place + 2] = [both, nodes.Text(after[sign.end() :])]


TAUGHT = course.taught(sorted((HERE.parent / "notebooks").glob("*.ipynb")))


def setup(app) -> None:
    # Before napoleon, whose markup stays as it is.
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("doctree-resolved", _dashes)
    app.connect("doctree-resolved", _commas)
    app.connect("build-finished", _bring_font)
    app.add_html_math_renderer("mathml", (_inline_formula, None), (_block_formula, None))
    app.config.html_math_renderer_name = "mathml"
