"""Known from unknown: scores of logits judged by AUROC, and the kept tables of notebook 13."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ttm_lab.analysis import contrasts, outlier_scores
from ttm_lab.files import find_root, read_table

TABLE = "cifar100_outliers.csv"
LOGITS = "cifar100_outlier_logits.npz"
FASHION = "fashion_mnist_8x8.npz"
POWER_ORDER = 0.25  # 1/T of WTTM's weight U at the paper's T = 4
# The sets that claim C13 is judged on, and what a row's scores were measured with.
UNKNOWN = ("Tiny-ImageNet", "textures", "traffic signs", "Fashion-MNIST")
SCALES = ("as trained", "fitted")
# Claim C13, written down before anything was measured: the mean AUROC over UNKNOWN of the largest
# probability, the score that everybody has, as trained and after one temperature fitted on
# validation pictures. KD x 10 has the weight decay of TTM and WTTM, where it is kept.
SCORE = "largest probability"
NAMES = {"ce": "CE", "kd": "KD", "kd10": "KD x 10", "ttm": "TTM", "wttm": "WTTM"}
PAIRS = (("TTM", "KD"), ("WTTM", "KD"), ("TTM", "KD x 10"), ("WTTM", "KD x 10"))


def scores(logits, temperature: float = 1.0) -> pd.DataFrame:
    """``analysis.outlier_scores`` of logits (N, K), and WTTM's U = sum_j q_j**(1/4) beside."""
    found = outlier_scores(logits, temperature=temperature)
    return found.assign(U=np.exp((1 - POWER_ORDER) * found[f"Rényi {POWER_ORDER:g}"]))


def detection(known, unknown) -> tuple[float, float]:
    """AUROC of scores (N,) and (M,) that should be larger for what is unknown, and FPR at 95 %.

    AUROC is the probability that an unknown input has the larger score than a known one, a tie
    counting half. FPR is the share of unknown inputs that pass as known where at least 95 % of the
    known ones do.
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # slow to import

    is_known = np.repeat([1, 0], [len(known), len(unknown)])
    surety = -np.concatenate([known, unknown])
    false, true, _ = roc_curve(is_known, surety, drop_intermediate=False)
    return float(roc_auc_score(is_known, surety)), float(false[np.argmax(true >= 0.95)])


def measure(
    known: np.ndarray,
    unknown: Mapping[str, np.ndarray],
    fitted: float,
    *,
    recoded: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """AUROC and FPR of every score for one network, as trained and at its fitted temperature.

    ``known`` (N, K) and the sets of ``unknown`` are logits. ``recoded`` holds the known pictures
    again, put through the files and sizes of a set of that name; ``auroc_recoded`` compares the
    set with those (NaN without).
    """
    rows = []
    for scale, temperature in zip(SCALES, (1.0, fitted), strict=True):
        usual = scores(known, temperature)
        alike = {name: scores(z, temperature) for name, z in (recoded or {}).items()}
        for name, logits in unknown.items():
            strange = scores(logits, temperature)
            for score in usual:
                auroc, fpr = detection(usual[score], strange[score])
                row = {"scale": scale, "set": name, "score": score, "auroc": auroc, "fpr95": fpr}
                if name in alike:
                    row["auroc_recoded"] = detection(alike[name][score], strange[score])[0]
                rows.append(row)
    columns = ["scale", "set", "score", "auroc", "auroc_recoded", "fpr95"]
    return pd.DataFrame(rows).reindex(columns=columns)


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """The contrasts of claim C13 for one model's rows, ``analysis.contrasts`` with quantity.

    Seeds that lack an arm are left out, and so are the pairs of an arm that no seed has.
    """
    chosen = rows[(rows["score"] == SCORE) & rows["set"].isin(UNKNOWN)]
    means = chosen.groupby(["seed", "scale", "arm"])["auroc"].mean().unstack("arm")
    means = means.drop(columns="teacher", errors="ignore").unstack("scale").dropna()
    found = {}
    for more, less in PAIRS:
        for scale in SCALES:
            if {(more, scale), (less, scale)} <= set(means.columns):
                found[f"{more} minus {less}, {scale}"] = means[more, scale] - means[less, scale]
    return contrasts(found).assign(quantity="auroc")


def read(path: str | Path | None = None) -> pd.DataFrame:
    """The table of ``benchmarks/outliers.py``, arms by their names in figures; kept by default."""
    path = Path(path or find_root() / "data" / "results" / TABLE)
    return read_table(path).replace({"arm": NAMES})


def kept_logits() -> dict[str, dict[str, np.ndarray]]:
    """Logits (200, 100) of one seed's students by arm and set, ``"known"`` among them."""
    with np.load(find_root() / "data" / "results" / LOGITS) as file:
        arms, sets = file["arms"].tolist(), file["sets"].tolist()
        logits = file["logits"].astype(np.float64)
    return {
        NAMES.get(arm, arm): {name: logits[i, j] for j, name in enumerate(sets)}
        for i, arm in enumerate(arms)
    }


def fashion() -> torch.Tensor:
    """500 test pictures of Fashion-MNIST (Xiao et al. 2017, MIT licence) in the digits' form.

    (500, 1, 8, 8) float32 from 0 to 1, in the 17 grey levels of scikit-learn's digits.
    """
    with np.load(find_root() / "data" / "results" / FASHION) as file:
        return torch.from_numpy(file["images"]).unsqueeze(1).float() / 16


def noise(count: int, seed: int = 0) -> torch.Tensor:
    """Pictures (count, 1, 8, 8) of independent pixels, uniform over the digits' 17 grey levels."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 17, (count, 1, 8, 8), generator=draw).float() / 16
