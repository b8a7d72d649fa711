"""Figures of students across a shift, in notebook 12."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ttm_lab.course.figures import OKABE_ITO, explorer_figure, method_style


def weights_by_part(weights: Mapping[str, np.ndarray], is_source, shares) -> Figure:
    """Histograms of weights (N,) by their kind, source and target pictures apart.

    ``shares`` gives for each kind the effective sample size over N, for its title.
    """
    is_source = np.asarray(is_source, dtype=bool)
    figure, axes = plt.subplots(1, len(weights), figsize=(2.4 * len(weights), 2.7), sharey=True)
    for ax, (kind, values) in zip(axes, weights.items(), strict=True):
        values = np.asarray(values)
        bins = np.linspace(0, max(values.max(), 1.1), 25)
        looks = {"source": ("orange", "//", is_source), "target": ("blue", "", ~is_source)}
        for name, (color, hatch, part) in looks.items():
            style = {"color": OKABE_ITO[color], "hatch": hatch, "alpha": 0.65, "label": name}
            ax.hist(values[part], bins, edgecolor="white", **style)
        ax.axvline(1, color="black", linewidth=1, linestyle=":")
        ax.set(yscale="log", xlabel="weight")
        ax.set_title(f"{kind}: {shares[kind]:.0%}")
    axes[0].set_ylabel("pictures")
    axes[0].legend()
    return figure


def arms_by_target(rows: pd.DataFrame, arms: Sequence[str], column: str, *, xlabel: str) -> Figure:
    """A panel a target: a dot a seed for each arm, and a bar at its mean.

    ``rows`` has the columns target, arm, seed and ``column``; a teacher's value is a dotted line.
    """
    targets = list(dict.fromkeys(rows["target"]))
    size = 1.8 + 2.6 * len(targets), 0.9 + 0.3 * len(arms)
    figure, axes = plt.subplots(1, len(targets), figsize=size, sharey=True, squeeze=False)
    for ax, target in zip(axes[0], targets, strict=True):
        here = rows[rows["target"] == target]
        for y, arm in enumerate(arms[::-1]):
            values = here.loc[here["arm"] == arm, column]
            look = {"color": OKABE_ITO["blue"], "linestyle": "", "marker": "o", "alpha": 0.6}
            ax.plot(values, y + np.linspace(-0.15, 0.15, len(values)), markersize=5, **look)
            ax.vlines(values.mean(), y - 0.32, y + 0.32, color="black", linewidth=2)
        teacher = here.loc[here["arm"] == "teacher", column]
        if len(teacher):
            ax.axvline(teacher.mean(), color="black", linewidth=1, linestyle=":")
            place = {"transform": ax.get_xaxis_transform(), "ha": "right", "va": "bottom"}
            ax.text(teacher.mean(), 1.01, "teacher", fontsize=8, **place)
        ax.set_yticks(range(len(arms)), arms[::-1])
        ax.set_title(target.replace("_", " "), loc="left")
    axes[0, len(targets) // 2].set_xlabel(xlabel)
    return figure


def under_shift(rows: pd.DataFrame, columns: Mapping[str, str], arms: Mapping[str, str]) -> Figure:
    """Means over kinds of corruption and seeds against the strength: a panel a column.

    ``rows`` has the columns arm, strength (0 is clean) and those of ``columns``, which maps them
    to axis labels. ``arms`` maps an arm to its name.
    """
    rows_of_panels = -(-(len(columns) + 1) // 3)  # the legend takes a place
    size = 10, 3.0 * rows_of_panels
    figure, axes = plt.subplots(rows_of_panels, 3, figsize=size, squeeze=False)
    for ax, (column, label) in zip(axes.flat, columns.items(), strict=False):
        for arm, name in arms.items():
            line = rows[rows["arm"] == arm].groupby("strength")[column].mean()
            ax.plot(line.index, line, label=name, markersize=6, **method_style(name))
        ax.set(xlabel="strength of the corruption", ylabel=label)
        ax.set_xticks(range(4))
    for ax in axes.flat[len(columns) :]:
        ax.set_axis_off()
    axes.flat[len(columns)].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    return figure


def corrupted(pictures, found: Mapping[str, Mapping], curves, strength: int) -> Figure:
    """Pictures (N, C, H, W) from 0 to 1, above accuracy by strength and confidence by network.

    ``curves`` gives by network the accuracies at strengths 0, 4, ... 20; ``found`` its measures at
    ``strength``.
    """
    figure = explorer_figure(3.6)
    wide = 0.96 / len(pictures)
    for k, picture in enumerate(np.asarray(pictures)):
        ax = figure.add_axes((0.02 + k * wide, 0.7, 0.94 * wide, 0.28))
        ax.imshow(picture.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
        ax.set_axis_off()
    left, right = figure.add_axes((0.09, 0.15, 0.4, 0.5)), figure.add_axes((0.6, 0.15, 0.38, 0.5))
    for name, line in curves.items():
        left.plot(range(0, 21, 4), line, label=name, **method_style(name))
    left.axvline(strength, color="black", linewidth=1, linestyle=":")
    left.set(xlabel="strength", ylabel="accuracy", ylim=(0, 1.02))
    left.legend(fontsize=8)
    for k, (name, one) in enumerate(found.items()):
        look = method_style(name)
        right.bar(k - 0.18, one["accuracy"], 0.34, color=look["color"])
        right.bar(k + 0.18, one["confidence"], 0.34, color=look["color"], alpha=0.5, hatch="//")
    right.set_xticks(range(len(found)), list(found))
    right.set(ylim=(0, 1.02), ylabel="accuracy | confidence //")
    return figure
