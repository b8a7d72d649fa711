"""Compress the kept CIFAR-100 students: python benchmarks/compression.py --root DIR --model resnet8

Every kept student of that kind and the kept teacher: in int8, pruned, and with weights of few bits
(``ttm_lab.course.compression``), the last two as they are and with batch norm estimated anew on
1,000 training pictures, and the most pruned one also after ``--steps`` steps of training with the
student's own loss and the kept teacher, at one learning rate for all. Measured on the test part
(``--pictures`` of it, as many of each class, the first ones); temperatures are fitted on 1,000
pictures of the listed validation part, which no student learned from. Writes a row a network to
``data/results/cifar100_compression.csv``, and command, machine and times, as ratios side by side,
to the JSON file beside. Rows that are there are left as they are: run it again after a break.
"""

import argparse
import datetime
import json
import shlex
import sys
from functools import partial

import numpy as np
import pandas as pd
import torch
from machine import machine

from ttm_lab.analysis import evaluate, fit_temperature, predict
from ttm_lab.course import compression as c
from ttm_lab.course import networks, plans
from ttm_lab.data import Split, load_dataset
from ttm_lab.files import atomic_write, find_root, read_table
from ttm_lab.objectives import Output, make_objective
from ttm_lab.probability import power_sum

FILE = find_root() / "data" / "results" / "cifar100_compression.csv"
KEY = ["model", "arm", "seed", "way", "level", "repair"]
RATE = 0.01
# The plan's arms by their names in the files of the kept students (all at KD's scale: plans.py).
ARMS = {
    "ce": "CE",
    "kd": "KD, wd 5e-4",
    "kd10": "KD, wd 5e-5",
    "ttm": "TTM, wd 5e-5",
    "wttm": "WTTM, wd 5e-5",
}


def first_of_each_class(part: Split, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Pictures ready for a network, and labels: ``count`` of a part, as many of each class."""
    labels = part.labels.numpy()
    order = np.argsort(labels, kind="stable").reshape(networks.CLASSES, -1)
    chosen = torch.from_numpy(order[:, : count // networks.CLASSES].ravel())
    images, labels = next(part.batches(len(chosen), order=chosen))
    return images.contiguous(memory_format=torch.channels_last), labels.numpy()


def train_on(pruned, arm: str, teacher, data, steps: int, seed: int):
    """The pruned network after some steps with its own loss, its zeros kept."""
    settings = {one.label: one for one in plans.arms()}[ARMS[arm]]
    weights = {k: getattr(settings, k) for k in ("temperature", "ce_weight", "distill_weight")}
    parameters = [p for p in pruned.parameters() if p.requires_grad]
    decay = {"momentum": 0.9, "weight_decay": settings.weight_decay, "nesterov": False}
    optimizer = torch.optim.SGD(parameters, lr=RATE, **decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    order = order[: 64 * steps]
    if arm == "wttm":  # the paper's scale: TTM's weight over the mean of U
        images = next(data.train.batches(1000, order=order[:1000]))[0]
        with torch.inference_mode():
            p = teacher(images).softmax(-1)
        weights["distill_weight"] /= float(power_sum(p, 1 / weights["temperature"]).mean())
    objective = make_objective(settings.method, **weights)
    pruned.train()
    for images, labels in data.train.batches(64, order=order, augmentation="crop-flip", seed=seed):
        with torch.no_grad():
            told = Output(teacher(images)) if arm != "ce" else None
        terms = objective(Output(pruned(images)), told, labels)
        optimizer.zero_grad()
        objective.total(terms).backward()
        optimizer.step()
        schedule.step()
    return c.without_masks(pruned.eval())


def ways(network, arm, seed, teacher, data, images, steps):
    """(way, level, repair, bits, a function that makes the network), one after another."""
    yield "float", 32, "", None, lambda: network
    yield "int8", 8, "", None, lambda: c.to_int8(network, images)
    makers = [("pruned", f, None, partial(c.prune_weights, network, f)) for f in c.FRACTIONS]
    makers += [("rounded", b, b, partial(c.round_weights, network, b)) for b in c.BITS]
    for way, level, bits, make in makers:
        yield way, level, "", bits, make
        renewed = lambda make=make: c.reestimate(make(), images)  # noqa: E731
        yield way, level, "batch norm", bits, renewed
    if steps and arm in ARMS:
        pruned = partial(c.prune_weights, network, c.FRACTIONS[-1], masks=True)
        train = lambda: train_on(pruned(), arm, teacher, data, steps, seed)  # noqa: E731
        yield "pruned", c.FRACTIONS[-1], f"{steps} steps", None, train


def measured(network, bits, test, validation) -> dict:
    """A network's row: measures on test, the same after one fitted temperature, and its size."""
    logits = predict(network, test[0], 500)
    tau = fit_temperature(predict(network, validation[0], 500), validation[1])
    row = evaluate(logits, test[1])[["accuracy", "nll", "brier", "ece", "entropy"]].to_dict()
    after = evaluate(logits / tau, test[1])
    row |= {f"rescaled_{k}": after[k] for k in ("nll", "ece")} | {"fitted_temperature": tau}
    return row | {"bytes": len(c.stored(network, bits)), "pictures": len(test[1])}


def times(networks_by_name: dict, images) -> list[dict]:
    """Time over that of the same network in float32, batch norm folded: quartiles of 15 rounds."""
    rows = []
    for name, network in networks_by_name.items():
        reference = c.fold(network)
        others = {"int8": c.to_int8(network, images), "90 % pruned": None, "float32": None}
        others["90 % pruned"] = c.fold(c.prune_weights(network, 0.9))
        others["float32"] = c.fold(network)  # once more: what the measurement itself is worth
        for size in (8, 64):
            for way, other in others.items():
                found = np.quantile(
                    c.time_ratios(other, reference, images[:size]), [0.25, 0.5, 0.75]
                )
                row = {"network": name, "way": way, "batch": size}
                rows.append(row | dict(zip(("low", "median", "high"), found.round(3), strict=True)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, help="the folder of CIFAR-100's pictures")
    parser.add_argument("--model", required=True, help="kept students: resnet8 or resnet20")
    parser.add_argument("--pictures", type=int, default=10_000, help="of the test part")
    parser.add_argument("--steps", type=int, default=200, help="of training after pruning, or 0")
    given = parser.parse_args()
    students, teacher = networks.students(given.model), networks.teacher()
    data = load_dataset("cifar100", root=given.root, validation="listed")
    test = first_of_each_class(data.test, given.pictures)
    validation = first_of_each_class(data.validation, 1000)
    images = first_of_each_class(data.train, 1000)[0]
    rows = read_table(FILE).to_dict("records") if FILE.exists() else []
    done = {tuple(str(row[k]) for k in KEY) for row in rows}
    everybody = {("teacher", 0): teacher, **students}
    for (arm, seed), network in everybody.items():
        network = network.to(memory_format=torch.channels_last)
        made = ways(network, arm, seed, teacher, data, images, given.steps)
        for way, level, repair, bits, make in made:
            key = dict(
                zip(KEY, (given.model, arm, seed, way, level, repair or "none"), strict=True)
            )
            if tuple(map(str, key.values())) in done:
                continue
            rows.append(key | measured(make(), bits, test, validation))
            table = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")
            atomic_write(FILE, table)
            print(*key.values(), f"{rows[-1]['accuracy']:.2%}", rows[-1]["bytes"], flush=True)
    notes = FILE.with_suffix(".json")
    kept = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    words = ["python", *sys.argv]
    words[words.index("--root") + 1] = "DIR"
    note = {"command": shlex.join(words), "date": str(datetime.date.today())}
    note |= {"machine": machine(), "engine": torch.backends.quantized.engine}
    note |= {"teacher": "resnet32", "learning_rate": RATE, "students": len(students)}
    one = students[min(students)]
    note["int8 convolutions"] = c.convolutions(c.to_int8(one, images), images[:2])
    note["times"] = times({given.model: one, "resnet32": teacher}, images)
    atomic_write(notes, json.dumps(kept | {given.model: note}, indent=1) + "\n")


if __name__ == "__main__":
    main()
