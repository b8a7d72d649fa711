"""Widgets: sliders above a picture that is drawn anew by a pure function.

No ``interact``, ``interactive_output`` or ``Output``: those make batch runs hang now and then.
A slider's ``observe`` callback renders the figure to PNG and puts it into one HTML widget, which
keeps its size and carries a text alternative.
"""

from collections.abc import Callable

import numpy as np
import torch

try:
    import ipywidgets as widgets
    from matplotlib.figure import Figure
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{missing.name} is not installed; it comes with: pip install 'ttm-lab[notebooks]'"
    ) from missing

from ttm_lab.plots import (
    bars_and_triangle,
    gradient_arrows,
    image_html,
    picture_and_bars,
    teacher_captions,
    to_png,
    weights_and_digits,
)
from ttm_lab.probability import power_sum, shannon_entropy, temperature_softmax

_LAYOUT = {
    "layout": widgets.Layout(width="480px"),
    "style": {"description_width": "120px"},
}


def log_slider(label: str, low: float, high: float, value: float, steps: int = 60):
    """A slider whose steps are equal ratios, for quantities such as a temperature."""
    ratio = (high / low) ** (1 / steps)
    options = [low * ratio**k for k in range(steps + 1)]
    nearest = min(range(steps + 1), key=lambda k: abs(options[k] - value))
    options[nearest] = value  # the value asked for lies exactly on the scale
    return widgets.SelectionSlider(
        options=[(f"{option:.3g}", option) for option in options],
        value=value,
        description=label,
        **_LAYOUT,
    )


def linear_slider(label: str, low: float, high: float, value: float, step: float):
    """A slider with equal steps; whole numbers where ``step`` is an int."""
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(value=value, min=low, max=high, step=step, description=label, **_LAYOUT)


def panel(
    figure: Callable[..., Figure],
    describe: Callable[..., str],
    **controls: widgets.ValueWidget,
) -> widgets.VBox:
    """Controls above a picture: moving one draws ``figure(**values)`` anew.

    ``describe(**values)`` gives the sentence under the picture with the numbers that move; it is
    also the picture's text alternative. Make the returned box a cell's last value.
    """
    picture, words = widgets.HTML(), widgets.HTML()

    def redraw(_change=None) -> None:
        values = {name: control.value for name, control in controls.items()}
        drawn, text = figure(**values), describe(**values)
        width = round(drawn.get_figwidth() * 100)
        picture.value = image_html(to_png(drawn, scale=1.5), text, width)
        words.value = f'<p style="font-size: 1.05em">{text}</p>'

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return widgets.VBox([*controls.values(), picture, words])


# Notebook 1


def temperature_explorer(class_names=("7", "1", "9")) -> widgets.VBox:
    """Three classes, their logits and a temperature to move: bars, triangle and entropy follow.

    Taught in notebooks/01_temperature_is_a_power_transform.ipynb.
    """
    temperatures = np.geomspace(0.05, 100, 121)

    def tempered(first, second, temperature):
        logits = torch.tensor([first, second, 0.0], dtype=torch.float64)
        return temperature_softmax(logits, temperature)

    def figure(temperature, first, second):
        path = np.stack([tempered(first, second, t).numpy() for t in temperatures])
        p, p_t = tempered(first, second, 1.0), tempered(first, second, temperature)
        return bars_and_triangle(p, p_t, path, temperatures, temperature, class_names)

    def describe(temperature, first, second):
        p, p_t = tempered(first, second, 1.0), tempered(first, second, temperature)
        bars = ", ".join(f"{name}: {x:.3f}" for name, x in zip(class_names, p_t, strict=True))
        before, after = shannon_entropy(p), shannon_entropy(p_t)
        return (
            f"At T = {temperature:.3g} the probabilities are {bars}. "
            f"Entropy {after:.3f} nats (at T = 1 it is {before:.3f})."
        )

    return panel(
        figure,
        describe,
        temperature=log_slider("temperature T", 0.1, 40, 1.0),
        first=linear_slider(f"logit of {class_names[0]}", -6.0, 6.0, 4.0, 0.25),
        second=linear_slider(f"logit of {class_names[1]}", -6.0, 6.0, 2.0, 0.25),
    )


# Notebook 2


def digit_explorer(images, labels, logits, class_names) -> widgets.VBox:
    """Step through pictures and move T: the picture, bars of p and p_T, and the second guess.

    ``images`` (N, 1, H, W), ``labels`` (N,), teacher ``logits`` (N, K).
    Taught in notebooks/02_knowledge_distillation.ipynb.
    """
    logits = torch.as_tensor(logits).double()

    def figure(picture, temperature):
        v = logits[picture]
        p, p_t = temperature_softmax(v, 1.0), temperature_softmax(v, temperature)
        title = f"a {class_names[int(labels[picture])]}, T = {temperature:.3g}"
        return picture_and_bars(images[picture], p, p_t, class_names, title=title)

    def describe(picture, temperature):
        p_t = temperature_softmax(logits[picture], temperature)
        (first, second), best = p_t.topk(2).values.tolist(), p_t.topk(2).indices.tolist()
        return (
            f"A {class_names[int(labels[picture])]}. At T = {temperature:.3g} the teacher says "
            f"{class_names[best[0]]} with {first:.3f}, then {class_names[best[1]]} with "
            f"{second:.3f}. Entropy {shannon_entropy(p_t):.3f} nats."
        )

    return panel(
        figure,
        describe,
        picture=linear_slider("picture", 0, len(images) - 1, 0, 1),
        temperature=log_slider("temperature T", 0.5, 20, 1.0),
    )


# Notebook 3


def gradient_explorer(class_names=("7", "1", "9")) -> widgets.VBox:
    """A temperature and a student to move: the two arrows of the TTM gradient on the triangle.

    Taught in notebooks/03_from_kd_to_ttm.ipynb.
    """
    teacher_logits = torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64)

    def points(temperature, first, third):
        logits = torch.tensor([first, 1.0, third], dtype=torch.float64)
        softened = (temperature_softmax(v, temperature) for v in (logits, teacher_logits))
        return temperature_softmax(logits, 1.0), *softened

    def figure(**values):
        return gradient_arrows(
            *points(**values), class_names, title=f"T = {values['temperature']:.3g}"
        ).figure

    def describe(**values):
        q, q_t, p_t = points(**values)
        kd, entropy, total = ((b - a).norm() for a, b in ((q_t, p_t), (q, q_t), (q, p_t)))
        return (
            f"At T = {values['temperature']:.3g} the arrows have the lengths {kd:.3f} (KD term), "
            f"{entropy:.3f} (entropy term) and {total:.3f} (TTM, their sum)."
        )

    return panel(
        figure,
        describe,
        temperature=log_slider("temperature T", 1.0, 100, 4.0),
        first=linear_slider(f"student's {class_names[0]}", -3.0, 6.0, 0.0, 0.25),
        third=linear_slider(f"student's {class_names[2]}", -3.0, 6.0, 2.5, 0.25),
    )


# Notebook 4


def weight_explorer(teacher_logits, images, labels) -> widgets.VBox:
    """A temperature to move: the WTTM weights of a teacher's outputs, and who weighs most.

    ``teacher_logits`` (N, K), ``images`` (N, 1, 8, 8), ``labels`` (N,).
    Taught in notebooks/04_wttm_which_samples_weigh_more.ipynb.
    """
    p = torch.as_tensor(teacher_logits).double().softmax(-1)
    captions = teacher_captions(p, labels)

    def weights(temperature):
        return power_sum(p, 1 / temperature)

    def figure(temperature):
        bound = p.shape[-1] ** (1 - 1 / temperature)
        title = f"T = {temperature:.3g}"
        u, largest = weights(temperature), p.shape[-1]
        return weights_and_digits(u, images, captions, bound, title=title, largest=largest)

    def describe(temperature):
        u = weights(temperature)
        return (
            f"At T = {temperature:.3g} weights run from {u.min():.3f} to {u.max():.3f}, mean "
            f"{u.mean():.3f}. The heaviest counts {u.max() / u.min():.2f} times the lightest; "
            f"the standard deviation is {u.std() / u.mean():.1%} of the mean."
        )

    return panel(figure, describe, temperature=log_slider("temperature T", 1.05, 60, 4.0))
