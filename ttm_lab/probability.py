"""Functions on the probability simplex: temperature, power transform, entropies, divergence.

The last dimension of every tensor holds the classes; any leading shape is allowed. Logarithms are
natural, so entropies and divergences are in nats. float16 and bfloat16 are computed and returned
in float32; float32 and float64 stay what they are. All functions are differentiable, also where a
probability is exactly 0, and they work under ``torch.compile``, autocast and ``torch.func``.
"""

import math
from numbers import Real

import torch
from scipy import optimize
from torch import Tensor

__all__ = [
    "kl_divergence",
    "largest_temperature",
    "power_sum",
    "power_transform",
    "renyi_entropy",
    "shannon_entropy",
    "temperature_softmax",
]


def temperature_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities softmax(logits / T).

    Args:
        logits: floating point, shape (..., K).
        temperature: T > 0. T > 1 smooths, T < 1 sharpens, T = 1 is the ordinary softmax.

    Returns:
        Probabilities, shape (..., K).

    Raises:
        TypeError: logits are not a floating point tensor, or T is not a number.
        ValueError: T is not positive and finite, or there are fewer than two classes.

    Source: Hinton, Vinyals and Dean 2015, Eq. 1.
    """
    temperature = check_positive("temperature", temperature)
    logits = _prepare("logits", logits)
    # Shift first: the difference to the largest logit is exact where it matters, and dividing
    # only that keeps the result accurate for logits in the thousands. torch's own softmax adds
    # up many classes less accurately than sum does.
    powers = ((logits - logits.detach().amax(-1, keepdim=True)) / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def power_transform(probabilities: Tensor, exponent: float) -> Tensor:
    """The power transform p**gamma / sum(p**gamma): temperature scaling without logits.

    With gamma = 1/T it turns softmax(v) into softmax(v / T). The input need not be normalised.
    Probabilities that underflowed to 0 stay 0; where logits are at hand, `temperature_softmax`
    recovers them.

    Args:
        probabilities: non-negative floating point, shape (..., K).
        exponent: gamma > 0. gamma < 1 smooths, gamma > 1 sharpens.

    Returns:
        Probabilities, shape (..., K).

    Raises:
        TypeError, ValueError: as `temperature_softmax`.

    Source: Zheng and Yang 2024, Eqs. 6 to 9.
    """
    exponent = check_positive("exponent", exponent)
    probabilities = _prepare("probabilities", probabilities)
    # Dividing by the largest entry first keeps a large exponent from underflowing all of them.
    powers = _power(probabilities / probabilities.detach().amax(-1, keepdim=True), exponent)
    return powers / powers.sum(-1, keepdim=True)


def power_sum(probabilities: Tensor, exponent: float) -> Tensor:
    """The power sum U = sum_j p_j**gamma, the weight that WTTM gives a sample.

    For 0 < gamma < 1 it lies between 1 (one-hot p) and K**(1 - gamma) (uniform p), and
    log U = (1 - gamma) * renyi_entropy(p, gamma).

    Args:
        probabilities: non-negative floating point, shape (..., K), summing to 1. Sum the powers
            of the probabilities themselves: after `power_transform` they add up to 1.
        exponent: gamma > 0.

    Returns:
        U, shape (...).

    Raises:
        TypeError, ValueError: as `temperature_softmax`.

    Source: Zheng and Yang 2024, section 4.
    """
    exponent = check_positive("exponent", exponent)
    return _power(_prepare("probabilities", probabilities), exponent).sum(-1)


def shannon_entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy H(p) = -sum_j p_j log p_j in nats, with 0 log 0 = 0.

    Args:
        probabilities: non-negative floating point, shape (..., K), summing to 1.

    Returns:
        Entropy, shape (...), between 0 (one-hot) and log K (uniform).

    Raises:
        TypeError: probabilities are not a floating point tensor.
        ValueError: there are fewer than two classes.

    Source: Shannon 1948.
    """
    probabilities = _prepare("probabilities", probabilities)
    return -(probabilities * _safe_log(probabilities)).sum(-1)


def renyi_entropy(probabilities: Tensor, order: float) -> Tensor:
    """Rényi entropy H_a(p) = log(sum_j p_j**a) / (1 - a) in nats; order 1 is Shannon's.

    It falls as the order grows. TTM rewards a student for its Rényi entropy of order 1/T.

    Args:
        probabilities: non-negative floating point, shape (..., K), summing to 1.
        order: a > 0.

    Returns:
        Entropy, shape (...), between 0 (one-hot) and log K (uniform).

    Raises:
        TypeError, ValueError: as `temperature_softmax`.

    Source: Rényi 1961; Zheng and Yang 2024, Eq. 4.
    """
    order = check_positive("order", order)
    probabilities = _prepare("probabilities", probabilities)
    if order == 1:
        return shannon_entropy(probabilities)
    if abs(order - 1) < 0.1:
        # Near order 1 the formula tends to 0 / 0. With sum p = 1 its logarithm is that of
        # 1 + sum p * (p**(a - 1) - 1), and expm1 and log1p keep the digits of that small sum.
        excess = probabilities * torch.expm1((order - 1) * _safe_log(probabilities))
        return torch.log1p(excess.sum(-1)) / (1 - order)
    # Dividing by the largest entry first keeps a large order from underflowing all of them.
    largest = probabilities.detach().amax(-1, keepdim=True)
    log_sum = _power(probabilities / largest, order).sum(-1).log()
    return (order * largest.squeeze(-1).log() + log_sum) / (1 - order)


def kl_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Kullback-Leibler divergence D(first || second) = sum_j first_j log(first_j / second_j).

    A class that `first` gives probability 0 contributes 0; one that only `second` gives
    probability 0 makes the divergence infinite. For training use `ttm_lab.losses`, which start
    from logits and never meet an underflowed 0.

    Args:
        first, second: non-negative floating point, shapes (..., K) that broadcast, same K.

    Returns:
        Divergence in nats, shape (...).

    Raises:
        TypeError: an argument is not a floating point tensor.
        ValueError: the numbers of classes differ, or the leading shapes do not broadcast.

    Source: Kullback and Leibler 1951.
    """
    check_same_classes("first", first, "second", second)
    first, second = _prepare("first", first), _prepare("second", second)
    log_ratio = _safe_log(first) - torch.where(first > 0, second, 1).log()
    return (first * log_ratio).sum(-1)


def largest_temperature(logits: Tensor, nats: float) -> float:
    """The largest T at which tempering costs at most so much: mean D(p || p_T) <= nats.

    TTM and WTTM draw the student to p_T, not to p, and the more classes there are, the less of p
    a given T leaves. D(p || p_T) is the cross-entropy that a student loses who gets there; it says
    nothing of accuracy, since p_T keeps the order of the classes. It grows with T from 0 at T = 1.

    Args:
        logits: a teacher's, floating point, shape (..., K); some thousands of rows are enough.
        nats: how much p_T may differ from p on average, > 0, such as 0.1.

    Returns:
        T > 1, to a millionth of it; in float32, D is exact to about 1e-6.

    Raises:
        TypeError: logits are not a floating point tensor, or nats is not a number.
        ValueError: nats is not positive and finite, no rows or fewer than two classes, or no T
            below a million costs so much.
    """
    nats = check_positive("nats", nats)
    rows = _prepare("logits", logits).detach()
    if not rows.numel():
        raise ValueError(f"logits {tuple(rows.shape)} hold no rows, so there is no mean over them")
    rows = rows - rows.amax(-1, keepdim=True)
    terms = rows.softmax(-1).mul_(rows).masked_fill_(rows == -torch.inf, 0.0)
    expected = terms.cpu().sum(-1, dtype=torch.float64)  # not every device has float64
    full = rows.logsumexp(-1)

    def excess(log_exponent: float) -> float:
        exponent = math.exp(log_exponent)
        change = (rows * exponent).logsumexp(-1) - full  # log p - log p_T = (1 - 1/T) v + change
        return ((1 - exponent) * expected + change.cpu()).mean().item() - nats

    lowest = -math.log(1e6)
    if excess(lowest) <= 0:
        raise ValueError(
            f"no temperature below a million changes these probabilities by {nats} nats, but by at "
            f"most {excess(lowest) + nats:.3g}; ask for less"
        )
    return math.exp(-optimize.brentq(excess, lowest, 0.0, xtol=1e-7))


def check_positive(name: str, value: float) -> float:
    """Return `value` as a plain int or float if it is positive and finite; raise otherwise.

    Callers go on with what comes back: small NumPy integers overflow (`np.int8(16)**2` is 0), and
    16-bit floats round every result.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a number such as 4.0, not {type(value).__name__} ({value!r}); "
            f"convert it with float({name})"
        )
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}; 1.0 changes nothing")
    return value if type(value) in (int, float) else float(value)


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` is a floating point tensor with a class dimension."""
    if not isinstance(tensor, Tensor):
        remedy = f"convert it with torch.as_tensor({name})"
        if isinstance(getattr(tensor, "logits", None), Tensor):  # what a transformer returns
            remedy = "pass its .logits"
        raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}; {remedy}")
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be floating point, got {tensor.dtype}; convert with {name}.float()"
        )
    if tensor.ndim == 0 or tensor.shape[-1] < 2:
        raise ValueError(
            f"{name} must have shape (..., K) with K >= 2 classes last, got {tuple(tensor.shape)}; "
            "two columns are needed even for a yes-or-no question"
        )


def check_no_probabilities(name: str, sums, least) -> None:
    """Raise where every row holds probabilities, by each row's sum and least entry."""
    probabilities = (abs(sums - 1) < 0.01) & (least >= 0)
    if len(sums) and everywhere(probabilities.all()):
        raise ValueError(
            f"every row of {name} sums to 1 with nothing below 0, as probabilities do; pass logits "
            "or log-probabilities, which are right as they are"
        )


def check_same_classes(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    """Raise unless both are floating point tensors of K classes whose leading shapes broadcast."""
    check_floating(first_name, first)
    check_floating(second_name, second)
    if first.shape == second.shape:
        return
    shapes = f"{first_name} {tuple(first.shape)} and {second_name} {tuple(second.shape)}"
    if first.shape[-1] != second.shape[-1]:
        few, longer = min((first.shape[-1], second_name), (second.shape[-1], first_name))
        raise ValueError(
            f"{shapes} have different numbers of classes in the last dimension; give both the "
            f"same K classes in the same order. If only padding follows the first {few} (a "
            f"vocabulary rounded up), slice {longer}[..., :{few}]"
        )
    try:
        torch.broadcast_shapes(first.shape, second.shape)
    except RuntimeError:
        raise ValueError(
            f"{shapes} do not broadcast; give both the same leading shape (one row per sample)"
        ) from None


def everywhere(value: Tensor) -> Tensor:
    """A sharded tensor's value over all processes, where `int` would take this one's part."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # a DTensor


def _prepare(name: str, tensor: Tensor) -> Tensor:
    """Check a tensor and lift 16-bit floats to float32, in which everything is computed."""
    check_floating(name, tensor)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _safe_log(probabilities: Tensor) -> Tensor:
    """log p, with 0 in place of log 0: the factor p removes the entry, its gradient too."""
    return torch.where(probabilities > 0, probabilities, 1).log()


def _power(probabilities: Tensor, exponent: float) -> Tensor:
    """p**gamma with gradient 0, not infinity, where p is exactly 0."""
    positive = probabilities > 0
    return torch.where(positive, torch.where(positive, probabilities, 1) ** exponent, 0)
