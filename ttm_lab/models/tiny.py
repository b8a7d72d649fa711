"""The digits' student and teacher."""

from torch import nn

from ttm_lab.models.network import Network


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
