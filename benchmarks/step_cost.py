"""What a training step costs with TTM and WTTM, against the same step with KD: claim B10.

    python benchmarks/step_cost.py --save

A step is the teacher's answer, the student's, the loss, its gradient and SGD, on a batch of 64
pictures of CIFAR-100's size; ResNet-32 teaches ResNet-8, and ResNet-20 in the second pair. The
methods take turns step by step, in an order that changes, on one thread, and the clock counts this
process's own CPU time: what else the machine does falls on all alike. A round has networks of its
own and gives one number a method, the median over its steps. Memory is the most that one step
makes beside networks and pictures. ``--save`` writes ``data/results/step_cost.csv``.
"""

import argparse
import datetime
import itertools
import statistics
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from machine import machine

from ttm_lab.files import find_root
from ttm_lab.losses import KDLoss, TTMLoss, WTTMLoss
from ttm_lab.models import create_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from lab import Allocated

PAIRS = (("resnet32", "resnet8"), ("resnet32", "resnet20"))
LOSSES = {"KD": KDLoss(4.0), "TTM": TTMLoss(4.0), "WTTM": WTTMLoss(4.0)}


def measure(teacher: str, student: str, seed: int, steps: int) -> list[dict]:
    """One round: a row a method."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(64, 3, 32, 32, generator=draw)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(100, (64,), generator=draw)
    knows = create_model(teacher, 100, seed=seed).to(memory_format=torch.channels_last).eval()
    learns, descent = {}, {}
    for method in LOSSES:
        network = create_model(student, 100, seed=seed).to(memory_format=torch.channels_last)
        learns[method] = network.train()
        descent[method] = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)

    def step(method: str) -> float:
        start = time.process_time()
        with torch.no_grad():
            known = knows(images)
        logits = learns[method](images)
        loss = torch.nn.functional.cross_entropy(logits, labels) + LOSSES[method](logits, known)
        descent[method].zero_grad()
        loss.backward()
        descent[method].step()
        return time.process_time() - start

    taken = {method: [] for method in LOSSES}
    orders = list(itertools.permutations(LOSSES))
    for k in range(-2, steps):  # two to warm up
        for method in orders[k % len(orders)]:
            seconds = step(method)
            if k >= 0:
                taken[method].append(seconds)
    rows = []
    for method, seconds in taken.items():
        with Allocated() as made:
            step(method)
        row = {"teacher": teacher, "student": student, "round": seed, "method": method}
        row["ms"] = 1e3 * statistics.median(seconds)
        rows.append(row | {"megabytes": made.most / 1e6})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="of each method in a round")
    parser.add_argument("--save", action="store_true", help="write data/results/step_cost.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for pair, seed in itertools.product(PAIRS, range(options.rounds)):
        rows += measure(*pair, seed, options.steps)
    table = pd.DataFrame(rows)
    wide = table.pivot(index=["teacher", "student", "round"], columns="method")
    for measured in ("ms", "megabytes"):
        ratio = wide[measured].div(wide[measured]["KD"], axis=0)
        spread = ratio.groupby(["teacher", "student"]).agg(["mean", "min", "max"])
        print(f"{measured}, KD = 1\n{spread.round(3).to_string()}\n")
    if options.save:
        command = f"python benchmarks/step_cost.py --save --rounds {options.rounds}"
        about = {
            "command": f"{command} --steps {options.steps}",
            "date": datetime.date.today().isoformat(),
            "hardware": machine(),
        }
        path = find_root() / "data" / "results" / "step_cost.csv"
        table.assign(**about).to_csv(path, index=False, float_format="%.5g")
        print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
