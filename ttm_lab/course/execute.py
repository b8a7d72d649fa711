"""One notebook in a process of its own: papermill, then an HTML page.

``start`` is the batch's side. The process reads ``FOLDER/job.json`` and leaves in the folder the
executed notebook, its HTML page, ``results/`` and, if it failed, ``error.json``. What counts is
the exit status: a killed kernel leaves a notebook that looks complete.
"""

import ast
import html
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import latex2mathml.converter
import nbformat
import papermill
import psutil
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jinja2 import DictLoader, pass_context
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets import default

SECONDS_UNWRITTEN = 30  # what a killed process may lose of the notebook that it runs
MATHML = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", MATHML)

LONG = 6  # lines of code from which a cell that draws a figure is folded in pages
PAGE_STYLE = """<style>
details.folded > summary { cursor: pointer; font: 0.85em sans-serif; opacity: 0.8; }
.jp-RenderedText pre { white-space: pre !important; word-break: normal !important; }
.jp-OutputArea-output { overflow-x: auto; }
@media (max-width: 46em) { .jp-OutputArea-output img.wide { max-width: 40em !important; } }
@media print {
  pre, .jp-RenderedText pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
  .jp-OutputArea-output img.wide { max-width: 100% !important; }
}
</style>"""
TEMPLATE = f"""{{%- extends "lab/index.html.j2" -%}}
{{%- block html_head_css -%}}{{{{ super() }}}}{PAGE_STYLE}{{%- endblock html_head_css -%}}
{{%- block input_group -%}}
{{%- if cell.metadata.folded -%}}
<details class="folded"><summary>Show the code</summary>{{{{ super() }}}}</details>
{{%- else -%}}{{{{ super() }}}}{{%- endif -%}}
{{%- endblock input_group -%}}"""


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


class _SparingEngine(NBClientEngine):
    """Writes the notebook at its end and now and then, not before and after each cell.

    A notebook of many cells and pictures would be checked and written as a whole some 200 times,
    which takes longer than its imports.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        write, written = nb_man.save, time.monotonic()

        def save(**_):
            nonlocal written
            if time.monotonic() - written > SECONDS_UNWRITTEN:
                write()
                written = time.monotonic()

        nb_man.save = save
        try:
            return super().execute_managed_notebook(nb_man, kernel_name, **options)
        finally:
            nb_man.save = write  # papermill's last word, however the notebook ended


papermill_engines.register("sparing", _SparingEngine)


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
) -> subprocess.Popen:
    """Start the process that runs ``notebook`` with everything it makes going to ``folder``."""
    results = folder / "results"
    results.mkdir(parents=True)
    job = {
        "notebook": str(notebook),
        "parameters": parameters,
        "cell_timeout": cell_timeout,
        "batch": os.getpid(),
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
        "TTM_LAB_PAGES": "1",  # explorers bring frames that move without a kernel
        "TTM_LAB_RESULTS": str(results),
    }
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ttm_lab.course.execute", str(folder)],
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
        engine_name="sparing",
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


def export_html(executed: Path, page: Path) -> None:
    """Write an executed notebook as one HTML page that reads well without a kernel.

    Explorers move by frames drawn ahead; progress and warnings on stderr are left to the log;
    formulas become MathML, which browsers draw without a script or a network.
    """
    notebook = read_notebook(executed)
    notebook.metadata.pop("widgets", None)
    heading = re.search(r"^# +(.+)$", notebook.cells[0].source if notebook.cells else "", re.M)
    title = heading.group(1) if heading else executed.stem
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata["folded"] = is_plumbing(cell)
            cell.outputs = [still for o in cell.outputs if (still := _static(o))]
    # Not embed_images: it closes <details> early, so that solutions would stand open.
    exporter = HTMLExporter(
        require_js_url="",
        filters={"markdown2html": _markdown},
        extra_loaders=[DictLoader({"folding.html.j2": TEMPLATE})],
        template_file="folding.html.j2",
    )
    with warnings.catch_warnings():
        # Our own figures carry their text alternative in HTML beside the plain PNG.
        warnings.filterwarnings("ignore", message="Alternative text is missing")
        body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    mathjax = "<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->"
    body = re.sub(mathjax, "", body, flags=re.DOTALL)
    page.write_text(body, encoding="utf-8")


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


@pass_context
def _markdown(context, source: str) -> str:
    return markdown_html(source, context.get("cell", {}).get("attachments", {}))


def markdown_html(source: str, attachments: dict | None = None) -> str:
    """A Markdown text as HTML. Where a formula is, and where none, its parser knows."""
    renderer = _Renderer(escape=False, attachments=attachments or {})
    return MarkdownWithMath(renderer=renderer).render(source)


class _Renderer(IPythonRenderer):
    """Draws formulas as MathML."""

    def inline_math(self, body: str) -> str:
        return _drawn(body)

    def block_math(self, body: str) -> str:
        return _drawn(body, block=True)

    def latex_environment(self, name: str, body: str) -> str:
        return _drawn(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)


def _drawn(latex: str, *, block: bool = False) -> str:
    """A formula as MathML, or as it was typed where it cannot be read."""
    try:
        return mathml(latex, block=block)
    except Exception:  # latex2mathml raises what comes: IndexError, StopIteration, its own
        return f"<code>{html.escape(latex)}</code>"


def mathml(latex: str, *, block: bool = False) -> str:
    """A formula as MathML, with the spaces that TeX sets and a browser would not.

    Those are the thin ones around a named function, and none about a slash or behind a sign.
    """
    display = "block" if block else "inline"
    formula = ElementTree.fromstring(latex2mathml.converter.convert(latex, display=display))
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
    """What a page can show of an output: None for progress bars and messages to the log."""
    data = output.get("data", {})
    # A live widget becomes its HTML: an explorer's frames. A progress bar has none.
    live = data.pop("application/vnd.jupyter.widget-view+json", None)
    if output.get("name") == "stderr" or (live and "text/html" not in data):
        return None
    if "text/latex" in data and "text/html" not in data:  # what sympy shows
        latex = data["text/latex"].strip().strip("$").removeprefix("\\displaystyle")
        data["text/html"] = _drawn(latex, block=True)
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
        export_html(output, output.with_suffix(".html"))
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
