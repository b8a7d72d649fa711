"""Figures of distillation on tokens, in notebook 14."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from ttm_lab.course.figures import curves, explorer_figure, method_style
from ttm_lab.probability import kl_divergence, temperature_softmax

LINE = 76  # characters


def by_size(teachers: Mapping[str, Tensor], temperatures, nats: float) -> Figure:
    """What is left of each teacher at T: its top probability, and how far p_T is from p.

    ``teachers`` maps a label to logits (K,); ``nats`` is drawn as a line on the right.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    tops, costs = {}, {}
    for label, logits in teachers.items():
        p, ways = logits.softmax(-1), [temperature_softmax(logits, t) for t in temperatures]
        tops[label] = [float(p_t.max()) for p_t in ways]
        costs[label] = [float(kl_divergence(p, p_t)) for p_t in ways]
    curves(temperatures, tops, xlabel="temperature T", ylabel="top token's probability", ax=left)
    curves(temperatures, costs, xlabel="temperature T", ylabel="D(p || p_T), nats", ax=right)
    right.axhline(nats, color="black", linewidth=1)
    right.text(temperatures[-1], 1.15 * nats, f"{nats:g} nats", ha="right")
    right.set_yscale("log")
    right.set_ylim(1e-3, None)
    right.legend().remove()
    left.set_ylim(0, 1)
    return figure


def students(rows: pd.DataFrame, names: Mapping[str, str], measures: Mapping[str, str]) -> Figure:
    """Measures of students, a panel each: a dot a seed, a bar at the mean, the teacher's as a line.

    ``rows`` has the columns arm, seed and ``measures``' keys, and may have the arm "teacher";
    ``names`` says which arms are drawn, in order, and under which names.
    """
    figure, axes = plt.subplots(1, len(measures), figsize=(3.4 * len(measures), 3.4), squeeze=False)
    for ax, (measure, label) in zip(axes[0], measures.items(), strict=True):
        for place, (arm, name) in enumerate(names.items()):
            values = rows.loc[rows["arm"] == arm, measure]
            look = method_style(name) | {"linestyle": ""}
            spread = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else np.zeros(1)
            ax.plot(place + spread, values, **look)
            ax.hlines(values.mean(), place - 0.3, place + 0.3, color="black", linewidth=2)
        for value in rows.loc[rows["arm"] == "teacher", measure]:
            ax.axhline(value, color="black", linewidth=1, linestyle="--")
            ax.text(len(names) - 0.5, value, "teacher", ha="right", va="bottom", fontsize=9)
        ax.set_xticks(range(len(names)), names.values(), rotation=35, ha="right")
        ax.set(xlim=(-0.6, len(names) - 0.4), ylabel=label)
    return figure


def places(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """The column and the line where each token starts."""
    found, x, y = [], 0, 0
    for piece in pieces:
        if piece == "\n" or x + len(piece) > LINE:
            x, y = 0, y + 1
        found.append((x, y))
        x += 0 if piece == "\n" else len(piece)
    return found


def colored_text(
    pieces: Sequence[str], weights: Tensor, largest: float, title: str, lines: int | None = None
) -> Figure:
    """A text whose tokens stand on a ground the darker, over a bar the longer, the more they weigh.

    ``weights`` (L,) lie between 1 and ``largest``, which has the darkest ground and a whole bar.
    There is room for so many ``lines``, or for those of the text.
    """
    lines = lines or places(pieces)[-1][1] + 1
    figure = explorer_figure(0.75 + 0.32 * lines)
    high = figure.get_figheight()
    ax = figure.add_axes((0.01, 0.38 / high, 0.98, 0.32 * lines / high))
    shares = ((weights - 1) / max(largest - 1, 1e-9)).clamp(0, 1).tolist()
    ground = colormaps["YlOrBr"]
    # A letter of this font is 0.602 of its size wide, so that tokens fit their columns.
    size = 0.98 * figure.get_figwidth() / LINE / 0.602 * 72
    words = {"family": "DejaVu Sans Mono", "fontsize": size, "va": "center", "parse_math": False}
    for piece, (x, y), share in zip(pieces, places(pieces), shares, strict=True):
        if piece == "\n":
            continue
        width = len(piece)
        ax.broken_barh([(x + 0.05, width - 0.1)], (y, 0.72), color=ground(0.75 * share))
        ax.broken_barh([(x + 0.05, (width - 0.1) * share)], (y + 0.76, 0.12), color="black")
        ax.text(x, y + 0.38, piece, **words)
    ax.set(xlim=(0, LINE), ylim=(lines, 0))
    ax.set_axis_off()
    figure.text(0.01, 1 - 0.2 / high, title, fontweight="bold", va="center")
    note = f"ground and bar: weight U of the token's place, from 1 (none) to {largest:.3g} (full)"
    figure.text(0.01, 0.16 / high, note, fontsize=9, va="center")
    return figure
