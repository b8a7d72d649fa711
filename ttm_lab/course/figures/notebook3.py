"""Figures of from KD to TTM, in notebook 3."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ttm_lab.course.figures import (
    _TERMS,
    METHOD_STYLE,
    OKABE_ITO,
    curves,
    draw_triangle,
    explorer_figure,
    method_style,
    probability_bars,
    simplex_xy,
)


def descent_paths(start, paths, goals, class_names) -> Figure:
    """The ways (N, 3) that students take from one ``start`` (3,), drawn in the triangle.

    ``paths`` maps a method's label to its way, ``goals`` the label of a marked point to the
    point and a marker.
    """
    figure = plt.figure(figsize=(5.6, 4.6))
    ax = draw_triangle(figure.add_subplot(), class_names)
    for label, path in paths.items():
        xy, style = simplex_xy(path), method_style(label)
        ax.plot(*xy.T, color=style["color"], linestyle=style["linestyle"], linewidth=2, label=label)
        # One marker for each equal length of way, so that slow steps do not pile up.
        way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(xy, axis=0), axis=1))])
        spots = np.searchsorted(way, np.linspace(0.15, 0.85, 4) * way[-1])
        ax.plot(*xy[spots].T, color=style["color"], marker=style["marker"], linestyle="none")
    ax.plot(*simplex_xy(start), marker="s", markersize=8, color="black", linestyle="none")
    ax.annotate("start", simplex_xy(start), (8, 4), textcoords="offset points")
    for label, (point, marker) in goals.items():
        ax.plot(*simplex_xy(point), marker=marker, markersize=12, color="black", fillstyle="none")
        # Below and to the right: the ways come from the other side.
        ax.annotate(label, simplex_xy(point), (11, -16), textcoords="offset points")
    ax.legend(loc="upper left")
    return figure


def entropy_orders(orders, curves_by_name) -> Axes:
    """Rényi entropy (N,) against its order (N,) for named distributions; order 1 is marked."""
    figure = plt.figure(figsize=(6.4, 3.6))
    ax = curves(
        orders,
        curves_by_name,
        xlabel="order α",
        ylabel="Rényi entropy in nats",
        log=(True, False),
        ax=figure.add_subplot(),
    )
    ax.axvline(1, color="#555555", linestyle=":", linewidth=1)
    ax.annotate(
        "Shannon",
        (1, 0.22),
        (5, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color="#555555",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def ttm_terms(terms, temperatures) -> Figure:
    """How the three terms of the TTM loss add up: one panel of hanging bars a temperature.

    ``terms`` (M, 4): KD term, Rényi term, teacher's entropy, total, as ``decompose_ttm`` gives.
    """
    terms = np.asarray(terms, dtype=float)
    figure, axes = plt.subplots(
        1, len(terms), figsize=(max(2.3 * len(terms), 4.6), 3.9), sharey=True, squeeze=False
    )
    for ax, row, temperature in zip(axes[0], terms, temperatures, strict=True):
        levels = np.cumsum(row[:3])
        bottoms = (0, levels[0], levels[1], 0)
        for place, (label, look) in enumerate(_TERMS.items()):
            top = max(bottoms[place], bottoms[place] + row[place])
            ax.bar(place, row[place], bottom=bottoms[place], label=label, edgecolor="white", **look)
            text = f"{row[place]:+.2f}" if abs(row[place]) > 0.005 else "0"
            ax.text(place, top + 0.1, text, ha="center", fontsize=8)
        for place, level in enumerate(levels):  # each bar starts where the last one ended
            ax.hlines(level, place - 0.4, place + 1.4, color="#555555", linewidth=0.8)
        ax.axhline(0, color="black", linewidth=0.8, linestyle="-")
        ax.set_title(f"T = {temperature:.3g}")
        ax.set_xticks([])
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set(ylabel="nats", ylim=(1.04 * low, high + 0.09 * (high - low)))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def wrong_orders(orders, residuals, marks) -> Figure:
    """What is left of the identity when the entropy has the wrong order.

    ``residuals`` maps a temperature to the residual (N,) at each of ``orders`` (N,); ``marks``
    maps a temperature to the residuals of named wrong entropies.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), width_ratios=[1.25, 1])
    names = [f"T = {temperature:g}" for temperature in residuals]
    series = dict(zip(names, residuals.values(), strict=True))
    curves(
        orders,
        series,
        xlabel="order used",
        ylabel="left side − right side, nats",
        log=(True, False),
        ax=left,
    )
    left.axhline(0, color="black", linewidth=0.8, linestyle="-")
    for temperature in residuals:
        left.plot(1 / temperature, 0, marker="o", markersize=10, fillstyle="none", color="black")
    left.set_title("zero only at the order 1/T (circles)")
    width, wrong = 0.8 / len(marks), list(next(iter(marks.values())))
    for k, (temperature, values) in enumerate(marks.items()):
        right.bar(
            np.arange(len(wrong)) + k * width,
            list(values.values()),
            width,
            label=f"T = {temperature:g}",
            hatch=("//", "..", "xx")[k % 3],
            edgecolor="white",
        )
    right.set_xticks(np.arange(len(wrong)) + 0.4 - width / 2, wrong)
    right.axhline(0, color="black", linewidth=0.8, linestyle="-")
    right.set_title("four choices of entropy")
    right.legend()
    return figure


def gradient_arrows(q, q_t, p_t, class_names, *, title="", ax=None) -> Axes:
    """The downhill direction of the TTM loss as a sum of two arrows between points (3,).

    From q to q_T leads the entropy term, from q_T to p_T the KD term; from q to p_T the sum.
    """
    if ax is None:
        ax = plt.figure(figsize=(5.2, 4.4)).add_subplot()
    draw_triangle(ax, class_names)
    arrows = {  # the sum is broad and pale, so that it never hides a part of it
        r"TTM, the sum: $p_T-q$": (q, p_t, OKABE_ITO["red"], {"linewidth": 7, "alpha": 0.25}),
        r"entropy term: $q_T-q$": (q, q_t, OKABE_ITO["orange"], {"linestyle": ":"}),
        r"KD term: $p_T-q_T$": (q_t, p_t, OKABE_ITO["blue"], {"linestyle": "--"}),
    }
    for label, (tail, head, color, look) in arrows.items():
        tail, head = simplex_xy(tail), simplex_xy(head)
        line = {"color": color, "linewidth": 2.6, "linestyle": "-", **look}
        ax.plot(*np.stack([tail, head]).T, label=label, **line)
        if np.linalg.norm(head - tail) > 0.03:
            shape = {"arrowstyle": "-|>", "color": color, "mutation_scale": 18, "shrinkB": 3}
            ax.annotate("", head, tail + 0.9 * (head - tail), zorder=3, arrowprops=shape)
    beside = (-16, 3) if simplex_xy(p_t)[0] > simplex_xy(q)[0] else (7, 4)  # not on the arrows
    points = {"$q$": (q, "^", beside), "$q_T$": (q_t, "o", (8, 3)), "$p_T$": (p_t, "*", (-2, -16))}
    for name, (point, marker, offset) in points.items():
        size = 11 if marker == "*" else 7
        ax.plot(*simplex_xy(point), marker=marker, markersize=size, color="black", zorder=4)
        ax.annotate(name, simplex_xy(point), offset, textcoords="offset points", fontsize=12)
    ax.set_title(title)
    ax.legend(loc="upper left", bbox_to_anchor=(-0.06, 1.0))
    return ax


def gradient_panels(panels, class_names) -> Figure:
    """``gradient_arrows`` side by side: titles mapped to the points (q, q_T, p_T)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.9), squeeze=False)
    for ax, (title, points) in zip(axes[0], panels.items(), strict=True):
        gradient_arrows(*points, class_names, title=title, ax=ax)
    return figure


def term_limits(temperatures, values, slopes, limit) -> Figure:
    """Large temperatures: values of the terms (named, (N,)), and the largest gradient entries.

    ``limit`` is the height that the TTM loss tends to.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    curves(temperatures, values, xlabel="temperature T", ylabel="nats", log=(True, False), ax=left)
    left.axhline(limit, color="black", linestyle=":", linewidth=1)
    left.annotate(r"$D(u\| q)$", (temperatures[0], limit), (0, 3), textcoords="offset points")
    left.set_title("the two parts of the TTM loss")
    curves(
        temperatures,
        slopes,
        xlabel="temperature T",
        ylabel="nats, or slope",
        log=(True, True),
        ax=right,
    )
    right.set_title("the entropy term: its value and its slope")
    return figure


def gradient_scales(norms) -> Axes:
    """Mean gradient norms of four objectives: with and without entropy term, two scales.

    ``norms`` (2, 2): rows are the scales (as in KD, divided by 1 − λ), columns KD and KD with
    the entropy term.
    """
    figure = plt.figure(figsize=(6, 3.2))
    ax = figure.add_subplot()
    places = np.arange(2)
    looks = [("KD", "//"), ("TTM", "..")]
    for column, (method, hatch) in enumerate(looks):
        name = ("without the entropy term (KD)", "with the entropy term")[column]
        bars = ax.bar(
            places + 0.38 * column,
            np.asarray(norms)[:, column],
            0.36,
            label=name,
            color=METHOD_STYLE[method]["color"],
            hatch=hatch,
            edgecolor="white",
        )
        ax.bar_label(bars, fmt="%.2f", fontsize=9)
    ax.set_xticks(
        places + 0.19,
        ["as KD is written\n(labels weighted 1 − λ)", "divided by 1 − λ\n(labels weighted 1)"],
    )
    ax.set_ylabel("mean gradient norm per sample")
    ax.grid(axis="x", visible=False)
    ax.legend()
    return ax


def soft_labels(labels, class_names) -> Figure:
    """One panel of bars a soft label: ``labels`` maps a title to its distribution (K,)."""
    figure, axes = plt.subplots(
        1, len(labels), figsize=(2.3 * len(labels), 2.6), sharey=True, squeeze=False
    )
    for ax, (title, p) in zip(axes[0], labels.items(), strict=True):
        probability_bars(p, class_names, ax=ax)
        ax.set_title(title, fontsize=10)
    axes[0, 0].set_ylabel("probability")
    return figure


def triangle_spots(rows: int) -> np.ndarray:
    """Points (N, 3) spread evenly over the inside of the triangle, ``rows`` along each side."""
    steps = range(rows)
    grid = [(i, j, rows - 1 - i - j) for i in steps for j in steps if i + j < rows]
    return (np.array(grid, dtype=float) + 1 / 3) / rows


def loss_fields(names, spots, fields, ways, path, p, p_t, class_names) -> Figure:
    """Where each loss drives a student: a triangle a method, with arrows and one descent.

    ``fields`` (M, N, 3) are the velocities of q at ``spots`` (N, 3), drawn on one scale, by the
    square root of their size, so that slow parts stay visible; ``ways`` (M, S, 3) are the descents,
    with dots after 1, 3, 10, 30, 100 and 300 steps; ``path`` (L, 3) are the p_T of all
    temperatures, ``p`` and ``p_t`` (3,) the teacher and its softened version.
    """
    figure = explorer_figure(2.6)
    arrows = np.stack([simplex_xy(field) - simplex_xy(np.zeros(3)) for field in np.asarray(fields)])
    sizes = np.linalg.norm(arrows, axis=-1, keepdims=True)
    arrows = arrows / np.sqrt(np.maximum(sizes, 1e-12) * sizes.max()) * 0.1
    ways = np.asarray(ways)
    dots = [n for n in (1, 3, 10, 30, 100, 300) if n < ways.shape[1]]
    for k, name in enumerate(names):
        ax = figure.add_axes((0.002 + 0.333 * k, 0.09, 0.33, 0.79))
        draw_triangle(ax, class_names).set(xlim=(-0.09, 1.09), ylim=(-0.12, 0.97))
        style = method_style(name)
        ax.plot(*simplex_xy(path).T, color="black", linestyle="--", linewidth=1)
        ax.quiver(
            *simplex_xy(spots).T, *arrows[k].T, color=OKABE_ITO["grey"], angles="xy",
            scale_units="xy", scale=1, width=0.006,
        )  # fmt: skip
        way = simplex_xy(ways[k])
        ax.plot(*way.T, color=style["color"], linestyle="-", linewidth=2.2)
        look = {"marker": style["marker"], "linestyle": "none", "markersize": 6}
        ax.plot(*way[dots].T, color=style["color"], markeredgecolor="white", **look)
        ax.plot(*way[0], marker="s", markersize=8, color="black")
        ax.plot(*simplex_xy(p), marker="*", markersize=14, color="black")
        ring = {"marker": "o", "markersize": 12, "fillstyle": "none", "markeredgewidth": 1.8}
        ax.plot(*simplex_xy(p_t), color="black", **ring)
        ax.set_title(name, color=style["color"], fontsize="x-large", pad=7, y=1)
    handles = [
        plt.Line2D([], [], color="black", linestyle="none", marker=m, markersize=s, fillstyle=f)
        for m, s, f in (("s", 7, "full"), ("*", 12, "full"), ("o", 10, "none"))
    ] + [plt.Line2D([], [], color="black", linestyle="--", linewidth=1)]
    labels = ["start", "teacher p", "$p_T$", "$p_T$ at all T"]
    figure.legend(handles, labels, loc="lower center", ncols=4, bbox_to_anchor=(0.5, -0.01))
    return figure


def sum_of_terms(terms, entropy) -> Figure:
    """Three terms (KD, entropy, constant) hung one below the other, beside D(p_T || q).

    ``terms`` (4,) in nats, the target last; ``entropy`` says which one the second term used. What
    the sum misses of the target is drawn between the two lines.
    """
    terms = np.asarray(terms, dtype=float)
    figure = explorer_figure(3.1)
    ax = figure.add_axes((0.095, 0.17, 0.895, 0.73))
    levels = np.cumsum(terms[:3])
    bottoms = (0, levels[0], levels[1], 0)
    names = [r"$T\,D(p_T\|q_T)$", f"−(T − 1) ×\n{entropy}", r"$(T-1)\,H(p_T)$"]
    names.append(r"$D(p_T\|q)$")
    for place, look in enumerate(_TERMS.values()):
        ax.bar(place, terms[place], bottom=bottoms[place], edgecolor="white", width=0.7, **look)
        top = max(bottoms[place], bottoms[place] + terms[place])
        words = f"{terms[place] + 0.0:+.2f}".replace("-", "−")
        above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        ax.annotate(words, (place, top), **above)
    for place, level in enumerate(levels[:2]):
        ax.hlines(level, place - 0.35, place + 1.35, color="#555555", linewidth=0.8)
    ax.hlines(levels[2], 1.65, 4.2, color="black", linewidth=1.6, linestyle="--")
    ax.annotate("their sum", (4.2, levels[2]), (-2, 4), textcoords="offset points", ha="right")
    miss = levels[2] - terms[3]
    if abs(miss) > 5e-4:
        ax.annotate("", (3.5, terms[3]), (3.5, levels[2]), arrowprops={"arrowstyle": "<->"})
        words = f"the sum misses it by {miss:+.3f}".replace("-", "−")
        ax.set_title(words, color=OKABE_ITO["red"], y=1)
    else:
        ax.set_title("the sum meets the TTM loss", color=OKABE_ITO["green"], y=1)
    ax.axhline(0, color="black", linewidth=0.8, linestyle="-")
    ax.set_xticks(range(4), names)
    ends = [0, *levels, terms[3]]
    # The axis moves in few large steps, so that a bar's change is seen as such.
    low, high = (float(np.sign(x) * 2 ** np.ceil(np.log2(max(abs(x), 0.5)))) if x else 0.0
                 for x in (min(ends), max(ends)))  # fmt: skip
    room = 0.12 * (high - low)
    ax.set(ylim=(low - room, high + room), xlim=(-0.6, 4.2), ylabel="nats")
    ax.grid(axis="x", visible=False)
    return figure
