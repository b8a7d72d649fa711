"""Figures of the course: one function a figure; each takes arrays or frames and returns Axes.

Colours are those of Okabe and Ito, which most colour-blind readers can tell apart; markers and
line styles repeat what the colour says.
"""

import base64
import html
import io

import numpy as np
import pandas as pd

from ttm_lab.analysis import paired_interval

try:
    import matplotlib as mpl
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{missing.name} is not installed; it comes with: pip install 'ttm-lab[notebooks]'"
    ) from missing

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "red": "#D55E00",
    "pink": "#CC79A7",
    "grey": "#7F7F7F",
}

# One look for each role in every figure: colour, marker, line style.
METHOD_STYLE = {
    "teacher": {"color": OKABE_ITO["black"], "marker": "*", "linestyle": "-"},
    "CE": {"color": OKABE_ITO["grey"], "marker": "s", "linestyle": ":"},
    "KD": {"color": OKABE_ITO["blue"], "marker": "o", "linestyle": "--"},
    "TTM": {"color": OKABE_ITO["red"], "marker": "^", "linestyle": "-."},
    "WTTM": {"color": OKABE_ITO["green"], "marker": "D", "linestyle": "-"},
    "KD, T = 1": {"color": OKABE_ITO["sky"], "marker": "P", "linestyle": "--"},
    "label smoothing": {"color": OKABE_ITO["pink"], "marker": "v", "linestyle": ":"},
}


def use_style() -> None:
    """Set the course's look: readable sizes, few lines, the palette above. Call once a notebook."""
    mpl.rcParams.update(
        {
            "axes.grid": True,
            "axes.prop_cycle": mpl.cycler(
                color=[OKABE_ITO[c] for c in ("blue", "red", "green", "orange", "pink", "sky")],
                linestyle=["-", "--", "-.", ":", "-", "--"],
            ),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.labelsize": 10,
            "figure.dpi": 100,
            "figure.figsize": (7.0, 3.6),
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.markersize": 5,
        }
    )


def method_style(label: str) -> dict:
    """The colour, marker and line style of a label such as ``"KD"`` or ``"TTM, tuned"``."""
    if label in METHOD_STYLE:
        return dict(METHOD_STYLE[label])
    return dict(METHOD_STYLE.get(label.split()[0].rstrip(",:"), METHOD_STYLE["teacher"]))


def to_png(figure: Figure, *, scale: float = 2.0, compression: int = 6) -> bytes:
    """The figure as PNG bytes at its own size (no tight cropping), closed afterwards.

    ``compression`` goes from 0 to 9; 1 is fastest and makes files about a fifth larger.
    """
    buffer = io.BytesIO()
    packed = {"compress_level": compression}
    figure.savefig(buffer, format="png", dpi=100 * scale, pil_kwargs=packed)
    plt.close(figure)
    return buffer.getvalue()


def explorer_figure(height: float) -> Figure:
    """An empty figure as wide as an explorer, ``height`` inches high.

    Not pyplot's: a slider may move while a cell runs, in another thread, and at a cell's end the
    notebook shows and closes every figure that pyplot knows. A fixed layout is drawn faster.
    """
    return Figure(figsize=(6.4, height), layout="none")


def image_html(png: bytes, alt: str, width: int, height: int) -> str:
    """An ``<img>`` element with the picture inside and its text alternative.

    Both sides are named, so that the page keeps its place before it has read the picture.
    """
    text = html.escape(" ".join(alt.split()), quote=True)
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<img alt="{text}" src="data:image/png;base64,{data}" width="{width}" '
        f'height="{height}" style="max-width: 100%; height: auto; background: white;">'
    )


def show(figure: Figure | Axes, *, alt: str) -> None:
    """Show a figure in a notebook with a text alternative, then close it.

    The alternative text travels in an HTML ``<img alt=...>`` beside the plain PNG: that survives
    JupyterLab and the export to HTML, where ``IPython.display.Image(alt=...)`` loses it.

    Raises ``ValueError`` when ``alt`` says too little to stand in for the picture.
    """
    from IPython.display import display  # a notebook dependency, needed only here

    if len(alt.split()) < 6:
        raise ValueError(f"alt={alt!r} is too short: say what is seen and what it means")
    if isinstance(figure, Axes):
        figure = figure.figure
    png = to_png(figure)
    markup = image_html(png, alt, *(round(100 * side) for side in figure.get_size_inches()))
    data = base64.b64encode(png).decode("ascii")
    display({"text/html": markup, "image/png": data, "text/plain": alt}, raw=True)


# The triangle of three-class distributions


def simplex_xy(probabilities) -> np.ndarray:
    """Map distributions over three classes, shape (..., 3), to points of the plane, (..., 2).

    Class 1 sits at the left corner, class 2 at the right, class 3 on top; sides have length 1.
    """
    p = np.asarray(probabilities, dtype=float)
    if p.shape[-1] != 3:
        raise ValueError(f"the triangle shows three classes, got shape {p.shape}")
    return np.stack([p[..., 1] + p[..., 2] / 2, p[..., 2] * np.sqrt(3) / 2], axis=-1)


def draw_triangle(ax: Axes, names=("class 1", "class 2", "class 3")) -> Axes:
    """Draw the triangle of three-class distributions with its corners named and its centre."""
    corners = simplex_xy(np.eye(3))
    ax.fill(*corners.T, facecolor="#f6f6f6", edgecolor="#555555", linewidth=1.2, zorder=0)
    ax.plot(*simplex_xy([1 / 3, 1 / 3, 1 / 3]), marker="+", color="#555555", markersize=9, zorder=1)
    offsets, alignment = [(-0.02, -0.03), (0.02, -0.03), (0, 0.03)], ["right", "left", "center"]
    for corner, name, (dx, dy), align in zip(corners, names, offsets, alignment, strict=True):
        ax.text(corner[0] + dx, corner[1] + dy, name, ha=align, va="bottom" if dy > 0 else "top")
    ax.set_aspect("equal")
    ax.set_xlim(-0.18, 1.18)
    ax.set_ylim(-0.12, 0.98)
    ax.axis("off")
    return ax


# Notebook 1: temperature as a power transform


def temperature_path(
    path, temperatures, *, marked=(), names=("class 1", "class 2", "class 3"), color=None, ax=None
) -> Axes:
    """The way a three-class distribution takes through the triangle as T changes.

    ``path`` (N, 3) holds the distributions at the rising ``temperatures`` (N,). Below T = 1 the
    line is dotted, above it is solid; a star marks T = 1, and each temperature in ``marked`` gets
    a dot with its value.
    """
    if ax is None:
        ax = draw_triangle(plt.figure(figsize=(5.2, 4.4)).add_subplot(), names)
    color = color or OKABE_ITO["blue"]
    temperatures, xy = np.asarray(temperatures, dtype=float), simplex_xy(path)
    sharper, smoother = temperatures <= 1, temperatures >= 1
    ax.plot(*xy[sharper].T, color=color, linestyle=":", linewidth=2)
    ax.plot(*xy[smoother].T, color=color, linestyle="-", linewidth=2)
    for k, value in enumerate(sorted({1.0, *marked})):
        at = xy[np.abs(np.log(temperatures / value)).argmin()]
        ax.plot(
            *at, color=color, marker="*" if value == 1 else "o", markersize=12 - 6 * (value != 1)
        )
        if marked:  # names alternate between the two sides of the line, so that none collide
            below = k % 2 == 1
            ax.annotate(
                f"T = {value:g}",
                at,
                xytext=(6, -15) if below else (-6, 8),
                textcoords="offset points",
                ha="left" if below else "right",
                fontsize=9,
            )
    return ax


def temperature_bars(distributions, temperatures, class_names, *, share_y=True) -> Figure:
    """One panel of bars a temperature: ``distributions`` (M, K) at ``temperatures`` (M,).

    The bars of the likeliest class are darker and hatched; titles give T and the entropy in nats.
    """
    distributions = np.asarray(distributions, dtype=float)
    count = len(distributions)
    figure, axes = plt.subplots(
        1, count, figsize=(max(1.9 * count, 4), 2.5), sharey=share_y, squeeze=False
    )
    for ax, p, temperature in zip(axes[0], distributions, temperatures, strict=True):
        probability_bars(p, class_names, ax=ax)
        entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
        ax.set_title(f"T = {temperature:g}\nentropy {entropy:.2f}", fontsize=10)
    axes[0, 0].set_ylabel("probability")
    return figure


def probability_bars(p, class_names, *, reference=None, ax=None) -> Axes:
    """Bars of one distribution (K,), the likeliest class hatched; ``reference`` as outlines."""
    if ax is None:
        ax = plt.figure(figsize=(4.2, 2.8)).add_subplot()
    p = np.asarray(p, dtype=float)
    places = np.arange(len(p))
    top = places == p.argmax()
    ax.bar(places[top], p[top], color=OKABE_ITO["blue"], hatch="//", edgecolor="white")
    ax.bar(places[~top], p[~top], color=OKABE_ITO["sky"])
    if reference is not None:
        look = {"fill": False, "edgecolor": "black", "linestyle": "--"}
        ax.bar(places, np.asarray(reference), label="T = 1", **look)
        # Above the axes, right of the title: no bar can reach it there.
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, frameon=False)
    ax.set_xticks(places, class_names)
    ax.set_ylim(0, 1.02)
    ax.grid(axis="x", visible=False)
    return ax


def curves(x, series, *, xlabel, ylabel, log=(False, False), markers=True, ax=None) -> Axes:
    """Named curves over one x, told apart by colour, line style and marker.

    ``series`` maps a label to its values (N,); ``log`` says which of the axes are logarithmic.
    """
    if ax is None:
        ax = plt.figure().add_subplot()
    for (label, values), marker in zip(series.items(), "os^Dv*", strict=False):
        ax.plot(x, values, label=label, marker=marker if markers else None, markevery=0.12)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_xscale("log" if log[0] else "linear")
    ax.set_yscale("log" if log[1] else "linear")
    ax.legend()
    return ax


def point_maps(maps, p, class_names) -> Figure:
    """Point-wise maps f on [0, 1], their boost f(x)/x, and what each makes of ``p`` (K,).

    ``maps`` names the functions, which take and return arrays; the identity is drawn for contrast.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), width_ratios=[1, 1, 1.25])
    x = np.linspace(0.02, 1, 197)
    p = np.asarray(p, dtype=float)
    width, places = 0.8 / (len(maps) + 1), np.arange(len(p))
    axes[0].plot(x, x, color="black", linestyle=(0, (1, 2)), label="x")
    axes[2].bar(places, p, width, fill=False, edgecolor="black", linestyle=":", label="before")
    for k, (name, f) in enumerate(maps.items()):
        (line,) = axes[0].plot(x, f(x), label=name)
        axes[1].plot(x, f(x) / x, label=name)
        look = {"color": line.get_color(), "hatch": ("//", "..", "xx")[k % 3], "edgecolor": "white"}
        axes[2].bar(places + (k + 1) * width, f(p) / f(p).sum(), width, label=name, **look)
    axes[0].set(title="the map f(x)", xlabel="probability x")
    axes[1].set(title="the boost f(x) / x", xlabel="probability x", ylim=(0.9, 3))
    axes[2].set(title="f applied, then normalised", ylim=(0, 1))
    axes[2].set_xticks(places + width * len(maps) / 2, class_names)
    axes[0].legend()
    axes[2].legend()
    return figure


def bars_and_triangle(p, p_t, path, temperatures, temperature, class_names) -> Figure:
    """Bars of ``p_t`` (3,) with ``p`` (3,) outlined, beside its place on the path (N, 3)."""
    figure = explorer_figure(2.9)
    left, right = (
        figure.add_axes((0.085, 0.11, 0.4, 0.77)),
        figure.add_axes((0.5, 0.0, 0.5, 1.0)),
    )
    probability_bars(p_t, class_names, reference=p, ax=left)
    left.set_title(f"T = {temperature:.3g}", loc="left", y=1)
    left.set_ylabel("probability")
    temperature_path(path, temperatures, ax=draw_triangle(right, class_names))
    right.plot(*simplex_xy(p_t), marker="o", markersize=12, color=OKABE_ITO["red"])
    blue = {"color": OKABE_ITO["blue"]}
    handles = [
        plt.Line2D([], [], color=OKABE_ITO["red"], marker="o", linestyle="none", markersize=10),
        plt.Line2D([], [], marker="*", linestyle="none", markersize=12, **blue),
        plt.Line2D([], [], linestyle=":", linewidth=2, **blue),
        plt.Line2D([], [], linestyle="-", linewidth=2, **blue),
    ]
    names = ["$p_T$", "T = 1", "T < 1", "T > 1"]
    right.legend(handles, names, loc="upper left", bbox_to_anchor=(-0.02, 1.0))
    return figure


# Notebook 2: what a teacher knows


def picture_and_bars(image, p, p_t, class_names, *, title="", over="", log=False) -> Figure:
    """A picture (C, H, W) beside bars of ``p_t`` (K,), with ``p`` (K,) as outlines.

    C is 1 or 3; without an image a card with the title stands in. ``over`` is the title of the
    bars. ``log`` makes the axis of the probabilities logarithmic, from a ten-thousandth to 1.
    """
    figure = explorer_figure(2.75)
    slanted = max(map(len, class_names)) > 3
    foot = 0.27 if slanted else 0.13
    left, right = (
        figure.add_axes((0.01, 0.13, 0.29, 0.73)),
        figure.add_axes((0.39, foot, 0.6, 0.86 - foot)),
    )
    _picture(left, image, title if image is None else "")
    if image is not None:
        left.set_title(title, y=1)
    probability_bars(p_t, class_names, reference=p, ax=right)
    right.set_title(over, loc="left", y=1)
    right.set_ylabel("probability")
    right.set_yticks([0, 0.5, 1])
    if log:
        right.set(yscale="log", ylim=(1e-4, 1.5))
    if slanted:
        right.set_xticks(range(len(class_names)), class_names, rotation=35, ha="right")
        right.tick_params(axis="x", pad=0)
    return figure


def picture_and_labels(image, labels, class_names) -> Figure:
    """A picture (C, H, W) beside what is said of it: ``labels`` maps a title to bars (K,)."""
    count = len(labels)
    figure, axes = plt.subplots(
        1, count + 1, figsize=(2 + 2.7 * count, 2.5), width_ratios=[1] + [1.5] * count
    )
    _picture(axes[0], image)
    for k, (title, p) in enumerate(labels.items(), start=1):
        probability_bars(p, class_names, ax=axes[k])
        axes[k].set_title(title)
        axes[k].tick_params(labelsize=8)
    axes[1].set_ylabel("probability")
    return figure


def second_guesses(images, labels, distributions, class_names) -> Figure:
    """Pictures (N, 1, H, W) over what the teacher says of each, a row of bars a temperature.

    ``distributions`` maps a temperature to probabilities (N, K).
    """
    count, rows = len(images), len(distributions) + 1
    figure, axes = plt.subplots(
        rows, count, figsize=(2 * count, 1.7 * rows), height_ratios=[1] * rows, squeeze=False
    )
    for k in range(count):
        _picture(axes[0, k], images[k])
        axes[0, k].set_title(f"a {class_names[int(labels[k])]}")
        for ax, (temperature, p) in zip(axes[1:, k], distributions.items(), strict=True):
            probability_bars(p[k], class_names, ax=ax)
            second = np.argsort(np.asarray(p[k]))[-2]
            ax.set_title(f"T = {temperature:g}, then {class_names[second]}", fontsize=9)
            ax.tick_params(labelsize=8, labelleft=k == 0)
    return figure


def class_heatmaps(matrices, class_names) -> Figure:
    """Mean predictions by true class, a panel a temperature, in per cent, all on one scale.

    ``matrices`` maps a temperature to an array (K, K): row = true class, column = what the teacher
    says. The diagonal is left grey, so that the colours show the rest.
    """
    figure, axes = plt.subplots(1, len(matrices), figsize=(4.6 * len(matrices), 4.1), squeeze=False)
    matrices = {t: 100 * np.asarray(m, dtype=float) for t, m in matrices.items()}
    top = max((m - np.diag(np.diag(m))).max() for m in matrices.values())
    places = np.arange(len(class_names))
    for ax, (temperature, matrix) in zip(axes[0], matrices.items(), strict=True):
        diagonal = np.eye(len(matrix), dtype=bool)
        image = ax.imshow(np.ma.array(matrix, mask=diagonal), cmap="Blues", vmin=0, vmax=top)
        for i, j in np.ndindex(*matrix.shape):
            dark = matrix[i, j] > 0.6 * top and i != j
            color = "white" if dark else "black"
            ax.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", color=color, fontsize=8)
        ax.set(title=f"T = {temperature:g}", xlabel="teacher says", ylabel="true class")
        ax.set_xticks(places, class_names)
        ax.set_yticks(places, class_names)
        ax.set_facecolor("#d9d9d9")
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes[0].tolist(), label="mean probability, %", shrink=0.8)
    return figure


def dots_by_group(values, *, ylabel, xlabel="", ax=None) -> Axes:
    """One dot a run over its group, and a bar at each group's mean; ``values`` maps group to runs.

    Dots are spread sideways a little, so that equal values stay apart.
    """
    if ax is None:
        ax = plt.figure(figsize=(5.6, 3.2)).add_subplot()
    for k, runs in enumerate(values.values()):
        spread = np.linspace(-0.12, 0.12, len(runs)) if len(runs) > 1 else np.zeros(1)
        ax.plot(k + spread, runs, linestyle="", marker="o", color=OKABE_ITO["blue"])
        ax.hlines(np.mean(runs), k - 0.25, k + 0.25, color="black", linewidth=2)
    ax.set_xticks(range(len(values)), list(values))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def kd_descents(
    paths, teacher, softened, *, names=("class 1", "class 2", "class 3"), ax=None
) -> Axes:
    """Ways of a free student q through the triangle under KD, one a temperature.

    ``paths`` and ``softened`` map a temperature to the visited points (N, 3) and to p_T (3,),
    drawn hollow; ``teacher`` p (3,) is the star, which is p_T at T = 1 too.
    """
    if ax is None:
        ax = draw_triangle(plt.figure(figsize=(6.2, 4.8)).add_subplot(), names)
    looks = zip(("blue", "red", "green", "pink"), ("-", "--", "-.", ":"), "osD^", strict=True)
    for (temperature, path), (colour, line, marker) in zip(paths.items(), looks, strict=False):
        look = {"color": OKABE_ITO[colour], "linestyle": line}
        ax.plot(
            *simplex_xy(path).T, linewidth=2, label=f"q, trained at T = {temperature:g}", **look
        )
        if temperature == 1:
            continue
        at = simplex_xy(softened[temperature])
        face = {"markerfacecolor": "none", "linestyle": "", "markersize": 8}
        ax.plot(*at, marker, color=OKABE_ITO[colour], label=f"p_T, T = {temperature:g}", **face)
    look = METHOD_STYLE["teacher"] | {"linestyle": "", "label": "teacher p"}
    ax.plot(*simplex_xy(teacher), markersize=14, **look)
    start = simplex_xy(next(iter(paths.values()))[0])
    ax.annotate("start", start, xytext=(6, 6), textcoords="offset points")
    ax.legend(loc="upper right", bbox_to_anchor=(1.2, 1.0))
    return ax


# Notebook 3


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
        ax.annotate(label, simplex_xy(point), (10, 6), textcoords="offset points")
    ax.legend(loc="upper left")
    return figure


def triangle_contours(function, levels, class_names, ax=None) -> Axes:
    """Lines of equal ``function(p)`` on the triangle; it maps (N, 3) to (N,), arrays both."""
    if ax is None:
        ax = plt.figure(figsize=(4.6, 4)).add_subplot()
    draw_triangle(ax, class_names)
    grid = np.array([(i, j, 120 - i - j) for i in range(121) for j in range(121 - i)]) / 120
    values = np.asarray(function(grid), dtype=float)
    x, y = simplex_xy(grid).T
    ax.tricontourf(x, y, values, levels=levels, cmap="Blues", alpha=0.75, zorder=0, extend="both")
    lines = ax.tricontour(x, y, values, levels=levels, colors="#333333", linewidths=0.8, zorder=1)
    ax.clabel(lines, fmt="%g", fontsize=9, colors="black", inline_spacing=2)
    return ax


def triangle_maps(functions, levels, class_names) -> Figure:
    """One triangle with contours a function: titles mapped to functions (N, 3) -> (N,)."""
    figure, axes = plt.subplots(
        1, len(functions), figsize=(3.6 * len(functions), 3.5), squeeze=False
    )
    for ax, (title, function) in zip(axes[0], functions.items(), strict=True):
        triangle_contours(function, levels, class_names, ax=ax).set_title(title)
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


_TERMS = {
    r"$T\, D(p_T\| q_T)$": {"color": OKABE_ITO["blue"], "hatch": "//"},
    r"$-(T-1)\, H_{1/T}(q)$, Rényi": {"color": OKABE_ITO["orange"], "hatch": ".."},
    r"$+(T-1)\, H(p_T)$": {"color": OKABE_ITO["sky"], "hatch": ""},
    r"$D(p_T\| q)$, the TTM loss": {"color": OKABE_ITO["red"], "hatch": "xx"},
}


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
    points = {"$q$": (q, "^", (7, 4)), "$q_T$": (q_t, "o", (8, 3)), "$p_T$": (p_t, "*", (-2, -16))}
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
        ax = figure.add_axes((0.002 + 0.333 * k, 0.09, 0.33, 0.83))
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
        ax.set_title(name, color=style["color"], fontsize="x-large", pad=2, y=1)
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


# Notebook 4


def weights_and_pictures(
    weights, images, captions, bound, *, title="", count=4, largest=None
) -> Figure:
    """Histogram of WTTM weights (N,) beside the pictures that weigh least and most.

    ``images`` (N, C, H, W) with C 1 or 3, as bytes or from 0 to 1, or None; ``captions`` N short
    texts; ``bound`` the largest possible weight K^(1 - 1/T), drawn beside the smallest, 1.
    ``largest`` fixes the axis from 1 to there, so that several temperatures can be compared.
    """
    weights = np.asarray(weights, dtype=float)
    figure = explorer_figure(3.2)
    ax = figure.add_axes((0.09, 0.14, 0.345, 0.66))
    bins = 30 if largest is None else np.linspace(1, largest, 46)
    counts, edges = np.histogram(weights, bins)
    ax.stairs(counts, edges, fill=True, color=OKABE_ITO["green"])
    if largest is not None:
        ax.set_xlim(1 - 0.03 * (largest - 1), largest + 0.03 * (largest - 1))
    left = largest is not None and bound < (1 + largest) / 2
    uniform = (bound, 1.1, "uniform", "left" if left else "right")  # above the other label
    for place, height, label, align in ((1, 1.01, "1: one-hot", "left"), uniform):
        ax.axvline(place, color="black", linestyle="--", linewidth=1)
        look = {"transform": ax.get_xaxis_transform(), "ha": align, "fontsize": "small"}
        ax.text(place, height, label, **look)
    ax.axvline(weights.mean(), color=OKABE_ITO["red"], linestyle="-", linewidth=1.5)
    ax.plot(weights.mean(), 0, marker="^", color=OKABE_ITO["red"], markersize=9, clip_on=False)
    ax.set(xlabel="weight U (triangle: mean)", ylabel="pictures")
    order = weights.argsort(kind="stable")
    right = figure.add_axes((0.47, 0, 0.525, 1))  # one for both rows: each costs its time
    right.axis("off")
    for bottom, name, ends in ((0.7, "least", order), (0.22, "most", order[::-1])):
        chosen = ends[:count]
        middle = bottom + 0.12
        right.text(-0.02, middle, name, rotation=90, ha="right", va="center", fontweight="bold")
        for k, sample in enumerate(chosen):
            caption = f"U = {weights[sample]:.3g}\n{captions[sample]}"
            right.text(k + 0.5, bottom - 0.01, caption, fontsize="small", ha="center", va="top")
        if images is not None:  # one picture of all is drawn far faster than one each
            tiles = [_pixels(images[k]) for k in chosen]
            times = -(-40 // len(tiles[0]))  # so that the gap of two pixels is narrow
            tiles = [tile.repeat(times, axis=0).repeat(times, axis=1) for tile in tiles]
            gap = np.full((len(tiles[0]), 2, 3), 0.8)
            row_of_tiles = np.concatenate([part for tile in tiles for part in (gap, tile, gap)], 1)
            extent = (0, len(chosen), bottom, bottom + 0.245)
            right.imshow(row_of_tiles, aspect="auto", extent=extent)
    right.set(xlim=(0, count), ylim=(0, 1))
    ax.set_title(title, pad=32, y=1)  # a given place spares the search for one
    return figure


def teacher_captions(probabilities, labels, class_names=None) -> list[str]:
    """For each picture its label, and the teacher's two likeliest classes (N, K), on short lines.

    A name of more than eight letters is cut off.
    """
    p = np.asarray(probabilities, dtype=float)
    names = [str(k) for k in range(p.shape[1])] if class_names is None else class_names
    short = [name if len(name) <= 8 else f"{name[:6]}." for name in names]
    captions = []
    for row, label in zip(p, np.asarray(labels), strict=True):
        first, second = row.argsort()[::-1][:2]
        two = f"{short[first]}: {row[first]:.2f}\n{short[second]}: {row[second]:.2f}"
        captions.append(f"label {short[label]}\n{two}")
    return captions


def _pixels(image) -> np.ndarray:
    """A picture (C, H, W), bytes or from 0 to 1, as (H, W, 3); one channel is dark on light."""
    pixels = np.asarray(image)
    pixels = pixels / 255 if pixels.dtype == np.uint8 else pixels.astype(float)
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else np.stack([1 - pixels[0]] * 3, -1)


def _picture(ax: Axes, image, card: str = "") -> None:
    """A picture as ``_pixels`` takes it, or a card with words in its place."""
    if image is None:
        ax.text(0.5, 0.5, card, ha="center", va="center", transform=ax.transAxes, fontsize=12)
        ax.set_facecolor("#eeeeee")
    else:
        ax.imshow(_pixels(image))
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[["right", "top"]].set_visible(True)


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
    left.fill_between(temperatures, 1, bounds, color="#e8e8e8", label="possible: 1 to K^(1 − 1/T)")
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
    """
    figure, axes = plt.subplots(1, len(stages), figsize=(3.3 * len(stages), 3.5), squeeze=False)
    for ax, (title, (weights, distances)) in zip(axes[0], stages.items(), strict=True):
        weights, distances = np.asarray(weights, dtype=float), np.asarray(distances, dtype=float)
        ax.plot(weights, distances, "o", color=OKABE_ITO["sky"], markersize=3, alpha=0.5)
        groups = np.array_split(weights.argsort(), 10)
        means = np.array([(weights[g].mean(), distances[g].mean()) for g in groups])
        ax.plot(*means.T, color=OKABE_ITO["red"], marker="s", linestyle="-", linewidth=2)
        ax.set(title=title, xlabel="weight U of the teacher's output", ylim=(0, None))
    axes[0, 0].set_ylabel(r"$D(p_T\|q)$, nats")
    return figure


# Notebooks 5 and 6


def learning_curves(
    histories: pd.DataFrame, measure: str, *, ylabel: str, log: bool = False, ax: Axes | None = None
) -> Axes:
    """Mean of a measure over seeds against the epoch, a line a method, with all seeds behind it.

    ``histories`` has the columns method, seed, epoch and the measure. A method's line stops where
    its shortest training does.
    """
    ax = ax or plt.subplots()[1]
    for method, rows in histories.groupby("method", sort=False):
        table = rows.pivot(index="epoch", columns="seed", values=measure)
        style = method_style(method)
        ax.plot(table.index, table, color=style["color"], linewidth=0.6, linestyle="-", alpha=0.3)
        mean = table.dropna().mean(axis=1)
        ax.plot(mean.index, mean, label=method, markevery=max(1, len(mean) // 6), **style)
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if log:
        ax.set_yscale("log")
    ax.legend()
    return ax


def value_histograms(
    values: dict[str, np.ndarray], *, xlabel: str, bins: int = 30, high: float | None = None
) -> Figure:
    """One histogram a method, stacked in rows over one axis, with the mean marked."""
    figure, axes = plt.subplots(
        len(values), 1, sharex=True, figsize=(7.0, 0.6 + 0.95 * len(values)), squeeze=False
    )
    high = high or max(np.max(v) for v in values.values())
    for ax, (method, sample) in zip(axes[:, 0], values.items(), strict=True):
        color = method_style(method)["color"]
        weights = np.full(len(sample), 100 / len(sample))
        ax.hist(sample, bins=np.linspace(0, high, bins + 1), weights=weights, color=color)
        ax.axvline(np.mean(sample), color="black", linestyle="--", linewidth=1.2)
        text = f"{method}: mean {np.mean(sample):.2f}"
        ax.text(0.99, 0.85, text, transform=ax.transAxes, ha="right", va="top")
        ax.set_ylabel("%")
    axes[-1, 0].set_xlabel(xlabel)
    return figure


def interval_plot(
    table: pd.DataFrame, *, xlabel: str, margin: float = 0.0, ax: Axes | None = None
) -> Axes:
    """Differences with their intervals, a line a row; columns name, difference, low and high.

    An optional column ``method`` chooses colour and marker. Zero is drawn as a line: an interval
    that crosses it leaves the sign open. Differences within ``margin`` are shaded: an interval
    wholly in there is negligible.
    """
    ax = ax or plt.subplots(figsize=(7.0, 0.9 + 0.42 * len(table)))[1]
    ax.axvspan(-margin, margin, color="black", alpha=0.1, linewidth=0)
    for y, row in enumerate(table[::-1].to_dict("records")):
        style = method_style(row.get("method", row["name"]))
        ax.plot([row["low"], row["high"]], [y, y], color=style["color"], linewidth=2, linestyle="-")
        ax.plot(row["difference"], y, color=style["color"], marker=style["marker"], markersize=8)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(table)), table["name"][::-1])
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.set_xlabel(xlabel)
    return ax


def reliability_diagram(tables: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy against confidence in bins, a panel a method; the diagonal is perfect calibration.

    ``tables`` come from ``analysis.reliability``; a marker's area grows with its bin's count.
    """
    figure, axes = plt.subplots(
        1, len(tables), sharex=True, sharey=True, figsize=(2.3 * len(tables), 2.7), squeeze=False
    )
    for ax, (method, table) in zip(axes[0], tables.items(), strict=True):
        table = table[table["count"] > 0]
        style = method_style(method)
        ax.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":")
        ax.plot(table["confidence"], table["accuracy"], color=style["color"], linewidth=1)
        area = 12 + 250 * table["count"] / table["count"].sum()
        points = table["confidence"], table["accuracy"]
        ax.scatter(*points, s=area, color=style["color"], marker=style["marker"])
        ax.set(title=method, xlabel="confidence", xlim=(0, 1.03), ylim=(0, 1.05))
    axes[0, 0].set_ylabel("accuracy")
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


def two_students(students, classes: int) -> Figure:
    """Two kinds of student side by side: entropies, calibration, and accuracies over seeds.

    ``students`` maps two labels to dicts: entropy (samples,) in nats, reliability, the frame of
    ``analysis.reliability``, and accuracies (seeds,) in per cent.
    """
    figure = explorer_figure(2.9)
    places = ((0.1, 0.17, 0.235, 0.6), (0.425, 0.17, 0.235, 0.6), (0.765, 0.17, 0.225, 0.6))
    left, middle, right = (figure.add_axes(place) for place in places)
    bins = np.linspace(0, np.log(classes), 31)
    middle.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":")
    looks = (
        {"color": OKABE_ITO["blue"], "marker": "o", "linestyle": "-"},
        {"color": OKABE_ITO["red"], "marker": "^", "linestyle": "--"},
    )
    handles = []
    for place, (found, look) in enumerate(zip(students.values(), looks, strict=False)):
        counts = np.histogram(found["entropy"], bins)[0] * 100 / len(found["entropy"])
        line = {"linestyle": look["linestyle"], "color": look["color"]}
        if place == 0:
            left.stairs(counts, bins, fill=True, color=look["color"], alpha=0.35)
        left.stairs(counts, bins, linewidth=2, **line)
        left.axvline(np.mean(found["entropy"]), linewidth=1, **line)
        table = found["reliability"][found["reliability"]["count"] > 0]
        handles += middle.plot(table["confidence"], table["accuracy"], linewidth=1.5, **look)
        runs = np.asarray(found["accuracies"], dtype=float)
        spread = np.linspace(-0.12, 0.12, len(runs)) if len(runs) > 1 else np.zeros(1)
        right.plot(place + spread, runs, color=look["color"], marker=look["marker"], linestyle="")
        right.hlines(runs.mean(), place - 0.25, place + 0.25, color="black", linewidth=2)
        if len(runs) > 1:
            _, low, high = paired_interval(runs)
            right.vlines(place + 0.3, low, high, color=look["color"], linewidth=3)
    left.set(xlabel="H(q) of a test image, nats", ylabel="% of the images", xlim=(0, bins[-1]))
    middle.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03))
    right.set(ylabel="test accuracy, %", xlim=(-0.6, 1.6))
    right.set_xticks([0, 1][: len(students)], ["A", "B"][: len(students)])
    for ax, title in zip(
        (left, middle, right), ("entropy", "calibration", "accuracy"), strict=True
    ):
        ax.set_title(title)
    figure.legend(handles, list(students), loc="upper center", ncols=2)
    return figure


# Notebook 7


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
                    ax.set_xlabel(captions[name][k], fontsize=9)
        cells[0].set_ylabel(name, fontweight="bold")
    return figure


def beside_the_paper(table: pd.DataFrame, *, xlabel: str = "test accuracy, %") -> Axes:
    """Accuracies measured here, with intervals, beside the published ones, a line a method.

    ``table`` comes from ``paper.summarise``. Filled markers are measured here, with the 95 %
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


# Notebook 8


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
