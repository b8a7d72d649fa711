"""Speed and memory of the losses against their textbook form, on the CPU.

Textbook means softmax, power, normalise, F.kl_div, as the formulas are usually typed. Both sides
run forward and backward in turn, in this one process, on the same logits; the ratio of each pair
of neighbouring rounds is taken, and the table gives the median and the quartiles of the ratios:
2.0 means twice as fast as the textbook. A shared machine shifts both sides alike, so ratios hold
where times do not. On one thread the clock counts this process's own CPU time.

    python benchmarks/losses.py                 about a minute; compiling takes most of it
    python benchmarks/losses.py --threads 2     wall-clock time; wants an idle machine
    python benchmarks/losses.py --vocabulary    2,048 x 50,257 instead, with all memory taken; also
                                                beside TRL and Liger, where they are installed
    python benchmarks/losses.py --save          also writes benchmarks/results/losses_<date>.md
"""

import argparse
import datetime
import itertools
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import processor, save

from ttm_lab.losses import kd_loss, ttm_loss, wttm_loss

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from lab import Allocated

SHAPES = ((64, 100), (256, 1000))  # CIFAR-100 and ImageNet batches: samples, classes
TEMPERATURE = 4.0
DTYPES = (torch.float32, torch.bfloat16)  # of a vocabulary's logits


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


def from_logits():
    """By loss and rival, this package and another way to the same value, from logits."""
    found = {}
    for name, (ours, textbook) in LOSSES.items():

        def theirs(student, teacher, temperature, textbook=textbook):
            return textbook(student.float(), teacher.float(), temperature)

        found[name, "kl_div"] = ours, theirs
    if find_spec("trl"):
        from trl.experimental.gkd import GKDTrainer

        def gkd(student, teacher, temperature):
            return GKDTrainer.generalized_jsd_loss(student, teacher / temperature, beta=0.0)

        found["TTM", "TRL, GKD"] = ttm_loss, gkd
    return found


def from_hidden_states():
    """The same from hidden states, where this package first makes the logits as a whole."""

    def logits(hidden, rest):
        teacher, weights, teacher_weights, _ = rest
        return hidden @ weights.t(), teacher @ teacher_weights.t()

    def ttm(hidden, rest, temperature):
        return ttm_loss(*logits(hidden, rest), temperature)

    found = {}
    if find_spec("trl"):
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        def trl(hidden, rest, temperature):
            teacher, *weights, labels = rest
            sides = hidden[None], teacher[None], *weights, labels[None] >= 0
            return _chunked_divergence_loss(*sides, 0.0, teacher_logit_scale=1 / temperature)[0]

        found["TTM", "TRL, DistillationTrainer"] = ttm, trl
    if find_spec("liger_kernel"):
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
        from test_recipes import load

        options = {"beta": 0.0, "compiled": False}
        fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, **options)
        recipe = load("Liger: WTTM from hidden states")

        def liger(hidden, rest, temperature):
            teacher, weights, teacher_weights, labels = rest
            return fused(hidden, weights, teacher / temperature, teacher_weights, labels)

        def ours(hidden, rest, temperature):
            z, v = logits(hidden, rest)
            return F.cross_entropy(z.float(), rest[-1]) + 3 * wttm_loss(z, v, recipe.TEMPERATURE)

        def theirs(hidden, rest, temperature):
            teacher, weights, teacher_weights, labels = rest
            return recipe.FusedWTTM.apply(hidden, weights, teacher, teacher_weights, labels)

        found["TTM", "Liger"] = ttm, liger
        found["cross-entropy and WTTM", "Liger, by the recipe"] = ours, theirs
    return found


def measure_vocabulary(rounds, clock):
    """One table row for each dtype, loss and rival at the size of a language model's batch."""
    rows = [
        "| from | dtype | loss | beside | faster: median (quartiles) | other | this "
        "| memory: other | this |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print(*rows, sep="\n")
    samples, classes = 2048, 50_257
    for place, dtype in itertools.product(("logits", "hidden states"), DTYPES):
        torch.manual_seed(0)
        if place == "logits":
            student, teacher = (torch.randn(samples, classes).to(dtype) for _ in range(2))
            pairs = from_logits()
        else:
            student, *rest = (torch.randn(n, 256).div(4).to(dtype) for n in 2 * [samples, classes])
            weights = rest[0].requires_grad_()
            teacher = rest[1], weights, rest[2], torch.randint(classes, (samples,))
            pairs = from_hidden_states()
        student.requires_grad_()
        unit = samples * classes * dtype.itemsize
        for (name, rival), sides in pairs.items():
            values, taken = [], []
            for loss in sides:
                student.grad = None
                with Allocated() as allocated:
                    value = loss(student, teacher, TEMPERATURE)
                    value.backward()
                values.append(value.detach())
                taken.append(allocated.most / unit)
            torch.testing.assert_close(*values, check_dtype=False, rtol=0.02, atol=0)
            ratios, *times = compare(*sides, student, teacher, rounds, clock)
            low, median, high = statistics.quantiles(ratios, n=4)
            rows.append(
                f"| {place} | {str(dtype).removeprefix('torch.')} | {name} | {rival} "
                f"| {median:.2f} ({low:.2f} to {high:.2f}) | {times[1]:.2f} s | {times[0]:.2f} s "
                f"| {taken[1]:.2f} | {taken[0]:.2f} |"
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
        "Bytes kept for the backward pass are this package's share of the textbook's.",
        "",
    ]
    if options.vocabulary:
        libraries = [n for n in ("trl", "liger-kernel") if find_spec(n.replace("-", "_"))]
        header[3:5] = [
            "Ratios are the other over this package (both eager): above 1 is faster. Beside it: "
            f"{', '.join(['kl_div', *(f'{name} {version(name)}' for name in libraries)])}.",
            "Memory is the most that lives beside what is given, gradients included, in tensors of "
            "the student's logits' size and dtype. kl_div computes in float32, too; TRL's GKD in "
            "the dtype of the logits. Hidden states are 256 wide; there this package makes the "
            "logits as a whole, in their dtype, Liger 1,024 rows at a time and TRL 4,096 rows by "
            "32,768 classes at a time.",
        ]
    print(*header, sep="\n")
    rows = (measure_vocabulary if options.vocabulary else measure)(options.rounds, clock)
    if options.save:
        suffix = "" if options.threads == 1 else f"_{options.threads}_threads"
        save(f"losses{'_vocabulary' if options.vocabulary else ''}{suffix}", [*header, *rows])


if __name__ == "__main__":
    main()
