"""Figures of known and unknown inputs, in notebook 13."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ttm_lab.course.figures import OKABE_ITO, explorer_figure, method_style

_KNOWN = {"color": OKABE_ITO["blue"], "label": "known"}
_UNKNOWN = {"color": OKABE_ITO["red"], "label": "unknown"}


def by_set(
    rows: pd.DataFrame, panels: Sequence[str], sets: Sequence[str], *, ylabel: str, band=None
) -> Figure:
    """One value a network and set, a panel a scale: small dots are seeds, markers their means.

    ``rows`` has the columns scale, set, arm, seed and value. ``band`` is a range to shade; a dashed
    line marks 0.5. Arms keep their order of appearance.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(9.6, 3.6), sharey=True, squeeze=False)
    arms = list(rows["arm"].unique())
    for ax, panel in zip(axes[0], panels, strict=True):
        part = rows[rows["scale"] == panel]
        for k, arm in enumerate(arms):
            shift = 0.8 * ((k + 0.5) / len(arms) - 0.5)
            look = method_style(arm) | {"linestyle": ""}
            values = part[part["arm"] == arm].pivot(index="seed", columns="set", values="value")
            x = np.arange(len(sets)) + shift
            values = values.reindex(columns=sets)
            ax.plot(x, values.mean(), markersize=8, label=arm, **look)
            if len(values) > 1:
                ax.plot(x, values.T, alpha=0.5, **look | {"marker": ".", "markersize": 4})
        ax.axhline(0.5, color="#777777", linewidth=1, linestyle="--", zorder=0)
        if band is not None:
            ax.axhspan(*band, color="black", alpha=0.1, linewidth=0)
        names = [name.removeprefix("CIFAR-100 ").replace(" ", "\n", 1) for name in sets]
        ax.set_xticks(range(len(sets)), names, fontsize=9)
        ax.grid(axis="x", visible=False)
        ax.set_title(panel)
    axes[0, 0].set_ylabel(ylabel)
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def known_beside_unknown(known, unknown, point: tuple[float, float], *, xlabel: str) -> Figure:
    """Scores (N,) and (M,) as two histograms, and the curve that a moving threshold draws.

    ``point`` is the share of unknown and of known inputs that pass at the marked threshold.
    """
    figure = explorer_figure(2.9)
    left, right = figure.add_axes((0.12, 0.16, 0.47, 0.7)), figure.add_axes((0.7, 0.16, 0.27, 0.7))
    known, unknown = np.asarray(known), np.asarray(unknown)
    edges = np.histogram_bin_edges(np.concatenate([known, unknown]), 30)
    for values, look, hatch in ((known, _KNOWN, ""), (unknown, _UNKNOWN, "//")):
        weights = np.full(len(values), 1 / len(values))
        left.hist(values, edges, weights=weights, alpha=0.5, hatch=hatch, edgecolor="white", **look)
    threshold = np.quantile(known, 0.95)
    left.axvline(threshold, color="black", linestyle="--", linewidth=1.2)
    left.set(xlabel=xlabel, ylabel="share")
    left.set_title("dashed: 95 % of the known pass", loc="left", y=1, fontsize=10)
    left.legend(loc="best")
    cuts = np.unique(np.concatenate([[-np.inf], known, unknown]))
    passed = [np.searchsorted(np.sort(x), cuts, side="right") / len(x) for x in (unknown, known)]
    right.plot(*passed, color="black", linestyle="-")
    right.plot([0, 1], [0, 1], color="#777777", linestyle=":", linewidth=1)
    right.plot(*point, marker="o", markersize=8, color=OKABE_ITO["orange"])
    right.set(xlabel="unknown that pass", ylabel="known that pass", xlim=(0, 1), ylim=(0, 1.02))
    right.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    right.set_title("area: AUROC", loc="left", y=1, fontsize=10)
    return figure


def against_accuracy(rows: pd.DataFrame, panels: Sequence[str]) -> Figure:
    """AUROC against accuracy, a point a network: ``rows`` has scale, arm, accuracy and auroc."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9.2, 3.4), sharey=True, squeeze=False)
    for ax, panel in zip(axes[0], panels, strict=True):
        for arm, part in rows[rows["scale"] == panel].groupby("arm", sort=False):
            look = method_style(arm) | {"linestyle": ""}
            ax.plot(100 * part["accuracy"], part["auroc"], markersize=8, label=arm, **look)
        ax.set_xlabel("test accuracy, %")
        ax.set_title(panel)
    axes[0, 0].set_ylabel("AUROC, mean over the sets")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
