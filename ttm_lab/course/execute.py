"""One notebook in a process of its own, by papermill.

``start`` is the batch's side. The process reads ``FOLDER/job.json`` and leaves in the folder the
executed notebook, ``results/`` and, if it failed, ``error.json``. What counts is the exit status:
a killed kernel leaves a notebook that looks complete.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import nbformat
import papermill
import psutil
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets import default
from traitlets.config import Config

SECONDS_UNWRITTEN = 30  # what a killed process may lose of the notebook that it runs


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
    begun = []
    run = partial(
        papermill.execute_notebook,
        _literally(notebook),
        _literally(output),
        parameters=parameters,
        engine_name="sparing",
        kernel_name=NATIVE_KERNEL_NAME,
        language="python",
        kernel_manager_class=_OwnKernelManager,
        cwd=str(folder or notebook.parent),
        execution_timeout=max(1, round(cell_timeout)),
        start_timeout=90,  # a loaded machine takes its time to start a kernel
        on_notebook_start=lambda notebook: begun.append(notebook),
        progress_bar=False,
        log_output=True,
    )
    with tempfile.TemporaryDirectory(prefix="kernel") as sockets:
        config = _own_sockets(Path(sockets))
        try:
            run(config=config)
        except RuntimeError as error:
            # Rarely a kernel does not answer, say on a machine that stood still. As no cell has
            # run, nothing is lost.
            if begun:
                raise
            logging.warning("%s: it is started once more", error)
            run(config=config)


def _own_sockets(folder: Path) -> Config:
    """Lets a kernel be talked to through files in ``folder``, where the system has such sockets.

    Free ports are chosen before the kernel starts and takes them. Meanwhile another process may
    take one, such as a kernel beside this one: then the kernel ends, or runs on and is never heard.
    """
    fits = len(os.fsencode(folder)) < 80  # the path of such a socket has some 100 bytes at most
    ours = {"transport": "ipc", "ip": str(folder / "socket")}
    return Config(KernelManager=ours if fits and os.name == "posix" else {})


def _literally(path: Path) -> str:
    """A path as papermill wants it: it fills in parameters where there are braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


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
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
