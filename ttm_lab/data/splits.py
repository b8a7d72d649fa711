"""A data set in parts, and how a part becomes batches: in memory or from picture files."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, held in memory.

    ``images`` (N, C, H, W) are float32 as networks take them, or uint8 from 0 to 255 with the
    ``mean`` and ``std`` of each channel (of pixel values scaled to 0..1) that normalise them.
    ``labels`` (N,) are int64.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    augmentations = ("none", "crop", "crop-flip")
    evaluation_batch_size = 1024

    def __post_init__(self):
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "a split needs images (N, C, H, W) and labels (N,), got "
                f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )
        if (self.images.dtype == torch.uint8) != (self.mean is not None):
            raise ValueError(
                f"images are {self.images.dtype} and mean is {self.mean}: uint8 images come with "
                "mean and std, float images are taken as they are"
            )
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"std={self.std} must be above 0 for every channel")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device) -> "Split":
        """The same on a device, laid out channels last: whole pixels are then copied at once."""
        images = self.images.to(device, memory_format=torch.channels_last)
        return replace(self, images=images, labels=self.labels.to(device))

    def batches(self, batch_size: int, *, augmentation: str = "none", **options) -> Batches:
        """Batches of images (B, C, H, W) float32 and labels (B,), on this part's device.

        ``options`` are those of ``views``.
        """
        for views in self.views(batch_size, augmentation=augmentation, **options):
            yield self.take(views, augmentation)

    def count_views(self, augmentation: str) -> int:
        """How many different pictures the augmentation makes of one: 162 for crop-flip at 32x32."""
        _check_augmentation(self, augmentation)
        rows, columns = _moves(*self.images.shape[-2:])
        return {"none": 1, "crop": rows * columns, "crop-flip": 2 * rows * columns}[augmentation]

    def views(
        self,
        batch_size: int,
        *,
        order: Tensor | None = None,
        augmentation: str = "none",
        seed: int = 0,
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Tensor]:
        """What ``batches`` gives, as whole numbers (B,) that ``take`` makes images of.

        View v of picture i is ``i * count_views(augmentation) + v``; equal numbers are equal
        images, bit for bit.

        Args:
            batch_size: pictures a batch; the last one may be smaller.
            order: positions to take (default: all, as they stand).
            augmentation: ``"crop"`` moves each picture at random by up to an eighth of its size (4
                pixels of 32; black comes in), ``"crop-flip"`` also mirrors every second one.
            seed: batch k is augmented from ``seed + k``, whatever was asked for before.
            start: the first batch to give.
            shard: ``(k, n)`` gives picture k, k + n, ... of each batch, for process k of n; a batch
                with fewer than n pictures, at the end, is given whole.
        """
        count, moves = self.count_views(augmentation), _moves(*self.images.shape[-2:])
        for step, batch, mine in _numbered_batches(len(self), batch_size, order, start, shard):
            view, size = 0, (len(batch),)
            generator = torch.Generator().manual_seed(seed + step)
            if augmentation != "none":
                top, left = (torch.randint(n, size, generator=generator) for n in moves)
                view = top * moves[1] + left
            if augmentation == "crop-flip":
                view = 2 * view + (torch.rand(size, generator=generator) < 0.5)
            yield (batch * count + view)[mine]

    def take(self, views: Tensor, augmentation: str) -> tuple[Tensor, Tensor]:
        """The images (B, C, H, W) float32 and labels (B,) of ``views`` (B,), on this device."""
        views = views.to(self.labels.device)
        count = self.count_views(augmentation)
        picture, view = views // count, views % count
        pixels = self.images.permute(0, 2, 3, 1).index_select(0, picture)
        if augmentation != "none":
            pixels = _crop(pixels, view, flip=augmentation == "crop-flip")
        if self.mean is not None:  # row by row, since rows of 3 are slow
            shift, factor = self._scale
            pixels = torch.addcmul(shift, pixels.flatten(2).float(), factor).view_as(pixels)
        return pixels.permute(0, 3, 1, 2), self.labels[picture]

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """What to add to a row of pixels, and to multiply it with before; on this device."""
        width, device = self.images.shape[-1], self.labels.device
        mean, std = (torch.tensor(v, device=device).repeat(width) for v in (self.mean, self.std))
        return -mean / std, 1 / (255 * std)

    def update(self, digest) -> None:
        """Add every image and label to a hash."""
        for tensor in (self.images, self.labels):
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        if self.mean is not None:
            digest.update(repr((self.mean, self.std)).encode())


def _check_augmentation(part: "Split | FileSplit", name: str) -> None:
    if name not in part.augmentations:
        raise ValueError(
            f"augmentation={name!r} does not fit a {type(part).__name__}, which offers "
            f"{part.augmentations}"
        )


def _moves(height: int, width: int) -> tuple[int, int]:
    """How many first rows, and first columns, a crop of the padded picture can have."""
    return 2 * (height // 8) + 1, 2 * (width // 8) + 1


def _numbered_batches(count: int, batch_size: int, order=None, start: int = 0, shard=(0, 1)):
    """Each batch's number, from ``start`` on, its positions, and which of them the shard has."""
    order = torch.arange(count) if order is None else order.cpu()
    for number, batch in enumerate(order.split(batch_size)):
        if number >= start and len(batch):
            whole = len(batch) < shard[1]
            yield number, batch, slice(None) if whole else slice(shard[0], None, shard[1])


def _crop(pixels: Tensor, view: Tensor, flip: bool) -> Tensor:
    """Crop each padded picture (B, H, W, C) as its ``view`` (B,) says, and mirror it if odd."""
    count, height, width, channels = pixels.shape
    padded = F.pad(pixels, [0, 0, width // 8, width // 8, height // 8, height // 8])
    # every possible crop as a view on the padded picture, a row of pixels in one piece
    picture, row, pixel, _ = padded.stride()
    rows, columns = _moves(height, width)
    shape = (count, rows, columns, height, width * channels)
    crops = padded.as_strided(shape, (picture, row, pixel, row, 1))
    number = torch.arange(count, device=pixels.device)
    move = view // 2 if flip else view
    cropped = crops[number, move // columns, move % columns].view_as(pixels)
    if not flip:
        return cropped
    # torch mirrors channels-last pictures fast, but only along their last dimension
    other = cropped.permute(0, 3, 1, 2).flip(-1).permute(0, 2, 3, 1)
    return torch.cat([cropped, other]).index_select(0, number + count * (view % 2))


@dataclass(frozen=True, eq=False)
class FileSplit:
    """One part of a data set whose pictures stay in their files and are decoded when needed.

    ``paths`` of the N pictures, ``labels`` (N,) int64, ``size`` of the square that networks get.
    Worker processes decode, convert to RGB and transform (torchvision's v2 transforms).
    ``root`` is the folder that ``paths`` are relative to.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int = 224
    workers: int = 0
    device: str | torch.device = "cpu"

    augmentations = ("none", "resized-crop-flip")
    evaluation_batch_size = 256

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device) -> "FileSplit":
        return replace(self, labels=self.labels.to(device), device=device)

    def batches(
        self, batch_size: int, *, augmentation: str = "none", seed: int = 0, **options
    ) -> Batches:
        """As ``Split.batches``, decoded by ``workers`` processes ahead of need.

        Args:
            batch_size, seed: as ``Split.views`` has them.
            augmentation: ``"resized-crop-flip"`` is torchvision's RandomResizedCrop and mirrors
                every second picture; ``"none"`` scales the shorter side to 8/7 of ``size`` (256
                for 224) and cuts out the middle.
            options: the ``order``, ``start`` and ``shard`` of ``Split.views``.
        """
        _check_augmentation(self, augmentation)
        batches = list(_numbered_batches(len(self), batch_size, **options))

        def keys():  # one batch after another: an epoch of ImageNet at once takes seconds
            for step, batch, mine in batches:
                numbered = list(enumerate(batch.tolist()))[mine]
                yield [(position, seed + step, number) for number, position in numbered]

        loader = torch.utils.data.DataLoader(
            _Images(self, augmentation != "none"),
            batch_sampler=keys(),
            num_workers=min(self.workers, len(batches)),
            pin_memory=torch.device(self.device).type == "cuda",
            generator=torch.Generator(),  # else it draws from, and so moves, torch's own
        )
        mean, std = (
            torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        # Bytes travel to the device, a quarter of what numbers would take, and whole batches are
        # normalised there, with the operations of torchvision's ToDtype and Normalize.
        for pixels, labels in loader:
            images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            images = images.to(torch.float32, memory_format=torch.contiguous_format)
            images.mul_(1 / 255).sub_(mean).div_(std)
            yield images, labels.to(self.device, non_blocking=True)

    def update(self, digest) -> None:
        """Add names, file sizes and labels to a hash: reading ImageNet whole would take hours."""
        digest.update(repr((self.size, self.mean, self.std)).encode())
        for path in self.paths:
            digest.update(os.fsencode(f"{path} {(self.root / path).stat().st_size}\n"))
        digest.update(self.labels.cpu().numpy().tobytes())


class _Images(torch.utils.data.Dataset):
    """What the loader's processes hold: the pixels (H, W, C) uint8 of one picture, and its label.

    A key is the picture's position, its batch's random seed, and its number in that batch.
    """

    def __init__(self, split: FileSplit, augment: bool):
        from torchvision.transforms import v2

        self.root, self.paths, self.labels = split.root, split.paths, split.labels.cpu()
        if augment:
            steps = v2.RandomResizedCrop(split.size, antialias=True), v2.RandomHorizontalFlip()
        else:
            steps = v2.Resize(split.size * 8 // 7, antialias=True), v2.CenterCrop(split.size)
        self.transform = v2.Compose([v2.PILToTensor(), *steps])

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        position, seed, number = key
        picture = read_image(self.root / self.paths[position])
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed takes half a millisecond
            torch.default_generator.manual_seed(hash_seed(seed, number))
            pixels = self.transform(picture)
        return pixels.permute(1, 2, 0), self.labels[position]  # Pillow's and the resizing's layout


def read_image(path: Path):
    """A picture file as an RGB ``PIL.Image``, upright, transparent pixels on white.

    Raises ``ValueError`` naming a file that cannot be decoded, or holds more than 8 bits of grey.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            picture.load()
            with contextlib.suppress(Exception):  # a damaged EXIF says nothing
                ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode.startswith(("I", "F")):  # Pillow would clip its values at 255
                raise ValueError("grey values of more than 8 bits: save it with 8")
            if picture.has_transparency_data:
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture.convert("RGBA"))
            return picture.convert("RGB")
    except Exception as error:  # each format's decoder fails in its own way
        raise ValueError(f"{path} cannot be decoded ({error}): replace or remove it") from error


def normalization(images: Tensor) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), scaled to 0..1.

    A standard deviation below one grey level, 1/255, is replaced by that.
    """
    counts = torch.stack([c.flatten().bincount(minlength=256) for c in images.unbind(1)])
    share = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    std = (share @ values**2 - mean**2).clamp(min=255**-2).sqrt()
    return {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}


def hold_out(
    labels: Tensor, share: float, seed: int, class_names: tuple[str, ...], name: str = "validation"
) -> tuple[np.ndarray, np.ndarray]:
    """Positions to train on, and a ``share`` of all for part ``name``, with equal class shares.

    Raises ``ValueError`` if a class has too few pictures to stand on both sides.
    """
    from sklearn.model_selection import train_test_split  # slow to import

    everything = np.arange(len(labels))
    if share == 0:
        return everything, everything[:0]
    try:
        parts = train_test_split(everything, test_size=share, stratify=labels, random_state=seed)
    except ValueError as error:
        count, rarest = min((n, k) for k, n in enumerate(np.bincount(labels)) if n)
        raise ValueError(
            f"{name}={share} of {len(labels)} training pictures cannot hold every one of "
            f"{len(class_names)} classes (the rarest, {class_names[rarest]!r}, has {count}): add "
            "pictures, raise the share, or for validation give 0 and choose nothing by it"
        ) from error
    return tuple(np.sort(part) for part in parts)


def hash_seed(*parts) -> int:
    """A random seed that depends on every part and is unrelated to that of any other parts."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set in three parts that share no image.

    Choices (learning rate, epochs, loss weights) are made on ``validation``, which may be empty
    where nothing is chosen; ``test`` is looked at once, at the end.
    """

    name: str
    seed: int
    class_names: tuple[str, ...]
    train: Split | FileSplit
    validation: Split | FileSplit
    test: Split | FileSplit
    indices: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        for part in ("train", "validation", "test"):
            labels = getattr(self, part).labels
            if labels.dtype != torch.int64:
                raise TypeError(
                    f"{self.name}: {part} labels are {labels.dtype}; convert with .long()"
                )
            if not len(labels) and part != "validation":
                raise ValueError(f"{self.name}: {part} holds no picture")
            if ((labels < 0) | (labels >= self.num_classes)).any():
                raise ValueError(
                    f"{self.name}: {part} labels run from {labels.min()} to {labels.max()}, but "
                    f"there are {self.num_classes} classes (0 to {self.num_classes - 1})"
                )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what is in the parts (``update``): part of a run's identity."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            split.update(digest)
        return digest.hexdigest()

    def to(self, device) -> "Dataset":
        parts = {p: getattr(self, p).to(device) for p in ("train", "validation", "test")}
        return replace(self, **parts)
