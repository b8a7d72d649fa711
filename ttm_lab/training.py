"""Train a teacher; distil one student, or many from one teacher pass.

Students of one seed share initial weights and the order of the images, so they are compared in
pairs, and each batch's teacher output is computed once for all of them. Everything random is
derived from (seed, epoch, step) instead of being carried along, so a student comes out the same
alone, in company, and after an interruption. Under ``torchrun`` (``ttm_lab.distributed``) the same
calls share every batch among the processes.
"""

import functools
import hashlib
import inspect
import json
import math
import operator
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ttm_lab import distributed, runs
from ttm_lab.data import Dataset, FileSplit, Split
from ttm_lab.data.splits import hash_seed
from ttm_lab.losses import dist_loss, dkd_loss, kd_loss, ttm_loss, wttm_loss
from ttm_lab.memory import TeacherMemory, memory_file
from ttm_lab.models import create_model

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

# Logits of so many batches wait before their metrics are computed; resume points within an epoch
# lie between two such blocks, so that sums of metrics are formed in the same order after a resume.
_BLOCK = 64


_CHOICES = {
    "schedule": ("steps", "cosine"),
    "optimiser": ("sgd", "adamw"),
    "augmentation": tuple(dict.fromkeys(Split.augmentations + FileSplit.augmentations)),
    "precision": ("float32", "bfloat16"),
    "track_test": (False, True),
    "remember": (False, True),
    "fold_batch_norm": (False, True),
    "compiled": (False, True),
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides how one student (or teacher) is trained, data and seed aside.

    The loss is ``ce_weight * CE + distill_weight * method``. ``method`` is ``"ce"`` (no second
    term), ``"kd"``, ``"ttm"``, ``"wttm"``, ``"dkd"``, ``"dist"``, or a callable
    ``loss(student_logits, teacher_logits, labels)`` that returns a scalar tensor.

    The defaults of the optimiser and schedule are the paper's for CIFAR-100 (official code,
    ``train_student.py``): SGD with momentum, learning rate x 0.1 after 150, 180 and 210 of 240
    epochs, here as fractions of ``epochs``. ``temperature`` and ``distill_weight`` have no good
    general default (the paper tunes both per pair, Table 8), so they must be given;
    ``paper.settings`` gives the published ones of a pair.

    ``batch_size`` is the batch of all processes together. ``schedule`` is ``"steps"`` (the
    milestones) or ``"cosine"`` (to zero), after ``warmup_epochs`` of linear rise. ``optimiser`` is
    ``"sgd"`` or ``"adamw"`` (without ``momentum``). ``augmentation`` is one that the data offers
    (``data.train.augmentations``). ``precision`` ``"bfloat16"`` runs the networks under autocast;
    losses are computed in float32 either way. ``track_test`` adds test columns to the history,
    for the habit of published code to report the best epoch on test; nothing here chooses by it.

    Three switches are for speed and change rounding only. ``remember`` keeps the teacher's logits
    for each view of each picture (``memory.TeacherMemory``; pictures held in memory only).
    ``fold_batch_norm`` lets the teacher's convolutions do the work of the batch norms after them.
    ``compiled`` runs the student through ``torch.compile``, which takes half a minute or more at
    first. ``fast`` chooses those that help on a device.

    Raises ``ValueError`` naming the field that makes no sense.
    """

    model: str
    method: str | Loss = "ce"
    temperature: float | None = None
    distill_weight: float | None = None
    ce_weight: float = 1.0
    epochs: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = (150 / 240, 180 / 240, 210 / 240)
    learning_rate_decay: float = 0.1
    schedule: str = "steps"
    warmup_epochs: int = 0
    optimiser: str = "sgd"
    augmentation: str = "none"
    precision: str = "float32"
    track_test: bool = False
    remember: bool = False
    fold_batch_norm: bool = True
    compiled: bool = False
    max_steps: int | None = None
    label: str = field(default="", compare=False)

    def __post_init__(self):
        names = ("ce", "kd", "ttm", "wttm", "dkd", "dist")
        if not callable(self.method) and self.method not in names:
            raise ValueError(f"method={self.method!r} must be one of {names} or a callable")
        if self.method != "ce":
            for name in ("temperature", "distill_weight"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} must be given for method={self.method!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {choices}")
        for name in ("epochs", "batch_size", "max_steps", "warmup_epochs"):
            if getattr(self, name) is not None:
                self._set(name, _whole(name, getattr(self, name)))
        numbers = ("temperature", "distill_weight", "ce_weight", "learning_rate", "momentum")
        for name in (*numbers, "weight_decay", "learning_rate_decay"):
            if getattr(self, name) is not None:
                self._set(name, float(getattr(self, name)))
        self._set("milestones", tuple(map(float, self.milestones)))
        positive = ("epochs", "batch_size", "learning_rate", "learning_rate_decay")
        for name in (*positive, "temperature", "max_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value!r} must be positive and finite")
        for name in ("ce_weight", "distill_weight", "momentum", "weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r} must be zero or positive, and finite")
        if not all(0 < m <= 1 for m in self.milestones):
            raise ValueError(f"milestones={self.milestones} must be fractions of the epochs")
        if not self.label:
            name = self.method if isinstance(self.method, str) else _name_of(self.method)
            self._set("label", name.upper() if name in names else name)

    def _set(self, name: str, value) -> None:
        """Store a value in its plain Python kind: equal settings are then one run."""
        object.__setattr__(self, name, value)

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of ``epoch``, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * (epoch + 1) / self.warmup_epochs
        if self.schedule == "cosine":
            part = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1)
            return self.learning_rate * (1 + math.cos(math.pi * part)) / 2
        passed = sum(epoch >= round(m * self.epochs) for m in self.milestones)
        return self.learning_rate * self.learning_rate_decay**passed


def fast(device: str | torch.device | None = None) -> dict:
    """Fields of ``Settings`` that make training faster on a device at the same accuracy.

    bfloat16 where the hardware multiplies it, remembered teacher logits, folded batch norm. What
    each brings is measured in ``benchmarks/results``; ``compiled`` is not among them, since on a
    CPU it did not pay. By default for the device that training would take.
    """
    device = _device(device)
    if device.type == "cuda":
        hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        hardware = device.type == "cpu" and any(able.get(k) for k in ("amx_bf16", "avx512_bf16"))
    precision = "bfloat16" if hardware else "float32"
    return {"precision": precision, "remember": True, "fold_batch_norm": True}


def _device(device: str | torch.device | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class Trained:
    """A trained network with its settings, seed, history (a row an epoch) and run folder."""

    model: nn.Module
    settings: Settings
    seed: int
    history: pd.DataFrame
    folder: Path | None = None

    @property
    def label(self) -> str:
        return self.settings.label


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

    Same options as ``distill_many``. Taught in notebooks/02_knowledge_distillation.ipynb.
    """
    if settings.method != "ce":
        raise ValueError(f"a teacher learns from labels: method={settings.method!r} must be 'ce'")
    return _train(None, data, [settings], [seed], folder, **options)[0]


def distill(
    teacher: nn.Module | Trained,
    data: Dataset,
    settings: Settings,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    **options,
) -> Trained:
    """Train one student. Same options as ``distill_many``.

    Taught in notebooks/05_distil_on_real_data.ipynb.
    """
    return distill_many(teacher, data, [settings], seeds=[seed], folder=folder, **options)[0]


def distill_many(
    teacher: nn.Module | Trained,
    data: Dataset,
    settings: Sequence[Settings],
    *,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
    **options,
) -> list[Trained]:
    """Train a student for each of ``settings`` and each seed, all from one teacher.

    Settings of one seed and batch size go through the data together and share every teacher
    pass. Each student is the one that ``distill`` alone would give.

    Parameters
    ----------
    teacher: network or ``Trained``; put into eval mode and channels-last layout, gets no gradient.
    data: images and labels; metrics are taken on its train and validation parts, never on test.
    settings: one ``Settings`` a student, each different.
    seeds: whole numbers; a seed decides initial weights and the order of the images.
    folder: where runs are kept and looked up (``runs.runs_folder``); None keeps nothing. A
        finished run is loaded, a broken-off one resumed, and both end bit-identical to a run
        that was never interrupted (same machine, same number of threads).
    device: ``"cpu"``, ``"cuda"``, ...; default: a GPU if there is one.
    progress: True, False, or None: a bar at a screen, a line an epoch in a batch.
    checkpoint_seconds: least time between two resume points (default 30; 0: every epoch).
    remembered: the folder of files with remembered logits, for settings with ``remember``
        (default: ``remembered`` beside ``folder``; in memory if that is None).

    Returns the students in the order seeds x settings. Their ``history`` has one row an epoch:
    loss, ce_loss, distill_loss; accuracy, entropy (mean Shannon entropy of q, nats), confidence
    (mean largest q) and distance (mean D(p_T || q), nats) with the prefixes ``train_`` (over the
    epoch, while the weights change) and ``validation_`` (after the epoch).

    Raises ``ValueError`` for settings that do not fit the data or the teacher, ``Diverged`` after
    the other students are done if a loss became infinite or NaN.

    Taught in notebooks/05_distil_on_real_data.ipynb.
    """
    if isinstance(teacher, Trained):
        teacher = teacher.model
    if not isinstance(teacher, nn.Module):
        raise TypeError(f"teacher must be a network or Trained, got {type(teacher).__name__}")
    return _train(teacher, data, settings, seeds, folder, **options)


def remember_teacher(
    teacher: nn.Module | Trained,
    data: Dataset,
    settings: Settings,
    *,
    remembered: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> TeacherMemory:
    """Ask a teacher about every view of every training picture, ahead of training with it.

    ``settings`` are those of any student: augmentation, precision and ``fold_batch_norm`` count.
    What the folder ``remembered`` already has is not asked again; broken off, it goes on from
    there. Raises what ``distill_many`` raises for data and teacher, and ``TeacherMemory`` for the
    file.

    Taught in notebooks/07_cifar100.ipynb.
    """
    settings = replace(settings, remember=True)
    network = teacher.model if isinstance(teacher, Trained) else teacher
    device = _device(device)
    _check_data(data, [settings])
    fingerprint = runs.weights_fingerprint(network)
    data = data.to(device)
    _check_logits(network.to(device), [], data)
    asked = _Teacher(network, fingerprint, device)
    asked.prepare([settings], data, remembered)
    (memory,) = asked.memories.values()
    total = len(data.train) * data.train.count_views(settings.augmentation)
    hidden = None if progress is None else not progress
    with tqdm(total=total, desc="remember", unit="view", unit_scale=True, disable=hidden) as bar:
        for done in memory.fill():
            bar.update(done - bar.n)
    return memory


def _train(
    teacher: nn.Module | None,
    data: Dataset,
    settings: Sequence[Settings],
    seeds: Sequence[int],
    folder: str | Path | None,
    *,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    checkpoint_seconds: float = 30.0,
    remembered: str | Path | None = None,
) -> list[Trained]:
    settings, seeds = list(settings), [_whole("seed", seed) for seed in seeds]
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds {seeds} must not be negative")
    if not settings or not seeds:
        raise ValueError("there is nothing to train: give at least one Settings and one seed")
    if len(set(settings)) < len(settings) or len(set(seeds)) < len(seeds):
        labels = [s.label for s in settings]
        raise ValueError(f"settings {labels} and seeds {seeds} must each be different")
    device = _device(device)
    _check_data(data, settings)
    fingerprint = data.fingerprint if folder is not None else None
    data = data.to(device)
    teacher_id = None
    if teacher is not None:
        teacher_id = runs.weights_fingerprint(teacher)
        teacher = _Teacher(teacher, teacher_id, device)
        if folder is not None and remembered is None:
            remembered = Path(folder).parent / "remembered"
    source = {"name": data.name, "seed": data.seed, "sha256": fingerprint}
    students = [
        _Student(s, seed, data.num_classes, source, teacher_id, device, folder)
        for seed in seeds
        for s in settings
    ]
    unfinished = [s for s in students if not (s.run and s.run.finished)]
    if device.type == "cpu" and any(s.settings.compiled for s in unfinished):
        _check_compiler()
    folders = [student.run.folder for student in students if student.run]
    if len(set(folders)) < len(folders):
        raise ValueError("two settings hold losses with the same source and values: keep one")
    _check_logits(teacher and teacher.network, students, data)
    if teacher is not None:
        teacher.prepare(settings, data, remembered)

    def group_key(student):
        s = student.settings
        return student.seed, s.batch_size, *_way_of_asking(s)

    # Nothing random that happens in here reaches the caller. On a GPU, cuDNN keeps to algorithms
    # that give the same bits each time, in float32 where float32 was asked for.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        for _, group in groupby(sorted(students, key=group_key), key=group_key):
            _train_together(list(group), teacher, data, progress, checkpoint_seconds)

    trained = [s.result() for s in students if not s.diverged]
    if len(trained) < len(students):
        raise Diverged([s.diverged for s in students if s.diverged], trained)
    return trained


def _train_together(students, teacher, data, progress, checkpoint_seconds) -> None:
    """Take students of one seed, batch size and augmentation through the epochs, by batches."""
    with ExitStack() as locks:
        for student in sorted(students, key=lambda s: str(s.run and s.run.folder)):
            if student.run and distributed.rank() == 0 and not student.run.finished:
                locks.enter_context(student.run)  # sorted: two processes cannot wait in a ring
            student.load()
        waiting = [s for s in students if not s.done]
        if not waiting:
            return
        train, settings, seed = data.train, students[0].settings, students[0].seed
        device = students[0].device
        first, last = min(s.epoch for s in waiting), max(s.settings.epochs for s in waiting)
        held_out = _held_out(data, teacher, settings, any(s.settings.track_test for s in waiting))
        clock = _Clock(checkpoint_seconds, device)
        report = _Progress(progress, waiting, math.ceil(len(train) / settings.batch_size))
        for student in waiting:
            student.start()
        for epoch in range(first, last):
            active = [s for s in waiting if s.epoch == epoch and not s.done]
            if not active:
                continue
            noise = hash_seed(seed, "noise", epoch)
            start = min(s.batch for s in active)
            report.epoch_starts(epoch, start)
            for student in active:
                student.begin_epoch()
            options = {
                "order": _order(len(train), seed, epoch),
                "augmentation": settings.augmentation,
                "seed": hash_seed(seed, "augmentation", epoch),
                "start": start,
                "share": distributed.share(),
            }
            left = max(min(max(s.stops_before for s in active), report.batches) - start, 0)
            if teacher is None:
                batches = islice(train.batches(settings.batch_size, **options), left)
                batches = ((*batch, None) for batch in batches)
            else:
                batches = teacher.batches(train, settings, options, left)
            for step, (images, labels, teacher_logits) in enumerate(batches, start):
                takers = [s for s in active if s.takes(step)]
                for student in takers:
                    _seed_noise(noise + step * distributed.count() + distributed.rank(), device)
                    size = min(settings.batch_size, len(train) - step * settings.batch_size)
                    student.step(images, labels, teacher_logits, size)
                report.batch_done()
                if (step + 1) % _BLOCK == 0 and clock.due():
                    for student in takers:
                        if not student.cut:  # it has its last metrics to come, then it is done
                            student.save_checkpoint()
                    clock.reset()
            for student in active:
                student.end_epoch(held_out)
            report.epoch_done(epoch, active)
            due = clock.due()
            for student in active:
                if student.done:
                    student.finish()
                elif due:
                    student.save_checkpoint()
            if due:
                clock.reset()
        memory = teacher and teacher.memories.get(_way_of_asking(settings))
        report.close(memory)


def _order(count: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(hash_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator)


def _held_out(data: Dataset, teacher, settings: Settings, track_test: bool) -> dict:
    """By prefix: a part measured after each epoch, and the teacher's logits on it."""
    parts = {"validation_": data.validation} if len(data.validation) else {}
    if track_test:
        parts["test_"] = data.test
    found = {}
    for prefix, part in parts.items():
        logits = [teacher and teacher.ask(images, settings) for images, _, _ in _all_of(part)]
        found[prefix] = part, logits
    return found


def _all_of(part: Split | FileSplit):
    """This process's share of a part: images, labels, and the size of the whole batch."""
    size = part.evaluation_batch_size
    batches = part.batches(size, share=distributed.share())
    for step, (images, labels) in enumerate(batches):
        yield images, labels, min(size, len(part) - step * size)


def _autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _way_of_asking(settings: Settings) -> tuple:
    """What decides the teacher's logits, the teacher and the picture aside."""
    s = settings
    return s.augmentation, s.precision, s.fold_batch_norm, s.remember


class _Teacher:
    """The network that students learn from, ready on its device, and what it is known to say."""

    def __init__(self, network: nn.Module, fingerprint: str, device: torch.device):
        self.network = network.to(device, memory_format=torch.channels_last).eval()
        self.fingerprint, self.device = fingerprint, device
        self.folded, self.memories = None, {}

    def prepare(self, settings: Sequence[Settings], data: Dataset, folder) -> None:
        """Fold and open memories as the settings want it, before any long work."""
        if any(s.fold_batch_norm for s in settings):
            probe, _ = next(data.train.batches(2))
            self.folded = _fold(self.network, probe)
        for s in settings:
            key = _way_of_asking(s)
            if s.remember and key not in self.memories:
                path = folder and memory_file(
                    folder,
                    teacher=self.fingerprint,
                    part=data.train,
                    augmentation=s.augmentation,
                    precision=s.precision,
                    folded=s.fold_batch_norm,
                )
                ask = functools.partial(self.ask, settings=s)
                self.memories[key] = TeacherMemory(
                    ask, data.train, s.augmentation, data.num_classes, path
                )

    def ask(self, images: Tensor, settings: Settings) -> Tensor:
        network = self.folded if settings.fold_batch_norm else self.network
        with _autocast(self.device, settings.precision):
            return _logits(network, images)

    def batches(self, train: Split | FileSplit, settings: Settings, options: dict, count: int):
        """``count`` batches at most, of images, labels and the teacher's logits."""
        size, memory = settings.batch_size, self.memories.get(_way_of_asking(settings))
        if memory is None:
            for images, labels in islice(train.batches(size, **options), count):
                yield images, labels, self.ask(images, settings)
        else:
            for views, logits in memory.answers(islice(train.views(size, **options), count)):
                yield *train.take(views, settings.augmentation), logits


def _fold(network: nn.Module, probe: Tensor) -> nn.Module:
    """A copy in which convolutions do the work of the batch norms that follow them.

    What cannot be traced, or would give other logits for ``probe``, comes back as it is.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        return network
    from torch.fx.experimental.optimization import fuse  # slow to import

    try:
        folded = fuse(network).to(memory_format=torch.channels_last).eval()
        before, after = _logits(network, probe), _logits(folded, probe)
    except Exception:  # each kind of network fails to be traced in its own way
        return network
    close = torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    return folded if close else network


class _Clock:
    """Tells when the next resume point is due: the same to all processes."""

    def __init__(self, seconds: float, device: torch.device):
        self.seconds, self.device = seconds, device
        self.reset()

    def due(self) -> bool:
        return distributed.agree(time.monotonic() - self.saved >= self.seconds, self.device)

    def reset(self) -> None:
        self.saved = time.monotonic()


class _Student:
    """One network on its way: weights, optimiser, history, and its run folder if it has one."""

    def __init__(self, settings, seed, num_classes, data, teacher_id, device, folder):
        self.settings, self.seed, self.device = settings, seed, device
        model = create_model(settings.model, num_classes, seed=seed)
        # Convolutions of many channels run up to twice as fast in this memory layout.
        self.model = model.to(device, memory_format=torch.channels_last)
        self.method = _loss_function(settings)
        # epochs finished, batches of the next one behind us, and all steps so far
        self.epoch, self.batch, self.steps, self.rows = 0, 0, 0, []
        self.diverged = ""
        self.meter = _Meter(settings.temperature or 1.0)
        self.run = None
        if folder is not None:
            config = {
                "settings": {
                    **asdict(replace(settings, method="ce")),
                    "method": _method_config(settings.method),
                    "milestones": list(settings.milestones),
                },
                "seed": seed,
                "data": data,
                "teacher": teacher_id,
                "training_code": runs.code_fingerprint(),
            }
            config["settings"].pop("label")
            self.run = runs.Run(folder, f"{_slug(settings.label)}-seed{seed}", config)

    @functools.cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """Made on first use: torch takes seconds to load what a finished run never needs."""
        s = self.settings
        values = {"lr": s.learning_rate, "weight_decay": s.weight_decay, "fused": True}
        if s.optimiser == "adamw":
            return torch.optim.AdamW(self.model.parameters(), **values)
        return torch.optim.SGD(self.model.parameters(), momentum=s.momentum, **values)

    @property
    def cut(self) -> bool:
        return self.settings.max_steps is not None and self.steps >= self.settings.max_steps

    @property
    def stops_before(self) -> float:
        """The first batch of this epoch that ``max_steps`` leaves no step for."""
        s = self.settings
        return math.inf if s.max_steps is None else self.batch + s.max_steps - self.steps

    @property
    def done(self) -> bool:
        return bool(self.diverged) or self.cut or self.epoch >= self.settings.epochs

    def load(self) -> None:
        """Take over what the run folder already has: the result, or the newest checkpoint."""
        if self.run is None:
            return
        state = None
        if distributed.rank() == 0:
            if self.run.finished:
                rows = self.run.load(self.model).to_dict("records")
                state = {"epoch": self.settings.epochs, "rows": rows}
                state |= {"model": self.model.state_dict()} if distributed.count() > 1 else {}
            else:
                state = self.run.load_checkpoint()
        state = distributed.from_first(state, self.device)
        if state is None:
            return
        self.epoch, self.rows = state["epoch"], state["rows"]
        if "model" in state:
            self.model.load_state_dict(state["model"])
        if "optimiser" in state:
            self.optimiser.load_state_dict(state["optimiser"])
            self.batch, self.steps = state["batch"], state["steps"]
            totals = {name: x.to(self.device) for name, x in state["meter"]["totals"].items()}
            self.meter.restore({**state["meter"], "totals": totals})

    def start(self) -> None:
        network = torch.compile(self.model) if self.settings.compiled else self.model
        self.network = distributed.wrap(network)

    def begin_epoch(self) -> None:
        self.model.train()
        rate = self.settings.learning_rate_at(self.epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def takes(self, batch: int) -> bool:
        return batch >= self.batch and not self.cut

    def step(self, images: Tensor, labels: Tensor, teacher_logits: Tensor | None, size) -> None:
        with _autocast(self.device, self.settings.precision):
            logits = self.network(images)
        ce = F.cross_entropy(logits.float(), labels)
        loss, extra = self.settings.ce_weight * ce, None
        if self.method is not None:
            extra = self.method(logits, teacher_logits, labels)
            loss = loss + self.settings.distill_weight * extra
        self.optimiser.zero_grad(set_to_none=True)
        (loss * distributed.weight(len(labels), size)).backward()
        self.optimiser.step()
        self.steps += 1
        self.batch += 1
        if distributed.counts(size):
            self.meter.add(logits.detach(), labels, teacher_logits, loss, ce, extra)

    def end_epoch(self, held_out: dict) -> None:
        row = {"epoch": self.epoch + 1, "learning_rate": self.settings.learning_rate_at(self.epoch)}
        row |= self.meter.read("train_")
        self.model.eval()
        for prefix, (part, teacher_logits) in held_out.items():
            if prefix == "test_" and not self.settings.track_test:
                continue
            for (images, labels, size), known in zip(_all_of(part), teacher_logits, strict=True):
                with _autocast(self.device, self.settings.precision):
                    logits = _logits(self.model, images)
                if distributed.counts(size):
                    self.meter.add(logits, labels, known)
            row |= self.meter.read(prefix)
        self.rows.append(row)
        self.epoch, self.batch = self.epoch + 1, 0
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            self.diverged = (
                f"{self.settings.label}, seed {self.seed}: {wrong[0]} {row[wrong[0]]} in epoch "
                f"{self.epoch} (learning_rate={self.settings.learning_rate})"
            )

    def save_checkpoint(self) -> None:
        if self.run is None:
            return
        meter = self.meter.state()
        if distributed.rank() > 0:
            return
        names = ("batch", "steps", "rows")
        state = {name: getattr(self, name) for name in names} | {"meter": meter}
        state |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        self.run.save_checkpoint(self.steps, {"epoch": self.epoch, **state})

    def finish(self) -> None:
        if self.run is not None and not self.diverged and distributed.rank() == 0:
            self.run.finish(self.model, pd.DataFrame(self.rows))

    def result(self) -> Trained:
        distributed.unwrap(self.model)
        folder = self.run.folder if self.run else None
        history = pd.DataFrame(self.rows)
        return Trained(self.model.eval(), self.settings, self.seed, history, folder)


class _Meter:
    """Sums of per-sample measures, kept on the device and read once an epoch."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        self._clear()

    def _clear(self) -> None:
        self.batches, self.losses, self.totals, self.count = [], [], {}, 0

    def add(self, logits, labels, teacher_logits, *losses) -> None:
        self.batches.append((logits, labels, teacher_logits))
        if losses:
            self.losses.append([None if x is None else x.detach() for x in losses])
        if len(self.batches) == _BLOCK:
            self._flush()

    def _add(self, name: str, values: Tensor) -> None:
        self.totals[name] = self.totals.get(name, 0) + values.double().sum()

    @torch.no_grad()
    def _flush(self) -> None:
        if self.losses:
            sizes = torch.tensor([len(labels) for _, labels, _ in self.batches])
            for name, column in zip(
                ("loss", "ce_loss", "distill_loss"), zip(*self.losses, strict=True), strict=True
            ):
                if column[0] is not None:
                    values = torch.stack(column).double()
                    self._add(name, values * sizes.to(values.device))
        logits, labels, teacher_logits = (
            None if parts[0] is None else torch.cat(parts)
            for parts in zip(*self.batches, strict=True)
        )
        log_q = F.log_softmax(logits.float(), dim=-1)
        q = log_q.exp()
        self._add("accuracy", logits.argmax(-1) == labels)
        self._add("entropy", -(q * log_q).sum(-1))
        self._add("confidence", q.amax(-1))
        if teacher_logits is not None:
            log_p = F.log_softmax(teacher_logits.float() / self.temperature, dim=-1)
            self._add("distance", (log_p.exp() * (log_p - log_q)).sum(-1))
        self.count += len(labels)
        self.batches, self.losses = [], []

    def _gather(self) -> None:
        """Bring what all processes have counted together."""
        if self.batches:
            self._flush()
        if distributed.count() > 1 and self.totals:
            sums = torch.stack([*self.totals.values()])
            counted = distributed.total(torch.cat([sums, sums.new_tensor([float(self.count)])]))
            self.totals = dict(zip(self.totals, counted[:-1], strict=True))
            self.count = int(counted[-1])

    def state(self) -> dict:
        """What has been counted, for a resume point; afterwards process 0 holds all of it."""
        self._gather()
        state = {"totals": self.totals, "count": self.count}
        self.restore(state)
        return state

    def restore(self, state: dict) -> None:
        """Go on from ``state``, which process 0 alone holds: others have the names and zeros."""
        mine = int(distributed.rank() == 0)
        self.totals = {name: mine * total for name, total in state["totals"].items()}
        self.count = mine * state["count"]

    def read(self, prefix: str) -> dict[str, float]:
        """Means per sample since the last reading; losses keep their bare names."""
        self._gather()
        names = [name if name.endswith("loss") else prefix + name for name in self.totals]
        values = (torch.stack(list(self.totals.values())) / self.count).tolist()
        self._clear()
        return dict(zip(names, values, strict=True))


class _Progress:
    """A bar over batches at a screen; one line an epoch in a batch; nothing if switched off."""

    def __init__(self, progress: bool | None, students, batches: int):
        batch = bool(os.environ.get("TTM_LAB_BATCH")) or not (
            sys.stderr.isatty() or "ipykernel" in sys.modules
        )
        first = distributed.rank() == 0
        self.lines = progress is None and batch and first
        labels = sorted({s.settings.label for s in students})
        what = labels[0] if len(labels) == 1 else f"{len(labels)} students"
        self.what, self.batches = f"{what}, seed {students[0].seed}", batches
        self.last = max(s.settings.epochs for s in students)
        hidden = progress is False or self.lines or not first
        self.bar = tqdm(total=self.last * batches, desc=self.what, unit="batch", disable=hidden)
        self.text = ""

    def epoch_starts(self, epoch: int, batch: int) -> None:
        done = epoch * self.batches + batch
        if (
            not self.bar.disable and self.bar.n < done
        ):  # what an earlier start did counts as done, not as speed
            self.bar.initial += done - self.bar.n
            self.bar.n = done
        self.bar.set_postfix_str(f"epoch {epoch + 1}/{self.last}{self.text}", refresh=False)

    def batch_done(self) -> None:
        self.bar.update()

    def epoch_done(self, epoch: int, students) -> None:
        rows = [s.rows[-1] for s in students]
        part = "validation" if "validation_accuracy" in rows[0] else "train"
        accuracy = [row[f"{part}_accuracy"] for row in rows]
        self.text = f", {part} accuracy {min(accuracy):.3f} to {max(accuracy):.3f}"
        if self.lines:
            line = f"{self.what}: epoch {epoch + 1}/{self.last}{self.text}"
            print(line, file=sys.stderr, flush=True)

    def close(self, memory: TeacherMemory | None) -> None:
        self.bar.close()
        if memory is not None and (self.lines or not self.bar.disable):
            share = f"{memory.hit_rate:.0%} of {memory.asked:,} teacher answers remembered"
            print(f"{self.what}: {share}", file=sys.stderr, flush=True)


def _loss_function(settings: Settings) -> Loss | None:
    method, temperature = settings.method, settings.temperature
    if callable(method):
        return method
    if method == "ce":
        return None
    if method == "dkd":
        return lambda student, teacher, labels: dkd_loss(student, teacher, labels, temperature)
    loss = {"kd": kd_loss, "ttm": ttm_loss, "wttm": wttm_loss, "dist": dist_loss}[method]
    return lambda student, teacher, _labels: loss(student, teacher, temperature)


def _seed_noise(seed: int, device: torch.device) -> None:
    """Seed what dropout draws from, so that it is the same in any company and after a resume.

    ``torch.manual_seed`` does the same for every kind of device, at half a millisecond a call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _name_of(method) -> str:
    return getattr(method, "__qualname__", None) or type(method).__qualname__


def _method_config(method: str | Loss) -> str:
    """A method as text for a run's identity: its name, or a callable's source and values.

    Global variables that a callable reads are not seen: hand them over as defaults instead.
    """
    if isinstance(method, str):
        return method
    if isinstance(method, functools.partial):
        values, source = [method.args, method.keywords], _method_config(method.func)
    elif isinstance(method, nn.Module):
        public = {k: v for k, v in vars(method).items() if not k.startswith("_")}
        values, source = [public, runs.weights_fingerprint(method)], _source(type(method))
    elif inspect.ismethod(method) or getattr(method, "__name__", "") == "<lambda>":
        raise ValueError(
            f"a method of an object or a lambda ({_name_of(method)}) cannot be told from others, "
            "so its run could be mistaken: write a function with def, a class with __call__, or "
            "pass folder=None"
        )
    else:
        closure = [cell.cell_contents for cell in getattr(method, "__closure__", None) or ()]
        values = [closure, getattr(method, "__defaults__", None), vars(method)]
        source = _source(method if inspect.isroutine(method) else type(method))
    try:
        text = source + json.dumps(values, sort_keys=True)
    except TypeError as error:
        raise ValueError(
            f"{_name_of(method)} holds a value that cannot be written down ({error}), so its run "
            "could not be told from others: use plain numbers and strings, or pass folder=None"
        ) from None
    return f"{_name_of(method)} {hashlib.sha256(text.encode()).hexdigest()}"


def _source(thing) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        raise ValueError(
            f"the source of {thing!r} cannot be read, so its run could not be told from others: "
            "define it with def in a file or a notebook, or pass folder=None"
        ) from None


def _whole(name: str, value) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be a whole number") from None


def _slug(label: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in label.lower()).split()
    return "-".join(words) or "run"


@torch.no_grad()
def _logits(model: nn.Module | None, images: Tensor, batch_size: int = 1024) -> Tensor | None:
    if model is None:
        return None
    return torch.cat([model(part) for part in images.split(batch_size)])


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ValueError(
            f"compiled=True needs a C++ compiler ({error}): install g++, name one in the variable "
            "CXX, or leave it out (on the command line --compiled)"
        ) from error


def _check_data(data: Dataset, settings: Sequence[Settings]) -> None:
    """Whether these settings fit these data, and both the number of processes."""
    for s in settings:
        if s.remember and isinstance(data.train, FileSplit):
            raise ValueError(
                f"remember=True does not fit {data.name}: only pictures held in memory (of at most "
                "64x64 pixels) are cropped in finitely many ways"
            )
        if s.augmentation not in data.train.augmentations:
            raise ValueError(
                f"augmentation={s.augmentation!r} does not fit {data.name}, whose pictures offer "
                f"{data.train.augmentations}"
            )
        if s.batch_size < distributed.count():
            raise ValueError(
                f"batch_size={s.batch_size} is the batch of all {distributed.count()} processes "
                "together: give at least one picture to each"
            )
    for name in ("train", "validation", "test"):
        if 0 < len(getattr(data, name)) < distributed.count():
            raise ValueError(f"{data.name}: {name} has fewer pictures than there are processes")


def _check_logits(teacher, students, data: Dataset) -> None:
    """Try one picture first: a mismatch or a broken teacher shows before any long work."""
    probe, _ = next(data.train.batches(1, order=torch.tensor([0])))
    wanted = (1, data.num_classes)
    for name, model in [("teacher", teacher), *[(s.settings.model, s.model) for s in students]]:
        if model is None:
            continue
        was_training = model.training
        try:
            logits = _logits(model.eval(), probe)
        except (RuntimeError, AssertionError) as error:  # timm asserts the size
            shape = tuple(probe.shape[1:])
            raise ValueError(
                f"{name} does not take the pictures of {data.name}, {shape}: {error}"
            ) from error
        model.train(was_training)
        if tuple(logits.shape) != wanted:
            raise ValueError(
                f"{name} gives logits {tuple(logits.shape)} for one picture of {data.name}, "
                f"expected {wanted}: build it with num_classes={data.num_classes}"
            )
        if not torch.isfinite(logits).all():
            raise ValueError(f"{name} gives logits that are not finite: check its weights")
    probe, label = torch.zeros(2, data.num_classes, device=probe.device), data.train.labels[:2]
    for student in students:
        method = student.settings.method
        if not callable(method):
            continue
        try:
            value = method(probe, probe, label)
            fits = isinstance(value, Tensor) and value.ndim == 0
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(
                f"method={_name_of(method)} must take (student_logits, teacher_logits, labels) and "
                "return a tensor with one number; for the package's losses write their names, "
                "such as method='wttm'"
            )
