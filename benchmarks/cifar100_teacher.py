"""Train the CIFAR-100 teacher of the course's experiments, on class folders of its pictures.

    python benchmarks/cifar100_teacher.py --root DIR          train, or go on where it stopped
    python benchmarks/cifar100_teacher.py --root DIR --keep   write what was reached to data/results

DIR holds ``train/<class>/*.png`` and ``test/<class>/*.png`` of all of CIFAR-100, or torchvision's
files. Held out for validation are the 5,000 pictures that ``data/cifar100_validation.txt`` lists,
from any source the same. The order of training pictures is that of their files, so that a run goes
on with the source that it started from.

``--keep`` writes weights and momentum in float16 (two files of under 1 MiB) and the history. A
machine without a run goes on from them: not bit for bit, since float16 rounds.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from machine import machine
from safetensors.torch import load_file, save_file

from ttm_lab import training
from ttm_lab.analysis import evaluate
from ttm_lab.data import load_dataset
from ttm_lab.files import atomic_write, find_root, read_table, runs_folder
from ttm_lab.training import Settings, train_teacher

KEPT = find_root(__file__) / "data" / "results" / "cifar100_teacher"


def student_of(settings, data, folder):
    source = {"name": data.name, "seed": data.seed, "sha256": data.fingerprint}
    device = torch.device("cpu")
    return training.Student(settings, 0, data, device=device, source=source, folder=folder)


def keep(student):
    """Write what a run has reached: its newest resume point, or its result."""
    student.load()
    halves = {
        "weights": {
            name: x.half() if x.is_floating_point() else x
            for name, x in student.model.state_dict().items()
        }
    }
    if not student.done:
        momentum = student.optimizer.state_dict()["state"]
        halves["momentum"] = {str(k): v["momentum_buffer"].half() for k, v in momentum.items()}
    for name, tensors in halves.items():
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        save_file(tensors, f"{KEPT}_{name}.safetensors")
    atomic_write(f"{KEPT}_metrics.csv", pd.DataFrame(student.rows).to_csv(index=False))
    environment = json.loads((student.run.folder / "environment.json").read_text())
    del environment["command"]
    note = {
        "command": "python benchmarks/cifar100_teacher.py --root DIR",
        "model": student.settings.model,
        "epochs": student.settings.epochs,
        "steps": student.steps,
        "of": student.last_step,
        "meter": student.meter.state(),
        "machine": machine(),
        "environment": environment,
    }
    atomic_write(f"{KEPT}.json", json.dumps(note, indent=1))
    print(f"step {student.steps:,} of {student.last_step:,}: {KEPT}_*")


def go_on(student):
    """Make the kept state this machine's resume point, unless it has a run of its own."""
    if not KEPT.with_suffix(".json").exists() or student.run.folder.exists():
        return
    note = json.loads(KEPT.with_suffix(".json").read_text())
    if note["steps"] >= student.last_step:
        return
    student.model.load_state_dict(load_file(f"{KEPT}_weights.safetensors"))
    state = student.optimizer.state_dict()
    momentum = load_file(f"{KEPT}_momentum.safetensors")
    state["state"] = {int(k): {"momentum_buffer": v.float()} for k, v in momentum.items()}
    student.optimizer.load_state_dict(state)
    student.rows = read_table(f"{KEPT}_metrics.csv").to_dict("records")
    student.steps = note["steps"]
    student.meter.restore(note["meter"])
    with student.run:
        student.save_checkpoint()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    data = load_dataset("cifar100", root=options.root, validation="listed")
    settings = Settings(options.model, epochs=options.epochs, augmentation="crop-flip")
    folder = runs_folder("cifar100-teacher")
    student = student_of(settings, data, folder)
    if options.keep:
        keep(student)
        return
    go_on(student)
    trained = train_teacher(data, settings, folder=folder)
    for part in ("validation", "test"):
        measures = evaluate(trained, getattr(data, part))
        print(part, {name: round(float(value), 4) for name, value in measures.items()})
    keep(student_of(settings, data, folder))


if __name__ == "__main__":
    main()
