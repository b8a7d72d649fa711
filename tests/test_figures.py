"""Figures carry their text; widgets redraw what a slider says."""

import base64
import builtins
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image

from ttm_lab.course import evidence, figures
from ttm_lab.course.exercises import Unsolved, check
from ttm_lab.course.figures import notebook0, notebook7, notebook9
from ttm_lab.course.outputs import Outputs

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def shell():
    """What display() needs; afterwards the process is no IPython for other tests' progress."""
    before = set(vars(builtins))
    InteractiveShell.instance()
    yield
    InteractiveShell.clear_instance()
    for name in set(vars(builtins)) - before:
        delattr(builtins, name)


def test_a_shown_figure_has_its_text_in_html_beside_the_picture():
    figure, ax = figures.plt.subplots()
    ax.plot([1, 2])
    words = 'Five bars "fall" & the rest stays < one'
    with capture_output() as captured:
        figures.show(ax, alt=words)
    data = captured.outputs[0].data
    assert base64.b64decode(data["image/png"]).startswith(PNG)
    assert 'alt="Five bars &quot;fall&quot; &amp; the rest stays &lt; one"' in data["text/html"]
    assert not figures.plt.fignum_exists(figure.number)


def test_a_figure_without_a_real_text_is_refused():
    with pytest.raises(ValueError, match="too short"):
        figures.show(figures.plt.figure(), alt="a figure")
    figures.plt.close("all")


def test_corners_of_the_triangle_are_one_apart():
    corners = figures.simplex_xy(np.eye(3))
    sides = [np.linalg.norm(corners[i] - corners[j]) for i, j in ((0, 1), (1, 2), (2, 0))]
    assert np.allclose(sides, 1)
    assert np.allclose(figures.simplex_xy([1 / 3] * 3), corners.mean(axis=0))
    with pytest.raises(ValueError, match="three classes"):
        figures.simplex_xy([0.5, 0.5])


def test_methods_differ_in_more_than_colour():
    for key in ("color", "marker"):
        styles = [style[key] for style in figures.METHOD_STYLE.values()]
        assert len(set(styles)) == len(styles)
    assert figures.method_style("TTM, tuned") == figures.METHOD_STYLE["TTM"]


def test_the_plan_of_distillation_shows_the_probabilities_it_is_given():
    given = np.random.default_rng(0).dirichlet(np.ones(10), size=4)  # p, p_T, q, q_T
    figure = notebook0.whole_idea(np.zeros((1, 8, 8)), *given, label="9")
    shown = [[bar.get_height() for bar in ax.patches] for ax in figure.axes if ax.get_title()]
    assert sorted(shown) == sorted(given.tolist())
    figures.plt.close(figure)


def test_only_right_answers_stand_in_a_box():
    said = {"first": ["2", "3", "5"], "second": ["3", "3", "8"]}
    figure = notebook0.answers_below(np.zeros((3, 1, 8, 8)), said, right="3")
    boxed = [text.get_text() for text in figure.axes[0].texts if text.get_bbox_patch()]
    assert boxed == ["3"] * 3
    figures.plt.close(figure)


def test_pictures_are_shown_unchanged_and_named():
    grey = np.arange(2 * 4).reshape(2, 1, 2, 2) * 30
    colour = np.arange(3 * 3 * 4).reshape(3, 3, 2, 2) * 7
    figure = notebook7.picture_rows({"grey": grey, "colour": colour}, {"grey": ["a", "b"]})
    axes = np.reshape(figure.axes, (2, 3))
    assert np.array_equal(axes[0, 1].images[0].get_array(), grey[1, 0])
    assert np.array_equal(axes[1, 2].images[0].get_array(), colour[2].transpose(1, 2, 0))
    assert not axes[0, 2].images, "a row may be shorter"
    assert [ax.get_xlabel() for ax in axes[0, :2]] == ["a", "b"]
    figures.plt.close(figure)


def test_a_row_stands_beside_the_papers_where_the_paper_has_it():
    table = pd.DataFrame(
        {"accuracy": [70.0, 71.0], "low": [69.0, 70.5], "high": [71.0, 71.5]}, index=["CE", "KD"]
    )
    for published in ([69.1, 70.7], [np.nan, np.nan]):
        ax = notebook7.beside_the_paper(table.assign(**{"paper": published, "paper std": 0.2}))
        drawn = np.concatenate([line.get_xdata() for line in ax.lines])
        expected = [70, 69, 71, 71, 70.5, 71.5]
        known = published[0] > 0
        expected += [69.1, 68.9, 69.3, 70.7, 70.5, 70.9] if known else []
        assert np.allclose(np.sort(drawn[np.isfinite(drawn)]), np.sort(expected))
        assert (ax.get_legend() is not None) == known, "nothing to tell apart, no legend"
        assert [text.get_text() for text in ax.get_yticklabels()] == ["KD", "CE"]
        figures.plt.close(ax.figure)


def test_curves_mark_where_the_learning_rate_drops():
    history = pd.DataFrame(
        {"epoch": range(1, 7), "learning_rate": [0.1] * 3 + [0.01] * 2 + [0.001], "accuracy": 0.5}
    )
    figure = notebook7.curves_with_steps(
        history.assign(method="KD", seed=0), "accuracy", ylabel="accuracy"
    )
    for ax in figure.axes:
        upright = [line.get_xdata() for line in ax.lines if len(set(line.get_xdata())) == 1]
        assert [x[0] for x in upright] == [3.5, 5.5], "before epochs 4 and 6"
    figures.plt.close(figure)


def test_exercises_report_unsolved_correct_and_wrong(capsys):
    answered = []

    @check
    def exercise_1():
        raise Unsolved("write it")

    @check
    def exercise_2():
        answered.append(2)

    assert answered == [2]
    assert capsys.readouterr().out.splitlines() == [
        "Exercise 1: not solved yet. write it",
        "Exercise 2: correct.",
    ]
    with pytest.raises(AssertionError, match="off by one"):

        @check
        def exercise_3():
            raise AssertionError("off by one")


def test_pictures_of_outputs_are_those_of_their_labels(tmp_path):
    labels = np.arange(30) % 3
    models = pd.DataFrame([("teacher", np.nan, np.nan, 0)], columns=Outputs.COLUMNS)
    outputs = Outputs(models, np.ones((1, 30, 3)), labels, ("a", "b", "c"), labels)
    assert notebook7.read_pictures(outputs, tmp_path / "absent") is None
    for k, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = np.full((6, 5, 3), 20 * k + number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number:02}.png")
    places = 12 * outputs.labels + 3 + np.arange(30) // 5  # between the 4th and the 9th of a class
    found = notebook7.read_pictures(replace(outputs, pictures=places), tmp_path)
    assert found.shape == (30, 3, 6, 5)
    assert np.array_equal(found[:, 1, 2, 3], 20 * outputs.labels + 3 + np.arange(30) // 5)
    for wrong in (places + 12, places[::-1].copy()):
        with pytest.raises(ValueError, match="its labels are others"):
            notebook7.read_pictures(replace(outputs, pictures=wrong), tmp_path)


def test_a_forest_shows_both_intervals_the_smallest_effect_and_the_verdict():
    table = pd.DataFrame(
        {
            "name": ["first", "second"],
            "difference": [1.0, -0.5],
            "low": [0.2, -2.0],
            "high": [1.8, 1.0],
            "alone_low": [0.6, -1.2],
            "alone_high": [1.4, 0.2],
            "smallest": [1.1, 2.5],
            "verdict": ["holds", "not decided"],
        }
    )
    ax = notebook9.forest(table, xlabel="points", margin=0.3)
    at = {y: [] for y in (0, 1)}
    for line in ax.lines:
        if set(line.get_ydata()) in ({0}, {1}) and line.get_transform() == ax.transData:
            at[line.get_ydata()[0]] += list(line.get_xdata())
    for y, row in zip((1, 0), table.to_dict("records"), strict=True):  # the first one on top
        wanted = [row[k] for k in ("low", "high", "alone_low", "alone_high", "difference")]
        assert sorted(at[y]) == sorted(wanted)
        texts = {t.get_text(): t.get_position()[0] for t in ax.texts if t.get_position()[1] == y}
        assert (texts["["], texts["]"]) == (-row["smallest"], row["smallest"])
        assert row["verdict"] in texts
    low, high = ax.get_xlim()
    assert low < -2.5
    assert high > 2.5
    figures.plt.close(ax.figure)
    looks = [notebook9.VERDICT_STYLE[verdict] for verdict in evidence.VERDICTS]
    assert len({look["color"] for look in looks}) == len(looks)
    kinds = {(look["marker"], look["markerfacecolor"]) for look in looks}
    assert len(kinds) == len(looks), "no verdict rests on colour alone"
