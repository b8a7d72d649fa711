"""Measure the kept CIFAR-100 students under corruptions that they were not trained for.

    python benchmarks/shift.py --root DIR --model resnet20

DIR holds CIFAR-100 as ``benchmarks/cifar100_teacher.py`` takes it; ``--model`` is a kind of kept
student (``ttm_lab.course.networks.students``). The corruptions are our own
(``ttm_lab.course.corruptions``), of test pictures: the first ``--measured`` of each class are
measured, and of the four that follow the labels can be used to fit one temperature. Networks run
in bfloat16. Stop it at any time: the same command goes on.

Writes ``data/results/cifar100_shift.csv``, a row for each student, kind and strength; rows of
other models are kept. Columns ``..._clean`` are after the temperature fitted on 400 clean
pictures, ``..._50`` and ``..._200`` after one fitted on so many corrupted ones, the mean over
``DRAWS`` draws of them.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import machine
from tqdm import tqdm

from ttm_lab.analysis import evaluate, fit_temperature, predict
from ttm_lab.course import networks
from ttm_lab.course.corruptions import STRENGTHS, corrupt
from ttm_lab.data import load_dataset
from ttm_lab.files import atomic_write, find_root, read_table, runs_folder

FOR_LABELS, DRAWS = 4, 10
FILE = find_root(__file__) / "data" / "results" / "cifar100_shift.csv"


def chosen(labels: torch.Tensor, measured: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pictures to measure on, and of those whose labels fit a temperature."""
    labels = np.asarray(labels)
    places = [np.flatnonzero(labels == k)[: measured + FOR_LABELS] for k in np.unique(labels)]
    places = np.stack(places)
    return places[:, :measured].ravel(), places[:, measured:].ravel()


def look(network, images: torch.Tensor) -> np.ndarray:
    """A network's logits, in bfloat16 inside."""
    with torch.autocast("cpu", torch.bfloat16):
        return predict(network.to(memory_format=torch.channels_last), images)


def measures(logits: np.ndarray, labels: np.ndarray, spare: np.ndarray, clean: float) -> dict:
    """A student's row: ``logits`` of all pictures; ``spare`` are the places for fitting."""
    test = np.setdiff1d(np.arange(len(labels)), spare)

    def at(temperature: float) -> pd.Series:
        return evaluate(logits[test] / temperature, labels[test])[["nll", "ece"]]

    row = dict(evaluate(logits[test], labels[test])[["accuracy", "nll", "ece", "entropy"]])
    row |= {"temperature_clean": clean} | dict(at(clean).add_suffix("_clean"))
    for count in (50, 200):
        draws = np.random.default_rng(0)
        some = [draws.choice(spare, count, replace=False) for _ in range(DRAWS)]
        fitted = [fit_temperature(logits[i], labels[i]) for i in some]
        row[f"temperature_{count}"] = np.exp(np.mean(np.log(fitted)))
        row |= dict(pd.DataFrame([at(t) for t in fitted]).mean().add_suffix(f"_{count}"))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="the folder of CIFAR-100")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--measured", type=int, default=20, help="pictures of each class, to 96")
    options = parser.parse_args()
    test = load_dataset("cifar100", root=options.root, validation="listed").test
    measured, spare = chosen(test.labels, options.measured)
    places = np.concatenate([measured, spare])
    labels = np.asarray(test.labels)[places]
    spare = np.arange(len(measured), len(places))
    images = test.images[places].float() / 255
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (test.mean, test.std))
    students = networks.students(options.model) | {("teacher", -1): networks.teacher()}
    views = [("none", 0, images)]
    views += [
        (kind, strength, corrupt(images, kind, amount))
        for kind, amounts in STRENGTHS.items()
        for strength, amount in enumerate(amounts, 1)
    ]
    folder = runs_folder("cifar100-shift")
    for kind, strength, pictures in tqdm(views, desc="corruptions"):
        path = folder / f"{options.model}_{options.measured}_{kind}{strength}.csv"
        if path.exists():
            continue
        ready = ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)
        found = {key: look(network, ready) for key, network in students.items()}
        if kind == "none":
            fits = [fit_temperature(z[spare], labels[spare]) for z in found.values()]
            clean = dict(zip(found, fits, strict=True))
        else:
            kept = read_table(folder / f"{options.model}_{options.measured}_none0.csv")
            clean = kept.set_index(["arm", "seed"])["temperature_clean"]
        rows = []
        for (arm, seed), logits in found.items():
            model = "resnet32" if arm == "teacher" else options.model
            row = {"model": model, "arm": arm, "seed": seed, "kind": kind, "strength": strength}
            rows.append(row | measures(logits, labels, spare, clean[arm, seed]))
        atomic_write(path, pd.DataFrame(rows).to_csv(index=False))
    names = [f"{options.model}_{options.measured}_{kind}{strength}" for kind, strength, _ in views]
    table = pd.concat([read_table(folder / f"{name}.csv") for name in names])
    if FILE.exists():
        kept = read_table(FILE)
        table = pd.concat([kept[~kept["model"].isin(table["model"])], table])
    table = table.sort_values(["model", "arm", "seed", "kind", "strength"])
    atomic_write(FILE, table.to_csv(index=False, float_format="%.6g"))
    note_file = FILE.with_suffix(".json")
    note = json.loads(note_file.read_text(encoding="utf-8")) if note_file.exists() else {}
    note |= {
        "data": "CIFAR-100's test part: the first pictures of each class, so many as 'measured' "
        f"says; {FOR_LABELS} more of each class to fit a temperature on",
        "corruptions": STRENGTHS,
        "draws": DRAWS,
        options.model: {
            "command": f"python {sys.argv[0]} --root DIR --model {options.model} "
            f"--measured {options.measured}",
            "measured": options.measured,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
        },
    }
    atomic_write(note_file, json.dumps(note, indent=1) + "\n")


if __name__ == "__main__":
    main()
