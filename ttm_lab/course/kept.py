"""Kept results as evidence: the tables in ``data/results``, and the paper's own.

A table that is not there gives no entry, so it counts from the moment it appears.
"""

import json
import re
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ttm_lab.analysis import contrasts, paired_interval
from ttm_lab.course import compression, evidence, outliers, paper
from ttm_lab.files import find_root, read_table
from ttm_lab.training import Settings

# The arms of both tables under one name each. A tenth of the weight decay, with the learning rate
# searched, is ten times the loss (plans.py): "TTM" and "WTTM" are the losses as published.
NAMES = {
    "ce": "CE",
    "kd": "KD",
    "kd, decay / 10": "KD x 10",
    "ttm": "TTM / 10",
    "ttm, decay / 10": "TTM",
    "wttm, decay / 10": "WTTM",
    "kd, T = 1": "KD, T = 1",
    "ttm, no labels": "TTM, no labels",
    "wttm, no labels": "WTTM, no labels",
    "KD, wd 5e-4": "KD",
    "KD, wd 5e-5": "KD x 10",
    "TTM, wd 5e-4": "TTM / 10",
    "TTM, wd 5e-5": "TTM",
    "WTTM, wd 5e-5": "WTTM",
}
# By the paper's settings for a pair; KD with those of TTM, and the other way round, stand in the
# places of the scaled losses.
_ROW = {"ce": "CE", "kd": "KD", "ttm": "TTM", "wttm": "WTTM"}
_ROW |= {"kd as ttm": "KD x 10", "ttm as kd": "TTM / 10"}
_KD, _TTM = ["KD", "KD x 10"], ["TTM / 10", "TTM"]
# Every contrast that is judged on CIFAR-100, written so that its claim expects it to be positive:
# claim, measure, arms that should have more, arms that should have less (a mean over several). A
# table is judged by the claims of which it has all contrasts, all at once; those of no claim count.
CONTRASTS = {
    "TTM minus KD, KD's scale": ("B1", "accuracy", ["TTM / 10"], ["KD"]),
    "TTM minus KD, TTM's scale": ("B1", "accuracy", ["TTM"], ["KD x 10"]),
    "TTM minus KD, as published": ("B1", "accuracy", ["TTM"], ["KD"]),
    "entropy term": ("B13", "accuracy", _TTM, _KD),
    "TTM's scale minus KD's": ("", "accuracy", ["KD x 10", "TTM"], ["KD", "TTM / 10"]),
    "WTTM minus TTM": ("B2", "accuracy", ["WTTM"], ["TTM"]),
    "U minus U shuffled": ("B12", "accuracy", ["U"], ["U shuffled"]),
    "U shuffled minus U reversed": ("B12", "accuracy", ["U shuffled"], ["U reversed"]),
    "U minus equal weights": ("", "accuracy", ["U"], ["TTM"]),
    "WTTM without labels minus KD": ("B8", "accuracy", ["WTTM, no labels"], ["KD"]),
    "entropy term, entropy": ("B13", "entropy", _TTM, _KD),
    "TTM minus KD, late epochs": ("B4", "late entropy", ["TTM"], ["KD"]),
    "WTTM minus TTM, late epochs": ("B4", "late entropy", ["WTTM"], ["TTM"]),
    "CE minus KD": ("B6", "entropy", ["CE"], ["KD"]),
    "KD at T = 1 minus CE": ("B6", "entropy", ["KD, T = 1"], ["CE"]),
    "KD at T = 1 minus KD": ("B6", "entropy", ["KD, T = 1"], ["KD"]),
    "label smoothing minus CE": ("B6", "entropy", ["label smoothing"], ["CE"]),
    "accuracy gap, KD minus TTM": ("B7", "accuracy gap", ["KD"], ["TTM"]),
    "NLL gap, KD minus TTM": ("B7", "nll gap", ["KD"], ["TTM"]),
    "rescaled NLL gap, KD minus TTM": ("B7", "rescaled nll gap", ["KD"], ["TTM"]),
    # two arms: the divergence between a student of one and the next seed's of the other
    "between KD and TTM minus within": ("B14", "divergence", ["KD, TTM"], ["KD, KD", "TTM, TTM"]),
    "the same at one scale": (
        *("B14", "divergence"),
        ["KD x 10, TTM"],
        ["KD x 10, KD x 10", "TTM, TTM"],
    ),
}
# What the paper's CIFAR-100 tables are asked: claim, who should have more, and who less.
PUBLISHED = (
    ("B1", "TTM", "KD"),
    ("B2", "WTTM", "TTM"),
    ("B3", "WTTM+CRD", "CRD"),
    ("B3", "WTTM+CRD", "WTTM"),
    ("B3", "WTTM+ITRD", "ITRD"),
    ("B3", "WTTM+ITRD", "WTTM"),
    ("B8", "WTTM without CE", "KD"),
)
ROOM = 5.0  # "nearly the same cost": per cent of KD's time that a step may take more
# How the paper's tables call arms; the others are in none of them.
METHODS = {
    "CE": "student (plain training)",
    "KD": "KD",
    "TTM": "TTM",
    "WTTM": "WTTM",
    "WTTM, no labels": "WTTM without CE",
}
# Fields of Settings in which a run may differ from the paper's, in words.
FIELDS = {
    "epochs": "epochs",
    "temperature": "T",
    "distill_weight": "weight",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "batch_size": "batch size",
}


class Kept(NamedTuple):
    """A table of students on CIFAR-100.

    Attributes:
        students: by (seed, arm): accuracy in per cent, entropy, late entropy (the mean over the
            epochs after the first drop of the learning rate) and, where measured, the gaps of B7,
            and by (seed, two arms) the divergence of B14.
        recipe: by arm: precision, and the fields of ``FIELDS`` as far as they are known.
        pair: teacher and student.
        words: scope and what else ``evidence.entry`` shows.
    """

    students: pd.DataFrame
    recipe: pd.DataFrame
    pair: tuple[str, str]
    words: dict


def entries(folder: str | Path | None = None) -> list[dict]:
    """All entries for ``evidence.collect``: the paper's tables, and those that ``folder`` holds.

    ``folder`` is ``data/results`` of the checkout by default.
    """
    found = tables(folder)
    judged = [one for table in found for one in judge(table)]
    own = compression.entries(folder) + unknown_pictures(found, folder) + sequences(folder)
    return published() + judged + step_costs(folder) + own


def tables(folder: str | Path | None = None) -> list[Kept]:
    """The tables in ``folder``; one that cannot be read is left out with a warning."""
    folder = Path(folder or find_root() / "data" / "results")
    found = []
    readers = (
        ("cifar100_gpu.csv", read_gpu),
        ("cifar100-2x2.csv", read_plan),
        ("cifar100_row.csv", read_row),
    )
    for name, read in readers:
        if (folder / name).exists():
            try:
                table = read(folder / name)
                judge(table)
                found.append(table)
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                told = f"{type(error).__name__}: {error}"
                warnings.warn(f"{folder / name} is left out ({told})", stacklevel=2)
    return found


def read_gpu(path: Path) -> Kept:
    """The table of ``benchmarks/gpu.py train``, with the files of its name beside it."""
    note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    rows, search = read_table(path), read_table(path.with_stem(f"{path.stem}_search"))
    recipe = pd.DataFrame(note["settings"]).T.rename(NAMES)
    epochs, seeds = int(rows["epoch"].max()), rows["seed"].nunique()
    rows["arm"] = rows["arm"].replace(NAMES)
    last = rows[rows["epoch"] == epochs].set_index(["seed", "arm"])
    late = rows[rows["epoch"] > _first_drop(epochs)].groupby(["seed", "arm"])["validation_entropy"]
    students = pd.DataFrame(
        {
            "accuracy": 100 * last["validation_accuracy"],
            "entropy": last["validation_entropy"],
            "late entropy": late.mean(),
        }
    )
    pair = note["teacher"]["model"], recipe["model"].iloc[0]
    words = {
        "scope": f"CIFAR-100, {' to '.join(pair)}, {seeds} seeds, {epochs} epochs, validation part",
        "command": note["command"],
        "settings": f"learning rates of {search['arm'].str.split(' @').str[0].nunique()} arms "
        f"tuned among {search['rate'].nunique()} on the same validation pictures, with "
        f"{search['seed'].nunique()} other seed, and taken over by the other arms; temperature "
        "and weights fixed",
        "teachers": 1,
        "note": f"{recipe['precision'].iloc[0]}; {note['data']}; teacher: "
        f"{note['teacher']['source']}; {note['date']}, {note['machine']}; the list of contrasts "
        "was written down when the runs had been made",
        "notebook": "09_does_it_hold",
    }
    return Kept(students, recipe, pair, words)


def read_plan(path: Path) -> Kept:
    """The table of the plan ``cifar100-2x2``: seeds that have all arms of it."""
    rows = read_table(path)
    rows["arm"] = rows["arm"].replace(NAMES)
    rows = rows.dropna(subset=["accuracy"])
    arms = rows.groupby("seed")["arm"].transform("nunique")
    rows = rows[arms == rows["arm"].nunique()].set_index(["seed", "arm"])
    row, seeds = rows.iloc[0], rows.index.get_level_values("seed").nunique()
    courses = rows["entropy_by_epoch"].str.split().map(lambda words: np.array(words, float))
    courses = courses.combine(rows["epochs"], lambda course, epochs: course[_first_drop(epochs) :])
    students = pd.DataFrame(
        {
            "accuracy": 100 * rows["accuracy"],
            "entropy": rows["entropy"],
            "late entropy": courses.map(np.mean),
            "accuracy gap": 100 * (rows["train_accuracy"] - rows["accuracy"]),
            "nll gap": rows["nll"] - rows["train_nll"],
            "rescaled nll gap": rows["rescaled_nll"] - rows["rescaled_train_nll"],
        }
    )
    if (beside := path.with_stem(f"{path.stem}_distances")).exists():
        students = pd.concat([students, _distances(beside)])
    pair, part = tuple(row["pair"].split(":")), row["part"]
    words = {
        "scope": f"CIFAR-100, {' to '.join(pair)}, {seeds} seeds, {row['epochs']} epochs, "
        f"{part} part",
        "command": row["command"],
        "settings": "learning rates tuned for each arm on the validation part, with another seed; "
        "temperature and weights fixed",
        "teachers": 1,
        "note": f"{row['precision']}; {row['date']}, {row['hardware']}",
        "notebook": "09_does_it_hold",
    }
    return Kept(students, rows.groupby("arm").first(), pair, words)


def read_row(path: Path) -> Kept:
    """The table of ``benchmarks/gpu.py keep``, with the files of its name beside it."""
    note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    recipe = pd.DataFrame(note["settings"]).T.rename(_ROW)
    rows, history = read_table(path), read_table(path.with_stem(f"{path.stem}_history"))
    epochs, seeds = int(history["epoch"].max()), rows["seed"].nunique()
    late = history[history["epoch"] > _first_drop(epochs)].groupby(["seed", "arm"])
    rows = rows.set_index(["seed", "arm"])
    students = pd.DataFrame(
        {
            "accuracy": 100 * rows["accuracy"],
            "entropy": rows["entropy"],
            "late entropy": late["train_entropy"].mean(),
        }
    ).rename(_ROW, level="arm")
    pair = note["teacher"]["model"], recipe["model"].iloc[0]
    words = {
        "scope": f"CIFAR-100, {' to '.join(pair)}, {seeds} seeds, {epochs} epochs, test part",
        "command": note["command"],
        "settings": "the paper's for this pair, but for the number of epochs; KD's and TTM's also "
        "exchanged: what is called scale here is label weight, weight and temperature",
        "teachers": 1,
        "note": f"{recipe['precision'].iloc[0]}; {note['data']}; late entropy on training "
        f"pictures; teacher: {note['teacher']['source']}; {note['date']}, {note['machine']}",
        "notebook": "09_does_it_hold",
    }
    return Kept(students, recipe, pair, words)


def _distances(path: Path) -> pd.DataFrame:
    """By (seed, two arms in the order of the alphabet): the mean divergence, both ways round."""
    rows = read_table(path)
    names = rows[["arm", "next_arm"]].replace(NAMES).to_numpy()
    rows["arm"] = [", ".join(sorted(pair)) for pair in names]
    return rows.groupby(["seed", "arm"])[["divergence"]].mean()


def _first_drop(epochs: int) -> int:
    """How many epochs the recipe's first learning rate lasts."""
    schedule = Settings("resnet20", epochs=epochs)
    rates = [schedule.learning_rate_at(epoch) for epoch in range(epochs)]
    return sum(rate == rates[0] for rate in rates)


def judged(table: Kept) -> pd.DataFrame:
    """``analysis.contrasts`` of ``CONTRASTS`` as far as a table goes, with claim and quantity."""
    wide = table.students.unstack("arm")
    lacking = {
        name: claim
        for name, (claim, measure, more, less) in CONTRASTS.items()
        if not {(measure, arm) for arm in more + less} <= set(wide.columns)
    }
    differences, rows = {}, []
    for name, (claim, measure, more, less) in CONTRASTS.items():
        # a part of a claim judges nothing
        if name not in lacking and (not claim or claim not in lacking.values()):
            differences[name] = wide[measure][more].mean(axis=1) - wide[measure][less].mean(axis=1)
            quantity = next(q for q in evidence.QUANTITIES if q in measure)
            rows.append({"claim": claim, "quantity": quantity})
    return contrasts(differences).join(pd.DataFrame(rows, columns=["claim", "quantity"]))


def judge(table: Kept) -> list[dict]:
    """The entries of a table: one a claim, of all its contrasts."""
    return [
        evidence.entry(claim, rows, **table.words)
        for claim, rows in judged(table).groupby("claim", sort=False)
        if claim
    ]


def published() -> list[dict]:
    """The paper's tables as evidence: differences of two methods, in pairs over network pairs.

    Of its CIFAR-100 pairs the interval is a t interval of the mean over pairs, and for WTTM minus
    TTM, of which all spreads are published, also that of the pooled difference, in which pairs
    weigh by their precision. Of ImageNet single numbers without a spread are published, which
    decide nothing.
    """
    results = paper.results()
    cifar = results[results["dataset"] == "CIFAR-100"]
    top1 = cifar.pivot(index=["teacher", "student"], columns="method", values="top1")
    differences = {f"{more} minus {less}": top1[more] - top1[less] for _, more, less in PUBLISHED}
    differences = {name: d.dropna() for name, d in differences.items()}
    found = contrasts(differences, contrasts=len(PUBLISHED) + 1)
    found["claim"] = [claim for claim, *_ in PUBLISHED]
    pooled = evidence.pooled_difference("WTTM", "TTM")
    half = stats.norm.isf(0.025 / found["contrasts"].iloc[0]) * pooled["error"]
    ends = {"low": pooled["pooled"] - half, "high": pooled["pooled"] + half}
    row = {"name": "WTTM minus TTM, pooled by inverse variance", "difference": pooled["pooled"]}
    row |= ends | {"p": 2 * stats.norm.sf(abs(pooled["z"])), "claim": "B2"}
    found = pd.concat([found, pd.DataFrame([row])]).assign(quantity="accuracy")
    made = []
    for claim, rows in found.groupby("claim"):
        counts = (
            f"{name} is positive in {(differences[name] > 0).sum()} of {len(differences[name])}"
            for name in rows["name"]
            if name in differences
        )
        about = partial(evidence.entry, claim, scope="published tables, pairs of CIFAR-100")
        made.append(about(rows, note=f"{'; '.join(counts)} pairs", **_PAPER))
    top1 = results[results["dataset"] == "ImageNet"].set_index("method")
    ladder = top1[top1["source"].str.contains("Table 7")]["top1"]
    deit = top1[top1["student"] == "DeiT-Tiny"]["top1"]
    single = {
        "B9": {
            "WTTM, largest minus smallest teacher": ladder["WTTM"].iloc[-1]
            - ladder["WTTM"].iloc[0],
            "KD, smallest minus largest teacher": ladder["KD"].iloc[0] - ladder["KD"].iloc[-1],
        },
        "B11": {
            "NKD minus KD": deit["NKD"] - deit["KD"],
            "WTTM minus NKD": deit["WTTM"] - deit["NKD"],
        },
    }
    for claim, values in single.items():
        rows = contrasts({name: [value] for name, value in values.items()})
        rows = rows.assign(quantity="accuracy")
        scope = "published tables, ImageNet"
        note = "single numbers: neither spread nor number of runs is published"
        made.append(evidence.entry(claim, rows, scope=scope, note=note, **_PAPER))
    return made


def step_costs(folder: str | Path | None = None) -> list[dict]:
    """Claim B10, a pair at a time, from the table of ``benchmarks/step_cost.py``."""
    path = Path(folder or find_root() / "data" / "results") / "step_cost.csv"
    if not path.exists():
        return []
    made = []
    for (teacher, student), rows in read_table(path).groupby(["teacher", "student"]):
        wide = rows.pivot(index="round", columns="method", values=["ms", "megabytes"])
        more = {m: 100 * (wide["ms"][m] / wide["ms"]["KD"] - 1) for m in ("TTM", "WTTM")}
        found = contrasts(
            {f"{ROOM:g} % minus what {m} adds to KD": ROOM - x for m, x in more.items()}
        )
        memory = (wide["megabytes"][m].mean() / wide["megabytes"]["KD"].mean() for m in more)
        told = " and ".join(f"{ratio:.3f}" for ratio in memory)
        row = rows.iloc[0]
        made.append(
            evidence.entry(
                "B10",
                found.assign(quantity="cost"),
                scope=f"CIFAR-100, {teacher} to {student}, {len(wide)} rounds of single steps, "
                "far from an epoch",
                note=f"memory of a step: TTM and WTTM {told} times KD's; {row['date']}, "
                f"{row['hardware']}",
                command=row["command"],
                notebook="09_does_it_hold",
            )
        )
    return made


def unknown_pictures(found: list[Kept], folder: str | Path | None = None) -> list[dict]:
    """Claim C13 from the table of ``benchmarks/outliers.py``: one entry a model.

    ``found`` are the ``tables``, which say how a model's students were trained; those of a model
    that no table has are left out.
    """
    path = Path(folder or find_root() / "data" / "results") / outliers.TABLE
    if not path.exists():
        return []
    rows, notes = outliers.read(path), json.loads(path.with_suffix(".json").read_text("utf-8"))
    made = []
    for model, part in rows.groupby("model"):
        # the kept students are those of the first table
        table = next((table for table in found if table.pair[1] == model), None)
        judged = outliers.judged(part) if table else []
        if len(judged):
            teacher = table.pair[0]
            epochs = re.search(r"\d+ epochs", table.words["scope"])[0]
            note = notes[model]
            pictures = ", ".join(f"{count:,} of {name}" for name, count in note["pictures"].items())
            entry = evidence.entry(
                "C13",
                judged,
                scope=f"CIFAR-100, {teacher} to {model}, {int(judged['seeds'].max())} seeds, "
                f"{epochs}, beside pictures of other sets",
                note=f"{pictures}; {note['date']}, {note['hardware']}",
                command=note["command"],
                settings="settings of the kept students; KD and TTM differ in weight decay, too",
                teachers=1,
                notebook="13_outliers",
            )
            made.append(entry)
    return made


# What is asked of students of a language model: claim, quantity, column of the table, and the arms
# that should have more and less. The one of no claim counts among those judged at once.
TOKENS = {
    "late entropy, TTM minus KD": ("B4", "entropy", "late_entropy", "ttm", "kd"),
    "late entropy, WTTM minus TTM": ("B4", "entropy", "late_entropy", "wttm", "ttm"),
    "cross-entropy, KD minus TTM": ("C14", "nll", "cross_entropy", "kd", "ttm"),
    "cross-entropy, KD minus WTTM": ("C14", "nll", "cross_entropy", "kd", "wttm"),
    "cross-entropy, TTM at T = 4 minus TTM": ("", "nll", "cross_entropy", "ttm4", "ttm"),
}


def judged_tokens(rows: pd.DataFrame) -> pd.DataFrame:
    """``analysis.contrasts`` of ``TOKENS`` for students of one size, with claim and quantity."""
    differences, about = {}, []
    for name, (claim, quantity, measure, more, less) in TOKENS.items():
        wide = rows.pivot(index="seed", columns="arm", values=measure)
        differences[name] = wide[more] - wide[less]
        about.append({"claim": claim, "quantity": quantity})
    return contrasts(differences).join(pd.DataFrame(about))


def sequences(folder: str | Path | None = None) -> list[dict]:
    """Claims on sequences, from the table of ``benchmarks/tokens.py``: a scope a student's size."""
    path = Path(folder or find_root() / "data" / "results") / "stories_tokens.csv"
    if not path.exists():
        return []
    note, made = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), []
    rows = read_table(path)
    for size, group in rows[rows["size"] != "teacher"].groupby("size"):
        words = {
            "scope": f"sequences, stories260K to a {size} of it, {group['seed'].nunique()} seeds",
            "note": f"{note['text']}; KD at T = 2, TTM and WTTM by the rule: {note['rule']}; "
            f"{note['date']}, {note['machine']}",
            "settings": note["training"],
            "command": note["command"],
            "teachers": 1,
            "notebook": "14_tokens",
        }
        for claim, found in judged_tokens(group).groupby("claim"):
            if claim:
                made.append(evidence.entry(claim, found, **words))
    return made


_PAPER = {
    "settings": "TTM and WTTM tuned for each pair, KD and most others quoted at fixed settings",
    "command": "python -c 'from ttm_lab.course import kept; print(kept.published())'",
}


def beside_the_paper(found: list[Kept]) -> pd.DataFrame:
    """Accuracies of ``tables`` for pairs and methods that the paper has: a row each.

    teacher, student, method (as the paper's table calls it), mean with its 95 % t interval over
    seeds (low, high), runs, and what ``differs`` from the paper's run.
    """
    rows = []
    for table in found:
        teacher, student = table.pair
        if not len(paper.published_row(teacher, student, "CIFAR-100")):
            continue
        part = table.words["scope"].split(", ")[-1]
        for arm, method in METHODS.items():
            if arm in table.students.index.get_level_values("arm"):
                values = table.students.xs(arm, level="arm")["accuracy"]
                row = dict(zip(("mean", "low", "high"), paired_interval(values), strict=True))
                row |= {"teacher": teacher, "student": student, "method": method}
                differs = _differences(teacher, student, method, table.recipe.loc[arm])
                rows.append(row | {"runs": len(values), "differs": f"{part}; {differs}"})
    columns = ["teacher", "student", "method", "mean", "low", "high", "runs", "differs"]
    return pd.DataFrame(rows, columns=columns)


def _differences(teacher: str, student: str, method: str, used: pd.Series) -> str:
    """In which settings a run differs from the paper's, at the scale of the paper's loss."""
    name = {METHODS["CE"]: "ce", METHODS["WTTM, no labels"]: "wttm"}.get(method, method.lower())
    settings = vars(paper.settings(teacher, student, name))
    table = paper.hyperparameters()
    table = table[(table["teacher"] == teacher) & (table["student"] == student)]
    if (exponent := table[table["method"] == method]["exponent"]).notna().any():
        settings = settings | {"temperature": 1 / exponent.iloc[0]}
    scale = settings["weight_decay"] / used["weight_decay"]
    used = used.to_dict() | {"weight_decay": settings["weight_decay"]}
    used["learning_rate"] /= scale
    if name != "ce":
        used["distill_weight"] *= scale
    told = [] if used["precision"] == settings["precision"] else [used["precision"]]
    for field, words in FIELDS.items():
        if field not in used or (name == "ce" and field in ("temperature", "distill_weight")):
            continue
        ours, theirs = f"{used[field]:.4g}", f"{settings[field]:.4g}"
        if field == "distill_weight" and method == METHODS["WTTM, no labels"]:
            theirs = "not published"
        if ours != theirs:
            told.append(f"{words} {ours} (paper: {theirs})")
    return ", ".join(told)
