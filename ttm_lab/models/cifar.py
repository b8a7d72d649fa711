"""The 22 CIFAR networks of the CRD benchmark (Tian, Krishnan & Isola, 2020).

The paper builds on them. Names, order and shapes of the weights, strides, activations, pooling and
initial distributions are those of the benchmark's code (HobbitLong/RepDistiller), so that its
published teachers load and compute the same function. Where it departs from the paper that
proposed a network, the docstring says so.

Every network takes RGB images (B, 3, 32, 32), normalised, and gives logits (B, num_classes).
"""

from collections import OrderedDict
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn, relu_
from torch.nn.functional import avg_pool2d

from ttm_lab.models.network import Network


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; no bias, since batch norm has one."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def conv_bn(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution and its batch norm: one layer, or two when unpacked."""
    return nn.Sequential(conv(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs))


def stages(block, counts, widths, strides) -> dict[str, nn.Sequential]:
    """Rows of ``counts[i]`` blocks by name: ``layer1``, ``layer2`` and so on.

    A row leads from ``widths[i]`` to ``widths[i + 1]`` channels. ``block(inputs, outputs, stride)``
    makes one block; the first of a row alone changes width and size.
    """
    layers = {}
    for count, (inputs, outputs), stride in zip(counts, pairwise(widths), strides, strict=True):
        blocks = [block(inputs, outputs, stride)]
        blocks += [block(outputs, outputs, 1) for _ in range(1, count)]
        layers[f"layer{len(layers) + 1}"] = nn.Sequential(*blocks)
    return layers


def stem(width: int, size: int) -> dict[str, nn.Module]:
    """The first convolution, from RGB to ``width`` channels."""
    conv1, bn1 = conv_bn(3, width, size)
    return {"conv1": conv1, "bn1": bn1, "relu": nn.ReLU(inplace=True)}


def pool() -> nn.Sequential:
    """The mean over the picture: (B, D, H, W) to (B, D)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def he_init(network: nn.Module) -> None:
    """Normal convolution weights of variance 2 / (size^2 * outputs), biases 0 (He et al., 2015)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def small_init(classifier: nn.Linear) -> None:
    """A classifier whose first answer is close to equal probabilities."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = conv_bn(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.downsample = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = relu_(self.bn1(self.conv1(x)))
        return relu_(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        width = outputs // 4
        self.conv1, self.bn1 = conv_bn(inputs, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = conv_bn(width, outputs, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = relu_(self.bn1(self.conv1(x)))
        out = relu_(self.bn2(self.conv2(out)))
        return relu_(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet(Network):
    """A residual network of depth 6n + 2 for CIFAR (He et al., 2016).

    Where the width changes, the shortcut is a 1x1 convolution with batch norm (the paper pads with
    zeros). ``widths`` are those of the first convolution and of the three stages.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int):
        super().__init__(
            **stem(widths[0], 3),
            **stages(BasicBlock, [(depth - 2) // 6] * 3, widths, (1, 2, 2)),
            pool=pool(),
            fc=nn.Linear(widths[-1], num_classes),
        )
        he_init(self)


class ResNet50(Network):
    """ImageNet's ResNet-50 (He et al., 2016) with a 3x3 first convolution and no max pooling.

    A block's stride is that of its 3x3 convolution (the paper's: of its first 1x1).
    """

    def __init__(self, num_classes: int):
        widths = (64, 256, 512, 1024, 2048)
        super().__init__(
            **stem(64, 3),
            **stages(Bottleneck, (3, 4, 6, 3), widths, (1, 2, 2, 2)),
            pool=pool(),
            linear=nn.Linear(2048, num_classes),
        )
        he_init(self)


class WideBlock(nn.Module):
    """Batch norm and ReLU come before each convolution, and nothing after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = relu_(self.bn1(x))
        out = self.conv2(relu_(self.bn2(self.conv1(active))))
        # the identity carries the raw input, a convolution the normalised and activated one
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideResNet(Network):
    """A wide residual network of depth 6n + 4 (Zagoruyko & Komodakis, 2016), without dropout."""

    def __init__(self, depth: int, factor: int, num_classes: int):
        widths = (16, 16 * factor, 32 * factor, 64 * factor)
        rows = stages(WideBlock, [(depth - 4) // 6] * 3, widths, (1, 2, 2)).values()
        super().__init__(
            conv1=conv(3, 16, 3),
            **{f"block{k}": nn.Sequential(OrderedDict(layer=row)) for k, row in enumerate(rows, 1)},
            bn1=nn.BatchNorm2d(widths[-1]),
            relu=nn.ReLU(inplace=True),
            pool=pool(),
            fc=nn.Linear(widths[-1], num_classes),
        )
        he_init(self)
        nn.init.zeros_(self.fc.bias)


class VGG(Network):
    """A VGG network (Simonyan & Zisserman, 2015) with batch norm and one linear layer.

    Only the first three of its five blocks end in max pooling, the last one ends in a mean, so that
    a 32x32 picture reaches the last two blocks at 4x4. ``counts`` are the blocks' convolutions.
    """

    def __init__(self, counts: tuple[int, ...], num_classes: int):
        layers, inputs = {}, 3
        for number, (count, width) in enumerate(zip(counts, (64, 128, 256, 512, 512), strict=True)):
            block = nn.Sequential()
            for _ in range(count):
                block.append(nn.Conv2d(inputs, width, 3, padding=1))
                block.append(nn.BatchNorm2d(width))
                block.append(nn.ReLU(inplace=True))
                inputs = width
            layers[f"block{number}"] = block
            if number < 3:
                layers[f"pool{number}"] = nn.MaxPool2d(2)
        super().__init__(**layers, pool4=pool(), classifier=nn.Linear(512, num_classes))
        he_init(self)
        small_init(self.classifier)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        self.conv = nn.Sequential(
            *conv_bn(inputs, width, 1),
            nn.ReLU(inplace=True),
            *conv_bn(width, width, 3, stride, groups=width),
            nn.ReLU(inplace=True),
            *conv_bn(width, outputs, 1),
        )
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.same else self.conv(x)


class MobileNetV2(Network):
    """MobileNetV2 (Sandler et al., 2018) at half width with expansion 6.

    Three departures: ReLU instead of ReLU6, the second stage keeps the picture's size, and the
    first block has its 1x1 convolution although it does not expand. A 32x32 picture ends at 2x2.
    """

    def __init__(self, num_classes: int):
        first = nn.Sequential(InvertedResidual(16, 8, 1, expansion=1))
        block, widths = partial(InvertedResidual, expansion=6), (8, 12, 16, 32, 48, 80, 160)
        rest = stages(block, (2, 3, 4, 3, 3, 1), widths, (1, 2, 2, 1, 2, 1)).values()
        super().__init__(
            conv1=nn.Sequential(*conv_bn(3, 16, 3, stride=2), nn.ReLU(inplace=True)),
            blocks=nn.Sequential(first, *rest),
            conv2=nn.Sequential(*conv_bn(160, 1280, 1), nn.ReLU(inplace=True)),
            pool=pool(),
            classifier=nn.Sequential(nn.Linear(1280, num_classes)),
        )
        he_init(self)
        small_init(self.classifier[0])


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels out: the first of each group, then the second of each, and so on."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleV1Block(nn.Module):
    """ReLU also follows the depthwise convolution, which the paper leaves linear."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.halves = stride == 2
        if self.halves:
            outputs -= inputs  # the pooled input is put beside them
        width = outputs // 4
        self.groups = 1 if inputs == 24 else 3  # too few channels to divide after the stem
        self.conv1, self.bn1 = conv_bn(inputs, width, 1, groups=self.groups)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride, groups=width)
        self.conv3, self.bn3 = conv_bn(width, outputs, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(relu_(self.bn1(self.conv1(x))), self.groups)
        out = relu_(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return relu_(torch.cat([out, avg_pool2d(x, 3, 2, 1)], 1) if self.halves else out + x)


class ShuffleNetV1(Network):
    """ShuffleNet with three groups (Zhang et al., 2018), after a 1x1 first convolution."""

    def __init__(self, num_classes: int):
        super().__init__(
            **stem(24, 1),
            **stages(ShuffleV1Block, (4, 8, 4), (24, 240, 480, 960), (2, 2, 2)),
            pool=pool(),
            linear=nn.Linear(960, num_classes),
        )


class ShuffleV2Block(nn.Module):
    """Half of the channels pass by untouched."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(width, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, groups=width)
        self.conv3, self.bn3 = conv_bn(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed, out = x.chunk(2, dim=1)
        out = self.bn2(self.conv2(relu_(self.bn1(self.conv1(out)))))
        return shuffle(torch.cat([passed, relu_(self.bn3(self.conv3(out)))], 1), 2)


class ShuffleV2Down(nn.Module):
    """Two branches, each of which halves the picture and gives ``width`` channels."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, inputs, 3, 2, groups=inputs)
        self.conv2, self.bn2 = conv_bn(inputs, width, 1)
        self.conv3, self.bn3 = conv_bn(inputs, width, 1)
        self.conv4, self.bn4 = conv_bn(width, width, 3, 2, groups=width)
        self.conv5, self.bn5 = conv_bn(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = relu_(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        second = self.bn4(self.conv4(relu_(self.bn3(self.conv3(x)))))
        second = relu_(self.bn5(self.conv5(second)))
        return shuffle(torch.cat([first, second], 1), 2)


class ShuffleNetV2(Network):
    """ShuffleNet V2 at size 1 (Ma et al., 2018), after a 1x1 first convolution."""

    def __init__(self, num_classes: int):
        def block(inputs: int, outputs: int, stride: int) -> nn.Module:
            width = outputs // 2
            return ShuffleV2Down(inputs, width) if stride == 2 else ShuffleV2Block(width)

        conv2, bn2 = conv_bn(464, 1024, 1)
        super().__init__(
            **stem(24, 1),
            **stages(block, (4, 8, 4), (24, 116, 232, 464), (2, 2, 2)),
            conv2=conv2,
            bn2=bn2,
            relu2=nn.ReLU(inplace=True),
            pool=pool(),
            linear=nn.Linear(1024, num_classes),
        )


_NARROW, _X4 = (16, 16, 32, 64), (32, 64, 128, 256)

CIFAR_MODELS = {
    **{f"resnet{depth}": partial(ResNet, depth, _NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, _X4) for depth in (8, 32)},
    "ResNet50": ResNet50,
    **{f"wrn_{d}_{factor}": partial(WideResNet, d, factor) for d in (16, 40) for factor in (1, 2)},
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
}
