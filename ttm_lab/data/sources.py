"""Data sets by name: where their pictures come from, and their split by seed."""

import numpy as np
import torch
import torch.nn.functional as F

from ttm_lab.data.splits import Dataset, Split


def load_dataset(name: str, *, seed: int = 0, size: int | None = None) -> Dataset:
    """Load an image data set and split it by ``seed``.

    ``"digits"`` are the 1,797 handwritten digits that scikit-learn carries (8x8 grey pictures of
    the UCI test set, Alpaydin & Kaynak 1998): images (N, 1, 8, 8) float32 from 0 (paper) to 1
    (ink), labels int64 from 0 to 9; 60 % train, 20 % validation, 20 % test, each with the
    classes in equal shares. The same seed gives the same split on every machine. With ``size=32``
    they are enlarged to 32x32 RGB uint8, so that whatever CIFAR takes runs on them.

    Raises ``ValueError`` for an unknown name or a seed that is not a whole number from 0 to 2^32-1.

    Taught in notebooks/02_knowledge_distillation.ipynb.
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} must be a whole number from 0 to 4294967295")
    if name == "digits":
        return _digits(int(seed), size)
    raise ValueError(f"unknown data set {name!r}; available: 'digits'")


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


def normalisation(images: torch.Tensor) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), scaled to 0..1."""
    counts = torch.stack([images[:, c].flatten().bincount(minlength=256) for c in range(3)])
    share = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    std = (share @ values**2 - mean**2).clamp(min=1e-12).sqrt()
    return {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}
