"""One notebook in a process of its own."""

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
