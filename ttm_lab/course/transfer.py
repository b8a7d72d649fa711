"""What features are worth on other pictures: probes, how far classes lie apart, the kept rows."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from ttm_lab.analysis import contrasts
from ttm_lab.files import find_root, read_table

# The arms of the kept rows under the names that the course uses, in the order of its figures.
ARMS = {
    "pixels": "pixels",
    "untrained": "untrained",
    "ce": "CE",
    "kd": "KD",
    "kd10": "KD x 10",
    "ttm": "TTM",
    "wttm": "WTTM",
    "teacher": "teacher",
}
# Inverse strengths of the penalty among which validation chooses.
STRENGTHS = (1e-2, 1e-1, 1.0)


def drawn(labels: np.ndarray, pictures: int, draw: int) -> np.ndarray:
    """Places of so many pictures of each class; a class that has fewer gives all it has.

    The same ``draw`` gives the same places, whatever network is probed.
    """
    random = np.random.default_rng(1000 * draw + pictures)
    return np.concatenate(
        [random.permutation(np.flatnonzero(labels == k))[:pictures] for k in np.unique(labels)]
    )


def probe(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    pictures: int,
    *,
    draws: int = 3,
    strengths: Sequence[float] = STRENGTHS,
) -> dict[str, float]:
    """Logistic regression on standardised features from few pictures a class.

    Args:
        features: (N, D) of the parts ``"pool"``, ``"validation"`` and ``"test"``.
        labels: (N,) of the same parts.
        pictures: of each class, drawn from the pool.
        draws: how many samples are drawn; the accuracy is their mean.
        strengths: values of C, of which the best on validation counts, in the mean over draws.

    Returns:
        accuracy on test in per cent, the mean over classes; its deviation over draws, ``draw_sd``;
        and the ``chosen`` C.
    """
    accuracy = np.zeros((2, draws, len(strengths)))
    for draw in range(draws):
        places = drawn(labels["pool"], pictures, draw)
        scaler = StandardScaler().fit(features["pool"][places])
        x = {part: scaler.transform(values) for part, values in features.items()}
        model = LogisticRegression(max_iter=200, warm_start=True)
        for k, strength in enumerate(strengths):
            with warnings.catch_warnings():
                # 200 steps are enough where validation decides; one picture a class is meant so
                warnings.simplefilter("ignore", ConvergenceWarning)
                warnings.filterwarnings("ignore", message="The number of unique classes")
                model.set_params(C=strength).fit(x["pool"][places], labels["pool"][places])
            for row, part in enumerate(("validation", "test")):
                found = balanced_accuracy_score(labels[part], model.predict(x[part]))
                accuracy[row, draw, k] = 100 * found
    best = int(accuracy[0].mean(axis=0).argmax())
    found = accuracy[1, :, best]
    deviation = found.std(ddof=1) if draws > 1 else np.nan
    return {"accuracy": found.mean(), "draw_sd": deviation, "chosen": strengths[best]}


def separation(features: np.ndarray, labels: np.ndarray) -> float:
    """How far classes lie apart: 1 - mean cosine distance within classes / over all pairs.

    0 where classes do not matter, 1 where each is a single direction. After Kornblith, Chen, Lee
    and Norouzi, "Why do better loss functions lead to less transferable features?" (NeurIPS 2021).
    """
    x = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    within = [1 - np.square(x[labels == k].mean(axis=0)).sum() for k in np.unique(labels)]
    return 1 - float(np.mean(within) / (1 - np.square(x.mean(axis=0)).sum()))


def read_kept(path: str | Path | None = None) -> tuple[dict[str, pd.DataFrame], dict[str, dict]]:
    """The kept rows of ``benchmarks/transfer.py`` and how they were made, by the students' network.

    A row is an arm, seed, dataset, way (probe, fine-tuning, at home) and number of pictures a
    class. ``path`` is ``data/results/cifar100_transfer.csv`` of the checkout by default.
    """
    path = Path(path or find_root() / "data" / "results" / "cifar100_transfer.csv")
    rows, notes = read_table(path), json.loads(path.with_suffix(".json").read_text("utf-8"))
    rows["arm"] = pd.Categorical(rows["arm"].map(ARMS), list(ARMS.values()), ordered=True)
    rows = rows.sort_values(["dataset", "way", "pictures", "arm", "seed"])
    rows["arm"] = rows["arm"].astype(str)
    return dict(tuple(rows.groupby("students"))), notes


def accuracies(rows: pd.DataFrame, way: str, dataset: str) -> pd.DataFrame:
    """Accuracy by seed and arm, in per cent, the mean over the numbers of pictures.

    Only arms and seeds that were measured at every number; controls without a seed are left out.
    """
    found = rows[(rows["way"] == way) & (rows["dataset"] == dataset)]
    wide = found.pivot(index="seed", columns=["arm", "pictures"], values="accuracy")
    arms = [arm for arm in found["arm"].unique() if arm not in ("pixels", "teacher")]
    return pd.DataFrame({arm: wide[arm].mean(axis=1, skipna=False) for arm in arms}).dropna()


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """All contrasts of the claim at once: TTM and WTTM minus KD, the mean over data sets, each way.

    Where KD at ten times the loss was measured, TTM and WTTM are contrasted with that, too: their
    loss is larger, so that otherwise the size of the steps is measured as well.
    """
    differences = {}
    for way in ("probe", "fine-tuning"):
        sets = rows.loc[rows["way"] == way, "dataset"].unique()
        tables = [accuracies(rows, way, dataset) for dataset in sets]
        mean = sum(tables) / len(tables) if tables else pd.DataFrame()
        mean = mean.dropna(axis="columns", how="all").dropna()
        for less in ("KD", "KD x 10"):
            for more in ("TTM", "WTTM"):
                if {more, less} <= set(mean):
                    differences[f"{more} minus {less}, {way}"] = mean[more] - mean[less]
    return contrasts(differences).assign(quantity="accuracy")
