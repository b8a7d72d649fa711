"""Checks before any long work: do data, networks, losses and settings fit together?"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ttm_lab import distributed
from ttm_lab.data import Dataset, FileSplit
from ttm_lab.models import logits_of
from ttm_lab.objectives import Output, name_of, recorded
from ttm_lab.settings import Settings
from ttm_lab.teacher import Teacher


def check_data(data: Dataset, settings: Sequence[Settings]) -> None:
    """Refuse settings that do not fit the data, and either for too many processes."""
    for s in settings:
        if s.remember and isinstance(data.train, FileSplit):
            raise ValueError(
                f"remember=True does not fit {data.name}: only pictures held in memory (of at most "
                "64x64 pixels) have a countable number of views"
            )
        if s.augmentation not in data.train.augmentations:
            raise ValueError(
                f"augmentation={s.augmentation!r} does not fit {data.name}, whose pictures offer "
                f"{data.train.augmentations}"
            )
        if s.batch_size < distributed.world_size():
            raise ValueError(
                f"batch_size={s.batch_size} is the batch of all {distributed.world_size()} "
                "processes together: give at least one picture to each"
            )
    for name in ("train", "validation", "test"):
        if 0 < len(getattr(data, name)) < distributed.world_size():
            raise ValueError(f"{data.name}: {name} has fewer pictures than there are processes")


def check_network(name: str, model: nn.Module, data: Dataset) -> None:
    """Run a network, in eval mode from then on, on one image: a mismatch shows at once."""
    probe, _ = next(data.train.batches(1, order=torch.tensor([0])))
    _check_answer(name, model.eval(), probe, data)


def check_student(student, data: Dataset) -> None:
    """Run a ``Student`` on one image, and in training mode on a batch as small as its smallest."""
    model, settings = student.model, student.settings
    check_network(settings.model, model, data)
    images, size = len(data.train), settings.batch_size
    cut = student.last_step < student.per_epoch
    smallest = min(2, size if cut else images % size or size)
    probe, _ = next(data.train.batches(2, order=torch.arange(min(images, smallest))))
    hint = f"; batch_size={size} makes a batch of one of {images} pictures: give another"
    hint, name = hint if len(probe) == 1 else "", f"{settings.model} in training"
    # on a copy, since batch norm changes its running statistics
    _check_answer(name, copy.deepcopy(model).train(), probe, data, hint)


@torch.no_grad()
def check_objective(student, teacher: Teacher | None, data: Dataset) -> None:
    """Compute a ``Student``'s objective once, on two images, where the user wrote it."""
    settings, objective = student.settings, student.objective
    if isinstance(settings.method, str):
        return
    features = [*objective.student_features, *objective.teacher_features]
    for switch in ("remember", "compiled"):
        if features and getattr(settings, switch):
            raise ValueError(f"{switch}=True does not fit {settings.name}, which uses features")
    samples = torch.arange(min(2, len(data.train)))
    images, labels = next(data.train.batches(2, order=samples))
    with recorded(student.model.eval(), objective.student_features) as seen:
        logits = logits_of(student.model(images))
    answer = teacher and teacher.output(images, settings, objective.teacher_features)
    try:
        objective = copy.deepcopy(objective).eval()  # a memory bank stays as it is
        terms, reason = objective(Output(logits, seen, samples), answer, labels), ""
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        terms, reason = {"": None}, f" ({error})"
    if not all(isinstance(t, Tensor) and t.ndim == 0 for t in terms.values()):
        raise ValueError(
            f"method={name_of(settings.method)} must take (student_logits, teacher_logits, labels)"
            f" and return a tensor with one number{reason}; the package's losses also go by their "
            "names, such as method='wttm'"
        )


@torch.no_grad()
def _check_answer(name: str, network, images: Tensor, data: Dataset, hint: str = "") -> None:
    shape, wanted = tuple(images.shape[1:]), (len(images), data.num_classes)
    try:
        output = network(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{name} does not take the pictures of {data.name}, {shape}: {error}{hint}"
        ) from error
    try:
        logits = logits_of(output)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if tuple(logits.shape) != wanted:
        raise ValueError(
            f"{name} gives logits {tuple(logits.shape)} for {wanted[0]} of the pictures of "
            f"{data.name}, expected {wanted}: build it with num_classes={data.num_classes}"
        )
    if not torch.isfinite(logits).all():
        raise ValueError(f"{name} gives logits that are not finite: check its weights")
    if (logits >= 0).all() and ((logits.sum(-1) - 1).abs() < 1e-3).all():
        raise ValueError(f"{name} gives probabilities, not logits: leave its last softmax out")
