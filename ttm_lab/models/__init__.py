"""Students and teachers by name, and their weights from files."""

from functools import partial

import torch
from torch import nn

from ttm_lab.models.cifar import CIFAR_MODELS
from ttm_lab.models.network import TinyConvNet, logits_of
from ttm_lab.models.weights import load_weights

__all__ = [
    "create_model",
    "list_models",
    "load_weights",
    "logits_of",
    "model_name",
]

_SMALL_MODELS = {
    "cnn_tiny": partial(TinyConvNet, (2, 4)),
    "cnn_small": partial(TinyConvNet, (4, 8)),
    "cnn_medium": partial(TinyConvNet, (8, 16)),
    "cnn_large": partial(TinyConvNet, (32, 64)),
    **CIFAR_MODELS,
}
# Those of the paper's tables, by its names; torchvision's and timm's others work as well.
_IMAGENET_MODELS = {
    **{f"ResNet-{depth}": f"torchvision/resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    "MobileNet": "timm/mobilenetv1_100",
    "DeiT-Tiny": "timm/deit_tiny_patch16_224",
    "DeiT III-Small": "timm/deit3_small_patch16_224",
}
_PAPER_SPELLINGS = {
    "ShuffleNetV1": "ShuffleV1",
    "ShuffleNetV2": "ShuffleV2",
    **{name.replace("_", "-"): name for name in CIFAR_MODELS if name.startswith("wrn")},
    **_IMAGENET_MODELS,
}


def model_name(name: str) -> str:
    """A network's name here, from the paper's spelling of it or ours."""
    return _PAPER_SPELLINGS.get(name, name)


def list_models() -> list[str]:
    """The names of the paper's networks and of the digits', as ``create_model`` takes them."""
    return sorted([*_SMALL_MODELS, *_IMAGENET_MODELS.values()])


def create_model(
    name: str, num_classes: int | None = None, *, seed: int | None = None
) -> nn.Module:
    """Build a network with fresh weights.

    ``cnn_small`` and ``cnn_large`` are the digits' student and teacher, ``cnn_tiny`` and
    ``cnn_medium`` students of half and twice the width. The CIFAR networks go by
    their published names (``resnet20``, ``wrn_40_2``, ``ShuffleV1``, ...), ImageNet's by
    ``torchvision/NAME`` or ``timm/NAME``, where timm comes with the extra ``imagenet``; the
    paper's spellings (``wrn-40-2``, ``ShuffleNetV1``, ``ResNet-34``) are aliases (``model_name``).
    ``num_classes`` is 100 unless given, 1000 for ImageNet.

    With a ``seed`` the initial weights depend on it alone, and torch's global random state is left
    as it was.

    The digits' and CIFAR networks also give their penultimate features (B, D), in the same pass:
    ``features = model.forward_features(images)``, then ``logits = model.head(features)``.

    Raises ``ValueError`` for an unknown name, fewer than two classes or a seed of more than 64
    bits, ``ImportError`` where timm is needed and absent.
    """
    name = model_name(name)
    library, _, library_name = name.rpartition("/")
    if num_classes is None:
        num_classes = 1000 if library else 100
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2")
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed={seed} must be less than {2**64} in size, as torch takes it")
    build = _SMALL_MODELS.get(name)
    if library == "torchvision":
        from torchvision import models

        # only pictures to logits: the list also names detectors and video networks
        if library_name in models.list_models(module=models):
            build = getattr(models, library_name)
    elif library == "timm":
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f"{name} needs the package timm: pip install 'ttm-lab[imagenet]'"
            ) from error
        if timm.is_model(library_name):
            build = partial(timm.create_model, library_name)
    if build is None:
        raise ValueError(f"unknown model {name!r}; available: {', '.join(list_models())}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return build(num_classes=num_classes)
