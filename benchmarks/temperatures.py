"""What a rule from the teacher's answers alone says of the temperature, for notebook 9.

    python benchmarks/temperatures.py --root DIR

DIR holds CIFAR-100. The kept ResNet-32 answers 5,000 of its training pictures, chosen at random;
for each temperature of the plan ``cifar100-temperatures`` a row of
``data/results/cifar100-temperatures_teacher.csv`` has the mean entropy of p_T (nats), the number of
classes that it leaves in doubt (exp of that mean) and D(p || p_T) (nats).
"""

import argparse

import pandas as pd
import torch

from ttm_lab.analysis import predict
from ttm_lab.course.plans import kept_cifar100, temperatures
from ttm_lab.data import Split
from ttm_lab.files import atomic_write, find_root
from ttm_lab.probability import kl_divergence, shannon_entropy, temperature_softmax

PICTURES = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, help="the folder of CIFAR-100's pictures")
    data = find_root() / "data"
    root = parser.parse_args().root
    teacher, pictures = kept_cifar100(data, "resnet32:resnet8", 0, root)
    train = pictures.train
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:PICTURES]
    part = Split(train.images[some], train.labels[some], train.mean, train.std)
    logits = torch.as_tensor(predict(teacher.model, part)).double()
    rows = []
    for settings in temperatures():
        smooth = temperature_softmax(logits, settings.temperature)
        entropy = shannon_entropy(smooth).mean()
        away = kl_divergence(logits.softmax(-1), smooth).mean()
        row = {"temperature": settings.temperature, "entropy": entropy.item()}
        rows.append(row | {"classes": entropy.exp().item(), "divergence": away.item()})
    table = pd.DataFrame(rows)
    path = data / "results" / "cifar100-temperatures_teacher.csv"
    atomic_write(path, table.to_csv(index=False, float_format="%.4g"))
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
