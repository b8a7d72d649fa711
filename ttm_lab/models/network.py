"""What all networks of this package have in common: named layers, the last one a classifier."""

from torch import Tensor, nn


class Network(nn.Module):
    """Layers applied one after the other, the last of which gives the logits.

    ``forward_features(images)`` gives the penultimate features (B, D), pooled and flat, and
    ``forward(images)`` gives the logits ``head(forward_features(images))``: who needs both calls
    these two and saves a second pass.
    """

    def __init__(self, **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    @property
    def head(self) -> nn.Module:
        """The last layer, whatever its name: features (B, D) to logits (B, num_classes)."""
        return list(self.children())[-1]

    def forward_features(self, images: Tensor) -> Tensor:
        for layer in list(self.children())[:-1]:
            images = layer(images)
        return images

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images))
