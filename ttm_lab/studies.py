"""The digits study of notebooks 5 and 6: which students, with which settings, and their search.

Two families of settings stand side by side. ``published`` fixes temperature and loss weights to
those behind the paper's Fig. 1 (T = 4, lambda = 0.9, beta = 36, beta_WTTM = 36 / mean U) and
searches the rest; ``tuned`` searches everything. In both, every method gets the same number of
trials, judged on the validation part of its own seed. No test image of a seed takes part in the
choice of that seed's settings.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ttm_lab import runs
from ttm_lab.analysis import evaluate, predict
from ttm_lab.data import Dataset, load_dataset
from ttm_lab.probability import power_sum, temperature_softmax
from ttm_lab.training import Diverged, Settings, Trained, distill_many, train_teacher

# The teacher's two numbers were set by hand on validation accuracy, once for all methods.
TEACHER = Settings("cnn_large", epochs=15, learning_rate=0.1, label="teacher")

# Paper, Fig. 1: T, lambda, and beta = lambda T / (1 - lambda) by Eq. 19.
TEMPERATURE, KD_WEIGHT, TTM_WEIGHT = 4.0, 0.9, 36.0

FAMILIES = {"tuned": ("ce", "kd", "ttm", "wttm"), "published": ("kd", "ttm", "wttm")}


def mean_power_sum(teacher: Trained, data: Dataset, temperature: float) -> float:
    """The teacher's mean weight U_{1/T}(p) over the training images (paper, Fig. 1)."""
    logits = torch.from_numpy(predict(teacher.model, data.train.images))
    return float(power_sum(temperature_softmax(logits, 1.0), 1 / temperature).mean())


def label_smoothing(student_logits: Tensor, _teacher_logits: Tensor, _labels: Tensor) -> Tensor:
    """H(u, q), u uniform: the second term of label smoothing (paper Eq. 5), as a custom loss."""
    return -F.log_softmax(student_logits.float(), dim=-1).mean()


def draw_trials(
    method: str, family: str, count: int, teacher: Trained, data: Dataset
) -> list[Settings]:
    """``count`` random settings of one method for one seed's data and teacher.

    Searched in both families: learning rate (log-uniform, 0.0005 to 0.3) and epochs (10, 15 or
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
        weights = {
            "ce": (1.0, 0.0),
            "kd": (1 - share, share),
            "ttm": (1.0, beta),
            "wttm": (1.0, beta / mean_power_sum(teacher, data, temperature)),
        }[method]
        drawn.append(
            Settings(
                "cnn_small",
                method,
                temperature=temperature,
                ce_weight=weights[0],
                distill_weight=weights[1],
                learning_rate=rate,
                epochs=epochs,
                label=f"{method} {family} {k}",
            )
        )
    return drawn


def search(seeds: Sequence[int], path: str | Path, *, trials: int = 24) -> pd.DataFrame:
    """Random search on validation data: ``trials`` settings for every method, family and seed.

    Appends a row a trial to the CSV file at ``path`` after each seed, and leaves out seeds that
    are there already, so a search that was broken off goes on where it stopped. A trial whose
    loss became infinite or NaN stays in the table without a score.
    """
    path = Path(path)
    table = runs.read_table(path) if path.exists() else pd.DataFrame()
    done = set(table["seed"]) if len(table) else set()
    for seed in tqdm([s for s in seeds if s not in done], desc="search", unit="seed"):
        data = load_dataset("digits", seed=seed)
        teacher = train_teacher(data, TEACHER, seed=seed, progress=False)
        drawn = [
            (family, settings)
            for family, methods in FAMILIES.items()
            for method in methods
            for settings in draw_trials(method, family, trials, teacher, data)
        ]
        try:
            students = distill_many(
                teacher, data, [s for _, s in drawn], seeds=[seed], progress=False
            )
        except Diverged as error:
            students = error.trained
        scores = {s.label: evaluate(s, data.validation) for s in students}
        rows = [
            {
                "seed": seed,
                "family": family,
                "method": s.method,
                "learning_rate": s.learning_rate,
                "epochs": s.epochs,
                "temperature": s.temperature,
                "ce_weight": s.ce_weight,
                "distill_weight": s.distill_weight,
                "validation_accuracy": scores[s.label]["accuracy"] if s.label in scores else None,
                "validation_nll": scores[s.label]["nll"] if s.label in scores else None,
            }
            for family, s in drawn
        ]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
        runs.atomic_write(path, table.to_csv(index=False))
    return table


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """The best trial of each seed, family and method: accuracy, and NLL where that is equal."""
    order = table.sort_values(
        ["validation_accuracy", "validation_nll"], ascending=[False, True], kind="stable"
    )
    best = order.groupby(["seed", "family", "method"], sort=True).head(1)
    return best.sort_values(["seed", "family", "method"]).reset_index(drop=True)


def chosen_settings() -> pd.DataFrame:
    """What the committed search chose: the row of each seed, family and method."""
    with resources.files("ttm_lab").joinpath("digits_settings.csv").open() as file:
        return runs.read_table(file)


def student_settings(seed: int, family: str, *, max_steps: int | None = None) -> list[Settings]:
    """The students of one seed: CE, KD, TTM and WTTM with the settings that the search chose.

    CE has no distillation setting, so both families share it. Raises ``ValueError`` for a seed
    that was not searched: ``ttm-lab search-digits --seeds N`` searches it.
    """
    table = chosen_settings()
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} must be one of {sorted(FAMILIES)}")
    if seed not in set(table["seed"]):
        raise ValueError(
            f"seed {seed} was not searched; searched are {sorted(set(table['seed']))}. "
            f"Search it with: ttm-lab search-digits --seeds {seed}"
        )
    rows = table[(table["seed"] == seed) & table["family"].isin([family, "tuned"])]
    settings = []
    for method in ("ce", "kd", "ttm", "wttm"):
        row = rows[(rows["method"] == method)].set_index("family")
        row = row.loc["tuned" if method == "ce" else family]
        settings.append(
            Settings(
                "cnn_small",
                method,
                temperature=float(row["temperature"]),
                ce_weight=float(row["ce_weight"]),
                distill_weight=float(row["distill_weight"]),
                learning_rate=float(row["learning_rate"]),
                epochs=int(row["epochs"]),
                max_steps=max_steps,
            )
        )
    return settings


def teacher_and_data(
    seed: int, folder: Path | None, *, max_steps: int | None = None
) -> tuple[Trained, Dataset]:
    """One seed's own split of the digits, and its own teacher (trained, or loaded)."""
    data = load_dataset("digits", seed=seed)
    settings = replace(TEACHER, max_steps=max_steps)
    return train_teacher(data, settings, seed=seed, folder=folder, progress=False), data
