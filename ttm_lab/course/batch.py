"""The batch: run every notebook by papermill, each in its own process, and report.

Files under ``runs/reproduce/<name>/`` (``TTM_LAB_RUNS`` names another place for ``runs``):
executed notebooks, ``logs/``, ``results/`` (what the notebooks recorded), ``status.json`` (what
ran, from which inputs) and ``report.html``. A notebook works in ``.running/`` and its files move
into place when it ends. ``docs/build.py`` makes pages of them.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path

import filelock
import papermill
import psutil
from tqdm import tqdm

from ttm_lab.course import execute, report
from ttm_lab.files import FileLock, atomic_write, find_root, runs_folder, user_path
from ttm_lab.runs import environment

PROFILES = ("quick", "standard", "paper")
TIMEOUTS = {"quick": 900, "standard": 6 * 3600, "paper": 14 * 24 * 3600}  # seconds a notebook
GRACE = 60  # seconds that a notebook may take for starting and writing, beyond its time-out
# What a notebook should take at most, in seconds; the report marks those that take longer.
BUDGETS = {"quick": 60, "standard": 3600}
MEMORY = 1.5 * 2**30  # bytes for a notebook's kernel and the process that runs it
# These run or describe notebooks but are not used inside them.
BATCH_MODULES = (
    "__main__.py",
    "torchdistill.py",
    "course/batch.py",
    "course/cli.py",
    "course/commands.py",
    "course/handout.py",
    "course/paper_commands.py",
    "course/report.py",
)


class Refused(ValueError):
    """The batch cannot start; the message says why and what to do."""


@dataclass
class Job:
    """One notebook of a batch, while it runs."""

    path: Path
    parameters: dict
    inputs: str = ""
    folder: Path = Path()
    started: float = 0.0
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.path.stem


def reproduce(
    profile: str = "quick",
    *,
    only: list[str] | None = None,
    parameters: dict | None = None,
    jobs: int | None = None,
    timeout: float | None = None,
    name: str | None = None,
    root: str | Path | None = None,
    fresh: bool = False,
) -> int:
    """Run the notebooks under ``root`` and write the report; return 0, or 1 if one failed.

    ``jobs`` notebooks run at a time, by default as ``side_by_side`` says for the profile.
    ``only`` picks notebooks by number or name, ``parameters`` go to every notebook that has them,
    ``timeout`` is in seconds a notebook. A notebook that finished before with the same inputs
    (its cells, parameters, package code, data files, package versions, notebooks it runs after)
    is skipped unless ``fresh``. Raises ``Refused`` before anything runs for an unknown notebook,
    parameter or profile, and while another batch works in the same folder.
    """
    if profile not in PROFILES:
        raise Refused(f"profile {profile!r} is unknown; choose one of {', '.join(PROFILES)}")
    if jobs is None:
        jobs = side_by_side(profile)
    if jobs < 1:
        raise Refused(f"--jobs {jobs}: give at least 1")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise Refused(f"--timeout {timeout}: give a positive number of seconds")
    if only is not None and not only:
        raise Refused("--only names no notebook")
    if "profile" in (parameters or {}):
        raise Refused("-p profile: use --profile instead")
    name = profile if name is None else name
    if not re.fullmatch(r"\w[\w.-]{0,59}", name):
        raise Refused(f"name {name!r}: use at most 60 letters, digits, '_', '-' and '.'")
    root = find_root() if root is None else user_path(root).resolve()
    notebooks = find_notebooks(root)
    chosen = select(notebooks, only or [])
    given = assign_parameters(chosen, profile, parameters or {})
    folder = batch_folder(root, name)
    with _locked(folder):
        batch = Batch(root, folder, notebooks, timeout or TIMEOUTS[profile], jobs, fresh)
        return batch.run([Job(path, given[path.stem]) for path in chosen], profile)


def side_by_side(profile: str) -> int:
    """How many notebooks to run at a time: one a core in ``quick``, as far as memory goes.

    A quick notebook gains little from a second thread. The longer profiles train networks that
    fill a GPU or all cores, so there it is one.
    """
    if profile != "quick":
        return 1
    room = psutil.virtual_memory().available / MEMORY
    return max(1, min(_cores(), int(room)))


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def batch_folder(root: Path, name: str) -> Path:
    """A batch's folder: ``$TTM_LAB_RUNS/reproduce/<name>``, else ``<root>/runs/...``."""
    moved = os.environ.get("TTM_LAB_RUNS")
    runs = runs_folder("reproduce") if moved else root / "runs" / "reproduce"
    return runs.absolute() / name


def find_notebooks(root: Path) -> list[Path]:
    """The notebooks under ``root``, each of which can be read. Hidden files are none of them."""
    found = sorted((root / "notebooks").glob("*.ipynb"))
    notebooks = [path for path in found if not path.name.startswith(".")]
    if not notebooks:
        raise Refused(f"no notebooks in {root / 'notebooks'}: change into a checkout or use --root")
    try:
        for path in notebooks:
            execute.read_notebook(path)
    except ValueError as error:
        raise Refused(str(error)) from error
    return notebooks


def select(notebooks: list[Path], only: list[str]) -> list[Path]:
    """The notebooks named in ``only`` by number (``5``, ``05``) or name; all if it is empty."""
    chosen = set()
    for wanted in only:
        number = wanted.zfill(2) if wanted.isdigit() else wanted
        stem = wanted.removesuffix(".ipynb")
        found = [p for p in notebooks if p.stem == stem or p.stem.split("_")[0] == number]
        # With a folder it is a path, and one that leads elsewhere is another notebook.
        paths = [Path(start, stem + ".ipynb").resolve() for start in (".", notebooks[0].parents[1])]
        found += [p for p in notebooks if p.resolve() in paths]
        if not found:
            names = ", ".join(p.stem for p in notebooks)
            raise Refused(f"no notebook is called {wanted!r}; there are {names}")
        chosen.update(found)
    return [p for p in notebooks if p in chosen or not only]


def assign_parameters(chosen: list[Path], profile: str, parameters: dict) -> dict[str, dict]:
    """Parameters by notebook. papermill only warns of an unknown name and runs the defaults."""
    known = {p.stem: set(papermill.inspect_notebook(execute.read_notebook(p))) for p in chosen}
    valid = set().union(*known.values()) - {"profile"}
    if unknown := sorted(set(parameters) - valid):
        raise Refused(
            f"no chosen notebook has a parameter {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(sorted(valid)) or 'none'} (and --profile)"
        )
    given = {"profile": profile, **parameters}
    return {stem: {k: v for k, v in given.items() if k in names} for stem, names in known.items()}


@contextmanager
def _locked(folder: Path):
    """Keep a second batch out of the folder. The system frees the lock if this process dies."""
    holder = folder / ".holder"
    lock = FileLock(folder / ".lock")
    since = f"{datetime.now():%Y-%m-%d %H:%M}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        atomic_write(holder, f"process {os.getpid()} on {socket.gethostname()} since {since}")
    except filelock.Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise Refused(
            f"{_shown(folder)} is in use by {who}: wait for it, or choose another --name"
        ) from None
    except OSError as error:
        lock.release()
        raise Refused(
            f"{_shown(folder)} cannot be written to ({error.strerror}): "
            "set TTM_LAB_RUNS to a folder that can, and the batch works there"
        ) from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


class Batch:
    """The state of one batch in its folder."""

    def __init__(self, root, folder, notebooks, timeout, jobs, fresh):
        self.root, self.folder, self.notebooks = root, folder, notebooks
        self.timeout, self.jobs, self.fresh = timeout, jobs, fresh
        self.after = {p.stem: _after(p, {q.stem for q in notebooks}) for p in notebooks}
        self.shared = _shared_inputs(root)
        self.status_file = folder / "status.json"
        self.status = report.read_status(folder) or {"notebooks": {}}
        if self.status_file.exists() and "profile" not in self.status:
            tqdm.write(f"{_shown(self.status_file)} is damaged: everything runs anew")
        self._end_left_behind(folder / ".running")  # by a batch that was killed
        shutil.rmtree(folder / ".running", ignore_errors=True)
        for gone in set(self.status["notebooks"]) - set(self.after):
            self._clear(gone)
            del self.status["notebooks"][gone]

    def run(self, chosen: list[Job], profile: str) -> int:
        before = self.status.get("profile", profile)
        if before != profile:
            where = _shown(self.folder)
            raise Refused(f"{where} holds the profile {before}: choose another --name")
        self.status |= {"profile": profile, "environment": environment(), "jobs": self.jobs}
        self.status["budget"] = BUDGETS.get(profile)
        self.status |= {"started": _now(), "finished": None}
        todo = {job.name: job for job in chosen}
        order = TopologicalSorter({n: [a for a in self.after[n] if a in todo] for n in todo})
        try:
            order.prepare()
        except CycleError as error:
            raise Refused(f"{', '.join(error.args[1])} ask to run after one another") from None
        waiting, running, skipped = [], [], []
        bar = tqdm(total=len(todo), unit="notebook", disable=not sys.stderr.isatty())
        try:
            while order.is_active():
                waiting = sorted([*waiting, *order.get_ready()])
                while waiting and len(running) < self.jobs:
                    job = todo[waiting.pop(0)]
                    job.inputs = self.inputs(job.path, job.parameters)
                    if not self.fresh and self._finished(job):
                        skipped.append(job.name)
                        order.done(job.name)
                        bar.update()
                    else:
                        self._start(job)
                        running.append(job)
                        tqdm.write(f"{job.name} started")
                for job in [job for job in running if self._ended(job)]:
                    running.remove(job)
                    entry = self.status["notebooks"][job.name]
                    tqdm.write(f"{job.name} {entry['status']} after {entry['seconds']:.0f} s")
                    order.done(job.name)
                    bar.update()
                bar.set_postfix_str(", ".join(j.name[:2] for j in running), refresh=True)
                if running:
                    time.sleep(0.1)
        finally:  # on Ctrl-C too: nothing goes on in the background, what is finished is kept
            bar.close()
            for job in running:
                execute.kill(job.process)
                self._end_left_behind(job.folder)
                if self._entry(job.name).get("status") != "done":
                    self._save(job, "interrupted")
            shutil.rmtree(self.folder / ".running", ignore_errors=True)
            self._finish()
        return self._summary(todo, skipped)

    def inputs(self, path: Path, parameters: dict) -> str:
        """A hash over everything that decides what a notebook shows."""
        notebook = execute.read_notebook(path)
        before = {n: self._entry(n).get("inputs") for n in self.after[path.stem]}
        content = {
            "cells": [[c.cell_type, c.source, c.metadata.get("tags", [])] for c in notebook.cells],
            "parameters": parameters,
            "after": before,
            "shared": self.shared,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _entry(self, name: str) -> dict:
        return self.status["notebooks"].get(name, {})

    def _finished(self, job: Job) -> bool:
        entry = self._entry(job.name)
        files = [f"{job.name}.ipynb", *entry.get("results", [])]
        return (
            entry.get("status") == "done"
            and entry["inputs"] == job.inputs
            and all((self.folder / file).exists() for file in files)
            and same_cells(job.path, self.folder / files[0])
        )

    def _start(self, job: Job) -> None:
        job.folder = self.folder / ".running" / job.name
        (self.folder / "logs").mkdir(exist_ok=True)
        job.process = execute.start(
            job.path,
            job.folder,
            job.parameters,
            log=self.folder / "logs" / f"{job.name}.log",
            cell_timeout=self.timeout,
            environment={
                **self._threads(),
                **os.environ,
                "TTM_LAB_RUNS": str(self.folder.parents[1]),
            },
        )
        job.started = time.monotonic()

    def _end_left_behind(self, folder: Path) -> None:
        for line in execute.end_left_behind(folder):
            tqdm.write(f"left running by a notebook: {line}")

    def _threads(self) -> dict[str, str]:
        """Share the cores: more threads than cores slow every notebook down."""
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return dict.fromkeys(variables, str(max(1, _cores() // self.jobs)))

    def _ended(self, job: Job) -> bool:
        code = job.process.poll()
        if code is None and time.monotonic() - job.started < self.timeout + GRACE:
            return False
        if code is None:
            execute.kill(job.process)
            outcome = {"status": "timed out", "error": f"took over {self.timeout:g} s"}
        elif code == 0:
            outcome = {"status": "done"}
        else:
            told = job.folder / "error.json"
            outcome = {"status": "failed", "error": f"the process ended with status {code}"}
            if told.exists():
                outcome = json.loads(told.read_text(encoding="utf-8"))
        self._end_left_behind(job.folder)
        self._publish(job, **outcome)
        return True

    def _publish(self, job: Job, status: str, error: str = "") -> None:
        """Move the notebook's files into place. Only a finished notebook's results count."""
        self._save(job, "unfinished")
        self._clear(job.name)
        if (made := job.folder / f"{job.name}.ipynb").exists():
            os.replace(made, self.folder / made.name)
        if status == "done":
            (self.folder / "results").mkdir(exist_ok=True)
            os.replace(job.folder / "results", self.folder / "results" / job.name)
        self._save(job, status, error)

    def _clear(self, name: str) -> None:
        (self.folder / f"{name}.ipynb").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "results" / name, ignore_errors=True)

    def _save(self, job: Job, status: str, error: str = "") -> None:
        made = (self.folder / "results" / job.name).rglob("*.json") if status == "done" else []
        self.status["notebooks"][job.name] = {
            "status": status,
            "error": error,
            "seconds": round(time.monotonic() - job.started, 2),
            "finished": _now(),
            "parameters": job.parameters,
            "inputs": job.inputs,
            "interpreter": sys.executable,
            "log": f"logs/{job.name}.log",
            "results": sorted(p.relative_to(self.folder).as_posix() for p in made),
        }
        self._write_status()

    def _write_status(self) -> None:
        atomic_write(self.status_file, json.dumps(self.status, indent=1))

    def _finish(self) -> None:
        """Mark what no longer fits the present code and notebooks, then write the report."""
        paths = {p.stem: p for p in self.notebooks}
        for name, entry in self.status["notebooks"].items():
            entry["outdated"] = entry["inputs"] != self.inputs(paths[name], entry["parameters"])
        self.status["finished"] = _now()
        self._write_status()
        report.write(self.folder)

    def _summary(self, todo: dict[str, Job], skipped: list[str]) -> int:
        """Print the table; return the exit status."""
        width = max(map(len, todo))
        tqdm.write(f"\n{'notebook':{width}}  {'status':11}  seconds")
        failed = []
        for name in todo:
            entry = self._entry(name)
            status = "done before" if name in skipped else entry["status"]
            over = report.over_budget(self.status, entry)
            line = f"{name:{width}}  {status:11}  {entry['seconds']:7.1f}{over and f'  {over}'}"
            tqdm.write(line)
            failed += [name] if entry["status"] != "done" else []
        for name in failed:
            tqdm.write(f"\n{name} {self._entry(name)['status']}: {self._entry(name)['error']}")
            tqdm.write(f"  read {_shown(self.folder / self._entry(name)['log'])}")
        executed = [path for name in todo if (path := self.folder / f"{name}.ipynb").exists()]
        tqdm.write("")
        if executed:
            where = executed[0] if len(todo) == 1 else self.folder
            tqdm.write(f"As they ran, for JupyterLab: {_shown(where)}")
        tqdm.write(f"Report: {_shown(self.folder / 'report.html')}")
        return 1 if failed else 0


def same_cells(notebook: Path, executed: Path) -> bool:
    """Whether ``executed`` is a notebook, and made from the cells of ``notebook``."""

    def cells(path: Path) -> list[tuple[str, str]]:
        return [
            (cell.cell_type, cell.source)
            for cell in execute.read_notebook(path).cells
            if "injected-parameters" not in cell.metadata.get("tags", [])
        ]

    try:
        return cells(notebook) == cells(executed)
    except ValueError:
        return False


def _after(path: Path, names: set[str]) -> list[str]:
    """The notebooks that this one's metadata asks to run after."""
    metadata_ = execute.read_notebook(path).metadata.get("ttm_lab", {})
    after = list(metadata_.get("after", []))
    if unknown := set(after) - names:
        raise Refused(f"{path.name} asks to run after {sorted(unknown)}, which is not there")
    return after


def _shared_inputs(root: Path) -> dict:
    """What every notebook's result rests on: package code, data that ships, versions."""
    package, files = Path(__file__).parents[1], {}
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if path.is_file() and name not in BATCH_MODULES and "__pycache__" not in path.parts:
            files[f"ttm_lab/{name}"] = path
    for path in sorted((root / "data").rglob("*.csv")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith("data/downloads/"):
            files[name] = path
    needed = metadata.requires("ttm-lab") or []
    names = sorted({re.match(r"[\w.-]+", line).group() for line in needed})
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "files": {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()},
        "versions": {"python": sys.version.split()[0], **versions},
    }


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _shown(path: Path) -> str:
    """A path as the user would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
