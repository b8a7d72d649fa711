"""Data sets by name: where their pictures come from, and their split by seed."""

import os
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttm_lab.data import cifar100
from ttm_lab.data.folders import Parts, find_parts, layout, list_images, read_all, typical_shape
from ttm_lab.data.splits import Dataset, FileSplit, Split, hold_out, normalization
from ttm_lab.files import FileLock, downloads_folder, user_path

# Our names for torchvision's classes, which know each address and checksum.
DOWNLOADS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}
NAMES = ("digits", *DOWNLOADS, "folder", "imagenet")
# The constants of the published recipe, in place of measured ones.
CIFAR100_SCALE = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
# What torchvision's pretrained networks were trained with.
IMAGENET_SCALE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
IN_MEMORY_SIDE = 64


def load_dataset(
    name: str,
    *,
    seed: int = 0,
    root: str | os.PathLike | None = None,
    validation: float | str = 0.1,
    size: int | None = None,
    workers: int | None = None,
    test_share: float | None = None,
) -> Dataset:
    """Load an image data set in three parts: train, validation and test.

    ``"digits"`` are the 1,797 handwritten digits that scikit-learn carries (8x8 grey pictures of
    the UCI test set, Alpaydin & Kaynak 1998): images (N, 1, 8, 8) float32 from 0 (paper) to 1
    (ink), labels int64 from 0 to 9; 60 % train, 20 % validation, 20 % test, each with the
    classes in equal shares. With ``size=32`` they are enlarged to 32x32 RGB uint8, so that
    whatever CIFAR takes runs on them.

    ``"cifar10"``, ``"cifar100"`` (Krizhevsky 2009) and ``"fashion_mnist"`` (Xiao, Rasul & Vollgraf
    2017) are downloaded by torchvision, once and with their checksums, into ``root`` (default:
    ``$TTM_LAB_DATA``, else ``data/downloads``): uint8 (N, 3, 32, 32), or (N, 1, 28, 28) for
    Fashion-MNIST. With ``size`` they become RGB of that size. They are normalised by mean and
    standard deviation of the pictures trained on; CIFAR-100 by the published recipe's constants.

    ``"cifar100"`` also takes class folders, ``root/train/<class>/`` and ``root/test/<class>/``,
    such as those of the public repository cyizhuo/CIFAR-100-dataset. It knows CIFAR-100 by a
    checksum of pictures and labels; folders that hold others are loaded as ``"folder"``, with a
    warning. What was decoded is kept in the data folder and verified, so that the second time
    takes seconds.

    ``"folder"`` is any collection of pictures in ``root/train/<class>/`` and ``root/test/<class>/``
    or ``root/val/<class>/``; with all three, ``val`` is the validation part. Which files are
    pictures, torchvision's ``ImageFolder`` says; hidden ones are left out. They become RGB: upright
    as EXIF says, transparent pixels on white. Where the median height and width of (up to a
    hundred) training pictures are up to 64, or ``size`` is, all are held in memory as uint8
    (N, 3, H, W), scaled and cut to that size; otherwise they stay in their files (``FileSplit``)
    and give 224x224, or ``size``.

    ``"imagenet"`` is such a folder of ILSVRC2012 (``root/train/<wnid>/``, ``root/val/<wnid>/``),
    never held in memory; a number of classes other than 1000 is allowed with a warning. Pictures
    that stay in files are normalised by the constants of torchvision's pretrained networks.

    Args:
        name, root, size: as above.
        seed: draws the validation part; the same seed gives the same parts on every machine.
        validation: share of the training pictures that becomes the validation part, with the
            classes in equal shares; 0 leaves it empty. The test part is never touched. The digits
            have their fixed shares, a folder with ``val`` and ``test`` its own validation part.
            ``"listed"`` holds out, of CIFAR-100 alone, the same 5,000 pictures whatever their
            source and the seed: the 50 of each class whose SHA-256 (label byte, then pixels) is
            smallest.
        workers: processes that decode picture files (default: one per CPU core, at most 8).
        test_share: of a folder ``root/<class>/`` or ``root/train/<class>/`` without a test part,
            ``seed`` draws this share of each class for it.

    Raises:
        ValueError: an argument out of range, pictures that do not fit the layout or that cannot be
            decoded (those in memory here, others when their batch comes).
        FileNotFoundError: a folder that is not there.
        ConnectionError: a download failed; it says which file to put where.
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} must be a whole number from 0 to 4294967295")
    if validation == "listed" and name != "cifar100":
        raise ValueError(f"validation='listed' names pictures of cifar100, not of {name}")
    if validation != "listed" and (isinstance(validation, str) or not 0 <= validation < 1):
        raise ValueError(
            f"validation={validation!r} must be a share from 0 to below 1, or 'listed' for cifar100"
        )
    if test_share is not None and (name != "folder" or not 0 < test_share < 1):
        raise ValueError(f"test_share={test_share!r} must lie between 0 and 1, for 'folder' alone")
    for option, value, least in (("size", size, 1), ("workers", workers, 0)):
        if value is not None and (not isinstance(value, int | np.integer) or value < least):
            raise ValueError(f"{option}={value!r} must be a whole number from {least}, or None")
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; available: {', '.join(map(repr, NAMES))}")
    if name == "digits":
        if root is not None or validation != 0.1:
            raise ValueError(
                "the digits come with scikit-learn in fixed shares of 60, 20 and 20 %: leave out "
                "root and validation"
            )
        return _digits(int(seed), size)
    if root is None and name not in DOWNLOADS:
        raise ValueError(f"load_dataset({name!r}) needs root=, the folder: {layout(name)}")
    root = (downloads_folder() if root is None else user_path(root)).absolute()
    name, class_names, sources = _find(name, root, validation, test_share)
    shares = {"test": test_share, "validation": validation}
    indices = _draw_parts(sources, shares, int(seed), class_names)

    decode = name in ("folder", "imagenet")  # what was found are paths
    shape = None if size is None else (size, size)
    if decode and shape is None:
        shape = typical_shape(root, sources["train"][0])
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    scale = CIFAR100_SCALE if name == "cifar100" else None
    splits = {}
    for part, chosen in indices.items():
        pictures, labels = sources.get(part, sources["train"])
        pictures, labels = pictures[chosen], labels[chosen]
        if name == "imagenet" or (decode and max(shape) > IN_MEMORY_SIDE):
            options = {**IMAGENET_SCALE, "size": size or 224, "workers": workers}
            splits[part] = FileSplit(root, tuple(pictures), labels, **options)
            continue
        if decode:
            pictures = read_all(root, pictures, shape, part)
        elif shape:
            from torchvision.transforms.v2.functional import resize  # slow to import

            pictures = resize(pictures, shape, antialias=True).expand(-1, 3, -1, -1).contiguous()
        scale = scale or normalization(pictures)  # of train, which comes first
        splits[part] = Split(pictures, labels, **scale)
    return Dataset(name, int(seed), class_names, **splits, indices=indices)


def _find(name: str, root: Path, validation: float | str, test_share: float | None):
    """The data set's name, its class names, and what ``root`` holds: ``Parts``."""
    folders = (root / "train").is_dir() and not (root / "cifar-100-python").exists()
    if name in DOWNLOADS and not (name == "cifar100" and folders):
        train, test = _fetch(name, root)
        return name, tuple(train.classes), {"train": _tensors(train), "test": _tensors(test)}
    class_names, files = list_images(root, find_parts(name, root, test_share))
    if name == "cifar100":
        images = cifar100.read_folders(root, files)
        if images is not None:
            return name, class_names, images
        problem = f"{root} does not hold exactly CIFAR-100's pictures"
        if validation == "listed":
            raise ValueError(f"{problem}, of which validation='listed' names 5,000")
        warnings.warn(f"{problem}: they are loaded as a folder of pictures", stacklevel=3)
        name = "folder"
    if name == "imagenet" and len(class_names) != 1000:
        warnings.warn(
            f"{root} holds {len(class_names)} classes. ImageNet has 1000, numbered in the order of "
            "the sorted WordNet ids: the answers of a pretrained network do not fit these labels",
            stacklevel=3,
        )
    return name, class_names, files


def _draw_parts(sources: Parts, shares: dict, seed: int, class_names: tuple[str, ...]) -> dict:
    """Positions of each part's pictures in its source, or in train's, which then lacks them."""
    indices = {part: np.arange(len(labels)) for part, (_, labels) in sources.items()}
    for part, share in shares.items():
        if part not in sources:
            pool, (images, labels) = indices["train"], sources["train"]
            if share == "listed":
                rest, drawn = cifar100.listed_validation(images, labels)
            else:
                rest, drawn = hold_out(labels[pool], share, seed, class_names, part)
            indices |= {"train": pool[rest], part: pool[drawn]}
    return {part: indices[part] for part in ("train", "validation", "test")}


def _digits(seed: int, size: int | None) -> Dataset:
    from sklearn.datasets import load_digits  # slow to import, needed only here
    from sklearn.model_selection import train_test_split

    pixels, digits = load_digits(return_X_y=True)
    # RandomState, which train_test_split uses for an int seed, is frozen across NumPy versions.
    draw = partial(train_test_split, random_state=seed)
    rest, test = draw(np.arange(len(digits)), test_size=0.2, stratify=digits)
    train, validation = draw(rest, test_size=0.25, stratify=digits[rest])
    images = torch.from_numpy((pixels / 16).astype(np.float32)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(digits.astype(np.int64))
    indices = {"train": train, "validation": validation, "test": test}
    scale = {}
    if size is not None:
        images = F.interpolate(images, size=(size, size), mode="bilinear").clamp(0, 1)
        images = images.mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        scale = normalization(images[train])
    splits = {part: Split(images[i], labels[i], **scale) for part, i in indices.items()}
    return Dataset("digits", seed, tuple("0123456789"), **splits, indices=indices)


def _tensors(part) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, H, W) uint8 and labels (N,) int64 of a torchvision data set."""
    images = torch.as_tensor(part.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(part.targets, dtype=torch.int64)


def _fetch(name: str, root: Path) -> list:
    """Train and test part by torchvision, downloaded if they are not in ``root`` yet."""
    from torchvision import datasets

    kind = getattr(datasets, DOWNLOADS[name])
    try:
        with suppress(RuntimeError):  # torchvision's word for what is not there, or is damaged
            return [kind(root, train=train) for train in (True, False)]
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            return [kind(root, train=train, download=True) for train in (True, False)]
    except Exception as error:  # damaged files fail where they are read, each in its own way
        if hasattr(kind, "url"):
            folder, wanted = root, kind.url
        else:
            folder = root / kind.__name__ / "raw"
            wanted = ", ".join(kind.mirrors[0] + file for file, _ in kind.resources)
        raise ConnectionError(
            f"{name} cannot be read or downloaded ({error}): remove what is damaged in {folder}, "
            f"and where the network is the reason fetch {wanted} into it by another way. Without "
            "a download: load_dataset('digits', size=32)"
        ) from error
