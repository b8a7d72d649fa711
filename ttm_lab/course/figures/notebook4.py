"""Figures of WTTM's weights, in notebook 4."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ttm_lab.course.figures import OKABE_ITO


def weight_lines(points) -> Axes:
    """log U against the teacher's Rényi entropy; ``points`` maps T to (entropies, weights)."""
    figure = plt.figure(figsize=(6.2, 3.8))
    ax = figure.add_subplot()
    for (temperature, (entropies, weights)), marker in zip(points.items(), "os^D", strict=False):
        entropies, weights = np.asarray(entropies), np.asarray(weights)
        slope = 1 - 1 / temperature
        ends = np.array([0, entropies.max()])
        ax.plot(ends, slope * ends, color="#555555", linewidth=1, linestyle="-", zorder=1)
        label = f"T = {temperature:g}, line of slope {slope:.3g}"
        ax.plot(
            entropies,
            np.log(weights),
            marker,
            fillstyle="none",
            markersize=5,
            label=label,
            linestyle="none",
            alpha=0.6,
        )
    ax.set(xlabel=r"teacher's Rényi entropy $H_{1/T}(p)$, nats", ylabel="log U")
    ax.legend()
    return ax


def weight_spread(temperatures, weights, bounds) -> Figure:
    """How weights (M, N) of N pictures spread at M temperatures, within bounds 1 to (M,)."""
    weights = np.asarray(weights, dtype=float)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    low, median, high = np.quantile(weights, [0.05, 0.5, 0.95], axis=1)
    left.fill_between(temperatures, 1, bounds, color="#e8e8e8", label="possible: 1 to $K^{1-1/T}$")
    left.fill_between(
        temperatures, low, high, color=OKABE_ITO["green"], alpha=0.45, label="nine pictures in ten"
    )
    left.plot(
        temperatures,
        median,
        color=OKABE_ITO["green"],
        marker="D",
        markevery=0.12,
        linestyle="-",
        label="median",
    )
    left.set(
        xscale="log", xlabel="temperature T", ylabel="weight U", title="large T: large weights"
    )
    left.legend(loc="upper left")
    right.plot(
        temperatures,
        weights.std(axis=1) / weights.mean(axis=1),
        color=OKABE_ITO["green"],
        marker="D",
        markevery=0.12,
        linestyle="-",
    )
    right.set(
        xscale="log",
        xlabel="temperature T",
        ylabel="standard deviation / mean",
        title="moderate T: uneven weights",
    )
    right.set_ylim(bottom=0)
    return figure


def weight_and_mismatch(stages) -> Figure:
    """Weight U against distance D for students at several stages: titles mapped to (U, D).

    The line joins the means of ten groups of pictures, equally many in each, ordered by weight.
    Distances shrink in training, so each panel has a scale of its own, and says so.
    """
    figure, axes = plt.subplots(1, len(stages), figsize=(3.3 * len(stages), 3.5), squeeze=False)
    for ax, (title, (weights, distances)) in zip(axes[0], stages.items(), strict=True):
        weights, distances = np.asarray(weights, dtype=float), np.asarray(distances, dtype=float)
        ax.plot(weights, distances, "o", color=OKABE_ITO["sky"], markersize=3, alpha=0.5)
        groups = np.array_split(weights.argsort(), 10)
        means = np.array([(weights[g].mean(), distances[g].mean()) for g in groups])
        ax.plot(*means.T, color=OKABE_ITO["red"], marker="s", linestyle="-", linewidth=2)
        ax.set(title=title, xlabel="weight U of the teacher's output", ylim=(0, None))
        ax.set_ylabel(rf"$D(p_T\|q)$, nats, up to {ax.get_ylim()[1]:.1f}")
    return figure
