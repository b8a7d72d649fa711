"""Figures of the contrasts on CIFAR-100, in notebook 9."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ttm_lab.course.figures import OKABE_ITO, method_style

VERDICT_STYLE = {
    "holds": {"color": OKABE_ITO["green"], "marker": "o", "markerfacecolor": OKABE_ITO["green"]},
    "does not hold": {"color": OKABE_ITO["red"], "marker": "X", "markerfacecolor": "white"},
    "negligible": {"color": OKABE_ITO["blue"], "marker": "D", "markerfacecolor": "white"},
    "not decided": {"color": "#555555", "marker": "o", "markerfacecolor": "white"},
}
# a sign where there is no claim that could hold
VERDICT_STYLE["positive"] = VERDICT_STYLE["holds"]
VERDICT_STYLE["negative"] = VERDICT_STYLE["does not hold"]


def accuracy_by_rate(search: pd.DataFrame, recipe_rate: float) -> Figure:
    """Accuracy against the learning rate twice: of each loss as it is, and in KD's units.

    ``search`` has the columns arm, own_rate, rate and accuracy (per cent). A dotted line marks
    ``recipe_rate`` on the left. Arms whose name has a factor have hollow markers.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for ax, column in zip(axes, ("own_rate", "rate"), strict=True):
        for arm, rows in search.groupby("arm", sort=False):
            look = method_style(arm)
            ax.plot(rows[column], rows["accuracy"], label=arm, markersize=7, **look)
        rates = sorted(search[column].unique())[::2]
        ax.set(xscale="log")
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.minorticks_off()
    axes[0].axvline(recipe_rate, color="black", linewidth=1, linestyle=":")
    axes[0].set(xlabel="learning rate of the optimizer", ylabel="validation accuracy, %")
    axes[0].set_title("each loss as it is written")
    axes[1].set(xlabel="learning rate x scale of the loss")
    axes[1].set_title("in units of KD's scale")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def square(
    accuracy: pd.DataFrame,
    corners: tuple[tuple[str, str], tuple[str, str]] = (("KD", "KD x 10"), ("TTM / 10", "TTM")),
    columns: tuple[str, str] = (
        "KD's scale",
        "TTM's scale: ten times the loss,\nor a tenth of the weight decay",
    ),
    part: str = "validation",
) -> Axes:
    """KD and TTM, each by both settings, with CE and WTTM beside them where they are.

    ``accuracy`` (seeds, arms) in per cent has the ``corners``: KD's two arms, then TTM's, in the
    order of ``columns``. Thin lines are single seeds, markers means; the arrow is the comparison
    that is published.
    """
    ax = plt.subplots(figsize=(7.4, 4.0))[1]
    for method, arms, shift in zip(("KD", "TTM"), corners, (-0.02, 0.02), strict=True):
        look = method_style(method)
        x, arms = np.array([0, 1]) + shift, list(arms)
        thin = {"color": look["color"], "linewidth": 0.7, "linestyle": "-", "alpha": 0.35}
        ax.plot(x, accuracy[arms].T, marker=".", **thin)
        ax.plot(x, accuracy[arms].mean(), markersize=10, linewidth=2, label=method, **look)
    for arm, x in (("CE", -0.12), ("WTTM", 1.12)):
        if arm in accuracy:
            look = method_style(arm) | {"linestyle": ""}
            ax.plot(x, accuracy[arm].mean(), markersize=9, label=arm, **look)
            ax.plot([x] * len(accuracy), accuracy[arm], alpha=0.35, **look | {"marker": "."})
    ends = (-0.02, accuracy[corners[0][0]].mean()), (1.02, accuracy[corners[1][1]].mean())
    arrow = {"arrowstyle": "->", "color": "black", "linewidth": 1.5, "shrinkA": 8, "shrinkB": 8}
    ax.annotate("", ends[1], ends[0], arrowprops=arrow)
    start, end = np.array(ends)
    beside = {"xytext": (-6, 7), "textcoords": "offset points", "ha": "right"}
    ground = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
    ax.annotate("as published", start + 0.45 * (end - start), bbox=ground, **beside)
    ax.set_xticks([0, 1], columns)
    ax.set(xlim=(-0.3, 1.3), ylabel=f"{part} accuracy, %")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def accuracy_by_temperature(
    accuracy: pd.DataFrame,
    rules: dict[str, float],
    *,
    what: str = "rate",
    part: str = "validation",
) -> Axes:
    """Accuracy against the temperature, a line for each of ``what``; ``rules`` mark temperatures.

    ``accuracy`` (temperatures, rates or seeds) is in per cent. Of seeds the mean is drawn, too.
    """
    ax = plt.subplots(figsize=(7.4, 3.6))[1]
    thin = {"color": "#777777", "linewidth": 0.8} if what == "seed" else {}
    for (value, line), marker in zip(accuracy.items(), "osDv^", strict=False):
        ax.plot(line.index, line, marker=marker, label=f"{what} {value:g}", **thin)
    if what == "seed":
        mean = accuracy.mean(axis=1)
        ax.plot(mean.index, mean, color=OKABE_ITO["red"], linewidth=2.5, label="mean")
    for rule, temperature in rules.items():
        ax.axvline(temperature, color="#555555", linewidth=1, linestyle=":")
        ax.annotate(rule, (temperature, 1.02), xycoords=ax.get_xaxis_transform())
    ax.set(xscale="log", xlabel="temperature T", ylabel=f"{part} accuracy, %")
    ax.set_xticks(accuracy.index, [f"{temperature:g}" for temperature in accuracy.index])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def forest(table: pd.DataFrame, *, xlabel: str, margin: float) -> Axes:
    """Differences with two intervals each, what the seeds could have found, and the verdict.

    ``table`` has the columns name, difference, low and high (the interval that decides), alone_low
    and alone_high (of this contrast alone), smallest (the effect that these seeds would have
    decided in four cases of five) and verdict. The thick bar is the interval alone, the thin one
    the interval that decides; brackets lie at plus and minus the smallest effect.
    """
    ax = plt.subplots(figsize=(8.6, 0.95 + 0.5 * len(table)))[1]
    ax.axvspan(-margin, margin, color="black", alpha=0.1, linewidth=0)
    ax.axvline(0, color="black", linewidth=1)
    for y, row in enumerate(table[::-1].to_dict("records")):
        look = VERDICT_STYLE[row["verdict"]]
        line = {"color": look["color"], "linestyle": "-"}
        ax.plot([row["low"], row["high"]], [y, y], linewidth=1.2, marker="|", markersize=9, **line)
        ax.plot([row["alone_low"], row["alone_high"]], [y, y], linewidth=4, alpha=0.6, **line)
        ax.plot(row["difference"], y, markersize=9, linestyle="", **look)
        for side, bracket in ((-1, "["), (1, "]")):
            place = {"ha": "center", "va": "center", "color": "#777777", "fontsize": 13}
            ax.text(side * row["smallest"], y, bracket, clip_on=True, **place)
        words = {"transform": ax.get_yaxis_transform(), "va": "center"}
        ax.text(1.02, y, row["verdict"], color=look["color"], fontweight="bold", **words)
    ends = [*table["low"], *table["high"], *table["smallest"], *-table["smallest"]]
    room = 0.04 * np.ptp(ends)
    ax.set_xlim(min(ends) - room, max(ends) + room)
    ax.set_yticks(range(len(table)), table["name"][::-1])
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.set_xlabel(xlabel)
    return ax
