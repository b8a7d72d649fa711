"""The network that students learn from: its batch norm folded, its outputs computed or kept."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ttm_lab.data import Dataset
from ttm_lab.models import logits_of
from ttm_lab.objectives import Output, recorded
from ttm_lab.runs import weights_fingerprint
from ttm_lab.settings import Settings
from ttm_lab.teacher_cache import TeacherCache, cache_file


class Teacher:
    """A network in evaluation mode on its device, and the caches of its logits.

    Args:
        network: the teacher; it gets no gradient.
        data, settings: the images and the students' settings that it will serve.
        device: where it goes, and where ``data`` lies.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Dataset,
        settings: Sequence[Settings],
        device: torch.device,
    ):
        self.fingerprint = weights_fingerprint(network)  # names runs and cache files
        self.network = network.to(device, memory_format=torch.channels_last).eval()
        self.device, self.caches = device, {}
        self.folded = self.network
        if any(s.fold_batch_norm for s in settings):
            probe, _ = next(data.train.batches(2))
            self.folded = fold_batch_norm(self.network, probe)

    def open_caches(
        self, data: Dataset, settings: Sequence[Settings], folder: str | Path | None
    ) -> None:
        """Open a cache for each ``output_key`` with ``remember``; ``folder`` None is in memory."""
        for key, s in {output_key(s): s for s in settings if s.remember}.items():
            how = {"augmentation": s.augmentation, "precision": s.precision}
            how["folded"] = self.is_folded(s)
            path = folder and cache_file(folder, self.fingerprint, data.train, how)
            self.caches[key] = TeacherCache(
                lambda images, s=s: self.output(images, s).logits,
                data.train,
                s.augmentation,
                data.num_classes,
                path,
            )

    def is_folded(self, settings: Settings) -> bool:
        """Whether these settings are served by a folded copy: not every network can be folded."""
        return settings.fold_batch_norm and self.folded is not self.network

    @torch.no_grad()
    def output(self, images: Tensor, settings: Settings, features: Sequence[str] = ()) -> Output:
        """Logits and features of a batch. Features come from the network as it is, not folded."""
        network = self.folded if settings.fold_batch_norm and not features else self.network
        with (
            autocast(self.device, settings.precision),
            recorded(network, features) as found,
        ):
            pieces = len(images) if features else 1024  # a recorded feature is of one pass
            return Output(logits_in_pieces(network, images, pieces), dict(found))


def output_key(settings: Settings) -> tuple:
    """What decides a teacher's output, the teacher and the image aside."""
    s = settings
    return s.augmentation, s.precision, s.fold_batch_norm, s.remember


def autocast(device: torch.device, precision: str):
    """The context in which networks run at a ``precision`` of ``Settings``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@torch.no_grad()
def logits_in_pieces(model: nn.Module, images: Tensor, batch_size: int = 1024) -> Tensor:
    """Logits (N, K) of images, ``batch_size`` at a time, without gradients."""
    return torch.cat([logits_of(model(part)) for part in images.split(batch_size)])


def fold_batch_norm(network: nn.Module, probe: Tensor) -> nn.Module:
    """A copy in which convolutions do the work of the batch norms that follow them.

    What cannot be traced, or would give other logits for ``probe``, comes back as it is.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        return network
    from torch.fx.experimental.optimization import fuse  # slow to import

    try:
        folded = fuse(network).to(memory_format=torch.channels_last).eval()
        before, after = logits_in_pieces(network, probe), logits_in_pieces(folded, probe)
    except Exception:  # each kind of network fails to be traced in its own way
        return network
    close = torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    return folded if close else network
