"""The digits study of notebooks 5 and 6: which students, with which settings, and their search.

Families of settings stand side by side. ``published`` fixes temperature and loss weights to those
behind the paper's Fig. 1 (T = 4, lambda = 0.9, beta = 36, beta_WTTM = 36 / mean U); ``no-ce`` is
the same without cross-entropy (Fig. 2), ``appendix`` has KD at T = 1 and label smoothing (Fig. 3).
These three ask what a loss does to entropy and distance, which follow learning rate and epochs, so
both are one for all seeds and for all methods on the two sides of a contrast (``ONE_RATE``).
``tuned`` asks how accurate a method can be and searches everything, seed by seed.

In the search every method of every family gets the same number of trials, judged on the
validation part of its own seed. No test image of a seed takes part in the choice of that seed's
tuned settings; ``ONE_RATE`` comes from the validation parts of all seeds.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ttm_lab.analysis import evaluate
from ttm_lab.course.engine import free_cores, run_tasks
from ttm_lab.course.outputs import Outputs, collect_outputs
from ttm_lab.course.paper import KD_WEIGHT, TEMPERATURE, TTM_WEIGHT, mean_power_sum
from ttm_lab.data import Dataset, load_dataset
from ttm_lab.files import atomic_write, read_table, user_path
from ttm_lab.objectives import LogitTerm
from ttm_lab.training import (
    NUMERICS,
    Diverged,
    Settings,
    Trained,
    distill_many,
    find_runs,
    train_teacher,
)

# The teacher's two numbers were set by hand on validation accuracy, once for all methods.
TEACHER = Settings("cnn_large", epochs=15, learning_rate=0.1, name="teacher")

# Learning rate of the families published, no-ce and appendix, the same for every seed, with
# EPOCHS: for each of two groups a round number in that quarter of a decade in which the group's
# worst method did best in the search (mean validation accuracy). One rate for all would leave the
# first group untrained or the second diverged: at beta = 36 TTM has 37 times CE's gradient scale.
ONE_RATE = dict.fromkeys(("ce", "kd", "kd1", "smoothing"), 0.05)
ONE_RATE |= dict.fromkeys(("ttm", "wttm"), 0.005)
EPOCHS = 20  # the most that were searched

# All contrasts that notebooks 5 and 6 judge or draw for a claim on the digits, named before any
# was measured: their intervals cover at once (Bonferroni over all of them).
CONTRASTS = {
    "B4": ("TTM minus KD", "WTTM minus TTM"),
    "B5": ("TTM minus WTTM",),
    "B6": (
        *("CE minus KD (T = 4)", "KD (T = 1) minus CE", "KD (T = 1) minus KD (T = 4)"),
        "label smoothing minus CE",
    ),
    "B7": ("accuracy gap", "NLL gap", "NLL gap, rescaled"),
    "B14": ("between minus within methods",),
    "B14, beside": (
        *("NLL, as trained", "Brier score, as trained", "ECE, as trained"),
        *("NLL, rescaled", "Brier score, rescaled", "ECE, rescaled"),
    ),
}
NUMBER_OF_CONTRASTS = sum(map(len, CONTRASTS.values()))

SETTINGS_FILE = Path(__file__).with_name("digits_settings.csv")

FAMILIES = {
    "tuned": ("ce", "kd", "ttm", "wttm"),
    "published": ("ce", "kd", "ttm", "wttm"),
    "no-ce": ("ttm", "wttm"),
    "appendix": ("kd1", "smoothing"),
}


def label_smoothing(student_logits: Tensor, _teacher_logits: Tensor, _labels: Tensor) -> Tensor:
    """H(u, q), u uniform: the second term of label smoothing (paper Eq. 5), as a custom loss."""
    return -F.log_softmax(student_logits.float(), dim=-1).mean()


LABEL_SMOOTHING = LogitTerm(label_smoothing, name="label smoothing")


def _settings(method: str, **values) -> Settings:
    """A student's settings; ``kd1`` and ``smoothing`` are this study's names for B6's methods."""
    loss, name = {
        "kd1": ("kd", "KD, T = 1"),
        "smoothing": (LABEL_SMOOTHING, "label smoothing"),
    }.get(method, (method, method.upper()))
    return Settings("cnn_small", loss, **{"name": name, **values})


def draw_trials(
    method: str, family: str, count: int, teacher: Trained, data: Dataset
) -> list[Settings]:
    """``count`` random settings of one method for one seed's data and teacher.

    Searched in every family: learning rate (log-uniform, 0.0005 to 0.3) and epochs (10, 15 or
    20). Family ``tuned`` adds the temperature (log-uniform, 1.25 to 10: the exponents 0.1 to 0.8
    that the paper uses), lambda of KD (uniform, 0.1 to 0.95), beta of TTM (log-uniform, 1 to 100)
    and beta of WTTM (the same, divided by the teacher's mean U at that temperature).
    """
    random = np.random.default_rng([data.seed, *f"{method} {family}".encode()])

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    drawn = []
    for k in range(count):
        tuned = family == "tuned"
        rate, epochs = log_uniform(0.0005, 0.3), int(random.choice([10, 15, 20]))
        temperature = log_uniform(1.25, 10) if tuned and method != "ce" else TEMPERATURE
        share = float(random.uniform(0.1, 0.95)) if tuned else KD_WEIGHT
        beta = log_uniform(1, 100) if tuned else TTM_WEIGHT
        if method == "wttm":
            beta /= mean_power_sum(teacher, data, temperature)
        hard = 0.0 if family == "no-ce" else 1.0
        ce_weight, distill_weight = {
            "ce": (1.0, 0.0),
            "kd": (1 - share, share),
            "kd1": (1 - share, share),
            "ttm": (hard, beta),
            "wttm": (hard, beta),
            "smoothing": (0.5, 0.5),  # epsilon of the paper's Fig. 3
        }[method]
        drawn.append(
            _settings(
                method,
                temperature=1.0 if method in ("kd1", "smoothing") else temperature,
                ce_weight=ce_weight,
                distill_weight=distill_weight,
                learning_rate=rate,
                epochs=epochs,
                name=f"{family} {method} {k}",
            )
        )
    return drawn


def search(seeds: Sequence[int], path: str | Path, *, trials: int = 24) -> pd.DataFrame:
    """Random search on validation data: ``trials`` settings for every method, family and seed.

    Adds a row a trial to the CSV file at ``path`` after each seed and family, and leaves out what
    is there already, so a search that was broken off goes on where it stopped. Several seeds take
    turns on as many cores as torch's threads leave, each in a process of its own. CE is searched
    once, in ``tuned``. A trial whose loss became infinite or NaN keeps its row without a score.
    """
    path = user_path(path)
    tables = [read_table(path)] if path.exists() else []
    done = {pair for t in tables for pair in zip(t["seed"], t["family"], strict=True)}
    wanted = [(seed, family) for seed in seeds for family in FAMILIES if (seed, family) not in done]
    tasks, found = [(seed, family, trials) for seed, family in wanted], {}
    for task, rows in _work_off(_search_one, tasks, _workers(), "search"):
        found[task] = pd.DataFrame(rows)
        in_order = [found[task] for task in tasks if task in found]
        atomic_write(path, pd.concat([*tables, *in_order]).to_csv(index=False))
    return read_table(path)


def _search_one(seed: int, family: str, trials: int) -> list[dict]:
    """The trials of one seed and family, a row each."""
    teacher, data = teacher_and_data(seed, folder=None)
    methods = [m for m in FAMILIES[family] if (family, m) != ("published", "ce")]
    drawn = {m: draw_trials(m, family, trials, teacher, data) for m in methods}
    try:
        settings = [s for several in drawn.values() for s in several]
        students = distill_many(teacher, data, settings, seeds=[seed], progress=False)
    except Diverged as error:
        students = error.trained
    scores = {s.name: evaluate(s, data.validation) for s in students}
    return [
        {
            "seed": seed,
            "family": family,
            "method": method,
            "learning_rate": s.learning_rate,
            "epochs": s.epochs,
            "temperature": s.temperature,
            "ce_weight": s.ce_weight,
            "distill_weight": s.distill_weight,
            "validation_accuracy": scores[s.name]["accuracy"] if s.name in scores else None,
            "validation_nll": scores[s.name]["nll"] if s.name in scores else None,
        }
        for method, several in drawn.items()
        for s in several
    ]


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """The best trial of each seed, family and method: accuracy, and NLL where that is equal."""
    order = table.sort_values(
        ["validation_accuracy", "validation_nll"], ascending=[False, True], kind="stable"
    )
    best = order.groupby(["seed", "family", "method"], sort=True).head(1)
    return best.sort_values(["seed", "family", "method"]).reset_index(drop=True)


def chosen_settings() -> pd.DataFrame:
    """What the committed search chose: the row of each seed, family and method."""
    return read_table(SETTINGS_FILE)


def student_settings(seed: int, family: str, *, max_steps: int | None = None) -> list[Settings]:
    """The students of one seed and family.

    ``tuned`` and ``published`` give CE, KD, TTM and WTTM, ``no-ce`` TTM and WTTM, ``appendix`` KD
    at T = 1 and label smoothing; ``tuned`` with the settings that the search chose for this seed,
    the others with ``ONE_RATE`` and ``EPOCHS``. Raises ``ValueError`` for an unknown family, and
    for a seed that was not searched.
    """
    table = chosen_settings()
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} must be one of {list(FAMILIES)}")
    if seed not in set(table["seed"]):
        raise ValueError(
            f"seed {seed} was not searched; searched are {sorted(set(table['seed']))}. "
            f"Search it with: ttm-lab search-digits --seeds {seed}"
        )
    rows = table[table["seed"] == seed].set_index(["family", "method"])
    columns = ["temperature", "ce_weight", "distill_weight", "learning_rate"]
    settings = []
    for method in FAMILIES[family]:
        row = rows.loc["tuned" if method == "ce" else family, method]
        values = {name: float(row[name]) for name in columns} | {"epochs": int(row["epochs"])}
        if family != "tuned":
            values |= {"learning_rate": ONE_RATE[method], "epochs": EPOCHS}
        settings.append(_settings(method, **values, max_steps=max_steps))
    return settings


def teacher_and_data(
    seed: int, folder: Path | None, *, max_steps: int | None = None
) -> tuple[Trained, Dataset]:
    """One seed's own split of the digits, and its own teacher (trained, or loaded)."""
    data = load_dataset("digits", seed=seed)
    settings = replace(TEACHER, max_steps=max_steps)
    return train_teacher(data, settings, seed=seed, folder=folder, progress=False), data


class SeedRuns(NamedTuple):
    """What one seed brings: its teacher, its data, and the students of each family."""

    teacher: Trained
    data: Dataset
    students: dict[str, list[Trained]]


def train_students(
    seed: int, families: Sequence[str], folder: Path | None, *, max_steps: int | None = None
) -> SeedRuns:
    """One seed's students of several families, from one pass of its teacher over the batches."""
    teacher, data = teacher_and_data(seed, folder, max_steps=max_steps)
    wanted = {family: student_settings(seed, family, max_steps=max_steps) for family in families}
    different = list(dict.fromkeys(s for settings in wanted.values() for s in settings))
    students = distill_many(teacher, data, different, seeds=[seed], folder=folder, progress=False)
    trained = dict(zip(different, students, strict=True))
    return SeedRuns(teacher, data, {f: [trained[s] for s in wanted[f]] for f in wanted})


def train_seeds(
    seeds: Sequence[int],
    families: Sequence[str],
    folder: Path | None,
    *,
    max_steps: int | None = None,
    workers: int | None = None,
) -> dict[int, SeedRuns]:
    """``train_students`` for each seed, several seeds at once, each in a process of its own.

    The processes write the usual runs to ``folder`` and this one loads them, so the results are
    those of a loop over ``train_students``, bit for bit. ``workers`` is the number of processes,
    by default what the cores allow. None is started where that is 1, where at most one seed has
    unfinished runs, and where ``folder`` is None. Ctrl-C ends them at once; the next call resumes
    their runs.

    Raises ``RuntimeError`` with seed and message where the training of a seed fails, and
    ``ChildProcessError`` where its process is killed each time.
    """
    workers, todo = _workers() if workers is None else workers, []
    if folder is not None and workers > 1:
        todo = [s for s in seeds if _is_unfinished(s, families, user_path(folder), max_steps)]
    if len(todo) > 1:
        tasks = [(seed, families, folder, max_steps) for seed in todo]
        for _ in _work_off(_train_one, tasks, workers, "seeds"):
            pass
    return {
        seed: train_students(seed, families, folder, max_steps=max_steps)
        for seed in tqdm(seeds, desc="seeds", disable=len(todo) > 1 or None)
    }


def _is_unfinished(seed: int, families: Sequence[str], folder: Path, max_steps) -> bool:
    settings = [s for f in families for s in student_settings(seed, f, max_steps=max_steps)]
    data, teacher = load_dataset("digits", seed=seed), replace(TEACHER, max_steps=max_steps)
    if not find_runs(None, data, [teacher], seeds=[seed], folder=folder)[0].finished:
        return True
    trained, _ = teacher_and_data(seed, folder, max_steps=max_steps)
    found = find_runs(trained, data, settings, seeds=[seed], folder=folder)
    return not all(run.finished for run in found)


def _workers() -> int:
    return min(free_cores(), 4)  # each holds a torch of its own


def _work_off(function: Callable, tasks: Sequence[tuple], workers: int, unit: str) -> Iterator:
    """Tasks, each a seed and more, and their results as they end; a failure names its seed."""
    with closing(run_tasks(function, tasks, workers=workers)) as ended:
        for task, result, error in tqdm(ended, total=len(tasks), desc=unit, disable=not tasks):
            if error is not None:
                raise type(error)(f"seed {task[0]}: {error}") from error
            yield task, result


def _train_one(seed, families, folder, max_steps) -> None:
    train_students(seed, families, folder, max_steps=max_steps)


def grid_settings(*, max_steps: int | None = None) -> list[Settings]:
    """CE, and every method at three temperatures and two weights: loss (1 - λ) CE + λ method.

    KD trains at a quarter of the others' learning rate, since its gradient grows like T; at the
    common one it diverges on the digits. Nothing else was chosen by a result.
    """
    common = {"epochs": 8, "learning_rate": 0.2, "max_steps": max_steps}
    settings = [_settings("ce", **common)]
    for method in ("kd", "ttm", "wttm"):
        rate = common["learning_rate"] / (4 if method == "kd" else 1)
        for temperature, weight in ((2.0, 0.9), (4.0, 0.5), (4.0, 0.9), (8.0, 0.9)):
            loss = {"temperature": temperature, "distill_weight": weight}
            loss |= {"ce_weight": 1 - weight, "learning_rate": rate}
            settings.append(_settings(method, **common | loss))
    return settings


def student_grid(
    folder: str | Path, *, seeds: Sequence[int] = (0, 1, 2), max_steps: int | None = None
) -> Outputs:
    """The students of ``grid_settings`` for each seed, by one teacher: their logits on test.

    Trained once, seeds side by side as in ``train_seeds``, and kept as runs in ``folder``. All
    share the data's split of seed 0. Settings were not searched: kinds are compared as they are,
    not at their best.
    """
    folder = user_path(folder)
    teacher, data = teacher_and_data(0, folder, max_steps=max_steps)
    settings = grid_settings(max_steps=max_steps)
    tasks = [
        (seed, folder, max_steps)
        for seed in seeds
        for found in [find_runs(teacher, data, settings, seeds=[seed], folder=folder)]
        if not all(run.finished for run in found)
    ]
    for _ in _work_off(_train_grid, tasks, _workers(), "seeds"):
        pass
    students = distill_many(
        teacher, data, settings, seeds=list(seeds), folder=folder, progress=False
    )
    return collect_outputs(teacher, students, data)


def _train_grid(seed: int, folder: Path, max_steps: int | None) -> None:
    teacher, data = teacher_and_data(0, folder, max_steps=max_steps)
    settings = grid_settings(max_steps=max_steps)
    distill_many(teacher, data, settings, seeds=[seed], folder=folder, progress=False)


def measure(student: Trained, teacher: Trained, data: Dataset) -> dict:
    """One row of notebook 5's and 6's tables: the student on the test part of its seed.

    The columns of ``analysis.evaluate`` (divergence at the published temperature), with the
    student's method and seed; and ``accuracy_gap``, train minus test, and ``nll_gap``, test minus
    train: larger means more overfitting.
    """
    measured = evaluate(student, data.test, teacher=teacher, temperature=TEMPERATURE)
    train = evaluate(student, data.train)
    gaps = {
        "accuracy_gap": train["accuracy"] - measured["accuracy"],
        "nll_gap": measured["nll"] - train["nll"],
    }
    return {"method": student.name, "seed": student.seed, **measured, **gaps}


def mark_finished(folder: Path, seeds: Sequence[int], max_steps: int | None) -> None:
    """Note which seeds' students are complete, for a notebook that would rather load than train."""
    note = {"seeds": list(seeds), "max_steps": max_steps, "numerics": NUMERICS}
    atomic_write(folder / "finished.json", json.dumps(note))


def finished_seeds(folder: Path, max_steps: int | None) -> list[int]:
    """The seeds whose students ``mark_finished`` noted with this training code; else none."""
    try:
        note = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
        same = note["numerics"] == NUMERICS and note["max_steps"] == max_steps
        return [int(seed) for seed in note["seeds"]] if same else []
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return []  # missing, or not what mark_finished wrote: then nothing is known
