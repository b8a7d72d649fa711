"""Keep the results of notebook 12 on real digits of other hands: USPS and MNIST as targets.

    python benchmarks/digits_domain.py --usps USPS.mat --mnist DIR

Source are scikit-learn's digits. USPS (Hull 1994) is read from the file of that name in the public
repository XLearning-SCU/2017-TCYB-PCE, MNIST's test part (LeCun et al. 1998) from its idx files.
MNIST's middle 20 x 20 pixels hold the digit; both are brought to 8 x 8 by means over areas.
Writes ``data/results/digits_domain.csv``, a row a student: teacher, pictures, arms and recipe are
those of the notebook (``ttm_lab.course.domain.digits_study``).
"""

import argparse
import gzip
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from machine import machine
from scipy.io import loadmat

from ttm_lab.analysis import evaluate
from ttm_lab.course import domain
from ttm_lab.data import Split
from ttm_lab.files import atomic_write, find_root, runs_folder

UNLABELLED, TEST = 540, 2000
FILE = find_root(__file__) / "data" / "results" / "digits_domain.csv"


def small(images: torch.Tensor, labels) -> tuple[Split, Split]:
    """An unlabelled and a test part of 8 x 8 pictures from 0 to 1, drawn at random."""
    images = F.adaptive_avg_pool2d(images.float(), 8)
    images = images / images.amax(dim=(1, 2, 3), keepdim=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    labels = torch.as_tensor(np.asarray(labels, dtype=np.int64))
    parts = order[:UNLABELLED], order[UNLABELLED : UNLABELLED + TEST]
    return tuple(Split(images[i], labels[i]) for i in parts)


def usps(path: Path) -> tuple[Split, Split]:
    """16 x 16 pictures, column by column; label 10 means 0."""
    found = {k: np.asarray(v) for k, v in loadmat(path).items() if not k.startswith("__")}
    pixels = next(v for v in found.values() if 256 in v.shape)
    pixels = pixels if pixels.shape[1] == 256 else pixels.T
    labels = next(v for v in found.values() if v.size == len(pixels)).ravel() % 10
    images = pixels.reshape(-1, 1, 16, 16).transpose(0, 1, 3, 2).astype(np.float32)
    return small(torch.from_numpy(images.copy()), labels)


def mnist(folder: Path) -> tuple[Split, Split]:
    def read(name: str, header: int) -> np.ndarray:
        path = folder / name
        packed = folder / f"{name}.gz"
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        return np.frombuffer(data, np.uint8, offset=header)

    images = read("t10k-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)[:, :, 4:24, 4:24]
    return small(torch.from_numpy(images.copy()), read("t10k-labels-idx1-ubyte", 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--usps", type=Path, required=True, help="USPS.mat")
    parser.add_argument("--mnist", type=Path, required=True, help="the folder of the idx files")
    options = parser.parse_args()
    folder, tables = runs_folder("digits-domain"), []
    source, _ = domain.digits_halves()
    teacher = domain.digits_teacher(source, folder=folder)
    for target, parts in (("USPS", usps(options.usps)), ("MNIST", mnist(options.mnist))):
        study = domain.digits_study(teacher, source, *parts, folder=folder)
        tables.append(study.rows(source.test, target=target))
        one = {"target": target, "seed": -1, "arm": "teacher"}
        for prefix, part in (("source", source.test), ("target", parts[1])):
            found = evaluate(teacher, part)[["accuracy", "nll", "ece", "entropy"]]
            one |= dict(found.add_prefix(f"{prefix}_"))
        tables.append(pd.DataFrame([one]))
    table = pd.concat(tables)
    atomic_write(FILE, table.to_csv(index=False, float_format="%.6g"))
    note = {
        "command": f"python {sys.argv[0]} --usps USPS.mat --mnist DIR",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "pictures": {"labelled": len(source.train), "unlabelled": UNLABELLED, "test": TEST},
        "temperature": domain.TEMPERATURE,
        "share": domain.SHARE,
    }
    atomic_write(FILE.with_suffix(".json"), json.dumps(note, indent=1) + "\n")


if __name__ == "__main__":
    main()
