"""Data sets by name: where their pictures come from, and their split by seed."""

import os

import numpy as np
import torch
import torch.nn.functional as F

from ttm_lab.data.folders import layout, load_folder
from ttm_lab.data.splits import Dataset, Split, normalisation

NAMES = ("digits", "folder", "imagenet")


def load_dataset(
    name: str,
    *,
    seed: int = 0,
    root: str | os.PathLike | None = None,
    validation: float = 0.1,
    size: int | None = None,
    skip_corrupt: bool = False,
    workers: int | None = None,
) -> Dataset:
    """Load an image data set in three parts: train, validation and test.

    ``"digits"`` are the 1,797 handwritten digits that scikit-learn carries (8x8 grey pictures of
    the UCI test set, Alpaydin & Kaynak 1998): images (N, 1, 8, 8) float32 from 0 (paper) to 1
    (ink), labels int64 from 0 to 9; 60 % train, 20 % validation, 20 % test, each with the
    classes in equal shares. With ``size=32`` they are enlarged to 32x32 RGB uint8, so that
    whatever CIFAR takes runs on them.

    ``"folder"`` is any collection of pictures in ``root/train/<class>/`` and ``root/test/<class>/``
    or ``root/val/<class>/``; with all three, ``val`` is the validation part. Files of any size and
    mode become RGB. Pictures of up to 64x64 (or ``size`` up to 64) are held in memory as uint8
    (N, 3, H, W), scaled and cut to one size; larger ones stay in their files (``FileSplit``) and
    give 224x224, or ``size``.

    ``"imagenet"`` is such a folder, never held in memory, normalised with torchvision's constants;
    a number of classes other than 1000 is allowed with a warning.

    seed: draws the validation part; the same seed gives the same parts on every machine.
    validation: share of the training pictures that becomes the validation part, with the classes
        in equal shares; 0 leaves it empty. The test part is never touched.
    skip_corrupt: leave out and count files that cannot be decoded; otherwise the first is named in
        a ``ValueError`` (here if in memory, else when its batch comes).
    workers: processes that decode picture files (default: one per CPU core, at most 8).

    Raises ``ValueError`` for an argument out of range or pictures that do not fit the layout, and
    ``FileNotFoundError`` for a folder that is not there.

    Taught in notebooks/02_knowledge_distillation.ipynb (digits), 07_cifar100.ipynb and
    08_imagenet.ipynb.
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} must be a whole number from 0 to 4294967295")
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation!r} must be a share from 0 to below 1")
    for option, value, least in (("size", size, 1), ("workers", workers, 0)):
        if value is not None and (not isinstance(value, int | np.integer) or value < least):
            raise ValueError(f"{option}={value!r} must be a whole number from {least}, or None")
    if name == "digits":
        return _digits(int(seed), size)
    if name in ("folder", "imagenet"):
        if root is None:
            raise ValueError(f"load_dataset({name!r}) needs root=, the folder: {layout(name)}")
        if workers is None:
            workers = min(8, os.cpu_count() or 1)
        return load_folder(name, root, int(seed), validation, size, skip_corrupt, workers)
    raise ValueError(f"unknown data set {name!r}; available: {', '.join(map(repr, NAMES))}")


def _digits(seed: int, size: int | None) -> Dataset:
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
    scale = {}
    if size is not None:
        images = F.interpolate(images, size=(size, size), mode="bilinear").clamp(0, 1)
        images = images.mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        scale = normalisation(images[train])
    splits = {part: Split(images[i], labels[i], **scale) for part, i in indices.items()}
    return Dataset("digits", seed, tuple("0123456789"), **splits, indices=indices)
