"""A handful of picture files in ImageNet's layout, to try the full-size code on anywhere."""

import os
import shutil
from pathlib import Path

import numpy as np

from ttm_lab.files import user_path

# A class is a shape in its own colour: easy, so that a few steps of training show something.
_CLASSES = {
    "blue-disc": (40, 90, 220),
    "green-square": (40, 160, 60),
    "orange-stripes": (240, 150, 20),
    "pink-ring": (235, 90, 170),
    "red-cross": (210, 40, 40),
    "violet-triangle": (130, 50, 190),
}


def draw_pictures(root: str | os.PathLike, *, train: int = 6, val: int = 3, seed: int = 0) -> Path:
    """Draw JPEG files of coloured shapes into ``root/train/<class>/`` and ``root/val/<class>/``.

    Six classes with ``train`` and ``val`` pictures each, of ImageNet's usual size (sides of 260
    to 500 pixels) and quality. The first picture of a part is grey and the second CMYK: ImageNet
    has such files, too. The same ``seed`` draws the same pictures. Returns ``root``.
    """
    root, random = user_path(root), np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        modes = iter(["L", "CMYK"])
        for name, color in _CLASSES.items():
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for k in range(count):
                picture = _draw(name.split("-")[1], color, random).convert(next(modes, "RGB"))
                picture.save(root / part / name / f"{k:03}.jpg", quality=90)
    return root


def copy_pictures(
    source: str | os.PathLike,
    root: str | os.PathLike,
    *,
    classes: int = 6,
    train: int = 6,
    val: int = 3,
) -> Path:
    """Copy the first few pictures of ``source``'s first few classes to ``root``, and return it.

    ``source`` is laid out like ImageNet (``train/<wnid>/``, ``val/<wnid>/``). Names are taken in
    sorted order, without listing all of the 1.3 million files. Raises ``FileNotFoundError`` where
    a part or a class has no folder.
    """
    source, root = user_path(source), user_path(root)
    folders = sorted(entry.name for entry in (source / "train").iterdir() if entry.is_dir())
    for part, count in (("train", train), ("val", val)):
        for name in folders[:classes]:
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for picture in sorted((source / part / name).iterdir())[:count]:
                shutil.copyfile(picture, root / part / name / picture.name)
    return root


def _draw(shape: str, color: tuple[int, int, int], random: np.random.Generator):
    """One RGB picture: a shape of about half the height on a blurred background, with noise."""
    from PIL import Image, ImageDraw

    width, height = (int(n) for n in random.integers(260, 501, 2))
    blur = random.integers(90, 200, (3, 4, 3)).astype(np.uint8)
    picture = Image.fromarray(blur).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)

    r = random.uniform(0.22, 0.38) * min(width, height)
    x, y = random.uniform(r, width - r), random.uniform(r, height - r)
    fill = tuple(int(c) for c in np.clip(np.array(color) + random.integers(-20, 21, 3), 0, 255))
    box = (x - r, y - r, x + r, y + r)
    if shape == "disc":
        draw.ellipse(box, fill)
    elif shape == "square":
        draw.rectangle(box, fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=round(r / 2.5))
    elif shape == "cross":
        draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill)
        draw.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill)
    else:
        for k in range(-2, 3):
            draw.rectangle((x - r, y + (0.4 * k - 0.1) * r, x + r, y + (0.4 * k + 0.1) * r), fill)
    pixels = np.asarray(picture) + random.normal(0, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
