"""Distillation losses on logits: KD, TTM, WTTM, two baselines, and the TTM decomposition."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttm_lab.probability import check_positive, check_same_classes

__all__ = [
    "DISTLoss",
    "DKDLoss",
    "KDLoss",
    "TTMDecomposition",
    "TTMLoss",
    "WTTMLoss",
    "decompose_ttm",
    "dist_loss",
    "dkd_loss",
    "kd_loss",
    "ttm_loss",
    "wttm_loss",
]


def kd_loss(student_logits, teacher_logits, temperature, *, reduction="mean") -> Tensor:
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, temperature)
    return _reduce(temperature**2 * _kl(log_p, log_q), reduction)


def ttm_loss(student_logits, teacher_logits, temperature, *, reduction="mean") -> Tensor:
    return _reduce(_kl(*_pair(student_logits, teacher_logits, temperature, 1.0)), reduction)


def wttm_loss(student_logits, teacher_logits, temperature, *, reduction="mean") -> Tensor:
    divergence = _kl(*_pair(student_logits, teacher_logits, temperature, 1.0))
    v = teacher_logits.detach()
    v = v.to(torch.promote_types(v.dtype, torch.float32))
    v = v - v.amax(-1, keepdim=True)
    weight = (v / temperature).exp().sum(-1) / v.exp().sum(-1) ** (1 / temperature)
    return _reduce(weight * divergence, reduction)


def dkd_loss(
    student_logits,
    teacher_logits,
    labels,
    temperature,
    *,
    target_weight=1.0,
    nontarget_weight=8.0,
    reduction="mean",
) -> Tensor:
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, temperature)
    is_target = F.one_hot(labels, log_p.shape[-1]).bool()
    parts = []
    for x in (log_p, log_q):
        rest = x.masked_fill(is_target, -torch.inf)
        margin = x.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - rest.logsumexp(-1)
        binary = torch.stack([F.logsigmoid(margin), F.logsigmoid(-margin)], -1)
        parts.append((binary, rest.log_softmax(-1).masked_fill(is_target, 0)))
    (binary_p, rest_p), (binary_q, rest_q) = parts
    loss = target_weight * _kl(binary_p, binary_q) + nontarget_weight * _kl(rest_p, rest_q)
    return _reduce(temperature**2 * loss, reduction)


def dist_loss(
    student_logits, teacher_logits, temperature, *, between_weight=1.0, within_weight=1.0
) -> Tensor:
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, temperature)
    p, q = (x.exp().flatten(0, -2) for x in (log_p, log_q))
    between = 1 - _correlation(p, q, -1).mean()
    within = 1 - _correlation(p, q, 0).mean()
    return temperature**2 * (between_weight * between + within_weight * within)


class TTMDecomposition(NamedTuple):
    kd: Tensor
    renyi: Tensor
    teacher_entropy: Tensor
    total: Tensor


def decompose_ttm(student_logits, teacher_logits, temperature) -> TTMDecomposition:
    T = temperature
    log_p, log_q = _pair(student_logits, teacher_logits, T, 1.0)
    log_q_T = (log_q / T).log_softmax(-1)
    return TTMDecomposition(
        kd=T * _kl(log_p, log_q_T),
        renyi=-T * (log_q / T).logsumexp(-1),
        teacher_entropy=-(T - 1) * (log_p.exp() * log_p).sum(-1),
        total=_kl(log_p, log_q),
    )


class KDLoss(nn.Module):
    def __init__(self, temperature, *, reduction="mean"):
        super().__init__()
        self.temperature, self.reduction = temperature, reduction

    def forward(self, student_logits, teacher_logits):
        return kd_loss(student_logits, teacher_logits, self.temperature, reduction=self.reduction)


class TTMLoss(KDLoss):
    def forward(self, student_logits, teacher_logits):
        return ttm_loss(student_logits, teacher_logits, self.temperature, reduction=self.reduction)


class WTTMLoss(KDLoss):
    def forward(self, student_logits, teacher_logits):
        return wttm_loss(student_logits, teacher_logits, self.temperature, reduction=self.reduction)


class DKDLoss(nn.Module):
    def __init__(self, temperature, *, target_weight=1.0, nontarget_weight=8.0, reduction="mean"):
        super().__init__()
        self.temperature, self.reduction = temperature, reduction
        self.target_weight, self.nontarget_weight = target_weight, nontarget_weight

    def forward(self, student_logits, teacher_logits, labels):
        return dkd_loss(
            student_logits,
            teacher_logits,
            labels,
            self.temperature,
            target_weight=self.target_weight,
            nontarget_weight=self.nontarget_weight,
            reduction=self.reduction,
        )


class DISTLoss(nn.Module):
    def __init__(self, temperature, *, between_weight=1.0, within_weight=1.0):
        super().__init__()
        self.temperature = temperature
        self.between_weight, self.within_weight = between_weight, within_weight

    def forward(self, student_logits, teacher_logits):
        return dist_loss(
            student_logits,
            teacher_logits,
            self.temperature,
            between_weight=self.between_weight,
            within_weight=self.within_weight,
        )


def _pair(student, teacher, teacher_temperature, student_temperature):
    check_positive("temperature", teacher_temperature)
    check_same_classes("student_logits", student, "teacher_logits", teacher)
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    teacher = teacher.detach().to(dtype)
    student = student.to(dtype)
    teacher = teacher - teacher.amax(-1, keepdim=True)
    student = student - student.amax(-1, keepdim=True)
    return (
        (teacher / teacher_temperature).log_softmax(-1),
        (student / student_temperature).log_softmax(-1),
    )


def _kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _correlation(a, b, dim, eps=1e-8):
    a = a - a.mean(dim, keepdim=True)
    b = b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + eps)


def _reduce(loss, reduction):
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction must be "none", "mean" or "sum", got {reduction!r}')
    return loss if reduction == "none" else getattr(loss, reduction)()
