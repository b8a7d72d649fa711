"""Figures of temperature and power transforms, in notebook 1."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ttm_lab.course.figures import plain


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
    axes[2].set_xticks(places + width * len(maps) / 2, map(plain, class_names))
    axes[0].legend()
    axes[2].legend()
    return figure
