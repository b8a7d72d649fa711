"""The pictures of the course's first three minutes, in notebook 0."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ttm_lab.course.figures import METHOD_STYLE, OKABE_ITO, draw_picture, plain

_DARK = "#333333"


def whole_idea(image, p, p_t, q, q_t, label: str) -> Figure:
    """Distillation as a plan: teacher and student, what each says, and the two losses.

    ``image`` (C, H, W); ``p``, ``p_t`` and ``q``, ``q_t`` (K,): what teacher and student say of it,
    as they are and softened. The student's softening, which TTM leaves out, is crossed out.
    """
    figure = plt.figure(figsize=(7.4, 4.2), layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 100), ylim=(0, 50))
    ax.axis("off")
    draw_picture(figure.add_axes((0.015, 0.4, 0.1, 0.2)), image)
    ax.text(6.5, 18, "a picture\n(or a text)", ha="center", va="top")

    _box(ax, 24, 38, 14, 14, "teacher\n\nlarge,\ntrained, fixed", OKABE_ITO["black"])
    _box(ax, 24, 15, 9, 8, "student\nsmall", METHOD_STYLE["TTM"]["color"])
    _bars(figure, 39, 38, p, "$p$", METHOD_STYLE["teacher"]["color"])
    _bars(figure, 39, 15, q, "$q$", METHOD_STYLE["TTM"]["color"])
    _box(ax, 55, 38, 11, 7, "soften\nby $T$", _DARK)
    _box(ax, 55, 15, 11, 7, "soften\nby $T$", _DARK)
    _bars(figure, 71, 38, p_t, "$p_T$", METHOD_STYLE["teacher"]["color"])
    _bars(figure, 71, 15, q_t, "$q_T$: KD only", METHOD_STYLE["KD"]["color"])
    _box(ax, 91, 26.5, 15, 12, "teacher's loss:\nhow far\nfrom $p_T$?", OKABE_ITO["green"])
    _box(ax, 91, 4.5, 15, 6, "label's loss", OKABE_ITO["green"])
    ax.text(6.5, 4.5, f"its label: {plain(label)}", ha="center", va="center")

    for start, end in (((12.5, 28), (16.5, 36)), ((12.5, 22), (19, 16.5))):
        _arrow(ax, start, end)
    for y, left in ((38, 31.5), (15, 29)):
        _arrow(ax, (left, y), (33.5, y))
        _arrow(ax, (45, y), (49, y))
        _arrow(ax, (61, y), (65, y))
    _arrow(ax, (77.5, 35), (83, 29.5))
    _arrow(ax, (77.5, 19), (83, 23.5), linestyle=":")
    _arrow(ax, (14, 4.5), (83, 4.5))
    _arrow(ax, (45, 10), (83, 6))
    # TTM: past the crossed box, q itself goes to the teacher's loss.
    red = METHOD_STYLE["TTM"]["color"]
    for slope in (-1, 1):
        ax.plot((50, 60), (15 - 3 * slope, 15 + 3 * slope), color=red, lw=3, ls="-")
    _arrow(ax, (45, 19.5), (83, 26.5), color=red, linewidth=2.5, bend="arc3,rad=-0.12")
    ax.text(58, 27, "TTM: $q$ as it is", color=red, ha="center", fontweight="bold")
    return figure


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color) -> None:
    corner = (x - width / 2, y - height / 2)
    look = {"facecolor": "white", "edgecolor": color, "linewidth": 2}
    ax.add_patch(plt.Rectangle(corner, width, height, **look))
    ax.text(x, y, text, ha="center", va="center")


def _bars(figure: Figure, x: float, y: float, p, title: str, color) -> None:
    ax = figure.add_axes(((x - 5) / 100, (y - 4.5) / 50, 0.1, 0.18))
    ax.bar(np.arange(len(p)), np.asarray(p, dtype=float), color=color)
    ax.set(xticks=[], yticks=[], ylim=(0, 1))
    ax.grid(visible=False)
    ax.set_title(title, y=1, fontsize=11)


def _arrow(ax: Axes, start, end, *, bend="arc3", color=_DARK, **look) -> None:
    look = {"arrowstyle": "-|>", "connectionstyle": bend, "color": color, "linewidth": 1.5, **look}
    ax.annotate("", end, start, arrowprops={"shrinkA": 0, "shrinkB": 0, **look})


def answers_below(images, answers, right: str) -> Figure:
    """Pictures (N, C, H, W) and what each network says of them, a row of answers a network.

    ``answers`` maps a network's name to N class names; those equal to ``right`` stand in a box.
    """
    figure = plt.figure(figsize=(7.2, 0.95 + 0.5 * len(answers)), layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    rows, count = len(answers), len(images)
    ax.set(xlim=(-2.3, count), ylim=(-rows, 1.9))
    ax.axis("off")
    for k, image in enumerate(images):
        left, bottom = ax.transAxes.inverted().transform(ax.transData.transform((k + 0.08, 0.2)))
        right_end, top = ax.transAxes.inverted().transform(ax.transData.transform((k + 0.92, 1.8)))
        draw_picture(figure.add_axes((left, bottom, right_end - left, top - bottom)), image)
    for row, (name, said) in enumerate(answers.items()):
        y = -row - 0.45
        ax.text(-2.25, y, plain(name), va="center", fontweight="bold")
        for k, answer in enumerate(said):
            box = {"boxstyle": "round,pad=0.3", "facecolor": "#d9f2e6", "edgecolor": _DARK}
            look = {"bbox": box, "fontweight": "bold"} if answer == right else {"color": _DARK}
            ax.text(k + 0.5, y, plain(answer), ha="center", va="center", fontsize=12, **look)
    return figure
