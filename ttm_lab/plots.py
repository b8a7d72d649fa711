"""Figures of the course: one function a figure; each takes arrays or frames and returns Axes.

Colours are those of Okabe and Ito, which most colour-blind readers can tell apart; markers and
line styles repeat what the colour says.
"""

import base64
import html
import io

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def to_png(figure: Figure, *, scale: float = 2.0) -> bytes:
    """The figure as PNG bytes at its own size (no tight cropping), closed afterwards."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100 * scale)
    plt.close(figure)
    return buffer.getvalue()


def image_html(png: bytes, alt: str, width: int) -> str:
    """An ``<img>`` element with the picture inside and its text alternative."""
    text = html.escape(" ".join(alt.split()), quote=True)
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<img alt="{text}" src="data:image/png;base64,{data}" width="{width}" '
        f'style="max-width: 100%; height: auto; background: white;">'
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
    markup = image_html(png, alt, width=round(figure.get_figwidth() * 100))
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
