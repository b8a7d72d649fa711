"""Explorers in a real browser: every control by mouse and by keyboard, on a real JupyterLab.

After each move the read-out, the kernel's state, the picture and the numbers below it have to
agree; the numbers are computed here anew in float64. Without a browser these tests skip, unless
``TTM_LAB_BROWSER=1`` says that there has to be one.
"""

import copy
import hashlib
import inspect
import json
import os
import re

import lab
import numpy as np
import pytest
import torch
from scipy import special, stats

from ttm_lab.course import corruptions, explore
from ttm_lab.course.outputs import Outputs

pytestmark = pytest.mark.slow
NOTEBOOKS = {
    path.stem[:2]: path
    for path in sorted((lab.ROOT / "notebooks").glob("*.ipynb"))
    if lab.uses_of_explorers(path)
}
EXPLORERS = {
    name
    for name, function in inspect.getmembers(explore, inspect.isfunction)
    if inspect.signature(function).return_annotation is explore.widgets.VBox and name != "panel"
}
USED = {kind for path in NOTEBOOKS.values() for kind, _ in lab.uses_of_explorers(path)}
# Explorers that no notebook of the course shows are tried in a notebook of their own.
OUTPUTS = """
import numpy as np, pandas as pd
from ttm_lab.course.outputs import Outputs
random, labels = np.random.default_rng(0), np.arange(60) % 5
methods = ["teacher"] + 3 * ["CE"] + 3 * ["KD"] + 3 * ["TTM"]
table = pd.DataFrame({"method": methods, "seed": [0] + 3 * [0, 1, 2]})
table["temperature"] = table["distill_weight"] = [np.nan] * 4 + [4.0] * 6
logits = random.normal(0, 1, (10, 60, 5)) + 1.5 * np.eye(5)[labels]
outputs = Outputs(table, logits, labels, tuple("abcde"), np.arange(60))
"""
CALLS = {"students": (OUTPUTS, "explore.students(outputs)")}


def written(folder):
    """A notebook of the explorers that the course does not use."""
    sources = ["from ttm_lab.course import explore, figures\n\nfigures.use_style()"]
    for name in sorted(EXPLORERS - USED):
        sources += CALLS.get(name, [f"explore.{name}()"])
    cells = [
        {
            "cell_type": "code", "id": f"cell-{k}", "metadata": {}, "source": source,
            "outputs": [], "execution_count": None,
        }
        for k, source in enumerate(sources)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    path = folder / "others.ipynb"
    content = {"cells": cells, "metadata": {"kernelspec": kernel}}
    path.write_text(json.dumps(content | {"nbformat": 4, "nbformat_minor": 5}))
    return path


# What the numbers below a picture have to be, from the values of the controls: float64 by the
# definitions, with nothing of ttm_lab. Each takes the controls in their order.


def entropy(p):
    return stats.entropy(p, axis=-1)


def temperature_path(given, T, first, second):
    v = np.array([first, second, 0.0])
    p, p_t = special.softmax(v), special.softmax(v / T)
    names = ", ".join(given.get("class_names", "719"))
    return {
        f"p_T of {names}": p_t,
        "entropy of p_T": entropy(p_t),
        "entropy of p, at T = 1": entropy(p),
    }


def temperature(given, picture, T, log):
    v = np.asarray(given["logits"], dtype=float)[picture]
    p_t, names = special.softmax(v / T), given["class_names"]
    second, first = np.argsort(p_t)[-2:]
    return {
        "entropy of p_T": entropy(p_t),
        "top probability": (p_t[first], names[first]),
        "second": (p_t[second], names[second]),
        "power sum U of p, exponent 1/T": np.sum(special.softmax(v) ** (1 / T)),
    }


def arrows(given, T, first, third):
    v, z = np.array([4.0, 2.0, 0.0]), np.array([first, 1.0, third])
    p_t, q, q_t = special.softmax(v / T), special.softmax(z), special.softmax(z / T)
    length = np.linalg.norm
    return {
        "KD arrow": length(p_t - q_t),
        "entropy arrow": length(q_t - q),
        "TTM, their sum": length(p_t - q),
    }


def triangle(given, T, start, first, second):
    v = np.array([first, second, 0.0])
    p, p_t = special.softmax(v), special.softmax(v / T)
    # The descents end at these points in theory; where T p is nearly one-hot they are slow.
    near = {"KD ends at": (p, 0.02), "TTM ends at": (p_t, 0.02), "WTTM ends at": (p_t, 0.02)}
    return {
        "teacher p": p,
        "softened p_T": p_t,
        "WTTM's weight U": np.sum(p ** (1 / T)),
        **near,
    }


def decomposition(given, T, sharpness, used):
    v, z = np.array([4.0, 2.0, 0.0]), sharpness * np.array([0.0, 1.0, 2.5])
    p_t, q, q_t = special.softmax(v / T), special.softmax(z), special.softmax(z / T)

    def renyi(order):
        shannon = abs(order - 1) < 1e-12
        return entropy(q) if shannon else special.logsumexp(order * np.log(q)) / (1 - order)

    reward = {
        "Rényi, order 1/T": renyi(1 / T),
        "Shannon, order 1": renyi(1.0),
        "Rényi, order T": renyi(T),
        "Shannon of q_T": entropy(q_t),
    }[used]
    kd, reward, constant = T * stats.entropy(p_t, q_t), -(T - 1) * reward, (T - 1) * entropy(p_t)
    target = stats.entropy(p_t, q)
    return {
        "T D(p_T || q_T)": kd,
        "−(T − 1) entropy": reward,
        "(T − 1) H(p_T)": constant,
        "their sum": kd + reward + constant,
        "D(p_T || q)": target,
        "left over": kd + reward + constant - target,
    }


def sample_weights(given, T):
    p = special.softmax(np.asarray(given["logits"], dtype=float), -1)
    u = np.sum(p ** (1 / T), axis=-1)
    return {
        "smallest weight": u.min(),
        "mean weight": u.mean(),
        "largest weight": u.max(),
        "largest / smallest": (u.max() / u.min(), 6e-3),
        "standard deviation / mean": (100 * u.std(ddof=1) / u.mean(), 0.06),
    }


def tokens(given, text, T):
    _, logits = given["texts"][text]
    p = special.softmax(np.asarray(logits, dtype=float), -1)
    u = np.sort(np.sum(p ** (1 / T), axis=-1))
    heavy = u[-max(1, len(u) // 10) :].sum() / u.sum()
    return {
        "smallest weight": u[0],
        "mean weight": u.mean(),
        "largest weight": u[-1],
        "share of the heaviest tenth": (100 * heavy, 0.06),
    }


def students(given, first, second, seed):
    outputs: Outputs = given["outputs"]
    expected, right = {}, []
    for label, kind in (("A", first), ("B", second)):
        rows = outputs.kinds()[kind]
        seeds = outputs.models["seed"].to_numpy()[rows]
        rows = rows[[seed in ("all seeds", str(s)) for s in seeds]]
        logits, seeds = np.asarray(outputs.logits, float)[rows], outputs.models["seed"][rows]
        hits = 100 * (logits.argmax(-1) == outputs.labels).mean(-1)
        right.append(dict(zip(seeds, hits, strict=True)))
        expected[f"{label}: accuracy"] = (hits.mean(), 0.06)
        expected[f"{label}: entropy"] = entropy(special.softmax(logits, -1)).mean()
    gaps = np.array([right[0][s] - right[1][s] for s in right[0] if s in right[1]])
    if len(gaps):
        expected["A minus B"] = (gaps.mean(), 6e-3)
    if len(gaps) > 1 and first != second:
        half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
        ends = np.array([gaps.mean() - half, gaps.mean() + half])
        expected[f"95 % interval, {len(gaps)} seeds"] = (ends, 6e-3)
    return expected


def transfer(given, dataset, pictures, first, second):
    """Of the table ``rows``: two arms of one set and number of pictures, in pairs over seeds."""
    rows = given["rows"]
    rows = rows[(rows["dataset"] == dataset) & (rows["pictures"] == pictures)]
    wide = rows.pivot(index="seed", columns="arm", values="accuracy")
    gaps = (wide[first] - wide[second]).dropna()
    expected = {
        f"{label}: {arm}": (wide[arm].mean(), 0.06) for label, arm in (("A", first), ("B", second))
    }
    return expected | {"difference": (gaps.mean(), 6e-3)}


def compression(given, model, fraction, bits):
    expected = {}
    for method in dict.fromkeys(key[1] for key in given["networks"] if key[1] != "teacher"):
        right = []
        for (name, how, seed), network in given["networks"].items():
            if (name, how) != (model, method):
                continue
            network = copy.deepcopy(network)
            weights = [
                layer.weight.detach()
                for layer in network.modules()
                if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
            ]
            sizes = torch.cat([weight.abs().ravel() for weight in weights])
            kept = torch.ones_like(sizes)  # of all layers together; many are equally small
            kept[sizes.topk(round(fraction * len(sizes)), largest=False).indices] = 0
            parts = kept.split([weight.numel() for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight.mul_(part.view_as(weight))
                if bits < 9:
                    largest = 2 ** (bits - 1) - 1
                    size = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.dim() - 1))
                    scale = (size / largest).half().float()
                    scale[scale == 0] = 1
                    weight.copy_((weight / scale).round() * scale)
            test = given["data"][seed].test
            with torch.no_grad():
                right.append(float((network(test.images).argmax(1) == test.labels).float().mean()))
        expected[f"{method}: accuracy"] = (100 * np.mean(right), 0.06)
    return expected


def corruption(given, kind, strength):
    amount = np.linspace(*corruptions.RANGES[kind], 21)[strength]
    pictures, labels = corruptions.corrupt(given["images"], kind, amount), given["labels"].numpy()
    expected = {}
    for name, network in given["networks"].items():
        with torch.no_grad():
            q = special.softmax(network(pictures).double().numpy(), -1)
        expected[f"{name}: accuracy"] = (100 * np.mean(q.argmax(-1) == labels), 0.06)
        expected[f"{name}: confidence"] = (100 * q.max(-1).mean(), 0.06)
        expected[f"{name}: entropy"] = (entropy(q).mean(), 6e-3)
    return expected


def unknowns(given, student, unknown, score, T, order):
    def scored(name, temperature, score):
        z = np.asarray(given["logits"][student][name], float) / temperature
        q = special.softmax(z, -1)
        if score == "Rényi entropy" and abs(order - 1) > 1e-12:
            return special.logsumexp(order * special.log_softmax(z, -1), -1) / (1 - order)
        return {
            "largest probability": -special.log_softmax(z, -1).max(-1),
            "largest logit": -z.max(-1),
            "energy": -special.logsumexp(z, -1),
        }.get(score, entropy(q))

    def auroc(temperature):
        known, strange = (scored(name, temperature, score) for name in ("known", unknown))
        won = stats.mannwhitneyu(strange, known).statistic
        return won / (len(known) * len(strange)), known, strange

    value, known, strange = auroc(T)
    limit = np.sort(known)[int(np.ceil(0.95 * len(known) - 1e-9)) - 1]
    return {
        "AUROC": value,
        "AUROC at T = 1": auroc(1.0)[0],
        "unknown that pass, at 95 % of known": (np.mean(strange <= limit), 6e-3),
        "entropy of known": scored("known", T, "entropy").mean(),
        "entropy of unknown": scored(unknown, T, "entropy").mean(),
    }


# The page


LOOK = """box => {
    const picture = box.querySelector("img"), size = picture.getBoundingClientRect();
    const pairs = [...box.querySelector(".ttm-numbers").children];
    const controls = [...box.querySelector(".widget-gridbox").children];
    return {
        readouts: controls.map(control => {
            const [list, tick] = ["select", "input[type=checkbox]"].map(
                kind => control.querySelector(kind));
            if (list) return list.selectedOptions[0].textContent.replaceAll("\u00a0", " ");
            if (tick) return tick.checked ? "on" : "off";
            return control.querySelector(".widget-readout").textContent;
        }),
        labels: controls.map(control => control.textContent),
        cut: [...box.querySelectorAll(".widget-label, .ttm-numbers div")].filter(
            words => words.scrollWidth > words.clientWidth).map(words => words.textContent),
        picture: picture.getAttribute("src"),
        drawn: picture.complete && picture.naturalWidth > 0,
        alt: picture.alt,
        size: [size.width, size.height, box.getBoundingClientRect().height],
        numbers: pairs.map(pair => [...pair.children].map(part => part.textContent)),
    };
}"""


def same(value, text):
    """Whether a text says the value, a number to the digits that a slider shows."""
    if isinstance(value, bool):
        return text == ("on" if value else "off")
    if isinstance(value, str):
        return text == value
    return float(text.replace("−", "-")) == pytest.approx(value, rel=6e-3)


class Explorer:
    """One explorer on the page, its values in the kernel, and what its numbers have to be."""

    def __init__(self, notebook, place):
        self.notebook, self.place, self.page = notebook, place, notebook.page
        self.kind = notebook.uses[place][0]
        self.given = notebook.arguments(place)
        self.box = notebook.explorer(place)
        self.seen, self.values = None, None

    def problems(self, moved):
        """Whatever does not fit together now; ``moved``: the picture has to differ from before."""
        seen, state = self.box.evaluate(LOOK), self.notebook.state()[self.place]
        values, before, found = state["values"], self.seen, []
        told = seen["alt"].split("; ")
        rows = zip(values, state["names"], seen["labels"], seen["readouts"], told, strict=False)
        for label, value, text, shown, words in rows:
            if label not in text:
                found.append(f"control {text!r} lacks its label {label!r}")
            if not same(value, shown):
                found.append(f"{label} reads {shown!r}, the kernel has {value!r}")
            if not words.startswith(f"{label} ") or not same(value, words[len(label) + 1 :]):
                found.append(f"text alternative says {words!r}, the kernel has {value!r}")
        numbers = dict(seen["numbers"])
        if told[len(values) :] != [f"{name} {value}" for name, value in numbers.items()]:
            found.append(f"text alternative {seen['alt']!r} does not say {numbers}")
        if hashlib.sha256(seen["picture"].encode()).hexdigest() != state["picture"]:
            found.append("the page shows another picture than the kernel drew")
        if seen["cut"]:
            found.append(f"words are cut off: {seen['cut']}")
        if not seen["drawn"]:
            found.append("the browser cannot draw the picture")
        if before and seen["size"] != pytest.approx(before["size"], abs=0.5):
            found.append(f"size {seen['size']} was {before['size']}")
        if moved and values == self.values:
            found.append(f"nothing moved in the kernel: {values}")
        if moved and seen["picture"] == before["picture"]:
            found.append("the picture stayed as it was")
        expected = EXPECTED[self.kind](self.given, *values.values())
        found += wrong(numbers, expected)
        return found, seen, values

    def settle(self, doing, moved=True):
        """Wait until everything fits together after a move, and fail with what does not."""
        seen = []

        def settled():
            seen[:] = self.problems(moved)
            return not seen[0]

        try:
            lab.await_(settled, self.page)
        except TimeoutError:
            pytest.fail(f"{self.kind}, {doing}: " + "; ".join(seen[0]))
        self.seen, self.values = seen[1:]

    def control(self, k):
        return self.box.locator(".widget-gridbox > *").nth(k)

    def buttons(self):
        return self.box.locator("button").all()

    def move_by_mouse(self, k):
        slider, choices = (self.control(k).locator(kind) for kind in (".noUi-base", "select"))
        if slider.count():
            handle = self.control(k).locator(".noUi-handle")
            handle.hover()  # waits until the page has come to rest and nothing covers it
            self.page.mouse.down()
            track, at = slider.bounding_box(), handle.bounding_box()
            left = at["x"] > track["x"] + track["width"] / 2
            to = track["x"] + track["width"] * (0.3 if left else 0.7)
            self.page.mouse.move(to, at["y"] + at["height"] / 2, steps=2)
            self.page.mouse.up()
        elif choices.count():
            choices.select_option(index=choices.evaluate("it => it.selectedIndex ? 0 : 1"))
        else:
            self.control(k).locator("input").click()

    def move_by_keyboard(self, target):
        """Reach the control by Tab alone, then press the key that moves it."""
        for _ in range(5):  # a slider's read-out is a stop on the way, too
            if target.evaluate("it => it.contains(document.activeElement)"):
                break
            self.page.keyboard.press("Tab")
        active = "document.activeElement"
        if self.page.evaluate(f"{active}.classList.contains('noUi-handle')"):
            at_end = f"{active}.ariaValueNow === {active}.ariaValueMax"
            self.page.keyboard.press("ArrowLeft" if self.page.evaluate(at_end) else "ArrowRight")
            return
        self.page.keyboard.press("Space")
        if self.page.evaluate(f"{active}.tagName") == "SELECT":  # Space has opened the list
            first = self.page.evaluate(f"{active}.selectedIndex") == 0
            self.page.keyboard.press("ArrowDown" if first else "ArrowUp")
            self.page.keyboard.press("Enter")


EXPECTED = {
    function.__name__: function
    for function in (
        temperature_path,
        temperature,
        arrows,
        triangle,
        decomposition,
        sample_weights,
        students,
        transfer,
        compression,
        corruption,
        tokens,
        unknowns,
    )
}


def wrong(numbers, expected):
    """The numbers below a picture that are not as expected, or missing."""
    found = []
    for name, value in expected.items():
        value, more = value if isinstance(value, tuple) else (value, 6e-4)
        text = numbers.get(name, "")
        shown = [float(x) for x in re.findall(r"[-+]?\d+\.?\d*", text.replace("−", "-"))]
        count = np.size(value)
        fits = len(shown) >= count and np.allclose(
            shown[:count], value, rtol=0, atol=6e-4 if isinstance(more, str) else more
        )
        if not fits or (isinstance(more, str) and f"({more})" not in text):
            found.append(f"{name!r} says {text!r}, expected {value} {more}")
    return found


@pytest.fixture(scope="module")
def browser():
    needed = os.environ.get("TTM_LAB_BROWSER") == "1"
    program, why = lab.find_browser(), f"no browser found; looked for {', '.join(lab.BROWSERS)}"
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        program, why = None, "Playwright is not installed; it comes with the extra 'test'"
    if not program:
        (pytest.fail if needed else pytest.skip)(why)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    with lab.server(tmp_path_factory.mktemp("lab")) as running:
        yield running


# Errors only: Jupyter warns of copies that are not signed and of its own settings.
# What the server says where it was still writing to a page that the test has closed.
CLOSED = re.compile(
    r"^future: <Task finished [^\n]*WebSocketProtocol13\.write_message.*?"
    r"^tornado\.websocket\.WebSocketClosedError$",
    re.DOTALL | re.MULTILINE,
)
ERROR = re.compile(r"^\[[EC] |Traceback|\b(ERROR|CRITICAL)\b|\w(Error|Exception)\b")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [*NOTEBOOKS, "others"])
def test_every_control_moves_by_mouse_and_keyboard(number, browser, server):
    if number == "others":
        if EXPLORERS <= USED:
            pytest.skip("the course's notebooks show every explorer")
        path = written(server.notebooks)
    else:
        path = lab.copy_cut_short(NOTEBOOKS[number], server.notebooks)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors, logged = [], len(server.log())
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    notebook = lab.Notebook(page, server, path)
    try:
        assert not notebook.complaints(), "on running the notebook"
        assert len(notebook.state()) == len(notebook.uses), "an explorer is its cell's last value"
        for place in range(len(notebook.uses)):
            move_everything(Explorer(notebook, place))
        assert not notebook.complaints()
    finally:
        page.close()  # first: it would say that its kernel is gone
        notebook.close()
    assert not errors, "in the browser's console"
    # The kernel of the notebook before, which the server interrupts as it ends it, may say so here.
    log = CLOSED.sub("", "\n".join(server.log()[logged:]))
    lines = [line for line in log.splitlines() if "KeyboardInterrupt caught" not in line]
    assert not [line for line in lines if ERROR.search(line)]


def move_everything(explorer):
    explorer.settle("at first", moved=False)
    for k, label in enumerate(explorer.values):
        explorer.move_by_mouse(k)
        explorer.settle(f"{label!r} by mouse")
    buttons = explorer.buttons()
    if buttons:  # the last one's goal may have been reached by chance
        buttons[-1].click()
        explorer.settle("a first button", moved=False)
    for button in buttons:
        button.click()
        explorer.settle(f"{button.text_content()!r} by mouse")
    explorer.control(0).locator("[tabindex], select, input").first.focus()
    for k, label in enumerate(explorer.values):
        explorer.move_by_keyboard(explorer.control(k))
        explorer.settle(f"{label!r} by keyboard")
    for button in buttons:
        explorer.move_by_keyboard(button)
        explorer.settle(f"{button.text_content()!r} by keyboard")
