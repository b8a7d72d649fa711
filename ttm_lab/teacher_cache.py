"""A teacher's logits, remembered for each view of each picture.

Crop and flip make finitely many views of a picture (162 at 32x32), so a teacher's logits for a view
can be kept and used again: by other methods, seeds, epochs and later runs with that teacher. Over
240 epochs that start from nothing, about 48 % of the logits come from memory; a second run of that
length with the same teacher starts with 77 % of all views known.
"""

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttm_lab.data import Split
from ttm_lab.files import FileLock, user_path

# How many pictures the teacher sees at once. It is always exactly so many, because another number
# may mean another algorithm, and so another rounding of the same logits.
CHUNK = {"cpu": 64, "cuda": 256}
# How many batches are looked at together, so that full chunks come about.
AHEAD = 8


class TeacherCache:
    """Logits (K,) float32 by view number, in memory or in a file that outlives the process.

    A row is the K logits and their checksum. A row whose checksum does not fit counts as not
    known: an empty one, one that a power cut tore, one that another process is just writing. So
    several processes can share a file, and no second file says what the first one holds.

    Args:
        compute: the teacher in its final form: images (CHUNK, C, H, W) to logits (CHUNK, K).
        split: the pictures.
        augmentation: which views of them there are (``Split.count_views``).
        num_classes: K.
        path: the file, made if it is not there (sparse: it takes the room of what is known). None
            keeps the rows in memory. Either takes 3.3 GB for CIFAR-100 when full.

    Raises:
        ValueError: the file has another size.
        OSError: the disk has too little room.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        split: Split,
        augmentation: str,
        num_classes: int,
        path: str | Path | None = None,
    ):
        self.compute, self.split, self.augmentation = compute, split, augmentation
        self.chunk = CHUNK.get(split.labels.device.type, CHUNK["cuda"])
        self.asked = self.computed = 0
        self.path = None if path is None else user_path(path)
        # kept as bits: a checksum that looks like NaN must come back as it was
        shape = (len(split) * split.count_views(augmentation), num_classes + 1)
        if self.path is None:
            self._rows = np.zeros(shape, np.uint32)
        else:
            _make_file(self.path, 4 * shape[0] * shape[1])
            self._rows = np.memmap(self.path, np.uint32, "r+", shape=shape)

    @property
    def hit_rate(self) -> float:
        """The share of all logits so far that were known before they were asked for."""
        return 1 - self.computed / max(self.asked, 1)

    def batches(self, views: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch of view numbers (B,): these, and the logits (B, K) on its device.

        ``AHEAD`` batches are taken at a time, and what is not known of them is computed first.
        """
        while block := list(islice(views, AHEAD)):
            logits = self.look_up(torch.cat(block))
            yield from zip(block, logits.split([len(b) for b in block]), strict=True)

    def look_up(self, views: Tensor) -> Tensor:
        """Logits (B, K) float32 of views (B,), from memory as far as they are known."""
        numbers = views.cpu().numpy()
        rows = self._rows[numbers]
        unknown = np.flatnonzero(_checksum(rows[:, :-1]) != rows[:, -1])
        missing, places = np.unique(numbers[unknown], return_inverse=True)
        self.asked += len(numbers)
        self.computed += len(missing)
        if len(missing):
            rows[unknown] = self._compute(missing)[places]
        logits = rows[:, :-1].copy().view(np.float32)
        return torch.from_numpy(logits).to(self.split.labels.device)

    def _compute(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of these views, computed in chunks of one size and written down."""
        found = np.empty((len(numbers), self._rows.shape[1]), np.uint32)
        for start in range(0, len(numbers), self.chunk):
            some = numbers[start : start + self.chunk]
            filled = np.resize(some, self.chunk)  # the last chunk is filled up with repetitions
            images, _ = self.split.take(torch.from_numpy(filled), self.augmentation)
            logits = self.compute(images)[: len(some)].float()
            found[start : start + len(some), :-1] = logits.cpu().numpy().view(np.uint32)
        found[:, -1] = _checksum(found[:, :-1])
        self._rows[numbers] = found
        return found


def cache_file(folder: str | Path, teacher: str, split: Split, how: dict) -> Path:
    """The file of a cache, named after everything that decides its values.

    ``teacher`` is the network's ``runs.weights_fingerprint``; ``how`` names augmentation and
    precision, and says whether it is folded.
    """
    digest = hashlib.sha256(repr((teacher, sorted(how.items()))).encode())
    split.update(digest)
    return user_path(folder) / f"{digest.hexdigest()[:16]}.f32"


def _make_file(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        there = path.stat() if path.exists() else None
        if there is not None and there.st_size not in (0, size):
            raise ValueError(
                f"{path} has {there.st_size:,} bytes instead of {size:,}: it was cut off or is "
                "something else; delete it, and the teacher is asked again"
            )
        # a sparse file takes room only where something was written
        taken = getattr(there, "st_blocks", 0) * 512
        free = shutil.disk_usage(path.parent).free
        if free < size - taken:
            raise OSError(
                f"remembering a teacher takes up to {size / 1e9:.1f} GB in {path.parent}, where "
                f"{free / 1e9:.1f} GB are free: make room, set TTM_LAB_RUNS to a folder on a "
                "larger disk, or train with remember=False"
            )
        if there is None or not there.st_size:  # empty: a full disk or a kill came in between
            path.touch()
            os.truncate(path, size)


def _checksum(words: np.ndarray) -> np.ndarray:
    """CRC-32 of each row: it sees any two flipped bits, words that changed places, and empty rows.

    (That of zeros is never zero, which is what an empty row has in its place.)
    """
    return np.array([zlib.crc32(row) for row in words], np.uint32)
