"""The course's notebooks: how they are committed, and that they run in every profile."""

import ast
import base64
import os
import re
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from unittest import mock

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from PIL import Image

from ttm_lab.course import plans
from ttm_lab.course.execute import execute
from ttm_lab.data import load_dataset
from ttm_lab.files import find_root
from ttm_lab.models import create_model

NOTEBOOKS = sorted((find_root(__file__) / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if not path.stem.startswith("00")]
# What the longer profiles would download; the tests hand over pictures of their own instead.
STAND_INS = {"07": {"data_name": "folder"}, "08": {"teacher_weights": "train", "size": 32}}
TRAPS = re.compile(r"\b(interact|interact_manual|interactive|interactive_output|Output)\(")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem[:2])


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_course_is_here():
    assert NOTEBOOKS


@every_notebook
def test_committed_without_traces_of_a_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert "papermill" not in notebook.metadata
    assert not tagged(notebook, "injected-parameters")
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.id
    for cell in code_cells(notebook):
        assert cell.outputs == [], cell.id
        assert cell.execution_count is None, cell.id


@every_notebook
def test_form(path):
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell_id in ids:
        random = re.fullmatch(r"[0-9a-f]{8}(-.*)?", cell_id)
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell_id), cell_id
        assert not random, f"{cell_id} looks like a random id"
    assert notebook.cells[0].source.startswith("# ")
    for cell in code_cells(notebook):
        assert cell.source.count("\n") + 1 <= 15, f"{cell.id} is too long"
        assert not TRAPS.search(cell.source), f"{cell.id} may hang in a batch"


@every_notebook
def test_one_parameters_cell_with_literals(path):
    (cell,) = tagged(read(path), "parameters")
    assert cell.source.splitlines()[0] == 'profile = "quick"'
    values = {}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign), "only assignments"
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    assert values["max_steps"] is None


@every_lesson
def test_exercises_have_stub_check_and_solution(path):
    notebook = read(path)
    stubs = tagged(notebook, "exercise")
    assert len(stubs) >= 3
    assert len(stubs) == len(tagged(notebook, "check")) == len(tagged(notebook, "solution"))
    for number, stub in enumerate(stubs, start=1):
        at = notebook.cells.index(stub)
        task, _, check, answer = notebook.cells[at - 1 : at + 3]
        assert task.cell_type == "markdown"
        assert re.search(rf"^### Exercise {number}\. ", task.source, re.M), stub.id
        assert "raise Unsolved(" in stub.source
        assert check.metadata.tags == ["check"]
        assert check.source.startswith(f"@check\ndef exercise_{number}():")
        assert answer.metadata.tags == ["solution"]
        assert answer.source.startswith("<details><summary>Solution</summary>\n\n```python\n")
        assert answer.source.rstrip().endswith("</details>")


@every_lesson
def test_opens_and_closes_like_every_lesson(path):
    notebook = read(path)
    opening, closing = notebook.cells[0].source, notebook.cells[-1].source
    assert opening.startswith(f"# {int(path.stem[:2])}. ")
    for words in ("After this notebook you can", "You need"):
        assert words in opening
    assert "What we showed, what we did not" in closing
    assert any("**Predict.**" in cell.source for cell in notebook.cells)


@pytest.mark.parametrize("number", ["01", "02", "03", "04"])
def test_sliders(number):
    for path in NOTEBOOKS:
        if path.stem.startswith(number):
            sources = [cell.source for cell in code_cells(read(path))]
            assert any("explore." in source for source in sources)


def test_the_price_of_notebook_7_leaves_out_the_first_slow_step():
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith("07")]
    (cell,) = [cell for cell in read(path).cells if cell.id == "cost-speed"]
    clock = [0.0]

    def step(*_):
        clock[0] += 1.0 if clock[0] else 100.0

    here = {"torch": torch, "np": np, "islice": islice, "create_model": create_model}
    here |= {"data": load_dataset("digits"), "device": "cpu", "augmentation": "none"}
    here |= {"step": step, "perf_counter": lambda: clock[0]}
    exec(cell.source, here)
    for batches in (1, 2, 3):
        clock[0] = 0.0
        assert here["pictures_a_second"]("cnn_small", 10, batches=batches) == 10


def test_notebook_9_shows_the_plans_test_part_where_it_is(tmp_path, capsys):
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith("09")]
    cells = {cell.id: cell.source for cell in code_cells(read(path))}
    here, shown = {"display": lambda table: shown.append(table.data)}, []
    setup = ("parameters", "setup", "setup-course", "list-accuracy", "smallest")
    for name in (*setup, "verdicts-by-rule", "contrast-table", "judge", "judge-show"):
        exec(cells[name], here)
    capsys.readouterr()
    parts = ("test-part", "test-part-table", "test-part-square", "test-part-pictures")

    def run_parts(file):
        here["plan_table"] = str(file)
        with mock.patch.object(here["figures"], "show", lambda ax, alt: shown.append(ax)):
            for name in parts:
                exec(cells[name], here)
        return capsys.readouterr().out

    assert "has no two whole seeds yet" in run_parts(tmp_path / "absent.csv")
    random, labels, rows = np.random.default_rng(0), [a.name for a in plans.arms()], []
    for seed, label in [(s, a) for s in range(3) for a in labels][:-1]:  # one run is missing
        correct = random.random(40) < 0.5 + labels.index(label) / 20
        row = {"pair": "resnet32:resnet8", "arm": label, "seed": seed, "hardware": "a machine"}
        row |= {"correct": base64.b64encode(np.packbits(correct)).decode(), "pictures": 40}
        numbers = ["nll", "brier", "ece", "entropy", "fitted_temperature"]
        row |= dict.fromkeys(numbers + [f"rescaled_{name}" for name in numbers], 0.5)
        rows.append(row | {"accuracy": correct.mean()})
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "rows.csv", index=False)
    table[table["seed"] < 1].to_csv(tmp_path / "one_seed.csv", index=False)
    assert "has no two whole seeds yet" in run_parts(tmp_path / "one_seed.csv")
    assert not shown
    said_here = run_parts(tmp_path / "rows.csv")
    assert "resnet32:resnet8, 2 seeds, a machine" in said_here
    whole = table[table["seed"] < 2].pivot(index="seed", columns="arm", values="accuracy")
    assert shown[0].loc["KD x 10", "accuracy"] == pytest.approx(whole["KD, wd 5e-5"].mean())
    gaps = here["on_test"].set_index("name")["difference"]
    wanted = 100 * (whole["TTM, wd 5e-5"] - whole["KD, wd 5e-4"]).mean()
    assert gaps["TTM minus KD, as published"] == pytest.approx(wanted)
    assert len(gaps) == 6
    first = [np.unpackbits(np.frombuffer(base64.b64decode(r["correct"]), np.uint8)) for r in rows]
    kd, ttm = (first[labels.index(name)] for name in ("KD, wd 5e-4", "TTM, wd 5e-5"))
    assert f"differ in {np.mean(kd != ttm):.1%} of 40 pictures" in said_here


# Executed notebooks, their trainings cut short


def draw_pictures(root: Path) -> Path:
    """Four classes of 32x32 pictures, one folder a class: enough for any loader."""
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 5)):
        for name in ("bee", "cup", "oak", "van"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return root


def run(path: Path, folder: Path, profile: str, notebook=None) -> Path:
    """Execute a notebook, or a changed copy of it, in the place of the original."""
    source = path
    if notebook is not None:
        source = folder / "changed.ipynb"
        nbformat.write(notebook, source)
    variables = {
        "TQDM_DISABLE": "1",
        "TTM_LAB_BATCH": "1",
        "TTM_LAB_DATA": str(folder / "downloads"),
        "TTM_LAB_NOTEBOOK": path.stem,
        "TTM_LAB_RESULTS": str(folder / "results"),
        "TTM_LAB_RUNS": str(folder / "runs"),
    }
    parameters = {"profile": profile, "max_steps": 2}
    if profile != "quick" and path.stem[:2] in STAND_INS:
        pictures = draw_pictures(folder / "pictures")
        parameters |= {"root": str(pictures), **STAND_INS[path.stem[:2]]}
    unknown = set(parameters) - set(papermill.inspect_notebook(str(source)))
    assert not unknown, f"papermill would only warn of {unknown} and run the defaults"
    with mock.patch.dict(os.environ, variables):
        # As in JupyterLab, a figure left open is shown: then it lacks a text alternative.
        os.environ.pop("MPLBACKEND", None)
        output = folder / path.name
        execute(source, output, parameters, cell_timeout=240, folder=path.parent)
    return output


@every_notebook
def test_quick_run_tells_stubs_from_solutions_and_describes_its_pictures(path, tmp_path):
    executed = run(path, tmp_path, "quick", with_solutions(read(path)))
    notebook = read(executed)
    checks = tagged(notebook, "check")
    assert len(checks) == 2 * len(tagged(read(path), "check"))
    for number, (stub, solved) in enumerate(zip(checks[::2], checks[1::2], strict=True), start=1):
        assert f"Exercise {number}: not solved yet." in said(stub)
        assert f"Exercise {number}: correct." in said(solved)
    assert_pictures_are_described(notebook)


def with_solutions(notebook):
    """The notebook, each check of a stub followed by the published solution and its check."""
    solutions = iter(tagged(notebook, "solution"))
    cells, notebook.cells = notebook.cells, []
    for cell in cells:
        notebook.cells.append(cell)
        if "check" in cell.metadata.get("tags", []):
            source = re.search(r"```python\n(.*?)\n```", next(solutions).source, re.S).group(1)
            notebook.cells.append(nbformat.v4.new_code_cell(source))
            again = nbformat.v4.new_code_cell(cell.source, metadata=cell.metadata)
            notebook.cells.append(again)
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["standard", "paper"])
@every_notebook
def test_runs_in_the_longer_profiles(path, profile, tmp_path):
    notebook = read(run(path, tmp_path, profile))
    assert any(f'profile = "{profile}"' in cell.source for cell in code_cells(notebook))


def said(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


class Page(HTMLParser):
    """Text alternatives of the pictures."""

    def __init__(self, text):
        super().__init__()
        self.alternatives = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.alternatives.append(dict(attributes).get("alt", ""))


def pictures(notebook):
    """The data of every output that holds a picture."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            if "<img" in data.get("text/html", "") or any(k.startswith("image/") for k in data):
                yield data


def assert_pictures_are_described(notebook):
    for data in pictures(notebook):
        alternatives = Page(data.get("text/html", "")).alternatives
        assert alternatives, "a bare picture: use figures.show(figure, alt=...)"
        assert all(len(text) >= 20 for text in alternatives), alternatives
    states = notebook.metadata.get("widgets", {}).values()
    for model in [model for state in states for model in state["state"].values()]:
        assert model["model_name"] != "ImageModel"
        alternatives = Page(str(model["state"].get("value", ""))).alternatives
        assert all(len(text) >= 20 for text in alternatives), alternatives
