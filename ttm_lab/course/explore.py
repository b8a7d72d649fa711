"""Widgets: controls above a picture that a pure function draws anew.

No ``interact``, ``interactive_output`` or ``Output``: those make batch runs hang now and then.
A control's ``observe`` callback renders a figure to PNG and puts it into one HTML widget, which
keeps its size and carries a text alternative. Below it stand the numbers that move, in words.
Controls are reached by Tab and moved by the arrow keys, or by a mouse; Space opens a list, ticks
a box and presses a button.

In a batch, whose pages have no kernel, an explorer also brings frames drawn ahead (``frames``).
"""

import gc
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from scipy import special
from torch import nn

try:
    import ipywidgets as widgets
    from matplotlib.figure import Figure
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{missing.name} is not installed; it comes with: pip install 'ttm-lab[notebooks]'"
    ) from missing

from ttm_lab import analysis
from ttm_lab.course import corruptions, figures, frames, outliers
from ttm_lab.course.compression import prune_weights, round_weights, stored, weighted_layers
from ttm_lab.course.figures import (
    notebook3,
    notebook10,
    notebook11,
    notebook12,
    notebook13,
    notebook14,
)
from ttm_lab.course.outputs import Outputs
from ttm_lab.losses import decompose_ttm
from ttm_lab.probability import (
    kl_divergence,
    power_sum,
    renyi_entropy,
    shannon_entropy,
    temperature_softmax,
)

_WIDTH = 840  # px: what JupyterLab has beside its file list on a screen 1280 wide
_LAYOUT = {
    "layout": widgets.Layout(width="410px"),
    "style": {"description_width": "160px"},
}
_ZOOM = 1.3  # pictures are for a room: 130 px an inch
_MOST_FRAMES, _MOST_BYTES = 28, 600_000  # of an explorer in a page: below 1 MB as text
_LOOK = f"""<style>
.ttm-explorer {{ --jp-widgets-font-size: 16px; --jp-widgets-inline-height: 32px; }}
.ttm-explorer .widget-hslider {{ margin: 2px; }}
.ttm-explorer img {{ display: block; }}
.ttm-numbers {{
    display: grid; grid-template-columns: repeat(auto-fill, minmax(195px, 1fr)); gap: 8px 12px;
    max-width: {_WIDTH}px; line-height: 1.3; padding: 6px 0; font-variant-numeric: tabular-nums;
}}
.ttm-numbers > div {{ align-self: end; }}
.ttm-numbers div div {{ font-size: 15px; opacity: 0.8; }}
.ttm-numbers div div + div {{ font-size: 18px; font-weight: 600; opacity: 1; }}
</style>"""


def temperature_slider(low: float, high: float, value: float, label: str = "temperature T"):
    """A slider of equal ratios: eight steps double T, and 1, 2, 4 and 8 lie on it exactly."""
    steps = range(round(8 * np.log2(low)) + 1, round(8 * np.log2(high)))
    options = [low, *(2.0 ** (k / 8) for k in steps), high]
    value = min(options, key=lambda option: abs(option - value))
    return step_slider(label, [(f"{option:.3g}", float(option)) for option in options], value)


def step_slider(label: str, options: Sequence[tuple[str, float]], value: float):
    """A slider over values that have names."""
    # By its place: a SelectionSlider that is given its first value does not know its name.
    place = [number for _, number in options].index(value)
    return widgets.SelectionSlider(options=options, index=place, description=label, **_LAYOUT)


def linear_slider(label: str, low: float, high: float, value: float, step: float):
    """A slider with equal steps; whole numbers where ``step`` is an int."""
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(value=value, min=low, max=high, step=step, description=label, **_LAYOUT)


def choice(label: str, options, value=None) -> widgets.Dropdown:
    """A list to choose one entry from."""
    options = list(options)
    return widgets.Dropdown(
        options=options, value=value or options[0], description=label, **_LAYOUT
    )


def panel(
    figure: Callable[..., Figure],
    numbers: Callable[..., dict[str, str]],
    controls: Mapping[str, widgets.ValueWidget],
    buttons: Mapping[str, Callable[[], None]] | None = None,
    pages: Mapping[str, Mapping[object, str] | None] | None = None,
) -> widgets.VBox:
    """Controls above a picture: moving one draws ``figure(**values)`` anew.

    ``numbers(**values)`` names the numbers that move, as text with their units; they stand below
    the picture. With the controls' values they are its text alternative. ``buttons`` maps a label
    to what a press does, such as setting a control. Make the returned box a cell's last value.

    ``pages`` names the controls that also move in a page without a kernel; without it the first
    one does. None stands for a control's own values, a mapping of values to words makes a list of
    these. Where that is more than 28 frames or 1 MB, sliders get fewer steps, and where there is
    none the last control named stays where it opens, as do all that are not named.
    """
    picture, words = widgets.HTML(), widgets.HTML()

    def redraw(_change=None) -> None:
        # A figure is full of cycles. Collected while it is young, it never makes a slider wait for
        # a collection of all that the notebook holds.
        gc.disable()
        try:
            draw()
        finally:
            gc.enable()
            gc.collect(0)

    def draw() -> None:
        values = {name: control.value for name, control in controls.items()}
        drawn, found = figure(**values), numbers(**values)
        size = _size(drawn)
        png = figures.to_png(drawn, scale=2.0, compression=1)
        said = {control.description: _said(control) for control in controls.values()} | found
        picture.value = figures.image_html(png, _alt(said), *size)
        words.value = f'<div class="ttm-numbers">{frames.numbers_html(found)}</div>{_LOOK}'

    def page(name: str) -> str:
        return _page(name, figure, numbers, controls, pages or {next(iter(controls)): None})

    def press(action: Callable[[], None]) -> Callable[[widgets.Button], None]:
        return lambda _button: action()

    for control in controls.values():
        control.observe(redraw, names="value")
    row = []
    for label, action in (buttons or {}).items():
        button = widgets.Button(description=label, layout=widgets.Layout(width="150px"))
        button.on_click(press(action))
        row.append(button)
    columns = {"grid_template_columns": "repeat(auto-fit, 410px)", "max_width": f"{_WIDTH}px"}
    grid = widgets.GridBox(list(controls.values()), layout=widgets.Layout(**columns))
    aligned = widgets.Layout(margin="0 0 0 165px")  # with the controls, right of their labels
    redraw()
    box = _Explorer(
        [grid, *([widgets.HBox(row, layout=aligned)] if row else []), picture, words], page=page
    )
    return box.add_class("ttm-explorer")


class _Explorer(widgets.VBox):
    """Controls and a picture; in a batch it shows itself as HTML with frames as well."""

    def __init__(self, children, *, page: Callable[[str], str]):
        super().__init__(children)
        self.page = page

    def _repr_mimebundle_(self, **given) -> dict:
        bundle = super()._repr_mimebundle_(**given)
        if os.environ.get("TTM_LAB_PAGES"):
            bundle["text/html"] = self.page(f"explorer-{self.model_id}")
        return bundle


def _page(name: str, figure, numbers, controls, pages) -> str:
    """The explorer as HTML that moves without a kernel; arguments as ``panel`` takes them."""
    at_first = {key: control.value for key, control in controls.items()}
    moved = {key: pages[key] or _own_values(controls[key]) for key in pages}

    def frame(values) -> tuple[frames.Frame, tuple[int, int]]:
        drawn, found = figure(**values), numbers(**values)
        said = {control.description: _said(control) for control in controls.values()}
        said |= {controls[key].description: moved[key][values[key]] for key in moved}
        return frames.Frame(frames.to_webp(drawn), _alt(said | found), found), _size(drawn)

    opening, size = frame(at_first)
    most = min(_MOST_FRAMES, _MOST_BYTES // len(opening.picture))
    while math.prod(map(len, moved.values())) > most:
        sliders = [key for key in moved if _is_slider(controls[key]) and not pages[key]]
        sliders = [key for key in sliders if len(moved[key]) > 3]
        if not sliders:
            moved.popitem()
            continue
        # Every second value of the finest slider, and the one where it opens.
        finest = max(sliders, key=lambda key: len(moved[key]))
        start = list(moved[finest]).index(at_first[finest])
        moved[finest] = dict(list(moved[finest].items())[start % 2 :: 2])
    drawn = []
    for chosen in itertools.product(*moved.values()):
        values = at_first | dict(zip(moved, chosen, strict=True))
        drawn.append(opening if values == at_first else frame(values)[0])
    moves = [
        frames.Control(
            controls[key].description,
            list(moved[key].values()),
            list(moved[key]).index(at_first[key]),
            slider=_is_slider(controls[key]) and not pages[key],
        )
        for key in moved
    ]
    fixed = [f"{c.description} {_said(c)}" for key, c in controls.items() if key not in moved]
    note = f"Fixed here: {', '.join(fixed)}. All controls" if fixed else "Finer steps"
    note += " move in JupyterLab, after make lab."
    return frames.moving_html(name, moves, drawn, size, note)


def _is_slider(control: widgets.ValueWidget) -> bool:
    sliders = widgets.SelectionSlider, widgets.IntSlider, widgets.FloatSlider
    return isinstance(control, sliders)


def _own_values(control: widgets.ValueWidget) -> dict[object, str]:
    """All values of a slider, a list or a box to tick, and each as text."""
    if isinstance(control, widgets.Checkbox):
        return {False: "off", True: "on"}
    if hasattr(control, "options"):
        pairs = (o if isinstance(o, tuple) else (str(o), o) for o in control.options)
        return {value: text for text, value in pairs}
    steps = round((control.max - control.min) / control.step)
    values = [control.min + k * control.step for k in range(steps + 1)]
    return {value: f"{round(value, 6) + 0.0:g}" for value in values}


def _size(figure: Figure) -> tuple[int, int]:
    width, height = (round(100 * _ZOOM * side) for side in figure.get_size_inches())
    return width, height


def _alt(said: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in said.items())


def _said(control: widgets.ValueWidget) -> str:
    """A control's value as text."""
    value = getattr(control, "label", control.value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else f"{round(value, 6) + 0.0:g}"


def _signed(x: float) -> str:
    return f"{round(x, 3) + 0.0:+.3f} nats".replace("-", "−")  # and no -0.000


def _listed(p) -> str:
    return ", ".join(f"{x:.3f}" for x in p)


# Notebook 1


def temperature_path(class_names: Sequence[str] = ("7", "1", "9")) -> widgets.VBox:
    """Three classes, their logits and a temperature to move: bars, triangle and entropy follow."""
    temperatures = np.geomspace(0.05, 100, 121)

    def tempered(first, second, temperature):
        logits = torch.tensor([first, second, 0.0], dtype=torch.float64)
        return temperature_softmax(logits, temperature)

    def figure(temperature, first, second):
        way = np.stack([tempered(first, second, t).numpy() for t in temperatures])
        p, p_t = tempered(first, second, 1.0), tempered(first, second, temperature)
        return figures.bars_and_triangle(p, p_t, way, temperatures, temperature, class_names)

    def numbers(temperature, first, second):
        p, p_t = tempered(first, second, 1.0), tempered(first, second, temperature)
        return {
            f"p_T of {', '.join(class_names)}": _listed(p_t),
            "entropy of p_T": f"{shannon_entropy(p_t):.3f} nats",
            "entropy of p, at T = 1": f"{shannon_entropy(p):.3f} nats",
        }

    return panel(
        figure,
        numbers,
        {
            "temperature": temperature_slider(0.125, 40, 1.0),
            "first": linear_slider(f"logit of {class_names[0]}", -6.0, 6.0, 4.0, 0.25),
            "second": linear_slider(f"logit of {class_names[1]}", -6.0, 6.0, 2.0, 0.25),
        },
    )


# Notebook 2


def temperature(logits, labels, class_names: Sequence[str], images=None) -> widgets.VBox:
    """Step through pictures and move T: the picture, its p and p_T as bars, and their numbers.

    Teacher ``logits`` (N, K), ``labels`` (N,), ``images`` (N, C, H, W) with C 1 or 3, as bytes or
    from 0 to 1; without them a card with the label stands in. It opens with the picture of which
    the teacher is most certain, by its largest probability; buttons lead there and to the least
    certain one.

    Raises ``ValueError`` where the shapes do not fit, or a label is out of range.
    """
    logits = _float64(logits)
    labels = _labels_of(labels, logits, images)
    top = logits.softmax(-1).max(-1).values

    def figure(picture, temperature, log):
        v = logits[picture]
        p, p_t = temperature_softmax(v, 1.0), temperature_softmax(v, temperature)
        return figures.picture_and_bars(
            None if images is None else images[picture],
            p,
            p_t,
            class_names,
            title=f"label: {figures.plain(class_names[labels[picture]])}",
            over=f"T = {temperature:.3g}",
            log=log,
        )

    def numbers(picture, temperature, log):
        p_t = temperature_softmax(logits[picture], temperature)
        first, second = p_t.topk(2).indices.tolist()
        p = temperature_softmax(logits[picture], 1.0)
        return {
            "entropy of p_T": f"{shannon_entropy(p_t):.3f} nats",
            "top probability": f"{p_t[first]:.3f} ({class_names[first]})",
            "second": f"{p_t[second]:.3f} ({class_names[second]})",
            "power sum U of p, exponent 1/T": f"{power_sum(p, 1 / temperature):.3f}",
        }

    most, least = int(top.argmax()), int(top.argmin())
    picture = linear_slider("picture", 0, len(logits) - 1, most, 1)

    def go_to(number: int) -> Callable[[], None]:
        return lambda: setattr(picture, "value", number)

    return panel(
        figure,
        numbers,
        {
            "picture": picture,
            "temperature": temperature_slider(0.25, 20, 1.0),
            "log": widgets.Checkbox(False, description="logarithmic axis", **_LAYOUT),
        },
        {"most certain": go_to(most), "least certain": go_to(least)},
        {
            "picture": {most: "most certain", least: "least certain"},
            "temperature": None,
            "log": None,
        },
    )


# Notebook 3


def arrows(class_names: Sequence[str] = ("7", "1", "9")) -> widgets.VBox:
    """A temperature and a student to move: the two arrows of the TTM gradient on the triangle."""
    teacher_logits = torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64)

    def points(temperature, first, third):
        logits = torch.tensor([first, 1.0, third], dtype=torch.float64)
        softened = (temperature_softmax(v, temperature) for v in (logits, teacher_logits))
        return temperature_softmax(logits, 1.0), *softened

    def figure(**values):
        title = f"T = {values['temperature']:.3g}"
        drawn = figures.explorer_figure(3.4)
        ax = drawn.add_axes((0.0, 0.0, 0.62, 0.93))
        notebook3.gradient_arrows(*points(**values), class_names, title=title, ax=ax)
        ax.legend(loc="center left", bbox_to_anchor=(0.92, 0.62))
        return drawn

    def numbers(**values):
        q, q_t, p_t = points(**values)
        return {
            "KD arrow": f"length {(p_t - q_t).norm():.3f}",
            "entropy arrow": f"length {(q_t - q).norm():.3f}",
            "TTM, their sum": f"length {(p_t - q).norm():.3f}",
        }

    return panel(
        figure,
        numbers,
        {
            "temperature": temperature_slider(1, 64, 4.0),
            "first": linear_slider(f"student's {class_names[0]}", -3.0, 6.0, 0.0, 0.25),
            "third": linear_slider(f"student's {class_names[2]}", -3.0, 6.0, 2.5, 0.25),
        },
    )


_LOSSES = "KD", "TTM", "WTTM"
_STEPS, _STEP = 600, 0.5  # stable for all three losses: their curvature is at most 3 / 2


def triangle(class_names: Sequence[str] = ("7", "1", "9")) -> widgets.VBox:
    """Where KD, TTM and WTTM drive a student that is free to move, side by side.

    The teacher's logits and T on sliders; a star is p, a dashed line the path of p_T over all
    temperatures, a circle p_T. Arrows show how the student's q moves under each loss's gradient,
    and a line its descent from the chosen start.
    """
    starts = {
        f"near {class_names[2]}": (0.0, 1.0, 3.5),
        f"near {class_names[1]}": (0.5, 3.5, 0.0),
        f"near {class_names[0]}": (5.5, 0.0, 1.0),
        "the centre": (0.0, 0.0, 0.0),
    }
    spots = notebook3.triangle_spots(9)
    scales = 1 / np.geomspace(0.05, 200, 81)[:, None]

    def downhill(z, v, temperature):
        """Minus the losses' gradients in z (3, ..., 3), one loss after the other."""
        p_t, q, q_t = (special.softmax(x, -1) for x in (v / temperature, z, z[0] / temperature))
        weight = np.sum(special.softmax(v) ** (1 / temperature))
        return np.stack([temperature * (p_t - q_t), p_t - q[1], weight * (p_t - q[2])])

    @lru_cache(maxsize=8)  # the picture and the numbers ask for the same one
    def descents(temperature, first, second, start):
        v = np.array([first, second, 0.0])
        ways = [np.tile(starts[start], (3, 1))]
        for _ in range(_STEPS):
            ways.append(ways[-1] + _STEP * downhill(ways[-1], v, temperature))
        return special.softmax(np.stack(ways, axis=1), -1)

    def figure(temperature, first, second, start):
        v = np.array([first, second, 0.0])
        push = downhill(np.log(np.stack([spots] * 3)), v, temperature)
        field = spots * (push - np.sum(spots * push, axis=-1, keepdims=True))
        p, p_t, path = (special.softmax(x, -1) for x in (v, v / temperature, v * scales))
        ways = descents(temperature, first, second, start)
        return notebook3.loss_fields(_LOSSES, spots, field, ways, path, p, p_t, class_names)

    def numbers(temperature, first, second, start):
        v = torch.tensor([first, second, 0.0], dtype=torch.float64)
        ends = descents(temperature, first, second, start)[:, -1]
        p = temperature_softmax(v, 1.0)
        return {
            "teacher p": _listed(p),
            "softened p_T": _listed(temperature_softmax(v, temperature)),
            **{f"{name} ends at": _listed(q) for name, q in zip(_LOSSES, ends, strict=True)},
            "WTTM's weight U": f"{power_sum(p, 1 / temperature):.3f}",
        }

    return panel(
        figure,
        numbers,
        {
            "temperature": temperature_slider(1, 20, 4.0),
            "start": choice("student starts", starts),
            "first": linear_slider(f"teacher's {class_names[0]}", -6.0, 6.0, 4.0, 0.25),
            "second": linear_slider(f"teacher's {class_names[1]}", -6.0, 6.0, 2.0, 0.25),
        },
        pages={"temperature": None, "start": None},
    )


def decomposition(teacher_logits=(4.0, 2.0, 0.0), student_logits=(0.0, 1.0, 2.5)) -> widgets.VBox:
    """T and the student's sharpness to move: the three terms of the TTM loss, and their sum.

    ``teacher_logits`` and ``student_logits`` (K,); sharpness multiplies the student's. The Rényi
    term can be exchanged for entropies that sound as good; then the sum misses D(p_T || q).
    """
    teacher_logits, student_logits = _float64(teacher_logits), _float64(student_logits)
    entropies = {
        "Rényi, order 1/T": lambda z, t: renyi_entropy(z.softmax(-1), 1 / t),
        "Shannon, order 1": lambda z, t: shannon_entropy(z.softmax(-1)),
        "Rényi, order T": lambda z, t: renyi_entropy(z.softmax(-1), t),
        "Shannon of q_T": lambda z, t: shannon_entropy(temperature_softmax(z, t)),
    }

    def terms(temperature, sharpness, entropy):
        z = sharpness * student_logits
        parts = decompose_ttm(z, teacher_logits, temperature)
        reward = -(temperature - 1) * entropies[entropy](z, temperature)
        # The target by its definition, so that the agreement is seen and not assumed.
        p_t = temperature_softmax(teacher_logits, temperature)
        target = kl_divergence(p_t, temperature_softmax(z, 1.0))
        return [float(x) for x in (parts.kd, reward, parts.teacher_entropy, target)]

    def figure(temperature, sharpness, entropy):
        values = terms(temperature, sharpness, entropy)
        return notebook3.sum_of_terms(values, entropy)

    def numbers(temperature, sharpness, entropy):
        kd, reward, constant, target = terms(temperature, sharpness, entropy)
        return {
            "T D(p_T || q_T)": _signed(kd),
            "−(T − 1) entropy": _signed(reward),
            "(T − 1) H(p_T)": _signed(constant),
            "their sum": _signed(kd + reward + constant),
            "D(p_T || q)": _signed(target),
            "left over": _signed(kd + reward + constant - target),
        }

    return panel(
        figure,
        numbers,
        {
            "temperature": temperature_slider(1, 16, 4.0),
            "sharpness": linear_slider("student sharpness", 0.0, 4.0, 1.0, 0.125),
            "entropy": choice("entropy used", entropies),
        },
        pages={"temperature": None, "entropy": None},
    )


# Notebook 4


def sample_weights(logits, labels, class_names: Sequence[str], images=None) -> widgets.VBox:
    """A temperature to move: the WTTM weights of a teacher's outputs, and who weighs most.

    Arguments as for ``temperature``; without ``images`` their captions stand alone.
    """
    logits = _float64(logits)
    labels = _labels_of(labels, logits, images)
    p = logits.softmax(-1)
    captions = figures.teacher_captions(p, labels, class_names)
    most = p.shape[-1]

    def figure(temperature):
        u, bound = power_sum(p, 1 / temperature), most ** (1 - 1 / temperature)
        title = f"T = {temperature:.3g}"
        return figures.weights_and_pictures(u, images, captions, bound, title=title, largest=most)

    def numbers(temperature):
        u = power_sum(p, 1 / temperature)
        return {
            "smallest weight": f"{u.min():.3f}",
            "mean weight": f"{u.mean():.3f}",
            "largest weight": f"{u.max():.3f}",
            "largest / smallest": f"{u.max() / u.min():.2f}",
            "standard deviation / mean": f"{u.std() / u.mean():.1%}",
        }

    return panel(figure, numbers, {"temperature": temperature_slider(1, 64, 4.0)})


# Notebook 6


def students(outputs: Outputs) -> widgets.VBox:
    """Compare two kinds of trained student: entropy, calibration and accuracy over seeds.

    A kind is a method with its temperature and distillation weight; ``outputs`` holds its logits
    for each seed. Accuracy has a 95 % t interval over seeds, the difference a paired one.

    Raises ``ValueError`` where ``outputs`` holds fewer than two kinds of student.
    """
    kinds = outputs.kinds()
    if len(kinds) < 2:
        raise ValueError(f"two kinds of student are compared, got {list(kinds)}")
    measured = [analysis.evaluate(z, outputs.labels) for z in outputs.logits]
    seeds, everything = outputs.models["seed"].astype(int).tolist(), "all seeds"

    def chosen(name, seed):
        """The rows of a kind by their seed."""
        rows = {seeds[row]: row for row in kinds[name]}
        return {s: row for s, row in rows.items() if seed in (everything, str(s))}

    entropies = shannon_entropy(_float64(outputs.logits).softmax(-1)).numpy()

    @cache
    def pooled(name, seed):
        rows = list(chosen(name, seed).values())
        logits = outputs.logits[rows].reshape(-1, outputs.logits.shape[-1])
        labels = np.tile(outputs.labels, len(rows))
        return {
            "entropy": entropies[rows].ravel(),
            "reliability": analysis.reliability(logits, labels),
            "accuracies": 100 * np.array([measured[row]["accuracy"] for row in rows]),
        }

    def figure(first, second, seed):
        both = {f"A, {first}": pooled(first, seed), f"B, {second}": pooled(second, seed)}
        return figures.two_students(both, outputs.logits.shape[-1])

    def numbers(first, second, seed):
        found, scores = {}, []
        for label, name in (("A", first), ("B", second)):
            rows = chosen(name, seed)
            table = [measured[row] for row in rows.values()]
            mean = {m: np.mean([row[m] for row in table]) for m in ("accuracy", "entropy", "ece")}
            found[label] = {
                f"{label}: accuracy": f"{mean['accuracy']:.1%}",
                f"{label}: entropy": f"{mean['entropy']:.3f} nats",
                f"{label}: calibration error": f"{mean['ece']:.3f}",
            }
            scores.append({s: measured[row]["accuracy"] for s, row in rows.items()})
        gaps = [100 * (scores[0][s] - scores[1][s]) for s in sorted(scores[0].keys() & scores[1])]
        difference, interval = (f"{np.mean(gaps):+.2f} points", "–") if gaps else ("–", "–")
        if len(gaps) > 1 and first != second:
            _, low, high = analysis.paired_interval(gaps)
            interval = f"{low:+.2f} to {high:+.2f}"
        return {
            **found["A"],
            "A minus B": difference,
            **found["B"],
            f"95 % interval, {len(gaps)} seed{'s' * (len(gaps) != 1)}": interval,
        }

    every_seed = sorted({seeds[row] for rows in kinds.values() for row in rows})
    return panel(
        figure,
        numbers,
        {
            "first": choice("student A", kinds),
            "second": choice("student B", kinds, list(kinds)[-1]),
            "seed": choice("seeds", [everything, *map(str, every_seed)]),
        },
        pages={"first": None, "second": None},
    )


def transfer(rows) -> widgets.VBox:
    """Students' features on other pictures: choose a set, pictures a class, and a pair of arms.

    ``rows`` are probes as ``course.transfer.read_kept`` gives them. The interval is the paired
    95 % t interval of this difference alone, over seeds.
    """
    sets = list(rows["dataset"].unique())
    counts = sorted(int(n) for n in rows["pictures"].unique())
    arms = [arm for arm in rows["arm"].unique() if arm not in ("pixels", "teacher")]

    def table(dataset, pictures):
        found = rows[(rows["dataset"] == dataset) & (rows["pictures"] == pictures)]
        wide = found[found["arm"].isin(arms)].pivot(index="seed", columns="arm", values="accuracy")
        return wide[[arm for arm in arms if arm in wide]]

    def figure(dataset, pictures, first, second):
        title = f"{dataset}, {pictures} of each class"
        return notebook10.pairs(table(dataset, pictures), first, second, title)

    def numbers(dataset, pictures, first, second):
        found = table(dataset, pictures)
        gaps = (found[first] - found[second]).dropna()
        mean, low, high = analysis.paired_interval(gaps)
        interval = f"{low:+.1f} to {high:+.1f}" if len(gaps) > 1 else "–"
        draws = rows[(rows["dataset"] == dataset) & (rows["pictures"] == pictures)]["draw_sd"]
        return {
            f"A: {first}": f"{found[first].mean():.1f} %",
            f"B: {second}": f"{found[second].mean():.1f} %",
            "difference": f"{mean:+.2f} points",
            f"95 % interval, {len(gaps)} seeds": interval,
            "another draw of pictures moves": f"{draws.mean():.1f} points",
        }

    named = [(str(count), count) for count in counts]
    slider = step_slider("of each class", named, counts[0])
    controls = {"dataset": choice("pictures", sets), "pictures": slider}
    controls |= {
        "first": choice("student A", arms, "TTM"),
        "second": choice("student B", arms, "KD"),
    }
    return panel(figure, numbers, controls, pages={"dataset": None, "pictures": None})


# Notebook 11


def compression(networks: Mapping[tuple[str, str, int], nn.Module], data: Mapping) -> widgets.VBox:
    """A fraction to prune and bits to keep: what is left of students of the digits.

    ``networks`` are those of ``compression.digits_networks``, students by (model, method, seed);
    ``data`` maps a seed to its data set. Teachers are left out.
    """
    methods = list(dict.fromkeys(method for _, method, _ in networks if method != "teacher"))
    models = list(dict.fromkeys(key[0] for key in networks if key[1] in methods))

    def changed(model, method, seed, fraction, bits):
        network = prune_weights(networks[model, method, seed], fraction)
        return network if bits == 9 else round_weights(network, bits)

    @cache
    def accuracies(model, method, fraction, bits):
        """In per cent, one a seed."""
        seeds = [s for name, how, s in networks if (name, how) == (model, method)]
        changes = {seed: changed(model, method, seed, fraction, bits) for seed in seeds}
        return [100 * analysis.evaluate(z, data[s].test)["accuracy"] for s, z in changes.items()]

    def shown(model, fraction, bits):
        """The network whose weights are drawn."""
        return changed(model, methods[-1], min(data), fraction, bits)

    def figure(model, fraction, bits):
        layers = weighted_layers(shown(model, fraction, bits))
        weights = torch.cat([layer.weight.detach().ravel() for layer in layers]).numpy()
        both = {
            method: [accuracies(model, method, *how) for how in ((0.0, 9), (fraction, bits))]
            for method in methods
        }
        zero = f"{np.mean(weights == 0):.0%} of {len(weights):,} are 0"
        return notebook11.compressed(
            weights[weights != 0], both, f"a {methods[-1]} student: {zero}"
        )

    def numbers(model, fraction, bits):
        means = {m: np.mean(accuracies(model, m, fraction, bits)) for m in methods}
        found = {f"{method}: accuracy": f"{mean:.1f} %" for method, mean in means.items()}
        for name, how in (("bytes, compressed", (fraction, bits)), ("before", (0.0, 9))):
            size = len(stored(shown(model, *how), None if how[1] == 9 else how[1]))
            found[name] = f"{size:,}"
        return found

    several = [(str(b), b) for b in range(2, 9)] + [("16, float", 9)]
    return panel(
        figure,
        numbers,
        {
            "model": choice("student", models, models[-1]),
            "fraction": linear_slider("share that is 0", 0.0, 0.95, 0.5, 0.05),
            "bits": step_slider("bits", several, 9),
        },
        pages={"fraction": {0.0: "0", 0.5: "0.5", 0.7: "0.7", 0.9: "0.9"}, "bits": None},
    )


# Notebook 13


def unknowns(logits: Mapping[str, Mapping[str, np.ndarray]]) -> widgets.VBox:
    """Known beside unknown inputs: a score, a temperature, and how well they are told apart.

    ``logits`` maps a student to its logits (N, K) by set; one set is named ``"known"``, and every
    student has the same sets.
    """
    sets = [name for name in next(iter(logits.values())) if name != "known"]

    @cache
    def scored(student, name, score, temperature, order):
        # At order 1 the Rényi entropy is Shannon's.
        column = {"Rényi entropy": f"Rényi {order:g}" if order != 1 else "entropy"}
        orders = () if order == 1 else (order,)
        z = logits[student][name]
        found = analysis.outlier_scores(z, temperature=temperature, orders=orders)
        return found[column.get(score, score)].to_numpy()

    def both(student, unknown, score, temperature, order):
        order = order if score == "Rényi entropy" else 1.0
        return [scored(student, name, score, temperature, order) for name in ("known", unknown)]

    def figure(student, unknown, score, temperature, order):
        known, strange = both(student, unknown, score, temperature, order)
        _, passed = outliers.detection(known, strange)
        return notebook13.known_beside_unknown(known, strange, (passed, 0.95), xlabel=score)

    def numbers(student, unknown, score, temperature, order):
        auroc, passed = outliers.detection(*both(student, unknown, score, temperature, order))
        before, _ = outliers.detection(*both(student, unknown, score, 1.0, order))
        known, strange = both(student, unknown, "entropy", temperature, order)
        return {
            "AUROC": f"{auroc:.3f}",
            "AUROC at T = 1": f"{before:.3f}",
            "unknown that pass, at 95 % of known": f"{passed:.3f}",
            "entropy of known": f"{known.mean():.3f} nats",
            "entropy of unknown": f"{strange.mean():.3f} nats",
        }

    kinds = ("largest probability", "entropy", "Rényi entropy", "energy", "largest logit")
    controls = {
        "student": choice("student", logits),
        "unknown": choice("unknown", sets),
        "score": choice("score", kinds),
        "temperature": temperature_slider(0.125, 16, 1.0),
        "order": temperature_slider(0.125, 16, 0.25, label="Rényi order"),
    }
    # No other score has an order, so whoever moves it wants this one.
    controls["order"].observe(
        lambda _change: controls["score"].set_trait("value", "Rényi entropy"), names="value"
    )
    return panel(figure, numbers, controls)


# Notebook 12


def corruption(networks: Mapping[str, torch.nn.Module], images, labels) -> widgets.VBox:
    """A corruption and its strength to move: the pictures, and what networks make of them.

    ``networks`` by name, at most four; ``images`` (N, C, H, W) from 0 to 1, as they take them,
    and ``labels`` (N,). The distance of mean confidence from accuracy is how wrong they are about
    themselves.
    """
    labels = np.asarray(labels)
    amounts = {
        kind: np.linspace(*ends, 21).round(6).tolist() for kind, ends in corruptions.RANGES.items()
    }

    @lru_cache(maxsize=256)
    def measured(kind, strength):
        pictures = corruptions.corrupt(images, kind, amounts[kind][strength])
        logits = {name: analysis.predict(one, pictures) for name, one in networks.items()}
        return pictures, {name: analysis.evaluate(z, labels) for name, z in logits.items()}

    def figure(kind, strength):
        pictures, found = measured(kind, strength)
        curves = {
            name: [measured(kind, s)[1][name]["accuracy"] for s in range(0, 21, 4)]
            for name in networks
        }
        return notebook12.corrupted(pictures[:8], found, curves, strength)

    def numbers(kind, strength):
        _, found = measured(kind, strength)
        said = {"strength in its unit": f"{amounts[kind][strength]:.3g}"}
        for name, one in found.items():
            said[f"{name}: accuracy"] = f"{one['accuracy']:.1%}"
            said[f"{name}: confidence"] = f"{one['confidence']:.1%}"
            said[f"{name}: entropy"] = f"{one['entropy']:.2f} nats"
        return said

    controls = {
        "kind": choice("corruption", amounts),
        "strength": linear_slider("strength", 0, 20, 8, 1),
    }
    return panel(figure, numbers, controls)


# Notebook 14


def tokens(texts: Mapping[str, tuple[Sequence[str], torch.Tensor]]) -> widgets.VBox:
    """A text and a temperature to choose: which tokens weigh how much in WTTM.

    ``texts`` maps a name to the text's L tokens, as strings, and the teacher's logits (L, K) at
    each token's place, from what stands before it.
    """
    outputs = {name: _float64(logits).softmax(-1) for name, (_, logits) in texts.items()}
    lines = max(notebook14.places(pieces)[-1][1] + 1 for pieces, _ in texts.values())

    def figure(text, temperature):
        u = power_sum(outputs[text], 1 / temperature)
        title = f"{figures.plain(text)}, T = {temperature:.3g}"
        return notebook14.colored_text(texts[text][0], u, float(u.max()), title, lines)

    def numbers(text, temperature):
        u, pieces = power_sum(outputs[text], 1 / temperature), texts[text][0]
        heavy = u.topk(max(1, len(u) // 10))
        most = max(outputs[text].shape[-1] ** (1 - 1 / temperature), 1.0)
        return {
            "smallest weight": f"{u.min():.3f}",
            "mean weight": f"{u.mean():.3f}",
            "largest weight": f"{u.max():.3f}, before “{pieces[int(u.argmax())].strip()}”",
            "a uniform output's": f"{most:.3g}",
            "share of the heaviest tenth": f"{heavy.values.sum() / u.sum():.1%}",
        }

    controls = {"text": choice("text", texts), "temperature": temperature_slider(1, 16, 1.5)}
    return panel(figure, numbers, controls, pages={"text": None, "temperature": None})


def _float64(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def _labels_of(labels, logits: torch.Tensor, images) -> list[int]:
    labels = [int(label) for label in labels]
    counts = {"logits": len(logits), "labels": len(labels)}
    if images is not None:
        counts["images"] = len(images)
    if len(set(counts.values())) > 1 or not labels:
        raise ValueError(f"one row a picture is needed in each, got {counts}")
    if min(labels) < 0 or max(labels) >= logits.shape[1]:
        raise ValueError(
            f"labels run from {min(labels)} to {max(labels)}, classes from 0 to "
            f"{logits.shape[1] - 1}"
        )
    return labels
