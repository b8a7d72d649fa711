"""What limits training on ImageNet: reading pictures, or the distillation step? On the CPU.

Pictures per second of the loader alone, of the step alone on pictures already in memory, and of
both together. Every round measures all rows in turn, the table gives medians and quartiles over
the rounds, and ratios are taken within a round: a shared machine shifts neighbours alike, so
ratios hold where times do not. A loader's clock starts once each process has given a batch and
stops while all are still at work, so neither their start nor an emptying queue counts. Files are
read again and again and so come from the system's cache: this measures decoding, not a disk.

    python benchmarks/imagenet.py               two to three minutes on two idle cores; draws files
    python benchmarks/imagenet.py --root DIR    pictures in DIR/train/<class>/, DIR/test/<class>/
    python benchmarks/imagenet.py --save        also writes benchmarks/results/imagenet_<date>.md
"""

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from ttm_lab.data import load_dataset
from ttm_lab.losses import wttm_loss
from ttm_lab.models import create_model

BATCH = 8
LOADED = 16  # batches in a round of the loader alone
PICTURES = 200  # of a folder at most: copies of all of ImageNet would take hours
STORED_SIDE = 256
TEMPERATURE = 4.0  # any: it costs the same


def draw_folder(root, count=48):
    """JPEG files of ImageNet's usual size: noise on all scales, weaker on finer ones.

    The weights give about half a byte per pixel at quality 90, as photographs have.
    """
    random = np.random.default_rng(0)
    for k in range(count + 1):  # one more for test/, which a data set cannot do without
        pixels = np.full((375, 500, 3), 120.0)
        for octave, width in enumerate((4, 8, 16, 32, 64, 128, 256, 500)):
            shape = (width * 3 // 4, width)
            grey = random.normal(0, 1, shape)
            for channel in range(3):
                noise = (grey + random.normal(0, 0.3, shape)).astype(np.float32)
                large = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
                pixels[..., channel] += 60 * 0.88 ** (2 * octave) * np.asarray(large)
        folder = root / ("train" if k < count else "test") / "noise"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{k:03}.jpg", quality=90)


def some_pictures(split):
    """The part itself, or ``PICTURES`` of it drawn at random."""
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:PICTURES]
    paths = tuple(split.paths[i] for i in chosen.tolist())
    return replace(split, paths=paths, labels=split.labels[chosen])


def store_smaller(split, root):
    """The same part from copies whose shorter side is 256 (smaller pictures keep their size)."""
    for path in split.paths:
        with Image.open(split.root / path) as file:
            picture = file.convert("RGB")
        scale = min(1, STORED_SIDE / min(picture.size))
        size = [round(scale * side) for side in picture.size]
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        small = picture.resize(size, Image.Resampling.BICUBIC)
        small.save(root / path, format="JPEG", quality=95)
    return replace(split, root=root)


def describe(split):
    """Median width, height and file size."""
    sizes = []
    for path in split.paths:
        with Image.open(split.root / path) as picture:
            sizes.append((*picture.size, (split.root / path).stat().st_size / 1000))
    width, height, kilobytes = (statistics.median(column) for column in zip(*sizes, strict=True))
    return f"{width:.0f}x{height:.0f} and {kilobytes:.0f} kB"


def make_step():
    """A step of training: ResNet-34 teaches ResNet-18, as ``train_student`` does it."""
    teacher = create_model("torchvision/resnet34", seed=0)
    student = create_model("torchvision/resnet18", seed=1)
    teacher = teacher.to(memory_format=torch.channels_last).eval()
    student = student.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(
        student.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True
    )

    def step(images, labels):
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            teacher_logits = teacher(images)
        logits = student(images)
        loss = F.cross_entropy(logits, labels) + wttm_loss(logits, teacher_logits, TEMPERATURE)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def load(split, workers, count):
    """Batches from ``workers`` processes, enough that these stay busy while ``count`` are timed."""
    needed = BATCH * (count + 4 * workers + 1)
    order = torch.arange(len(split)).repeat(-(-needed // len(split)))[:needed]
    split = replace(split, workers=workers)
    return split.batches(BATCH, order=order, augmentation="resized-crop-flip")


def speed(batches, count, step=None, skip=0):
    """Pictures per second over ``count`` batches, and per second of this process's CPU time.

    The first ``skip`` batches are not timed: until then processes start and caches fill.
    """
    batches = iter(batches)
    for number in range(skip + count):
        if number == skip:
            start, cpu_start = time.perf_counter(), time.process_time()
        images, labels = next(batches)
        if step is not None:
            step(images, labels)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if hasattr(batches, "close"):
        batches.close()  # ends the processes
    return BATCH * count / seconds, BATCH * count / cpu_seconds


def measure(split, smaller, step, rounds):
    """For each row of the table: one pair of speeds (wall clock, CPU time) for each round."""
    memory = next(load(split, 0, 1))
    step(*memory)  # warm up
    cases = {
        "loader, in the training process": lambda: speed(load(split, 0, LOADED), LOADED, skip=1),
        "loader, 1 process": lambda: speed(load(split, 1, LOADED), LOADED, skip=1),
        "loader, 2 processes": lambda: speed(load(split, 2, LOADED), LOADED, skip=2),
        "loader, 1 process, stored at 256": lambda: speed(load(smaller, 1, LOADED), LOADED, skip=1),
        "step, pictures in memory": lambda: speed(repeat(memory), 1, step),
        "both, 1 process": lambda: speed(load(split, 1, 2), 1, step, skip=1),
        "both, 2 processes": lambda: speed(load(split, 2, 2), 1, step, skip=1),
    }
    found = {name: [] for name in cases}
    for number in range(rounds):
        for name in list(cases)[:: -1 if number % 2 else 1]:
            found[name].append(cases[name]())
        print(f"round {number + 1} of {rounds}", flush=True)
    return found


def spread(values, form=".1f"):
    """Median (quartiles)."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:{form}} ({low:{form}} to {high:{form}})"


def table(found):
    rows = [
        "| what | pictures/s: median (quartiles) | CPU ms a picture, in this process |",
        "| --- | --- | --- |",
    ]
    for name, speeds in found.items():
        # what decoding costs in other processes does not show in this one's CPU time
        alone = "process" not in name or "training process" in name
        cpu = spread([1000 / cpu for _, cpu in speeds]) if alone else ""
        rows.append(f"| {name} | {spread([wall for wall, _ in speeds])} | {cpu} |")
    return rows


def conclude(found):
    """What the table means, in sentences."""
    wall = {name: np.array([speed for speed, _ in speeds]) for name, speeds in found.items()}
    one, two = wall["loader, 1 process"], wall["loader, 2 processes"]
    step, both = wall["step, pictures in memory"], wall["both, 2 processes"]
    ratio = two / step
    if statistics.median(ratio) >= 1:
        limit = f"The step limits: two loader processes give {spread(ratio)} times what it takes."
    else:
        limit = f"The loader limits: the step takes {spread(1 / ratio)} times what it gives."
    rate = statistics.median(one)
    cpu_rate = statistics.median(cpu for _, cpu in found["loader, in the training process"])
    return [
        f"{limit} Together they reach {spread(both / step, '.2f')} of the step's own speed; here "
        "loader and step share the same cores.",
        "",
        "Elsewhere, such as on a GPU: measure X, the pictures per second of your step alone. It "
        f"needs X / {rate:.0f} loader processes like the one here, or {100 / rate:.1f} for each "
        f"100 pictures/s, as long as each has a core; by CPU time, which leaves out waiting for a "
        f"core that others use, X / {cpu_rate:.0f}. (The step above needs "
        f"{statistics.median(step / one):.2g}.) Two processes gave {spread(two / one, '.2f')} "
        "times the pictures of one: where that is far from 2, cores were shared, and X divided by "
        "the speed of one holds only for cores of your own.",
        "",
        f"Copies at a shorter side of {STORED_SIDE} (quality 95) are read "
        f"{spread(wall['loader, 1 process, stored at 256'] / one, '.2f')} times as fast. They are "
        "other pictures, though: compressed twice, and small crops are enlarged from fewer pixels.",
    ]


def processor():
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def busy():
    """How many processes wanted a core before this one began, where the system tells it."""
    if not hasattr(os, "getloadavg"):
        return "not known"
    return f"{os.getloadavg()[0]:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder with train/ and test/ (default: drawn pictures)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, at least 2 (default 5)")
    parser.add_argument("--save", action="store_true", help="write the table to results/")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds {options.rounds}: quartiles need at least 2")
    today, load_before = datetime.date.today().isoformat(), busy()
    with tempfile.TemporaryDirectory() as temporary:
        root, kind = options.root, "pictures of the given folder"
        if root is None:
            root, kind = Path(temporary) / "drawn", "drawn pictures (noise smoothed)"
            draw_folder(root)
        data = load_dataset("folder", root=root, size=224, validation=0)
        split = some_pictures(data.train)
        smaller = store_smaller(split, Path(temporary) / "smaller")
        header = [
            f"# Loader and distillation step on ImageNet's pictures, {today}",
            "",
            f"{processor()}, {torch.get_num_threads()} of {os.cpu_count()} threads, "
            f"{platform.system()}, load average before the start {load_before}; Python "
            f"{platform.python_version()}, torch {torch.__version__}, torchvision "
            f"{torchvision.__version__}, Pillow {PIL.__version__}.",
            f"{len(split)} {kind}, typically {describe(split)} (stored at {STORED_SIDE}: "
            f"{describe(smaller)}), from the system's cache, random crops to 224. ResNet-34 "
            f"teaches ResNet-18, WTTM and cross-entropy, SGD, float32, batch {BATCH}.",
            f"{options.rounds} rounds, wall-clock time; a round is {LOADED} batches of the loader "
            "and one step.",
            "",
        ]
        print(*header, sep="\n", flush=True)
        found = measure(split, smaller, make_step(), options.rounds)
    result = [*table(found), "", *conclude(found)]
    print("", *result, sep="\n")
    if options.save:
        path = Path(__file__).parent / "results" / f"imagenet_{today}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([*header, *result]) + "\n", encoding="utf-8")
        print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
