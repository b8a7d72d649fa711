"""The kept CIFAR-100 networks: real students and their teacher, without training."""

import re
from pathlib import Path

from torch import nn

from ttm_lab.files import find_root
from ttm_lab.models import create_model, load_weights

CLASSES = 100


def students(
    model: str = "resnet20", folder: str | Path | None = None
) -> dict[tuple[str, int], nn.Module]:
    """The kept students that are a ``model``, in eval mode, by (arm, seed), arms in one order.

    Arms are ``ce``, ``kd``, ``kd10`` (KD at a tenth of the weight decay: at ten times the loss),
    ``ttm`` and ``wttm`` (at the paper's scale), as far as they are kept. ``folder`` is
    ``data/results/cifar100_students`` of the checkout by default.

    Raises ``FileNotFoundError`` where there is no student of that kind.
    """
    folder = Path(folder or find_root() / "data" / "results" / "cifar100_students")
    found = {}
    for path in sorted(folder.glob(f"{model}_*_seed*.safetensors")):
        arm, seed = re.fullmatch(rf"{model}_(\w+)_seed(\d+)", path.stem).groups()
        found[arm, int(seed)] = load_weights(create_model(model, CLASSES), path).eval()
    if not found:
        raise FileNotFoundError(f"no {model} in {folder}: change into the checkout")
    return found


def teacher(folder: str | Path | None = None) -> nn.Module:
    """The kept ResNet-32 teacher, in eval mode; ``folder`` is ``data/results`` by default."""
    folder = Path(folder or find_root() / "data" / "results")
    path = folder / "cifar100_teacher_weights.safetensors"
    return load_weights(create_model("resnet32", CLASSES), path).eval()
