"""Train the CIFAR-100 teacher of the course's experiments, on class folders of its pictures.

    python benchmarks/cifar100_teacher.py --root DIR          train, or go on where it stopped
    python benchmarks/cifar100_teacher.py --root DIR --keep   write what was reached to data/results

DIR holds ``train/<class>/*.png`` and ``test/<class>/*.png`` of all of CIFAR-100, whose checksum is
held against the original's. Held out for validation are the 50 pictures of each class whose SHA-256
(label byte, then 3,072 bytes row by row) is smallest: ``data/cifar100_validation.txt`` lists the
first 16 digits of each, so any source of the pictures, in any order, gives the same parts.

``--keep`` writes weights and momentum in float16 (two files of under 1 MiB) and the history. A
machine without a run goes on from them: not bit for bit, since float16 rounds.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import machine
from PIL import Image
from safetensors.torch import load_file, save_file

from ttm_lab import training
from ttm_lab.analysis import evaluate
from ttm_lab.data import Dataset, Split
from ttm_lab.data.sources import CIFAR100_SCALE
from ttm_lab.files import atomic_write, find_root, read_table, runs_folder
from ttm_lab.training import Settings, train_teacher

# The sum over pictures of that SHA-256, modulo 2**256: no order of files changes it.
CHECKSUMS = {
    "train": "7afde546adf0eaaf90d6a187a2f5bb05da66a26562c7fc2b39ac30cd18ecb7ba",
    "test": "e0dae92f17b2a82c4cb016b063db8906fb6e78ba24005027b71b4ef45d97d9a6",
}
KEPT = find_root(__file__) / "data" / "results" / "cifar100_teacher"
LISTED = find_root(__file__) / "data" / "cifar100_validation.txt"


def read_part(folder):
    """Images (N, 3, 32, 32) uint8, labels (N,), digests (N,) and class names, by file name."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    images, labels, digests = [], [], []
    for label, name in enumerate(names):
        for file in sorted((folder / name).glob("*.png")):
            pixels = np.asarray(Image.open(file).convert("RGB"))
            images.append(pixels)
            labels.append(label)
            digests.append(hashlib.sha256(bytes([label]) + pixels.tobytes()).hexdigest())
    total = sum(int(digest, 16) for digest in digests) % 2**256
    if f"{total:064x}" != CHECKSUMS[folder.name]:
        raise SystemExit(f"{folder} does not hold exactly CIFAR-100's pictures")
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(labels), np.array(digests), tuple(names)


def load(root):
    """CIFAR-100 with 45,000 pictures to train on and the listed 5,000 to validate on."""
    images, labels, digests, names = read_part(root / "train")
    held_out = []
    for label in range(len(names)):
        of_class = np.flatnonzero(labels.numpy() == label)
        held_out.append(of_class[np.argsort(digests[of_class], kind="stable")[:50]])
    held_out = np.sort(np.concatenate(held_out))
    if sorted(digest[:16] for digest in digests[held_out]) != LISTED.read_text().split():
        raise SystemExit(f"the held-out pictures are not those of {LISTED}")
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    test_images, test_labels, _, _ = read_part(root / "test")
    return Dataset(
        "cifar100",
        0,
        names,
        Split(images[kept], labels[kept], **CIFAR100_SCALE),
        Split(images[held_out], labels[held_out], **CIFAR100_SCALE),
        Split(test_images, test_labels, **CIFAR100_SCALE),
        indices={"train": kept, "validation": held_out, "test": np.arange(len(test_labels))},
    )


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
    data = load(options.root)
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
