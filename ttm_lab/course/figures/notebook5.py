"""Figures of training on digits, in notebook 5."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ttm_lab.course.figures import method_style


def value_histograms(
    values: dict[str, np.ndarray], *, xlabel: str, bins: int = 30, high: float | None = None
) -> Figure:
    """One histogram a method, stacked in rows over one axis, with the mean marked.

    The axes of the shares differ, so that broad histograms can be seen, and each names its end.
    """
    figure, axes = plt.subplots(
        len(values), 1, sharex=True, figsize=(7.0, 0.6 + 0.95 * len(values)), squeeze=False
    )
    high = high or max(np.max(v) for v in values.values())
    for ax, (method, sample) in zip(axes[:, 0], values.items(), strict=True):
        color = method_style(method)["color"]
        weights = np.full(len(sample), 100 / len(sample))
        ax.hist(sample, bins=np.linspace(0, high, bins + 1), weights=weights, color=color)
        ax.axvline(np.mean(sample), color="black", linestyle="--", linewidth=1.2)
        text = f"{method}: mean {np.mean(sample):.2f}\naxis to {ax.get_ylim()[1]:.0f} %"
        ax.text(0.99, 0.85, text, transform=ax.transAxes, ha="right", va="top")
        ax.set_ylabel("%")
    axes[-1, 0].set_xlabel(xlabel)
    return figure
