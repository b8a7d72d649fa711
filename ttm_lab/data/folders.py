"""Picture folders with one folder per class: in memory when small, read from file when not."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
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
    workers: int | None,
) -> Dataset:
    """The data set in folder ``root``; arguments as ``load_dataset`` describes them."""
    root = Path(root).expanduser().absolute()
    sources = _find_parts(name, root)
    class_names, files = _list_pictures(name, root, sources)

    first = _first_shape(root, files["train"][0], skip_corrupt)
    small = max(first) <= IN_MEMORY_SIDE
    shape = first if size is None else (size, size)
    in_memory = name == "folder" and max(shape) <= IN_MEMORY_SIDE

    pictures, labels, kept, broken = {}, {}, {}, []
    for part, (paths, classes) in files.items():
        good = np.arange(len(paths))
        if in_memory or skip_corrupt:
            pictures[part], good, lost = _read_all(
                root, paths, shape if in_memory else None, skip_corrupt, not small, part
            )
            broken += lost
        if not len(good):
            raise ValueError(f"no picture in {root / sources[part]} can be decoded")
        labels[part], kept[part] = torch.tensor(classes)[good], good
        files[part] = tuple(paths[i] for i in good)
    if broken:
        names = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        warnings.warn(
            f"{root}: left out {len(broken)} files that cannot be decoded: {names}", stacklevel=3
        )
        _refuse_lost_classes(root, class_names, labels["train"])

    # Where in which source each part of the data set lies.
    chosen = {part: (part, np.arange(len(k))) for part, k in kept.items()}
    if "validation" not in files:
        train, held_out = carve(labels["train"], validation, seed, class_names)
        chosen["train"], chosen["validation"] = ("train", train), ("train", held_out)

    if in_memory:
        scale = normalisation(pictures["train"][chosen["train"][1]])
        parts = {
            part: Split(pictures[source][i], labels[source][i], **scale)
            for part, (source, i) in chosen.items()
        }
    else:
        parts = {
            part: FileSplit(
                root,
                tuple(files[source][k] for k in i),
                labels[source][i],
                **IMAGENET_SCALE,
                size=size or 224,
                workers=workers,
            )
            for part, (source, i) in chosen.items()
        }
    indices = {part: kept[source][i] for part, (source, i) in chosen.items()}
    return Dataset(name, seed, class_names, **parts, indices=indices, skipped=len(broken))


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


def _list_pictures(name: str, root: Path, sources: dict[str, str]):
    """Class names, and per part the pictures' paths relative to ``root`` and their labels.

    Sorted by path, so that every machine sees the same order.
    """
    suffixes = _suffixes()
    found = {
        part: _files_of_classes(name, root, folder, suffixes) for part, folder in sources.items()
    }
    class_names = tuple(sorted(found["train"]))
    label = {name: k for k, name in enumerate(class_names)}
    files = {}
    for part, classes in found.items():
        if unknown := sorted(set(classes) - set(class_names)):
            raise ValueError(
                f"{root / sources[part]} holds the class {unknown[0]!r}, which {root / 'train'} "
                "lacks: the folders in 'train' say which classes there are"
            )
        pairs = sorted((path, label[name]) for name, paths in classes.items() for path in paths)
        files[part] = tuple(map(list, zip(*pairs, strict=True)))
    return class_names, files


def _files_of_classes(name: str, root: Path, part: str, suffixes: set[str]) -> dict[str, list[str]]:
    """Class name -> pictures at any depth below its folder, as POSIX paths from ``root``."""
    classes = {}
    for entry in sorted((root / part).iterdir()):
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        paths = classes[entry.name] = []
        for where, below, files in os.walk(entry, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            prefix = Path(where).relative_to(root).as_posix()
            paths += [
                f"{prefix}/{name}"
                for name in files
                if os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")
            ]
        if not paths:
            raise ValueError(
                f"the class folder {entry} holds no picture: fill it, or remove it from every part"
            )
    if not classes:
        raise ValueError(f"{root / part} holds no class folders: {layout(name, root)}")
    return classes


def _suffixes() -> set[str]:
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
    threads: bool,
    part: str,
) -> tuple[Tensor | None, np.ndarray, list[str]]:
    """Decode every file: pictures, their positions in ``paths``, and the files left out.

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

    pictures, kept, lost = [], [], []
    with ThreadPoolExecutor() as pool:
        results = pool.map(read, paths) if threads else map(read, paths)
        bar = tqdm(results, f"read {part}", len(paths), leave=False, unit="file")
        for i, pixels in enumerate(bar):
            if pixels is None:
                lost.append(paths[i])
            else:
                pictures.append(pixels)
                kept.append(i)
    kept = np.array(kept, dtype=np.int64)
    if shape is None or not pictures:
        return None, kept, lost
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), kept, lost


def _refuse_lost_classes(root: Path, class_names: tuple[str, ...], labels: Tensor) -> None:
    empty = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if len(empty):
        raise ValueError(f"no picture in {root / 'train' / class_names[empty[0]]} can be decoded")
