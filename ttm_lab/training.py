"""Train a teacher; distil one student, or many from one teacher pass.

Students of one seed share initial weights and the order of the images, so they are compared in
pairs, and each batch's teacher output is computed once for all of them. Everything random is
derived from (seed, epoch, step) instead of being carried along, so a student comes out the same
alone, in company, and after an interruption. Under ``torchrun`` (``ttm_lab.distributed``) the same
calls share every batch among the processes.
"""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from ttm_lab import distributed, runs
from ttm_lab.checks import check_data, check_network, check_objective, check_student
from ttm_lab.data import Dataset, FileSplit, Split
from ttm_lab.data.splits import hash_seed
from ttm_lab.models import create_model, logits_of
from ttm_lab.objectives import Output, make_objective, recorded
from ttm_lab.progress import Clock, Meter, Progress
from ttm_lab.settings import Settings, default_device, fast, whole_number
from ttm_lab.teacher import Teacher, autocast, logits_in_pieces, output_key

__all__ = [
    "Diverged",
    "Settings",
    "Student",
    "Trained",
    "distill",
    "distill_many",
    "fast",
    "find_runs",
    "train_teacher",
]

# Raise it with every change that changes the numbers of a training: it is part of a run's identity.
NUMERICS = 1


@dataclass(frozen=True)
class Trained:
    """A trained network with its settings, seed, history (a row an epoch) and run folder."""

    model: nn.Module
    settings: Settings
    seed: int
    history: pd.DataFrame
    folder: Path | None = None

    @property
    def name(self) -> str:
        return self.settings.name


class Diverged(FloatingPointError):
    """Some students' losses became infinite or NaN; ``trained`` holds the others."""

    def __init__(self, messages: Sequence[str], trained: list[Trained]):
        super().__init__("; ".join(messages) + ". Lower the learning rate or the distill weight.")
        self.trained = trained


def train_teacher(
    data: Dataset,
    settings: Settings,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    **options,
) -> Trained:
    """Train one network on the labels alone (cross-entropy).

    Same options as ``distill_many``.
    """
    if settings.method != "ce":
        raise ValueError(f"a teacher learns from labels: method={settings.method!r} must be 'ce'")
    return distill_many(None, data, [settings], seeds=[seed], folder=folder, **options)[0]


def distill(
    teacher: nn.Module | Trained,
    data: Dataset,
    settings: Settings,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    **options,
) -> Trained:
    """Train one student. Same options as ``distill_many``."""
    return distill_many(teacher, data, [settings], seeds=[seed], folder=folder, **options)[0]


def distill_many(
    teacher: nn.Module | Trained | None,
    data: Dataset,
    settings: Sequence[Settings],
    *,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    checkpoint_seconds: float = 30.0,
    remembered: str | Path | None = None,
    start: nn.Module | None = None,
) -> list[Trained]:
    """Train a student for each of ``settings`` and each seed, all from one teacher.

    Settings of one seed and batch size go through the data together and share every teacher
    pass. Each student is the one that ``distill`` alone would give.

    Args:
        teacher: a network or ``Trained``; put into eval mode and channels-last layout, gets no
            gradient. None only where every method is ``"ce"``.
        data: images and labels; metrics are taken on its train and validation parts, never on
            test, unless a setting says ``track_test``.
        settings: one ``Settings`` a student, each different.
        seeds: whole numbers; a seed decides initial weights and the order of the images.
        folder: where runs are kept and looked up (``files.runs_folder``); None keeps nothing. A
            finished run is loaded, a broken-off one resumed, and both end bit-identical to a run
            that was never interrupted (same machine, same number of threads).
        device: ``"cpu"``, ``"cuda"``, ...; default: a GPU if there is one.
        progress: True, False, or None: a bar at a screen, a line an epoch in a batch.
        checkpoint_seconds: least time between two resume points; 0 keeps one after every epoch.
        remembered: the folder of files with remembered logits, for settings with ``remember``
            (default: ``remembered`` beside ``folder``; in memory if that is None).
        start: a network whose weights all begin with, in place of those that the seed draws.

    Returns:
        The students in the order seeds x settings. Their ``history`` has one row an epoch: loss,
        ce_loss, distill_loss; accuracy, entropy (mean Shannon entropy of q, nats), confidence
        (mean largest q) and divergence (mean D(p_T || q), nats) with the prefixes ``train_`` (over
        the epoch, while the weights change) and ``validation_`` (after the epoch).

    Raises:
        ValueError: settings do not fit the data or the teacher.
        Diverged: a loss became infinite or NaN; raised after the other students are done.
    """
    settings, seeds = list(settings), [whole_number("seed", seed, 2**64) for seed in seeds]
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds {seeds} must not be negative")
    if not settings or not seeds:
        raise ValueError("there is nothing to train: give at least one Settings and one seed")
    if len(set(settings)) < len(settings) or len(set(seeds)) < len(seeds):
        labels = [s.name for s in settings]
        raise ValueError(f"settings {labels} and seeds {seeds} must each be different")
    device = default_device(device)
    check_data(data, settings)
    data, teacher, students = _prepare(teacher, data, settings, seeds, folder, device, start)
    if folder is not None:
        runs.name_old_runs(folder)
        remembered = remembered or Path(folder).parent / "remembered"
    folders = [student.run.folder for student in students if student.run]
    if len(set(folders)) < len(folders):
        raise ValueError("two settings hold losses of the same name and values: keep one")

    # Nothing random that happens in here reaches the caller. On a GPU, cuDNN keeps to algorithms
    # that give the same bits each time, in float32 where float32 was asked for.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        for student in students[: len(settings)]:
            check_student(student, data)
            check_objective(student, teacher, data)
        if teacher is not None:
            teacher.open_caches(data, settings, remembered)
        for _, group in groupby(sorted(students, key=_company), key=_company):
            _train_together(list(group), teacher, data, progress, checkpoint_seconds)

    trained = [s.result() for s in students if not s.diverged]
    if len(trained) < len(students):
        raise Diverged([s.diverged for s in students if s.diverged], trained)
    return trained


def find_runs(
    teacher: nn.Module | Trained | None,
    data: Dataset,
    settings: Sequence[Settings],
    *,
    seeds: Sequence[int] = (0,),
    folder: str | Path,
) -> list[runs.Run]:
    """The runs that ``distill_many`` has in ``folder``, in the order seeds x settings.

    ``finished`` says of each whether it is. Nothing is trained.
    """
    _, _, students = _prepare(teacher, data, settings, seeds, folder, default_device(None))
    return [student.run for student in students]


def _prepare(teacher, data, settings, seeds, folder, device, start=None):
    """Data and teacher on the device, and a student for each seed and settings."""
    here = data.to(device)
    if teacher is not None or any(s.method != "ce" for s in settings):
        network = teacher.model if isinstance(teacher, Trained) else teacher
        if not isinstance(network, nn.Module):
            kind = type(teacher).__name__
            raise TypeError(f"teacher must be a network or Trained, got {kind}")
        teacher = Teacher(network, here, settings, device)
        check_network("teacher", teacher.network, here)
    options = {"device": device, "start": start}
    students = [Student(s, seed, data, **options) for seed in seeds for s in settings]
    if folder is not None:
        for student in students:  # the data as they were given keep their fingerprint
            student.run = _run(folder, student, data, teacher, start)
    return here, teacher, students


def _run(folder, student: "Student", data: Dataset, teacher: Teacher | None, start) -> runs.Run:
    """A student's run: its config is all that decides the result, in values that JSON knows."""
    settings, named = student.settings, isinstance(student.settings.method, str)
    values = asdict(replace(settings, method="ce"))
    del values["name"]
    values["method"] = settings.method if named else student.objective.identity()
    if teacher is not None:
        values["fold_batch_norm"] = teacher.is_folded(settings)
    old = {new: old for old, new in runs.OLD_NAMES.items()}  # what finished runs are known by
    config = {
        "settings": {old.get(name, name): value for name, value in values.items()},
        "seed": student.seed,
        "data": {"name": data.name, "seed": data.seed, "sha256": data.fingerprint},
        "teacher": teacher and teacher.fingerprint,
        "numerics": NUMERICS,
    }
    if start is not None:
        config["start"] = runs.weights_fingerprint(start)
    try:
        runs.identity(config)
    except TypeError as error:
        raise ValueError(
            f"{settings.name} holds a value that cannot be written down ({error}), so its run "
            "could not be told from others: use plain numbers and strings, or folder=None"
        ) from None
    name = re.sub(r"[\W_]+", "-", settings.name.lower()).strip("-") or "run"
    return runs.Run(folder, f"{name}-seed{student.seed}", config)


def _company(student: "Student") -> tuple:
    """Students whose values here are equal see the same batches and share the teacher's outputs."""
    s = student.settings
    features = bool(student.objective.teacher_features)  # these are not in the cache
    return student.seed, s.batch_size, *output_key(s), features


def _train_together(
    students: list["Student"], teacher: Teacher | None, data: Dataset, progress, checkpoint_seconds
) -> None:
    """The training loop: students of one seed and batch size, side by side, batch by batch."""
    settings, per_epoch = students[0].settings, students[0].per_epoch
    with ExitStack() as locks:
        for student in sorted((s for s in students if s.run), key=lambda s: s.run.folder):
            if distributed.rank() == 0 and not student.run.finished:
                locks.enter_context(student.run)  # sorted: two processes cannot wait in a ring
            student.load()
        waiting = [s for s in students if not s.done]
        if not waiting:
            return
        held_out = _held_out(data, teacher, waiting)
        clock, report = Clock(checkpoint_seconds, students[0].device), Progress(progress, waiting)
        while left := [s for s in waiting if not s.done]:
            step = min(s.steps for s in left)
            epoch, start = divmod(step, per_epoch)
            active = [s for s in left if s.steps // per_epoch == epoch]
            stop = min(per_epoch, max(s.last_step for s in active) - epoch * per_epoch)
            for student in active:
                student.begin_epoch(epoch)
            order = epoch_order(len(data.train), students[0].seed, epoch)
            samples = order.split(settings.batch_size)
            batches = epoch_batches(data.train, teacher, active, order, epoch, start, stop)
            for images, labels, known in batches:
                takers = [s for s in active if s.steps == step and not s.done]
                for student in takers:
                    _seed_noise(student.seed, epoch, start, student.device)
                    student.step(images, labels, known, samples[start])
                step, start = step + 1, start + 1
                report.bar.update()
                if start % Meter.BLOCK == 0 and start < stop:
                    clock.save_when_due(takers)
            for student in active:
                student.end_epoch(epoch, held_out)
            report.epoch_done(epoch, active)
            for student in active:
                if student.done:
                    student.finish()
            clock.save_when_due(active)
        report.close(teacher and teacher.caches.get(output_key(settings)))


def epoch_batches(
    train: Split | FileSplit, teacher: Teacher | None, students, order, epoch, start, stop
) -> Iterator[tuple[Tensor, Tensor, Output | None]]:
    """Batches ``start`` to ``stop`` of an epoch in ``order``: images, labels, teacher's output."""
    settings, count = students[0].settings, stop - start
    options = {
        "order": order,
        "augmentation": settings.augmentation,
        "seed": hash_seed(students[0].seed, "augmentation", epoch),
        "start": start,
        "shard": distributed.shard(),
    }
    cache = teacher and teacher.caches.get(output_key(settings))
    if cache is not None:
        views = train.views(settings.batch_size, **options)
        for some, logits in cache.batches(islice(views, count)):
            yield *train.take(some, settings.augmentation), Output(logits)
        return
    features = sorted({name for s in students for name in s.objective.teacher_features})
    for images, labels in islice(train.batches(settings.batch_size, **options), count):
        yield images, labels, teacher and teacher.output(images, settings, features)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order (count,) in which an epoch, from 0, takes the training images."""
    generator = torch.Generator().manual_seed(hash_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator)


def _seed_noise(seed: int, epoch: int, batch: int, device: torch.device) -> None:
    """Seed what dropout draws from: the same beside any other students, and after a resume.

    (``torch.manual_seed`` would seed all devices, and takes half a millisecond a call.)
    """
    place = batch * distributed.world_size() + distributed.rank()
    noise = hash_seed(seed, "noise", epoch) + place
    torch.default_generator.manual_seed(noise)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(noise)


def _held_out(data: Dataset, teacher: Teacher | None, students) -> dict:
    """What is measured after each epoch, by prefix: a split, and the teacher's logits on it."""
    parts = {"validation_": data.validation} if len(data.validation) else {}
    if any(s.settings.track_test for s in students):
        parts["test_"] = data.test
    settings, found = students[0].settings, {}
    for prefix, part in parts.items():
        batches = (images for images, _, _ in _all_of(part))
        found[prefix] = part, [teacher and teacher.output(x, settings).logits for x in batches]
    return found


def _all_of(part: Split | FileSplit):
    """This process's share of a split: images, labels, and the size of the whole batch."""
    size = part.evaluation_batch_size
    batches = part.batches(size, shard=distributed.shard())
    for step, (images, labels) in enumerate(batches):
        yield images, labels, min(size, len(part) - step * size)


class Student:
    """A network in training: weights, optimizer, history, and its run folder if it has one.

    It has taken ``steps`` of its ``last_step`` steps; ``per_epoch`` steps make an epoch.
    """

    PARTS = ("model", "objective", "optimizer")  # what has a state, for a resume point

    def __init__(
        self,
        settings: Settings,
        seed: int,
        data: Dataset,
        *,
        device: torch.device,
        start: nn.Module | None = None,
    ):
        self.settings, self.seed, self.device = settings, seed, device
        model = create_model(settings.model, data.num_classes, seed=seed)
        if start is not None:
            model.load_state_dict(start.state_dict())
        # Convolutions of many channels run up to twice as fast in this memory layout.
        self.model = model.to(device, memory_format=torch.channels_last)
        self.objective = make_objective(
            settings.method,
            temperature=settings.temperature,
            ce_weight=settings.ce_weight,
            distill_weight=settings.distill_weight,
        ).to(device)
        self.per_epoch = math.ceil(len(data.train) / settings.batch_size)
        self.last_step = settings.steps(len(data.train))
        self.steps, self.rows, self.diverged = 0, [], ""
        self.meter = Meter(settings.temperature or 1.0, device)
        self.run: runs.Run | None = None

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Made on first use: torch takes seconds to load it, and a finished run never needs it."""
        s = self.settings
        parameters = [*self.model.parameters(), *self.objective.parameters()]
        values = {"lr": s.learning_rate, "weight_decay": s.weight_decay, "fused": True}
        if s.optimizer == "adamw":
            return torch.optim.AdamW(parameters, **values)
        return torch.optim.SGD(parameters, momentum=s.momentum, **values)

    @functools.cached_property
    def network(self) -> nn.Module:
        """What steps go through: the model itself, compiled, or shared among processes."""
        model = torch.compile(self.model) if self.settings.compiled else self.model
        return distributed.wrap(model)

    @property
    def done(self) -> bool:
        return bool(self.diverged) or self.steps >= self.last_step

    def load(self) -> None:
        """Take over what the run folder already has: the result, or the newest checkpoint."""
        first = distributed.rank() == 0
        if distributed.from_first(self.run.finished, self.device):
            rows = self.run.load(self.model, self.objective).to_dict("records") if first else []
            result = self.model.state_dict(), rows
            weights, self.rows = distributed.from_first(result, self.device)
            self.model.load_state_dict(weights)
            self.steps = self.last_step
            return
        state = self.run.load_checkpoint(self.resume) if first else None
        state = distributed.from_first(state, self.device)
        if state is not None and not first:
            self.resume(state)

    def resume(self, state: dict) -> None:
        """Take over a resume point; of another version's, some field is missing or does not fit."""
        if "optimiser" in state:  # as an earlier version wrote it
            state["optimizer"] = state.pop("optimiser")
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.meter.restore(state["meter"])
        self.rows = [{runs.new_column(k): x for k, x in row.items()} for row in state["rows"]]
        self.steps = state["steps"]

    def begin_epoch(self, epoch: int) -> None:
        self.model.train()
        self.objective.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(epoch)

    def step(self, images: Tensor, labels: Tensor, known: Output | None, samples: Tensor) -> None:
        """One optimizer step on a batch.

        ``known`` is the teacher's output, ``samples`` are the places of all processes' pictures.
        """
        size = len(samples)
        with (
            autocast(self.device, self.settings.precision),
            recorded(self.model, self.objective.student_features) as features,
        ):
            logits = logits_of(self.network(images))
        terms = self.objective(Output(logits, features, samples), known, labels)
        loss = self.objective.total(terms)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * distributed.loss_factor(len(labels), size)).backward()
        distributed.average_gradients(self.objective)
        self.optimizer.step()
        self.steps += 1
        if distributed.in_metrics(size):
            losses = {"loss": loss} | {f"{name}_loss": value for name, value in terms.items()}
            self.meter.add(logits.detach(), labels, known and known.logits, losses)

    @torch.no_grad()
    def end_epoch(self, epoch: int, held_out: dict) -> None:
        """Measure, and add the epoch's row to the history."""
        row = {"epoch": epoch + 1, "learning_rate": self.settings.learning_rate_at(epoch)}
        row |= self.meter.read("train_")
        self.model.eval()
        for prefix, (part, teacher_logits) in held_out.items():
            if prefix == "test_" and not self.settings.track_test:
                continue
            for (images, labels, size), known in zip(_all_of(part), teacher_logits, strict=True):
                with autocast(self.device, self.settings.precision):
                    logits = logits_in_pieces(self.model, images)
                if distributed.in_metrics(size):
                    self.meter.add(logits, labels, known)
            row |= self.meter.read(prefix)
        self.rows.append(row)
        wrong = [f"{name} {value}" for name, value in row.items() if not math.isfinite(value)]
        if self.done:  # where nothing is held out, no measure has seen the last step's weights
            weights = self.model.state_dict().items()
            wrong += [f"{name} not finite" for name, x in weights if not x.isfinite().all()]
        if wrong:
            self.diverged = (
                f"{self.settings.name}, seed {self.seed}: {wrong[0]} in epoch "
                f"{epoch + 1} (learning_rate={self.settings.learning_rate})"
            )

    def save_checkpoint(self) -> None:
        meter = self.meter.state()  # of all processes
        if distributed.rank() == 0:
            parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
            state = {"steps": self.steps, "rows": self.rows, "meter": meter, **parts}
            self.run.save_checkpoint(self.steps, state)

    def finish(self) -> None:
        if self.run is not None and not self.diverged and distributed.rank() == 0:
            self.run.finish(self.model, pd.DataFrame(self.rows), self.objective)

    def result(self) -> Trained:
        distributed.unwrap(self.model)
        if self.run is not None and not self.run.finished:
            self.finish()  # its folder was deleted while others were trained
        folder = self.run.folder if self.run else None
        history = pd.DataFrame(self.rows)
        return Trained(self.model.eval(), self.settings, self.seed, history, folder)
