"""Evidence: the claims under test, what was measured for them, and the one rule that judges it.

A claim is a row of ``claims.csv``. A notebook *records* a measurement; one record is one small
JSON file, so that a batch killed half-way loses nothing and reports are built from files alone.
Kept results and the paper's tables give entries of the same kind (``kept.py``).
"""

import csv
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, stats

from ttm_lab.course import paper
from ttm_lab.files import atomic_write, find_root, user_path

# From the strongest word against a claim to its only confirmation: of a claim's parts the first
# of these that occurs is the verdict.
VERDICTS = ("does not hold", "negligible", "not decided", "holds")
# What can be contrasted: its unit, and the margin within which a difference is negligible. Fixed
# before anything was measured. A divergence D(p || q) is an NLL, the one that predictions q have
# too much where p is true, so it has NLL's margin.
QUANTITIES = {
    "accuracy": ("points", 0.3),
    "nll": ("nats", 0.02),
    "divergence": ("nats", 0.02),
    "entropy": ("nats", 0.05),
    "ece": ("", 0.01),
    "auroc": ("", 0.01),
    "cost": ("%", 0.0),
}
# Where a claim may be tried: the columns of the matrix.
PLACES = (
    *("published tables", "digits", "CIFAR-10 JPEG", "CIFAR-100, short schedule"),
    *("CIFAR-100, the paper's recipe", "ImageNet", "sequences"),
)
# What an entry says of how its numbers came about, beside the scope.
ABOUT = ("note", "notebook", "command", "settings", "teachers")
COLUMNS = [
    *("id", "kind", "statement", "where", "expected", "paper_value", "source"),
    *("measure", "measured", "low", "high", "alone_low", "alone_high", "unit", "margin", "seeds"),
    *("contrasts", "smallest", "holm", "tolerance", "verdict", "because", "flip", "scope"),
    *("verdict_in_scope", *ABOUT),
]


@cache
def claims() -> dict[str, dict[str, str]]:
    """All claims by id, in reading order: A1 to A8 are exact, the others empirical.

    ``paper_value`` is empty where the paper gives none; ``decided_by`` names the only data set
    that can decide the claim, and is empty where any data can, within its scope.
    """
    text = files("ttm_lab.course").joinpath("claims.csv").read_text(encoding="utf-8")
    return {row["id"]: row for row in csv.DictReader(text.splitlines())}


def exact_verdict(residual: float, tolerance: float) -> str:
    """``"holds"`` if a residual that ought to be zero is within the tolerance.

    A residual that is not a number does not hold. Raises ``ValueError`` for a tolerance that is
    negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance={tolerance!r}: give a finite number, at least 0")
    return "holds" if abs(residual) <= tolerance else "does not hold"


def direction_verdict(low: float, high: float, margin: float = 0.0) -> str:
    """Judge the interval of a difference that the claim expects to be positive.

    The whole interval within ``margin`` of zero: ``"negligible"``. Otherwise wholly above zero:
    ``"holds"``; wholly below: ``"does not hold"``; else ``"not decided"``. So is an interval that
    is unknown (NaN, as with a single seed), or has no width: seeds that agree to the last digit,
    as a few accuracies may, say nothing about others.

    Raises ``ValueError`` if the ends are the wrong way round or the margin is no size.
    """
    if low > high:
        raise ValueError(f"low={low!r} is above high={high!r}: swap the ends of the interval")
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin={margin!r}: give a finite number, at least 0")
    if not low < high:
        return "not decided"
    if -margin <= low and high <= margin:
        return "negligible"
    if low > 0:
        return "holds"
    return "does not hold" if high < 0 else "not decided"


def claim_verdict(claim_id: str, parts: Sequence[dict], scope: str, decides: bool = True) -> tuple:
    """The one verdict on a claim in a scope, and the parts that it rests on if not on all.

    ``parts`` are the claim's contrasts, as records keep them. A claim holds if all its parts do;
    otherwise its verdict is that of the part that speaks most against it, in the order of
    ``VERDICTS``. Nothing is decided on data other than those the claim is about (digits say
    nothing about CIFAR-100), nor by a measure that is not the claim's own (``decides=False``).
    """
    if not _can_decide(claim_id, scope, decides):
        return "not decided", ""
    words = [_part_verdict(part) for part in parts]
    worst = min(words, key=VERDICTS.index)
    names = [part["name"] for part, word in zip(parts, words, strict=True) if word == worst]
    return worst, "" if len(names) == len(parts) else ", ".join(names)


def _can_decide(claim_id: str, scope: str, decides: bool) -> bool:
    about, data = claims()[claim_id]["decided_by"].lower(), scope.split(",")[0].strip().lower()
    return decides and (not about or data in (about, PLACES[0]))


def _part_verdict(part: dict) -> str:
    if "tolerance" in part:
        return exact_verdict(_unknown(part["difference"]), part["tolerance"])
    ends = _unknown(part["low"]), _unknown(part["high"])
    return direction_verdict(*ends, QUANTITIES[part["quantity"]][1])


def _spread(part: dict) -> tuple[float, float, float, float] | None:
    """Seeds, t of the interval, standard error and deviation; None where one is unknown."""
    known = [_unknown(part.get(key)) for key in ("seeds", "contrasts", "deviation", "low", "high")]
    if not np.isfinite(known).all() or known[0] < 2 or not known[2] > 0:
        return None
    seeds, contrasts, deviation, low, high = known
    t = stats.t.isf(0.025 / contrasts, seeds - 1)
    return seeds, t, (high - low) / 2 / t, deviation


def interval_alone(part: dict) -> tuple[float, float]:
    """The plain 95 % t interval of a contrast: alone, and with seeds that share no picture.

    NaN where the record does not say how many seeds there are and how much they differ.
    """
    if (spread := _spread(part)) is None:
        return math.nan, math.nan
    seeds, _, _, deviation = spread
    half = stats.t.isf(0.025, seeds - 1) * deviation / seeds**0.5
    return part["difference"] - half, part["difference"] + half


def smallest_effect(part: dict, power: float = 0.8) -> float:
    """The true difference whose interval lies above zero with probability ``power``.

    For as many seeds and contrasts as the part has, at its standard error, with the noncentral
    t distribution. NaN where the record does not say enough.
    """
    if (spread := _spread(part)) is None:
        return math.nan
    seeds, t, error, _ = spread

    def missing(effect: float) -> float:
        return stats.nct.sf(t, seeds - 1, effect) - power

    end = 1.0
    while missing(end) < 0:
        end *= 2
        if end > 1e6:
            return math.nan
    return optimize.brentq(missing, 0, end) * error


def seeds_needed(part: dict) -> float:
    """How many seeds would decide a contrast, were difference and deviation to stay as they are.

    Decided includes negligible. Infinite where no number up to 10,000 does: seeds that share
    pictures leave an error that their number does not lower. NaN where too little is recorded.
    """
    if (spread := _spread(part)) is None:
        return math.nan
    seeds, _, error, deviation = spread
    n, margin = np.arange(2, 10_001), QUANTITIES[part["quantity"]][1]
    shared = max((error / deviation) ** 2 - 1 / seeds, 0)
    half = stats.t.isf(0.025 / part["contrasts"], n - 1) * deviation * np.sqrt(1 / n + shared)
    size = abs(part["difference"])
    decided = (half < size) | (size + half <= margin)
    return float(n[decided.argmax()]) if decided.any() else math.inf


def what_flips(claim_id: str, parts: Sequence[dict], scope: str, decides: bool = True) -> str:
    """What would change ``claim_verdict`` of the same arguments, in words; ``""`` where exact."""
    if any("tolerance" in part for part in parts):
        return ""
    if not _can_decide(claim_id, scope, decides):
        return "other data or another measure: these decide nothing about the claim"
    verdict, _ = claim_verdict(claim_id, parts, scope, decides)
    parts = [part for part in parts if _part_verdict(part) == verdict]
    if verdict == "not decided":
        runs = "pairs of networks" if place(scope) == PLACES[0] else "seeds"
        needed = [seeds_needed(part) for part in parts]
        if any(map(math.isnan, needed)):
            return f"to know how much the difference varies between {runs}"
        enough = f"about {max(needed):,.0f} {runs}"
        enough = f"no number of {runs} up to 10,000" if math.inf in needed else enough
        return f"{enough}, if difference and spread stay as they are"

    def room(part: dict) -> float:
        """How far the interval is from another verdict, in the quantity's unit."""
        low, high = part["low"], part["high"]
        if verdict == "negligible":
            return QUANTITIES[part["quantity"]][1] - max(-low, high)
        return low if verdict == "holds" else -high

    # one part that no longer holds is enough; any other verdict stands while one part has it
    choose = min if verdict == "holds" else max
    part = choose(parts, key=lambda part: room(part) / (part["high"] - part["low"]))
    size = f"{room(part):.2g} {QUANTITIES[part['quantity']][0]}".strip()
    way = "from zero" if verdict == "negligible" else "towards zero"
    return f"the interval of “{part['name']}” {size} further {way}"


def place(scope: str) -> str:
    """The column of the matrix that a scope belongs to, one of ``PLACES``, or ``""``.

    A scope on CIFAR-100 that names its epochs is a short schedule; one that does not is the
    paper's recipe.
    """
    data = scope.split(",")[0].strip().lower()
    if data == "cifar-100":
        return PLACES[3] if re.search(r"\bepochs?\b", scope) else PLACES[4]
    data = {"cifar-10": "cifar-10 jpeg"}.get(data, data)
    return next((name for name in PLACES if name.lower() == data), "")


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """One verdict a claim and place: empirical claims by ``PLACES``, from what ``collect`` gives.

    Where a place has several scopes, such as pairs, the one that speaks most against the claim
    decides (``VERDICTS``).
    """
    found = table[(table["kind"] == "empirical") & (table["verdict"] != "not run")]
    ranks = found["verdict"].map(VERDICTS.index).groupby([found["id"], found["scope"].map(place)])
    wide = ranks.min().unstack()
    names = [claim_id for claim_id, claim in claims().items() if claim["kind"] == "empirical"]
    wide = wide.reindex(index=names, columns=PLACES)
    return wide.map(lambda rank: "not run" if pd.isna(rank) else VERDICTS[int(rank)])


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values, for p-values that are looked at together; NaN stays NaN."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    adjusted = np.full(p.shape, np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def entry(
    claim_id: str,
    measured: float | pd.DataFrame,
    *,
    scope: str,
    tolerance: float | None = None,
    measure: str = "",
    decides: bool = True,
    note: str = "",
    notebook: str = "",
    command: str = "",
    settings: str = "",
    teachers: int | None = None,
) -> dict:
    """What was measured for a claim, checked, in values that JSON knows, with its verdict.

    For an exact claim ``measured`` is a residual, ``tolerance`` its bound and ``measure`` says in
    words what was measured. For an empirical one it is a table of **all** its contrasts, each
    expected to be positive, from ``analysis.contrasts`` with a column ``quantity`` added (a key of
    ``QUANTITIES``). The verdict is computed from these numbers by ``claim_verdict``; none can be
    given.

    ``scope`` says where the verdict is valid (``"float64"``; data, pair and seeds otherwise:
    ``"CIFAR-100, resnet56 to resnet20, 5 seeds"``, with the epochs where they are not the paper's)
    and is always shown beside it. ``decides=False`` where the measure is not the claim's own:
    shown, and not judged. ``settings`` says whether they were tuned or fixed, ``teachers`` how
    many there were; both, ``note``, ``notebook`` and ``command`` are only shown.

    Raises ``ValueError`` for an unknown claim, a scope that is empty or names no pair where the
    claim is about pairs, and numbers that do not fit together.
    """
    parts = _parts(claim_id, measured, tolerance, measure)
    _check_scope(claim_id, scope)
    verdict, because = claim_verdict(claim_id, parts, scope, decides)
    content = {"claim": claim_id, "verdict": verdict, "because": because, "scope": scope}
    content |= {"decides": decides, "contrasts": parts, "note": note, "notebook": notebook}
    return content | {"command": command, "settings": settings, "teachers": teachers}


def record(
    claim_id: str, measured: float | pd.DataFrame, *, notebook: str | None = None, **words
) -> str:
    """Write an ``entry`` into the results folder and return its verdict.

    Claim, scope, measure and notebook together name the record: recording again replaces it.
    ``notebook`` is the name of the notebook without suffix; left out, it is the one that is
    running. ``words`` are the other arguments of ``entry``, which says what is refused. The folder
    is the environment variable ``TTM_LAB_RESULTS`` or ``runs/results`` in the checkout.
    """
    if notebook is None:
        # Jupyter sets JPY_SESSION_NAME to the path of the running notebook, the batch the other.
        running = os.environ.get("TTM_LAB_NOTEBOOK") or os.environ.get("JPY_SESSION_NAME", "")
        notebook = Path(running).stem
    content = entry(claim_id, measured, notebook=notebook, **words)
    content["recorded"] = datetime.now(UTC).isoformat(timespec="seconds")
    scope, measure = content["scope"], words.get("measure", "")
    name = re.sub(r"[^A-Za-z0-9]+", "-", measure or scope).strip("-")[:40]
    key = hashlib.sha256(f"{scope}\n{measure}\n{notebook}".encode()).hexdigest()[:8]
    path = results_folder() / "-".join(filter(None, [claim_id, name, f"{key}.json"]))
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, text + "\n")
    verdict, because = content["verdict"], content["because"]
    return f"{verdict}, by {because}" if because else verdict


def results_folder() -> Path:
    """The folder records go to: ``TTM_LAB_RESULTS``, else ``runs/results`` in the checkout."""
    given = os.environ.get("TTM_LAB_RESULTS")
    return user_path(given) if given else find_root() / "runs" / "results"


def collect(folder: str | Path | None = None, kept: Sequence[dict] = ()) -> pd.DataFrame:
    """All claims with what was recorded for them under ``folder``, as a pandas frame.

    ``kept`` are further entries (``kept.entries``), which replace records of their claim and scope.

    One row a contrast, at least one a claim: a claim without a record reads "not run". Records in
    folders below ``folder`` count too. Records of one claim and scope share one verdict, computed
    anew from all their contrasts; ``because`` names the contrasts it rests on, ``flip`` says what
    would change it and ``verdict_in_scope`` is the wording to show. ``alone_low`` and
    ``alone_high`` are ``interval_alone``, ``smallest`` is ``smallest_effect``. ``holm`` is Holm's p
    over the contrasts of a scope: shown, and deciding nothing. A file that is no record is skipped
    with a warning.
    """
    folder = results_folder() if folder is None else user_path(folder)
    found: dict[tuple, list[dict]] = {}
    for path in sorted(folder.rglob("*.json")):
        if one := _read(path):
            found.setdefault((one["claim"], one["scope"]), []).append(one)
    found |= {(one["claim"], one["scope"]): [one] for one in kept}
    rows = []
    for (claim_id, scope), entries in sorted(found.items(), key=lambda item: item[0][1]):
        entries.sort(key=lambda one: one["notebook"])
        parts = [part for one in entries for part in one["contrasts"]]
        decides = all(one["decides"] for one in entries)
        verdict, because = claim_verdict(claim_id, parts, scope, decides)
        shared = {"id": claim_id, "verdict": verdict, "because": because, "scope": scope}
        shared["verdict_in_scope"] = in_scope(claim_id, verdict, scope)
        shared["flip"] = what_flips(claim_id, parts, scope, decides)
        for one in entries:
            about = {key: one[key] for key in ABOUT}
            rows += [shared | _shown(part) | about for part in one["contrasts"]]
    measured = pd.DataFrame(rows, columns=["id", "p", *COLUMNS[7:]])
    numbers = ["measured", "low", "high", "p", "holm", "alone_low", "alone_high", "smallest"]
    numbers += ["margin", "seeds", "contrasts", "tolerance", "teachers"]
    measured[numbers] = measured[numbers].astype(float)
    for _, rows in measured.groupby("scope"):
        measured.loc[rows.index, "holm"] = holm(rows["p"])
    table = pd.DataFrame(claims().values()).merge(measured, on="id", how="left", sort=False)
    text = [*("measure", "unit", "because", "flip", "scope"), *ABOUT[:-1]]
    table[text] = table[text].fillna("")
    words = ["verdict", "verdict_in_scope"]
    table[words] = table[words].fillna("not run")
    return table[COLUMNS]


def in_scope(claim_id: str, verdict: str, scope: str) -> str:
    """A verdict with its scope in words: ``"holds on digits"``, ``"holds (float64)"``."""
    exact = claims()[claim_id]["kind"] == "exact"
    return f"{verdict} ({scope})" if exact else f"{verdict} on {scope}"


def _shown(part: dict) -> dict:
    """A contrast's columns in what ``collect`` returns."""
    row = {"measure": part["name"], "measured": part["difference"]}
    row |= {key: part.get(key) for key in ("low", "high", "p", "seeds", "contrasts", "tolerance")}
    if "quantity" not in part:
        return row | {"unit": ""}
    row["alone_low"], row["alone_high"] = interval_alone(part)
    unit, margin = QUANTITIES[part["quantity"]]
    return row | {"smallest": smallest_effect(part), "unit": unit, "margin": margin}


def _parts(claim_id: str, measured, tolerance: float | None, measure: str) -> list[dict]:
    """A claim's contrasts as plain JSON values, checked."""
    if claim_id not in claims():
        raise ValueError(f"claim_id={claim_id!r} is unknown; choose one of {', '.join(claims())}")
    if claims()[claim_id]["kind"] == "exact":
        if isinstance(measured, pd.DataFrame) or tolerance is None:
            raise ValueError(f"{claim_id} is an exact claim: give one residual and its tolerance")
        exact_verdict(float(measured), tolerance)  # refuses a tolerance that is none
        return [{"name": measure, "difference": _number(measured), "tolerance": tolerance}]
    if not isinstance(measured, pd.DataFrame) or not len(measured):
        raise ValueError(
            f"{claim_id} is judged by intervals: give a table of analysis.contrasts, "
            f"got {measured!r}"
        )
    keys = ["name", "difference", "low", "high", "p", "quantity"]
    if missing := set(keys) - set(measured.columns):
        raise ValueError(f"{claim_id}: the contrasts lack the columns {sorted(missing)}")
    parts = []
    spread = [key for key in ("seeds", "deviation", "contrasts") if key in measured]
    for row in measured[keys + spread].to_dict("records"):
        if row["quantity"] not in QUANTITIES:
            raise ValueError(f"quantity={row['quantity']!r} must be one of {list(QUANTITIES)}")
        if row["low"] > row["difference"] or row["difference"] > row["high"]:
            raise ValueError(
                f"{row['name']}: {row['difference']} lies outside its own interval, "
                f"{row['low']} to {row['high']}"
            )
        numbers = ["difference", "low", "high", "p", *spread]
        parts.append(row | {key: _number(row[key]) for key in numbers})
    return parts


def _check_scope(claim_id: str, scope: str) -> None:
    about, given = claims()[claim_id]["decided_by"], scope.split(",")
    if not scope.strip():
        raise ValueError('scope is empty: say where the verdict is valid, such as "digits"')
    if about and given[0].strip().lower() == about.lower() and " to " not in scope:
        raise ValueError(
            f"scope={scope!r} names no pair: {claim_id} is judged pair by pair, so write "
            f'"{given[0].strip()}, TEACHER to STUDENT, ..."'
        )


def _read(path: Path) -> dict | None:
    """One record, or None with a warning where the file is none."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        entry = {"command": "", "settings": "", "teachers": None} | entry
        json.dumps(entry, ensure_ascii=False).encode()  # half a character cannot be shown
        words = [entry[key] for key in ("claim", "scope", *ABOUT[:-1])]
        float(_unknown(entry["teachers"]))
        for part in entry["contrasts"]:
            words.append(part["name"])
            for key in ("difference", "low", "high", "p", "seeds", "deviation", "contrasts"):
                float(_unknown(part.get(key)))
            if "quantity" in part:
                QUANTITIES[part["quantity"]]
        if not all(isinstance(word, str) for word in words):
            raise TypeError("a name or text in it is no text")
        what = entry["claim"], entry["contrasts"], entry["scope"], entry["decides"]
        claim_verdict(*what)
        what_flips(*what)
        for part in entry["contrasts"]:
            _shown(part)
        return entry
    except Exception as error:  # of JSON of any shape, any may come: OverflowError too
        told = f"{type(error).__name__}: {error}"
        warnings.warn(f"{path} is no record of evidence and is left out ({told})", stacklevel=3)
        return None


def _number(value: float | None) -> float | None:
    """A plain finite float, or None: JSON knows neither NaN nor NumPy's and torch's scalars."""
    return float(value) if value is not None and math.isfinite(value) else None


def _unknown(value: float | None) -> float:
    return math.nan if value is None else value


def pooled_difference(more: str, less: str) -> pd.Series:
    """One method minus another over all CIFAR-100 pairs of the paper, in points of top-1.

    Each pair's difference has the standard error of its runs. Returns the number of pairs, how
    many differences are positive and how many are beyond_two_errors, their mean pooled by inverse
    variance with its error and z, the plain mean with its mean_z, and p of Wilcoxon's two-sided
    signed-rank test. Raises ``ValueError`` where the paper gives no spreads for a method.
    """
    table = paper.results()
    table = table[(table["dataset"] == "CIFAR-100") & table["method"].isin([more, less])]
    values = ["top1", "std", "runs"]
    table = table.pivot(index=["teacher", "student"], columns="method", values=values)
    d = (table["top1"][more] - table["top1"][less]).to_numpy()
    variance = sum(table["std"][m] ** 2 / table["runs"][m] for m in (more, less)).to_numpy()
    if np.isnan(variance).all():
        raise ValueError(f"{more} minus {less}: the paper gives no spreads for one of them")
    known = np.isfinite(d + variance)
    d, variance = d[known], variance[known]
    weight = 1 / variance
    pooled, error = np.average(d, weights=weight), weight.sum() ** -0.5
    return pd.Series(
        {
            "pairs": len(d),
            "positive": (d > 0).sum(),
            "beyond_two_errors": (abs(d) > 2 * variance**0.5).sum(),
            "pooled": pooled,
            "error": error,
            "z": pooled / error,
            "mean": d.mean(),
            "mean_z": d.sum() / variance.sum() ** 0.5,
            "p": stats.wilcoxon(d).pvalue,
        }
    )
