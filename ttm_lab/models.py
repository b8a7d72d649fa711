"""Students and teachers by name."""

from pathlib import Path

import torch
from torch import Tensor, nn


class TinyConvNet(nn.Module):
    """Two 3x3 convolutions with pooling and a linear layer, for 8x8 grey pictures.

    Takes images (B, 1, 8, 8), gives logits (B, num_classes). The student and the teacher of the
    digits differ in width only; neither has batch norm or dropout, so that train and eval mode
    give the same numbers.
    """

    def __init__(self, widths: tuple[int, int], num_classes: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(widths[0], widths[1], 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(4 * widths[1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


_TINY_WIDTHS = {"cnn_small": (4, 8), "cnn_large": (32, 64)}


def list_models() -> list[str]:
    """The names that ``create_model`` knows."""
    return sorted(_TINY_WIDTHS)


def create_model(name: str, num_classes: int = 100, *, seed: int | None = None) -> nn.Module:
    """Build a network with fresh weights.

    ``cnn_small`` and ``cnn_large`` are the digits' student and teacher. With a ``seed`` the
    initial weights depend on it alone, and torch's global random state is left as it was.

    Raises ``ValueError`` for an unknown name or fewer than two classes.

    Taught in notebooks/02_knowledge_distillation.ipynb.
    """
    if name not in _TINY_WIDTHS:
        raise ValueError(f"unknown model {name!r}; available: {', '.join(list_models())}")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2")
    if seed is None:
        return TinyConvNet(_TINY_WIDTHS[name], num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyConvNet(_TINY_WIDTHS[name], num_classes)


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a safetensors file into ``model``, strictly, and hand the model back.

    Raises ``FileNotFoundError`` for a missing file and ``ValueError`` for one that is truncated,
    of another format, or of another network (missing and unexpected names are listed).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); remove it") from error
    wanted = model.state_dict()
    missing, unexpected = sorted(wanted.keys() - state), sorted(state.keys() - wanted)
    shapes = [
        f"{k}: file {tuple(state[k].shape)}, model {tuple(wanted[k].shape)}"
        for k in sorted(wanted.keys() & state)
        if state[k].shape != wanted[k].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing {missing}, "
            f"unexpected {unexpected}, other shapes {shapes}"
        )
    model.load_state_dict(state)
    return model
