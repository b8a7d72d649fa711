"""What networks have in common: logits, whatever else they return, and for the package's own
networks named layers, the last of which is a classifier. The digits' networks are the smallest.
"""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def logits_of(output) -> Tensor:
    """The logits in what a network returned: the tensor, ``output.logits`` or ``["logits"]``.

    What else is there, such as the auxiliary outputs of torchvision's GoogLeNet and Inception in
    training, is left alone. Raises ``ValueError`` where nothing says which part the logits are.
    """
    named = output.get("logits") if isinstance(output, Mapping) else output
    logits = getattr(named, "logits", named)
    if not isinstance(logits, Tensor):
        parts = f" of {list(output)}" if isinstance(output, Mapping) else ""
        raise ValueError(
            f"the network returns a {type(output).__name__}{parts} instead of logits: wrap it in a "
            "module whose forward returns the logits alone, or a dict that names them 'logits'"
        )
    return logits


class Network(nn.Sequential):
    """Layers applied one after the other, the last of which gives the logits.

    ``forward_features(images)`` gives the penultimate features (B, D), pooled and flat, and
    ``forward(images)`` gives the logits ``head(forward_features(images))``: who needs both calls
    these two and saves a second pass.
    """

    def __init__(self, **layers: nn.Module):
        super().__init__(OrderedDict(layers))

    @property
    def head(self) -> nn.Module:
        """The last layer, whatever its name: features (B, D) to logits (B, num_classes)."""
        return self[-1]

    def forward_features(self, images: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            images = layer(images)
        return images


class TinyConvNet(Network):
    """Two 3x3 convolutions with pooling and a linear layer, for 8x8 grey pictures.

    Takes images (B, 1, 8, 8), gives logits (B, num_classes). Pooling before ReLU gives the same
    numbers as after it, from a quarter of the elements. The student and the teacher of the digits
    differ in width only; neither has batch norm or dropout, so that train and eval mode give the
    same numbers.
    """

    def __init__(self, widths: tuple[int, int], num_classes: int):
        super().__init__(
            features=nn.Sequential(
                nn.Conv2d(1, widths[0], 3, padding=1),
                nn.MaxPool2d(2),
                nn.ReLU(inplace=True),
                nn.Conv2d(widths[0], widths[1], 3, padding=1),
                nn.MaxPool2d(2),
                nn.ReLU(inplace=True),
                nn.Flatten(),
            ),
            classifier=nn.Linear(4 * widths[1], num_classes),
        )
