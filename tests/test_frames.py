"""Explorers in a page move without a kernel, from frames that say what the live ones say."""

import numpy as np
import pytest
from lab import find_browser, still_explorers
from PIL import Image
from test_browser import EXPECTED, OUTPUTS, wrong

from ttm_lab.course import explore, figures, frames

LABELS = np.arange(12) % 4
LOGITS = np.random.default_rng(0).normal(0, 2, (12, 4)) + 3 * np.eye(4)[LABELS]
PICTURES = np.random.default_rng(1).random((12, 3, 16, 16))
TEACHER = {"logits": LOGITS, "labels": LABELS, "class_names": list("abcd"), "images": PICTURES}


def outputs():
    made = {}
    exec(OUTPUTS, made)
    return {"outputs": made["outputs"]}


TEXTS = {
    "letters": (list("tell me a tale"[:12]), LOGITS),
    "words": (["a ", "\n", "toy"], LOGITS[:3]),
}
GIVEN = {"temperature": TEACHER, "sample_weights": TEACHER, "students": outputs()}
GIVEN |= {"tokens": {"texts": TEXTS}}
KINDS = [
    "temperature_path",
    "temperature",
    "arrows",
    "triangle",
    "decomposition",
    "sample_weights",
    "students",
]
KINDS += ["tokens"]


@pytest.fixture
def explorer(request, tmp_path, monkeypatch):
    """An explorer, live, and the file of a page with few frames that shows it as a batch does."""
    monkeypatch.setattr(explore, "_MOST_FRAMES", 12)
    monkeypatch.setenv("TTM_LAB_PAGES", "1")
    box = getattr(explore, request.param)(**GIVEN.get(request.param, {}))
    shown = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in shown  # live where a kernel is
    page = tmp_path / "page.html"
    markup = f"<!doctype html><html lang='en'><meta charset='utf-8'>{shown['text/html']}"
    page.write_text(markup, encoding="utf-8")
    return request.param, box, page


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api")
    if not (program := find_browser()):
        pytest.skip("no browser found")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_only_a_batch_draws_frames(monkeypatch):
    monkeypatch.delenv("TTM_LAB_PAGES", raising=False)
    assert "text/html" not in explore.temperature_path()._repr_mimebundle_()


@pytest.mark.parametrize("explorer", KINDS, indirect=True)
def test_an_explorer_moves_from_a_file_without_a_network(explorer, chromium):
    (kind, box, path), (page, errors) = explorer, alone(chromium)
    page.goto(path.as_uri())
    (found,) = still_explorers(page)
    assert not errors
    assert found["controls"]
    controls = box.children[0].children
    for told in found["seen"]:
        values = [value(c, words) for c, words in zip(controls, told["values"], strict=True)]
        assert not wrong(told["numbers"], EXPECTED[kind](GIVEN.get(kind, {}), *values))
    page.close()


def alone(chromium):
    """A page to which everything outside its file is refused, and what went wrong on it."""
    page, errors = chromium.new_page(), []
    page.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def refuse(route):
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            errors.append(f"asked for {route.request.url}")
            route.abort()

    page.route("**", refuse)
    return page, errors


def value(control, words):
    """What a text alternative says of a control, as the control has it."""
    text = words.removeprefix(f"{control.description} ")
    assert text != words
    top = np.exp(LOGITS - np.logaddexp.reduce(LOGITS, -1, keepdims=True)).max(-1)
    named = {"most certain": top.argmax(), "least certain": top.argmin()}
    if isinstance(control, explore.widgets.SelectionSlider):
        named |= dict(control.options)
    named |= {"on": True, "off": False}
    if text in named:
        return named[text]
    return text if isinstance(control.value, str) else float(text)


@pytest.mark.parametrize("explorer", ["temperature_path"], indirect=True)
def test_without_scripts_the_opening_picture_stands(explorer, chromium):
    page = chromium.new_page(java_script_enabled=False)
    page.goto(explorer[-1].as_uri())
    assert page.locator("input[type=range]").is_disabled()
    assert "temperature T 1;" in page.locator("img").get_attribute("alt")
    page.close()


def test_all_frames_of_an_explorer_take_less_than_a_megabyte(monkeypatch):
    """Where its figure is heavy, too: photographs without order, the most there can be."""
    monkeypatch.setenv("TTM_LAB_PAGES", "1")
    box = explore.sample_weights(**TEACHER)
    assert len(box._repr_mimebundle_()["text/html"]) < 1e6


def test_frames_fit_the_controls():
    control = frames.Control("T", ["1", "2"], 0)
    with pytest.raises(ValueError, match="choose among 2 frames, got 1"):
        frames.moving_html("x", [control], [frames.Frame(b"", "", {})], (1, 1))


def test_a_frame_is_drawn_as_the_figure_is(tmp_path):
    def figure():
        drawn = figures.explorer_figure(2.0)
        figures.draw_triangle(drawn.add_axes((0.5, 0, 0.5, 1)))
        drawn.add_axes((0.1, 0.1, 0.4, 0.8)).bar([0, 1], [1, 2], color="#0072B2")
        return drawn

    (tmp_path / "frame.webp").write_bytes(frames.to_webp(figure()))
    (tmp_path / "live.png").write_bytes(figures.to_png(figure(), scale=1.6))
    seen, live = (
        np.asarray(Image.open(tmp_path / name).convert("RGB"), dtype=float)
        for name in ("frame.webp", "live.png")
    )
    assert seen.shape == live.shape
    assert tuple(seen[0, 0]) == (255, 255, 255)
    assert np.abs(seen - live).max() < 8
    grey = np.ptp(live, axis=-1) == 0
    assert not np.ptp(seen[grey], axis=-1).any()
