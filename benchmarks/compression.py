"""Compress the kept CIFAR-100 students: python benchmarks/compression.py --root DIR --model resnet8

Every kept student of that kind and the kept teacher: in int8, pruned, and with weights of few bits
(``ttm_lab.course.compression``), the last two as they are and with batch norm estimated anew on
500 training pictures (of which 100 set int8's scales), and the most pruned one also after
``--steps`` steps of training with the student's own loss and the kept teacher, at one learning
rate for all. ``--few`` leaves out the levels that no claim is judged by. Measured on the test part
(``--pictures`` of it, as many of each class, the first ones); temperatures are fitted on up to 500
pictures of the listed validation part, which no student learned from. Writes a row a network to
``data/results/cifar100_compression.csv``, and command, machine and times, as ratios side by side,
to the JSON file beside. Rows that are there are left as they are: run it again after a break.
"""

import argparse
import datetime
import itertools
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
    settings = {one.name: one for one in plans.arms()}[ARMS[arm]]
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
    """(way, level, repair, bits, a function that makes it): those that are judged first."""
    pruned, rounded = partial(c.prune_weights, network), partial(c.round_weights, network)
    found = [("float", 32, "none", None, lambda: network)]
    found += [("int8", 8, "none", None, lambda: c.to_int8(network, images[::5]))]
    levels = [("pruned", f, None, partial(pruned, f)) for f in c.FRACTIONS]
    levels += [("rounded", bits, bits, partial(rounded, bits)) for bits in c.BITS]
    repaired = []
    for way, level, bits, make in levels:
        renewed = lambda make=make: c.reestimate(make(), images)  # noqa: E731
        repaired += [(way, level, "batch norm", bits, renewed), (way, level, "none", bits, make)]
    repaired.sort(key=lambda one: (one[:2] not in c.JUDGED.values(), one[2] == "none"))
    found += repaired
    if steps and arm in ARMS:
        masked = partial(pruned, c.FRACTIONS[-1], masks=True)
        train = lambda: train_on(masked(), arm, teacher, data, steps, seed)  # noqa: E731
        found += [("pruned", c.FRACTIONS[-1], f"{steps} steps", None, train)]
    return found


def key_of(row: dict) -> tuple:
    return *(row[k] for k in KEY if k != "level"), float(row["level"])


def measured(network, bits, test, validation) -> dict:
    """A network's row: measures on test, the same after one fitted temperature, and its size."""
    logits = predict(network, test[0], 500)
    tau = fit_temperature(predict(network, validation[0], 500), validation[1])
    row = evaluate(logits, test[1])[["accuracy", "nll", "brier", "ece", "entropy"]].to_dict()
    after = evaluate(logits / tau, test[1])
    row |= {f"rescaled_{k}": after[k] for k in ("nll", "ece")} | {"fitted_temperature": tau}
    return row | {"bytes": len(c.stored(network, bits)), "pictures": len(test[1])}


def times(networks_by_name: dict, images) -> list[dict]:
    """Time over that of the same network in float32, batch norm folded: quartiles of 9 rounds."""
    rows = []
    for name, network in networks_by_name.items():
        reference = c.fold(network)
        others = {
            "int8": c.to_int8(network, images[::5]),
            "90 % pruned": c.fold(c.prune_weights(network, 0.9)),
            "float32": c.fold(network),  # once more: what the measurement itself is worth
        }
        for size, (way, other) in itertools.product((8, 32), others.items()):
            ratios = c.time_ratios(other, reference, images[:size], rounds=9)
            found = np.quantile(ratios, [0.25, 0.5, 0.75]).round(3)
            row = {"network": name, "way": way, "batch": size}
            rows.append(row | dict(zip(("low", "median", "high"), found, strict=True)))
    return rows


def write_note(model: str, note: dict) -> None:
    path = FILE.with_suffix(".json")
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    atomic_write(path, json.dumps(kept | {model: note}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, help="the folder of CIFAR-100's pictures")
    parser.add_argument("--model", required=True, help="kept students: resnet8 or resnet20")
    parser.add_argument("--pictures", type=int, default=5_000, help="of the test part")
    parser.add_argument("--few", action="store_true", help="int8, 70 %% pruned and 4 bits only")
    parser.add_argument("--steps", type=int, default=100, help="of training after pruning, or 0")
    given = parser.parse_args()
    if given.pictures < 200 or given.pictures % networks.CLASSES:
        parser.error(f"--pictures {given.pictures}: give whole hundreds, at least 200")
    students, teacher = networks.students(given.model), networks.teacher()
    data = load_dataset("cifar100", root=given.root, validation="listed")
    test = first_of_each_class(data.test, given.pictures)
    validation = first_of_each_class(data.validation, min(500, given.pictures // 2))
    images = first_of_each_class(data.train, 500)[0]
    rows = read_table(FILE).to_dict("records") if FILE.exists() else []
    done = {key_of(row) for row in rows}
    if other := {r["pictures"] for r in rows if r["model"] == given.model} - {given.pictures}:
        raise ValueError(f"{FILE} has {given.model} on {other} pictures: take those rows out first")
    everybody = {("teacher", 0): teacher, **students}
    command = shlex.join(["python", *sys.argv]).replace(given.root, "DIR")
    note = {"command": command, "date": str(datetime.date.today())}
    note |= {"machine": machine(), "engine": torch.backends.quantized.engine}
    note |= {"teacher": "resnet32", "learning_rate": RATE, "students": len(students)}
    write_note(given.model, note)
    made = {}
    for name, network in everybody.items():
        network.to(memory_format=torch.channels_last)
        found = ways(network, *name, teacher, data, images, given.steps)
        made[name] = found[:6] if given.few else found
    for k, who in sorted((k, who) for who, found in made.items() for k in range(len(found))):
        way, level, repair, bits, make = made[who][k]
        key = dict(zip(KEY, (given.model, *who, way, level, repair), strict=True))
        if key_of(key) in done:
            continue
        rows.append(key | measured(make(), bits, test, validation))
        atomic_write(FILE, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
        print(*key.values(), f"{rows[-1]['accuracy']:.2%}", rows[-1]["bytes"], flush=True)
    note["times"] = times({given.model: students[min(students)], "resnet32": teacher}, images)
    write_note(given.model, note)


if __name__ == "__main__":
    main()
