"""The losses against float64 closed forms, autograd and independent formulas.

Claims A1 to A8 and facts 3.4, 5.7 and those of section 7 are the exact statements of the theory
that the course teaches; the tests carry their numbers.
"""

import inspect
import itertools
import math
import shutil
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import Allocated, device_without_float64
from scipy import stats

from ttm_lab.losses import (
    DISTLoss,
    DKDLoss,
    KDLoss,
    StandardizedLoss,
    TTMLoss,
    WTTMLoss,
    decompose_ttm,
    dist_loss,
    dkd_loss,
    kd_loss,
    merge_others,
    ttm_loss,
    wttm_loss,
)
from ttm_lab.probability import (
    kl_divergence,
    power_sum,
    power_transform,
    renyi_entropy,
    shannon_entropy,
    temperature_softmax,
)

quick = settings(max_examples=50, deadline=None)  # no time limit: machines differ
LOSSES = {"kd": kd_loss, "ttm": ttm_loss, "wttm": wttm_loss}
every_loss = pytest.mark.parametrize("name", LOSSES)
temperatures = st.floats(0.5, 20)


def pair(seed, classes, scale=2.0, rows=6, dtype=torch.float64):
    """Independent student and teacher logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype).unbind()


pairs = st.builds(
    pair,
    st.integers(0, 2**32 - 1),
    st.sampled_from((2, 3, 10, 100)),
    st.sampled_from((0.3, 1.0, 3.0, 8.0)),
)


def reference(name, student, teacher, temperature):
    """Value, gradient and scale of the allowed value error of each sample, all in float64.

    Written from the formulas, with numpy: the value from log-probabilities, the gradient in
    closed form, neither from anything in the package.
    """
    z, v = student.detach().double().numpy(), teacher.detach().double().numpy()
    student_temperature = temperature if name == "kd" else 1

    def log_softmax(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(v / temperature), log_softmax(z / student_temperature)
    power_sums = np.exp(log_softmax(v) / temperature).sum(-1)
    weight = {"kd": temperature**2, "ttm": 1.0, "wttm": power_sums}[name] * np.ones(z.shape[:-1])
    value = weight * (np.exp(log_p) * (log_p - log_q)).sum(-1)
    gradient = (weight / student_temperature)[..., None] * (np.exp(log_q) - np.exp(log_p))
    size = 0.05 + (np.exp(log_p) * (abs(log_p) + abs(log_q))).sum(-1)
    return value, gradient, 5e-6 * weight * size


def gradient_of(function, student):
    student = student.detach().clone().requires_grad_()
    return torch.autograd.grad(function(student), student)[0]


# Exact statements: claims A1 to A8 ----------------------------------------------------------------


@quick
@given(pairs, temperatures)
def test_a1_teacher_probabilities_are_enough(logits, temperature):
    """TTM needs p alone: the power transform of p equals softmax(v / T)."""
    z, v = logits
    transformed = power_transform(v.softmax(-1), 1 / temperature)
    assert (transformed - (v / temperature).softmax(-1)).abs().max() <= 1e-14
    torch.testing.assert_close(
        ttm_loss(z, v, temperature, reduction="none"),
        kl_divergence(transformed, z.softmax(-1)),
        rtol=1e-9,
        atol=1e-12,
    )


@quick
@given(pairs, temperatures)
def test_a2_ttm_is_kd_minus_renyi_plus_constant(logits, temperature):
    z, v = logits
    T, p_T, q = temperature, temperature_softmax(v, temperature), z.softmax(-1)
    terms = decompose_ttm(z, v, T)
    close = {"rtol": 1e-11, "atol": 1e-12 * (1 + T)}
    torch.testing.assert_close(terms.kd + terms.renyi + terms.teacher_entropy, terms.total, **close)
    torch.testing.assert_close(terms.kd, T * kl_divergence(p_T, temperature_softmax(z, T)), **close)
    torch.testing.assert_close(terms.renyi, -(T - 1) * renyi_entropy(q, 1 / T), **close)
    torch.testing.assert_close(terms.teacher_entropy, (T - 1) * shannon_entropy(p_T), **close)
    torch.testing.assert_close(terms.total, ttm_loss(z, v, T, reduction="none"), **close)


def test_a2_fails_with_the_wrong_entropy():
    """Fact 3.4: order T, Shannon's entropy, or the entropy of q_T break the identity."""
    z, v = pair(0, 10)
    T, q = 4.0, z.softmax(-1)
    q_T = temperature_softmax(z, T)
    terms = decompose_ttm(z, v, T)

    def residual(entropy):
        return (terms.kd - (T - 1) * entropy + terms.teacher_entropy - terms.total).abs()

    assert residual(renyi_entropy(q, 1 / T)).max() < 1e-13
    wrong = (
        renyi_entropy(q, T),
        shannon_entropy(q),
        shannon_entropy(q_T),
        renyi_entropy(q_T, 1 / T),
    )
    for entropy in wrong:
        assert residual(entropy).min() > 1e-2


@quick
@given(pairs, st.floats(1, 20), st.floats(0.05, 0.95))
def test_a3_ttm_weight_that_corresponds_to_a_kd_weight(logits, temperature, kd_weight):
    """With beta = lambda T / (1 - lambda) the objectives differ by a student-free constant."""
    z, v = logits
    T, beta = temperature, kd_weight * temperature / (1 - kd_weight)
    labels = v.argmax(-1)

    def ttm_objective(x):
        cross_entropy = F.cross_entropy(x, labels, reduction="none")
        return cross_entropy + beta * ttm_loss(x, v, T, reduction="none")

    def kd_objective(x):
        cross_entropy = F.cross_entropy(x, labels, reduction="none")
        kd = (1 - kd_weight) * cross_entropy + kd_weight * kd_loss(x, v, T, reduction="none")
        renyi = renyi_entropy(x.softmax(-1), 1 / T)
        return (kd - kd_weight * T * (T - 1) * renyi) / (1 - kd_weight)

    constant = beta * (T - 1) * shannon_entropy(temperature_softmax(v, T))
    close = {"rtol": 1e-10, "atol": 1e-11 * (1 + beta * T)}
    torch.testing.assert_close(ttm_objective(z), kd_objective(z) + constant, **close)
    torch.testing.assert_close(
        gradient_of(lambda x: ttm_objective(x).sum(), z),
        gradient_of(lambda x: kd_objective(x).sum(), z),
        **close,
    )


@quick
@given(pairs, temperatures)
def test_a4_gradients(logits, temperature):
    z, v = logits
    T, p_T, q = temperature, (v / temperature).softmax(-1), z.softmax(-1)
    weight = power_sum(v.softmax(-1), 1 / T).unsqueeze(-1)
    expected = {
        "kd": T * ((z / T).softmax(-1) - p_T),
        "ttm": q - p_T,
        "wttm": weight * (q - p_T),
    }
    for name, loss in LOSSES.items():
        gradient = gradient_of(lambda x, f=loss: f(x, v, T, reduction="sum"), z)
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-14)
    # Fact 4.2: KD's part and the Rényi part add up to it.
    kd = gradient_of(lambda x: decompose_ttm(x, v, T).kd.sum(), z)
    renyi = gradient_of(lambda x: decompose_ttm(x, v, T).renyi.sum(), z)
    torch.testing.assert_close(renyi, q - (z / T).softmax(-1), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(kd + renyi, expected["ttm"], rtol=1e-9, atol=1e-13)


@quick
@given(pairs)
def test_a5_all_three_coincide_at_temperature_one(logits):
    z, v = logits
    divergence = kl_divergence(v.softmax(-1), z.softmax(-1))
    for loss in LOSSES.values():
        torch.testing.assert_close(
            loss(z, v, 1, reduction="none"), divergence, rtol=1e-10, atol=1e-13
        )


@quick
@given(pairs, temperatures)
def test_a6_wttm_is_ttm_times_the_power_sum(logits, temperature):
    z, v = logits
    ttm, wttm = (f(z, v, temperature, reduction="none") for f in (ttm_loss, wttm_loss))
    weight = power_sum(v.softmax(-1), 1 / temperature)
    torch.testing.assert_close(wttm, weight * ttm, rtol=1e-10, atol=1e-13)
    log_weight = (1 - 1 / temperature) * renyi_entropy(v.softmax(-1), 1 / temperature)
    torch.testing.assert_close(wttm, log_weight.exp() * ttm, rtol=1e-10, atol=1e-13)


def test_a6_summing_after_normalising_would_give_ttm():
    """Fact 5.7: that weight is 1 for every sample, so it is not WTTM's."""
    z, v = pair(0, 10)
    T = 4.0
    mistaken = power_transform(v.softmax(-1), 1 / T).sum(-1) * ttm_loss(z, v, T, reduction="none")
    torch.testing.assert_close(mistaken, ttm_loss(z, v, T, reduction="none"))
    assert (wttm_loss(z, v, T, reduction="none") > 1.5 * mistaken).all()


@every_loss
def test_a7_free_optimum(name):
    """Without cross-entropy KD ends at the teacher, TTM and WTTM at the tempered teacher."""
    T = 3.0
    _, v = pair(0, 5, rows=3)
    z = torch.zeros_like(v, requires_grad=True)
    optimiser = torch.optim.LBFGS([z], max_iter=200, tolerance_grad=1e-9, tolerance_change=0)

    def step():
        optimiser.zero_grad()
        loss = LOSSES[name](z, v, T)
        loss.backward()
        return loss

    optimiser.step(step)
    target = v.softmax(-1) if name == "kd" else (v / T).softmax(-1)
    assert (z.detach().softmax(-1) - target).abs().max() < 1e-6


@quick
@given(pairs, temperatures, st.floats(0.1, 100))
def test_a8_ttm_is_cross_entropy_on_a_mixed_label(logits, temperature, beta):
    z, v = logits
    p_T, labels = temperature_softmax(v, temperature), v.argmin(-1)
    weight = power_sum(v.softmax(-1), 1 / temperature)
    hard = F.cross_entropy(z, labels, reduction="none")
    one_hot = F.one_hot(labels, z.shape[-1])
    for loss, strength in ((ttm_loss, torch.full_like(hard, beta)), (wttm_loss, beta * weight)):
        mixed = (one_hot + strength.unsqueeze(-1) * p_T) / (1 + strength.unsqueeze(-1))
        soft = (1 + strength) * F.cross_entropy(z, mixed, reduction="none")
        torch.testing.assert_close(
            hard + beta * loss(z, v, temperature, reduction="none"),
            soft - strength * shannon_entropy(p_T),
            rtol=1e-9,
            atol=1e-11 * (1 + beta * weight.max().item()),
        )


# Limits (section 7) -------------------------------------------------------------------------------


def test_small_exponents_leave_only_the_regulariser():
    """Fact 7.3: as T grows, TTM tends to D(u || q), and KD's part of it to 0, at rate 1 / T."""
    z, v = pair(0, 10)
    uniform = torch.full_like(z, 0.1)
    limit = kl_divergence(uniform, z.softmax(-1))
    distance = {}
    for T in (1e3, 1e4, 1e5):
        terms = decompose_ttm(z, v, T)
        weighted = wttm_loss(z, v, T, reduction="none")
        distance[T] = torch.stack(
            [
                (terms.total - limit).abs().max(),
                terms.kd.abs().max(),
                (terms.renyi + terms.teacher_entropy - limit).abs().max(),
                (weighted / 10 - limit).abs().max(),
            ]
        )
    assert (distance[1e5] < 1e-3).all()
    torch.testing.assert_close(
        distance[1e3] / distance[1e5], torch.full((4,), 100.0).double(), rtol=0.05, atol=0
    )


def test_kd_at_high_temperature_matches_logits():
    """Fact 7.4: T**2 D(p_T || q_T) tends to the squared distance of centred logits / (2 K)."""
    z, v = pair(0, 10)
    difference = (z - z.mean(-1, keepdim=True)) - (v - v.mean(-1, keepdim=True))
    limit = difference.square().sum(-1) / (2 * 10)
    errors = [(kd_loss(z, v, T, reduction="none") - limit).abs().max() for T in (1e2, 1e3, 1e4)]
    assert errors[2] < 1e-3
    assert errors[0] / errors[2] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("temperature", [1, 2, 20, 1e3, 1e6])
def test_renyi_gradient_stays_bounded(temperature):
    """Fact 7.5: q_T - q is at most 1 per entry, while the value grows like T log K."""
    z, v = pair(0, 10, scale=10.0)
    gradient = gradient_of(lambda x: decompose_ttm(x, v, temperature).renyi.sum(), z)
    assert gradient.abs().max() <= 1
    expected = z.softmax(-1) - (z / temperature).softmax(-1)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    value = -decompose_ttm(z, v, temperature).renyi
    assert (value <= (temperature - 1) * math.log(10) + 1e-9).all()


def test_exponent_near_one_is_near_the_plain_divergence():
    """Fact 7.2."""
    z, v = pair(0, 10)
    plain = kl_divergence(v.softmax(-1), z.softmax(-1))
    for loss in LOSSES.values():
        near = loss(z, v, 1 + 1e-8, reduction="none")
        torch.testing.assert_close(near, plain, rtol=1e-6, atol=1e-6)


# Precision ----------------------------------------------------------------------------------------

RELATIVE_GRADIENT_ERROR = {
    torch.float64: 1e-11,
    torch.float32: 5e-5,
    torch.bfloat16: 8e-3,
    torch.float16: 2e-3,
}


@every_loss
@pytest.mark.parametrize("dtype", RELATIVE_GRADIENT_ERROR, ids=str)
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000, 10_000, 30_000])
def test_precision(name, dtype, classes):
    loss = LOSSES[name]
    for scale, temperature in itertools.product((0.3, 3.0, 50.0, 300.0), (0.5, 1, 2, 4, 20)):
        z, v = pair(1, classes, scale, rows=4 if classes > 1000 else 16, dtype=dtype)
        z.requires_grad_()
        value, expected, allowed = reference(name, z, v, temperature)
        result = loss(z, v, temperature, reduction="none")
        (gradient,) = torch.autograd.grad(result.sum(), z)
        case = f"K={classes}, scale={scale}, T={temperature}"

        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tighter = 1e-6 if dtype == torch.float64 else 1
        error = np.abs(result.detach().double().numpy() - value)
        assert (error <= tighter * allowed).all(), f"value, {case}"

        assert gradient.dtype == dtype
        bound = RELATIVE_GRADIENT_ERROR[dtype]
        if dtype == torch.float16:
            if name == "wttm" and temperature < 1:
                continue  # U is near 1 / K, and U (q - p) below what float16 can hold
            if classes > 10_000:
                bound = 5e-2
        error = np.linalg.norm(gradient.double().numpy() - expected) / np.linalg.norm(expected)
        assert error <= bound, f"gradient, {case}"


@every_loss
def test_a_common_offset_changes_nothing(name):
    z, v = (x.round(decimals=2) for x in pair(0, 100, 3.0, dtype=torch.float32))
    z, v = (z * 64).round() / 64, (v * 64).round() / 64  # so that adding 4096 is exact
    torch.testing.assert_close(
        LOSSES[name](z + 4096, v - 4096, 4.0), LOSSES[name](z, v, 4.0), rtol=0, atol=0
    )


@every_loss
@pytest.mark.parametrize("dtype", RELATIVE_GRADIENT_ERROR, ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1, 20])
def test_huge_logits_stay_finite(name, dtype, temperature):
    z, v = (x.clamp(-1e4, 1e4) for x in pair(0, 10, 1e4, dtype=dtype))
    z.requires_grad_()
    loss = LOSSES[name](z, v, temperature)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [*LOSSES, "dkd", "decompose"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 4])
def test_a_mask_of_the_smallest_number_is_a_class_left_out(name, dtype, temperature):
    """finfo.min / T is -inf for T < 1; value and gradient must be those of K - 1 classes."""
    z, v = pair(0, 5, dtype=dtype)
    functions = LOSSES | {
        "dkd": lambda z, v, T: dkd_loss(z, v, torch.arange(6) % 4, T),
        "decompose": lambda z, v, T: torch.stack(decompose_ttm(z, v, T)).square().sum(),
    }

    def value_and_gradient(student, teacher):
        student = student.clone().requires_grad_()
        value = functions[name](student, teacher, temperature)
        return value.detach(), *torch.autograd.grad(value, student)

    masked = torch.arange(5) == 4
    filled = [x.masked_fill(masked, torch.finfo(dtype).min) for x in (z, v)]
    value, gradient = value_and_gradient(*filled)
    expected, slope = value_and_gradient(z[:, :4], v[:, :4])
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:, :4], slope)
    assert not gradient[:, 4].any()
    in_transform = torch.func.grad(lambda x: functions[name](x, filled[1], temperature))(filled[0])
    torch.testing.assert_close(in_transform, gradient)


# Samples that do not count, and where the classes are -----------------------------------------

COUNTS = torch.tensor([[True, False, True], [False, True, True]])
LABELLED = torch.tensor([[0, 1, 2], [3, 4, 0]])
BAD = {"ordinary": 1.0, "nan": math.nan, "inf": math.inf, "ruled out": -math.inf}


def all_losses(**options):
    def dkd(z, v, labels=None, **more):
        return dkd_loss(z, v, LABELLED if labels is None else labels, 4.0, **options | more)

    def call(function):
        return lambda z, v, **more: function(z, v, 4.0, **options | more)

    return {k: call(f) for k, f in {**LOSSES, "dist": dist_loss}.items()} | {"dkd": dkd}


@pytest.mark.parametrize("name", all_losses())
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_the_mask_leaves_out_is_as_if_it_were_not_there(name, bad, dtype):
    z, v = (x.reshape(2, 3, 5) for x in pair(0, 5, dtype=dtype))
    z[~COUNTS], v[~COUNTS] = z[~COUNTS] * BAD[bad], v[~COUNTS] * BAD[bad]
    loss, left = all_losses()[name], {"labels": LABELLED[COUNTS]} if name == "dkd" else {}
    for reduction in ("none", "sum", "mean") if name != "dist" else ("mean",):
        options = {"reduction": reduction} if name != "dist" else {}
        x, y = z.clone().requires_grad_(), z[COUNTS].requires_grad_()
        found, expected = loss(x, v, mask=COUNTS, **options), loss(y, v[COUNTS], **left, **options)
        found.sum().backward()
        expected.sum().backward()
        if reduction == "none":
            assert not found[~COUNTS].any()
            found = found[COUNTS]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(x.grad[COUNTS], y.grad)
        assert not x.grad[~COUNTS].any()  # not NaN, either
        gradient = torch.func.grad(lambda x, f=loss, o=options: f(x, v, mask=COUNTS, **o).sum())(z)
        torch.testing.assert_close(gradient, x.grad)


@pytest.mark.parametrize("name", all_losses())
def test_a_mask_that_leaves_nothing_gives_zero(name):
    z, v = torch.full((2, 3, 5), math.nan, requires_grad=True), torch.full((2, 3, 5), math.nan)
    loss = all_losses()[name](z, v, mask=torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert not z.grad.any()
    assert all_losses()[name](z[:0], v[:0], mask=COUNTS[:0], **no_labels(name)) == 0


def no_labels(name):
    return {"labels": LABELLED[:0]} if name == "dkd" else {}


@pytest.mark.parametrize("name", all_losses())
def test_masks_broadcast_and_compile(name):
    z, v = (x.reshape(2, 3, 5) for x in pair(0, 5, dtype=torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(all_losses()[name], fullgraph=True, backend="aot_eager")
    for student, teacher in ((z, v), (z, v[:1]), (z[:1], v)):
        whole = all_losses()[name](*torch.broadcast_tensors(student, teacher), mask=COUNTS)
        torch.testing.assert_close(all_losses()[name](student, teacher, mask=COUNTS), whole)
    torch.testing.assert_close(
        gradient_of(lambda x: compiled(x, v, mask=COUNTS), z),
        gradient_of(lambda x: all_losses()[name](x, v, mask=COUNTS), z),
    )


def test_labels_of_minus_hundred_do_not_count():
    z, v = (x.reshape(2, 3, 5) for x in pair(0, 5))
    labels = LABELLED.masked_fill(~COUNTS, -100)
    expected = dkd_reference(z[COUNTS], v[COUNTS], LABELLED[COUNTS], 4.0)
    each = dkd_loss(z, v, labels, 4.0, reduction="none")
    torch.testing.assert_close(each[COUNTS], expected)
    assert not each[~COUNTS].any()
    torch.testing.assert_close(dkd_loss(z, v, labels, 4.0), expected.mean())
    mask = torch.ones_like(COUNTS).index_fill(0, torch.tensor(1), False)  # both leave some out
    first = dkd_loss(z, v, labels, 4.0, mask=mask)
    torch.testing.assert_close(first, expected[:2].mean())
    assert dkd_loss(z, v, torch.full_like(labels, -100), 4.0) == 0
    mapped = torch.func.vmap(lambda x: dkd_loss(x, v, labels, 4.0))(torch.stack([z, z]))
    torch.testing.assert_close(mapped, expected.mean().expand(2))


@pytest.mark.parametrize("name", all_losses())
def test_classes_may_lie_in_another_dimension(name):
    z, v = (x.reshape(2, 3, 5) for x in pair(0, 5))
    loss = all_losses()[name]
    images = [x.movedim(-1, 1).contiguous() for x in (z, v)]
    for options in ({}, {"mask": COUNTS}):
        found = loss(*images, class_dim=1, **options)
        torch.testing.assert_close(found, loss(z, v, **options))
        gradient = gradient_of(lambda x, o=options: loss(x, images[1], class_dim=1, **o), images[0])
        expected = gradient_of(lambda x, o=options: loss(x, v, **o), z)
        torch.testing.assert_close(gradient, expected.movedim(-1, 1))


def test_modules_take_masks():
    z, v = (x.reshape(2, 3, 5) for x in pair(0, 5))
    v[~COUNTS] = math.nan
    assert torch.equal(WTTMLoss(4)(z, v, COUNTS), wttm_loss(z, v, 4, mask=COUNTS))
    assert torch.equal(DISTLoss(4)(z, v, mask=COUNTS), dist_loss(z, v, 4, mask=COUNTS))
    expected = dkd_loss(z, v, LABELLED, 4, mask=COUNTS)
    assert torch.equal(DKDLoss(4)(z, v, LABELLED, COUNTS), expected)

    loss, whole = StandardizedLoss(KDLoss(4)), StandardizedLoss(KDLoss(4, class_dim=1))
    z.requires_grad_()
    found = loss(z, v, mask=COUNTS)
    torch.testing.assert_close(found, loss(z[COUNTS], v[COUNTS]))
    found.backward()
    assert not z.grad[~COUNTS].any()
    torch.testing.assert_close(whole(z.movedim(-1, 1), v.movedim(-1, 1), mask=COUNTS), found)


# Classes that are ruled out --------------------------------------------------------------------

RULED_OUT = {  # by the teacher, by the student
    "both": ([4], [4]),
    "teacher": ([1, 4], []),
    "some of the teacher's": ([0, 1, 4], [1, 4]),
    "all but one": ([0, 1, 2, 3], [0, 1, 2]),
    "student": ([4], [3, 4]),
}


def by_rows(name, student, teacher, T, labels):
    """The losses of each row in plain float64 loops, with 0 log 0 = 0 and log 0 = -inf."""

    def softmax(row, temperature):
        powers = [math.exp((x - max(row)) / temperature) for x in row]
        return [x / sum(powers) for x in powers]

    def divergence(p, q):
        return sum((a * math.log(a / b) if b else math.inf) for a, b in zip(p, q, strict=True) if a)

    def renyi(q, order):
        return math.log(sum(x**order for x in q if x)) / (1 - order)

    def of_row(z, v, label):
        p, q = softmax(v, T), softmax(z, T if name in ("kd", "dkd") else 1)
        if name == "dkd":
            p, q = ([x.pop(label), x] for x in (p, q))
            target = divergence([p[0], sum(p[1])], [q[0], sum(q[1])])
            shares = ([y / sum(x[1]) if sum(x[1]) else 0.0 for y in x[1]] for x in (p, q))
            return T**2 * (target + 8 * divergence(*shares))
        if name == "decompose":
            total, kd = divergence(p, q), T * divergence(p, softmax(z, T))
            entropy = -sum(x * math.log(x) for x in p if x)
            return [kd, -(T - 1) * renyi(q, 1 / T), (T - 1) * entropy, total]
        weights = {"kd": T**2, "ttm": 1, "wttm": sum(x ** (1 / T) for x in softmax(v, 1) if x)}
        return weights[name] * divergence(p, q)

    rows = zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True)
    return torch.tensor([of_row(*row) for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("name", [*LOSSES, "dkd", "decompose"])
@pytest.mark.parametrize("case", RULED_OUT)
@pytest.mark.parametrize("temperature", [0.5, 4.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_class_of_minus_infinity_is_ruled_out(name, case, temperature, dtype):
    z, v = pair(0, 5, dtype=dtype)
    for logits, classes in zip((v, z), RULED_OUT[case], strict=True):
        logits[:, classes] = -torch.inf
    labels = torch.arange(6) % 5
    functions = {k: lambda z, v, T, f=f: f(z, v, T, reduction="none") for k, f in LOSSES.items()}
    functions["dkd"] = lambda z, v, T: dkd_loss(z, v, labels, T, reduction="none")
    functions["decompose"] = lambda z, v, T: torch.stack(decompose_ttm(z, v, T), -1)

    z.requires_grad_()
    found = functions[name](z, v, temperature)
    expected = by_rows(name, z.detach(), v, temperature, labels)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {}
    torch.testing.assert_close(found.detach(), expected.to(found.dtype), **close)
    infinite = expected.isinf() if expected.ndim == 1 else expected.isinf().any(-1)
    assert infinite.any() == (case == "student")

    (gradient,) = torch.autograd.grad(found[~infinite].sum(), z)
    assert gradient.isfinite().all()
    assert not gradient[:, RULED_OUT[case][1]].any()
    if name in LOSSES:  # the closed form, too, has 0 where the exponential of -inf stands
        rows = [x.detach().double()[~infinite] for x in (z, v)]
        p, q = (rows[1] / temperature).softmax(-1), rows[0].softmax(-1)
        scale = torch.ones(1)
        if name == "kd":
            q, scale = (rows[0] / temperature).softmax(-1), temperature * scale
        if name == "wttm":
            scale = power_sum(rows[1].softmax(-1), 1 / temperature).unsqueeze(-1)
        torch.testing.assert_close(gradient[~infinite].double(), scale * (q - p), **BOUNDS[dtype])
        transformed = torch.func.grad(lambda x: functions[name](x, v, temperature).sum())(z)
        torch.testing.assert_close(transformed[~infinite], gradient[~infinite])


BOUNDS = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-13},
    torch.float32: {"rtol": 5e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-3},
}


def test_a_decomposition_leaves_out_what_the_mask_does():
    z, v = (x.reshape(2, 3, 5) for x in pair(0, 5))
    z[~COUNTS], v[~COUNTS] = math.nan, -torch.inf
    z.requires_grad_()
    terms = decompose_ttm(z, v, 4.0, mask=COUNTS)
    for term, expected in zip(terms, decompose_ttm(z[COUNTS], v[COUNTS], 4.0), strict=True):
        torch.testing.assert_close(term[COUNTS], expected)
        assert not term[~COUNTS].any()
    sum(term.sum() for term in terms).backward()
    assert z.grad.isfinite().all()
    assert not z.grad[~COUNTS].any()


def test_ruled_out_classes_agree_with_kl_div():
    z, v = pair(0, 10, dtype=torch.float32)
    z[:, 7:], v[:, 6:] = -torch.inf, -torch.inf
    p, log_q = (v.double() / 4).softmax(-1), z.double().log_softmax(-1)
    expected = F.kl_div(log_q[:, :7], p[:, :7], reduction="batchmean")
    torch.testing.assert_close(ttm_loss(z, v, 4.0), expected.float())
    z[:, 6] = -torch.inf
    # a class that nobody allows has probability 0 on both sides, where there is nothing to match
    both = [torch.cat([x[:, :6].softmax(-1), torch.zeros(6, 4)], 1) for x in (z / 4, v / 4)]
    between = [stats.pearsonr(a, b).statistic for a, b in zip(both[1], both[0], strict=True)]
    found = dist_loss(z.requires_grad_(), v, 4.0, within_weight=0)
    assert found.item() == pytest.approx(16 * (1 - np.mean(between)), rel=1e-5)
    assert torch.autograd.grad(found, z)[0].isfinite().all()


def test_not_a_number_stays_one():
    """Where classes are ruled out, a diverged model is not hidden."""
    labels = torch.zeros(1, dtype=torch.int64)
    for bad in (torch.nan, torch.inf):
        z, v = torch.tensor([[0.0, bad, -torch.inf]]), torch.tensor([[0.0, 1.0, -torch.inf]])
        for loss in (*LOSSES.values(), lambda z, v, T: dkd_loss(z, v, labels, T), dist_loss):
            assert loss(z, v, 2.0).isnan()
            assert loss(v, z, 2.0).isnan()
        assert decompose_ttm(z, v, 2.0).total.isnan()


@every_loss
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_loss_scale_above_the_largest_float16(name, reduction):
    """Mixed precision multiplies the loss by 65536 or more; float16 ends at 65504."""
    z, v = pair(0, 10, 0.1, dtype=torch.float16)

    def loss(x):
        return 1e5 * LOSSES[name](x, v, 4.0, reduction=reduction).sum()

    exact = gradient_of(loss, z.double())
    error = (gradient_of(loss, z).double() - exact).norm() / exact.norm()
    assert error <= 2e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 1, 4, 1e3, 1e6])
def test_decomposition_adds_up_to_rounding(dtype, temperature):
    z, v = pair(0, 1000, 5.0, dtype=dtype)
    terms = decompose_ttm(z, v, temperature)
    kd, renyi, teacher_entropy, total = (term.double() for term in terms)
    assert terms.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    largest = torch.stack([kd, renyi, teacher_entropy, total]).abs().amax(0)
    assert (
        (kd + renyi + teacher_entropy - total).abs()
        <= 8 * torch.finfo(terms.total.dtype).eps * largest
    ).all()
    # Each term is right on its own too, also where it is a small difference of large ones.
    exact = reference("kd", z, v, temperature)[0] / temperature
    if temperature <= 1e3:
        np.testing.assert_allclose(kd, exact, rtol=1e-6)


# Reductions, shapes, dtypes, who gets the gradient ------------------------------------------------


@every_loss
def test_reductions(name):
    z, v = (x.reshape(2, 3, 5) for x in pair(0, 5))
    loss = LOSSES[name]
    each = loss(z, v, 4.0, reduction="none")
    assert each.shape == (2, 3)
    torch.testing.assert_close(loss(z, v, 4.0, reduction="sum"), each.sum())
    # The mean is over samples, also for WTTM, whose weights do not add up to their number.
    torch.testing.assert_close(loss(z, v, 4.0), each.sum() / 6)
    torch.testing.assert_close(loss(z, v, 4.0, reduction="mean"), loss(z, v, 4.0))
    mean = gradient_of(lambda x: loss(x, v, 4.0), z)
    torch.testing.assert_close(mean, gradient_of(lambda x: each_mean(loss, x, v), z))
    assert loss(z[0, 0], v[0, 0], 4.0, reduction="none").shape == ()
    assert loss(z[:0], v[:0], 4.0, reduction="sum") == 0


def each_mean(loss, student, teacher):
    return loss(student, teacher, 4.0, reduction="none").mean()


@every_loss
def test_leading_shapes_broadcast(name):
    loss = LOSSES[name]
    students, _ = pair(0, 5, rows=12)
    students = students.reshape(2, 6, 5)
    _, teacher = pair(1, 5)
    for z, v in ((students, teacher), (teacher, students), (students[:, :1], teacher)):
        rows = torch.broadcast_tensors(z, v)
        torch.testing.assert_close(loss(z, v, 4.0), loss(*rows, 4.0))
        gradient = gradient_of(lambda x, v=v: loss(x, v, 4.0), z)
        expected = gradient_of(
            lambda x, v=v: loss(*(y.contiguous() for y in torch.broadcast_tensors(x, v)), 4.0), z
        )
        assert gradient.shape == z.shape
        torch.testing.assert_close(gradient, expected)


@every_loss
def test_the_teacher_gets_no_gradient(name):
    z, v = (x.requires_grad_() for x in pair(0, 5))
    LOSSES[name](z, v, 4.0).backward()
    assert z.grad is not None
    assert v.grad is None
    assert not LOSSES[name](z.detach(), v, 4.0).requires_grad


def test_inputs_are_left_alone():
    z, v = pair(0, 5)
    before = z.clone(), v.clone()
    for loss in LOSSES.values():
        gradient_of(lambda x, f=loss: f(x, v, 4.0), z)
        loss(z, v, 4.0)
    assert torch.equal(z, before[0])
    assert torch.equal(v, before[1])


@every_loss
@pytest.mark.parametrize("student", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("teacher", [torch.float16, torch.float32, torch.float64])
def test_dtypes(name, student, teacher):
    z, v = pair(0, 5)[0].to(student).requires_grad_(), pair(0, 5)[1].to(teacher)
    loss = LOSSES[name](z, v, 4.0)
    wide = torch.float64 in (student, teacher)
    assert loss.dtype == (torch.float64 if wide else torch.float32)
    assert torch.autograd.grad(loss, z)[0].dtype == student


def textbook(name, student, teacher, temperature):
    """The losses as usually written: softmax, power, normalise, kl_div."""
    T = temperature
    if name == "kd":
        log_q, p = F.log_softmax(student / T, -1), F.softmax(teacher / T, -1)
        return T**2 * F.kl_div(log_q, p, reduction="batchmean")
    powers = F.softmax(teacher, -1) ** (1 / T)
    weight = powers.sum(-1, keepdim=True)
    each = F.kl_div(F.log_softmax(student, -1), powers / weight, reduction="none").sum(-1)
    return (weight.squeeze(-1) * each).mean() if name == "wttm" else each.mean()


def kept_bytes(function, *arguments):
    sizes = []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*arguments)
    return sum(sizes)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 100), (256, 1000)])
def test_half_the_memory_is_kept_for_the_backward_pass(name, dtype, shape):
    z, v = pair(0, shape[1], rows=shape[0], dtype=dtype)
    z.requires_grad_()
    kept = kept_bytes(LOSSES[name], z, v, 4.0)
    assert kept <= kept_bytes(textbook, name, z, v, 4.0) / 2
    torch.testing.assert_close(
        LOSSES[name](z, v, 4.0).double(),
        textbook(name, z.double(), v.double(), 4.0),
        rtol=1e-5,
        atol=0,
    )


# Blocks of samples ------------------------------------------------------------------------------

BLOCKS = (1, 2, 3, 4, 5, 7, 100)


@every_loss
@pytest.mark.parametrize("dtype", RELATIVE_GRADIENT_ERROR, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_change_nothing(name, dtype, masked):
    """Nothing but the last digit: some processors round what is left over of a vector otherwise."""
    z, v = (x.reshape(2, 3, 4, 5) for x in pair(0, 5, rows=24, dtype=dtype))
    options = {"mask": torch.arange(24).reshape(2, 3, 4) % 3 > 0} if masked else {}
    if masked:
        z[~options["mask"]] = v[~options["mask"]] = math.nan
    for reduction, size in itertools.product(("none", "sum", "mean"), BLOCKS):
        options |= {"reduction": reduction}

        def loss(x, o=options, **more):
            return LOSSES[name](x, v, 4.0, **o, **more)

        tiny = 8 * torch.finfo(loss(z).dtype).eps
        torch.testing.assert_close(loss(z, chunk_size=size), loss(z), rtol=tiny, atol=tiny)
        whole, parts = (z.clone().requires_grad_() for _ in range(2))
        steps = torch.arange(loss(z).numel(), dtype=torch.float32).reshape(loss(z).shape) + 1
        (steps * loss(whole)).sum().backward()
        (steps * loss(parts, chunk_size=size)).sum().backward()
        assert parts.grad.dtype == dtype
        last_digit = {"rtol": max(tiny, torch.finfo(dtype).eps), "atol": steps.max().item() * tiny}
        torch.testing.assert_close(parts.grad, whole.grad, **last_digit)
        assert not parts.grad.requires_grad
        if masked:
            assert not parts.grad[~options["mask"]].any()


@every_loss
def test_blocks_of_shared_teachers_images_and_single_rows(name):
    students, _ = pair(0, 5, rows=12)
    students, (_, teacher) = students.reshape(2, 6, 5), pair(1, 5)
    loss = LOSSES[name]
    for z, v in ((students, teacher), (teacher, students), (students[0, 0], teacher[0])):
        found = gradient_of(lambda x, v=v: loss(x, v, 4.0, chunk_size=2), z)
        torch.testing.assert_close(found, gradient_of(lambda x, v=v: loss(x, v, 4.0), z))
    z, v = (x.reshape(2, 3, 4, 5).movedim(-1, 1).contiguous() for x in pair(0, 5, rows=24))
    found = gradient_of(lambda x: loss(x, v, 4.0, class_dim=1, chunk_size=5), z)
    torch.testing.assert_close(found, gradient_of(lambda x: loss(x, v, 4.0, class_dim=1), z))
    empty = torch.zeros(0, 5, requires_grad=True)
    loss(empty, empty, 4.0, reduction="sum", chunk_size=2).backward()
    assert empty.grad.shape == (0, 5)


@every_loss
def test_blocks_under_autograd(name):
    z, v = pair(0, 5)
    z.requires_grad_()

    def loss(x):
        return LOSSES[name](x, v, 3.0, chunk_size=4)

    assert torch.autograd.gradcheck(loss, z)
    value = loss(z)
    first = [torch.autograd.grad(value, z, retain_graph=True)[0].clone() for _ in range(2)]
    assert torch.equal(*first)  # asked twice, the second is not the first one's square
    assert torch.equal(first[0], torch.autograd.grad(value, z)[0])
    (gradient,) = torch.autograd.grad(loss(z), z, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()
    checkpointed = torch.utils.checkpoint.checkpoint(loss, z, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(checkpointed, z)[0], first[0])
    torch.testing.assert_close(torch.func.grad(loss)(z.detach()), first[0])
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(z), z)[0], first[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(z), value)


def test_blocks_keep_a_loss_scale_above_the_largest_float16():
    z, v = pair(0, 10, 0.1, dtype=torch.float16)
    exact = gradient_of(lambda x: 1e5 * ttm_loss(x, v, 4.0), z.double())
    found = gradient_of(lambda x: 1e5 * ttm_loss(x, v, 4.0, chunk_size=4), z)
    assert (found.double() - exact).norm() <= 2e-3 * exact.norm()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_vocabulary_takes_little_more_memory_than_the_gradient(name, dtype):
    """Above 2**24 logits without being asked; below, as much as it takes to compute at once."""
    classes = 50_257
    mask = torch.arange(400) % 7 > 0
    for options in ({}, {"mask": mask}):
        z, v = (torch.zeros(400, classes, dtype=dtype).uniform_(-9, 9) for _ in range(2))
        z.requires_grad_()
        with Allocated() as allocated:
            LOSSES[name](z, v, 2.0, **options).backward()
        assert allocated.most <= 1.2 * z.nbytes
        with torch.no_grad(), Allocated() as allocated:
            LOSSES[name](z, v, 2.0, **options)
        assert allocated.most <= 0.2 * z.nbytes
        rows = slice(0, 400, 80)  # some rows, each in float64
        counts = 400 if not options else int(mask.sum())
        expected = reference(name, z[rows], v[rows], 2.0)[1] / counts
        if options:
            expected *= mask[rows, None].numpy()
        error = np.linalg.norm(z.grad[rows].double().numpy() - expected)
        assert error <= RELATIVE_GRADIENT_ERROR[dtype] * np.linalg.norm(expected)


# Some classes, and all others as one ------------------------------------------------------------


@quick
@given(pairs, temperatures, st.integers(1, 100))
def test_merging_never_raises_the_divergence_nor_makes_it_negative(logits, temperature, kept):
    """Value and gradient from probabilities, added up in the plain way."""
    z, v = logits
    classes = v.topk(min(kept, v.shape[-1] - 1)).indices
    p, q = (v / temperature).softmax(-1), z.softmax(-1)
    sides = [x.gather(-1, classes) for x in (p, q)]
    left = [x.scatter(-1, classes, 0).sum(-1, keepdim=True) for x in (p, q)]
    expected = kl_divergence(*(torch.cat(x, -1) for x in zip(sides, left, strict=True)))

    def merged(x):
        target = merge_others(v / temperature, classes)
        return ttm_loss(merge_others(x, classes), target, 1.0, reduction="none")

    torch.testing.assert_close(merged(z), expected, rtol=1e-7, atol=1e-10)
    assert (merged(z) >= -1e-12).all()
    assert (merged(z) <= ttm_loss(z, v, temperature, reduction="none") + 1e-12).all()
    # the student learns the kept classes' probabilities, and shares the rest as before
    target = (q * left[0] / left[1]).scatter(-1, classes, sides[0])
    gradient = gradient_of(lambda x: merged(x).sum(), z)
    torch.testing.assert_close(gradient, q - target, rtol=1e-6, atol=1e-9)


def test_merging_all_classes_or_ruled_out_ones_leaves_the_loss():
    z, v = pair(0, 5)
    z[0, 3:] = v[:, 3:] = -torch.inf
    for count in (3, 4, 5):
        classes = torch.arange(5).expand(6, 5)[:, :count].int()

        def merged(x, classes=classes):
            return ttm_loss(merge_others(x, classes), merge_others(v / 4, classes), 1.0)

        torch.testing.assert_close(merged(z), ttm_loss(z, v, 4.0))
        exact = gradient_of(lambda x: ttm_loss(x, v, 4.0), z)
        torch.testing.assert_close(gradient_of(merged, z), exact)
    half = merge_others(z.bfloat16(), classes)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, merge_others(z.bfloat16().float(), classes))


def test_what_cannot_be_merged_is_named():
    z, _ = pair(0, 5)
    with pytest.raises(ValueError, match=r"topk\(k\).indices, got torch.float32"):
        merge_others(z, torch.ones(6, 2))
    with pytest.raises(ValueError, match=r"each row of logits \(6, 5\).*\(3, 2\)"):
        merge_others(z, torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="floating point"):
        merge_others(z.long(), torch.ones(6, 2, dtype=torch.int64))


# Autograd, transforms, autocast, compile ----------------------------------------------------------


@every_loss
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradcheck(name, reduction):
    z, v = pair(0, 5, rows=3)
    z.requires_grad_()
    for T in (0.5, 1, 3.0):
        assert torch.autograd.gradcheck(
            lambda x, T=T: LOSSES[name](x, v, T, reduction=reduction), z, check_batched_grad=True
        )


@every_loss
def test_second_derivatives_are_refused_not_wrong(name):
    z, v = pair(0, 5)
    z.requires_grad_()
    # The other term has a second derivative, so a missing one would go unnoticed.
    loss = F.cross_entropy(z, v.argmax(-1)) + LOSSES[name](z, v, 4.0)
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*torch\.func"):
        gradient.square().sum().backward()


@every_loss
def test_second_derivatives_by_torch_func(name):
    """Fact 4.3: the Hessians are weight * (diag(q) - q q^T)."""
    (z,), (v,) = pair(0, 5, rows=1)
    T = 3.0
    q = (z / T if name == "kd" else z).softmax(-1)
    weight = power_sum(v.softmax(-1), 1 / T) if name == "wttm" else 1.0
    hessian = torch.func.hessian(lambda x: LOSSES[name](x, v, T))(z)
    torch.testing.assert_close(hessian, weight * (q.diag() - q.outer(q)))
    if name == "ttm":
        z.requires_grad_()
        assert torch.autograd.gradgradcheck(lambda x: decompose_ttm(x, v, T).total, z)


@every_loss
def test_vmap_and_grad(name):
    z, v = pair(0, 5)
    loss = LOSSES[name]
    each = loss(z, v, 4.0, reduction="none")
    torch.testing.assert_close(torch.func.vmap(lambda a, b: loss(a, b, 4.0))(z, v), each)
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(lambda a, b: loss(a, b, 4.0)))(z, v),
        gradient_of(lambda x: loss(x, v, 4.0, reduction="sum"), z),
    )
    students = torch.stack([z, z.flip(0)])
    torch.testing.assert_close(
        torch.func.vmap(lambda a: loss(a, v, 4.0))(students),
        torch.stack([loss(z, v, 4.0), loss(z.flip(0), v, 4.0)]),
    )
    torch.testing.assert_close(
        torch.func.vmap(lambda b: loss(z, b, 4.0))(students),
        torch.stack([loss(z, z, 4.0), loss(z, z.flip(0), 4.0)]),
    )


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name, dtype):
    z, v = pair(0, 100, 10.0, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        inside = LOSSES[name](z, v, 10.0)
        gradient = gradient_of(lambda x: LOSSES[name](x, v, 10.0), z)
        terms = decompose_ttm(z, v, 10.0)
    assert torch.equal(inside, LOSSES[name](z, v, 10.0))
    assert torch.equal(gradient, gradient_of(lambda x: LOSSES[name](x, v, 10.0), z))
    assert torch.equal(terms.total, decompose_ttm(z, v, 10.0).total)


@every_loss
def test_compiles_as_one_graph(name):
    """Without a compiler: what torch.compile traces, run by torch's own kernels."""
    torch._dynamo.reset()
    z, v = pair(0, 10, dtype=torch.float32)
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    for T in (4.0, 2.0):  # the second temperature is traced as a variable
        torch.testing.assert_close(
            gradient_of(lambda x, T=T: compiled(x, v, T), z),
            gradient_of(lambda x, T=T: LOSSES[name](x, v, T), z),
        )
    assert not compiled(z, v, 2.0).requires_grad


@every_loss
def test_an_exported_loss_has_its_gradient(name):
    class Loss(torch.nn.Module):
        def forward(self, z, v):
            return LOSSES[name](z, v, 4.0)

    z, v = pair(0, 10, dtype=torch.float32)
    z[:, 9] = v[:, 8:] = -torch.inf
    z[:, 8] = -torch.inf
    exported = torch.export.export(Loss(), (z.clone().requires_grad_(), v)).module()
    torch.testing.assert_close(
        gradient_of(lambda x: exported(x, v), z), gradient_of(lambda x: Loss()(x, v), z)
    )
    rows = {0: torch.export.Dim("rows", min=2)}  # of any number, however many logits that makes
    program = torch.export.export(Loss(), (z, v), dynamic_shapes=(rows, rows))
    torch.testing.assert_close(program.module()(z[:4], v[:4]), Loss()(z[:4], v[:4]))


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++"))
    or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="torch.compile's default backend needs g++ or clang++, and Python's C headers",
)


@needs_compiler
def test_compiled_by_inductor():
    torch._dynamo.reset()
    z, v = pair(0, 100, dtype=torch.float32)

    def both(x):
        return torch.stack([wttm_loss(x, v, 4.0), kd_loss(x, v, 4.0)])

    compiled = torch.compile(both, fullgraph=True)
    torch.testing.assert_close(compiled(z), both(z))
    torch.testing.assert_close(
        gradient_of(lambda x: compiled(x).sum(), z), gradient_of(lambda x: both(x).sum(), z)
    )


# Baselines ----------------------------------------------------------------------------------------


def dkd_reference(z, v, labels, T, target_weight=1.0, nontarget_weight=8.0):
    """Zhao et al. 2022, Eq. 7, one sample at a time."""
    total = []
    for student, teacher, label in zip(z.double(), v.double(), labels, strict=True):
        p, q = (teacher / T).softmax(-1), (student / T).softmax(-1)
        others = torch.arange(len(p)) != label
        target = stats.entropy([p[label], p[others].sum()], [q[label], q[others].sum()])
        nontarget = stats.entropy(p[others] / p[others].sum(), q[others] / q[others].sum())
        total.append(T**2 * (target_weight * target + nontarget_weight * nontarget))
    return torch.tensor(np.array(total))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_dkd_against_its_definition(classes):
    z, v = pair(0, classes)
    labels = torch.arange(6) % classes
    for T in (1, 4.0):
        torch.testing.assert_close(
            dkd_loss(z, v, labels, T, reduction="none"), dkd_reference(z, v, labels, T)
        )
    torch.testing.assert_close(
        dkd_loss(z, v, labels, 4.0, target_weight=0, nontarget_weight=2),
        dkd_reference(z, v, labels, 4.0, 0, 2).mean(),
    )


def test_dkd_contains_kd():
    """KD = TCKD + (1 - p_T[label]) NCKD, Eq. 5 of the paper."""
    z, v = pair(0, 10)
    labels, T = torch.arange(6), 4.0
    options = {"reduction": "none"}
    target = dkd_loss(z, v, labels, T, target_weight=1, nontarget_weight=0, **options)
    nontarget = dkd_loss(z, v, labels, T, target_weight=0, nontarget_weight=1, **options)
    missed = 1 - temperature_softmax(v, T).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(target + missed * nontarget, kd_loss(z, v, T, **options))


def dist_reference(z, v, T, between_weight=1.0, within_weight=1.0):
    """Huang et al. 2022, with scipy's correlation."""
    p, q = (v.double() / T).softmax(-1).numpy(), (z.double() / T).softmax(-1).numpy()
    between = np.mean([stats.pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)])
    within = np.mean([stats.pearsonr(a, b).statistic for a, b in zip(p.T, q.T, strict=True)])
    return T**2 * (between_weight * (1 - between) + within_weight * (1 - within))


def test_dist_against_its_definition():
    z, v = pair(0, 10)
    for T in (1, 4.0):
        assert dist_loss(z, v, T).item() == pytest.approx(dist_reference(z, v, T), rel=1e-5)
    weighted = dist_loss(z, v, 2.0, between_weight=2, within_weight=0)
    assert weighted.item() == pytest.approx(dist_reference(z, v, 2.0, 2, 0), rel=1e-5)
    batch = dist_loss(z.reshape(2, 3, 10), v.reshape(2, 3, 10), 4.0)
    torch.testing.assert_close(batch, dist_loss(z, v, 4.0))
    assert dist_loss(v, v, 4.0).item() == pytest.approx(0, abs=1e-4)


def baselines():
    labels = torch.arange(6) % 5
    return {
        "dkd": lambda z, v, T=4.0: dkd_loss(z, v, labels, T),
        "dist": lambda z, v, T=4.0: dist_loss(z, v, T),
    }


@pytest.mark.parametrize("name", ["dkd", "dist"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_baselines_survive_sharp_logits(name, dtype):
    """At scale 50 and T = 1 log(1 - p) is -inf if computed from p."""
    z, v = pair(0, 5, 50.0, dtype=dtype)
    z.requires_grad_()
    loss = baselines()[name](z, v, 1)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert z.grad.isfinite().all()
    assert z.grad.dtype == dtype
    # The definition itself, computed in the margins' favour: float64 still resolves 1 - p here.
    exact = baselines()[name](z.detach().double(), v.double(), 1)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["dkd", "dist"])
def test_baselines_differentiate_and_transform(name):
    loss = baselines()[name]
    z, v = pair(0, 5)
    assert torch.autograd.gradcheck(lambda x: loss(x, v), z.clone().requires_grad_())
    students = torch.stack([z, z.flip(0)])
    torch.testing.assert_close(
        torch.func.vmap(lambda x: loss(x, v))(students),
        torch.stack([loss(z, v), loss(z.flip(0), v)]),
    )
    teacher = v.clone().requires_grad_()
    assert not loss(z, teacher).requires_grad
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, v), loss(z, v))


@pytest.mark.parametrize("loss", [KDLoss(2.0), TTMLoss(4.0), WTTMLoss(4.0), DKDLoss(4.0)])
def test_standardized_logits_against_their_definition(loss):
    """Sun et al. 2024: z-scores as scipy computes them go into the loss, the gradient through."""
    z, v = pair(0, 10)
    labels = [torch.arange(6) % 10] if isinstance(loss, DKDLoss) else []
    rows = [torch.from_numpy(stats.zscore(x.numpy(), axis=1, ddof=1)) for x in (z, v)]
    got = StandardizedLoss(loss)(z, v, *labels)
    torch.testing.assert_close(got, loss(*rows, *labels), rtol=1e-6, atol=0)
    # neither the scale of the logits nor a shift is left
    moved = StandardizedLoss(loss)(3 * z - 5, 0.1 * v + 7, *labels)
    torch.testing.assert_close(moved, got, rtol=1e-5, atol=0)

    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: StandardizedLoss(loss)(x, v, *labels), z)
    StandardizedLoss(loss)(z, v, *labels).backward()
    assert z.grad.sum(1).abs().max() < 1e-12
    assert (z.grad * z).sum(1).abs().max() < 1e-6  # no gain in a larger scale


def test_standardized_kd_of_two_classes_has_a_closed_form():
    """Two logits a row: z-scores are -1 / sqrt(2) and 1 / sqrt(2), whatever the logits."""
    z, v = torch.tensor([[0.0, 3.0], [1.0, 9.0]]), torch.tensor([[5.0, 6.0], [6.0, 5.0]])
    p = 1 / (1 + math.exp(-(2**0.5) / 2.0))
    wrong_way = 4 * (2 * p - 1) * math.log(p / (1 - p))
    got = StandardizedLoss(KDLoss(2.0, reduction="none"))(z, v)
    assert got.tolist() == pytest.approx([0, wrong_way], abs=1e-6)


def test_standardized_losses_take_half_precision_and_flat_rows():
    for dtype in (torch.float16, torch.float32):
        z, v = pair(0, 10, dtype=dtype)
        if dtype == torch.float32:
            z[0] = 2
        z.requires_grad_()
        loss = StandardizedLoss(KDLoss(2.0))(z, v)
        loss.backward()
        assert loss.dtype == torch.float32
        assert z.grad.dtype == dtype
        assert z.grad.isfinite().all()
        exact = StandardizedLoss(KDLoss(2.0))(z.detach().double(), v.double())
        assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    with pytest.raises(ValueError, match="different numbers of classes"):
        StandardizedLoss(KDLoss(2.0))(z, v[:, :9])


@pytest.mark.parametrize("loss", [KDLoss(2.0), TTMLoss(4.0), WTTMLoss(4.0)])
def test_standardized_logits_leave_out_what_is_ruled_out(loss):
    z, v = pair(0, 5)
    filled = [torch.cat([x, torch.full((6, 2), -torch.inf, dtype=x.dtype)], 1) for x in (z, v)]
    found = StandardizedLoss(loss)(filled[0].requires_grad_(), filled[1])
    torch.testing.assert_close(found, StandardizedLoss(loss)(z, v))
    (gradient,) = torch.autograd.grad(found, filled[0])
    exact = gradient_of(lambda x: StandardizedLoss(loss)(x, v), z)
    torch.testing.assert_close(gradient[:, :5], exact)
    assert not gradient[:, 5:].any()
    filled[1][:, :4] = -torch.inf  # one class is left to the teacher: no spread
    assert gradient_of(lambda x: StandardizedLoss(loss)(x, filled[1]), filled[0]).isfinite().all()


def test_decomposition_needs_no_float64_on_the_device():
    z, v = pair(0, 10, dtype=torch.float32)
    expected = decompose_ttm(z.double(), v.double(), 4.0)
    with device_without_float64():
        terms = decompose_ttm(z, v, 4.0)
    for term, exact in zip(terms, expected, strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term.double(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [KDLoss, TTMLoss, WTTMLoss, DKDLoss, DISTLoss])
@pytest.mark.parametrize("wrap", [lambda loss: loss, StandardizedLoss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_need_no_float64_on_the_device(kind, wrap, dtype):
    z, v = (x.to(dtype) for x in pair(0, 10, dtype=torch.float32))
    loss, labels = wrap(kind(4.0)), [torch.arange(6)] if kind is DKDLoss else []

    def found():
        student = z.clone().requires_grad_()
        value = loss(student, v, *labels)
        return [value.detach(), *torch.autograd.grad(value, student)]

    expected = found()
    with device_without_float64():
        got = found()
    assert all(map(torch.equal, got, expected))


# Modules ------------------------------------------------------------------------------------------


def test_modules_call_their_functions():
    z, v = pair(0, 5)
    labels = torch.arange(6) % 5
    assert torch.equal(KDLoss(4)(z, v), kd_loss(z, v, 4))
    assert torch.equal(TTMLoss(4, reduction="sum")(z, v), ttm_loss(z, v, 4, reduction="sum"))
    assert torch.equal(WTTMLoss(4)(z, v), wttm_loss(z, v, 4))
    dkd = DKDLoss(4, target_weight=2, nontarget_weight=3, reduction="none")
    expected = dkd_loss(z, v, labels, 4, target_weight=2, nontarget_weight=3, reduction="none")
    assert torch.equal(dkd(z, v, labels), expected)
    dist = DISTLoss(4, between_weight=2, within_weight=3)
    assert torch.equal(dist(z, v), dist_loss(z, v, 4, between_weight=2, within_weight=3))
    assert "temperature=4" in repr(KDLoss(4))
    assert not list(WTTMLoss(4).state_dict())


@pytest.mark.parametrize(
    ("loss", "function"),
    [(KDLoss, kd_loss), (WTTMLoss, wttm_loss), (DKDLoss, dkd_loss), (DISTLoss, dist_loss)],
)
def test_a_module_shows_and_takes_the_settings_of_its_function(loss, function):
    parameters = inspect.signature(function).parameters
    settings = list(parameters)[list(parameters).index("temperature") :]
    settings.remove("mask")  # of a batch, not of a loss
    assert list(inspect.signature(loss).parameters) == settings
    made = loss(temperature=2.0)
    # those not given are shown as well, since a run is known by them; but not those that came later
    for name in settings[1:]:
        shown = f"{name}={parameters[name].default!r}" in repr(made)
        assert shown == (name not in ("class_dim", "chunk_size"))
    assert "class_dim=1" in repr(loss(2.0, class_dim=1))
    with pytest.raises(TypeError, match="'gamma'"):
        loss(2.0, gamma=0.5)


# Bad input ----------------------------------------------------------------------------------------

Z = torch.zeros(4, 3)
NAN = torch.tensor([[math.nan, 0.0, 1.0]])
LABELS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda f: f(Z, torch.zeros(5, 3), 4.0),
            ValueError,
            r"\(4, 3\).*\(5, 3\) do not broadcast",
        ),
        (lambda f: f(Z, torch.zeros(4, 7), 4.0), ValueError, "different numbers of classes"),
        (lambda f: f(Z, torch.zeros(4, 1), 4.0), ValueError, "K >= 2"),
        (lambda f: f(Z[:, :1], Z[:, :1], 4.0), ValueError, "K >= 2"),
        (lambda f: f(Z.long(), Z, 4.0), TypeError, r"student_logits .* torch.int64.*\.float\(\)"),
        (lambda f: f(Z, Z.int(), 4.0), TypeError, "teacher_logits .* torch.int32"),
        (lambda f: f(Z.numpy(), Z, 4.0), TypeError, "student_logits must be a torch.Tensor"),
        (lambda f: f(Z, Z, 0), ValueError, "temperature must be positive and finite, got 0"),
        (lambda f: f(Z, Z, -2.0), ValueError, "got -2.0"),
        (lambda f: f(Z, Z, math.nan), ValueError, "got nan"),
        (lambda f: f(Z, Z, math.inf), ValueError, "got inf"),
        (lambda f: f(Z, Z, "4"), TypeError, "must be a number"),
        (lambda f: f(Z, Z, None), TypeError, "not NoneType"),
        (
            lambda f: f(NAN, NAN * 0, 4.0, check_finite=True),
            ValueError,
            "student_logits hold 1 rows",
        ),
        (
            lambda f: f(Z[:2], -1 / Z[:2], 4.0, check_finite=True),
            ValueError,
            "teacher_logits hold 2 rows .* nothing but -inf.*a finite logit",
        ),
        (
            lambda f: f(Z, Z.softmax(-1), 4.0, check_finite=True),
            ValueError,
            "every row of teacher_logits sums to 1 .* log-probabilities",
        ),
    ],
)
@pytest.mark.parametrize("name", [*LOSSES, "dkd", "dist"])
def test_bad_logits_and_temperatures(name, call, error, message):
    functions = {
        **LOSSES,
        "dist": dist_loss,
        "dkd": lambda z, v, T, **options: dkd_loss(z, v, LABELS[: len(z)], T, **options),
    }
    with pytest.raises(error, match=message):
        call(functions[name])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: kd_loss(Z, Z, 4.0, reduction="batchmean"),
            ValueError,
            '"none", "mean" or "sum".*batchmean',
        ),
        (lambda: WTTMLoss(4.0, reduction="avg"), ValueError, "avg"),
        (lambda: TTMLoss(-1), ValueError, "got -1"),
        (lambda: DKDLoss(4.0, target_weight=-1), ValueError, "target_weight .* -1"),
        (lambda: dist_loss(Z, Z, 4.0, within_weight=math.nan), ValueError, "within_weight"),
        (lambda: dkd_loss(Z, Z, LABELS + 3, 4.0), ValueError, "between 0 and 2, got 3 to 3"),
        (lambda: dkd_loss(Z, Z, LABELS - 1, 4.0), ValueError, "got -1 to -1"),
        (lambda: dkd_loss(Z, Z, LABELS.float(), 4.0), TypeError, r"torch.float32.*labels.long\(\)"),
        (lambda: dkd_loss(Z, Z, LABELS[:2], 4.0), ValueError, r"shape \(2,\).*shape \(4,\)"),
        (lambda: dkd_loss(Z, Z, [0, 0, 0, 0], 4.0), TypeError, r"torch.as_tensor\(labels\)"),
        (lambda: decompose_ttm(Z, Z, 0.0), ValueError, "temperature"),
        (lambda: kd_loss(Z, Z, 4.0, chunk_size=0), ValueError, "chunk_size .* got 0"),
        (lambda: kd_loss(Z, Z, 4.0, chunk_size=2.0), ValueError, "chunk_size .* got 2.0"),
        (lambda: kd_loss(Z, Z, 4.0, mask=LABELS), TypeError, r"torch.int64.*\.bool\(\)"),
        (lambda: kd_loss(Z, Z, 4.0, mask=[True] * 4), TypeError, "got list"),
        (lambda: kd_loss(Z, Z, 4.0, mask=Z > 0), ValueError, r"shape \(4, 3\).* shape \(4,\)"),
        (lambda: kd_loss(SimpleNamespace(logits=Z), Z, 4.0), TypeError, r"pass its \.logits"),
        (
            lambda: ttm_loss(Z, torch.zeros(4, 8), 4.0),
            ValueError,
            r"If only padding follows the first 3 .* slice teacher_logits\[\.\.\., :3\]",
        ),
        (
            lambda: ttm_loss(torch.zeros(4, 8), Z, 4.0),
            ValueError,
            r"slice student_logits\[\.\.\., :3\]",
        ),
    ],
)
def test_other_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("number", [np.int8(16), np.uint8(20), np.float16(3), np.longdouble(3)])
def test_temperatures_of_small_numpy_kinds_count_fully(number):
    """16**2 does not fit into int8, and 1 / 3 in 16 bits is not a third."""
    z, v = pair(0, 5)
    for loss in (*LOSSES.values(), dist_loss):
        assert torch.equal(loss(z, v, number), loss(z, v, float(number)))
    assert torch.equal(KDLoss(number)(z, v), kd_loss(z, v, float(number)))
    assert torch.equal(decompose_ttm(z, v, number).kd, decompose_ttm(z, v, float(number)).kd)


@pytest.mark.parametrize("name", [*LOSSES, "dkd", "dist"])
def test_a_batch_of_none_has_a_sum_but_no_mean(name):
    z = torch.zeros(0, 3, requires_grad=True)
    labels = [torch.zeros(0, dtype=torch.int64)] if name == "dkd" else []
    loss = (LOSSES | {"dkd": dkd_loss, "dist": dist_loss})[name]
    with pytest.raises(ValueError, match=r"\(0, 3\) hold no samples.*leave empty batches out"):
        loss(z, z, *labels, 4.0)
    if name != "dist":
        assert loss(z, z, *labels, 4.0, reduction="none").shape == (0,)
        total = loss(z, z, *labels, 4.0, reduction="sum")
        total.backward()
        assert total == 0


def test_finite_check_lets_classes_be_ruled_out():
    z, v = (F.pad(x, (0, 1), value=-torch.inf) for x in pair(0, 5))
    assert kd_loss(z, v, 4.0, check_finite=True) == kd_loss(z, v, 4.0)
    log_p = v.log_softmax(-1)
    torch.testing.assert_close(kd_loss(z, log_p, 4.0, check_finite=True), kd_loss(z, v, 4.0))


def test_finite_check_is_off_by_default_and_skipped_inside_transforms():
    assert kd_loss(NAN, NAN, 4.0).isnan()
    mapped = torch.func.vmap(lambda z: kd_loss(z, z, 4.0, check_finite=True))(Z)
    assert torch.equal(mapped, torch.zeros(4))
