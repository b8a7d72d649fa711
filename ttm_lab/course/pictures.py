"""A reader's own pictures: a teacher from ImageNet fine-tuned on them, and a report.

ttm-lab distill --data folder --root DIR --pair TEACHER:STUDENT --fine-tune 10 --output FILE.csv
"""

from pathlib import Path

import pandas as pd
import torch
from torch import nn

from ttm_lab.course.paper_rows import TrainedPair, load_teacher, teacher_folder
from ttm_lab.data import Dataset, FileSplit
from ttm_lab.files import runs_folder
from ttm_lab.models import create_model, model_name
from ttm_lab.runs import environment
from ttm_lab.training import Settings, Trained, train_teacher

MEASURES = {
    "accuracy": "accuracy, %",
    "nll": "NLL, nats",
    "ece": "calibration error",
    "entropy": "entropy, nats",
    "agreement": "agreement with the teacher",
}


def fine_tune(
    name: str,
    data: Dataset,
    weights: str | Path | nn.Module | None = None,
    epochs: int = 10,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    **options,
) -> Trained:
    """A network trained on ``data`` from weights that know other pictures, with a new last layer.

    All weights are trained: SGD with momentum, batches of 32, a learning rate that falls from 0.01
    to zero along a cosine, and the strongest augmentation that the data offer.

    Args:
        name: a network, such as ``"torchvision/mobilenet_v3_small"``.
        weights: a file or a run's folder with weights for ImageNet's 1,000 classes (CIFAR
            networks: CIFAR-100's 100), a network that has them, or None for the published ones.
        folder: where the run is kept (default: beside other teachers of these data, in ``runs/``).
        options: as in ``training.distill_many``.

    Raises what ``paper_rows.load_teacher`` and ``training.train_teacher`` raise.
    """
    name = model_name(name)
    if not isinstance(weights, nn.Module):
        known = 1000 if "/" in name else 100
        weights = load_teacher(name, weights or "published", known).model
    start = with_new_head(weights, create_model(name, data.num_classes, seed=seed))
    settings = Settings(
        name,
        epochs=epochs,
        batch_size=32,
        learning_rate=0.01,
        schedule="cosine",
        augmentation=data.train.augmentations[-1],
        name="teacher",
    )
    folder = folder or runs_folder(teacher_folder(data, name))
    return train_teacher(data, settings, seed=seed, folder=folder, start=start, **options)


def with_new_head(trained: nn.Module, fresh: nn.Module) -> nn.Module:
    """``fresh`` with all weights of ``trained`` except the last layer's, which tell its classes.

    Raises ``ValueError`` where they differ in more than their last layer.
    """
    own, state = fresh.state_dict(), trained.state_dict()
    head = list(own)[-1].rpartition(".")[0] + "."
    wrong = own.keys() ^ state.keys()
    wrong |= {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    if wrong := sorted(key for key in wrong if not key.startswith(head)):
        raise ValueError(f"the weights are another network's: {', '.join(wrong[:5])} differ")
    fresh.load_state_dict({k: own[k] if k.startswith(head) else state[k] for k in own})
    return fresh


def report(measured: pd.DataFrame, row: TrainedPair, data: Dataset) -> str:
    """Teacher and students on the test part, in Markdown: a line each, means over seeds.

    ``measured`` comes from ``paper_rows.measure``. How to ask the most accurate student about a new
    picture follows.
    """
    shown = measured.assign(accuracy=100 * measured["accuracy"])
    grouped = shown.groupby("method", sort=False)
    table = grouped[[name for name in MEASURES if name in shown]].mean().round(3)
    lines = [f"| network | seeds | parameters | {' | '.join(MEASURES[k] for k in table)} |"]
    lines += ["| --- " * (len(table.columns) + 3) + "|"]
    networks = {one.name: one.model for one in row.students} | {"teacher": row.teacher.model}
    for method, values in table.iterrows():
        cells = ["" if pd.isna(x) else f"{x:g}" for x in values]
        size = f"{sum(p.numel() for p in networks[method].parameters()):,}"
        cells = [method, str(len(grouped.get_group(method))), size, *cells]
        lines.append(f"| {' | '.join(cells)} |")
    student = row.students[0].settings
    right = measured.set_index(["method", "seed"])["accuracy"]
    here = environment()
    threads = f"{here['gpu'] or here['processor']}, threads: {torch.get_num_threads()}"
    return "\n".join(
        [
            f"# {data.name}: {row.teacher.settings.model} to {student.model}",
            "",
            f"{len(data.train):,} pictures to train on and {len(data.test):,} to test on, of "
            f"{data.num_classes} classes; epochs: {student.epochs}. One test picture is "
            f"{100 / len(data.test):.1f} points of accuracy.",
            "",
            *lines,
            "",
            f"Made by `{here['command']}` on {here['started'][:10]} ({threads}).",
            "",
            *_use(max(row.students, key=lambda one: right[one.name, one.seed]), data),
        ]
    )


def _use(student: Trained, data: Dataset) -> list[str]:
    """Lines of Markdown with the code that names the class of a new picture."""
    part = data.train
    if isinstance(part, FileSplit):
        steps = "from torchvision.transforms.v2 import CenterCrop, Resize"
        fit = f"CenterCrop({part.size})(Resize({part.size * 8 // 7})(picture))"
    else:
        steps = "from PIL import Image, ImageOps"
        fit = f"ImageOps.fit(picture, {tuple(part.images.shape[:1:-1])}, Image.Resampling.BILINEAR)"
    file = student.folder / "model.safetensors"
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    scale = [[round(x, 5) for x in values] for values in (part.mean, part.std)]
    return [
        f"## Ask the student {student.name}, seed {student.seed}",
        "",
        "```python",
        "import numpy as np",
        "import torch",
        steps,
        "from ttm_lab.data.splits import read_image",
        "from ttm_lab.models import create_model, load_weights",
        "",
        f"classes = {list(data.class_names)}",
        f'network = create_model("{student.settings.model}", {data.num_classes})',
        f"network = load_weights(network, {str(file)!r}).eval()",
        'picture = read_image("new.jpg")',
        f"pixels = np.asarray({fit}, dtype=np.float32)",
        f"pixels = (pixels / 255 - {scale[0]}) / {scale[1]}",
        "with torch.no_grad():",
        "    logits = network(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None])",
        "print(classes[logits.argmax()])",
        "```",
        "",
    ]
