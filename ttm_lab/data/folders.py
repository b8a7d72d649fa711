"""Picture folders with one folder per class: what lies there, and its pictures read."""

import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ttm_lab.data.splits import read_image

# Of each part its pictures, as paths below a root or as images (N, C, H, W), and its labels (N,).
Parts = dict[str, tuple[np.ndarray | Tensor, Tensor]]


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


def list_images(root: Path, sources: dict[str, str]) -> tuple[tuple[str, ...], Parts]:
    """Class names, and per part the pictures' paths relative to ``root`` with their labels (N,).

    Which files are pictures, torchvision's ``ImageFolder`` says; hidden ones are left out, and
    others with a warning. Sorted by path, so that every machine sees the same order.
    """
    from torchvision.datasets import ImageFolder  # slow to import
    from torchvision.datasets.folder import IMG_EXTENSIONS

    left_out, endings = Counter(), f"pictures end in {' '.join(IMG_EXTENSIONS)}"

    def is_picture(path: str) -> bool:
        hidden = os.sep + "." in path[len(str(root)) :]
        known = path.lower().endswith(IMG_EXTENSIONS)
        if not (known or hidden):
            left_out[Path(path).suffix.lower() or "without an ending"] += 1
        return known and not hidden

    label, files = {}, {}
    for part, folder in sources.items():
        try:
            found = ImageFolder(root / folder, is_valid_file=is_picture)
        except FileNotFoundError as error:  # no class folder, or one without pictures
            raise ValueError(
                f"{root / folder}: {error}. A class needs a folder there; its {endings}"
            ) from error
        label = label or found.class_to_idx  # train's, which comes first
        if unknown := sorted(set(found.classes) - set(label)):
            raise ValueError(
                f"{root / folder} holds the class {unknown[0]!r}, which {root / 'train'} lacks: "
                "the folders in 'train' say which classes there are"
            )
        pairs = sorted(
            (Path(path[len(str(root)) + 1 :]).as_posix(), label[found.classes[number]])
            for path, number in found.samples
        )
        paths, labels = zip(*pairs, strict=True)
        files[part] = np.array(paths, dtype=object), torch.tensor(labels)
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        warnings.warn(f"files of {root} that are left out: {kinds}; {endings}", stacklevel=4)
    return tuple(label), files


def typical_shape(root: Path, paths: np.ndarray) -> tuple[int, int]:
    """The medians of height and width, of a hundred pictures spread over all of ``paths``."""
    some = np.unique(np.linspace(0, len(paths) - 1, 100).astype(int))
    shapes = [read_image(root / paths[k]).size[::-1] for k in some]
    return tuple(np.quantile(shapes, 0.5, axis=0, method="lower").tolist())


def read_all(root: Path, paths: np.ndarray, shape: tuple[int, int], part: str) -> Tensor:
    """Every picture (N, 3, H, W) uint8, scaled and cut to ``shape`` (H, W)."""
    from PIL import Image, ImageOps

    pictures = np.empty((len(paths), *shape, 3), np.uint8)
    bar = tqdm(paths, desc=f"read {part}", unit="file", leave=False, disable=None)
    for number, path in enumerate(bar):
        picture = read_image(root / path)
        if picture.size != shape[::-1]:
            picture = ImageOps.fit(picture, shape[::-1], Image.Resampling.BILINEAR)
        pictures[number] = np.asarray(picture)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
