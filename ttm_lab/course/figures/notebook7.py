"""Figures of CIFAR-100 and the paper's tables, in notebook 7."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ttm_lab.course.figures import learning_curves, method_style, plain
from ttm_lab.course.outputs import Outputs
from ttm_lab.files import user_path


def read_pictures(outputs: Outputs, folder: str | Path) -> np.ndarray | None:
    """The pictures of kept outputs, bytes (N, 3, H, W), from the folder of the test part.

    None where there is no such folder: pictures are not kept with their outputs. Raises
    ``ValueError`` where the folder's pictures have other labels.
    """
    from torchvision.datasets import ImageFolder  # slow to import, and needed only here

    if not user_path(folder).is_dir():
        return None
    files, places = ImageFolder(user_path(folder)), outputs.pictures
    labels = np.array(files.targets)
    if len(labels) <= places.max() or (labels[places] != outputs.labels).any():
        raise ValueError(
            f"{folder} does not hold the pictures of these outputs: its labels are others"
        )
    return np.stack([np.asarray(files[k][0]).transpose(2, 0, 1) for k in places])


def picture_rows(
    rows: dict[str, np.ndarray], captions: dict[str, list[str]] | None = None
) -> Figure:
    """Pictures in rows, each row named on its left; ``captions`` go below the pictures of a row.

    ``rows`` maps a name to pictures (N, C, H, W) with values from 0 to 255; C is 1 or 3.
    """
    captions = captions or {}
    columns = max(len(images) for images in rows.values())
    size = (0.6 + 1.05 * columns, 0.25 + 1.3 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for cells, (name, images) in zip(axes, rows.items(), strict=True):
        for k, ax in enumerate(cells):
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
            if k < len(images):
                pixels = np.asarray(images[k]).round().clip(0, 255).astype(np.uint8)
                ax.imshow(pixels.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
                if name in captions:
                    ax.set_xlabel(plain(captions[name][k]), fontsize=9)
        cells[0].set_ylabel(name, fontweight="bold")
    return figure


def beside_the_paper(table: pd.DataFrame, *, xlabel: str = "test accuracy, %") -> Axes:
    """Accuracies measured here, with intervals, beside the published ones, a line a method.

    ``table`` comes from ``paper_rows.summarize``. Filled markers are measured here, with the 95 %
    interval of the mean; hollow ones are the paper's, with one standard deviation of its runs.
    """
    ax = plt.subplots(figsize=(7.0, 1.1 + 0.5 * len(table)))[1]
    both = table["paper"].notna().any()
    up, down = (0.14, 0.18) if both else (0, 0)
    for y, (method, row) in enumerate(table[::-1].iterrows()):
        look = method_style(method)
        line = {"color": look["color"], "linewidth": 2, "linestyle": "-"}
        ax.plot([row["low"], row["high"]], [y + up] * 2, **line)
        ax.plot(row["accuracy"], y + up, color=look["color"], marker=look["marker"], markersize=9)
        low, high = row["paper"] - row["paper std"], row["paper"] + row["paper std"]
        ax.plot([low, high], [y - down] * 2, **line | {"linewidth": 1})
        face = {"marker": look["marker"], "markersize": 9, "markerfacecolor": "white"}
        ax.plot(row["paper"], y - down, color=look["color"], **face)
    ax.set_yticks(range(len(table)), table.index[::-1])
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.set_xlabel(xlabel)
    if both:
        dot = {"marker": "o", "markersize": 8, "linestyle": "", "color": "#555555"}
        ax.plot([], [], label="here", **dot)
        ax.plot([], [], label="the paper", markerfacecolor="white", **dot)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def curves_with_steps(histories: pd.DataFrame, measure: str, *, ylabel: str) -> Figure:
    """``learning_curves`` above the learning rate, with a line where the rate steps down.

    ``histories`` has the columns method, seed, epoch, learning_rate and the measure.
    """
    figure, (top, bottom) = plt.subplots(
        2, 1, sharex=True, figsize=(7.0, 4.4), height_ratios=[3, 1]
    )
    learning_curves(histories, measure, ylabel=ylabel, ax=top)
    top.set_xlabel("")
    rates = histories.groupby("epoch")["learning_rate"].max()
    look = {"color": "black", "linestyle": "-", "drawstyle": "steps-mid"}
    bottom.plot(rates.index, rates, marker=".", markersize=3, **look)
    bottom.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    for epoch in rates.index[1:][rates.to_numpy()[1:] < rates.to_numpy()[:-1]]:
        for ax in (top, bottom):
            ax.axvline(epoch - 0.5, color="#555555", linewidth=1, linestyle=":")
    return figure
