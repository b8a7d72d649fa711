"""Figures of ImageNet, in notebook 8."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ttm_lab.course.figures import METHOD_STYLE


def published_accuracies(tables: dict[str, pd.DataFrame], pictures: int) -> Figure:
    """Published top-1 accuracies with the error of measuring them on ``pictures`` pictures.

    ``tables`` maps a panel's title to rows with the columns method and top1 (per cent). Bars span
    1.96 standard errors of a share to both sides: what another draw of as many pictures would
    change. What another training would change is not in them.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(3.5 * len(tables), 4.2), squeeze=False)
    span = max(np.ptp(table["top1"]) for table in tables.values()) + 1.2
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        table = table.sort_values("top1")
        middle = (table["top1"].min() + table["top1"].max()) / 2
        ax.set_xlim(middle - span / 2, middle + span / 2)  # a point is as long in every panel
        for y, (name, top1) in enumerate(zip(table["method"], table["top1"], strict=True)):
            style = METHOD_STYLE.get(name, METHOD_STYLE["CE"])
            error = 1.96 * np.sqrt(top1 * (100 - top1) / pictures)
            color = style["color"]
            ax.plot([top1 - error, top1 + error], [y, y], color=color, linewidth=2, linestyle="-")
            ax.plot(top1, y, color=color, marker=style["marker"], markersize=8)
        ax.set_yticks(range(len(table)), table["method"])
        ax.grid(axis="y", visible=False)
        ax.set(title=title, xlabel="top-1 accuracy, %")
    return figure


def picture_views(picture, evaluation, views) -> Figure:
    """A picture (H, W, 3) uint8, how it is evaluated, and how it looks in several epochs.

    ``evaluation`` (3, S, S) and ``views`` (N, 3, S, S) have values from 0 to 1.
    """
    columns = -(-len(views) // 2)
    figure = plt.figure(figsize=(10, 3.2))
    parts = figure.subfigures(1, 2, width_ratios=[1.3, 1])
    ends, grid = parts[0].subplots(1, 2), parts[1].subplots(2, columns, squeeze=False)
    shown = [np.asarray(picture) / 255, *np.moveaxis(np.stack([evaluation, *views]), 1, -1)]
    for ax, pixels in zip((*ends, *grid.flat), shown, strict=False):
        ax.imshow(pixels.clip(0, 1))
    for ax in (*ends, *grid.flat):
        ax.axis("off")
        ax.set_anchor("N")
    (height, width), side = shown[0].shape[:2], shown[1].shape[0]
    ends[0].set_title(f"the file, {width} x {height}")
    ends[1].set_title(f"evaluation, {side} x {side}")
    parts[1].suptitle(f"training, {side} x {side}", fontweight="bold", fontsize=11)
    return figure
