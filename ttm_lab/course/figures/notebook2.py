"""Figures of teachers, soft labels and KD, in notebook 2."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ttm_lab.course.figures import (
    METHOD_STYLE,
    OKABE_ITO,
    draw_picture,
    draw_triangle,
    plain,
    probability_bars,
    simplex_xy,
)


def picture_and_labels(image, labels, class_names) -> Figure:
    """A picture (C, H, W) beside what is said of it: ``labels`` maps a title to bars (K,)."""
    count = len(labels)
    figure, axes = plt.subplots(
        1, count + 1, figsize=(2 + 2.7 * count, 2.5), width_ratios=[1] + [1.5] * count
    )
    draw_picture(axes[0], image)
    for k, (title, p) in enumerate(labels.items(), start=1):
        probability_bars(p, class_names, ax=axes[k])
        axes[k].set_title(title)
        axes[k].tick_params(labelsize=8)
    axes[1].set_ylabel("probability")
    return figure


def second_guesses(images, labels, distributions, class_names) -> Figure:
    """Pictures (N, 1, H, W) over what the teacher says of each, a row of bars a temperature.

    ``distributions`` maps a temperature to probabilities (N, K).
    """
    count, rows = len(images), len(distributions) + 1
    figure, axes = plt.subplots(
        rows, count, figsize=(2 * count, 1.7 * rows), height_ratios=[1] * rows, squeeze=False
    )
    for k in range(count):
        draw_picture(axes[0, k], images[k])
        axes[0, k].set_title(f"a {plain(class_names[int(labels[k])])}")
        for ax, (temperature, p) in zip(axes[1:, k], distributions.items(), strict=True):
            probability_bars(p[k], class_names, ax=ax)
            second = np.argsort(np.asarray(p[k]))[-2]
            ax.set_title(f"T = {temperature:g}, second: {plain(class_names[second])}", fontsize=9)
            ax.tick_params(labelsize=8, labelleft=k == 0)
    return figure


def class_heatmaps(matrices, class_names) -> Figure:
    """Mean predictions by true class, a panel a temperature, in per cent, all on one scale.

    ``matrices`` maps a temperature to an array (K, K): row = true class, column = what the teacher
    says. The diagonal is left grey, so that the colours show the rest.
    """
    figure, axes = plt.subplots(1, len(matrices), figsize=(4.6 * len(matrices), 4.1), squeeze=False)
    matrices = {t: 100 * np.asarray(m, dtype=float) for t, m in matrices.items()}
    top = max((m - np.diag(np.diag(m))).max() for m in matrices.values())
    places = np.arange(len(class_names))
    for ax, (temperature, matrix) in zip(axes[0], matrices.items(), strict=True):
        diagonal = np.eye(len(matrix), dtype=bool)
        image = ax.imshow(np.ma.array(matrix, mask=diagonal), cmap="Blues", vmin=0, vmax=top)
        for i, j in np.ndindex(*matrix.shape):
            dark = matrix[i, j] > 0.6 * top and i != j
            color = "white" if dark else "black"
            ax.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", color=color, fontsize=8)
        ax.set(title=f"T = {temperature:g}", xlabel="teacher says", ylabel="true class")
        ax.set_xticks(places, map(plain, class_names))
        ax.set_yticks(places, map(plain, class_names))
        ax.set_facecolor("#d9d9d9")
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes[0].tolist(), label="mean probability, %", shrink=0.8)
    return figure


def kd_descents(
    paths, teacher, softened, *, names=("class 1", "class 2", "class 3"), ax=None
) -> Axes:
    """Ways of a free student q through the triangle under KD, one a temperature.

    ``paths`` and ``softened`` map a temperature to the visited points (N, 3) and to p_T (3,),
    drawn hollow; ``teacher`` p (3,) is the star, which is p_T at T = 1 too.
    """
    if ax is None:
        ax = draw_triangle(plt.figure(figsize=(6.2, 4.8)).add_subplot(), names)
    looks = zip(("blue", "red", "green", "pink"), ("-", "--", "-.", ":"), "osD^", strict=True)
    for (temperature, path), (color, line, marker) in zip(paths.items(), looks, strict=False):
        look = {"color": OKABE_ITO[color], "linestyle": line}
        ax.plot(
            *simplex_xy(path).T, linewidth=2, label=f"q, trained at T = {temperature:g}", **look
        )
        if temperature == 1:
            continue
        at = simplex_xy(softened[temperature])
        face = {"markerfacecolor": "none", "linestyle": "", "markersize": 8}
        ax.plot(*at, marker, color=OKABE_ITO[color], label=f"$p_T$, T = {temperature:g}", **face)
    look = METHOD_STYLE["teacher"] | {"linestyle": "", "label": "teacher p"}
    ax.plot(*simplex_xy(teacher), markersize=14, **look)
    start = simplex_xy(next(iter(paths.values()))[0])
    ax.annotate("start", start, xytext=(6, 6), textcoords="offset points")
    ax.legend(loc="upper right", bbox_to_anchor=(1.2, 1.0))
    return ax
