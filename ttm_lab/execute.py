"""One notebook in a process of its own: papermill, then an HTML page.

``start`` is the batch's side. The process reads ``FOLDER/job.json`` and leaves in the folder the
executed notebook, its HTML page, ``results/`` and, if it failed, ``error.json``. What counts is
the exit status: a killed kernel leaves a notebook that looks complete.
"""

import html
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

import latex2mathml.converter
import nbformat
import papermill
import psutil
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jinja2 import pass_context
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from papermill.exceptions import PapermillExecutionError
from traitlets import default

MATHML = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", MATHML)

WIDGET_NOTE = (
    "<p><em>Here the notebook shows sliders. They move in JupyterLab; this page has the figure "
    "beside them.</em></p>"
)


class OwnKernel(KernelSpecManager):
    """Offers ipykernel in this very interpreter under any name, and no installed kernelspec."""

    def find_kernel_specs(self) -> dict[str, str]:
        return {NATIVE_KERNEL_NAME: RESOURCES}

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        own = get_kernel_dict()
        # Said, because a variable may name another way of starting kernels as the default.
        local = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
        own["metadata"] = own.get("metadata", {}) | local
        return KernelSpec(resource_dir=RESOURCES, **own)


class _OwnKernelManager(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _own_kernel(self) -> OwnKernel:
        return OwnKernel()


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook as one for our kernel, whichever its metadata names or leaves out.

    Raises ``ValueError`` naming the file if it is no notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook, relax_add_props=True)
    except Exception as error:  # whatever nbformat meets in a file of another shape
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise ValueError(f"{path} is not a notebook ({why}): mend it or take it away") from error
    language = {"name": "python", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = language | {"name": NATIVE_KERNEL_NAME}
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def start(
    notebook: Path,
    folder: Path,
    parameters: dict,
    *,
    log: Path,
    cell_timeout: float,
    environment: dict[str, str],
    place: Path | None = None,
    pages: Collection[str] | None = None,
) -> subprocess.Popen:
    """Start the process that runs ``notebook`` with everything it makes going to ``folder``.

    ``place`` and ``pages`` are for its page, see ``export_html``.
    """
    results = folder / "results"
    results.mkdir(parents=True)
    job = {
        "notebook": str(notebook),
        "parameters": parameters,
        "cell_timeout": cell_timeout,
        "batch": os.getpid(),
        "place": str(place or folder),
        "pages": pages and list(pages),
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    # Jupyter's variables lead to other kernels, templates and folders.
    environment = {k: v for k, v in environment.items() if not k.startswith("JUPYTER_")}
    fixed = {
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "MPLBACKEND": "agg",
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
        "TTM_LAB_BATCH": "1",  # training prints a line an epoch
        "TTM_LAB_NOTEBOOK": notebook.stem,
        "TTM_LAB_RESULTS": str(results),
    }
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ttm_lab.execute", str(folder)],
            env={**environment, **fixed},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the batch alone, which then ends this one
        )


def kill(process: subprocess.Popen) -> None:
    """End the process and all below it. The kernel leads a session of its own: walk the tree."""
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family[1:], timeout=10)


def end_left_behind(folder: Path) -> list[str]:
    """End what notebooks that work below ``folder`` have left running; a line for each process.

    A process in a session of its own outlives the kernel that started it, and no longer descends
    from it. It is known by the variable that it inherited.
    """
    left, lines = {}, []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # another user's, or gone meanwhile
            results = Path(process.environ().get("TTM_LAB_RESULTS", ""))
            if process.pid != os.getpid() and results.is_relative_to(folder):
                left[process] = f"process {process.pid} ({process.name()})"
    _, stays = psutil.wait_procs(list(left), timeout=1)  # helpers of libraries end by themselves
    for process in stays:
        with suppress(psutil.Error):
            process.kill()
    _, alive = psutil.wait_procs(stays, timeout=5)
    for process in stays:
        how = "was ended"
        with suppress(psutil.NoSuchProcess):
            if process in alive and process.status() != psutil.STATUS_ZOMBIE:
                how = "cannot be ended and goes on: end it yourself"
        lines.append(f"{left[process]} {how}")
    return lines


def execute(
    notebook: Path,
    output: Path,
    parameters: dict,
    *,
    cell_timeout: float,
    folder: Path | None = None,
) -> None:
    """Execute a notebook by papermill, with a time-out in seconds per cell.

    The kernel works in ``folder``, by default the notebook's own.
    """
    read_notebook(notebook)  # refuses by name what papermill would stumble over
    papermill.execute_notebook(
        _literally(notebook),
        _literally(output),
        parameters=parameters,
        kernel_name=NATIVE_KERNEL_NAME,
        language="python",
        kernel_manager_class=_OwnKernelManager,
        cwd=str(folder or notebook.parent),
        execution_timeout=max(1, round(cell_timeout)),
        start_timeout=120,  # a loaded machine takes its time to start a kernel
        progress_bar=False,
        log_output=True,
    )


def _literally(path: Path) -> str:
    """A path as papermill wants it: it fills in parameters where there are braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def export_html(
    executed: Path,
    page: Path,
    *,
    notebook: Path | None = None,
    place: Path | None = None,
    pages: Collection[str] | None = None,
) -> None:
    """Write an executed notebook as one HTML page that reads well without a kernel.

    Sliders, which cannot move here, become a sentence; progress and warnings on stderr are left
    to the log; formulas become MathML, which browsers draw without a script or a network.

    Links hold from ``place``, the folder that the page is meant for: those to notebooks in
    ``pages`` lead to their pages there, others to where they led from ``notebook``, the file that
    was executed. Above and below the text are links to the pages before and after, and to the
    report. Left out: the page's own folder, all notebooks, ``executed`` itself.
    """
    notebook, place = (notebook or executed).absolute(), (place or page.parent).absolute()
    if pages is None:
        pages = [path.stem for path in notebook.parent.glob("*.ipynb")]
    content = read_notebook(executed)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [_static(o) for o in cell.outputs if o.get("name") != "stderr"]

    def follow(address: str) -> str:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
            return address
        target = notebook.parent / unquote(parts.path)
        if target.parent == notebook.parent and target.stem in pages:
            return parts._replace(path=quote(f"{target.stem}.html")).geturl()
        if target.anchor != place.anchor:  # another drive of Windows
            return parts._replace(scheme="file", path=target.as_uri()[5:]).geturl()
        path = Path(os.path.relpath(target, place)).as_posix()
        return parts._replace(path=quote(path)).geturl()

    @pass_context
    def to_html(context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        return MarkdownWithMath(_Renderer(follow, attachments)).render(source)

    # Not embed_images: it closes <details> early, so that solutions would stand open.
    exporter = HTMLExporter(require_js_url="")
    exporter.register_filter("markdown2html", to_html)
    with warnings.catch_warnings():
        # Our own figures carry their text alternative in HTML beside the plain PNG.
        warnings.filterwarnings("ignore", message="Alternative text is missing")
        body, _ = exporter.from_notebook_node(content, {"metadata": {"name": title_of(executed)}})
    mathjax = "<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->"
    body = re.sub(mathjax, "", body, flags=re.DOTALL)
    before, text, after = re.split("(?<=<main>)|(?=</main>)", body)
    ways = _ways(notebook, pages)
    body = "".join([before, ways, text, ways, after])
    page.write_text(body, encoding="utf-8")


def title_of(path: Path) -> str:
    """A notebook's heading, or its file's name where there is none."""
    with suppress(ValueError):
        cells = read_notebook(path).cells
        if cells and (heading := re.search(r"^# +(.+)$", cells[0].source, re.M)):
            return heading[1].strip()
    return path.stem


def _ways(notebook: Path, pages: Collection[str]) -> str:
    """Links to the report, which lists all pages, and to the pages before and after this one."""
    order = sorted({*pages, notebook.stem})
    at = order.index(notebook.stem)
    ways = [(stem, "←") for stem in order[max(at - 1, 0) : at]]
    ways += [("report", "Contents and report")]
    ways += [(stem, "→") for stem in order[at + 1 : at + 2]]
    links = []
    for stem, words in ways:
        title = "" if stem == "report" else title_of(notebook.with_name(f"{stem}.ipynb"))
        links.append(f'<a href="{quote(stem)}.html">{html.escape(f"{words} {title}".strip())}</a>')
    return f'<nav aria-label="Course">{" · ".join(links)}</nav>'


class _Renderer(IPythonRenderer):
    """Markdown in a page: its formulas as MathML, its links as ``follow`` has them."""

    def __init__(self, follow: Callable[[str], str], attachments: dict):
        super().__init__(escape=False, attachments=attachments)
        self.follow = follow

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self.follow(url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().image(text, self.follow(url), title)

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, block=True)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", block=True)


def mathml(latex: str, *, block: bool = False) -> str:
    """A formula as MathML, with the spaces that TeX sets and a browser would not.

    Those are the thin ones around a named function, and none about a slash or behind a sign. What
    is no LaTeX stands there as it was written, marked as an error.
    """
    display = "block" if block else "inline"
    try:
        formula = ElementTree.fromstring(latex2mathml.converter.convert(latex, display=display))
    except Exception:  # the converter raises whatever it stumbles over
        return f"<math><merror><mtext>{html.escape(latex)}</mtext></merror></math>"
    for row in list(formula.iter(f"{{{MATHML}}}mrow")):
        spaced, before, before_named = [], None, False
        for part in row:
            named = (name := _innermost(part)).tag.endswith("}mi") and len(name.text or "") > 1
            if part.text == "/":
                part.attrib |= {"lspace": "0", "rspace": "0"}
            if before is not None:
                signed = part.text in ("−", "+") and before.tag.endswith("}mo")
                if signed and before.text not in (")", "]", "}", "|"):
                    part.set("form", "prefix")
                after_name = before_named and not part.tag.endswith("}mo")
                if after_name or (named and not before.tag.endswith("}mo")):
                    spaced.append(ElementTree.Element(f"{{{MATHML}}}mspace", width="0.167em"))
            spaced.append(part)
            before, before_named = part, named
        row[:] = spaced
    return ElementTree.tostring(formula, encoding="unicode")


def _innermost(part: ElementTree.Element) -> ElementTree.Element:
    """What a sub- or superscript stands at."""
    scripts = ("msub", "msup", "msubsup", "munder", "mover", "munderover")
    while part.tag.rpartition("}")[2] in scripts and len(part):
        part = part[0]
    return part


def _static(output):
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        if not data.get("text/plain", "").startswith("VBox("):  # a progress bar, not an explorer
            return nbformat.v4.new_output("display_data", {})
        return nbformat.v4.new_output("display_data", {"text/html": WIDGET_NOTE})
    if "text/latex" in data and "text/html" not in data:  # what sympy shows
        latex = data["text/latex"].strip().strip("$").removeprefix("\\displaystyle")
        data["text/html"] = mathml(latex, block=True)
    return output


def _end_with(batch: int, folder: Path) -> None:
    """End this process when the batch that started it is gone, and all that works in ``folder``."""

    def watch() -> None:
        pause = threading.Event()
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(batch)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                pause.wait(1.0)
        end_left_behind(folder)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: Path) -> int:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    _end_with(job["batch"], folder)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # the log, in any locale
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    notebook = Path(job["notebook"])
    output, error = folder / notebook.name, None
    try:
        execute(notebook, output, job["parameters"], cell_timeout=job["cell_timeout"])
    except CellTimeoutError:
        error = {"status": "timed out", "error": f"one cell took over {job['cell_timeout']:g} s"}
    except PapermillExecutionError as raised:
        error = {"status": "failed", "error": f"{raised.ename}: {raised.evalue}"}
        print(f"\nCell {raised.exec_count} failed:\n" + "\n".join(raised.traceback))
    except Exception as raised:  # a kernel that died or did not start: the log holds the details
        logging.exception("the notebook did not run to its end")
        error = {"status": "failed", "error": f"{type(raised).__name__}: {raised}"}
    if error:
        (folder / "error.json").write_text(json.dumps(error), encoding="utf-8")
    if output.exists():
        place = {"place": Path(job["place"]), "pages": job["pages"]}
        export_html(output, output.with_suffix(".html"), notebook=notebook, **place)
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
