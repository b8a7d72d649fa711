"""How soon an explorer opens, and how soon a key press shows in its picture: in a real browser.

    python benchmarks/widgets.py    medians and quartiles, about a minute

From the browser's own time of the key press to the frame that shows the exchanged picture, in a
JupyterLab on this machine. The kernel's processor time for a redraw stands beside it: that part
does not grow where other programs keep the processors busy. Opening is the call in the kernel.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import machine, save
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import lab  # noqa: E402

PREPARE = """
import time
from ttm_lab.course import explore, figures
from ttm_lab.analysis import predict
from ttm_lab.course.outputs import Outputs
from ttm_lab.data import load_dataset
from ttm_lab.training import Settings, train_teacher
figures.use_style()
data = load_dataset("digits", seed=0)
teacher = train_teacher(data, Settings("cnn_large", epochs=15, learning_rate=0.1), progress=False)
logits, opened = predict(teacher.model, data.train.images), {}
outputs = Outputs.load("../data/results/cifar10_logits.npz")
def opening(name, *arguments):
    start = time.perf_counter()
    box = getattr(explore, name)(*arguments)
    opened.setdefault(name, []).append(time.perf_counter() - start)
    return box
"""
PICTURES = "logits, data.train.labels, data.class_names, data.train.images"
CALLS = {
    "temperature_path": "",
    "temperature": PICTURES,
    "triangle": "",
    "arrows": "",
    "decomposition": "",
    "sample_weights": PICTURES,
    "students": "outputs",
}
WATCH = """box => {
    window.waits = [];
    window.last = box.querySelector("img").src;
    let pressed = null;
    for (const kind of ["keydown", "change"])  // a slider's key, a list's choice
        box.addEventListener(kind, event => { pressed = event.timeStamp; }, true);
    new MutationObserver(async () => {
        const picture = box.querySelector("img"), from = pressed;
        if (from === null || picture.src === window.last) return;
        window.last = picture.src;
        await picture.decode();
        requestAnimationFrame(() => {  // a message comes after the frame is painted
            const {port1, port2} = new MessageChannel();
            port1.onmessage = () => { window.waits.push(performance.now() - from); };
            port2.postMessage(null);
        });
    }).observe(box, {subtree: true, childList: true, attributes: true});
}"""


def write(path):
    cells = [PREPARE]
    for name, arguments in CALLS.items():
        call = ", ".join(filter(None, [repr(name), arguments]))
        cells.append(f"# explore.{name}\n[opening({call}) for _ in range(5)][-1]")
    cells = [
        {"cell_type": "code", "id": f"cell-{k}", "metadata": {}, "source": source,
         "outputs": [], "execution_count": None}
        for k, source in enumerate(cells)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}}
    path.write_text(json.dumps(content | {"nbformat": 4, "nbformat_minor": 5}))
    return path


def measure(notebook, place, rounds):
    """Milliseconds from key to picture (rounds,), and the kernel's processor time for each."""
    box, page = notebook.explorer(place), notebook.page
    sliders = box.locator(".noUi-handle")
    if sliders.count():
        sliders.last.focus()  # the last one, which is never at an end
    box.evaluate(WATCH)
    for k in range(rounds + 3):
        if k == 3:
            before = notebook.ask("time.process_time()")
        if sliders.count():
            page.keyboard.press("ArrowLeft" if k % 2 else "ArrowRight")
        else:
            box.locator("select").first.select_option(index=(k + 1) % 2)
        page.wait_for_function(f"window.waits.length > {k}")
    spent = (notebook.ask("time.process_time()") - before) / rounds * 1000
    return np.array(page.evaluate("window.waits"))[3:], spent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="key presses each (default 30)")
    parser.add_argument("--save", action="store_true", help="keep the result under results/")
    parser.add_argument("--dark", action="store_true", help="JupyterLab's dark theme")
    options = parser.parse_args()
    names = ("jupyterlab", "ipywidgets", "ipykernel", "matplotlib")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        program = {"executable_path": lab.find_browser(), "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**program)
        with lab.server(Path(folder), dark=options.dark) as server:
            screen = {"width": 1280, "height": 900}
            page = browser.new_page(viewport=screen, device_scale_factor=1.5)
            notebook = lab.Notebook(page, server, write(server.notebooks / "explorers.ipynb"))
            lines = [
                f"# Explorers in the browser, {datetime.date.today()}",
                "",
                machine(),
                f"{versions}, Chromium {browser.version}.",
                f"Load average at the start, of this program too: {os.getloadavg()[0]:.1f}.",
                "",
                f"Key press to picture: median [quartiles] and largest of {options.rounds}, ms.",
                "",
                "| explorer | opens, ms | key press to picture | largest | kernel's CPU |",
                "| --- | --- | --- | --- | --- |",
            ]
            print("\n".join(lines))
            opened = notebook.ask("opened")
            for place, name in enumerate(CALLS):
                waits, spent = measure(notebook, place, options.rounds)
                low, middle, high = np.quantile(waits, [0.25, 0.5, 0.75])
                lines.append(
                    f"| {name} | {1000 * np.median(opened[name]):.0f} | "
                    f"{middle:.0f} [{low:.0f}, {high:.0f}] | {waits.max():.0f} | {spent:.0f} |"
                )
                print(lines[-1], flush=True)
            notebook.close()
        browser.close()
    if options.save:
        save("widgets", lines)


if __name__ == "__main__":
    main()
