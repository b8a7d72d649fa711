"""What networks have in common: logits, whatever else they return, and for the package's own
networks named layers, the last of which is a classifier.
"""

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
