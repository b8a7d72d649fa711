"""The paper's experiments: published settings and results.

Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024. Two
tables ship with the package, each row with its source: ``hyperparameters`` and ``results``.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files

import pandas as pd
import torch

from ttm_lab import objectives
from ttm_lab.analysis import predict
from ttm_lab.data import Dataset
from ttm_lab.files import read_table
from ttm_lab.losses import WTTMLoss
from ttm_lab.models import model_name
from ttm_lab.objectives import CrossEntropy, Objective, Term, name_of
from ttm_lab.probability import power_sum, temperature_softmax
from ttm_lab.training import Settings, Trained

# Defaults of the authors' train_student.py, which are the recipe of the RepDistiller benchmark.
_CIFAR = {"epochs": 240, "batch_size": 64, "augmentation": "crop-flip"}
_SLOW = ("MobileNetV2", "ShuffleV1", "ShuffleV2")  # students with learning rate 0.01, not 0.05

# Assumed: the paper says "the standard settings of torchdistill" and gives no numbers. These are
# of torchdistill's configs/official/ilsvrc2012/yoshitomo-matsubara/rrpr2020/kd-resnet18_from_
# resnet34.yaml.
_IMAGENET = {
    "epochs": 100,
    "batch_size": 256,
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "decay_at": (0.3, 0.6, 0.9),
    "augmentation": "resized-crop-flip",
}
# Assumed: cls_KD, which the paper used for DeiT, has these in configs/deit/
# deit-tiny_pt-4xb256_in1k.py. That file's heavier augmentation is not part of this package.
_DEIT = {
    "epochs": 300,
    "batch_size": 1024,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup_epochs": 20,
    "augmentation": "resized-crop-flip",
}

# How the table of settings calls the one KD file that torchdistill has for ImageNet.
_TORCHDISTILL_KD = "library default of torchdistill (KD config)"

METHODS = {name: name_of(name) for name in ("ce", *objectives.METHODS)}

# Paper, Fig. 1: T, lambda, and beta = lambda T / (1 - lambda) by Eq. 19.
TEMPERATURE, KD_WEIGHT, TTM_WEIGHT = 4.0, 0.9, 36.0


@cache
def hyperparameters() -> pd.DataFrame:
    """The published settings: a row a pair and method, with ``source`` and ``certainty``."""
    return read_table(files("ttm_lab.course").joinpath("hyperparameters.csv"))


@cache
def results() -> pd.DataFrame:
    """The published top-1 accuracies in per cent: a row a pair and method, with ``source``."""
    return read_table(files("ttm_lab.course").joinpath("paper_results.csv"))


def pairs(dataset: str = "CIFAR-100") -> list[tuple[str, str]]:
    """Teacher and student, by their names here, of every pair with published WTTM settings."""
    table = hyperparameters()
    rows = table[(table["dataset"] == dataset) & (table["method"] == "WTTM")]
    return [
        (model_name(t), model_name(s))
        for t, s in zip(rows["teacher"], rows["student"], strict=True)
    ]


def _of_pair(table: pd.DataFrame, teacher: str, student: str) -> pd.DataFrame:
    teachers, students = (
        table[column].map(model_name, na_action="ignore") for column in ("teacher", "student")
    )
    return table[(teachers == model_name(teacher)) & (students == model_name(student))]


def published_row(teacher: str, student: str, dataset: str) -> pd.DataFrame:
    """The paper's results of a pair on ``"CIFAR-100"`` or ``"ImageNet"``, by method.

    The columns of ``results``, with the methods ``"teacher"`` and ``"CE"`` for plain training; no
    row for a pair or data set that the paper does not have. With ``student=""`` it is the teacher
    alone, in whichever pair. ResNet-34 to ResNet-18 stands in Table 5 and, with another KD
    accuracy, in Table 7: the row is Table 5's.
    """
    rows = results()
    if student:
        rows = _of_pair(rows, teacher, student)
    else:
        is_it = rows["teacher"].map(model_name, na_action="ignore") == model_name(teacher)
        rows = rows[is_it & (rows["method"] == "teacher (plain training)")]
    rows = rows[rows["dataset"] == dataset].sort_values("source", kind="stable")
    rows = rows.drop_duplicates("method").set_index("method")
    return rows.rename({"teacher (plain training)": "teacher", "student (plain training)": "CE"})


def _recipe(model: str) -> dict:
    """Optimiser, schedule and augmentation for training one network, whatever the method."""
    model = model_name(model)
    if "/" not in model:
        return _CIFAR | {"learning_rate": 0.01 if model in _SLOW else 0.05}
    return _DEIT if "deit" in model else _IMAGENET


def teacher_settings(model: str, **changes) -> Settings:
    """The recipe for a network that learns from labels alone: a teacher, or a CE student.

    CIFAR networks: the recipe of the authors' code. ImageNet networks: torchdistill's, for DeiT
    cls_KD's, both assumed. ``changes`` override any field of ``Settings``.
    """
    return Settings(model_name(model), **{"name": "teacher", **_recipe(model), **changes})


def settings(
    teacher: str, student: str, method: str, *, mean_weight: float | None = None, **changes
) -> Settings:
    """The published settings of a pair and method, with ``changes`` to any field.

    ``method`` is ``"ce"``, ``"kd"``, ``"ttm"`` or ``"wttm"``; or ``"dkd"``, ``"dist"`` or one with
    ``+std``, whose temperature and weight must be given. Temperature and weights of a pair in the
    paper's Tables 8 to 10 are those of the tables (``hyperparameters``). A pair outside them gets
    those behind the paper's Fig. 1: T = 4, KD weights 0.1 and 0.9, TTM weight 36, WTTM weight 36 /
    ``mean_weight``, the mean of U over the teacher's training images (``mean_power_sum``).

    Raises ``ValueError`` where a number is published nowhere and not given (DeiT's temperature
    and weight, ImageNet's KD and TTM), naming it.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {tuple(METHODS)}")
    found = published_loss(teacher, student, method, mean_weight=mean_weight)
    values = {**_recipe(student), **found, "name": METHODS[method], **changes}
    unknown = [name for name in ("temperature", "distill_weight") if values.get(name) is None]
    if method != "ce" and unknown:
        words = " and ".join(unknown)
        flags = " ".join(f"--{name.replace('_', '-')} X" for name in unknown)
        raise ValueError(
            f"no {words} of {METHODS[method]} from {teacher} to {student} is published: give "
            f"{words} (on the command line {flags})"
        )
    return Settings(model_name(student), method, **values)


def published_loss(
    teacher: str, student: str, method: str, *, mean_weight: float | None = None
) -> dict:
    """Temperature and weights of the loss, as far as they are published; see ``settings``."""
    if method == "ce":
        return {}
    names = [METHODS[method]] + ([_TORCHDISTILL_KD] if method == "kd" else [])
    rows = _of_pair(hyperparameters(), teacher, student)
    rows = rows[rows["method"].isin(names)]
    if len(rows):
        row = rows.iloc[0]
        if pd.isna(row["exponent"]):
            return {}
        temperature = 1 / float(row["exponent"])
        if method == "kd":  # lambda is 0.9 on CIFAR-100 (RepDistiller), 0.5 in both libraries
            share = KD_WEIGHT if row["dataset"] == "CIFAR-100" else 0.5
            return {"temperature": temperature, "ce_weight": 1 - share, "distill_weight": share}
        return {"temperature": temperature, "distill_weight": float(row["distill_weight"])}
    if "/" in model_name(student) or method not in ("kd", "ttm", "wttm"):
        return {}
    if method == "kd":
        return {"temperature": TEMPERATURE, "ce_weight": 0.1, "distill_weight": KD_WEIGHT}
    weight = {"ttm": TTM_WEIGHT, "wttm": TTM_WEIGHT / mean_weight if mean_weight else None}
    return {"temperature": TEMPERATURE, "distill_weight": weight[method]}


def combination(teacher: str, student: str, name: str, make: Callable[..., Term]) -> Objective:
    """Cross-entropy, WTTM and one more term, with the paper's weights for a pair.

    ``name`` is ``"CRD"`` or ``"ITRD"``. ``make`` makes the term and is called with what the paper
    sets inside it by name: ``alpha``, ``correlation`` and ``mutual`` for ITRD, nothing for CRD.

        make = partial(features.CRD, "fc:input", "fc:input", (64, 64), data.train.labels)
        objective = combination("resnet56", "resnet20", "CRD", make)
        replace(settings("resnet56", "resnet20", "wttm"), method=objective, name="WTTM+CRD")

    Raises ``ValueError`` for a pair or name of which no weights are published.
    """
    rows = _of_pair(hyperparameters(), teacher, student)
    row = rows[rows["method"] == f"WTTM+{name}"].squeeze()
    given = dict(re.findall(r"(\w+ weight|\w+_\w+) (\d[\d.]*)", row["source"] if len(row) else ""))
    if f"{name} weight" not in given:
        raise ValueError(f"no weights of WTTM+{name} from {teacher} to {student} are published")
    words = {"alpha_it": "alpha", "beta_corr": "correlation", "beta_mi": "mutual"}
    inside = {words[key]: float(value) for key, value in given.items() if key in words}
    terms = {"ce": (1, CrossEntropy())}
    terms["distill"] = float(row["distill_weight"]), WTTMLoss(1 / float(row["exponent"]))
    return Objective(terms | {name.lower(): (float(given[f"{name} weight"]), make(**inside))})


def mean_power_sum(teacher: Trained, data: Dataset, temperature: float) -> float:
    """The teacher's mean weight U_{1/T}(p) over the training images (paper, Fig. 1)."""
    logits = torch.from_numpy(predict(teacher.model, data.train))
    return float(power_sum(temperature_softmax(logits, 1.0), 1 / temperature).mean())
