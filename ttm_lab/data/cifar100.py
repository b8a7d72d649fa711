"""CIFAR-100 (Krizhevsky 2009) from any source: known by its pictures, not by its files."""

import hashlib
import io
import os
import warnings
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ttm_lab.data.folders import Parts, read_all
from ttm_lab.files import atomic_write, downloads_folder

# The sum over a part's pictures of their SHA-256, modulo 2**256: no order of files changes it.
CHECKSUMS = {
    "train": "7afde546adf0eaaf90d6a187a2f5bb05da66a26562c7fc2b39ac30cd18ecb7ba",
    "test": "e0dae92f17b2a82c4cb016b063db8906fb6e78ba24005027b71b4ef45d97d9a6",
}
COUNTS = {"train": 50_000, "test": 10_000}


def original_digests(part: str, images: Tensor, labels: Tensor) -> np.ndarray | None:
    """The SHA-256 of each picture (N, 3, 32, 32) uint8 with its label, as 64 hexadecimal digits.

    A picture is its label in one byte, then 3,072 bytes row by row, each pixel as RGB. None where
    they are not exactly those of CIFAR-100's ``part``, "train" or "test".
    """
    pixels = images.permute(0, 2, 3, 1).flatten(1)
    rows = torch.cat([labels[:, None].to(torch.uint8), pixels], 1).numpy()
    digests = np.array([hashlib.sha256(row).hexdigest() for row in rows])
    total = sum(int(digest, 16) for digest in digests) % 2**256
    return digests if f"{total:064x}" == CHECKSUMS[part] else None


def listed_validation(images: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the 45,000 pictures to train on, and of the 5,000 to validate on.

    Held out are the 50 pictures of each class whose SHA-256 is smallest, so that every source of
    CIFAR-100 gives the same ones. Raises ``ValueError`` for other pictures than CIFAR-100's.
    """
    digests = original_digests("train", images, labels)
    if digests is None:
        raise ValueError(
            f"validation='listed' names 5,000 of CIFAR-100's 50,000 training pictures; these "
            f"{len(labels):,} are not exactly those: give a share such as validation=0.1"
        )
    by_class = np.lexsort((digests, labels)).reshape(100, -1)
    held_out = np.sort(by_class[:, :50].flatten())
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def read_folders(root: Path, files: Parts) -> Parts | None:
    """CIFAR-100 from class folders, or None where the pictures are not exactly CIFAR-100's.

    Gives images (N, 3, 32, 32) uint8 and labels (N,) int64 of each part, in the order of ``files``
    (``list_images``). Decoded pictures are kept in ``cifar100-folders.npz`` in the data folder.
    That file is believed while all picture files have the names, sizes and times that it was made
    from, and its pictures have CIFAR-100's checksum.
    """
    if {part: len(labels) for part, (_, labels) in files.items()} != COUNTS:
        return None
    digest = hashlib.sha256()
    for paths, _ in files.values():
        for path in paths:
            found = os.stat(root / path)
            digest.update(os.fsencode(f"{path} {found.st_size} {found.st_mtime_ns}\n"))
    file, listing = downloads_folder() / "cifar100-folders.npz", digest.hexdigest()
    pictures = _read_kept(file, listing, files)
    if pictures is None:
        pictures = {
            part: (read_all(root, paths, (32, 32), part), labels)
            for part, (paths, labels) in files.items()
        }
        if not _are_original(pictures):
            return None
        buffer = io.BytesIO()
        np.savez(buffer, listing=listing, **{part: x.numpy() for part, (x, _) in pictures.items()})
        try:
            atomic_write(file, buffer.getbuffer())
        except OSError as error:
            warnings.warn(f"CIFAR-100 will be decoded again next time: {error}", stacklevel=4)
    return pictures


def _are_original(pictures: Parts) -> bool:
    return all(original_digests(part, *pair) is not None for part, pair in pictures.items())


def _read_kept(file: Path, listing: str, files: Parts) -> Parts | None:
    """The pictures decoded before, if the file is whole and made from these files."""
    try:
        with np.load(file) as kept:
            if str(kept["listing"]) == listing:
                pictures = {part: (torch.from_numpy(kept[part]), files[part][1]) for part in files}
                return pictures if _are_original(pictures) else None
    except (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, BadZipFile):
        pass  # missing or damaged: the picture files are read again
    return None
