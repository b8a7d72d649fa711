"""What tests and measurements share: few digits, a real JupyterLab, and a device of less."""

import ast
import base64
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from jupyter_client import BlockingKernelClient
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.files import find_root
from ttm_lab.training import Settings

ROOT = find_root(__file__)
SECONDS = 120  # until something counts as dead; a slow machine needs a fraction of it
TOKEN = "only-for-this-server"
# Jupyter looks for a free port and takes it seconds later; the system gives away none of these.
PORT = 10_000 + os.getpid() % 20_000


def few_digits() -> Dataset:
    """150 digits to learn from, 60 to validate and 60 to test on."""
    whole = load_dataset("digits", seed=0)
    cut = lambda split, n: Split(split.images[:n], split.labels[:n])  # noqa: E731
    parts = {"train": cut(whole.train, 150), "validation": cut(whole.validation, 60)}
    return replace(whole, **parts, test=cut(whole.test, 60))


def student(method="wttm", **changes) -> Settings:
    """Two epochs of the digits' student."""
    values = {"temperature": 4.0, "distill_weight": 2.0, "epochs": 2, "learning_rate": 0.02}
    return Settings("cnn_small", method, **(values | changes))


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# What training tells in a batch, in place of a progress bar.
PROGRESS = re.compile(r"(\s*[^\n]*, seed \d+: epoch \d+/\d+, [^\n]*\s*)+")
# Named arguments of an explorer's call in a cell, without the pictures; evaluated in the kernel.
_ARGUMENTS = """
def _arguments(source, kind):
    import ast, base64, inspect, pickle
    from ttm_lab.course import explore
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    call = next(c for c in calls if ast.unparse(c.func) == f"explore.{kind}")
    call.func = ast.Name("dict", ast.Load())
    names = list(inspect.signature(getattr(explore, kind)).parameters)
    call.keywords += [ast.keyword(name, arg) for name, arg in zip(names, call.args)]
    call.args = []
    found = eval(ast.unparse(call), globals())
    return base64.b64encode(pickle.dumps(found)).decode()
"""
_STATE = """[
    {
        "values": {c.description: c.value for c in box.children[0].children},
        "names": [getattr(c, "label", c.value) for c in box.children[0].children],
        "picture": __import__("hashlib").sha256(
            box.children[-2].value.split('src="')[1].split('"')[0].encode()
        ).hexdigest(),
    }
    for box in Out.values() if type(box).__name__ == "_Explorer"
]"""


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def uses_of_explorers(path: Path) -> list[tuple[str, str]]:
    """The explorers of a notebook in their order: the function's name and its cell's source."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = []
    for source in ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]:
        if "explore." in source:
            calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
            names = [ast.unparse(call.func) for call in calls]
            found += [(name.split(".")[1], source) for name in names if name[:8] == "explore."]
    return found


STILL = """box => {
    const picture = box.querySelector("img");
    const controls = [...box.querySelectorAll("input, select")];
    return {
        labels: controls.map(it => it.closest("label").querySelector("span").textContent),
        valued: controls.map(it =>
            it.type === "range" ? it.ariaValueText : it.selectedOptions[0].textContent),
        shown: controls.map(it =>
            it.type === "range" ? it.nextElementSibling.textContent : it.selectedOptions[0].text),
        picture: picture.src,
        drawn: picture.decode().then(() => picture.naturalWidth > 0),
        alt: picture.alt,
        numbers: Object.fromEntries([...box.querySelector(".ttm-numbers").children].map(
            pair => [...pair.children].map(part => part.textContent))),
    };
}"""


def still_explorers(page) -> list[dict]:
    """Move by keyboard every explorer that needs no kernel on a page, and hold it together.

    For each: how many ``controls`` it has, and what was ``seen`` after each move: what the text
    alternative says of all controls as ``values``, and the ``numbers`` below the picture.
    """
    found = []
    for box in page.locator(".ttm-frames").all():
        seen, controls = [], box.locator("input, select").all()

        def look(box=box, seen=seen):
            now = box.evaluate(
                f"async box => {{ const now = ({STILL})(box); now.drawn = await now.drawn; "
                "return now; }"
            )
            told = dict(zip(now["labels"], now["valued"], strict=True))
            numbers = [f"{name} {value}" for name, value in now["numbers"].items()]
            words = now["alt"].split("; ")
            assert now["drawn"]
            assert now["shown"] == now["valued"]
            assert all(f"{label} {value}" in words for label, value in told.items()), now["alt"]
            assert words[len(words) - len(numbers) :] == numbers
            values = words[: len(words) - len(numbers)]
            seen.append({"numbers": now["numbers"], "values": values, "picture": now["picture"]})

        look()
        for control in controls:
            control.focus()
            moves = ["Home", "ArrowRight", "ArrowRight", "End", "ArrowLeft"]
            for key in moves if control.get_attribute("type") == "range" else ["Home", "ArrowDown"]:
                page.keyboard.press(key)
                look()
        pictures = {told["picture"] for told in seen}
        assert len(pictures) > len(controls), "the picture follows the controls"
        found.append({"controls": len(controls), "seen": seen})
    return found


def copy_cut_short(path: Path, folder: Path) -> Path:
    """Copy a notebook whose trainings then stop after two steps."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = "".join(cell["source"]) + "\nmax_steps = 2"
    target = folder / path.name
    target.write_text(json.dumps(notebook), encoding="utf-8")
    return target


def await_(condition, page=None, seconds=SECONDS):
    """The first true value of ``condition()``; the page lives on meanwhile."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} did not come true in {seconds} s")
        page.wait_for_timeout(20) if page else time.sleep(0.05)
    return found


class Server:
    """A running JupyterLab: its address, its folder of notebooks, and what it and kernels log."""

    def __init__(self, folder: Path, dark: bool = False):
        self.notebooks, self.runtime = folder / "notebooks", Path(tempfile.mkdtemp())
        self.notebooks.mkdir()
        for part in ("ttm_lab", "data", "docs", "README.md"):  # beside them, as in a checkout
            (folder / part).symlink_to(ROOT / part)
        settings = folder / "jupyter" / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False}  # no question, no network
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
        theme = {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}
        (settings / "themes.jupyterlab-settings").write_text(json.dumps(theme))
        places = {
            "JUPYTER_RUNTIME_DIR": self.runtime,
            "JUPYTER_CONFIG_DIR": folder / "jupyter" / "config",
            "JUPYTER_DATA_DIR": folder / "jupyter" / "data",
            "JUPYTERLAB_SETTINGS_DIR": folder / "jupyter" / "settings",
            "JUPYTERLAB_WORKSPACES_DIR": folder / "jupyter" / "workspaces",
            "IPYTHONDIR": folder / "ipython",
            "TTM_LAB_RUNS": folder / "runs",
            "TTM_LAB_RESULTS": folder / "results",
        }
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        quiet = {"TQDM_DISABLE": "1", "TTM_LAB_BATCH": "1", "PYTHONPATH": path}
        environment = os.environ | {name: str(place) for name, place in places.items()} | quiet
        environment.pop("MPLBACKEND", None)
        self.log_file = folder / "server.log"
        # A kernel is talked to through files, not ports that another process may take before it,
        # where their paths are as short as those of sockets have to be.
        short = os.name == "posix" and len(os.fsencode(self.runtime)) < 50
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"),
            *(f"--port={PORT}", f"--IdentityProvider.token={TOKEN}"),
            *(f"--ServerApp.root_dir={self.notebooks}", "--LabApp.news_url=None"),
            *(["--KernelManager.transport=ipc"] if short else []),
            *(["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []),
        ]
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.notebooks, env=environment, stdout=log, stderr=log
            )
        try:
            (told,) = await_(lambda: list(self.runtime.glob("jpserver-*.json")))
            self.address = await_(lambda: told.stat().st_size and json.loads(told.read_text()))
            self.address = self.address["url"]
            await_(self._answers)
        except BaseException:
            self.stop()
            print(self.log_file.read_text(errors="replace"))
            raise

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with status {self.process.returncode}")
        try:
            return bool(self.ask("api/status"))
        except OSError:
            return False

    def ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(self.address + path, method=method)
        request.add_header("Authorization", f"token {TOKEN}")
        with urllib.request.urlopen(request, timeout=SECONDS) as reply:
            return json.loads(reply.read() or "null")

    def log(self) -> list[str]:
        return self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()

    def stop(self) -> None:
        """End the server and its kernels, without the question that Ctrl-C would bring."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.runtime, ignore_errors=True)


@contextmanager
def server(folder: Path, **options):
    running = Server(folder, **options)
    try:
        yield running
    finally:
        running.stop()


class Notebook:
    """A notebook open in the browser, run to its end, and a second client of its kernel."""

    def __init__(self, page, running: Server, path: Path):
        self.page, self.running = page, running
        self.uses, self.said = uses_of_explorers(path), []
        page.set_default_timeout(1000 * SECONDS)
        page.goto(f"{running.address}lab/tree/{path.name}?token={TOKEN}&reset")
        page.get_by_text("Python 3 (ipykernel) | Idle").first.wait_for()
        (session,) = [s for s in running.ask("api/sessions") if s["path"] == path.name]
        self.kernel = session["kernel"]["id"]
        connection = running.runtime / f"kernel-{self.kernel}.json"
        self.client = BlockingKernelClient(connection_file=str(connection))
        self.client.load_connection_file()
        self.client.start_channels()
        try:
            self.client.wait_for_ready(timeout=SECONDS)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            await_(lambda: self.complaints() or self._all_ran(), page)
            self.ask("0", run=_ARGUMENTS)
        except BaseException:
            self.close()
            raise

    def _all_ran(self) -> bool:
        prompts = self.page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt")
        texts = prompts.all_text_contents()
        return bool(texts) and all(text.strip(" []:").isdigit() for text in texts)

    def complaints(self) -> list[str]:
        """Errors and everything on stderr that the kernel has published so far, but progress."""
        while self.client.iopub_channel.msg_ready():
            message = self.client.get_iopub_msg(timeout=1)
            kind, content = message["msg_type"], message["content"]
            if kind == "error":
                self.said.append("\n".join(content["traceback"]))
            elif kind == "stream" and content["name"] == "stderr":
                self.said += [] if PROGRESS.fullmatch(content["text"]) else [content["text"]]
        return self.said

    def ask(self, expression: str, *, run: str = "") -> object:
        """The value of an expression in the notebook's kernel, asked beside the browser."""
        reply = self.client.execute(
            run, silent=True, user_expressions={"it": expression}, reply=True, timeout=SECONDS
        )
        if reply["content"]["status"] == "aborted":  # a cell before it failed
            raise RuntimeError("\n".join(self.complaints()))
        found = reply["content"]["user_expressions"]["it"]
        if found["status"] != "ok":
            raise RuntimeError(f"{expression}: {found['ename']}: {found['evalue']}")
        return ast.literal_eval(found["data"]["text/plain"])

    def state(self) -> list[dict]:
        """Of each explorer the values of its controls by label, and a hash of its picture."""
        return self.ask(_STATE)

    def arguments(self, place: int) -> dict:
        kind, source = self.uses[place]
        return pickle.loads(base64.b64decode(self.ask(f"_arguments({source!r}, {kind!r})")))

    def explorer(self, place: int):
        """The explorer's box on the page, in view."""
        box = self.page.locator(".ttm-explorer").nth(place)
        box.scroll_into_view_if_needed()
        return box

    def close(self) -> None:
        self.client.stop_channels()
        self.running.ask(f"api/kernels/{self.kernel}", "DELETE")


class _NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        outside = any(hasattr(x, "outside") for x in tree_leaves((args, kwargs)))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and outside:
                tensor.outside = True
            elif isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise TypeError(f"{function} makes float64 on a device that has none")
        return result


@contextmanager
def device_without_float64():
    """Let the CPU play a device such as mps; what ``.cpu()`` gives lies outside of it."""

    def cpu(tensor):
        copy = tensor.clone()
        copy.outside = True
        return copy

    real, torch.Tensor.cpu = torch.Tensor.cpu, cpu
    try:
        with _NoFloat64():
            yield
    finally:
        torch.Tensor.cpu = real


class Allocated(TorchDispatchMode):
    """Inside, counts the bytes of tensors that are made there and still alive: ``most`` of them."""

    def __init__(self):
        super().__init__()
        self.most, self.given, self.made = 0, set(), {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.given |= {key for key, _ in self.storages((args, kwargs))} - self.made.keys()
        result = function(*args, **(kwargs or {}))
        for key, storage in self.storages(result):
            if key not in self.given and key not in self.made:
                self.made[key] = StorageWeakRef(storage), storage.nbytes()
        self.made = {key: kept for key, kept in self.made.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.made.values()))
        return result

    @staticmethod
    def storages(values):
        tensors = [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]
        return [(x.untyped_storage()._cdata, x.untyped_storage()) for x in tensors]
