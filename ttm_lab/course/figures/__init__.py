"""Figures that several notebooks draw; what one notebook draws lies beside, in a module of its own.

One function a figure; each takes arrays or frames and returns Axes or a Figure.

Colours are those of Okabe and Ito, which most colour-blind readers can tell apart; markers and
line styles repeat what the colour says.
"""

import base64
import html
import io
import re

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
_TERMS = {
    r"$T\, D(p_T\| q_T)$": {"color": OKABE_ITO["blue"], "hatch": "//"},
    r"$-(T-1)\, H_{1/T}(q)$, Rényi": {"color": OKABE_ITO["orange"], "hatch": ".."},
    r"$+(T-1)\, H(p_T)$": {"color": OKABE_ITO["sky"], "hatch": ""},
    r"$D(p_T\| q)$, the TTM loss": {"color": OKABE_ITO["red"], "hatch": "xx"},
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
    """The colour, marker and line style of a label such as ``"KD"`` or ``"TTM, tuned"``.

    Markers are hollow where the loss is another arm's with a factor, as in ``"KD x 10"``.
    """
    name = label if label in METHOD_STYLE else label.split()[0].rstrip(",:")
    hollow = {"markerfacecolor": "white"} if re.match(r"\w+ [x/] ", label) else {}
    return METHOD_STYLE.get(name, METHOD_STYLE["teacher"]) | hollow


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
    wide = ' class="wide"' if width > 600 else ""  # several panels: a small screen may scroll
    return (
        f'<img{wide} alt="{text}" src="data:image/png;base64,{data}" width="{width}" '
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


def simplex_xy(probabilities) -> np.ndarray:
    """Map distributions over three classes, shape (..., 3), to points of the plane, (..., 2).

    Class 1 sits at the left corner, class 2 at the right, class 3 on top; sides have length 1.
    """
    p = np.asarray(probabilities, dtype=float)
    if p.shape[-1] != 3:
        raise ValueError(f"the triangle shows three classes, got shape {p.shape}")
    return np.stack([p[..., 1] + p[..., 2] / 2, p[..., 2] * np.sqrt(3) / 2], axis=-1)


def plain(name: str) -> str:
    """A name for matplotlib to show as it is: between two dollars it would read a formula."""
    return name.replace("$", r"\$")


def draw_triangle(ax: Axes, names=("class 1", "class 2", "class 3")) -> Axes:
    """Draw the triangle of three-class distributions with its corners named and its centre."""
    corners = simplex_xy(np.eye(3))
    ax.fill(*corners.T, facecolor="#f6f6f6", edgecolor="#555555", linewidth=1.2, zorder=0)
    ax.plot(*simplex_xy([1 / 3, 1 / 3, 1 / 3]), marker="+", color="#555555", markersize=9, zorder=1)
    offsets, alignment = [(-0.02, -0.03), (0.02, -0.03), (0, 0.03)], ["right", "left", "center"]
    for corner, name, (dx, dy), align in zip(corners, names, offsets, alignment, strict=True):
        ax.text(
            corner[0] + dx, corner[1] + dy, plain(name), ha=align, va="bottom" if dy > 0 else "top"
        )
    ax.set_aspect("equal")
    ax.set_xlim(-0.18, 1.18)
    ax.set_ylim(-0.12, 0.98)
    ax.axis("off")
    return ax


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
    ax.set_xticks(places, map(plain, class_names))
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
    draw_picture(left, image, title if image is None else "")
    if image is not None:
        left.set_title(title, y=1)
    probability_bars(p_t, class_names, reference=p, ax=right)
    right.set_title(over, loc="left", y=1)
    right.set_ylabel("probability")
    right.set_yticks([0, 0.5, 1])
    if log:
        right.set(yscale="log", ylim=(1e-4, 1.5))
    if slanted:
        right.set_xticks(range(len(class_names)), map(plain, class_names), rotation=35, ha="right")
        right.tick_params(axis="x", pad=0)
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
    # Numbers stand one above the other on the way to the third corner, where lines lie level;
    # the last stretch is left out, where they would touch the edges and the name.
    steps = np.linspace(0, 0.93, 200)[:, None]
    way = (1 - steps) / 3 + steps * np.eye(3)[2]
    along = np.asarray(function(way), dtype=float)
    places = []
    for level in lines.levels:
        crossed = np.flatnonzero(np.diff(np.sign(along - level)))
        places += map(tuple, simplex_xy(way[crossed[:1]]))
    ax.clabel(lines, fmt="%g", fontsize=9, colors="black", inline_spacing=2, manual=places)
    return ax


def triangle_maps(functions, levels, class_names) -> Figure:
    """One triangle with contours a function: titles mapped to functions (N, 3) -> (N,)."""
    figure, axes = plt.subplots(
        1, len(functions), figsize=(3.6 * len(functions), 3.5), squeeze=False
    )
    for ax, (title, function) in zip(axes[0], functions.items(), strict=True):
        triangle_contours(function, levels, class_names, ax=ax).set_title(title)
    return figure


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
    uniform = (
        bound,
        1.1,
        f"{bound:.3g}: uniform",
        "left" if left else "right",
    )  # above the other label
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
            caption = f"U = {weights[sample]:.3g}\n{plain(captions[sample])}"
            right.text(k + 0.5, bottom - 0.01, caption, fontsize="small", ha="center", va="top")
        if images is not None:  # one picture of all is drawn far faster than one each
            tiles = [pixels(images[k]) for k in chosen]
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


def pixels(image) -> np.ndarray:
    """A picture (C, H, W), bytes or from 0 to 1, as (H, W, 3); one channel is dark on light."""
    pixels = np.asarray(image)
    pixels = pixels / 255 if pixels.dtype == np.uint8 else pixels.astype(float)
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else np.stack([1 - pixels[0]] * 3, -1)


def draw_picture(ax: Axes, image, card: str = "") -> None:
    """A picture as ``pixels`` takes it, or a card with words in its place."""
    if image is None:
        ax.text(0.5, 0.5, card, ha="center", va="center", transform=ax.transAxes, fontsize=12)
        ax.set_facecolor("#eeeeee")
    else:
        ax.imshow(pixels(image))
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[["right", "top"]].set_visible(True)


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
    figure.legend(handles, list(map(plain, students)), loc="upper center", ncols=2)
    return figure
