"""Image data by name, split into train, validation and test parts by seed."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) float32 and labels (N,) int64 of one part of a data set."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device) -> "Split":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set in three parts that share no image.

    Choices (learning rate, epochs, loss weights) are made on ``validation``; ``test`` is looked
    at once, at the end.
    """

    name: str
    seed: int
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    indices: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            if split.images.ndim != 4 or split.labels.shape != split.images.shape[:1]:
                raise ValueError(
                    f"{self.name}: {part} needs images (N, C, H, W) and labels (N,), got "
                    f"{tuple(split.images.shape)} and {tuple(split.labels.shape)}"
                )
            if split.labels.dtype != torch.int64:
                raise TypeError(
                    f"{self.name}: {part} labels are {split.labels.dtype}; convert with .long()"
                )
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"{self.name}: {part} labels run from {low} to {high}, but there are "
                    f"{self.num_classes} classes (0 to {self.num_classes - 1})"
                )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every image and label: part of a run's identity."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for tensor in (split.images, split.labels):
                digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device) -> "Dataset":
        parts = {p: getattr(self, p).to(device) for p in ("train", "validation", "test")}
        return replace(self, **parts)


def load_dataset(name: str, *, seed: int = 0) -> Dataset:
    """Load an image data set and split it by ``seed``.

    ``"digits"`` are the 1,797 handwritten digits that scikit-learn carries (8x8 grey pictures of
    the UCI test set, Alpaydin & Kaynak 1998): images (N, 1, 8, 8) float32 from 0 (paper) to 1
    (ink), labels int64 from 0 to 9; 60 % train, 20 % validation, 20 % test, each with the
    classes in equal shares. The same seed gives the same split on every machine.

    Raises ``ValueError`` for an unknown name or a seed that is not a whole number from 0 to 2^32-1.

    Taught in notebooks/02_knowledge_distillation.ipynb.
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} must be a whole number from 0 to 4294967295")
    if name == "digits":
        return _digits(int(seed))
    raise ValueError(f"unknown data set {name!r}; available: 'digits'")


def _digits(seed: int) -> Dataset:
    from sklearn.datasets import load_digits  # slow to import, needed only here
    from sklearn.model_selection import train_test_split

    source = load_digits()
    everything = np.arange(len(source.target))
    # RandomState, which train_test_split uses for an int seed, is frozen across NumPy versions.
    rest, test = train_test_split(
        everything, test_size=0.2, stratify=source.target, random_state=seed
    )
    train, validation = train_test_split(
        rest, test_size=0.25, stratify=source.target[rest], random_state=seed
    )
    images = torch.from_numpy((source.images / 16).astype(np.float32)).unsqueeze(1)
    labels = torch.from_numpy(source.target.astype(np.int64))
    indices = {"train": train, "validation": validation, "test": test}
    splits = {part: Split(images[index], labels[index]) for part, index in indices.items()}
    return Dataset("digits", seed, tuple("0123456789"), **splits, indices=indices)
