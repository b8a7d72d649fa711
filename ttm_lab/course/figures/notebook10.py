"""Figures of transfer, in notebook 10."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ttm_lab.analysis import paired_interval
from ttm_lab.course.figures import OKABE_ITO, explorer_figure, method_style

_CONTROLS = {
    "pixels": {"color": "#555555", "marker": "x", "linestyle": ":"},
    "untrained": {"color": OKABE_ITO["orange"], "marker": "P", "linestyle": "--"},
}


def look(arm: str) -> dict:
    """Colour, marker and line of an arm or of a control."""
    return _CONTROLS.get(arm) or method_style(arm)


def curves_by_set(rows: pd.DataFrame) -> Figure:
    """Accuracy against pictures a class, a panel a data set: means over seeds, single seeds thin.

    ``rows`` has the columns dataset, arm, seed, pictures and accuracy (per cent).
    """
    sets = list(rows["dataset"].unique())
    size = (3.3 * len(sets) + 1.2, 3.5)
    figure, axes = plt.subplots(1, len(sets), figsize=size, squeeze=False)
    for ax, name in zip(axes[0], sets, strict=True):
        for arm, found in rows[rows["dataset"] == name].groupby("arm", sort=False):
            table = found.pivot(index="pictures", columns="seed", values="accuracy")
            style = look(arm)
            ax.plot(table.index, table, color=style["color"], linewidth=0.6, alpha=0.3, ls="-")
            ax.plot(table.index, table.mean(axis=1), label=arm, markersize=7, **style)
        pictures = sorted(rows["pictures"].unique())
        ax.set(xscale="log", xlabel="pictures of each class", title=name)
        ax.set_xticks(pictures, [f"{n:g}" for n in pictures])
        ax.minorticks_off()
    axes[0, 0].set_ylabel("test accuracy of a probe, %")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def against(table: pd.DataFrame, x: str, y: str, *, xlabel: str, ylabel: str) -> Axes:
    """One measure of each network against another, a marker a network.

    ``table`` has the columns arm, and ``x`` and ``y``.
    """
    ax = plt.subplots(figsize=(5.6, 3.6))[1]
    for arm, found in table.groupby("arm", sort=False):
        style = look(arm) | {"linestyle": ""}
        ax.plot(found[x], found[y], label=arm, markersize=9, **style)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def pairs(table: pd.DataFrame, first: str, second: str, title: str) -> Figure:
    """Accuracies of all arms, and of two of them the difference seed by seed, for the explorer.

    ``table`` (seeds, arms) in per cent has the columns ``first`` and ``second``.
    """
    figure = explorer_figure(2.9)
    left, right = (
        figure.add_axes((0.105, 0.17, 0.5, 0.7)),
        figure.add_axes((0.76, 0.17, 0.225, 0.7)),
    )
    for place, arm in enumerate(table):
        style = look(arm) | {"linestyle": ""}
        spread = np.linspace(-0.12, 0.12, len(table)) if len(table) > 1 else np.zeros(1)
        left.plot(place + spread, table[arm], markersize=7, **style)
        left.hlines(table[arm].mean(), place - 0.3, place + 0.3, color="black", linewidth=2)
    left.set_xticks(range(len(table.columns)), table.columns, fontsize=9)
    left.set_ylabel("test accuracy, %")
    left.set_title(title, loc="left")
    gaps = (table[first] - table[second]).dropna()
    mean, low, high = paired_interval(gaps)
    right.axhline(0, color="black", linewidth=1)
    right.plot(np.zeros(len(gaps)), gaps, marker="o", linestyle="", color=OKABE_ITO["blue"])
    right.hlines(mean, -0.2, 0.2, color="black", linewidth=2)
    if len(gaps) > 1:
        right.vlines(0.3, low, high, color=OKABE_ITO["blue"], linewidth=3)
    right.set(xlim=(-0.6, 0.6), xticks=[], ylabel="points")
    right.set_title(f"{first} minus {second}", fontsize=10)
    return figure
