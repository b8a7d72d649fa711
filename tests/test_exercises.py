"""Exercises: their checks take every right answer and refuse every wrong one.

The stubs and checks come from a copy for students, the solutions from the course.
"""

import ast
import math
import re
from functools import cache

import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from exercise_answers import RIGHT, WRONG

from ttm_lab.course.exercises import assert_close
from ttm_lab.course.handout import hand_out
from ttm_lab.data import load_dataset
from ttm_lab.files import find_root
from ttm_lab.training import Settings, train_teacher

ROOT = find_root(__file__)
NOTEBOOKS = {path.stem[:2]: path for path in (ROOT / "notebooks").glob("*.ipynb")}


@cache
def cells(path):
    return nbformat.read(path, as_version=4).cells


def tagged(path, tag):
    return [cell.source for cell in cells(path) if tag in cell.metadata.get("tags", [])]


EXERCISES = [
    (number, k + 1)
    for number in sorted(NOTEBOOKS)
    for k in range(len(tagged(NOTEBOOKS[number], "check")))
]


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    written = hand_out(tmp_path_factory.mktemp("handout"), root=ROOT)
    return {path.stem[:2]: path for path in written}


@pytest.fixture(scope="module")
def digits():
    data = load_dataset("digits", seed=0)
    settings = Settings("cnn_small", max_steps=5)
    return data, train_teacher(data, settings, seed=0, progress=False)


def results():
    """Stand-ins for what the notebooks measure before their exercises ask for it."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 400)
    logits = random.normal(0, 2, (400, 10)) + 3 * np.eye(10)[labels]
    seeds, accuracy = [0, 0, 1, 1, 2, 2], [0.70, 0.71, 0.72, 0.71, 0.69, 0.73]
    return {
        "train_logits": 4 * torch.from_numpy(logits),
        "pooled": lambda family, k: (logits.astype(np.float32), labels),
        "after": pd.DataFrame({"method": ["KD", "TTM"], "tau": [0.8, 0.3]}),
        "example": ("resnet56", "resnet20"),
        "measured": pd.DataFrame(
            {"seed": seeds, "method": ["TTM", "WTTM"] * 3, "accuracy": accuracy}
        ),
        "real": None,
        "TRAINING_PICTURES": 1_281_167,
    }


@pytest.fixture
def answer(copies, digits):
    """Put an answer into a student's copy and run what its check needs of the notebook."""
    before = torch.get_default_dtype()

    def run(number, exercise, source=""):
        stub, check = (tagged(copies[number], tag)[exercise - 1] for tag in ("exercise", "check"))
        names = {"np": np, "math": math, "torch": torch, "scipy": scipy}
        if number == "03":
            torch.set_default_dtype(torch.float64)  # as the notebook does
        exec(needed(copies[number], check), names)
        data, teacher = digits
        names |= results() | {"data": data, "teacher": teacher}
        for text in (stub, source, check):
            exec(text, names)

    yield run
    torch.set_default_dtype(before)


@cache
def needed(path, check):
    """The notebook's imports and those of its functions that the check names."""
    names = {node.id for node in ast.walk(ast.parse(check)) if isinstance(node, ast.Name)}

    def is_needed(node):
        if isinstance(node, ast.FunctionDef):
            return node.name in names
        return isinstance(node, ast.Import | ast.ImportFrom)

    sources = [c.source for c in cells(path) if c.cell_type == "code"]
    found = [node for text in sources for node in ast.parse(text).body if is_needed(node)]
    return compile(ast.Module(found, []), path.name, "exec")


def each(table):
    return [
        pytest.param(*place, source, id=f"{place[0]}-{place[1]}-{name}")
        for place, answers in table.items()
        for name, source in answers.items()
    ]


@pytest.mark.parametrize(("number", "exercise"), EXERCISES)
def test_three_answers_of_each_kind(number, exercise):
    assert len(RIGHT[number, exercise]) >= 3
    assert len(WRONG[number, exercise]) >= 3


def test_no_answers_without_an_exercise():
    assert set(RIGHT) == set(WRONG) == set(EXERCISES)


@pytest.mark.parametrize(("number", "exercise"), EXERCISES)
def test_unsolved_and_published_solution(answer, capsys, number, exercise):
    answer(number, exercise)
    assert f"Exercise {exercise}: not solved yet." in capsys.readouterr().out
    solution = tagged(NOTEBOOKS[number], "solution")[exercise - 1]
    answer(number, exercise, re.search(r"```python\n(.*?)\n```", solution, re.S)[1])
    assert capsys.readouterr().out.endswith(f"Exercise {exercise}: correct.\n")


@pytest.mark.parametrize(("number", "exercise", "source"), each(RIGHT))
def test_right_answers_pass(answer, capsys, number, exercise, source):
    answer(number, exercise, source)
    assert capsys.readouterr().out.endswith(f"Exercise {exercise}: correct.\n")


@pytest.mark.parametrize(("number", "exercise", "source"), each(WRONG))
def test_wrong_answers_are_refused_with_a_message(answer, number, exercise, source):
    with pytest.raises(AssertionError) as refusal:
        answer(number, exercise, source)
    message = str(refusal.value)
    assert len(message) > 10
    for yours, wanted in re.findall(r"yours (\S+), wanted (\S+)", message):
        assert yours.rstrip(",;") != wanted.rstrip(",;")


@pytest.mark.parametrize(
    "found",
    [
        0.5,
        [0.5],
        np.float32(0.5),
        np.array([[0.5]]),
        torch.tensor(0.5, requires_grad=True),
        0.50004,
    ],
)
def test_a_number_counts_whatever_its_type(found):
    assert_close(found, 0.5, "a half")


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (1.4622999, 1.4621, "it: yours 1.4622999, wanted 1.4621"),
        (np.nan, 0.5, "it: yours nan, wanted 0.5"),
        (None, 0.5, "it: your function returns nothing (None)"),
        ("half", 0.5, "it: 'half' cannot be read as numbers"),
        ([1.0, 2.0, 4.0], [1, 2, 3], "it: at [2] yours 4, wanted 3"),
        (torch.ones(3, 1), [1, 1, 1], "it: your shape (3, 1), wanted (3,)"),
        ([1.0, 1.0], 1.0, "it: your shape (2,), wanted ()"),
    ],
)
def test_a_wrong_number_is_shown_beside_the_right_one(found, wanted, message):
    with pytest.raises(AssertionError) as refusal:
        assert_close(found, wanted, "it")
    assert str(refusal.value) == message
