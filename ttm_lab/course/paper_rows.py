"""Rows of the paper's tables made anew: a pair's teacher, its students, and their accuracies.

The settings are those of ``course.paper``. ``ttm-lab distill`` makes a row with one command.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from ttm_lab import runs
from ttm_lab.analysis import evaluate, paired_interval, predict
from ttm_lab.course.paper import (
    TEMPERATURE,
    mean_power_sum,
    published_loss,
    published_row,
    settings,
    teacher_settings,
)
from ttm_lab.course.teachers import fetch_teacher
from ttm_lab.data import Dataset
from ttm_lab.files import atomic_write, short, user_path
from ttm_lab.models import create_model, load_weights, model_name
from ttm_lab.training import Settings, Trained, distill_many, train_teacher

# The paper's data sets, by their names here and numbers of classes.
_DATASETS = {("cifar100", 100): "CIFAR-100", ("imagenet", 1000): "ImageNet"}


class TrainedPair(NamedTuple):
    """A teacher and the students that learned from it."""

    teacher: Trained
    students: list[Trained]


def teacher_folder(data: Dataset, model: str) -> str:
    """The folder's name below ``runs/`` for teachers of one network and data set."""
    return short(f"{data.name}-{model_name(model).replace('/', '-')}")


def check_pair(
    teacher: str,
    student: str,
    methods: Sequence[str] = ("ce", "kd", "ttm", "wttm"),
    *,
    seeds: Sequence[int] = (0,),
    weights: str | Path | None = None,
    changes: dict | None = None,
) -> None:
    """Check the arguments of ``distill_pair`` before data are loaded or a teacher is trained.

    Published CIFAR-100 weights, if asked for, are fetched here already.

    Raises ``ValueError`` for an unknown network or method, a repeated method or seed, and settings
    that make no sense or are not published; ``FileNotFoundError`` for weights that are not there;
    ``ImportError`` where timm is needed and absent; what ``load_teacher`` raises.
    """
    for name in (teacher, student):
        check_model(name)
    for name, values in (("methods", list(methods)), ("seeds", list(seeds))):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name}={values} must be at least one, each different")
    if min(seeds) < 0:
        raise ValueError(f"seeds={list(seeds)} must not be negative")
    changes, weights = changes or {}, _default_weights(teacher, weights)
    for method in methods:
        settings(teacher, student, method, mean_weight=1.0, **_only_for(method, changes))
    teacher_settings(teacher, **_only_for("teacher", changes))
    if str(weights) == "published":
        _published_file(teacher)
    elif weights is not None:
        weights_file(weights)


def check_model(name: str) -> None:
    """Raise ``ValueError`` for a name that ``create_model`` does not know; nothing is built."""
    with torch.device("meta"):
        create_model(name)


def _default_weights(teacher: str, weights: str | Path | None) -> str | Path | None:
    """None stands for the published weights of ImageNet's networks; others are trained."""
    return "published" if weights is None and "/" in model_name(teacher) else weights


def weights_file(weights: str | Path) -> Path:
    """The file of weights at a path: the file itself, or a finished run folder's."""
    path = user_path(weights)
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: give a file of weights, the folder of a run, or published"
        )
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.exists():
            raise FileNotFoundError(
                f"{weights} holds no model.safetensors: it is not the folder of a finished run"
            )
    return path


def distill_pair(
    data: Dataset,
    teacher: str,
    student: str,
    methods: Sequence[str] = ("ce", "kd", "ttm", "wttm"),
    *,
    seeds: Sequence[int] = (0,),
    weights: str | Path | None = None,
    teacher_seed: int = 0,
    folder: str | Path | None = None,
    changes: dict | None = None,
    **options,
) -> TrainedPair:
    """Train or load a pair's teacher, then distil a student for each method and seed.

    Args:
        data: images and labels.
        teacher, student: names of networks, the paper's or ours.
        methods: see ``settings``.
        seeds: of the students, each different.
        weights: the teacher's weights: a file, the folder of a finished run, or ``"published"``
            (``load_teacher``). None takes the published ones for ImageNet's networks, and trains
            others by ``teacher_settings``, with ``teacher_seed`` and ``changes``.
        changes: fields of ``Settings`` to override; those of the loss do not reach CE and teacher.
        folder, options: as in ``training.distill_many``. The teacher's run goes beside ``folder``
            (``teacher_folder``), where other students find it.

    Raises what ``check_pair`` and ``training.distill_many`` raise.
    """
    changes = dict(changes or {})
    check_pair(teacher, student, methods, seeds=seeds, weights=weights, changes=changes)
    trained = obtain_teacher(
        data, teacher, weights, seed=teacher_seed, folder=folder, changes=changes, **options
    )
    mean_weight, known = None, published_loss(teacher, student, "wttm") | changes
    if "wttm" in methods and "/" not in model_name(student) and not known.get("distill_weight"):
        mean_weight = mean_power_sum(trained, data, changes.get("temperature", TEMPERATURE))
    wanted = [
        settings(teacher, student, m, mean_weight=mean_weight, **_only_for(m, changes))
        for m in methods
    ]
    return TrainedPair(
        trained, distill_many(trained, data, wanted, seeds=seeds, folder=folder, **options)
    )


def obtain_teacher(
    data: Dataset,
    teacher: str,
    weights: str | Path | None = None,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    changes: dict | None = None,
    **options,
) -> Trained:
    """The teacher of ``distill_pair``, with its arguments: loaded, found, or trained now."""
    weights = _default_weights(teacher, weights)
    if weights is not None:
        return load_teacher(teacher, weights, data.num_classes)
    folder = folder and Path(folder).parent / teacher_folder(data, teacher)
    settings = teacher_settings(teacher, **_only_for("teacher", changes or {}))
    return train_teacher(data, settings, seed=seed, folder=folder, **options)


def _only_for(method: str, changes: dict) -> dict:
    """The changes that concern a method, or a ``"teacher"``, who has none to ask."""
    loss = {"temperature", "distill_weight", "ce_weight"}
    out = {"teacher": loss | {"remember", "fold_batch_norm"}, "ce": loss}.get(method, set())
    return {name: value for name, value in changes.items() if name not in out}


def load_teacher(name: str, weights: str | Path, num_classes: int) -> Trained:
    """A trained network from a file of weights, from a finished run's folder, or as published.

    ``weights="published"`` takes the paper's own teachers for CIFAR-100 (``fetch_teacher``) and
    torchvision's first ImageNet weights, whose accuracies are the ones in the paper's tables.

    Raises ``ValueError`` for a network without published weights (which weights of DeiT III-Small
    the paper used is unknown) or for data of other classes, ``FileNotFoundError`` for weights that
    are not there, ``ConnectionError`` where they cannot be fetched.
    """
    ours, history, folder = model_name(name), pd.DataFrame(), None
    recipe, seed = teacher_settings(name), 0
    if str(weights) == "published":
        known = 1000 if "/" in ours else 100
        if num_classes != known:
            raise ValueError(
                f"the published weights of {name} tell {known} classes apart, these data have "
                f"{num_classes}: train a teacher on them, give its weights, or --fine-tune it"
            )
        path, model = _published_file(name), create_model(ours, num_classes)
    else:
        path, model = weights_file(weights), create_model(ours, num_classes)
        folder = user_path(weights) if user_path(weights).is_dir() else None
    if path is None:
        model.load_state_dict(_torchvision_weights(ours))
    elif folder is None:
        load_weights(model, path)
    else:
        config, history, _ = runs.load_finished(folder, model)
        if config["settings"]["method"] == "ce":
            try:
                recipe = Settings(**config["settings"], name="teacher")
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{folder / 'config.json'} holds settings of another version or none "
                    f"({error}): give {path} as a file of weights"
                ) from error
            seed = config["seed"]
    return Trained(model.eval(), recipe, seed, history, folder)


def _published_file(name: str) -> Path | None:
    """A CIFAR-100 teacher's file, fetched where it is not there; None for torchvision's networks.

    Raises ``ValueError`` for timm's: nobody says which of their weights the paper used.
    """
    ours = model_name(name)
    if "/" in ours and not ours.startswith("torchvision/"):
        raise ValueError(f"which weights of {name} the paper used is unknown: give a file")
    return None if "/" in ours else fetch_teacher(ours)


def _torchvision_weights(name: str) -> dict[str, torch.Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name.removeprefix("torchvision/")).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # torch's word for another checksum is RuntimeError
        raise ConnectionError(
            f"{weights.url} cannot be fetched ({error}): check the network, or download that file "
            "and name it as the teacher's weights (--teacher FILE)"
        ) from error


def measure(row: TrainedPair, data: Dataset) -> pd.DataFrame:
    """A row a network on the test part: the teacher (method "teacher"), then the students.

    The columns of ``analysis.evaluate``, and where the history has test columns (``track_test``)
    ``best_test_accuracy``: the best epoch's, chosen by looking at the test part, as published
    code reports it. ``dataset`` is the paper's name of the data where it is the paper's data, with
    all classes, else ``data.name``.
    """
    dataset = _DATASETS.get((data.name, data.num_classes), data.name)
    teacher_logits = predict(row.teacher.model, data.test)
    rows = []
    for one in (row.teacher, *row.students):
        if one is row.teacher:
            method, measured = "teacher", evaluate(teacher_logits, data.test)
        else:
            method, measured = one.name, evaluate(one, data.test, teacher=teacher_logits)
        if "test_accuracy" in one.history:
            # under autocast the history's last figure differs from this one's by rounding
            best = max(one.history["test_accuracy"].max(), measured["accuracy"])
            measured["best_test_accuracy"] = best
        rows.append({"method": method, "seed": one.seed, **measured, "dataset": dataset})
    return pd.DataFrame(rows)


def summarize(measured: pd.DataFrame, teacher: str, student: str) -> pd.DataFrame:
    """Measured accuracies beside the paper's: a row a method, in per cent.

    mean with its 95 % t interval over seeds (low, high; NaN for one seed), the number of seeds,
    the paper's top-1 and standard deviation where it has the pair on these data (the column
    ``dataset`` of ``measured``, see ``published_row``), else NaN. The interval is conditional on
    the one teacher.
    """
    datasets = set(measured["dataset"]) if "dataset" in measured else {""}
    if len(datasets) > 1:
        raise ValueError(f"measured on several data sets, {sorted(datasets)}: summarise one")
    rows = []
    for method, found in measured.groupby("method", sort=False):
        mean, low, high = paired_interval(100 * found["accuracy"])
        row = {"method": method, "accuracy": mean, "low": low, "high": high, "seeds": len(found)}
        if "best_test_accuracy" in found:
            row["best epoch on test"] = 100 * found["best_test_accuracy"].mean()
        rows.append(row)
    published = published_row(teacher, student, datasets.pop())[["top1", "std"]]
    published.columns = ["paper", "paper std"]
    return pd.DataFrame(rows).set_index("method").join(published)


def save_results(path: str | Path, row: TrainedPair, measured: pd.DataFrame, data: Dataset) -> None:
    """Keep a table: the measured numbers as CSV, and beside it a JSON file that says how.

    The JSON file (``path`` with the ending .json) has the command, date, hardware, versions, the
    settings of every method, what the data were, and the teacher's ``weights_fingerprint``, as the
    students' run folders have it. The home folder is written as ``~``.

    Raises ``ValueError`` for a path that does not end in .csv.
    """
    path = user_path(path)
    if path.suffix != ".csv":
        raise ValueError(f"{path} must end in .csv: beside it goes a file that ends in .json")
    atomic_write(path, measured.to_csv(index=False))
    save_note(path, row, data)


def save_note(path: str | Path, row: TrainedPair, data: Dataset) -> None:
    """Write how a row came about into the JSON file beside its results."""
    # how weights from a file were trained is not known
    trained = {s.name: s.settings for s in (row.teacher, *row.students) if len(s.history)}
    environment = dict(runs.environment())
    home = re.compile(rf"(?<![^\s'=]){re.escape(str(Path.home()))}(?=[/\\])")
    environment["command"] = home.sub("~", environment["command"])
    note = {
        "environment": environment,
        "data": {"name": data.name, "classes": data.num_classes, "split_seed": data.seed}
        | {split: len(getattr(data, split)) for split in ("train", "validation", "test")},
        "teacher": {
            "model": row.teacher.settings.model,
            "weights": runs.weights_fingerprint(row.teacher.model),
        },
        "settings": {name: vars(replace(s, name=name)) for name, s in trained.items()},
    }
    atomic_write(Path(path).with_suffix(".json"), json.dumps(note, indent=1))
