"""Keep small students of the digits, by width: python benchmarks/digits_students.py

Five seeds, three widths, CE, KD, TTM and WTTM with the settings of notebook 5's family
``published``, whose learning rates were searched for the middle width. Writes weights in float16
to ``data/results/digits_students.safetensors``, with each seed's teacher, and a JSON file beside.
"""

import datetime
import json
from dataclasses import replace

from machine import machine
from safetensors.torch import save
from tqdm import tqdm

from ttm_lab.analysis import evaluate
from ttm_lab.course import digits
from ttm_lab.course.compression import WIDTHS
from ttm_lab.files import atomic_write, find_root, runs_folder
from ttm_lab.training import distill_many

SEEDS = range(5)


def main() -> None:
    folder, tensors, accuracy = runs_folder("digits-widths"), {}, {}
    for seed in tqdm(SEEDS):
        teacher, data = digits.teacher_and_data(seed, folder)
        settings = digits.student_settings(seed, "published")
        wanted = [replace(one, model=model) for model in WIDTHS for one in settings]
        students = distill_many(teacher, data, wanted, seeds=[seed], folder=folder, progress=False)
        for one in (teacher, *students):
            name = f"{one.settings.model}/{one.name}/{seed}"
            network = one.model.half()
            tensors |= {f"{name}/{k}": v.contiguous() for k, v in network.state_dict().items()}
            accuracy.setdefault(name.rpartition("/")[0], []).append(
                round(
                    float(evaluate(replace(one, model=network.float()), data.test)["accuracy"]), 4
                )
            )
    path = find_root() / "data" / "results" / "digits_students.safetensors"
    atomic_write(path, save(tensors))
    note = {
        "command": "python benchmarks/digits_students.py",
        "date": str(datetime.date.today()),
        "machine": machine(),
        "test_accuracy": accuracy,
    }
    atomic_write(path.with_suffix(".json"), json.dumps(note, indent=1) + "\n")
    print(f"{len(SEEDS)} seeds in {path}")


if __name__ == "__main__":
    main()
