"""Figures of what students learned, in notebook 6."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ttm_lab.course.figures import method_style


def reliability_diagram(tables: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy against confidence in bins, a panel a method; the diagonal is perfect calibration.

    ``tables`` come from ``analysis.reliability``; grey bars are each bin's share of the images.
    """
    figure, axes = plt.subplots(
        1, len(tables), sharex=True, sharey=True, figsize=(2.3 * len(tables), 2.7), squeeze=False
    )
    for ax, (method, table) in zip(axes[0], tables.items(), strict=True):
        table = table[table["count"] > 0]
        style = method_style(method)
        ax.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":")
        ax.plot(table["confidence"], table["accuracy"], color=style["color"], linewidth=1)
        points = table["confidence"], table["accuracy"]
        ax.plot(*points, color=style["color"], marker=style["marker"], linestyle="none")
        share = table["count"] / table["count"].sum()
        ax.bar(table["confidence"], share, width=0.05, color="#bbbbbb", zorder=0)
        ax.set(title=method, xlabel="confidence", xlim=(0, 1.03), ylim=(0, 1.05))
    axes[0, 0].set_ylabel("accuracy; grey: share\nof the images")
    return figure


def before_after(
    before: pd.DataFrame, after: pd.DataFrame, measures: dict[str, str], names: tuple[str, str]
) -> Figure:
    """Means over seeds before and after some change, a panel a measure, an arrow a method.

    Both frames have the columns method, seed and the measures; ``measures`` gives each its label
    and ``names`` says what before and after are.
    """
    figure, axes = plt.subplots(1, len(measures), figsize=(2.4 * len(measures), 2.9))
    for ax, (measure, label) in zip(np.atleast_1d(axes), measures.items(), strict=True):
        for method in before["method"].drop_duplicates():
            ends = [f.loc[f["method"] == method, measure].mean() for f in (before, after)]
            ax.plot([0, 1], ends, label=method, **method_style(method))
        ax.set_xticks([0, 1], names)
        ax.set_xlim(-0.3, 1.3)
        low, high = min(0, ax.get_ylim()[0]), ax.get_ylim()[1]
        ax.set_ylim(low, high + 0.04 * (high - low))  # room for the markers
        ax.set_title(label)
    np.atleast_1d(axes)[0].legend()
    return figure
