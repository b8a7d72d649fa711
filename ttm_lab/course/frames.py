"""An explorer in a page, without a kernel and without a network: its frames are drawn ahead.

Native controls, which a keyboard moves and a screen reader reads, choose the frame that is shown.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


@dataclass(frozen=True)
class Control:
    """What a reader moves: a slider over the texts, or a list of them; it opens at ``start``."""

    label: str
    texts: Sequence[str]
    start: int
    slider: bool = True


@dataclass(frozen=True)
class Frame:
    """A WebP picture, its text alternative, and the numbers below it by name."""

    picture: bytes
    alt: str
    numbers: dict[str, str]


# Frames are ordered as the controls are, the last control's value changing fastest.
_SCRIPT = """(() => {
  const box = document.getElementById("%s"), all = selector => [...box.querySelectorAll(selector)];
  const frames = JSON.parse(box.querySelector("script").textContent), controls = all(".moves");
  const move = () => {
    let place = 0;
    for (const control of controls) {
      const texts = JSON.parse(control.dataset.texts), chosen = Number(control.value);
      place = place * texts.length + chosen;
      if (control.type !== "range") continue;
      control.setAttribute("aria-valuetext", texts[chosen]);
      control.nextElementSibling.textContent = texts[chosen];
    }
    const frame = frames[place], picture = box.querySelector("img");
    picture.src = "data:image/webp;base64," + frame.picture;
    picture.alt = frame.alt;
    box.querySelector(".ttm-numbers").replaceChildren(...frame.numbers.map(words => {
      const pair = document.createElement("div");
      pair.append(...words.map(word => document.createElement("div")));
      words.forEach((word, k) => pair.children[k].textContent = word);
      return pair;
    }));
  };
  for (const control of controls) {
    control.disabled = false;
    control.addEventListener("input", move);
  }
  move();  // a browser may remember where a slider stood
})();"""

STYLE = """
.ttm-frames { margin: 1em 0; }
.ttm-frames label { display: flex; flex-wrap: wrap; align-items: center; gap: 0.3em 0.8em;
  margin: 0.3em 0; }
.ttm-frames label > span { min-width: 9em; }
.ttm-frames input { flex: 1 1 7em; max-width: 24em; height: 2em; accent-color: #0072b2; }
.ttm-frames select { font: inherit; max-width: 100%; }
.ttm-frames label > b { min-width: 4em; font-variant-numeric: tabular-nums; }
.ttm-frames img { display: block; max-width: 100%; height: auto; background: white; }
.ttm-frames .note { font-size: 0.85em; opacity: 0.8; }
.ttm-frames .ttm-numbers { display: grid; gap: 8px 12px; padding: 6px 0; line-height: 1.3;
  grid-template-columns: repeat(auto-fill, minmax(min(195px, 100%), 1fr)); max-width: 840px;
  font-variant-numeric: tabular-nums; }
.ttm-frames .ttm-numbers > div { align-self: end; }
.ttm-frames .ttm-numbers div div { font-size: 0.9em; opacity: 0.8; }
.ttm-frames .ttm-numbers div div + div { font-size: 1.1em; font-weight: 600; opacity: 1; }
"""


def to_webp(figure: Figure) -> bytes:
    """A figure at 160 px an inch in few bytes: lines with fewer colours, photographs with loss."""
    figure.set_dpi(160)
    canvas, packed = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    if any(ax.images for ax in figure.axes):
        Image.fromarray(pixels).save(packed, "WEBP", quality=65, method=2)
    else:  # 18 steps a channel: greys stay grey and white white
        few = (15 * np.round(pixels / 15)).astype(np.uint8)
        Image.fromarray(few).save(packed, "WEBP", lossless=True, method=2)
    return packed.getvalue()


def moving_html(
    name: str,
    controls: Sequence[Control],
    frames: Sequence[Frame],
    size: tuple[int, int],
    note: str = "",
) -> str:
    """The explorer as HTML, whole in itself; ``name`` is unique in its page, ``size`` in px.

    There is a frame for each combination of the controls' values, the last control's changing
    fastest. ``note`` stands below all. Without scripts the first picture stands still and the
    controls are disabled.

    Raises ``ValueError`` where the number of frames does not fit the controls.
    """
    place, count = 0, 1
    for control in controls:
        place = place * len(control.texts) + control.start
        count *= len(control.texts)
    if count != len(frames):
        raise ValueError(f"the controls choose among {count} frames, got {len(frames)}")
    packed = [
        {
            "picture": base64.b64encode(frame.picture).decode("ascii"),
            "alt": frame.alt,
            "numbers": list(frame.numbers.items()),
        }
        for frame in frames
    ]
    data = json.dumps(packed, ensure_ascii=False).replace("<", "\\u003c")
    first, (width, height) = frames[place], size
    return (
        f'<div class="ttm-frames" id="{name}" role="group" aria-label="explorer">'
        f"<style>{STYLE}</style>{''.join(map(_control_html, controls))}"
        f'<img class="wide" alt="{html.escape(first.alt)}" width="{width}" height="{height}" '
        f'src="data:image/webp;base64,{packed[place]["picture"]}">'
        f'<div class="ttm-numbers" aria-live="polite">{numbers_html(first.numbers)}</div>'
        f'<p class="note">{html.escape(note)}</p>'
        f'<script type="application/json">{data}</script></div>'
        f"<script>{_SCRIPT % name}</script>"
    )


def numbers_html(numbers: Mapping[str, str]) -> str:
    """Each number below its name."""
    return "".join(
        f"<div><div>{html.escape(name)}</div><div>{html.escape(value)}</div></div>"
        for name, value in numbers.items()
    )


def _control_html(control: Control) -> str:
    texts = html.escape(json.dumps(list(control.texts), ensure_ascii=False))
    common = f'class="moves" data-texts="{texts}" disabled'
    shown = html.escape(control.texts[control.start])
    if control.slider:
        part = (
            f'<input type="range" {common} min="0" max="{len(control.texts) - 1}" step="1" '
            f'value="{control.start}" aria-valuetext="{shown}"><b aria-hidden="true">{shown}</b>'
        )
    else:
        options = "".join(
            f'<option value="{k}"{" selected" * (k == control.start)}>{html.escape(text)}</option>'
            for k, text in enumerate(control.texts)
        )
        part = f"<select {common}>{options}</select>"
    return f"<label><span>{html.escape(control.label)}</span>{part}</label>"
