"""Distilling across a shift: a labelled source, unlabelled pictures of the target, and weights.

A student learns labels on source pictures alone, and what the teacher says on all of them. How
much a picture counts in the teacher's term is fixed beforehand, by ``picture_weights``; every kind
of weights has mean 1, so that kinds differ in where the pull goes and not in its size.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from ttm_lab.analysis import evaluate
from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.losses import KDLoss, TTMLoss
from ttm_lab.objectives import Objective, Output, Term
from ttm_lab.probability import power_sum, shannon_entropy
from ttm_lab.training import Settings, Trained, distill_many, train_teacher

# Of the paper's Fig. 1, for every study here: KD's T and λ.
TEMPERATURE, SHARE = 4.0, 0.9
KINDS = ("none", "U", "ratio", "entropy", "shuffled")
# By arm: the loss of the teacher's term and the kind of its weights.
ARMS = {
    "CE": (None, "none"),
    "KD": (KDLoss, "none"),
    "TTM": (TTMLoss, "none"),
    "WTTM": (TTMLoss, "U"),
    "density ratio": (TTMLoss, "ratio"),
    "entropy": (TTMLoss, "entropy"),
    "U shuffled": (TTMLoss, "shuffled"),
}


class SourceCrossEntropy(Term):
    """Cross-entropy with the labels of the source pictures in a batch, 0 where there is none.

    ``is_source`` (N,) says it of every training picture. For one process, as ``Weighted``.
    """

    def __init__(self, is_source: Tensor):
        super().__init__()
        self.is_source = is_source

    def forward(self, student: Output, teacher: Output | None, labels: Tensor) -> Tensor:
        own = self.is_source[student.samples].to(labels.device)
        losses = F.cross_entropy(student.logits.float(), labels, reduction="none")
        return (losses * own).sum() / own.sum().clamp(min=1)

    def identity(self):
        return ["source cross-entropy", _digest(self.is_source)]


class Weighted(Term):
    """The mean over a batch of ``weights[i] * loss_i``, i a picture's place in the training part.

    ``loss`` is one of ``ttm_lab.losses`` with ``reduction="none"``, ``weights`` (N,) are float32.
    """

    def __init__(self, loss: nn.Module, weights: Tensor):
        super().__init__()
        self.loss, self.weights = loss, weights

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        losses = self.loss(student.logits, teacher.logits)
        return (self.weights[student.samples].to(losses.device) * losses).mean()

    def identity(self):
        return ["weighted", repr(self.loss), _digest(self.weights)]


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def objective(
    arm: str, weights: dict[str, Tensor], is_source: Tensor, *, temperature: float, share: float
) -> Objective:
    """What a student of ``ARMS`` minimises, at KD's scale: (1 - λ) CE + λ T² KD, or + λ T TTM.

    ``weights`` are those of ``picture_weights``, ``share`` is λ. CE alone has weight 1.
    """
    loss, kind = ARMS[arm]
    if loss is None:
        return Objective({"ce": (1.0, SourceCrossEntropy(is_source))})
    pull = share if loss is KDLoss else share * temperature  # KDLoss brings its T² along
    term = Weighted(loss(temperature, reduction="none"), weights[kind])
    return Objective({"ce": (1 - share, SourceCrossEntropy(is_source)), "distill": (pull, term)})


def picture_weights(
    logits: Tensor, features: Tensor, is_source: Tensor, *, temperature: float, seed: int
) -> dict[str, Tensor]:
    """Weights (N,) float32 of mean 1, by the names of ``KINDS``.

    Args:
        logits, features: the teacher's (N, K) and (N, D), of the pictures as they are.
        is_source: (N,), True for source pictures.
        temperature: T of the power sum U.
        seed: of the shuffle, and of the folds in which the domain classifier answers.
    """
    p = logits.double().softmax(-1)
    u = power_sum(p, 1 / temperature)
    order = torch.randperm(len(u), generator=torch.Generator().manual_seed(seed))
    found = {
        "none": torch.ones(len(u)),
        "U": u,
        "ratio": torch.from_numpy(target_probability(features, is_source, seed=seed)),
        "entropy": shannon_entropy(p),
        "shuffled": u[order],
    }
    return {kind: (values / values.mean()).float() for kind, values in found.items()}


def target_probability(features, is_source, *, seed: int = 0) -> np.ndarray:
    """The probability (N,) that a picture is of the target, by logistic regression on features.

    Each picture is answered for by a classifier that has not seen it (five folds). Divided by its
    mean this is the density of the target over that of all training pictures: by Bayes,
    P(target | x) = P(target) p_target(x) / p(x).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    is_target = ~np.asarray(is_source, dtype=bool)
    x = np.asarray(features, dtype=np.float64)
    return cross_val_predict(classifier, x, is_target, cv=folds, method="predict_proba")[:, 1]


def effective_share(weights) -> float:
    """Effective sample size over sample size, (Σw)² / (N Σw²), from 1/N to 1 (Kish 1965)."""
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / (len(w) * (w**2).sum()))


def joined(name: str, source: Dataset, target: Split, test: Split) -> tuple[Dataset, Tensor]:
    """Source training pictures and unlabelled target pictures as one data set, and ``is_source``.

    Target pictures get label 0 in place of their own, so that nothing can learn from it. Held out
    is the source's validation part; ``test`` is of the target. All have the source's mean and
    standard deviation.
    """
    train, scale = source.train, {"mean": source.train.mean, "std": source.train.std}
    images = torch.cat([train.images, target.images])
    labels = torch.cat([train.labels, torch.zeros_like(target.labels)])
    is_source = torch.arange(len(labels)) < len(train)
    test = Split(test.images, test.labels, **scale)
    parts = Split(images, labels, **scale), source.validation, test
    return Dataset(name, source.seed, source.class_names, *parts), is_source


def digits_halves() -> tuple[Dataset, Split]:
    """The digits of seed 0: one half of the training pictures to learn labels on, and the other."""
    data = load_dataset("digits", seed=0)
    images, labels = data.train.images, data.train.labels
    half = len(labels) // 2
    train = Split(images[:half], labels[:half])
    source = Dataset("digits, a half", 0, data.class_names, train, data.validation, data.test)
    return source, Split(images[half:], labels[half:])


def turned(part: Split, degrees: float) -> Split:
    """The same pictures, turned to the left; black comes in."""
    bilinear = functional.InterpolationMode.BILINEAR
    return Split(functional.rotate(part.images, degrees, interpolation=bilinear), part.labels)


class Study(NamedTuple):
    """Students of ``ARMS`` for each seed, and what they were trained on and with."""

    data: Dataset
    is_source: Tensor
    weights: dict[str, Tensor]
    students: list[Trained]

    def rows(self, source: Split, **words) -> pd.DataFrame:
        """A row a student: measures on the target's test part and on ``source``, by prefix."""
        rows = []
        for student in self.students:
            row = {**words, "seed": student.seed, "arm": student.name}
            for prefix, part in (("source", source), ("target", self.data.test)):
                measured = evaluate(student, part)[["accuracy", "nll", "ece", "entropy"]]
                row |= dict(measured.add_prefix(f"{prefix}_"))
            rows.append(row)
        return pd.DataFrame(rows)


def digits_study(
    teacher: Trained,
    source: Dataset,
    target: Split,
    test: Split,
    *,
    seeds: Sequence[int] = range(5),
    arms: Sequence[str] = tuple(ARMS),
    folder: str | Path | None = None,
    max_steps: int | None = None,
) -> Study:
    """Students of the digits' teacher on ``source`` and the unlabelled pictures of ``target``.

    One learning rate for all, at one scale of the loss; nothing was searched. ``test`` is of the
    target and is measured alone.
    """
    data, is_source = joined(f"{source.name}, and a target", source, target, test)
    network = teacher.model
    with torch.no_grad():
        features = network.forward_features(data.train.images)
        logits = network.head(features)
    weights = picture_weights(logits, features, is_source, temperature=TEMPERATURE, seed=0)
    recipe = {"epochs": 10, "batch_size": 128, "learning_rate": 0.1, "schedule": "cosine"}
    options = {"temperature": TEMPERATURE, "share": SHARE}
    settings = [
        Settings(
            "cnn_small",
            objective(arm, weights, is_source, **options),
            name=arm,
            max_steps=max_steps,
            **recipe,
        )
        for arm in arms
    ]
    students = distill_many(
        teacher, data, settings, seeds=list(seeds), folder=folder, progress=False
    )
    return Study(data, is_source, weights, students)


def digits_teacher(
    source: Dataset, *, folder: str | Path | None = None, max_steps: int | None = None
) -> Trained:
    """A wide network that learned the labels of ``source``."""
    settings = Settings("cnn_large", epochs=15, learning_rate=0.1, max_steps=max_steps)
    return train_teacher(source, settings, folder=folder, progress=False)
