"""Picture folders with one folder per class: in memory when small, read from file when not."""

import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ttm_lab.data.splits import (
    Dataset,
    FileSplit,
    Split,
    carve,
    depth,
    is_deep,
    normalisation,
    read_picture,
)
from ttm_lab.files import user_path

# What torchvision's pretrained networks were trained with.
IMAGENET_SCALE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
IN_MEMORY_SIDE = 64
# What devices and systems leave among pictures: thumbnails, waste, and lists of them.
_LEFT_BEHIND = {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx"}
_LEFT_BEHIND |= {"$recycle.bin", "system volume information", "lost+found", "desktop.ini"}
_LEFT_BEHIND |= {"thumbs.db", "ehthumbs.db"}
# Endings that Pillow registers for what it cannot read, or what is no picture.
_NO_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


def load_folder(
    name: str,
    root: str | os.PathLike,
    seed: int,
    validation: float,
    size: int | None,
    skip_corrupt: bool,
    workers: int,
    test_share: float | None = None,
) -> Dataset:
    """The data set in folder ``root``; arguments as ``load_dataset`` describes them."""
    root = user_path(root).absolute()
    sources = find_parts(name, root, test_share)
    class_names, files, ignored = list_pictures(name, root, sources)
    if ignored:
        warnings.warn(f"{root}: left out {ignored}", stacklevel=3)
    if name == "imagenet" and len(class_names) != 1000:
        warnings.warn(
            f"{root} holds {len(class_names)} classes. ImageNet has 1000, numbered in the order of "
            "the sorted WordNet ids: the answers of a pretrained network do not fit these labels",
            stacklevel=3,
        )

    typical, bits = _look_at_some(root, files["train"][0])
    small = max(typical) <= IN_MEMORY_SIDE
    shape = typical if size is None else (size, size)
    in_memory = name == "folder" and max(shape) <= IN_MEMORY_SIDE

    pictures, kept, lost = {}, {}, []
    for part, (paths, _) in files.items():
        kept[part] = np.arange(len(paths))
        if in_memory or skip_corrupt:
            wanted = shape if in_memory else None
            options = {"part": part, "threads": not small, "bits": bits}
            pictures[part], kept[part] = read_all(root, paths, wanted, skip_corrupt, **options)
            lost += [paths[i] for i in np.setdiff1d(np.arange(len(paths)), kept[part])]
    labels = {part: torch.from_numpy(files[part][1][k]) for part, k in kept.items()}
    if lost:
        _report_lost(root, lost, labels, sources, class_names)

    # Each part of the data set: the folder it comes from, and which of the kept pictures there.
    parts = {part: (part, np.arange(len(k))) for part, k in kept.items()}
    for part, share in (("test", test_share), ("validation", validation)):
        if part not in parts:
            pool = parts["train"][1]
            rest, drawn = carve(labels["train"][pool], share, seed, class_names, part)
            parts |= {"train": ("train", pool[rest]), part: ("train", pool[drawn])}

    scale = normalisation(pictures["train"][parts["train"][1]]) if in_memory else IMAGENET_SCALE
    splits, indices = {}, {}
    for part, (source, chosen) in parts.items():
        indices[part] = kept[source][chosen]
        if in_memory:
            splits[part] = Split(pictures[source][chosen], labels[source][chosen], **scale)
        else:
            paths = tuple(files[source][0][i] for i in indices[part])
            settings = {**scale, "size": size or 224, "workers": workers, "bits": bits}
            splits[part] = FileSplit(root, paths, labels[source][chosen], **settings)
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


def find_parts(name: str, root: Path, test_share: float | None = None) -> dict[str, str]:
    """Which folder under ``root`` each part comes from."""
    wanted = layout(name, root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: {wanted}")
    there = {part for part in ("train", "val", "test") if (root / part).is_dir()}
    if name == "imagenet":
        there.discard("test")  # the challenge's test pictures have no public labels
    if test_share is not None:
        if there & {"val", "test"}:
            raise ValueError(f"{root} has a folder 'test' or 'val': leave out test_share")
        return {"train": "train" if there else "."}
    if "train" not in there:
        found = sorted(p.name for p in root.iterdir() if p.is_dir())[:5]
        holds = f"it holds {', '.join(found)}" if found else "it holds no folder"
        wanted += "; of class folders alone a test part can be drawn: test_share=0.2 (--test-share)"
        raise FileNotFoundError(f"{root} has no folder 'train' ({holds}): {wanted}")
    if len(there) == 1:
        raise FileNotFoundError(
            f"{root} has no folder 'test' or 'val' to evaluate on beside 'train': {wanted}"
        )
    if there == {"train", "val", "test"}:
        return {"train": "train", "validation": "val", "test": "test"}
    return {"train": "train", "test": (there - {"train"}).pop()}


def list_pictures(
    name: str, root: Path, sources: dict[str, str]
) -> tuple[tuple[str, ...], dict[str, tuple[list[str], np.ndarray]], str]:
    """Class names, per part the pictures' paths relative to ``root`` with their labels, and a word
    on what was left out.

    Sorted by path, so that every machine sees the same order: file systems differ in it, and in
    how they write an accent (é as one character or as two).
    """
    found, others, folders = {}, Counter(), []
    for part, folder in sources.items():
        found[part] = {}
        inner = [path.name for path in (root / folder).iterdir() if path.is_dir()]
        for class_name in _without_leftovers(root / folder, inner, folders):
            where = root / folder / class_name
            if class_name.encode(errors="replace").decode() != class_name:
                raise ValueError(
                    f"the name of the class folder {os.fsencode(where)} is not UTF-8: rename it"
                )
            pictures, there = _find_pictures(root, where, folders)
            if str(where) in folders:
                continue
            if not pictures:
                raise ValueError(
                    f"the class folder {where} holds no picture"
                    + (f" but {_counted(there)}" if there else "")
                    + ": fill it, or remove it from every part"
                )
            others += there
            found[part].setdefault(normalize("NFC", class_name), []).extend(pictures)
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
        pairs = [(path, label[c]) for c, paths in classes.items() for path in paths]
        pairs.sort(key=lambda pair: (normalize("NFC", pair[0]), pair))
        files[part] = [path for path, _ in pairs], np.array([k for _, k in pairs])
    ignored = [_counted(others)] if others else []
    if folders:
        names = ", ".join(os.path.relpath(folder, root) for folder in folders[:3])
        more = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
        ignored.append(f"folders that lead back or that devices leave: {names}{more}")
    return class_names, files, "; ".join(ignored)


def _find_pictures(root: Path, folder: Path, ignored: list[str]) -> tuple[list[str], Counter]:
    """The pictures at any depth below a class folder, as POSIX paths from ``root``, and how many
    other files there are of each ending; folders passed over are added to ``ignored``."""
    suffixes, paths, others = _suffixes(), [], Counter()
    real, home = (Path(os.path.realpath(place)) for place in (folder, folder.parent))
    seen = {str(place) for place in (home, *home.parents, *real.parents)}
    for where, below, files in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(where)) in seen:  # a link led back here
            ignored.append(where)
            below.clear()
            continue
        seen.add(place)
        below[:] = _without_leftovers(where, below, ignored)
        prefix = Path(where).relative_to(root).as_posix()
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith(".") or file.lower() in _LEFT_BEHIND:
                continue
            if suffix in suffixes:
                paths.append(f"{prefix}/{file}")
            else:
                others[suffix or "without an ending"] += 1
    return paths, others


def _without_leftovers(where: str | Path, folders: list[str], ignored: list[str]) -> list[str]:
    """Those of the ``folders`` in ``where`` to look into, links last; others go to ``ignored``."""
    ignored += [os.path.join(where, name) for name in folders if name.lower() in _LEFT_BEHIND]
    return sorted(
        (name for name in folders if name[0] != "." and name.lower() not in _LEFT_BEHIND),
        key=lambda name: (os.path.islink(os.path.join(where, name)), name),
    )


def _counted(others: Counter) -> str:
    endings = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    return (
        f"files that Pillow reads no picture from: {endings}{', ...' if len(others) > 5 else ''} "
        "(save pictures among them as JPEG or PNG)"
    )


@cache
def _suffixes() -> set[str]:
    """The endings of picture files, in lower case, of every format that Pillow reads."""
    from PIL import Image

    Image.preinit()  # the common formats first: files are tried against them in this order
    known = Image.registered_extensions()
    return {s for s, kind in known.items() if kind in Image.OPEN and kind not in _NO_PICTURES}


def _look_at_some(root: Path, paths: list[str]) -> tuple[tuple[int, int], int]:
    """Height and width of the typical picture, and how many bits deep grey ones fill.

    By a hundred pictures spread over all of ``paths``, so that no odd one decides for the others:
    the medians of height and width, and the second largest number of bits.
    """
    from PIL import Image

    shapes, bits, problem = [], [], None
    for k in np.unique(np.linspace(0, len(paths) - 1, 100).astype(int)):
        try:
            with Image.open(root / paths[k]) as picture:
                if is_deep(picture):
                    bits.append(depth(picture))
                if max(picture.size) <= IN_MEMORY_SIDE:  # the large ones need not be turned upright
                    picture = read_picture(root / paths[k])
                shapes.append(picture.size[::-1])
        except Exception as error:  # named where all are read, unless there is none but such
            problem = problem or error
    if not shapes:
        raise ValueError(f"no picture in {root / 'train'} can be decoded: {problem}") from problem
    shape = np.quantile(shapes, 0.5, axis=0, method="lower")
    return tuple(shape.tolist()), sorted(bits or [16])[-2:][0]


def read_all(
    root: Path,
    paths: list[str],
    shape: tuple[int, int] | None,
    skip_corrupt: bool,
    *,
    part: str,
    threads: bool = False,
    bits: int = 16,
) -> tuple[Tensor | None, np.ndarray]:
    """Decode every file: the pictures, and the positions in ``paths`` of those that could be.

    Pictures are (N, 3, H, W) uint8 of ``shape`` (H, W), or None where no shape is wanted.
    ``threads`` pay for large pictures; with small ones they only wait for each other.
    """
    from PIL import Image, ImageOps

    def read(path: str) -> np.ndarray | None:
        try:
            picture = read_picture(root / path, bits)
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
