"""Kept outputs: logits of several networks on the same pictures, in one file."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ttm_lab.analysis import evaluate, predict
from ttm_lab.course.paper_rows import TrainedPair, save_note
from ttm_lab.data import Dataset
from ttm_lab.files import atomic_write, user_path


@dataclass(frozen=True)
class Outputs:
    """Logits of several networks on the same pictures, with what tells the networks apart.

    ``models`` has a row for each network with the columns method, temperature, distill_weight
    (both nan where a method has none) and seed; the teacher's method is ``"teacher"``. ``logits``
    (M, N, K), ``labels`` (N,), ``class_names`` K words, ``pictures`` (N,) the pictures'
    positions in the part of the data set they come from.

    Raises ``ValueError`` or ``TypeError`` where these do not fit together.
    """

    models: pd.DataFrame
    logits: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    pictures: np.ndarray

    COLUMNS = ("method", "temperature", "distill_weight", "seed")

    def __post_init__(self):
        shape = np.shape(self.logits)
        wanted = (len(self.models), len(self.labels), len(self.class_names))
        if shape != wanted or len(self.pictures) != len(self.labels):
            raise ValueError(
                f"logits have shape {shape}; {wanted[0]} models, {wanted[1]} labels, "
                f"{len(self.pictures)} pictures and {wanted[2]} class names want {wanted}"
            )
        missing = set(self.COLUMNS) - set(self.models.columns)
        if missing:
            raise ValueError(f"models lack the columns {sorted(missing)}")
        for row in self.logits:
            evaluate(row, self.labels)  # which refuses what is neither logits nor labels

    def teacher(self) -> np.ndarray:
        """The teacher's logits (N, K)."""
        rows = np.flatnonzero(self.models["method"] == "teacher")
        if not len(rows):
            raise ValueError("no row of these outputs is a teacher's")
        return self.logits[rows[0]]

    def kinds(self) -> dict[str, np.ndarray]:
        """The students' rows by kind: a method with its temperature and weight, over all seeds."""
        found: dict[str, list[int]] = {}
        for row, model in enumerate(self.models.to_dict("records")):
            if model["method"] == "teacher":
                continue
            name = model["method"]
            if pd.notna(model["temperature"]):
                name += f", T = {model['temperature']:g}, weight {model['distill_weight']:.3g}"
            found.setdefault(name, []).append(row)
        return {name: np.array(rows) for name, rows in found.items()}

    def save(self, path: str | Path) -> None:
        """Write a compressed ``.npz`` with the logits in float16: no pickle, no code.

        Logits above 65,504, which float16 does not reach, are kept as they are.
        """
        buffer = io.BytesIO()
        small = np.abs(self.logits).max() <= np.finfo(np.float16).max
        columns = {f"model_{name}": self.models[name].to_numpy() for name in self.COLUMNS}
        columns["model_method"] = columns["model_method"].astype(str)
        np.savez_compressed(
            buffer,
            logits=self.logits.astype(np.float16) if small else self.logits,
            labels=self.labels.astype(np.min_scalar_type(len(self.class_names))),
            class_names=np.array(self.class_names, dtype=str),
            pictures=self.pictures,
            **columns,
        )
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Outputs":
        """Read what ``save`` wrote; float16 logits come back as float32.

        Raises ``FileNotFoundError``, or ``ValueError`` where the file is damaged or another kind.
        """
        try:
            with np.load(user_path(path), allow_pickle=False) as file:
                found = dict(file)
            models = pd.DataFrame({name: found[f"model_{name}"] for name in cls.COLUMNS})
            names = tuple(map(str, found["class_names"]))
            logits, labels = found["logits"], found["labels"].astype(np.int64)
            logits = logits.astype(np.promote_types(logits.dtype, np.float32))
            return cls(models, logits, labels, names, found["pictures"])
        except FileNotFoundError:
            raise
        except Exception as error:  # a torn archive fails in many ways
            raise ValueError(
                f"{path} is no file of outputs, or it is damaged ({error}); make it again or take "
                "it from the repository again"
            ) from error


def collect_outputs(
    teacher, students, data: Dataset, *, pictures: np.ndarray | None = None
) -> Outputs:
    """The outputs of a teacher and its students, ``Trained`` each, on the test part of ``data``.

    ``pictures`` are positions in the test part; by default all of them are asked about.
    """
    pictures = np.arange(len(data.test)) if pictures is None else np.asarray(pictures)
    rows, logits = [], []
    for one in (teacher, *students):
        found = one.settings
        rows.append(
            {
                "method": "teacher" if one is teacher else one.name,
                "temperature": np.nan if found.method == "ce" else found.temperature,
                "distill_weight": np.nan if found.method == "ce" else found.distill_weight,
                "seed": one.seed,
            }
        )
        logits.append(predict(one.model, data.test)[pictures])
    labels = np.asarray(data.test.labels)[pictures]
    names = tuple(data.class_names)
    return Outputs(pd.DataFrame(rows), np.stack(logits), labels, names, pictures)


def save_outputs(
    path: str | Path, row: TrainedPair, data: Dataset, per_class: int | None = None
) -> None:
    """Keep the logits of teacher and students on test (``Outputs``), and how, as JSON beside them.

    ``per_class`` keeps the first so many images of each class only.
    """
    labels = pd.Series(np.asarray(data.test.labels))
    images = labels.index if per_class is None else labels.groupby(labels).head(per_class).index
    collect_outputs(row.teacher, row.students, data, pictures=images.to_numpy()).save(path)
    save_note(path, row, data)
