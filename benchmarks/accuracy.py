"""Does the fast path cost accuracy? The same students by the plain path and by the fast one.

Plain asks the teacher about every batch, as it is; fast is ``training.fast`` (remembered answers,
folded batch norm, bfloat16 where the hardware has it). Both start from the same weights and see
the same pictures in the same order, so what differs is rounding, which training blows up. The
question is whether that is more than another seed's noise, and whether it has a direction.

    python benchmarks/accuracy.py --root DIR          DIR/train/<class>/, DIR/test/<class>/
    python benchmarks/accuracy.py --root DIR --save   writes benchmarks/results/accuracy_<date>.md
"""

import argparse
import datetime
import tempfile
from dataclasses import replace

import torch
from machine import machine, save

from ttm_lab import training
from ttm_lab.analysis import evaluate, paired_interval
from ttm_lab.data import load_dataset
from ttm_lab.training import Settings, distill_many, train_teacher

PLAIN = {"precision": "float32", "remember": False, "fold_batch_norm": False}


def part_of(data, train, test):
    """The data set with so many pictures, evenly taken."""

    def cut(split, count):
        index = torch.linspace(0, len(split) - 1, min(count, len(split))).long()
        return replace(split, images=split.images[index], labels=split.labels[index])

    return replace(data, train=cut(data.train, train), test=cut(data.test, test))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--train", type=int, default=5000, help="training pictures (default 5000)")
    parser.add_argument("--test", type=int, default=10_000, help="test pictures (default 10000)")
    parser.add_argument("--epochs", type=int, default=12, help="of students (default 12)")
    parser.add_argument("--seeds", type=int, default=4, help="on each side (default 4)")
    parser.add_argument("--save", action="store_true", help="write the table to results/")
    options = parser.parse_args()
    data = load_dataset("folder", root=options.root, validation=0.0)
    data = part_of(data, options.train, options.test)
    recipe = {"augmentation": "crop-flip", "epochs": options.epochs, "learning_rate": 0.05}
    teacher = train_teacher(data, Settings("resnet20", **recipe))
    student = Settings("resnet8", "wttm", temperature=4, distill_weight=2, **recipe)
    fast = training.fast()
    students = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in (("plain", PLAIN), ("fast", fast)):
            students[name] = distill_many(
                teacher,
                data,
                [replace(student, **changes)],
                seeds=range(options.seeds),
                remembered=folder,
            )
    score = {
        name: [100 * evaluate(one, data.test)["accuracy"] for one in several]
        for name, several in students.items()
    }
    difference = [b - a for a, b in zip(score["plain"], score["fast"], strict=True)]
    mean, low, high = paired_interval(difference)
    spread = torch.tensor(score["plain"]).std().item()
    lines = [
        f"# Accuracy of the fast path against the plain one, {datetime.date.today()}",
        "",
        machine(),
        "",
        f"ResNet-20 to ResNet-8 by WTTM (T = 4, weight 2) on {len(data.train):,} pictures of "
        f"{data.num_classes} classes (CIFAR-10 from JPEG), {options.epochs} epochs, batch 64, "
        f"learning rate 0.05, crop and flip; {len(data.test):,} test pictures; the teacher has "
        f"{100 * evaluate(teacher, data.test)['accuracy']:.2f} %.",
        f"Fast: {', '.join(f'{k}={v}' for k, v in fast.items())}.",
        "",
        "| seed | plain, % | fast, % | fast minus plain |",
        "| --- | --- | --- | --- |",
    ]
    for seed, row in enumerate(zip(score["plain"], score["fast"], difference, strict=True)):
        lines.append(f"| {seed} | {row[0]:.2f} | {row[1]:.2f} | {row[2]:+.2f} |")
    lines += [
        "",
        f"Fast minus plain: {mean:+.2f} points, 95 % paired t interval [{low:+.2f}, {high:+.2f}]. "
        f"Seeds alone scatter by {spread:.2f} points (standard deviation of the plain side).",
    ]
    print(*lines, sep="\n")
    if options.save:
        save("accuracy", lines)


if __name__ == "__main__":
    main()
