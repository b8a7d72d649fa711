"""Figures of compressed networks, in notebook 11."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ttm_lab.course.figures import OKABE_ITO, explorer_figure, method_style

WAY_STYLE = {
    "float": {"color": OKABE_ITO["black"], "marker": "o"},
    "int8": {"color": OKABE_ITO["blue"], "marker": "s"},
    "rounded": {"color": OKABE_ITO["red"], "marker": "^"},
    "pruned": {"color": OKABE_ITO["green"], "marker": "D"},
}


def levels(rows: pd.DataFrame, measure: str, *, ylabel: str) -> Figure:
    """A measure against what was pruned, and against the bits of a weight, a line an arm.

    ``rows`` has the columns arm, way, level, repair and the measure; several rows of one kind are
    averaged. Lines with markers have batch norm estimated anew, thin ones not.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    means = rows.groupby(["way", "level", "repair", "arm"])[measure].mean()
    arms = rows["arm"].drop_duplicates()
    before = means["float", 32, "none"]
    for ax, way, start in zip(axes, ("pruned", "rounded"), (0, 6), strict=True):
        for arm in arms:
            style = method_style(arm)
            for repair in ("batch norm", "none"):
                line = means[way].xs(arm, level="arm").xs(repair, level="repair").sort_index()
                line = pd.concat([pd.Series({start: before[arm]}), line]).sort_index()
                anew = repair == "batch norm"
                label = {"label": arm} if anew else {"linewidth": 0.8, "alpha": 0.7}
                ax.plot(line.index, line, **label, **style | ({} if anew else {"marker": ""}))
    for arm in arms:
        axes[1].plot(7, means["int8", 8, "none", arm], **method_style(arm) | {"linestyle": ""})
    shares = sorted(rows.loc[rows["way"] == "pruned", "level"].unique())
    bits = sorted(rows.loc[rows["way"] == "rounded", "level"].unique())
    axes[0].set_xticks([0, *shares], ["0", *(f"{share:.0%}" for share in shares)])
    axes[0].set(xlabel="share of the weights that is 0", ylabel=ylabel, title="pruned")
    axes[1].set_xticks([*bits, 6, 7], [*(f"{b:g}" for b in bits), "as it was", "int8"])
    axes[1].invert_xaxis()
    axes[1].set(xlabel="bits of a weight", title="fewer bits")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def front(rows: pd.DataFrame, best: np.ndarray, *, ylabel: str) -> Axes:
    """Accuracy (per cent) against bytes; what nothing beats (``best``) is joined.

    It is named as well, where the name of a better one leaves room.

    ``rows`` has the columns name, way, bytes and accuracy, and ``teacher``, which is True where
    the network is one: its markers are hollow.
    """
    ax = plt.subplots(figsize=(8.4, 4.4))[1]
    for way, some in rows.groupby("way", sort=False):
        for hollow, part in some.groupby("teacher"):
            face = {"markerfacecolor": "white"} if hollow else {}
            name = {"label": f"{way}{', teacher' if hollow else ''}"}
            points = {"linestyle": "", "markersize": 7}
            ax.plot(part["bytes"], part["accuracy"], **name, **points, **WAY_STYLE[way] | face)
    line = rows[best].sort_values("bytes")
    step = {"drawstyle": "steps-post", "color": "#555555", "linewidth": 1, "linestyle": "-"}
    ax.plot(line["bytes"], line["accuracy"], zorder=0, **step)
    ax.set(xscale="log", xlabel="bytes, compressed", ylabel=ylabel)
    ax.margins(x=0.22)
    _count_bytes(ax, (1, 2, 5))
    named = []
    for row in line[::-1].itertuples():  # from the best down; close ones would write over it
        at = ax.transData.transform((row.bytes, row.accuracy)) * 72 / ax.figure.dpi
        if all(abs(at[1] - y) > 10 or abs(at[0] - x) > 80 for x, y in named):
            place = {"xytext": (-6, 5), "textcoords": "offset points", "ha": "right"}
            ax.annotate(row.name, (row.bytes, row.accuracy), fontsize=8, **place)
            named.append(at)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _count_bytes(ax: Axes, subs: tuple[int, ...]) -> None:
    """Write out bytes along a logarithmic axis, at these multiples of powers of ten."""
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_minor_formatter("")


def by_width(rows: pd.DataFrame, measures: Mapping[str, str]) -> Figure:
    """Measures against compressed bytes, a line a method through its widths; seeds as dots.

    ``rows`` has the columns method, model, seed, bytes and the measures, which are mapped to the
    labels of their axes. A teacher is a star.
    """
    figure, axes = plt.subplots(1, len(measures), figsize=(4.6 * len(measures), 3.6))
    for ax, (measure, label) in zip(axes, measures.items(), strict=True):
        for method, some in rows.groupby("method", sort=False):
            style = method_style(method)
            mean = some.groupby("model")[["bytes", measure]].mean().sort_values("bytes")
            ax.plot(mean["bytes"], mean[measure], label=method, markersize=8, **style)
            dots = {"linestyle": "", "marker": ".", "alpha": 0.35, "color": style["color"]}
            ax.plot(some["bytes"], some[measure], **dots)
        ax.set(xscale="log", xlabel="bytes, compressed", ylabel=label)
        _count_bytes(ax, (1, 3))
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def compressed(weights: np.ndarray, accuracies: Mapping[str, tuple], title: str) -> Figure:
    """A network's weights, and accuracies (per cent) of several seeds before and after.

    ``weights`` (N,) are those that are not 0. ``accuracies`` maps a method to its seeds' numbers
    before and after: bars at the means, the first one thin.
    """
    figure = explorer_figure(2.7)
    left, right = figure.add_axes((0.09, 0.17, 0.4, 0.7)), figure.add_axes((0.59, 0.17, 0.4, 0.7))
    ends = np.abs(weights).max() if len(weights) else 1.0
    left.hist(weights, np.linspace(-ends, ends, 81), color=OKABE_ITO["blue"])
    left.set(xlabel="weight, where it is not 0", ylabel="how many")
    left.set_title(title, fontsize=10)
    for k, (method, (before, after)) in enumerate(accuracies.items()):
        style = method_style(method) | {"linestyle": ""}
        right.plot(k + np.linspace(-0.15, 0.15, len(after)), after, **style)
        right.hlines(np.mean(before), k - 0.35, k + 0.35, color="black", linewidth=1)
        right.hlines(np.mean(after), k - 0.35, k + 0.35, color=style["color"], linewidth=3)
    right.set_xticks(range(len(accuracies)), list(accuracies))
    right.set(ylabel="test accuracy, %", ylim=(0, 103))
    right.set_title("thin: as they were", fontsize=10)
    return figure
