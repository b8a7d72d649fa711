"""How fast distillation is beside a plain loop as published code has it.

The plain loop is written here for the purpose: a DataLoader with PIL transforms, float32, NCHW,
activations that make a new tensor, the teacher's forward pass in every step under no_grad, torch's
default SGD, losses and accuracies read in every step. Both sides do equal work, on the same
pictures, in turn and in one process; the table gives the median and the quartiles of the ratios of
neighbouring rounds, so a shared machine shifts both sides alike. "limit" is the ratio that would be
reached if all multiplications of the fast side ran at the speed of a large matrix product and
everything else took no time.

    python benchmarks/speed.py                  several minutes on two cores
    python benchmarks/speed.py --save           also writes the table to results/
    python benchmarks/speed.py --device cuda    the same on a GPU
"""

import argparse
import datetime
import shutil
import statistics
import time
from itertools import count, islice
from unittest import mock

import torch
import torch.nn.functional as F
from losses import textbook_kd, textbook_wttm
from machine import machine, save
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from tqdm import tqdm

from ttm_lab import training
from ttm_lab.data import Dataset, Split
from ttm_lab.models import create_model
from ttm_lab.teacher import Teacher, fold_batch_norm
from ttm_lab.training import Settings

PAIRS = (("resnet110", "resnet20"), ("wrn_40_2", "wrn_16_2"), ("resnet32x4", "resnet8x4"))
TARGETS = {  # one student, all views remembered, three methods together
    "resnet110": (2.5, 6, 4),
    "wrn_40_2": (2.5, 4, 3),
    "resnet32x4": (2.5, 4, 3),
}
BATCH, PICTURES, CLASSES = 64, 4096, 100
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def pictures() -> Dataset:
    """Noise: how long a step takes does not depend on what a picture shows."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (PICTURES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    part = Split(images, torch.arange(PICTURES) % CLASSES, MEAN, STD)
    return Dataset("noise", 0, tuple(map(str, range(CLASSES))), part, part, part)


class PlainLoader(torch.utils.data.Dataset):
    def __init__(self, part):
        self.pixels, self.labels = part.images.permute(0, 2, 3, 1).numpy(), part.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.transform = transforms.Compose(steps)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]

    def forever(self, workers):
        loader = DataLoader(
            self, BATCH, shuffle=True, drop_last=True, num_workers=workers,
            persistent_workers=workers > 0,
        )  # fmt: skip
        while True:
            yield from loader


class Plain:
    """Teacher and student of the plain loop, with switches to be turned one at a time."""

    def __init__(self, pair, batches, device, *, channels_last=False, fused=False, folded=False,
                 lean=False, bfloat16=False, inplace=False, compiled=False):  # fmt: skip
        self.inplace = inplace
        self.device, self.batches, self.lean, self.bfloat16 = device, batches, lean, bfloat16
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.teacher = create_model(pair[0], CLASSES, seed=0).eval()
        self.student = create_model(pair[1], CLASSES, seed=1)
        for network in (self.teacher, self.student):
            network.to(device, memory_format=layout)
            for layer in network.modules():
                if isinstance(layer, torch.nn.ReLU):
                    layer.inplace = inplace
        if folded:
            self.teacher = fold_batch_norm(self.teacher, torch.zeros(2, 3, 32, 32, device=device))
            self.teacher.to(memory_format=layout)
        weights, values = self.student.parameters(), {"momentum": 0.9, "weight_decay": 5e-4}
        self.optimizer = torch.optim.SGD(weights, 0.05, fused=fused or None, **values)
        if compiled:
            self.student = torch.compile(self.student)
        self.sums = {}

    def run(self, steps):
        activation = torch.relu_ if self.inplace else torch.relu
        with mock.patch("ttm_lab.models.cifar.relu_", activation):
            self._run(steps)

    def _run(self, steps):
        self.student.train()
        for images, labels in islice(self.batches, steps):
            images, labels = images.to(self.device), labels.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                logits = self.student(images)
                with torch.no_grad():
                    teacher_logits = self.teacher(images)
            logits, teacher_logits = logits.float(), teacher_logits.float()
            ce = F.cross_entropy(logits, labels)
            loss = ce + textbook_wttm(logits, teacher_logits, 4.0)
            if not self.lean:  # the official code computes KD with weight 0 beside it
                loss = loss + 0 * textbook_kd(logits, teacher_logits, 4.0)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if not self.lean:
                right = logits.topk(5).indices == labels[:, None]
                for name, value in (
                    ("loss", loss), ("top1", right[:, 0].float().mean()),
                    ("top5", right.any(1).float().mean()),
                ):  # fmt: skip
                    self.sums[name] = self.sums.get(name, 0.0) + value.item() * len(labels)


class Ours:
    """The steps of ``distill_many``, one round of batches after another."""

    def __init__(self, pair, data, device, *, methods=("wttm",), precision="float32", known=False,
                 compiled=False):  # fmt: skip
        self.data, self.known, self.rounds = data.to(device), known, count()
        teacher = create_model(pair[0], CLASSES, seed=0)
        self.settings = [
            Settings(
                pair[1], method, temperature=4, distill_weight=1, augmentation="crop-flip",
                precision=precision, remember=known, compiled=compiled, epochs=240,
            )
            for method in methods
        ]  # fmt: skip
        self.teacher = Teacher(teacher, self.data, self.settings, device)
        self.teacher.open_caches(self.data, self.settings, None)
        self.students = [training.Student(s, 1, self.data, device=device) for s in self.settings]
        for student in self.students:
            student.begin_epoch(0)

    def run(self, steps):
        order = torch.arange(PICTURES)[: BATCH * steps]
        epoch = 0 if self.known else next(self.rounds)
        batches = training.epoch_batches(
            self.data.train, self.teacher, self.students, order, epoch, 0, steps
        )
        for batch in batches:
            for student in self.students:
                student.step(*batch, torch.arange(BATCH))


def seconds(side, steps, device):
    start = time.perf_counter()
    side.run(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(plain, sides, steps, rounds, device, bar):
    """Plain time over each side's, of neighbouring runs, by the side's name; and plain's times."""
    for side in (plain, *sides.values()):
        side.run(1 if side is plain else steps)
    found, times = {name: [] for name in sides}, []
    for number in range(rounds):
        names = list(sides) if number % 2 else list(sides)[::-1]
        before = seconds(plain, steps, device)
        measured = {name: seconds(sides[name], steps, device) for name in names}
        after = seconds(plain, steps, device)
        times.append((before + after) / 2)
        for name, value in measured.items():
            found[name].append(times[-1] / value)
        bar.update()
    return found, times


def text(values):
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def matrix_speed(device, precision):
    """Operations per second of a large matrix product: the best of ten."""
    a = torch.randn(2048, 2048, device=device, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def operations(pair):
    """Of one picture: the teacher's forward pass, and the student's step."""
    images = torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as asked, torch.no_grad():
        create_model(pair[0], CLASSES).eval()(images)
    with FlopCounterMode(display=False) as learned:
        create_model(pair[1], CLASSES).train()(images.repeat(2, 1, 1, 1)).sum().backward()
    return asked.get_total_flops(), learned.get_total_flops() / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--rounds", type=int, default=7, help="pairs per row (default 7)")
    parser.add_argument("--steps", type=int, default=2, help="batches a round (default 2)")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=training.fast()["precision"] == "bfloat16" and bool(shutil.which("g++")),
        help="time torch.compile, too: half a minute a pair (default: where it may help)",
    )
    parser.add_argument("--save", action="store_true", help="write the table to results/")
    options = parser.parse_args()
    device, steps, rounds = torch.device(options.device), options.steps, options.rounds
    data, precision = pictures(), training.fast(device)["precision"]
    plain_data = PlainLoader(data.train)
    speed = matrix_speed(device, precision)
    lines = [
        f"# Distillation beside a plain loop, {datetime.date.today()}",
        "",
        machine(),
        f"Precision of the fast side: {precision}, large matrix product {speed / 1e9:.0f} GFLOP/s. "
        f"Batch {BATCH}, {steps} batches a round, {rounds} rounds; 2.0 is twice as "
        "fast as the plain loop: median (quartiles).",
        "",
        "| pair | what | faster | wanted | limit | plain, pictures/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    batches = plain_data.forever(workers=2)
    with tqdm(total=rounds * 4 + 5, desc="speed", unit="round") as bar:
        for pair in PAIRS:
            plain = Plain(pair, batches, device)
            sides = {
                "one student": Ours(pair, data, device, precision=precision),
                "one student, all views remembered": Ours(
                    pair, data, device, precision=precision, known=True
                ),
                "KD, TTM and WTTM together, against three runs": Ours(
                    pair, data, device, precision=precision, methods=("kd", "ttm", "wttm")
                ),
            }
            if options.compiled:
                sides["one student, all views remembered, compiled"] = Ours(
                    pair, data, device, precision=precision, known=True, compiled=True
                )
            found, times = ratios(plain, sides, steps, rounds, device, bar)
            asked, learned = operations(pair)
            rate = steps * BATCH / statistics.median(times)
            work = (asked + learned, learned, (asked + 3 * learned) / 3, learned)
            wanted = (*TARGETS[pair[0]], TARGETS[pair[0]][1])
            for name, target, each in zip(sides, wanted, work, strict=False):
                values = found[name]
                if name.startswith("KD"):
                    values = [3 * value for value in values]
                limit = speed / each / rate
                row = f"| {pair[0]} to {pair[1]} | {name} | {text(values)} | {target} "
                lines.append(f"{row}| {limit:.2f} | {rate:.0f} |")

        pair = PAIRS[0]
        switches = {
            "channels last": {"channels_last": True},
            "teacher with folded batch norm": {"folded": True},
            "fused SGD": {"fused": True},
            "activations in place": {"inplace": True},
            "no reading of metrics, no unused loss": {"lean": True},
                "bfloat16": {"bfloat16": True},
            "all of these": {
                "channels_last": True, "folded": True, "fused": True, "lean": True,
                "bfloat16": precision == "bfloat16", "inplace": True,
            },
        }  # fmt: skip
        if options.compiled:
            switches["compiled student"] = {"compiled": True}
        sides = {name: Plain(pair, batches, device, **on) for name, on in switches.items()}
        slow = {name: sides.pop(name) for name in ["bfloat16"] if precision == "float32"}
        plain = Plain(pair, batches, device)
        found, _ = ratios(plain, sides, steps, rounds, device, bar)
        if slow:  # emulated, ten times slower and more: two short rounds tell
            found |= ratios(plain, slow, 1, 2, device, bar)[0]
        lines += ["", f"Each switch alone in the plain loop, {pair[0]} to {pair[1]}:", ""]
        lines += ["| switch | faster |", "| --- | --- |"]
        lines += [f"| {name} | {text(values)} |" for name, values in found.items()]

        loader, ours = plain_data.forever(workers=0), data.to("cpu").train
        values = []
        for number in range(5):
            start = time.process_time()
            next(loader)
            middle = time.process_time()
            order = torch.randperm(PICTURES)
            made = ours.batches(BATCH, order=order, augmentation="crop-flip", seed=number)
            each = sum(1 for _ in islice(made, 20))
            values.append((middle - start) * each / (time.process_time() - middle))
            bar.update()
    lines += ["", f"Crop, flip and normalise, CPU time of the PIL loader over ours: {text(values)}"]
    print(*lines, sep="\n")
    if options.save:
        save("speed", lines)


if __name__ == "__main__":
    main()
