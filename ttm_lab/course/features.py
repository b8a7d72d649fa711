"""Feature and relation methods as terms of an objective: AT, RKD, PKT, VID, CRD, ITRD.

    Objective({"ce": (1, CrossEntropy()), "relations": (1, rkd("fc:input", "fc:input"))})

``student`` and ``teacher`` name modules as in ``FeatureTerm``, which is FitNet's method by itself;
``widths`` are the channels or features there, the student's and the teacher's. What a term trains
starts from ``seed``. Relations are those in the batch of one process, of two pictures at least.
All but ITRD are torchdistill's, and raise ``ImportError`` where it is not installed.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttm_lab import distributed
from ttm_lab.objectives import FeatureTerm, Output

# Where torchdistill's losses find a feature in the dictionaries that they take.
_PLACE = {"path": "feature", "io": "output"}
_PAIRS = {"pair": {"student": _PLACE, "teacher": _PLACE}}


def at(student: str, teacher: str) -> FeatureTerm:
    """Attention transfer: where maps (B, C, H, W) of one H and W are large.

    Source: Zagoruyko and Komodakis 2017, in the form of their code.
    """
    return FeatureTerm(_Between("ATLoss", _PAIRS), student, teacher, name="AT")


def rkd(student: str, teacher: str, *, distance: float = 1.0, angle: float = 2.0) -> FeatureTerm:
    """Relational distillation: distances and angles among features, with their weights.

    Source: Park et al. 2019.
    """
    loss = _Between("RKDLoss", "feature", "feature", distance, angle, "mean")
    return FeatureTerm(loss, student, teacher, name="RKD", distance=distance, angle=angle)


def pkt(student: str, teacher: str) -> FeatureTerm:
    """Probabilistic knowledge transfer: similarities among features (B, D) as probabilities.

    Source: Passalis and Tefas 2018.
    """
    loss = _Between("PKTLoss", "feature", "output", "feature", "output")
    return FeatureTerm(loss, student, teacher, name="PKT")


def vid(
    student: str, teacher: str, widths: tuple[int, int], *, variance: float = 5.0, seed: int = 0
) -> FeatureTerm:
    """Variational information: how likely the teacher's map (B, C, H, W) is, given the student's.

    Three 1x1 convolutions learn its mean; each channel learns a variance, ``variance`` at first.
    Source: Ahn et al. 2019, Eq. 5 and 6.
    """
    regressor = _torchdistill()[1].Regressor4VID
    with _seeded(seed):
        project = regressor(*widths, widths[1], eps=1e-5, init_pred_var=variance)
    values = {"project": project, "name": "VID", "variance": variance, "seed": seed}
    return FeatureTerm(_Between("VIDLoss", _PAIRS), student, teacher, **values)


class CRD(FeatureTerm):
    """Contrastive distillation of features (B, D): a bank holds every picture's projections.

    Each picture meets ``negatives`` of other classes, drawn with replacement. A step gathers 8 *
    dimension bytes for each of them, 1.1 GB for 64 pictures. The bank takes as many for each
    training picture, 51 MB for CIFAR-100, and is part of every resume point.

    Args:
        labels: of the training part, ``data.train.labels``.
        dimension: of the projections. temperature, momentum: of the contrast, of the bank.

    Raises ``ValueError`` in training with other labels, or in several processes.

    Source: Tian, Krishnan and Isola 2020; the defaults are theirs.
    """

    def __init__(
        self,
        student: str,
        teacher: str,
        widths: tuple[int, int],
        labels: Tensor,
        *,
        dimension: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        seed: int = 0,
    ):
        losses, modules = _torchdistill()
        values = {"temperature": temperature, "momentum": momentum}
        sizes = dimension, len(labels), negatives, len(labels)
        with _seeded(seed):
            ours, other = (modules.Normalizer4CRD(nn.Linear(width, dimension)) for width in widths)
            loss = losses.CRDLoss("feature", "samples", "feature", *sizes, **values)
        values |= {"project": ours, "name": "CRD", "negatives": negatives, "seed": seed}
        super().__init__(loss, student, teacher, **values)
        self.project_teacher, labels = other, labels.cpu()
        counts = labels.bincount()
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        if distributed.world_size() > 1:
            raise ValueError("CRD keeps one bank: train it in one process")
        samples = student.samples.to(labels.device)
        if not torch.equal(self.labels[samples], labels):
            raise ValueError("CRD holds other labels than these: give it data.train.labels")
        feature, target = (x.flatten(1) for x in self.pair(student, teacher))
        start, count = self.starts[labels, None], self.counts[labels, None]
        shape = len(labels), self.values["negatives"]
        place = torch.randint(2**53, shape, device=labels.device) % (len(self.labels) - count)
        negatives = self.by_class[place + count * (place >= start)]  # passes over its own class
        drawn = {"pos_idx": samples, "contrast_idx": torch.cat([samples[:, None], negatives], 1)}
        loss = self.loss(
            {"feature": {"output": self.project(feature)}, "samples": {"input": drawn}},
            {"feature": {"output": self.project_teacher(target)}},
        )
        self.loss.params = self.loss.params.detach()  # which keep constants of the first batch
        return loss.sum()


class ITRD(FeatureTerm):
    """Information-theoretic distillation of features (B, D), the student's by a linear layer.

    correlation * log2(sum_j |r_j - 1|**(2 alpha)) + mutual * (|G_s|**2 - |G_st|**2): r_j correlates
    feature j of the two sides over the batch, G_s holds the inner products of the student's unit
    vectors, G_st those times the teacher's, each over its trace. Of equal widths, the second part
    takes the student's features as they are.

    Source: Miles, Lopez-Rodriguez and Mikolajczyk 2022, as in their code and Zheng and Yang's: the
    second part has no logarithm. Here a feature that is constant has r_j = 0, not NaN.
    """

    def __init__(
        self,
        student: str,
        teacher: str,
        widths: tuple[int, int],
        *,
        alpha: float,
        correlation: float = 2.0,
        mutual: float = 1.0,
        seed: int = 0,
    ):
        with _seeded(seed):
            project = nn.Linear(*widths)
        values = {"alpha": alpha, "correlation": correlation, "mutual": mutual, "seed": seed}
        super().__init__(None, student, teacher, project=project, name="ITRD", **values)

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        feature, target = (x.flatten(1) for x in self.pair(student, teacher))
        projected = self.project(feature)
        ours, other = ((x - x.mean(0)) / x.std(0).clamp(min=1e-7) for x in (projected, target))
        distance = ((ours * other).mean(0) - 1).abs()
        kept = feature if feature.shape == target.shape else projected
        ours, other = (x @ x.T for x in (F.normalize(kept), F.normalize(target)))
        alone, joint = ((g / g.trace()).square().sum() for g in (ours, ours * other))
        information = self.values["mutual"] * (alone - joint)
        distance = distance.pow(2 * self.values["alpha"]).sum().log2()
        return self.values["correlation"] * distance + information


class _Between(nn.Module):
    """A loss of torchdistill, by its name there, between one feature of each side."""

    def __init__(self, name: str, *arguments):
        super().__init__()
        self.loss = getattr(_torchdistill()[0], name)(*arguments)

    def forward(self, student, teacher: Tensor) -> Tensor:
        return self.loss({"feature": {"output": student}}, {"feature": {"output": teacher}})


@contextmanager
def _seeded(seed: int):
    """What is made inside starts from ``seed``; the caller's random numbers go on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _torchdistill():
    """Torchdistill's modules with losses and with what they train."""
    try:
        from torchdistill.losses import mid_level
        from torchdistill.models import wrapper
    except ImportError as error:
        raise ImportError(
            "this method needs the package torchdistill: pip install 'ttm-lab[features]'"
        ) from error
    return mid_level, wrapper
