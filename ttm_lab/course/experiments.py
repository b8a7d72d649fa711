"""Many trainings: plans of runs, what they cost, and a row of results for each.

A plan is a list of runs in plain Python, found by its name in ``PLANS``. Runs of one pair and seed
train together (``training.distill_many``), several seeds at once (``engine.run_tasks``). Each run
leaves a row in ``data/results/<plan>.csv``, and what has a row there is not made again; what was
trained and has none is loaded from its run folder and measured.
"""

import base64
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from ttm_lab import runs
from ttm_lab.analysis import evaluate, fit_temperature, predict
from ttm_lab.course.engine import run_tasks
from ttm_lab.course.paper import mean_power_sum
from ttm_lab.data import Dataset, Split
from ttm_lab.files import FileLock, atomic_write, find_root, read_table, runs_folder
from ttm_lab.models import create_model
from ttm_lab.objectives import make_objective
from ttm_lab.training import NUMERICS, Diverged, Settings, Trained, distill_many


class Run(NamedTuple):
    """One training: ``pair`` is TEACHER:STUDENT, and the name of ``settings`` is the arm's.

    With ``by_mean_weight`` the distill weight is divided by the teacher's mean U, once it is known.
    """

    pair: str
    settings: Settings
    seed: int
    by_mean_weight: bool = False


@dataclass(frozen=True)
class Plan:
    """Runs that belong together.

    Attributes:
        name: of the table of results and the folder of runs.
        runs: all of them; those of one pair and seed share batches and teacher passes.
        source: ``source(pair, seed, root)`` gives the teacher and the data; found by import.
        known_by: what tells teacher and data from others, in values that JSON knows.
        shape: pictures to train on, channels, height, width, and classes, for the cost.
        part: of the data, ``"test"``, or ``"validation"`` where something is chosen by the rows.
    """

    name: str
    runs: tuple[Run, ...]
    source: Callable[[str, int, str | None], tuple[Trained, Dataset]]
    known_by: object
    shape: tuple[int, int, int, int, int]
    part: str = "test"

    def key(self, run: Run) -> str:
        """What a run's row is known by: twelve hexadecimal digits of all that decides it."""
        s = run.settings
        objective = make_objective(
            s.method,
            temperature=s.temperature,
            ce_weight=s.ce_weight,
            distill_weight=s.distill_weight,
        )
        values = asdict(replace(s, method="ce")) | {"label": "-"}  # as kept rows are known by
        del values["name"]
        config = [run.pair, run.seed, run.by_mean_weight, values, objective.identity()]
        return runs.identity({"run": config, "of": [self.known_by, self.part, NUMERICS]})

    def table(self, results: str | Path | None = None) -> Path:
        """The file of its rows, in the folder ``results`` (default: the checkout's)."""
        return Path(results or find_root() / "data" / "results") / f"{self.name}.csv"

    def rows(self, results: str | Path | None = None) -> pd.DataFrame:
        """The rows that are there."""
        path = self.table(results)
        rows = read_table(path) if path.exists() else pd.DataFrame(columns=["key"])
        if "key" not in rows:
            raise ValueError(f"{path} is no table of runs: move it away, or name another folder")
        return rows


def overview(plan: Plan, *, results: str | Path | None = None) -> pd.DataFrame:
    """A row a run: pair, arm, seed, learning_rate, weight_decay, epochs, minutes, and done.

    ``minutes`` is measured here and now, with this process's threads: see ``seconds_a_step``.
    """
    done, costs, table = set(plan.rows(results)["key"]), {}, []
    for run in plan.runs:
        s, together = run.settings, (run.pair, run.seed)
        group = [r for r in plan.runs if (r.pair, r.seed) == together]
        kind = run.pair, *(replace(r.settings, name="-") for r in group)
        if kind not in costs:
            costs[kind] = seconds_a_step(group, plan.shape) / len(group)
        steps = s.max_steps or s.epochs * math.ceil(plan.shape[0] / s.batch_size)
        row = {"pair": run.pair, "arm": s.name, "seed": run.seed}
        row |= {name: getattr(s, name) for name in ("learning_rate", "weight_decay", "epochs")}
        minutes = steps * costs[kind] / 60
        table.append(row | {"minutes": minutes, "done": plan.key(run) in done})
    return pd.DataFrame(table)


def seconds_a_step(group: Sequence[Run], shape: tuple, steps: int = 4) -> float:
    """Seconds that one step of these runs together takes here, on random pictures."""
    size, (_, *picture, classes) = max(r.settings.batch_size for r in group), shape
    count = size * (steps + 1)
    images = torch.randint(256, (count, *picture), dtype=torch.uint8)
    scale = {"mean": (0.5,) * picture[0], "std": (0.25,) * picture[0]}
    split = Split(images, torch.arange(count) % classes, **scale)
    empty = Split(images[:0], split.labels[:0], **scale)
    data = Dataset("random", 0, tuple(map(str, range(classes))), split, empty, split)
    teacher = create_model(group[0].pair.split(":")[0], classes)

    def seconds(last: int) -> float:
        start = time.perf_counter()
        wanted = [replace(r.settings, max_steps=last, learning_rate=1e-6) for r in group]
        distill_many(teacher, data, list(dict.fromkeys(wanted)), progress=False)
        return time.perf_counter() - start

    seconds(1)  # what is loaded at first use
    return max(seconds(1 + steps) - seconds(1), 1e-9) / steps


def execute(
    plan: Plan,
    *,
    seeds: Sequence[int] | None = None,
    root: str | None = None,
    results: str | Path | None = None,
    **options,
) -> Iterator[tuple[list[Run], dict[str, str]]]:
    """Train and measure what has no row yet (of ``seeds`` only), and add the rows to the table.

    ``root`` is where the pictures are; ``options`` are those of ``engine.run_tasks``. Yields, as
    they end, the runs of a pair and seed and what went wrong, by arm: the others have their rows.
    The same call goes on where another was stopped. A run that diverged has a row without measures.
    """
    done, folder = set(plan.rows(results)["key"]), runs_folder(plan.name)
    left = [r for r in plan.runs if plan.key(r) not in done and (seeds is None or r.seed in seeds)]
    groups = groupby(sorted(left, key=lambda r: (r.seed, r.pair)), lambda r: (r.seed, r.pair))
    tasks = [(plan, list(group), root, folder) for _, group in groups]
    with closing(run_tasks(train_group, tasks, **options)) as ended:
        for (_, group, *_), found, error in ended:
            rows, failed = found or ([], {r.settings.name: str(error) for r in group})
            if rows:
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / ".rows.lock"):  # several machines may share both folders
                    there = plan.rows(results)
                    # an empty table would make floats of seeds
                    table = pd.concat(
                        [there, pd.DataFrame(rows)] if len(there) else [pd.DataFrame(rows)]
                    )
                    table = table.drop_duplicates("key", keep="last")
                    table = table.sort_values(["pair", "seed"], kind="stable")
                    atomic_write(plan.table(results), table.to_csv(index=False))
            yield group, failed


def train_group(
    plan: Plan, group: list[Run], root: str | None, folder: Path
) -> tuple[list[dict], dict[str, str]]:
    """Train and measure the runs of one pair and seed: their rows, and by arm what went wrong."""
    pair, seed = group[0].pair, group[0].seed
    teacher, data = plan.source(pair, seed, root)
    wanted = {}
    for run in group:
        s = run.settings
        mean = mean_power_sum(teacher, data, s.temperature) if run.by_mean_weight else None
        wanted[run] = replace(s, distill_weight=s.distill_weight / mean) if mean else s
    diverged = ""
    try:
        students = distill_many(
            teacher, data, [*wanted.values()], seeds=[seed], folder=folder, progress=False
        )
    except Diverged as error:
        students, diverged = error.trained, str(error)
    except Exception as error:
        if len(group) == 1:
            return [], {group[0].settings.name: f"{type(error).__name__}: {error}"}
        # alone, so that only what cannot be trained itself is missing
        alone = [train_group(plan, [run], root, folder) for run in group]
        failed = {arm: message for _, messages in alone for arm, message in messages.items()}
        return [row for rows, _ in alone for row in rows], failed
    trained = {student.settings: student for student in students}
    rows = []
    for run, s in wanted.items():
        row = {"key": plan.key(run), "pair": pair, "arm": s.name, "seed": seed, "part": plan.part}
        fields = ("temperature", "ce_weight", "distill_weight", "learning_rate", "weight_decay")
        row |= {name: getattr(s, name) for name in (*fields, "epochs", "precision")}
        row |= measure(trained[s], data, plan.part) if s in trained else {"diverged": diverged}
        rows.append(row | _provenance(plan))
    return rows, {}


def measure(student: Trained, data: Dataset, part: str) -> dict:
    """What a student's row says of it, on a part of ``data``: numbers, and two texts.

    The columns of ``analysis.evaluate``; ``fitted_temperature``, fitted on validation, and the same
    columns after it (``rescaled_...``); accuracy and NLL on train, and that NLL rescaled;
    ``entropy_by_epoch``, the validation part's; and ``correct``, picture by picture: see
    ``unpack_correct``.
    """
    split = getattr(data, part)
    logits, labels = predict(student.model, split), np.asarray(split.labels)
    held_out = predict(student.model, data.validation)
    fitted = fit_temperature(held_out, data.validation.labels)
    train = predict(student.model, data.train)
    measured = dict(evaluate(logits, labels))
    after = {f"rescaled_{k}": v for k, v in evaluate(logits / fitted, labels).items()}
    for name, values in (("train", train), ("rescaled_train", train / fitted)):
        found = evaluate(values, data.train.labels)
        after |= {f"{name}_{k}": found[k] for k in ("accuracy", "nll")}
    correct = np.packbits(logits.argmax(1) == labels)
    epochs = [f"{value:.5g}" for value in student.history["validation_entropy"]]
    return {
        "run": student.folder and student.folder.name,
        **measured,
        "fitted_temperature": fitted,
        **after,
        "entropy_by_epoch": " ".join(epochs),
        "pictures": len(labels),
        "correct": base64.b64encode(correct).decode(),
    }


def unpack_correct(text: str, pictures: int) -> np.ndarray:
    """A row's column ``correct`` as booleans (pictures,), in the order of the part."""
    packed = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(packed, count=int(pictures)).astype(bool)


def _provenance(plan: Plan) -> dict:
    e = runs.environment()
    processor = torch.cpu.get_capabilities().get("cpu_name") or e["processor"]
    packages = {"python": e["python"], **e["packages"]}
    return {
        "command": f"ttm-lab plan {plan.name} --execute",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{e['gpu'] or processor}, {torch.get_num_threads()} of {e['cores']} threads",
        "versions": " ".join(f"{name}={version}" for name, version in packages.items() if version),
        "commit": e["git_commit"],
    }
