"""Evidence: the claims under test, and what each notebook measured for them.

A claim is a row of ``claims.csv``. A notebook *records* a measurement; one record is one small
JSON file, so that a batch killed half-way loses nothing and reports are built from files alone.
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
}
COLUMNS = [
    *("id", "kind", "statement", "where", "expected", "paper_value", "source"),
    *("measure", "measured", "low", "high", "unit", "holm", "verdict", "because", "scope"),
    *("verdict_in_scope", "note", "notebook"),
]


@cache
def claims() -> dict[str, dict[str, str]]:
    """All claims by id, in reading order: A1 to A8 are exact, B1 to B14 are empirical.

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
    about = claims()[claim_id]["decided_by"]
    if not decides or (about and scope.split(",")[0].strip().lower() != about.lower()):
        return "not decided", ""
    words = []
    for part in parts:
        if "tolerance" in part:
            words.append(exact_verdict(_unknown(part["difference"]), part["tolerance"]))
        else:
            ends = _unknown(part["low"]), _unknown(part["high"])
            words.append(direction_verdict(*ends, QUANTITIES[part["quantity"]][1]))
    worst = min(words, key=VERDICTS.index)
    names = [part["name"] for part, word in zip(parts, words, strict=True) if word == worst]
    return worst, "" if len(names) == len(parts) else ", ".join(names)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values, for p-values that are looked at together; NaN stays NaN."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    adjusted = np.full(p.shape, np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def record(
    claim_id: str,
    measured: float | pd.DataFrame,
    *,
    scope: str,
    tolerance: float | None = None,
    measure: str = "",
    decides: bool = True,
    note: str = "",
    notebook: str | None = None,
) -> str:
    """Write what was measured for a claim into the results folder and return the verdict.

    For an exact claim ``measured`` is a residual, ``tolerance`` its bound and ``measure`` says in
    words what was measured. For an empirical one it is a table of **all** its contrasts, each
    expected to be positive, from ``analysis.contrasts`` with a column ``quantity`` added (a key of
    ``QUANTITIES``). The verdict is computed from these numbers by ``claim_verdict``; none can be
    given.

    ``scope`` says where the verdict is valid (``"float64"``; data, pair and seeds otherwise:
    ``"CIFAR-100, resnet56 to resnet20, 5 seeds"``) and is always shown beside it. Claim, scope,
    measure and notebook together name the record: recording again replaces it. ``notebook`` is
    the name of the notebook without suffix; left out, it is the one that is running.
    ``decides=False`` where the measure is not the claim's own: shown, and not judged.

    The folder is the environment variable ``TTM_LAB_RESULTS`` or ``runs/results`` in the
    checkout. Raises ``ValueError`` for an unknown claim, a scope that is empty or names no pair
    where the claim is about pairs, and numbers that do not fit together.
    """
    parts = _parts(claim_id, measured, tolerance, measure)
    _check_scope(claim_id, scope)
    if notebook is None:
        # Jupyter sets JPY_SESSION_NAME to the path of the running notebook, the batch the other.
        running = os.environ.get("TTM_LAB_NOTEBOOK") or os.environ.get("JPY_SESSION_NAME", "")
        notebook = Path(running).stem
    verdict, because = claim_verdict(claim_id, parts, scope, decides)
    content = {
        "claim": claim_id,
        "verdict": verdict,
        "because": because,
        "scope": scope,
        "decides": decides,
        "contrasts": parts,
        "note": note,
        "notebook": notebook,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    words = re.sub(r"[^A-Za-z0-9]+", "-", measure or scope).strip("-")[:40]
    key = hashlib.sha256(f"{scope}\n{measure}\n{notebook}".encode()).hexdigest()[:8]
    path = results_folder() / "-".join(filter(None, [claim_id, words, f"{key}.json"]))
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, text + "\n")
    return f"{verdict}, by {because}" if because else verdict


def results_folder() -> Path:
    """The folder records go to: ``TTM_LAB_RESULTS``, else ``runs/results`` in the checkout."""
    given = os.environ.get("TTM_LAB_RESULTS")
    return user_path(given) if given else find_root() / "runs" / "results"


def collect(folder: str | Path | None = None) -> pd.DataFrame:
    """All claims with what was recorded for them under ``folder``, as a pandas frame.

    One row a contrast, at least one a claim: a claim without a record reads "not run". Records in
    folders below ``folder`` count too. Records of one claim and scope share one verdict, computed
    anew from all their contrasts; ``because`` names the contrasts it rests on and
    ``verdict_in_scope`` is the wording to show. ``holm`` is Holm's p over the contrasts of a
    scope: shown, and deciding nothing. A file that is no record is skipped with a warning.
    """
    folder = results_folder() if folder is None else user_path(folder)
    found: dict[tuple, list[dict]] = {}
    for path in sorted(folder.rglob("*.json")):
        if entry := _read(path):
            found.setdefault((entry["claim"], entry["scope"]), []).append(entry)
    rows = []
    for (claim_id, scope), entries in sorted(found.items(), key=lambda item: item[0][1]):
        entries.sort(key=lambda entry: entry["notebook"])
        parts = [part for entry in entries for part in entry["contrasts"]]
        decides = all(entry["decides"] for entry in entries)
        verdict, because = claim_verdict(claim_id, parts, scope, decides)
        shared = {"id": claim_id, "verdict": verdict, "because": because, "scope": scope}
        shared["verdict_in_scope"] = in_scope(claim_id, verdict, scope)
        for entry in entries:
            for part in entry["contrasts"]:
                row = {"measure": part["name"], "measured": part["difference"]}
                row |= {key: part.get(key) for key in ("low", "high", "p")}
                row["unit"] = QUANTITIES[part["quantity"]][0] if "quantity" in part else ""
                rows.append(shared | row | {key: entry[key] for key in ("note", "notebook")})
    measured = pd.DataFrame(rows, columns=["id", "p", *COLUMNS[7:]])
    numbers = ["measured", "low", "high", "p", "holm"]
    measured[numbers] = measured[numbers].astype(float)
    for _, rows in measured.groupby("scope"):
        measured.loc[rows.index, "holm"] = holm(rows["p"])
    table = pd.DataFrame(claims().values()).merge(measured, on="id", how="left", sort=False)
    text = [*("measure", "unit", "because", "scope", "note", "notebook")]
    table[text] = table[text].fillna("")
    words = ["verdict", "verdict_in_scope"]
    table[words] = table[words].fillna("not run")
    return table[COLUMNS]


def in_scope(claim_id: str, verdict: str, scope: str) -> str:
    """A verdict with its scope in words: ``"holds on digits"``, ``"holds (float64)"``."""
    exact = claims()[claim_id]["kind"] == "exact"
    return f"{verdict} ({scope})" if exact else f"{verdict} on {scope}"


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
    for row in measured[keys].to_dict("records"):
        if row["quantity"] not in QUANTITIES:
            raise ValueError(f"quantity={row['quantity']!r} must be one of {list(QUANTITIES)}")
        if row["low"] > row["difference"] or row["difference"] > row["high"]:
            raise ValueError(
                f"{row['name']}: {row['difference']} lies outside its own interval, "
                f"{row['low']} to {row['high']}"
            )
        parts.append(row | {key: _number(row[key]) for key in ("difference", "low", "high", "p")})
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
        json.dumps(entry, ensure_ascii=False).encode()  # half a character cannot be shown
        words = [entry[key] for key in ("claim", "scope", "note", "notebook")]
        for part in entry["contrasts"]:
            words.append(part["name"])
            for key in ("difference", "low", "high", "p"):
                float(_unknown(part.get(key)))
            if "quantity" in part:
                QUANTITIES[part["quantity"]]
        if not all(isinstance(word, str) for word in words):
            raise TypeError("a name or text in it is no text")
        claim_verdict(entry["claim"], entry["contrasts"], entry["scope"], entry["decides"])
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
