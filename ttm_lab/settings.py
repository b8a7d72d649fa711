"""The recipe of one training: everything that decides its result, data and seed aside."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ttm_lab.data import FileSplit, Split
from ttm_lab.objectives import METHODS, Objective, Term, name_of

_CHOICES = {
    "schedule": ("steps", "cosine"),
    "optimizer": ("sgd", "adamw"),
    "augmentation": tuple(dict.fromkeys(Split.augmentations + FileSplit.augmentations)),
    "precision": ("float32", "bfloat16"),
    "track_test": (False, True),
    "remember": (False, True),
    "fold_batch_norm": (False, True),
    "compiled": (False, True),
}
# The kind of each number, and whether zero is allowed.
_NUMBERS = {
    "epochs": (int, False),
    "batch_size": (int, False),
    "max_steps": (int, False),
    "warmup_epochs": (int, True),
    "temperature": (float, False),
    "learning_rate": (float, False),
    "learning_rate_decay": (float, False),
    "distill_weight": (float, True),
    "ce_weight": (float, True),
    "momentum": (float, True),
    "weight_decay": (float, True),
}


@dataclass(frozen=True)
class Settings:
    """How one student (or teacher) is trained.

    The loss is ``ce_weight * CE + distill_weight * method``. ``method`` is ``"ce"`` (no second
    term), ``"kd"``, ``"ttm"``, ``"wttm"``, ``"dkd"``, ``"dist"``, or with ``+std`` behind it on
    standardised logits; a loss of ``ttm_lab.losses`` such as ``WTTMLoss(4.0)``, a function
    ``loss(student_logits, teacher_logits, labels)`` that returns a scalar tensor, or a ``Term``;
    or an ``objectives.Objective``, whose terms are then the whole loss.

    The defaults of optimizer and schedule are the paper's for CIFAR-100 (official code,
    ``train_student.py``): SGD with momentum, learning rate x 0.1 after 150, 180 and 210 of 240
    epochs, in ``decay_at`` as fractions of ``epochs``. ``temperature`` and ``distill_weight``
    have no good general default (the paper tunes both per pair, Table 8), so they must be given;
    ``paper.settings`` gives the published ones of a pair. A loss that is not given by its name has
    a temperature of its own; the one here then only measures the divergence from the teacher.

    ``name`` is what tables and run folders call it, by default the method's. ``batch_size`` is the
    batch of all processes together. ``schedule`` is ``"steps"`` (the
    rate falls at ``decay_at``) or ``"cosine"`` (to zero), after ``warmup_epochs`` of linear rise.
    ``optimizer`` is ``"sgd"`` or ``"adamw"`` (without ``momentum``). ``augmentation`` is one that
    the data offers (``data.train.augmentations``). ``precision`` ``"bfloat16"`` runs the networks
    under autocast; losses are computed in float32 either way. ``track_test`` adds test columns to
    the history, since published code often reports the best epoch on test; nothing here chooses by
    it. ``max_steps`` cuts a training short, to try things out.

    Three switches are for speed and change rounding only. ``remember`` keeps the teacher's logits
    for each view of each picture (``teacher_cache.TeacherCache``; pictures held in memory only).
    ``fold_batch_norm`` lets the teacher's convolutions do the work of the batch norms after them.
    ``compiled`` runs the student through ``torch.compile``, which takes half a minute or more at
    first. ``fast`` chooses those that help on a device.

    Raises ``ValueError`` naming the field that makes no sense.
    """

    model: str
    method: str | Callable[[Tensor, Tensor, Tensor], Tensor] | Term | Objective = "ce"
    temperature: float | None = None
    distill_weight: float | None = None
    ce_weight: float = 1.0
    epochs: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_at: tuple[float, ...] = (150 / 240, 180 / 240, 210 / 240)
    learning_rate_decay: float = 0.1
    schedule: str = "steps"
    warmup_epochs: int = 0
    optimizer: str = "sgd"
    augmentation: str = "none"
    precision: str = "float32"
    track_test: bool = False
    remember: bool = False
    fold_batch_norm: bool = True
    compiled: bool = False
    max_steps: int | None = None
    name: str = field(default="", compare=False)

    def __post_init__(self):
        method = self.method
        if not callable(method) and method not in ("ce", *METHODS):
            raise ValueError(
                f"method={method!r} must be one of {('ce', *METHODS)}, a loss or an Objective"
            )
        weighted = method != "ce" and not isinstance(method, Objective)
        for name in ("temperature", "distill_weight") if weighted else ():
            named = name == "distill_weight" or isinstance(method, str)  # a loss has its own T
            if named and getattr(self, name) is None:
                raise ValueError(f"{name} must be given for method={method!r}")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}={value!r} must be one of {choices}")
            object.__setattr__(self, name, choices[choices.index(value)])  # 1 is stored as True
        for name, (kind, zero) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None:
                continue
            value = whole_number(name, value) if kind is int else number(name, value)
            if not (value >= 0 if zero else value > 0) or not value < math.inf:
                least = "zero or positive, and finite" if zero else "positive and finite"
                raise ValueError(f"{name}={value!r} must be {least}")
            object.__setattr__(self, name, value)  # plain kinds: equal settings are then one run
        if not hasattr(self.decay_at, "__iter__"):
            raise ValueError(f"decay_at={self.decay_at!r} must be several numbers, as (0.5,)")
        fractions = tuple(number("decay_at", f) for f in self.decay_at)
        object.__setattr__(self, "decay_at", fractions)
        if not all(0 < f <= 1 for f in fractions):
            raise ValueError(f"decay_at={self.decay_at} must be fractions of the epochs")
        if not self.name:
            object.__setattr__(self, "name", name_of(method))

    def steps(self, images: int) -> int:
        """How many steps of the optimizer a training with so many images takes."""
        steps = self.epochs * math.ceil(images / self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of ``epoch``, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * (epoch + 1) / self.warmup_epochs
        if self.schedule == "cosine":
            part = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1)
            return self.learning_rate * (1 + math.cos(math.pi * part)) / 2
        passed = sum(epoch >= round(f * self.epochs) for f in self.decay_at)
        return self.learning_rate * self.learning_rate_decay**passed


def fast(device: str | torch.device | None = None) -> dict:
    """Fields of ``Settings`` that make training faster on a device at the same accuracy.

    bfloat16 where the hardware multiplies it, remembered teacher logits, folded batch norm. What
    each brings is measured in ``benchmarks/results``; ``compiled`` is not among them, since on a
    CPU it did not pay. By default for the device that training would take.
    """
    device = default_device(device)
    if device.type == "cuda":
        hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        hardware = device.type == "cpu" and any(able.get(k) for k in ("amx_bf16", "avx512_bf16"))
    precision = "bfloat16" if hardware else "float32"
    return {"precision": precision, "remember": True, "fold_batch_norm": True}


def default_device(device: str | torch.device | None) -> torch.device:
    """The device that training takes: as given, else a GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def number(name: str, value) -> float:
    """``value`` as a plain float; ``ValueError`` naming it where it is none."""
    try:
        if isinstance(value, bool | str):  # which float() would take
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}={value!r} must be a number") from None


def whole_number(name: str, value, limit: int = 2**63) -> int:
    """``value`` as a plain int below ``limit``; ``ValueError`` naming it where it is none."""
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be a whole number") from None
    if value >= limit:
        raise ValueError(f"{name}={value} must be less than {limit}")
    return value
