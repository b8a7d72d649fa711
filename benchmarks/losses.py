"""Speed and memory of the losses against their textbook form, on the CPU.

Textbook means softmax, power, normalise, F.kl_div, as the formulas are usually typed. Both sides
run forward and backward in turn, in this one process, on the same logits; the ratio of each pair
of neighbouring rounds is taken, and the table gives the median and the quartiles of the ratios:
2.0 means twice as fast as the textbook. A shared machine shifts both sides alike, so ratios hold
where times do not. On one thread the clock counts this process's own CPU time.

    python benchmarks/losses.py                 about a minute; compiling takes most of it
    python benchmarks/losses.py --threads 2     wall-clock time; wants an idle machine
    python benchmarks/losses.py --vocabulary    2,048 x 50,257 instead, with all memory taken
    python benchmarks/losses.py --save          also writes benchmarks/results/losses_<date>.md
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import processor, save

from ttm_lab.losses import kd_loss, ttm_loss, wttm_loss

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from lab import Allocated

SHAPES = ((64, 100), (256, 1000))  # CIFAR-100 and ImageNet batches: samples, classes
TEMPERATURE = 4.0


def textbook_kd(student, teacher, temperature):
    log_q = F.log_softmax(student / temperature, dim=-1)
    p = F.softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


def textbook_ttm(student, teacher, temperature):
    powers = F.softmax(teacher, dim=-1) ** (1 / temperature)
    p = powers / powers.sum(-1, keepdim=True)
    return F.kl_div(F.log_softmax(student, dim=-1), p, reduction="batchmean")


def textbook_wttm(student, teacher, temperature):
    powers = F.softmax(teacher, dim=-1) ** (1 / temperature)
    weight = powers.sum(-1, keepdim=True)
    each = F.kl_div(F.log_softmax(student, dim=-1), powers / weight, reduction="none").sum(-1)
    return (weight.squeeze(-1) * each).mean()


LOSSES = {
    "KD": (kd_loss, textbook_kd),
    "TTM": (ttm_loss, textbook_ttm),
    "WTTM": (wttm_loss, textbook_wttm),
}


def seconds(loss, student, teacher, repeats, clock):
    """Time of one forward and backward pass, averaged over a few in a row."""
    start = clock()
    for _ in range(repeats):
        student.grad = None
        loss(student, teacher, TEMPERATURE).backward()
    return (clock() - start) / repeats


def compare(ours, theirs, student, teacher, rounds, clock):
    """Ratios theirs / ours of neighbouring rounds, and the median time of each side."""
    # a round of about a millisecond or two, but of seconds at a vocabulary's size
    repeats, warm = {100: (10, 500), 1000: (2, 100)}.get(student.shape[-1], (1, 1))
    for loss in (ours, theirs):
        seconds(loss, student, teacher, warm, clock)
    times = []
    for number in range(rounds):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        measured = {loss: seconds(loss, student, teacher, repeats, clock) for loss in order}
        times.append((measured[ours], measured[theirs]))
    return [b / a for a, b in times], *(
        statistics.median(side) for side in zip(*times, strict=True)
    )


def kept_bytes(loss, student, teacher):
    """Size of the tensors that autograd keeps for the backward pass."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(student, teacher, TEMPERATURE)
    return sum(sizes)


def measure(rounds, clock):
    """One table row for each shape, mode and loss, printed as it is measured."""
    rows = [
        "| shape | mode | loss | faster: median (quartiles) | textbook | this | bytes kept |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print(*rows, sep="\n")
    for samples, classes in SHAPES:
        generator = torch.Generator().manual_seed(0)
        student = torch.randn(samples, classes, generator=generator, requires_grad=True)
        teacher = 3 * torch.randn(samples, classes, generator=generator)
        for mode in ("eager", "compiled"):
            for name, (ours, theirs) in LOSSES.items():
                if mode == "compiled":
                    torch.compiler.reset()
                    ours = torch.compile(ours, fullgraph=True)  # the textbook stays eager
                result = compare(ours, theirs, student, teacher, rounds, clock)
                ratios, our_time, their_time = result
                low, median, high = statistics.quantiles(ratios, n=4)
                kept = kept_bytes(ours, student, teacher) / kept_bytes(theirs, student, teacher)
                rows.append(
                    f"| {samples} x {classes} | {mode} | {name} "
                    f"| {median:.2f} ({low:.2f} to {high:.2f}) "
                    f"| {1e6 * their_time:.0f} µs | {1e6 * our_time:.0f} µs | {kept:.2f} |"
                )
                print(rows[-1], flush=True)
    return rows


def measure_vocabulary(rounds, clock):
    """One table row for each dtype and loss at the size of a language model's batch."""
    rows = [
        "| dtype | loss | faster: median (quartiles) | textbook | this | memory: textbook | this |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print(*rows, sep="\n")
    for dtype in (torch.float32, torch.bfloat16):
        student, teacher = (torch.randn(2048, 50_257).to(dtype) for _ in range(2))
        student.requires_grad_()
        for name, (ours, textbook) in LOSSES.items():

            def theirs(student, teacher, temperature, textbook=textbook):
                return textbook(student.float(), teacher.float(), temperature)

            taken = []
            for loss in (theirs, ours):
                student.grad = None
                with Allocated() as allocated:
                    loss(student, teacher, TEMPERATURE).backward()
                taken.append(allocated.most / student.nbytes)
            ratios, *times = compare(ours, theirs, student, teacher, rounds, clock)
            low, median, high = statistics.quantiles(ratios, n=4)
            rows.append(
                f"| {str(dtype).removeprefix('torch.')} | {name} "
                f"| {median:.2f} ({low:.2f} to {high:.2f}) | {times[1]:.2f} s | {times[0]:.2f} s "
                f"| {taken[0]:.2f} | {taken[1]:.2f} |"
            )
            print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads torch may use (default 1)")
    parser.add_argument("--rounds", type=int, default=200, help="pairs per row (default 200)")
    parser.add_argument("--vocabulary", action="store_true", help="2,048 x 50,257 instead")
    parser.add_argument("--save", action="store_true", help="write the table to results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    if options.vocabulary:
        options.rounds = min(options.rounds, 7)  # of seconds each
    title, kind = "against their textbook form", "float32"
    if options.vocabulary:
        title, kind = "at the size of a vocabulary", "2,048 x 50,257"
    today = datetime.date.today().isoformat()
    header = [
        f"# Losses {title}, {today}",
        "",
        f"{processor()}, {options.threads} of {os.cpu_count()} threads, {platform.system()}; "
        f"Python {platform.python_version()}, torch {torch.__version__}; {kind}, "
        f"T = {TEMPERATURE:g}, forward and backward, {options.rounds} paired rounds, "
        f"{'CPU time of the process' if options.threads == 1 else 'wall-clock time'}.",
        "Ratios are textbook (always eager) over this package: above 1 is faster.",
        "Memory is the most that lives beside both logits, the gradient included, in tensors of "
        "the student's size and dtype; the textbook computes in float32, too."
        if options.vocabulary
        else "Bytes kept for the backward pass are this package's share of the textbook's.",
        "",
    ]
    print(*header, sep="\n")
    rows = (measure_vocabulary if options.vocabulary else measure)(options.rounds, clock)
    if options.save:
        suffix = "" if options.threads == 1 else f"_{options.threads}_threads"
        save(f"losses{'_vocabulary' if options.vocabulary else ''}{suffix}", [*header, *rows])


if __name__ == "__main__":
    main()
