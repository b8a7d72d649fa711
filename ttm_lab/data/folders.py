"""Picture folders with one folder per class: in memory when small, read from file when not."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ttm_lab.data.splits import Dataset, FileSplit, Split, carve, normalisation, read_picture

# What torchvision's pretrained networks were trained with.
IMAGENET_SCALE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
IN_MEMORY_SIDE = 64


def load_folder(
    name: str,
    root: str | os.PathLike,
    seed: int,
    validation: float,
    size: int | None,
    skip_corrupt: bool,
    workers: int,
) -> Dataset:
    """The data set in folder ``root``; arguments as ``load_dataset`` describes them."""
    root = Path(root).expanduser().absolute()
    sources = _find_parts(name, root)
    class_names, files = _list_pictures(name, root, sources)
    if name == "imagenet" and len(class_names) != 1000:
        warnings.warn(
            f"{root} holds {len(class_names)} classes. ImageNet has 1000, numbered in the order of "
            "the sorted WordNet ids: the answers of a pretrained network do not fit these labels",
            stacklevel=3,
        )

    first = _first_shape(root, files["train"][0], skip_corrupt)
    small = max(first) <= IN_MEMORY_SIDE
    shape = first if size is None else (size, size)
    in_memory = name == "folder" and max(shape) <= IN_MEMORY_SIDE

    pictures, kept, lost = {}, {}, []
    for part, (paths, _) in files.items():
        kept[part] = np.arange(len(paths))
        if in_memory or skip_corrupt:
            wanted = shape if in_memory else None
            found = _read_all(root, paths, wanted, skip_corrupt, threads=not small, part=part)
            pictures[part], kept[part] = found
            lost += [paths[i] for i in np.setdiff1d(np.arange(len(paths)), kept[part])]
    labels = {part: torch.from_numpy(files[part][1][k]) for part, k in kept.items()}
    if lost:
        _report_lost(root, lost, labels, sources, class_names)

    # Each part of the data set: the folder it comes from, and which of the kept pictures there.
    parts = {part: (part, np.arange(len(k))) for part, k in kept.items()}
    if "validation" not in parts:
        train, held_out = carve(labels["train"], validation, seed, class_names)
        parts |= {"train": ("train", train), "validation": ("train", held_out)}

    scale = normalisation(pictures["train"][parts["train"][1]]) if in_memory else IMAGENET_SCALE
    splits, indices = {}, {}
    for part, (source, chosen) in parts.items():
        indices[part] = kept[source][chosen]
        if in_memory:
            splits[part] = Split(pictures[source][chosen], labels[source][chosen], **scale)
        else:
            paths = tuple(files[source][0][i] for i in indices[part])
            splits[part] = FileSplit(
                root, paths, labels[source][chosen], **scale, size=size or 224, workers=workers
            )
    return Dataset(name, seed, class_names, **splits, indices=indices, skipped=len(lost))


def layout(name: str, root: str | os.PathLike = "root") -> str:
    """What has to lie where, for messages."""
    if name == "imagenet":
        return (
            "the training and validation pictures of ILSVRC2012 (from image-net.org, after "
            f"registration) belong in {root}/train/<wnid>/ and {root}/val/<wnid>/, one folder for "
            "each WordNet id such as n01440764"
        )
    return (
        f"pictures belong in {root}/train/<class>/ and in {root}/test/<class>/ (or "
        f"{root}/val/<class>/)"
    )


def _find_parts(name: str, root: Path) -> dict[str, str]:
    """Which folder under ``root`` each part comes from."""
    wanted = layout(name, root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: {wanted}")
    there = {part for part in ("train", "val", "test") if (root / part).is_dir()}
    if name == "imagenet":
        there.discard("test")  # the challenge's test pictures have no public labels
    if "train" not in there:
        found = sorted(p.name for p in root.iterdir() if p.is_dir())[:5]
        holds = f"it holds {', '.join(found)}" if found else "it holds no folder"
        raise FileNotFoundError(f"{root} has no folder 'train' ({holds}): {wanted}")
    if len(there) == 1:
        raise FileNotFoundError(
            f"{root} has no folder 'test' or 'val' to evaluate on beside 'train': {wanted}"
        )
    if there == {"train", "val", "test"}:
        return {"train": "train", "validation": "val", "test": "test"}
    return {"train": "train", "test": (there - {"train"}).pop()}


def _list_pictures(
    name: str, root: Path, sources: dict[str, str]
) -> tuple[tuple[str, ...], dict[str, tuple[list[str], np.ndarray]]]:
    """Class names, and per part the pictures' paths relative to ``root`` with their labels.

    Sorted by path, so that every machine sees the same order.
    """
    found = {}
    for part, folder in sources.items():
        found[part] = {
            entry.name: _find_pictures(root, entry)
            for entry in (root / folder).iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        }
        if not found[part]:
            raise ValueError(f"{root / folder} holds no class folders: {layout(name, root)}")
    class_names = tuple(sorted(found["train"]))
    label = {class_name: k for k, class_name in enumerate(class_names)}
    files = {}
    for part, classes in found.items():
        if unknown := sorted(set(classes) - set(class_names)):
            raise ValueError(
                f"{root / sources[part]} holds the class {unknown[0]!r}, which {root / 'train'} "
                "lacks: the folders in 'train' say which classes there are"
            )
        pairs = sorted((path, label[c]) for c, paths in classes.items() for path in paths)
        files[part] = [path for path, _ in pairs], np.array([k for _, k in pairs])
    return class_names, files


def _find_pictures(root: Path, folder: Path) -> list[str]:
    """The pictures at any depth below a class folder, as POSIX paths from ``root``."""
    suffixes, paths = _suffixes(), []
    for where, below, files in os.walk(folder, followlinks=True):
        below[:] = [inner for inner in below if not inner.startswith(".")]
        prefix = Path(where).relative_to(root).as_posix()
        paths += [
            f"{prefix}/{file}"
            for file in files
            if os.path.splitext(file)[1].lower() in suffixes and not file.startswith(".")
        ]
    if not paths:
        raise ValueError(
            f"the class folder {folder} holds no picture: fill it, or remove it from every part"
        )
    return paths


@cache
def _suffixes() -> set[str]:
    """The endings of picture files, in lower case, of every format that Pillow reads."""
    from PIL import Image

    Image.preinit()  # the common formats first: files are tried against them in this order
    known = Image.registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in Image.OPEN}


def _first_shape(root: Path, paths: list[str], skip_corrupt: bool) -> tuple[int, int]:
    """Height and width of the first picture (that can be decoded)."""
    for path in paths:
        try:
            return read_picture(root / path).size[::-1]
        except ValueError:
            if not skip_corrupt:
                raise
    raise ValueError(f"no picture in {root / 'train'} can be decoded")


def _read_all(
    root: Path,
    paths: list[str],
    shape: tuple[int, int] | None,
    skip_corrupt: bool,
    *,
    threads: bool,
    part: str,
) -> tuple[Tensor | None, np.ndarray]:
    """Decode every file: the pictures, and the positions in ``paths`` of those that could be.

    Pictures are (N, 3, H, W) uint8 of ``shape`` (H, W), or None where no shape is wanted.
    ``threads`` pay for large pictures; with small ones they only wait for each other.
    """
    from PIL import Image, ImageOps

    def read(path: str) -> np.ndarray | None:
        try:
            picture = read_picture(root / path)
        except ValueError:
            if skip_corrupt:
                return None
            raise
        if shape is None:
            return np.empty(0)
        if picture.size != shape[::-1]:
            picture = ImageOps.fit(picture, shape[::-1], Image.Resampling.BILINEAR)
        return np.asarray(picture)

    pictures, kept = [], []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(paths), desc=f"read {part}", unit="file", leave=False, disable=None) as bar,
    ):
        for start in range(0, len(paths), 1000):  # a million waiting jobs would fill the memory
            chunk = paths[start : start + 1000]
            for i, pixels in enumerate((pool.map if threads else map)(read, chunk), start):
                bar.update()
                if pixels is not None:
                    pictures.append(pixels)
                    kept.append(i)
    kept = np.array(kept, dtype=np.int64)
    if shape is None or not pictures:
        return None, kept
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), kept


def _report_lost(
    root: Path,
    lost: list[str],
    labels: dict[str, Tensor],
    sources: dict[str, str],
    class_names: tuple[str, ...],
) -> None:
    names = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    warnings.warn(
        f"{root}: left out {len(lost)} pictures that cannot be decoded: {names}", stacklevel=4
    )
    for part, folder in sources.items():
        if not len(labels[part]):
            raise ValueError(f"no picture in {root / folder} can be decoded")
    counts = np.bincount(labels["train"], minlength=len(class_names))
    if not counts.all():
        gone = root / "train" / class_names[int(counts.argmin())]
        raise ValueError(f"no picture in {gone} can be decoded")
