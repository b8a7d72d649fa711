"""Keep the students of ``ttm-lab plan cifar100-2x2``: weights, and how far their outputs differ.

    python benchmarks/cifar100_students.py --root DIR

Reads the plan's run folders; ``DIR`` holds CIFAR-100. Writes the weights in float16 to
``data/results/cifar100_students``, for notebooks that need real students and train none, and
``data/results/cifar100-2x2_distances.csv``. A row there is two students whose seeds follow each
other (the last seed is followed by the first), each with the temperature that was fitted to it on
the validation part: the symmetric KL divergence of their probabilities on the test part (mean, in
nats), and the share of pictures on which their first class agrees. Claim B14 compares the rows of
two methods with those of one method: seeds differ in both, so only the method is left.
"""

import argparse
import itertools

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from ttm_lab.analysis import predict
from ttm_lab.course import plans
from ttm_lab.course.networks import CLASSES
from ttm_lab.data import load_dataset
from ttm_lab.files import atomic_write, find_root, runs_folder
from ttm_lab.models import create_model, load_weights

# The plan's arms at the scale of each published loss, and KD at TTM's: see plans.py.
ARMS = {
    "CE": "ce",
    "KD, wd 5e-4": "kd",
    "KD, wd 5e-5": "kd10",
    "TTM, wd 5e-5": "ttm",
    "WTTM, wd 5e-5": "wttm",
}


def distance(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Symmetric KL divergence in nats and agreement of two arrays of logits (N, K)."""
    p, q = (torch.from_numpy(z).double().log_softmax(-1) for z in (first, second))
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(-1).mean() / 2
    return {
        "divergence": float(divergence),
        "agreement": float((p.argmax(1) == q.argmax(1)).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, help="the folder of CIFAR-100's pictures")
    root = parser.parse_args().root
    results = find_root() / "data" / "results"
    plan = plans.cifar100_2x2()
    rows = plan.rows().dropna(subset=["accuracy"])
    rows = rows[rows["arm"].isin(ARMS)].astype({"seed": int})
    test = load_dataset("cifar100", root=root, validation="listed").test
    kept = results / "cifar100_students"
    kept.mkdir(exist_ok=True)
    logits = {}
    for row in rows.itertuples():
        model = row.pair.split(":")[1]
        path = runs_folder(plan.name) / row.run / "model.safetensors"
        network = load_weights(create_model(model, CLASSES), path)
        found = predict(network, test)
        accuracy = (found.argmax(1) == np.asarray(test.labels)).mean()
        if abs(accuracy - row.accuracy) > 0.002:
            raise ValueError(f"{path}: accuracy {accuracy:.4f}, in its row {row.accuracy:.4f}")
        logits[row.arm, row.seed] = np.asarray(found) / row.fitted_temperature
        state = {
            name: value.half() if value.is_floating_point() else value
            for name, value in load_file(path).items()
        }
        save_file(state, kept / f"{model}_{ARMS[row.arm]}_seed{row.seed}.safetensors")
    seeds = sorted({seed for _, seed in logits})
    found = [
        {
            "seed": seed,
            "arm": arm,
            "next_arm": other,
            **distance(logits[arm, seed], logits[other, after]),
        }
        for seed, after in zip(seeds, seeds[1:] + seeds[:1], strict=True)
        for arm, other in itertools.product(ARMS, ARMS)
    ]
    path = results / f"{plan.name}_distances.csv"
    atomic_write(path, pd.DataFrame(found).to_csv(index=False, float_format="%.6g"))
    print(f"{len(logits)} students in {kept}, {len(found)} distances in {path}")


if __name__ == "__main__":
    main()
