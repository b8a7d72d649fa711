"""Our own corruptions of pictures, three strengths each. They are not those of CIFAR-100-C."""

import io

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

# By kind, what its strengths 1 to 3 are.
STRENGTHS = {
    "noise": (0.06, 0.12, 0.18),  # standard deviation of the normal noise, of 0..1
    "blur": (0.6, 1.0, 1.5),  # standard deviation of the Gaussian, in pixels
    "brightness": (0.15, 0.3, 0.45),  # added to every pixel
    "contrast": (0.6, 0.4, 0.2),  # factor of the distance from the picture's mean
    "JPEG": (40, 15, 5),  # quality from 1 to 100
}
# By kind, from no change to the strongest of the explorer.
RANGES = {
    "noise": (0.0, 0.6),
    "blur": (0.0, 2.0),
    "brightness": (0.0, 0.8),
    "contrast": (1.0, 0.05),
    "JPEG": (100, 1),
}


def corrupt(images: Tensor, kind: str, amount: float, *, seed: int = 0) -> Tensor:
    """Pictures (N, C, H, W) float32 from 0 to 1, corrupted and still from 0 to 1.

    ``kind`` is one of ``STRENGTHS``, ``amount`` in its unit there. Noise depends on ``seed``.
    Raises ``ValueError`` for an unknown kind and for pixels outside 0 to 1.
    """
    if kind not in STRENGTHS:
        raise ValueError(f"kind={kind!r} must be one of {list(STRENGTHS)}")
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"pixels run from {images.min():.3g} to {images.max():.3g}: give them from 0 to 1, "
            "before they are normalised"
        )
    if kind == "noise":
        generator = torch.Generator().manual_seed(seed)
        images = images + amount * torch.randn(images.shape, generator=generator)
    elif kind == "blur" and amount > 0:
        side = 2 * min(round(3 * amount) + 1, images.shape[-1] // 2) + 1
        images = functional.gaussian_blur(images, [side, side], [amount, amount])
    elif kind == "brightness":
        images = images + amount
    elif kind == "contrast":
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = mean + amount * (images - mean)
    elif kind == "JPEG":
        pixels = (255 * images).round().to(torch.uint8)
        images = torch.stack([_coded(picture, round(amount)) for picture in pixels]).float() / 255
    return images.clamp(0, 1)


def _coded(picture: Tensor, quality: int) -> Tensor:
    """A picture (C, H, W) uint8 through JPEG and back."""
    file = io.BytesIO()
    functional.to_pil_image(picture).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return functional.pil_to_tensor(image)
