"""One notebook in a process of its own."""

import os
import sys
from functools import partial

import nbformat
import pytest

from ttm_lab.course import execute


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


# Of each of a kernel's sockets, whether it is a file; and where they lie.
SOCKETS = """
import json
from pathlib import Path
from ipykernel.connect import get_connection_info
told = json.loads(get_connection_info())
print({Path(f"{told['ip']}-{told[k]}").is_socket() for k in told if k.endswith("_port")})
print(Path(told["ip"]).parent)
"""


@pytest.mark.skipif(os.name != "posix", reason="sockets that are files are used on POSIX systems")
def test_a_kernel_takes_no_port_that_another_process_may_have_taken(tmp_path, monkeypatch):
    """Also where Jupyter's own folder has a longer name than a socket may have."""
    folder = tmp_path / ("deep" * 25)
    folder.mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOCKETS)])
    nbformat.write(notebook, folder / "n.ipynb")
    execute.execute(folder / "n.ipynb", folder / "out.ipynb", {}, cell_timeout=60)
    (cell,) = nbformat.read(folder / "out.ipynb", as_version=4).cells
    are_files, place = cell.outputs[0].text.splitlines()
    assert are_files == "{True}"
    assert not os.path.exists(place)  # any more


@pytest.mark.parametrize("failures", [1, 2])
def test_a_kernel_that_does_not_start_is_started_once_more(tmp_path, monkeypatch, failures):
    get, started = execute.OwnKernel.get_kernel_spec, []

    def get_kernel_spec(self, name):
        spec = get(self, name)
        started.append(name)
        if len(started) <= failures:
            spec.argv = [sys.executable, "-c", "raise SystemExit(1)"]
        return spec

    monkeypatch.setattr(execute.OwnKernel, "get_kernel_spec", get_kernel_spec)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    run = partial(execute.execute, tmp_path / "n.ipynb", tmp_path / "out.ipynb", {})
    if failures > 1:
        with pytest.raises(RuntimeError, match="died before"):
            run(cell_timeout=60)
        return
    run(cell_timeout=60)
    (cell,) = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert cell.outputs[0].data["text/plain"] == "2"
