"""Copies for students: no solution is in them, all else is as it was, and they run."""

import json
import re

import nbformat
import pytest

from ttm_lab.course.batch import Refused
from ttm_lab.course.cli import main
from ttm_lab.course.exercises import Unsolved
from ttm_lab.course.handout import hand_out
from ttm_lab.files import find_root

ROOT = find_root(__file__)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELLS = {
    "title": ("markdown", "# A title\n", []),
    "task": ("markdown", "### Exercise 1. Add", []),
    "stub": ("code", 'def add(a, b):\n    raise Unsolved("think")', ["exercise"]),
    "check": ("code", "assert callable(add)", ["check"]),
    "answer": ("markdown", "return a + b", ["solution"]),
}


@pytest.fixture
def course(tmp_path):
    """A checkout with one small notebook in it."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "ttm_lab").mkdir()
    write(tmp_path)
    return tmp_path


def write(root, **changed):
    notebook = nbformat.v4.new_notebook()
    for name, (kind, source, tags) in (CELLS | changed).items():
        make = getattr(nbformat.v4, f"new_{kind}_cell")
        notebook.cells.append(make(source, id=name, metadata={"tags": tags}))
    nbformat.write(notebook, root / "notebooks" / "01_sums.ipynb")


def tags(cell):
    return cell["metadata"].get("tags", [])


@pytest.mark.parametrize("original", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_only_solutions_are_left_out(original, tmp_path):
    (copy,) = hand_out(tmp_path, only=[original.stem], root=ROOT)
    nbformat.validate(nbformat.read(copy, as_version=4))
    before = json.loads(original.read_text(encoding="utf-8"))
    after = json.loads(copy.read_text(encoding="utf-8"))
    solutions = [cell for cell in before["cells"] if "solution" in tags(cell)]
    before["cells"] = [cell for cell in before["cells"] if cell not in solutions]
    assert after == before

    text = "\n".join("".join(cell["source"]) for cell in after["cells"])
    assert "Solution</summary>" not in text
    for solution in solutions:
        code = re.search(r"```python\n(.*?)\n```", "".join(solution["source"]), re.S).group(1)
        assert code not in text


def test_stubs_of_a_copy_wait_inside_their_functions(tmp_path):
    (copy,) = hand_out(tmp_path, only=["04"], root=ROOT)
    stubs = [c for c in nbformat.read(copy, as_version=4).cells if "exercise" in tags(c)]
    assert len(stubs) == 4
    for stub in stubs:
        names = {"Unsolved": Unsolved}
        exec(stub.source, names)
        for name in re.findall(r"^def (\w+)", stub.source, re.M):
            with pytest.raises(Unsolved):
                names[name](*[None] * names[name].__code__.co_argcount)


def test_a_lecturers_outputs_stay_at_home(course, tmp_path):
    path = course / "notebooks" / "01_sums.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].execution_count = 7
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="the answer is 42")]
    nbformat.write(notebook, path)
    (copy,) = hand_out(tmp_path / "out", root=course)
    assert "42" not in copy.read_text(encoding="utf-8")
    assert nbformat.read(copy, as_version=4).cells[3].execution_count is None


def test_command_line(course, tmp_path, capsys):
    out = tmp_path / "for students"
    words = ["handout", "--output", str(out), "--root", str(course), "--only", "1"]
    assert main(words) == 0
    assert capsys.readouterr().out.split("\n")[0] == str(out / "01_sums.ipynb")
    (out / "01_sums.ipynb").write_text("my answers")

    assert main(words) == 2
    message = capsys.readouterr().err
    assert "01_sums.ipynb already" in message
    assert "--overwrite" in message
    assert (out / "01_sums.ipynb").read_text() == "my answers"

    assert main([*words, "--overwrite"]) == 0
    nbformat.validate(nbformat.read(out / "01_sums.ipynb", as_version=4))


@pytest.mark.parametrize(
    ("output", "changed", "words", "message"),
    [
        ("notebooks", {}, ["--overwrite"], "holds the notebooks themselves"),
        ("out", {"stub": ("code", "def add(a, b):\n    return a + b", ["exercise"])}, [], "stub"),
        ("out", {}, ["--only", "9"], "no notebook is called '9'"),
        ("out", {}, ["--only", ","], "--only names no notebook"),
        ("notebooks/01_sums.ipynb/in", {}, [], "cannot be written to"),
    ],
)
def test_refuses_before_anything_is_written(course, capsys, output, changed, words, message):
    write(course, **changed)
    before = (course / "notebooks" / "01_sums.ipynb").read_bytes()
    words = ["handout", "--root", str(course), "--output", str(course / output), *words]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert (course / "notebooks" / "01_sums.ipynb").read_bytes() == before
    assert not (course / "out").exists()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", '{"cells": 3}', '{"cells": [{}]}', "<<<<<<< HEAD\n{}", "[" * 100_000],
)
def test_a_file_that_is_no_notebook_is_named(course, tmp_path, capsys, content):
    (course / "notebooks" / "02_odd.ipynb").write_text(content)
    assert main(["handout", "--root", str(course), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "02_odd.ipynb" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_notebooks_behind_a_link_are_not_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "ttm_lab").mkdir(parents=True)
    (tmp_path / "root" / "notebooks").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "root")
    before = (tmp_path / "elsewhere" / "01_sums.ipynb").read_bytes()
    with pytest.raises(Refused, match="holds the notebooks themselves"):
        hand_out(tmp_path / "elsewhere", root=tmp_path / "root", overwrite=True)
    assert (tmp_path / "elsewhere" / "01_sums.ipynb").read_bytes() == before
