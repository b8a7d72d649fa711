"""From predictions to entropy, confidence, calibration and agreement; statistics in pairs.

Everything works on plain arrays of logits (N, K) and labels (N,), from any framework.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import optimize, special, stats
from torch import nn

from ttm_lab.data import FileSplit, Split
from ttm_lab.models import logits_of
from ttm_lab.probability import check_no_probabilities, check_positive

MEASURES = ("accuracy", "nll", "brier", "ece", "entropy", "confidence")


@torch.no_grad()
def predict(
    model: nn.Module, images: torch.Tensor | Split | FileSplit, batch_size: int | None = None
) -> np.ndarray:
    """Logits (N, K) float32 of a network in eval mode, on the CPU; modes are put back after.

    ``images`` are a part of a data set, such as ``data.test``, or a tensor that is ready for the
    network. Raises ``ValueError`` where there are none, or where nothing says which part of the
    network's output the logits are.
    """
    if not len(images):
        raise ValueError("there are no pictures to ask about")
    weights = next(model.parameters(), torch.empty(0))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    if isinstance(images, torch.Tensor):
        batches = images.split(batch_size or 512)
    else:
        loader = images.to(weights.device)
        batches = (x for x, _ in loader.batches(batch_size or images.evaluation_batch_size))
    try:
        parts = [logits_of(model(part.to(weights))).float().cpu() for part in batches]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(parts).numpy()


def _array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    return np.asarray(values)


def _logits(values) -> np.ndarray:
    """Logits (N, K), checked, in their own dtype and uncopied: those of a vocabulary are large."""
    array = _array(values)
    if array.ndim != 2 or array.shape[1] < 2 or not len(array):
        raise ValueError(f"logits must have shape (N, K) with K >= 2, got {array.shape}")
    if array.dtype.kind != "f":
        raise TypeError(f"logits are {array.dtype}; logits are floating-point numbers")
    least = array.min(axis=1)
    if not (np.isfinite(least).all() and np.isfinite(array.max())):
        raise ValueError(f"logits hold {(~np.isfinite(array)).sum()} values that are not finite")
    check_no_probabilities("logits", array.sum(axis=1, dtype=np.float64), least)
    return array


def _logits_and_labels(student, data) -> tuple[np.ndarray, np.ndarray]:
    student = getattr(student, "model", student)
    if isinstance(student, nn.Module):
        if not isinstance(data, Split | FileSplit):
            raise TypeError("a network is evaluated on a Split such as data.test")
        student = predict(student, data)
    logits, labels = _logits(student), _array(getattr(data, "labels", data))
    samples, classes = logits.shape
    if labels.shape != (samples,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be {samples} whole numbers, got shape {labels.shape}, {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, classes from 0 to {classes - 1}"
        )
    return logits, labels


def evaluate(student, data, *, teacher=None, temperature: float = 1.0, bins: int = 15) -> pd.Series:
    """Measure one set of predictions.

    Args:
        student: network, ``Trained``, or logits (N, K).
        data: a ``Split``, or labels (N,) where ``student`` is logits.
        teacher: the same kinds as ``student``; adds ``agreement`` and ``divergence``.
        temperature: T of the teacher in ``divergence``.
        bins: equal-width confidence bins of ``ece``.

    Returns:
        A Series: accuracy, nll (nats), brier (sum over classes, 0 to 2), ece (Guo et al. 2017),
        entropy (mean Shannon entropy of q, nats), confidence (mean largest q), and with a teacher
        agreement (share of equal top classes) and divergence (mean D(p_T || q), nats).

    Raises:
        ValueError: wrong shapes, labels out of range, logits that are not finite or whose rows
            are all probabilities.
        TypeError: logits that are no floating-point numbers, a network without a ``Split``.
    """
    return _measures(_per_sample(student, data, teacher, temperature), bins)


def _measures(found: dict[str, np.ndarray], bins: int = 15) -> pd.Series:
    measured = {name: values.mean() for name, values in found.items() if name != "largest"}
    measured["ece"] = _calibration_error(found["largest"], found["accuracy"], bins)
    return pd.Series({name: measured.pop(name) for name in MEASURES} | measured)


def _per_sample(student, data, teacher=None, temperature: float = 1.0) -> dict[str, np.ndarray]:
    """Measures that are means over samples, and the largest probability, sample by sample."""
    logits, labels = _logits_and_labels(student, data)
    if teacher is not None:
        temperature = check_positive("temperature", temperature)
        teacher, _ = _logits_and_labels(teacher, data)
        if teacher.shape != logits.shape:
            raise ValueError(f"teacher gives {teacher.shape}, student {logits.shape}")
    parts = []
    for start in range(0, len(logits), step := max(1, 2**20 // logits.shape[1])):
        rows = slice(start, start + step)  # a few megabytes, whatever the number of classes
        z, y = logits[rows].astype(np.float64), labels[rows]
        log_q = special.log_softmax(z, axis=1)
        q = np.exp(log_q)
        truth = np.arange(len(y)), y
        found = {
            "accuracy": (z.argmax(1) == y).astype(float),
            "nll": -log_q[truth],
            "brier": np.sum(q**2, axis=1) - 2 * q[truth] + 1,
            "entropy": -np.sum(q * log_q, axis=1),
            "confidence": q.max(axis=1),
            "largest": special.softmax(z, axis=1).max(axis=1),  # confidence, rounded as in ece
        }
        if teacher is not None:
            v = teacher[rows].astype(np.float64)
            with np.errstate(over="ignore"):  # a mask such as finfo.min / T: to the smallest number
                scaled = np.maximum(v / temperature, np.finfo(float).min)
            log_p = special.log_softmax(scaled, axis=1)
            found["agreement"] = v.argmax(1) == z.argmax(1)
            found["divergence"] = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
        parts.append(found)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def reliability(logits, labels, *, bins: int = 15) -> pd.DataFrame:
    """Confidence against accuracy in equal-width bins, the last one closed at confidence 1.

    Returns a row a bin: low, high, count, and the means confidence and accuracy (NaN if empty).
    """
    found = _per_sample(logits, labels)
    return _reliability(found["largest"], found["accuracy"], bins)


def _reliability(confidence: np.ndarray, correct: np.ndarray, bins: int) -> pd.DataFrame:
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    # A bin is (low, high]: confidence 1.0 falls into the last one, not into one of its own.
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(
            {
                "low": np.arange(bins) / bins,
                "high": np.arange(1, bins + 1) / bins,
                "count": count,
                "confidence": np.bincount(index, confidence, bins) / count,
                "accuracy": np.bincount(index, correct, bins) / count,
            }
        )


def calibration_error(logits, labels, *, bins: int = 15) -> float:
    """Expected calibration error: mean |accuracy - confidence| over bins, weighted by count."""
    return evaluate(logits, labels, bins=bins)["ece"].item()


def _calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    table = _reliability(confidence, correct, bins).dropna()
    gap = (table["accuracy"] - table["confidence"]).abs()
    return float((gap * table["count"]).sum() / table["count"].sum())


def fit_temperature(logits, labels) -> float:
    """The one temperature that minimises NLL when logits are divided by it (Guo et al. 2017).

    Fit it on validation data. The result lies between 0.01 and 100: logits that classify everything
    right would be sharpened without end. Where the NLL rounds to 0 at several temperatures, one of
    them is returned.
    """
    logits, labels = _logits_and_labels(logits, labels)
    logits = logits.astype(np.float64)

    def nll(log_temperature: float) -> float:
        log_q = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -log_q[np.arange(len(labels)), labels].mean()

    # NLL is convex in 1/T, so it has one valley in log T as well.
    bounds = (np.log(0.01), np.log(100.0))
    return float(np.exp(optimize.minimize_scalar(nll, bounds=bounds, method="bounded").x))


def outlier_scores(logits, *, temperature: float = 1.0, orders=(0.25, 0.5, 2.0)) -> pd.DataFrame:
    """Scores (N rows, float64) of how unknown inputs look; larger means less known.

    From logits (N, K) divided by ``temperature``: "largest probability" is -log max q (Hendrycks
    & Gimpel 2017), "entropy" Shannon's, "Rényi a" that of each order a (> 0, not 1), all in nats;
    "largest logit" is -max z and "energy" -log sum exp z (Liu et al. 2020). Where q is nearly
    one-hot they keep the digits that q itself loses. Raises as ``evaluate`` does.
    """
    z = np.sort(_logits(logits).astype(np.float64) / temperature, axis=1)
    top, below = z[:, -1], z[:, :-1] - z[:, -1:]
    surprise = {a: np.log1p(np.exp(a * below).sum(axis=1)) for a in (1.0, *orders)}
    least = surprise[1.0]  # -log max q
    spread = -(below * np.exp(below)).sum(axis=1) / np.exp(least)
    renyi = {f"Rényi {a:g}": (surprise[a] - a * least) / (1 - a) for a in orders}
    found = {"largest probability": least, "entropy": least + spread, **renyi}
    return pd.DataFrame(found | {"largest logit": -top, "energy": -top - least})


def paired_interval(
    differences, *, confidence: float = 0.95, contrasts: int = 1, test_over_train: float = 0.0
) -> tuple[float, float, float]:
    """Mean of paired differences and its Student t interval: (mean, low, high).

    Args:
        differences: finite numbers, one a seed.
        contrasts: how many such intervals are to cover at once with this confidence (Bonferroni).
        test_over_train: pictures in test over pictures in train, where every seed splits one pool
            anew. Such seeds share pictures, so more of them tell less than independent ones: the
            variance of the mean is taken as (1/n + test_over_train) times that of the differences
            (Nadeau & Bengio 2003, Machine Learning 52). 0 where all seeds share one split; the
            interval is then for that test part.

    One difference gives a mean and NaN bounds: no interval can be had from one seed.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, such as 0.95")
    if contrasts < 1 or not 0 <= test_over_train < np.inf:
        raise ValueError(
            f"contrasts={contrasts} and test_over_train={test_over_train}: give a count of at "
            "least 1 and a ratio of at least 0, such as 0.2 / 0.6"
        )
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or not len(d) or not np.isfinite(d).all():
        raise ValueError(f"differences must be finite numbers, one a seed, got {differences!r}")
    deviation = d.std(ddof=1) if len(d) > 1 else np.nan
    error = deviation * np.sqrt(1 / len(d) + test_over_train)
    half = stats.t.isf((1 - confidence) / 2 / contrasts, len(d) - 1) * error
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


def contrasts(
    differences: Mapping[str, Sequence[float]],
    *,
    contrasts: int | None = None,
    test_over_train: float = 0.0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """``paired_interval`` of several contrasts, which cover at once: a row a contrast.

    ``differences`` maps a contrast's name to its differences, one a seed. ``contrasts`` is the
    number of all contrasts that are judged together, by default those given here. Returns name,
    difference, low, high, p (two-sided, of this contrast alone), the number of seeds, their
    deviation (of the differences) and the number of contrasts.
    """
    many = len(differences) if contrasts is None else contrasts
    if many < len(differences):
        raise ValueError(f"contrasts={many}, but {len(differences)} are given here")
    rows = []
    for name, values in differences.items():
        d = np.asarray(values, dtype=float)
        interval = paired_interval(
            d, confidence=confidence, contrasts=many, test_over_train=test_over_train
        )
        deviation = d.std(ddof=1) if len(d) > 1 else np.nan
        error = deviation * np.sqrt(1 / len(d) + test_over_train)
        p = 2 * stats.t.sf(abs(d.mean()) / error, len(d) - 1) if error > 0 else np.nan
        rows.append((name, *interval, p, len(d), deviation, many))
    names = ["name", "difference", "low", "high", "p", "seeds", "deviation", "contrasts"]
    return pd.DataFrame(rows, columns=names)


def compare(
    first,
    second,
    labels,
    *,
    measures: Sequence[str] = ("accuracy", "nll", "brier", "ece"),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare two methods: ``first`` minus ``second``, in pairs.

    Args:
        first, second: logits (N, K) of one student each, or equally many of them, one a seed, as a
            sequence or a mapping from seed to logits (the seeds must then be the same).
        labels: labels (N,), or one such array a seed.
        measures: names out of accuracy, nll, brier, ece, entropy, confidence.

    With one student each, the interval is a bootstrap over test images (scipy, percentile; the
    two students answer the same resampled images): it speaks of these two students only. With
    several, it is a paired t interval over seeds: it speaks of the methods.

    Returns:
        A row a measure: first, second, difference, low, high, and over ("images" or "seeds").
    """
    measures = [measures] if isinstance(measures, str) else list(measures)
    unknown = set(measures) - set(MEASURES)
    if unknown:
        raise ValueError(f"unknown measures {sorted(unknown)}; available: {MEASURES}")
    if any(isinstance(given, torch.nn.Module) for given in (first, second)):
        raise TypeError("compare takes logits: use predict(network, images) first")
    if any(isinstance(given, Mapping) for given in (first, second, labels)):
        if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
            raise TypeError("give first and second both as mappings from seed to logits")
        if set(first) != set(second):
            raise ValueError(f"seeds differ: {sorted(first)} and {sorted(second)}")
        seeds = sorted(first)
        labels = [labels[s] for s in seeds] if isinstance(labels, Mapping) else labels
        first, second = [first[s] for s in seeds], [second[s] for s in seeds]
    over = "images" if all(getattr(x, "ndim", 0) == 2 for x in (first, second)) else "seeds"
    if over == "images":
        first, second, labels = [first], [second], [labels]
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} students cannot be paired")
    if np.ndim(labels[0]) == 0:  # shared by all seeds
        labels = [labels] * len(first)
    if len(labels) != len(first):
        raise ValueError(f"{len(labels)} arrays of labels for {len(first)} students a side")
    for one, two in zip(first, second, strict=True):
        if np.shape(one) != np.shape(two):
            raise ValueError(f"first has shape {np.shape(one)}, second {np.shape(two)}")
    sides = [[*map(_per_sample, side, labels)] for side in (first, second)]
    tables = [pd.DataFrame([_measures(found) for found in side]) for side in sides]
    rows = []
    for name in measures:
        one, two = (table[name].to_numpy() for table in tables)
        difference, *bounds = paired_interval(one - two, confidence=confidence)
        if over == "images":
            bounds = _bootstrap(*sides[0], *sides[1], name, confidence, resamples, seed)
        rows.append((name, one.mean(), two.mean(), difference, *bounds))
    names = ["measure", "first", "second", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=names).assign(over=over)


def _bootstrap(first, second, measure, confidence, resamples, seed) -> tuple[float, float]:
    """An interval of the difference of two students, who answer the same resampled images."""

    def difference(images: np.ndarray) -> float:
        if measure == "ece":  # not a mean over images, so each resample is binned anew
            sides = [(x["largest"][images], x["accuracy"][images]) for x in (first, second)]
            return _calibration_error(*sides[0]) - _calibration_error(*sides[1])
        return (first[measure] - second[measure])[images].mean()

    return stats.bootstrap(
        (np.arange(len(first["accuracy"])),),
        difference,
        vectorized=False,
        method="percentile",
        n_resamples=resamples,
        confidence_level=confidence,
        rng=np.random.default_rng(seed),
    ).confidence_interval
