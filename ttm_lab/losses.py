"""Distillation losses on logits: KD, TTM, WTTM, two baselines, and the decomposition of TTM.

With teacher logits v, student logits z, temperature T and p_T = softmax(v/T), q_T = softmax(z/T),
p = softmax(v), q = softmax(z):

    kd_loss    T**2 * D(p_T || q_T)       both sides tempered
    ttm_loss   D(p_T || q)                only the teacher tempered
    wttm_loss  U * D(p_T || q)            U = sum_j p_j**(1/T), larger for smoother teacher outputs

These are the distillation terms alone: add cross-entropy on the labels in the training loop.
Logits have shape (..., K), classes last; the leading shape is any, and a teacher may be shared by
several students if its leading shape broadcasts against theirs. float16 and bfloat16 are computed
in float32, and the loss is returned in float32 (float64 if either input is float64). The gradient
goes to the student, in the student's dtype; the teacher gets none. A logit of -inf rules a class
out: what the teacher rules out counts as probability 0, and a student that rules out what the
teacher allows has an infinite loss. Log-probabilities are logits, probabilities are not.
Sharded tensors (DTensor) work like whole ones, labels sharded over samples like the logits; only
the gradient of `dist_loss` needs whole batches.
"""

import inspect
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ttm_lab.probability import (
    check_floating,
    check_no_probabilities,
    check_positive,
    check_same_classes,
    everywhere,
)

# The three losses of the course -------------------------------------------------------------------


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    mask: Tensor | None = None,
    class_dim: int = -1,
    chunk_size: int | None = None,
    reduction: str = "mean",
    check_finite: bool = False,
) -> Tensor:
    """Knowledge distillation: T**2 * D(p_T || q_T), both sides at temperature T.

    The factor T**2 keeps the gradient, T * (q_T - p_T), from fading as T grows.

    Args:
        student_logits, teacher_logits: floating point, (..., K) with K >= 2; leading shapes
            broadcast.
        temperature: T > 0.
        mask: bool, of the broadcast leading shape (...): which samples count, by default all.
            Another has value 0 and gradient 0, even where its logits are NaN or infinite.
        class_dim: where the classes are, if not last: 1 for images of classes, (N, K, H, W).
        chunk_size: how many samples are computed at a time. By default that is all, and from
            2**24 logits on a fiftieth, so that little more memory is taken than the gradient's.
            torch.compile, torch.func and sharded tensors go without it.
        reduction: "none" gives one value per sample, shape (...); "sum" adds them up; "mean"
            divides the sum by the number of samples that count, and is 0 where the mask leaves
            none.
        check_finite: look first for rows with NaN or inf, without a finite logit, or of
            probabilities. Off by default, because it costs time; skipped inside torch.compile
            and torch.func transforms.

    Returns:
        The loss in nats, float32 (float64 if either input is).

    Raises:
        TypeError: logits that are not floating point tensors, a temperature that is no number, a
            mask that is not bool.
        ValueError: shapes that do not fit, T not positive and finite, an unknown reduction, the
            mean of an empty batch, or (when checked) logits that are none.
        RuntimeError: a second derivative is taken by torch.autograd; torch.func supports it.

    Source: Hinton, Vinyals and Dean 2015, section 2; Zheng and Yang 2024, Eq. 1.
    """
    T, *rows = _check(
        student_logits, teacher_logits, temperature, reduction, check_finite, mask, class_dim
    )
    return _divergence(*rows, reduction, chunk_size, 1 / T, student_exponent=1 / T, weight=T**2)


def ttm_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    mask: Tensor | None = None,
    class_dim: int = -1,
    chunk_size: int | None = None,
    reduction: str = "mean",
    check_finite: bool = False,
) -> Tensor:
    """Transformed teacher matching: D(p_T || q), the teacher tempered, the student not.

    Its gradient is q - p_T. It equals T times KD's divergence minus (T - 1) times the student's
    Rényi entropy of order 1/T, up to a constant: see `decompose_ttm`.

    Arguments, result and errors are those of `kd_loss`.

    Source: Zheng and Yang 2024, Eq. 2.
    """
    T, *rows = _check(
        student_logits, teacher_logits, temperature, reduction, check_finite, mask, class_dim
    )
    return _divergence(*rows, reduction, chunk_size, 1 / T)


def wttm_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    mask: Tensor | None = None,
    class_dim: int = -1,
    chunk_size: int | None = None,
    reduction: str = "mean",
    check_finite: bool = False,
) -> Tensor:
    """Weighted TTM: U * D(p_T || q) with the power sum U = sum_j p_j**(1/T) of each sample.

    U lies between 1 (one-hot teacher) and K**(1 - 1/T) (uniform teacher). Its gradient is
    U * (q - p_T). "mean" divides by the number of samples, not by the sum of the weights.

    Arguments, result and errors are those of `kd_loss`.

    Source: Zheng and Yang 2024, section 4.
    """
    T, *rows = _check(
        student_logits, teacher_logits, temperature, reduction, check_finite, mask, class_dim
    )
    return _divergence(*rows, reduction, chunk_size, 1 / T, weight=None)


class TTMDecomposition(NamedTuple):
    """The terms of `decompose_ttm`: kd + renyi + teacher_entropy = total, per sample, in nats."""

    kd: Tensor  # T * D(p_T || q_T)
    renyi: Tensor  # -(T - 1) * H_{1/T}(q), Rényi entropy of the untempered student
    teacher_entropy: Tensor  # (T - 1) * H(p_T), Shannon; no student in it
    total: Tensor  # D(p_T || q), computed on its own


def decompose_ttm(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    mask: Tensor | None = None,
) -> TTMDecomposition:
    """The terms of TTM: T * KD's divergence, the student's Rényi entropy, the teacher's entropy.

        D(p_T || q) = T * D(p_T || q_T) - (T - 1) * H_{1/T}(q) + (T - 1) * H(p_T)

    Each term comes with its sign and factor, and `total` is computed on its own, so that
    kd + renyi + teacher_entropy == total can be checked; for T < 1 the two entropies change sign.
    Computed in float64, then rounded to the dtype a loss would have: the terms add up to the
    rounding of the largest of them, which grows like T * log K. Any derivative exists.

    Arguments and errors are those of `kd_loss`; all terms of what the mask leaves out are 0.

    Returns:
        TTMDecomposition(kd, renyi, teacher_entropy, total), each of shape (...), in nats.

    Source: Zheng and Yang 2024, Eq. 15.
    """
    T, *rows = _check(student_logits, teacher_logits, temperature, mask=mask)
    student, teacher = _broadcast(*rows)
    z, v = student.cpu().double(), teacher.cpu().double()  # not every device has float64
    log_p_T, log_q, log_q_T = _log_softmax(v, T), _log_softmax(z, 1.0), _log_softmax(z, T)
    terms = (
        T * _kl(log_p_T, log_q_T),
        -T * (log_q / T).logsumexp(-1),  # -(T - 1) * H_{1/T}(q), without 0 / 0 at T = 1
        (1 - T) * _kl(log_p_T, torch.zeros_like(log_p_T)),
        _kl(log_p_T, log_q),
    )
    terms = (term.to(student.dtype).to(student.device) for term in terms)
    return TTMDecomposition(*(x if mask is None else x.masked_fill(~mask, 0.0) for x in terms))


# Baselines ----------------------------------------------------------------------------------------


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    target_weight: float = 1.0,
    nontarget_weight: float = 8.0,
    mask: Tensor | None = None,
    class_dim: int = -1,
    reduction: str = "mean",
    check_finite: bool = False,
) -> Tensor:
    """Decoupled knowledge distillation, a baseline: KD split at the label.

    T**2 * (target_weight * TCKD + nontarget_weight * NCKD), all at temperature T. TCKD is the
    divergence between teacher and student on "label or not"; NCKD the one over the other classes,
    renormalised. The published T is 4. Weights of 1 and 1 - p_T[label] would give KD back.

    Arguments, result and errors are those of `kd_loss`, and these:

    Args:
        labels: int64 classes from 0 to K - 1, of the logits' broadcast leading shape. A sample
            with the label -100 does not count, as in `torch.nn.functional.cross_entropy`.
        target_weight, nontarget_weight: the paper's alpha and beta, at least 0.

    Raises:
        TypeError: labels that are not integers.
        ValueError: labels of another shape or out of range, a weight below 0.

    Source: Zhao, Cui, Song, Qiu and Liang 2022, Eq. 7.
    """
    T, student, teacher, mask = _check(
        student_logits, teacher_logits, temperature, reduction, check_finite, mask, class_dim
    )
    _check_weights(target_weight=target_weight, nontarget_weight=nontarget_weight)
    labels, mask = _check_labels(labels, mask, student, teacher)
    student, teacher = _broadcast(student, teacher, mask)
    # made from the logits, so that it is sharded where they are
    is_label = torch.zeros_like(student, dtype=torch.bool).scatter(-1, labels.unsqueeze(-1), True)

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_probabilities = _log_softmax(logits, T)
        binary = merge_others(log_probabilities, labels.unsqueeze(-1)).log_softmax(-1)
        others = log_probabilities.masked_fill(is_label, -torch.inf)
        none = others.amax(-1, keepdim=True) == -torch.inf  # all classes but the label ruled out
        shares = others.masked_fill(none, 0.0).log_softmax(-1)  # whose derivatives are no NaN
        return binary, shares.masked_fill(none, -torch.inf).masked_fill(is_label, 0.0)

    (binary_p, others_p), (binary_q, others_q) = split(teacher), split(student)
    loss = target_weight * _kl(binary_p, binary_q) + nontarget_weight * _kl(others_p, others_q)
    return _reduce(T**2 * loss, reduction, mask)


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    between_weight: float = 1.0,
    within_weight: float = 1.0,
    mask: Tensor | None = None,
    class_dim: int = -1,
    check_finite: bool = False,
) -> Tensor:
    """DIST, a baseline: match correlations of the tempered probabilities, not their values.

    T**2 * (between_weight * (1 - r_between) + within_weight * (1 - r_within)): r_between is the
    Pearson correlation of teacher and student over the classes of a sample, averaged over
    samples; r_within over the samples of a class, averaged over classes. All leading dimensions
    are the samples of one batch, so there is one value per batch and no `reduction`. With a
    single sample r_within is 0. Other arguments and errors are those of `kd_loss`.

    Args:
        temperature: T > 0, the paper's tau.
        between_weight, within_weight: the paper's weights of the inter-class and the intra-class
            relation, at least 0; below it `ValueError`.

    Returns:
        The loss, a scalar, float32 (float64 if either input is).

    Source: Huang, You, Wang, Qian and Xu 2022, section 4; the factor T**2 and the 1e-8 added to
    each denominator are from the authors' code.
    """
    T, *rows = _check(
        student_logits, teacher_logits, temperature, "mean", check_finite, mask, class_dim
    )
    _check_weights(between_weight=between_weight, within_weight=within_weight)
    q, p = (
        _log_softmax(logits, T).exp().reshape(-1, logits.shape[-1]) for logits in _broadcast(*rows)
    )
    counts = torch.ones_like(q[:, :1]) if mask is None else mask.reshape(-1, 1)

    def centered(x: Tensor, dim: int) -> Tensor:
        shares = counts / counts.sum().clamp(min=1) if dim == 0 else 1 / x.shape[-1]
        return (x - (x * shares).sum(dim, keepdim=True)) * counts

    def correlation(dim: int) -> Tensor:
        a, b = centered(p, dim), centered(q, dim)
        each = (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + 1e-8)
        return each.mean() if dim == 0 else each.sum() / counts.sum().clamp(min=1)

    loss = between_weight * (1 - correlation(-1)) + within_weight * (1 - correlation(0))
    return T**2 * loss * counts.any()


# Modules ------------------------------------------------------------------------------------------


class _LogitLoss(nn.Module):
    """A loss function with its settings fixed, checked when made; no parameters, no state."""

    def __init_subclass__(cls, function=None) -> None:
        cls.function = staticmethod(function or cls.function)
        # What the function takes beside a batch: help, tooltips and calls go by it.
        batch = ("student_logits", "teacher_logits", "labels", "mask")
        parameters = inspect.signature(cls.function).parameters.values()
        cls.__signature__ = inspect.Signature([p for p in parameters if p.name not in batch])

    def __init__(self, temperature: float, **options) -> None:
        super().__init__()
        given = self.__signature__.bind(temperature, **options)
        given.apply_defaults()
        self.temperature = check_positive("temperature", given.arguments.pop("temperature"))
        self.options = given.arguments
        _check_reduction(self.options.get("reduction", "mean"))
        _check_weights(**{name: x for name, x in self.options.items() if "weight" in name})

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        logits = student_logits, teacher_logits
        return self.function(*logits, self.temperature, mask=mask, **self.options)

    def extra_repr(self) -> str:
        settings = {"temperature": self.temperature, **self.options}
        later = ("class_dim", -1), ("chunk_size", None)  # older runs, known by this line, lack them
        return ", ".join(f"{k}={v!r}" for k, v in settings.items() if (k, v) not in later)


class KDLoss(_LogitLoss, function=kd_loss):
    """`kd_loss` with its settings fixed: `loss(student_logits, teacher_logits, mask=None)`."""


class TTMLoss(_LogitLoss, function=ttm_loss):
    """`ttm_loss` with its settings fixed: `loss(student_logits, teacher_logits, mask=None)`."""


class WTTMLoss(_LogitLoss, function=wttm_loss):
    """`wttm_loss` with its settings fixed: `loss(student_logits, teacher_logits, mask=None)`."""


class DKDLoss(_LogitLoss, function=dkd_loss):
    """`dkd_loss` with settings fixed: `loss(student_logits, teacher_logits, labels, mask=None)`."""

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        logits = student_logits, teacher_logits
        return dkd_loss(*logits, labels, self.temperature, mask=mask, **self.options)


class DISTLoss(_LogitLoss, function=dist_loss):
    """`dist_loss` with its settings fixed: `loss(student_logits, teacher_logits, mask=None)`."""


class StandardizedLoss(nn.Module):
    """A loss of logits that lie on one scale: each row minus its mean, over its deviation.

    `StandardizedLoss(KDLoss(2.0))` is the published combination: the student matches how the
    teacher's logits stand to each other, whatever their scale and shift. With it the temperature
    counts in standard deviations of a row. Rows without any spread become zeros. A class of -inf
    stays ruled out and counts for neither mean nor deviation, where one of -1e4 stretches its row.

    Args:
        loss: called as `loss(student_logits, teacher_logits)`, or with labels behind them.

    Source: Sun, Ren, Li, Wang and Cao 2024, section 4; the sample deviation (K - 1) and the 1e-7
    added to it are their code's.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        *labels: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        dim = getattr(self.loss, "options", {}).get("class_dim", -1)
        _, *logits, mask = _check(student_logits, teacher_logits, 1.0, mask=mask, class_dim=dim)
        logits = _fill(*(x.to(_dtype(x, x)) for x in logits), mask)
        rows = (_standardize(x).movedim(-1, dim) for x in logits)
        return self.loss(*rows, *labels, **({} if mask is None else {"mask": mask}))


def _standardize(logits: Tensor) -> Tensor:
    ruled_out = logits == -torch.inf
    classes = (~ruled_out).sum(-1, keepdim=True)
    mean = logits.masked_fill(ruled_out, 0.0).sum(-1, keepdim=True) / classes
    centered = (logits - mean).masked_fill(ruled_out, 0.0)
    deviation = centered.norm(dim=-1, keepdim=True) / (classes - 1).clamp(min=1).sqrt()
    return (centered / (deviation + 1e-7)).masked_fill(ruled_out, -torch.inf)


# Some classes, and all others as one --------------------------------------------------------------


def merge_others(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits of some classes, and behind them one for all others together: their log-sum-exp.

    For a teacher of whom only the likeliest classes are kept, as of a vocabulary. Between
    `merge_others(student_logits, classes)` and `merge_others(teacher_logits / T, classes)`,
    `ttm_loss` at temperature 1 is a lower bound of D(p_T || q) and never negative, as it can be
    without the others.

    Args:
        logits: floating point, shape (..., K).
        classes: integers from 0 to K - 1, shape (..., k), those of a row distinct.

    Returns:
        Logits, shape (..., k + 1), float32 (float64 if `logits` are).

    Raises:
        TypeError: logits that are no floating point tensor.
        ValueError: classes that are no integers, or not some for each row.

    Source: the log sum inequality, Cover and Thomas 2006, Theorem 2.7.1.
    """
    check_floating("logits", logits)
    if classes.is_floating_point() or classes.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            f"classes must be whole numbers, k for each row of logits {tuple(logits.shape)}, such "
            f"as logits.topk(k).indices, got {classes.dtype} of shape {tuple(classes.shape)}"
        )
    classes = classes.long()
    kept = logits.gather(-1, classes).to(_dtype(logits, logits))
    lowest = torch.finfo(logits.dtype).min  # where nothing is left, the derivative is no NaN
    others = logits.scatter(-1, classes, lowest).to(kept.dtype)
    none = others.detach().amax(-1, keepdim=True) == lowest
    others = others.logsumexp(-1, keepdim=True).masked_fill(none, -torch.inf)
    return torch.cat([kept, others], -1)


# The computation ----------------------------------------------------------------------------------


def _divergence(
    student, teacher, mask, reduction, chunk_size, teacher_exponent, student_exponent=1, weight=1
) -> Tensor:
    """Reduce weight * D(softmax(teacher_exponent * v) || softmax(student_exponent * z)).

    Without a weight each sample gets its own, the teacher's power sum.
    """
    if student.shape != teacher.shape:
        student, teacher = torch.broadcast_tensors(student, teacher)
    teacher = teacher.detach()
    size = _block_size(student, chunk_size)
    if size is None:
        student, teacher = _fill(student, teacher, mask)
    settings = teacher_exponent, student_exponent, weight
    # An exported program keeps the node's operations, but not its derivative.
    steps = torch._C._are_functorch_transforms_active() or torch.compiler.is_exporting()
    if student.requires_grad and torch.is_grad_enabled() and not steps:
        return _DivergenceNode.apply(student, teacher, mask, reduction, size, *settings)[0]
    if size is None:
        loss = _divergence_terms(student, teacher, *settings)[0]
    else:
        loss = _divergence_in_blocks(student, teacher, mask, size, *settings)
    return _reduce(loss, reduction, mask)


class _DivergenceNode(torch.autograd.Function):
    """The reduced divergence as one autograd node, which keeps one tensor for the backward pass.

    Its derivative in the student's logits, weight * student_exponent * (q - p), is ready once the
    value is known, so it is computed then and kept in the student's dtype. Step by step, autograd
    would keep two tensors of that size and be about half as fast.

    The derivative is also an output, unused by callers: through it a second derivative would
    flow, and is refused rather than silently taken for zero.
    """

    @staticmethod
    def forward(ctx, student, teacher, mask, reduction, size, *settings):
        if size is None:
            loss, slope = _divergence_and_slope(student, teacher, *settings)
            slope = slope.to(student.dtype)
        else:
            slope = torch.empty_like(student)
            loss = _divergence_in_blocks(student, teacher, mask, size, *settings, slope=slope)
        ctx.save_for_backward(slope, mask)
        ctx.set_materialize_grads(False)
        ctx.reduction, ctx.size = reduction, size
        return _reduce(loss, reduction, mask), slope

    @staticmethod
    def backward(ctx, grad_loss, grad_slope):
        # Under torch.compile grad_slope is a tensor of zeros; torch itself refuses there.
        if grad_slope is not None and not torch.compiler.is_compiling():
            raise RuntimeError(
                "kd_loss, ttm_loss and wttm_loss have no second derivative under torch.autograd; "
                "use torch.func (grad, hessian) for it, or the terms of decompose_ttm"
            )
        if grad_loss is None:  # nothing flows back
            return (None,) * 8
        slope, mask = ctx.saved_tensors
        if ctx.reduction == "mean":
            samples = slope[..., 0].numel() if mask is None else mask.sum().clamp(min=1)
            grad_loss = grad_loss / samples
        # unsqueeze also makes a scalar a vector, which multiplies 16-bit slopes in float32: a
        # large loss scale would overflow float16.
        if ctx.size is None or torch._C._autograd._get_current_graph_task_keep_graph():
            grad = (grad_loss.unsqueeze(-1) * slope).to(slope.dtype)
        else:  # this is the last time that the slope is asked for: its memory becomes the gradient
            grad = slope.detach()
            grad_loss = grad_loss.expand(slope.shape[:-1])
            for block in _blocks(slope.shape[:-1], ctx.size):
                torch.mul(grad_loss[block].unsqueeze(-1), grad[block], out=grad[block])
        return grad, *(None,) * 7


def _block_size(student: Tensor, chunk_size: int | None) -> int | None:
    """How many samples to compute at a time, or None for all at once."""
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise ValueError(
            f"chunk_size must be a whole number of samples from 1 on, or None for the "
            f"package's choice, got {chunk_size!r}"
        )
    if _in_transform() or hasattr(student, "full_tensor"):
        return None
    if chunk_size is None and student.numel() >= 2**24:
        return max(1, student[..., 0].numel() // 50)
    return chunk_size


def _blocks(shape: torch.Size, size: int):
    """Indices that cut a leading shape into parts of at most `size` samples, without a copy."""
    if not shape:
        yield ()
    elif (inside := math.prod(shape[1:])) > size:
        for place in range(shape[0]):
            for rest in _blocks(shape[1:], size):
                yield (place, *rest)
    else:
        step = size // max(1, inside)
        for start in range(0, shape[0], step):
            yield (slice(start, start + step),)


def _divergence_in_blocks(student, teacher, mask, size, *settings, slope=None) -> Tensor:
    """The divergence of each sample, a block at a time, and its derivative into `slope`."""
    loss = torch.empty(student.shape[:-1], dtype=_dtype(student, teacher), device=student.device)
    for block in _blocks(loss.shape, size):
        rows = _fill(student[block], teacher[block], None if mask is None else mask[block])
        if slope is None:
            loss[block] = _divergence_terms(*rows, *settings)[0]
        else:
            loss[block], slope[block] = _divergence_and_slope(*rows, *settings)
    return loss


def _divergence_and_slope(student, teacher, teacher_exponent, student_exponent, weight):
    """The divergence of each sample and its derivative in the student's logits."""
    loss, weight, p, p_sum, q, q_sum = _divergence_terms(
        student, teacher, teacher_exponent, student_exponent, weight
    )
    scale = weight if student_exponent == 1 else weight * student_exponent
    slope = q.div_(q_sum).addcdiv_(p, p_sum, value=-1)  # in place: p and q are not used again
    if isinstance(scale, Tensor) or scale != 1:
        slope.mul_(scale)
    return loss, slope


def _divergence_terms(student, teacher, teacher_exponent, student_exponent, weight):
    """The divergence of each sample, its weight, and p, sum p, q, sum q, not yet normalised."""
    if student.dtype == teacher.dtype == torch.float32:
        log_p, log_q = _shift(teacher), _shift(student)
    else:
        dtype = _dtype(student, teacher)
        log_p, log_q = _shift(teacher.to(dtype)), _shift(student.to(dtype))
    full_sum = log_p.exp().sum(-1, keepdim=True) if weight is None else None
    log_p.mul_(teacher_exponent)
    if student_exponent != 1:
        log_q.mul_(student_exponent)
    log_ratio = log_p - log_q
    p, q = log_p.exp_(), log_q.exp_()
    p_sum, q_sum = p.sum(-1, keepdim=True), q.sum(-1, keepdim=True)
    if weight is None:
        # U from logits: probabilities may underflow to 0, and a power cannot bring them back.
        weight = p_sum / full_sum**teacher_exponent
    # 0 * inf, where the teacher rules a class out. NaN in the logits is in the other sums, too.
    log_ratio.mul_(p).nan_to_num_(nan=0.0, posinf=math.inf)
    log_ratio = log_ratio.sum(-1, keepdim=True)
    loss = torch.addcdiv(q_sum.log() - p_sum.log(), log_ratio, p_sum)
    if isinstance(weight, Tensor) or weight != 1:
        loss = weight * loss
    return loss.squeeze(-1), weight, p, p_sum, q, q_sum


def _shift(logits: Tensor) -> Tensor:
    """Logits minus the largest of their row.

    Done before anything else and in float32: it is exact for the classes that matter, so that
    large logits lose no digits in the exponentials and the power sum.
    """
    return logits - logits.detach().amax(-1, keepdim=True)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (_shift(logits) / temperature).log_softmax(-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(-1)  # what p rules out is 0, not NaN


def _dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """What to compute in: float32, or float64 if either side is."""
    return torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)


def _broadcast(student, teacher, mask=None) -> tuple[Tensor, Tensor]:
    """Both sides in the dtype to compute in and of one shape, the teacher without a gradient."""
    dtype = _dtype(student, teacher)
    return _fill(*torch.broadcast_tensors(student.to(dtype), teacher.detach().to(dtype)), mask)


def _fill(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows that do not count become zeros: no loss, and no gradient goes to what stood there."""
    if mask is None:
        return student, teacher
    left_out = ~mask.unsqueeze(-1)
    return student.masked_fill(left_out, 0.0), teacher.masked_fill(left_out, 0.0)


def _reduce(loss: Tensor, reduction: str, mask: Tensor | None) -> Tensor:
    if reduction == "mean":
        return loss.mean() if mask is None else loss.sum() / mask.sum().clamp(min=1)
    return loss.sum() if reduction == "sum" else loss


# Checks -------------------------------------------------------------------------------------------


def _check(
    student, teacher, temperature, reduction="none", check_finite=False, mask=None, class_dim=-1
) -> tuple[float, Tensor, Tensor, Tensor | None]:
    """Return temperature, a plain number, logits, classes last, and mask if all of it is right."""
    temperature = check_positive("temperature", temperature)
    if class_dim != -1:
        student, teacher = (
            x.movedim(class_dim, -1) if isinstance(x, Tensor) else x for x in (student, teacher)
        )
    check_same_classes("student_logits", student, "teacher_logits", teacher)
    _check_reduction(reduction)
    if mask is not None:
        shape = torch.broadcast_shapes(student.shape, teacher.shape)
        remedy = "torch.as_tensor(mask).bool(), True where a sample counts"
        _check_per_sample("mask", mask, torch.bool, shape, remedy)
    elif reduction == "mean" and not (student.numel() and teacher.numel()):
        raise ValueError(
            f"student_logits {tuple(student.shape)} and teacher_logits {tuple(teacher.shape)} hold "
            "no samples, so there is no mean; leave empty batches out"
        )
    if check_finite and not _in_transform():
        for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
            bad = ~logits.amax(-1).isfinite()
            bad = int(everywhere((bad if mask is None else bad & mask).sum()))
            if bad:
                raise ValueError(
                    f"{name} hold {bad} rows with NaN, with inf or with nothing but -inf; look for "
                    "a diverged model or a broken input, and leave every row a finite logit"
                )
            rows = logits.reshape(-1, logits.shape[-1])
            check_no_probabilities(name, rows.sum(-1, dtype=torch.float32), rows.amin(-1))
    return temperature, student, teacher, mask


def _check_per_sample(name, tensor, dtype, logits_shape: torch.Size, remedy: str) -> None:
    kind = getattr(tensor, "dtype", type(tensor).__name__)
    if kind != dtype:
        raise TypeError(f"{name} must be a {dtype} tensor, got {kind}: give {remedy}")
    if tensor.shape != logits_shape[:-1]:
        raise ValueError(
            f"{name}: shape {tuple(tensor.shape)} does not fit logits {tuple(logits_shape)}, which "
            f"need one value per sample: shape {tuple(logits_shape[:-1])}"
        )


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction must be "none", "mean" or "sum", got {reduction!r}')


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if weight != 0:  # leaving a part out is fine; NaN is not 0 and goes on
            check_positive(name, weight)


def _check_labels(labels, mask, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor | None]:
    """Labels that are classes, and a mask without the samples whose label is -100."""
    shape = torch.broadcast_shapes(student.shape, teacher.shape)
    remedy = "torch.as_tensor(labels) or labels.long() of classes, argmax(-1) of one-hot rows"
    _check_per_sample("labels", labels, torch.int64, shape, remedy)
    counts = labels != -100 if mask is None else mask & (labels != -100)
    labels = labels.masked_fill(~counts, 0)
    if _in_transform() or not labels.numel():
        return labels, counts
    low, high = int(everywhere(labels.min())), int(everywhere(labels.max()))
    if not 0 <= low <= high < shape[-1]:
        raise ValueError(
            f"labels must lie between 0 and {shape[-1] - 1}, got {low} to {high}; "
            "give ignored samples -100, and check that labels start at 0"
        )
    return labels, mask if everywhere(counts.all()) else counts


def _in_transform() -> bool:
    """Whether values are out of reach: under torch.compile, or inside vmap, grad and so on."""
    # torch has no public name for the second question; autograd.Function itself asks this one.
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
