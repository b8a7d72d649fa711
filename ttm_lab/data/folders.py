"""Picture folders with one folder per class: in memory when small, read from file when not."""

import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ttm_lab.data.splits import Dataset, FileSplit, Split, carve, normalisation, read_picture
from ttm_lab.files import user_path

# What torchvision's pretrained networks were trained with.
IMAGENET_SCALE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
IN_MEMORY_SIDE = 64


def load_folder(
    name: str,
    root: str | os.PathLike,
    seed: int,
    validation: float,
    size: int | None,
    workers: int,
    test_share: float | None = None,
) -> Dataset:
    """The data set in folder ``root``; arguments as ``load_dataset`` describes them."""
    root = user_path(root).absolute()
    class_names, files = list_pictures(root, find_parts(name, root, test_share))
    if name == "imagenet" and len(class_names) != 1000:
        warnings.warn(
            f"{root} holds {len(class_names)} classes. ImageNet has 1000, numbered in the order of "
            "the sorted WordNet ids: the answers of a pretrained network do not fit these labels",
            stacklevel=3,
        )
    shape = _typical_shape(root, files["train"][0]) if size is None else (size, size)
    in_memory = name == "folder" and max(shape) <= IN_MEMORY_SIDE

    # Each part of the data set: the folder it comes from, and which of the pictures there.
    parts = {part: (part, np.arange(len(paths))) for part, (paths, _) in files.items()}
    for part, share in (("test", test_share), ("validation", validation)):
        if part not in parts:
            pool = parts["train"][1]
            labels = torch.from_numpy(files["train"][1][pool])
            rest, drawn = carve(labels, share, seed, class_names, part)
            parts |= {"train": ("train", pool[rest]), part: ("train", pool[drawn])}

    scale, pictures = IMAGENET_SCALE, {}
    if in_memory:
        pictures = {part: read_all(root, paths, shape, part) for part, (paths, _) in files.items()}
        scale = normalisation(pictures["train"][parts["train"][1]])
    splits = {}
    for part, (source, chosen) in parts.items():
        paths, labels = files[source]
        labels = torch.from_numpy(labels)[chosen]
        if in_memory:
            splits[part] = Split(pictures[source][chosen], labels, **scale)
        else:
            paths = tuple(paths[i] for i in chosen)
            splits[part] = FileSplit(
                root, paths, labels, **scale, size=size or 224, workers=workers
            )
    indices = {part: chosen for part, (_, chosen) in parts.items()}
    return Dataset(name, seed, class_names, **splits, indices=indices)


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


def find_parts(name: str, root: Path, test_share: float | None = None) -> dict[str, str]:
    """Which folder under ``root`` each part comes from."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: {layout(name, root)}")
    there = {part for part in ("train", "val", "test") if (root / part).is_dir()}
    if name == "imagenet":
        there.discard("test")  # the challenge's test pictures have no public labels
    if test_share is not None:
        if there & {"val", "test"}:
            raise ValueError(f"{root} has a folder 'test' or 'val': leave out test_share")
        return {"train": "train" if there else "."}
    if "train" not in there or len(there) == 1:
        found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
        raise FileNotFoundError(
            f"{root} holds {found}: {layout(name, root)}; of class folders alone a test part can "
            "be drawn: test_share=0.2 (--test-share)"
        )
    if there == {"train", "val", "test"}:
        return {"train": "train", "validation": "val", "test": "test"}
    return {"train": "train", "test": (there - {"train"}).pop()}


def list_pictures(
    root: Path, sources: dict[str, str]
) -> tuple[tuple[str, ...], dict[str, tuple[list[str], np.ndarray]]]:
    """Class names, and per part the pictures' paths relative to ``root`` with their labels.

    Which files are pictures, torchvision's ``ImageFolder`` says; hidden ones are left out, and
    others with a warning. Sorted by path, so that every machine sees the same order.
    """
    from torchvision.datasets import ImageFolder  # slow to import
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found, left_out = {}, Counter()

    def is_picture(path: str) -> bool:
        hidden = os.sep + "." in path[len(str(root)) :]
        known = path.lower().endswith(IMG_EXTENSIONS)
        if not (known or hidden):
            left_out[Path(path).suffix.lower() or "without an ending"] += 1
        return known and not hidden

    for part, folder in sources.items():
        try:
            found[part] = ImageFolder(root / folder, is_valid_file=is_picture)
        except FileNotFoundError as error:  # no class folder, or one without pictures
            raise ValueError(
                f"{root / folder}: {error}. A class needs a folder there; its pictures end in "
                f"{' '.join(IMG_EXTENSIONS)}"
            ) from error
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        warnings.warn(
            f"files of {root} that are left out: {kinds}; pictures end in "
            f"{' '.join(IMG_EXTENSIONS)}",
            stacklevel=4,
        )
    label, files = found["train"].class_to_idx, {}
    for part, pictures in found.items():
        if unknown := sorted(set(pictures.classes) - set(label)):
            raise ValueError(
                f"{root / sources[part]} holds the class {unknown[0]!r}, which {root / 'train'} "
                "lacks: the folders in 'train' say which classes there are"
            )
        pairs = sorted(
            (Path(path[len(str(root)) + 1 :]).as_posix(), label[pictures.classes[number]])
            for path, number in pictures.samples
        )
        files[part] = [path for path, _ in pairs], np.array([number for _, number in pairs])
    return tuple(found["train"].classes), files


def _typical_shape(root: Path, paths: list[str]) -> tuple[int, int]:
    """The medians of height and width, of a hundred pictures spread over all of ``paths``."""
    some = np.unique(np.linspace(0, len(paths) - 1, 100).astype(int))
    shapes = [read_picture(root / paths[k]).size[::-1] for k in some]
    return tuple(np.quantile(shapes, 0.5, axis=0, method="lower").tolist())


def read_all(root: Path, paths: list[str], shape: tuple[int, int], part: str) -> Tensor:
    """Every picture (N, 3, H, W) uint8, scaled and cut to ``shape`` (H, W)."""
    from PIL import Image, ImageOps

    def read(path: str) -> np.ndarray:
        picture = read_picture(root / path)
        if picture.size != shape[::-1]:
            picture = ImageOps.fit(picture, shape[::-1], Image.Resampling.BILINEAR)
        return np.asarray(picture)

    bar = tqdm(paths, desc=f"read {part}", unit="file", leave=False, disable=None)
    pictures = np.stack([read(path) for path in bar])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
