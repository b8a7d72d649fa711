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
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

import pandas as pd

from ttm_lab.runs import atomic_write, find_root

VERDICTS = ("holds", "does not hold", "not decided", "not run")
COLUMNS = [
    *("id", "kind", "statement", "where", "expected", "paper_value", "source"),
    *("measure", "measured", "low", "high", "unit", "verdict", "scope", "verdict_in_scope"),
    *("note", "notebook"),
]


@cache
def claims() -> dict[str, dict[str, str]]:
    """All claims by id, in reading order: A1 to A8 are exact, B1 to B14 are empirical.

    ``paper_value`` is empty where the paper gives none; ``decided_by`` names the only data set
    that can decide the claim, and is empty where any data can, within its scope.
    """
    text = files("ttm_lab").joinpath("claims.csv").read_text(encoding="utf-8")
    return {row["id"]: row for row in csv.DictReader(text.splitlines())}


def exact_verdict(residual: float, tolerance: float) -> str:
    """``"holds"`` if a residual that ought to be zero is within the tolerance.

    A residual that is not a number does not hold. Raises ``ValueError`` for a tolerance that is
    negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance={tolerance!r}: give a finite number, at least 0")
    return "holds" if abs(residual) <= tolerance else "does not hold"


def direction_verdict(low: float, high: float) -> str:
    """Judge an interval of a difference that the claim expects to be positive.

    Wholly above zero: ``"holds"``; wholly below: ``"does not hold"``; otherwise, and where the
    interval is unknown (NaN, as with a single seed), ``"not decided"``. Raises ``ValueError`` if
    the ends are the wrong way round.
    """
    if low > high:
        raise ValueError(f"low={low!r} is above high={high!r}: swap the ends of the interval")
    if math.isnan(low) or math.isnan(high):
        return "not decided"
    if low > 0:
        return "holds"
    return "does not hold" if high < 0 else "not decided"


def record(
    claim_id: str,
    measured: float | None,
    *,
    verdict: str,
    scope: str,
    measure: str = "",
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    note: str = "",
    notebook: str | None = None,
) -> Path:
    """Write one measurement for a claim into the results folder and return the file.

    ``measured`` is a number with its interval ``low`` to ``high`` and ``unit``; ``measure`` says
    in words what was measured (``"mean H(q), TTM minus KD"``). Claim, measure and notebook
    together name the record: recording again replaces it. ``scope`` says where the verdict is
    valid (``"digits"``, ``"float64"``) and is always shown beside it. ``notebook`` is the name of
    the notebook without suffix; left out, it is the one that is running.

    The folder is the environment variable ``TTM_LAB_RESULTS`` or ``runs/results`` in the
    checkout. Raises ``ValueError`` for an unknown claim or verdict, an empty scope, a number that
    is not finite beside a verdict that decides, and for a decision on data that cannot decide the
    claim (digits say nothing about CIFAR-100).
    """
    _check(claim_id, measured, verdict, scope)
    if notebook is None:
        # Jupyter sets JPY_SESSION_NAME to the path of the running notebook, the batch the other.
        running = os.environ.get("TTM_LAB_NOTEBOOK") or os.environ.get("JPY_SESSION_NAME", "")
        notebook = Path(running).stem
    content = {
        "claim": claim_id,
        "measure": measure,
        "measured": _number(measured),
        "low": _number(low),
        "high": _number(high),
        "unit": unit,
        "verdict": verdict,
        "scope": scope,
        "note": note,
        "notebook": notebook,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    words = re.sub(r"[^A-Za-z0-9]+", "-", measure).strip("-")[:40]
    key = hashlib.sha256(f"{measure}\n{notebook}".encode()).hexdigest()[:8]
    path = results_folder() / "-".join(filter(None, [claim_id, words, f"{key}.json"]))
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, text + "\n")
    return path


def results_folder() -> Path:
    """The folder records go to: ``TTM_LAB_RESULTS``, else ``runs/results`` in the checkout."""
    given = os.environ.get("TTM_LAB_RESULTS")
    return Path(given) if given else find_root() / "runs" / "results"


def collect(folder: str | Path | None = None) -> pd.DataFrame:
    """All claims with what was recorded for them under ``folder``, as a pandas frame.

    One row a record, at least one a claim: a claim without a record reads "not run". Records in
    folders below ``folder`` count too. ``verdict_in_scope`` is the wording to show. A file that is
    no record is named in a warning and left out.
    """
    folder = results_folder() if folder is None else Path(folder)
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            whole = _is_record(entry)
        except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError):
            whole = False
        if whole:
            found.setdefault(entry["claim"], []).append(entry)
        else:
            warnings.warn(f"{path} is no record of a claim: left out", stacklevel=2)
    nothing = {"measure": "", "verdict": "not run", "scope": "", "note": "", "notebook": ""}
    rows = []
    for claim_id, claim in claims().items():
        entries = found.get(claim_id, [nothing])
        for entry in sorted(entries, key=lambda e: (e["notebook"], e["measure"])):
            rows.append({**entry, **claim, "verdict_in_scope": in_scope(entry)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _is_record(entry: dict) -> bool:
    """Whether an entry, read from a file, has the shape that ``record`` gives it."""
    numbers = [entry[name] for name in ("measured", "low", "high")]
    texts = [entry[name] for name in ("measure", "unit", "scope", "note", "notebook")]
    return (
        entry["claim"] in claims()
        and entry["verdict"] in VERDICTS
        and all(x is None or (isinstance(x, (int, float)) and abs(x) < math.inf) for x in numbers)
        and all(isinstance(text, str) and text.encode() is not None for text in texts)
    )


def in_scope(entry: dict) -> str:
    """A verdict with its scope in words: ``"holds on digits"``, ``"holds (float64)"``."""
    if entry["verdict"] == "not run" or not entry["scope"]:
        return entry["verdict"]
    if claims()[entry["claim"]]["kind"] == "exact":
        return f"{entry['verdict']} ({entry['scope']})"
    return f"{entry['verdict']} on {entry['scope']}"


def _check(claim_id: str, measured: float | None, verdict: str, scope: str) -> None:
    if claim_id not in claims():
        raise ValueError(f"claim_id={claim_id!r} is unknown; choose one of {', '.join(claims())}")
    if verdict not in VERDICTS:
        raise ValueError(f"verdict={verdict!r} is unknown; choose one of {', '.join(VERDICTS)}")
    if verdict == "not run":
        return
    if not scope.strip():
        raise ValueError('scope is empty: say where the verdict is valid, such as "digits"')
    decides = verdict != "not decided"
    if decides and _number(measured) is None:
        raise ValueError(f"measured={measured!r} decides nothing: record it as 'not decided'")
    needed = claims()[claim_id]["decided_by"]
    if decides and needed and scope.split(",")[0].strip().lower() != needed.lower():
        raise ValueError(
            f"scope={scope!r} cannot decide {claim_id}, a claim about {needed}: "
            "record it as 'not decided' and say in the note what was seen"
        )


def _number(value: float | None) -> float | None:
    """A plain finite float, or None: JSON knows neither NaN nor NumPy's and torch's scalars."""
    return float(value) if value is not None and math.isfinite(value) else None
