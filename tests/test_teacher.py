"""A teacher whose batch norm is folded gives the same logits."""

import pytest
import torch
from torch import nn

from ttm_lab.models import create_model
from ttm_lab.teacher import fold_batch_norm


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "ShuffleV1", "ShuffleV2"])
def test_folding_leaves_fewer_layers_and_the_same_logits(name):
    network = create_model(name, 10, seed=0).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_var.uniform_(0.5, 2)
                layer.running_mean.normal_(0, 0.1)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norm(network, images[:2])

    def layers(module):
        return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())

    assert layers(folded) < layers(network)
    wanted = network.double()(images.double())
    assert (folded(images).double() - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_what_cannot_be_folded_stays_as_it_is():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.norm(self.conv(x)).mean((2, 3))
            return x if x.sum() > 0 else -x  # depends on the data, which tracing refuses

    network = Fickle().eval()
    assert fold_batch_norm(network, torch.randn(2, 3, 8, 8)) is network
