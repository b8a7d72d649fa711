"""What limits training on ImageNet here: preparing the pictures, or the step that uses them.

Both are measured alone, then together. The loader decodes JPEG files, cuts out and scales a random
part to 224 pixels and mirrors every second picture; the step is the one of ``distill``, teacher
included. All rows of a round are measured in turn in this one process, ratios are taken within a
round, and tables give the median and the quartiles over rounds. Rates are wall-clock and want an
idle machine; "CPU time" is that of one process on one thread, which other processes disturb little.
Every file is read before the clock starts: a slow disk would come on top.

    python benchmarks/imagenet.py                      about two minutes on two cores
    python benchmarks/imagenet.py --root ~/imagenet    real pictures, at any depth below a folder
    python benchmarks/imagenet.py --pair "ResNet-50:MobileNet"          needs timm
    python benchmarks/imagenet.py --save               also writes the tables to results/

Without ``--root`` it draws pictures of ImageNet's most frequent size, 500 x 375 pixels.
"""

import argparse
import datetime
import math
import os
import platform
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL
import torch
import torchvision
from machine import processor, save
from PIL import Image, features
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ttm_lab import training
from ttm_lab.course import paper
from ttm_lab.data import FileSplit
from ttm_lab.data.sources import IMAGENET_SCALE
from ttm_lab.data.splits import _Images, read_image
from ttm_lab.models import create_model
from ttm_lab.objectives import Output
from ttm_lab.teacher import autocast, logits_in_pieces

SIZE, CLASSES, PICTURES = 224, 1000, 96
AUGMENTATION = "resized-crop-flip"
STORED = "0, copies stored at shorter side 256"


# Pictures


def draw(root, count):
    """Coarse and fine noise, which as JPEG take about as many bytes as ImageNet's pictures."""
    random = np.random.default_rng(0)
    for k in range(count):
        pixels = random.normal(0, 8, (375, 500, 3))
        for scale in (5, 25, 125):
            coarse = random.integers(0, 256, (375 // scale, 500 // scale, 3), dtype=np.uint8)
            pixels += np.asarray(Image.fromarray(coarse).resize((500, 375), Image.BICUBIC)) / 3
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(root / f"{k:03}.jpg", quality=90)
    return [f"{k:03}.jpg" for k in range(count)]


def find(root, count):
    """The first few pictures of each folder below ``root``, without listing all of ImageNet."""
    found = []
    for where, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        pictures = [f for f in sorted(files) if f.lower().endswith((".jpeg", ".jpg"))]
        found += [os.path.relpath(os.path.join(where, f), root) for f in pictures[:4]]
        if len(found) >= count:
            return found[:count]
    if not found:
        raise SystemExit(f"there is no JPEG picture below {root}")
    return found


def split_of(root, paths, device):
    labels = torch.arange(len(paths)) % CLASSES
    return FileSplit(root, tuple(paths), labels, **IMAGENET_SCALE, size=SIZE, device=device)


def store_small(split, root):
    """Copies whose shorter side is 256 pixels, if it was longer: what many keep in place."""
    for k, path in enumerate(split.paths):
        picture = read_image(split.root / path)
        scale = min(1.0, 256 / min(picture.size))
        size = [round(scale * side) for side in picture.size]
        picture.resize(size, Image.BICUBIC).save(root / f"{k:03}.jpg", quality=95)
    names = tuple(f"{k:03}.jpg" for k in range(len(split)))
    return replace(split, root=root, paths=names)


# Measuring


def finish(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def use_up(split, workers, batch_size, first, batches, seed, use):
    """Pictures a second while ``use`` is handed ``batches`` batches, after the ``first`` ones.

    More are asked for than taken, so that at the end workers have as much to do as before.
    """
    count = (first + batches + 2 * workers) * batch_size
    stream = replace(split, workers=workers).batches(
        batch_size, order=torch.arange(count) % len(split), augmentation=AUGMENTATION, seed=seed
    )
    with closing(stream):
        for images, labels in islice(stream, first):
            use(images, labels)
        finish(images.device)
        start = time.perf_counter()
        for images, labels in islice(stream, batches):
            use(images, labels)
        finish(images.device)
        return batches * batch_size / (time.perf_counter() - start)


def time_worker(split, seed):
    """CPU seconds that a worker spends on a picture."""
    pictures = _Images(split, augment=True)
    start = time.process_time()
    for batch in torch.arange(64).split(32):
        keys = [(k % len(split), seed, k) for k in batch.tolist()]
        torch.utils.data.default_collate([pictures[key] for key in keys])
    return (time.process_time() - start) / 64


def prepare_step(names, settings, device):
    """A function that takes a step of ``distill`` on a batch."""
    teacher = create_model(paper.model_name(names[0]), CLASSES, seed=1)
    teacher = teacher.to(device, memory_format=torch.channels_last).eval()
    student = training.Student(
        settings, 0, SimpleNamespace(num_classes=CLASSES, train=range(PICTURES)), device=device
    )
    student.begin_epoch(0)

    def step(images, labels):
        with autocast(device, settings.precision):
            answer = Output(logits_in_pieces(teacher, images))
        student.step(images, labels, answer, torch.arange(len(labels)))

    return step


def time_step(step, images, labels, repeats):
    """Pictures a second of the step alone, and CPU seconds a picture of all threads."""
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        step(images, labels)
    finish(images.device)
    pictures = repeats * len(labels)
    seconds = (time.process_time() - start_cpu) / pictures
    return pictures / (time.perf_counter() - start), seconds


def time_parts(split, rounds):
    """CPU milliseconds of each part of preparing a picture: one list a part."""
    crop = v2.RandomResizedCrop(SIZE)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (split.mean, split.std))
    times = {}

    def timed(part, function, *arguments, **options):
        start = time.process_time()
        result = function(*arguments, **options)
        times.setdefault(part, []).append(1e3 * (time.process_time() - start))
        return result

    def seeded(picture):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return crop.make_params([picture])

    for number in range(rounds):
        torch.manual_seed(number)
        for path in split.paths:
            timed("read the file", (split.root / path).read_bytes)
            picture = timed("read and decode", read_image, split.root / path)
            timed("seed and draw the place", seeded, picture)
            place = crop.make_params([picture])
            part = timed("cut out", functional.crop, picture, **place)
            pixels = timed("Pillow to tensor", functional.pil_to_tensor, part)
            pixels = timed("scale", functional.resize, pixels, [SIZE, SIZE], antialias=True)
            timed("mirror (every second)", functional.horizontal_flip, pixels)
        batch = torch.stack([pixels.permute(1, 2, 0)] * 32).permute(0, 3, 1, 2)

        def normalize(batch):
            images = batch.to(torch.float32, memory_format=torch.contiguous_format)
            return images.mul_(1 / 255).sub_(mean).div_(std)

        for _ in range(4):
            timed("normalize (on the device)", normalize, batch)
            times["normalize (on the device)"][-1] /= len(batch)
    return times


def spread(values, digits=0):
    if len(values) < 3:
        return f"{statistics.median(values):.{digits}f}"
    low, median, high = (f"{v:.{digits}f}" for v in statistics.quantiles(values, n=4))
    return f"{median} ({low} to {high})"


def measure(split, stored, step, device, options):
    """Pictures a second of every row, and CPU seconds a picture in a worker: one a round."""
    rates, cpu = {}, {}
    threads, most = torch.get_num_threads(), options.workers[-1]
    images = torch.randn(options.batch_size, 3, SIZE, SIZE, device=device)
    labels = torch.arange(options.batch_size, device=device) % CLASSES
    parts = [(str(w), split, w) for w in options.workers] + [(STORED, stored, 0)]

    time_step(step, images, labels, 1)  # the first step also prepares
    for number in range(options.rounds):
        torch.set_num_threads(1)  # as in a worker
        for name, source, workers in parts if number % 2 else parts[::-1]:
            # the clock starts when each worker has delivered once
            plan = 32, max(workers, 1), 4 * (1 + workers), number
            rate = use_up(source, workers, *plan, lambda *batch: None)
            rates.setdefault(name, []).append(rate)
            if workers == 0:
                cpu.setdefault(name, []).append(time_worker(source, number))
        torch.set_num_threads(threads)
        rate, seconds = time_step(step, images, labels, options.steps)
        rates.setdefault("step", []).append(rate)
        cpu.setdefault("step", []).append(seconds)
        # a step on the CPU is slow: during the first one the workers fill their queue
        plan = options.batch_size, most if device.type == "cuda" else 1, options.steps, number
        rates.setdefault("both", []).append(use_up(split, most, *plan, step))
        print(f"round {number + 1} of {options.rounds} done", flush=True)
    return rates, cpu


# The tables


def ratios(above, below):
    return [a / b for a, b in zip(above, below, strict=True)]


def report(rates, cpu, times, device, options):
    most = str(options.workers[-1])
    rows = [
        "| loader alone: worker processes | pictures/s | times those of no worker "
        "| CPU ms a picture, in a worker |",
        "| --- | --- | --- | --- |",
    ]
    for name in [*map(str, options.workers), STORED]:
        seconds = spread([1e3 * s for s in cpu[name]], 2) if name in cpu else ""
        relative = spread(ratios(rates[name], rates["0"]), 2)
        rows.append(f"| {name} | {spread(rates[name])} | {relative} | {seconds} |")
    rows += ["", "| part of preparing a picture | CPU ms: median (quartiles) |", "| --- | --- |"]
    rows += [f"| {part} | {spread(values, 2)} |" for part, values in times.items()]
    alone = [1 / (1 / a + 1 / b) for a, b in zip(rates[most], rates["step"], strict=True)]
    rows += [
        "",
        f"| batches of {options.batch_size} | pictures/s | loader's rate over this "
        "| CPU ms a picture |",
        "| --- | --- | --- | --- |",
    ]
    for name, title in (("step", "step alone"), ("both", f"both, {most} workers")):
        relative = spread(ratios(rates[most], rates[name]), 1)
        seconds = spread([1e3 * s for s in cpu[name]]) if name in cpu else ""
        rows.append(f"| {title} | {spread(rates[name], 1)} | {relative} | {seconds} |")
    rows.append(f"| both, if their times added up | {spread(alone, 1)} | | |")

    loader, step = statistics.median(rates[most]), statistics.median(rates["step"])
    limit, factor = ("step", loader / step) if loader > step else ("loader", step / loader)
    other = "loader" if limit == "step" else "step"
    one = 1 / statistics.median(cpu["0"])
    rows += [
        "",
        f"**The {limit} limits**: with {most} workers the {other} alone is {factor:.1f} times as "
        f"fast. Together they reach {spread(ratios(rates['both'], rates['step']), 2)} of the "
        f"step's rate.",
    ]
    if device.type == "cpu":  # both use the same cores
        share = 100 * statistics.median(ratios(cpu["0"], cpu["step"]))
        rows.append(f"A picture's preparation takes {share:.1f} % of the CPU time of its step.")
    rows += [
        "",
        f"One process prepares {one:.0f} pictures a second of its CPU time. Kept fed, if the CPU "
        "has nothing else to do:",
        "",
        "| step, pictures/s | loader processes |",
        "| --- | --- |",
        f"| {step:.1f} (measured, {device.type}) | {math.ceil(step / one)} |",
    ]
    rows += [f"| {rate} | {math.ceil(rate / one)} |" for rate in (500, 1000, 2000, 4000)]
    return rows


def describe(split):
    sizes = [Image.open(split.root / path).size for path in split.paths]
    width, height = (statistics.median(side) for side in zip(*sizes, strict=True))
    kilobytes = [(split.root / path).stat().st_size / 1000 for path in split.paths]
    return f"{width:.0f} x {height:.0f} pixels (median), {statistics.mean(kilobytes):.0f} kB (mean)"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder of JPEG pictures (default: draw some)")
    parser.add_argument("--pair", default="ResNet-34:ResNet-18", help="teacher:student")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16")
    parser.add_argument("--batch-size", type=int, help="default 8 on a CPU, 128 on a GPU")
    parser.add_argument("--workers", type=int, help="most loader processes (default: 2; GPU: all)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--save", action="store_true", help="write the tables to results/")
    options = parser.parse_args()
    device, gets_load = torch.device(options.device), hasattr(os, "getloadavg")
    gpu = device.type == "cuda"
    options.batch_size = options.batch_size or (128 if gpu else 8)
    most = options.workers or (os.cpu_count() if gpu else 2)
    options.workers = sorted({0, 1, 2, most} & set(range(most + 1)))
    options.steps = 20 if gpu else 1
    names = options.pair.split(":")
    changes = {"batch_size": options.batch_size, "precision": options.precision}
    if names[1].startswith("DeiT"):  # published nowhere; any will do here
        changes |= {"temperature": 2.0, "distill_weight": 1.0}
    settings = paper.settings(*names, "wttm", **changes)

    # As in training: cuDNN keeps to algorithms that give the same bits each time.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    today = datetime.date.today().isoformat()
    with tempfile.TemporaryDirectory() as folder:
        drawn, small = Path(folder) / "drawn", Path(folder) / "small"
        drawn.mkdir()
        small.mkdir()
        root = options.root or drawn
        paths = find(root, PICTURES) if options.root else draw(root, PICTURES)
        split = split_of(root, paths, device)
        stored = store_small(split, small)
        turbo = features.version("libjpeg_turbo")
        load = f"; load of the machine before: {os.getloadavg()[0]:.1f}" if gets_load else ""
        header = [
            f"# Loader and step on ImageNet's pictures, {today}",
            "",
            f"{processor()}, {os.cpu_count()} cores, {platform.system()}"
            f"{', ' + torch.cuda.get_device_name(device) if gpu else ''}; "
            f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
            f"{torchvision.__version__}, Pillow {PIL.__version__} with "
            f"{f'libjpeg-turbo {turbo}' if turbo else 'libjpeg'}; {options.rounds} rounds{load}.",
            f"{len(paths)} {'real' if options.root else 'drawn'} pictures, {describe(split)}; "
            f"copies at shorter side 256, JPEG quality 95: {describe(stored)}.",
            f"Step: {names[0]} to {names[1]}, WTTM, {settings.precision}, on "
            f"{'the GPU' if gpu else f'the CPU with {torch.get_num_threads()} threads'}. Loader: "
            "batches of 32. Median (quartiles) over rounds.",
            "",
        ]
        print(*header, sep="\n")
        torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        times = time_parts(split, 1)  # also reads every file once before the rounds
        torch.set_num_threads(torch_threads)
        step = prepare_step(names, settings, device)
        rates, cpu = measure(split, stored, step, device, options)
    rows = report(rates, cpu, times, device, options)
    print("", *rows, sep="\n")
    if options.save:
        save("imagenet", [*header, *rows])


if __name__ == "__main__":
    main()
