"""The functions on the simplex against float64 closed forms, scipy and autograd."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import device_without_float64
from scipy import special, stats

from ttm_lab.probability import (
    kl_divergence,
    largest_temperature,
    power_sum,
    power_transform,
    renyi_entropy,
    shannon_entropy,
    temperature_softmax,
)

quick = settings(max_examples=50, deadline=None)  # no time limit: machines differ
SIZES = (2, 3, 10, 100, 1000, 30_000)
temperatures = st.floats(0.5, 20)
exponents = st.floats(0.05, 1)
seeds = st.integers(0, 2**32 - 1)


def logits(seed, classes, scale, rows=4):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


cases = st.builds(
    logits, seeds, st.sampled_from((2, 3, 10, 100)), st.sampled_from((0.3, 1.0, 3.0, 8.0))
)


# Exact statements (claims A1 and A6) --------------------------------------------------------------


@quick
@given(cases, temperatures)
def test_temperature_is_a_power_transform(v, temperature):
    tempered = temperature_softmax(v, temperature)
    transformed = power_transform(temperature_softmax(v, 1), 1 / temperature)
    assert (tempered - transformed).abs().max() <= 1e-14
    expected = special.softmax(v.numpy() / temperature, axis=-1)
    np.testing.assert_allclose(tempered, expected, rtol=1e-12)


@quick
@given(cases, exponents)
def test_power_transform_forgets_the_normaliser(v, exponent):
    p = v.softmax(-1)
    torch.testing.assert_close(power_transform(7 * p, exponent), power_transform(p, exponent))


@quick
@given(cases, exponents)
def test_power_sum_is_bounded_and_is_a_renyi_entropy(v, exponent):
    p, classes = v.softmax(-1), v.shape[-1]
    weight = power_sum(p, exponent)
    assert (weight >= 1 - 1e-12).all()
    assert (weight <= classes ** (1 - exponent) * (1 + 1e-12)).all()
    torch.testing.assert_close(
        weight.log(), (1 - exponent) * renyi_entropy(p, exponent), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("exponent", [0.1, 0.5, 0.9])
def test_power_sum_reaches_its_bounds(exponent):
    uniform, one_hot = torch.full((10,), 0.1), torch.eye(10)[3]
    torch.testing.assert_close(power_sum(uniform, exponent), torch.tensor(10 ** (1 - exponent)))
    assert power_sum(one_hot, exponent) == 1


@quick
@given(cases, st.floats(0.05, 0.95))
def test_power_sum_after_normalising_is_always_one(v, exponent):
    """The pitfall that silently turns WTTM into TTM."""
    p = v.softmax(-1)
    torch.testing.assert_close(
        power_transform(p, exponent).sum(-1), torch.ones(len(p), dtype=p.dtype)
    )
    assert (power_sum(p, exponent) > 1 + 1e-12).any()


@pytest.mark.parametrize("exponent", [0.1, 0.5, 0.9])
def test_power_sum_ranks_like_entropy(exponent):
    rows = [logits(i, 100, scale, rows=20) for i, scale in enumerate((0.5, 1, 2, 4, 8))]
    p = torch.cat(rows).softmax(-1)
    rank = stats.spearmanr(power_sum(p, exponent), shannon_entropy(p)).statistic
    assert rank > 0.98


@quick
@given(cases, st.floats(1, 20))
def test_temperature_above_one_smooths(v, temperature):
    p = v.softmax(-1)
    assert (
        shannon_entropy(temperature_softmax(v, temperature)) >= shannon_entropy(p) - 1e-12
    ).all()
    assert (renyi_entropy(p, 1 / temperature) >= shannon_entropy(p) - 1e-12).all()


def test_limits_of_the_exponent():
    p = logits(0, 10, 3.0).softmax(-1)
    torch.testing.assert_close(power_transform(p, 1), p, rtol=0, atol=1e-15)
    uniform = torch.full_like(p, 0.1)
    distances = [(power_transform(p, g) - uniform).abs().max() for g in (1e-2, 1e-3, 1e-4)]
    assert distances[-1] < 1e-3  # and it is the uniform one at rate gamma
    assert distances[0] / distances[2] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("number", [np.uint8(2), np.int8(100), np.float16(0.3)])
def test_small_numpy_kinds_of_numbers_count_fully(number):
    """1 - 2 is 255 as uint8."""
    p, plain = logits(0, 10, 3.0).softmax(-1), number.item()
    for function in (renyi_entropy, power_sum, power_transform, temperature_softmax):
        assert torch.equal(function(p, number), function(p, plain))


# The rule for a temperature ---------------------------------------------------------------------


@pytest.mark.parametrize("nats", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_temperature_costs_what_it_may(nats, dtype):
    v = torch.stack([logits(0, 50, 3.0), logits(1, 50, 1.0)]).to(dtype)
    v[0, :, 40:] = -torch.inf
    T = largest_temperature(v, nats)

    def cost(temperature):
        p, p_T = (special.softmax(v.double().numpy() / t, axis=-1) for t in (1, temperature))
        return stats.entropy(p, p_T, axis=-1).mean()

    assert cost(T) == pytest.approx(nats, rel=1e-3 if dtype == torch.float32 else 1e-6)
    assert cost(1.01 * T) > nats > cost(T / 1.01)


def test_no_function_needs_float64_on_the_device():
    v = logits(0, 50, 3.0).float().requires_grad_()

    def found():
        p, q = temperature_softmax(v, 4.0), v.softmax(-1)
        values = [power_transform(q, 0.25), power_sum(q, 0.25), kl_divergence(p, q)]
        values += [shannon_entropy(q), renyi_entropy(q, 0.25)]
        (slope,) = torch.autograd.grad(sum(value.sum() for value in values), v)
        return [p, *values, slope, torch.tensor(largest_temperature(v, 0.1))]

    expected = found()
    with device_without_float64():
        got = found()
    assert all(map(torch.equal, got, expected))


def test_more_classes_bear_less_temperature():
    """Zipf's law over the classes, p proportional to 1 / rank: T has to fall as they grow."""
    found = [largest_temperature(-torch.arange(1.0, k + 1).log(), 0.1) for k in (10, 1000, 50_000)]
    assert found[0] > found[1] > found[2] > 1
    with pytest.raises(ValueError, match=r"by 2\.0 nats, but by at most"):
        largest_temperature(-torch.arange(1.0, 11).log(), 2.0)
    for wrong, words in ((torch.zeros(0, 3), "hold no rows"), (torch.zeros(3, 1), "K >= 2")):
        with pytest.raises(ValueError, match=words):
            largest_temperature(wrong, 0.1)
    with pytest.raises(ValueError, match="nats must be positive"):
        largest_temperature(torch.zeros(1, 3), 0.0)


# Values -------------------------------------------------------------------------------------------


def test_entropies_and_divergence_agree_with_scipy():
    p, q = logits(0, 10, 3.0).softmax(-1), logits(1, 10, 3.0).softmax(-1)
    np.testing.assert_allclose(shannon_entropy(p), stats.entropy(p, axis=-1), rtol=1e-13)
    np.testing.assert_allclose(kl_divergence(p, q), stats.entropy(p, q, axis=-1), rtol=1e-12)


@pytest.mark.parametrize("order", [0.05, 0.3, 0.89, 0.91, 1.09, 1.11, 2.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 10, 30_000])
def test_renyi_entropy_against_its_definition(order, dtype, classes):
    p = torch.cat([logits(0, classes, scale) for scale in (0.0, 1.0, 5.0)]).softmax(-1).to(dtype)
    exact = p.double() / p.double().sum(-1, keepdim=True)
    expected = special.logsumexp(order * exact.log().numpy(), axis=-1) / (1 - order)
    tolerance = 1e-12 if dtype == torch.float64 else 5e-6
    np.testing.assert_allclose(renyi_entropy(p, order), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9])
def test_renyi_entropy_is_continuous_at_order_one(step):
    p = logits(0, 100, 2.0).softmax(-1).float()
    for order in (1 - step, 1 + step):
        torch.testing.assert_close(
            renyi_entropy(p, order), shannon_entropy(p), rtol=3 * step + 1e-6, atol=1e-6
        )
    assert torch.equal(renyi_entropy(p, 1), shannon_entropy(p))


def test_zero_probabilities():
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    log2 = pytest.approx(math.log(2), abs=1e-15)
    assert shannon_entropy(p).item() == log2
    assert renyi_entropy(p, 0.5).item() == log2
    assert renyi_entropy(p, 1.01).item() == log2
    assert kl_divergence(p, q).item() == log2
    assert kl_divergence(q, p).item() == math.inf
    assert power_transform(p, 0.5).tolist() == [0.5, 0.5, 0.0]
    functions = (
        shannon_entropy,
        lambda x: renyi_entropy(x, 0.5),
        lambda x: renyi_entropy(x, 1.05),
        lambda x: renyi_entropy(x, 3.0),
        lambda x: kl_divergence(x, q),
        lambda x: power_sum(x, 0.5),
        lambda x: power_transform(x, 0.5)[0],
    )
    for function in functions:
        (gradient,) = torch.autograd.grad(function(p), p)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1, 4])
def test_a_logit_of_minus_infinity_has_probability_zero(temperature):
    v = torch.cat([logits(0, 5, 2.0), torch.full((4, 1), -torch.inf).double()], 1)
    v.requires_grad_()
    p = temperature_softmax(v, temperature)
    np.testing.assert_allclose(
        p.detach(), special.softmax(v.detach().numpy() / temperature, axis=-1), rtol=1e-12
    )
    for function in (shannon_entropy, lambda x: power_sum(x, 0.5), lambda x: renyi_entropy(x, 0.5)):
        (gradient,) = torch.autograd.grad(function(p).sum(), v, retain_graph=True)
        assert gradient.isfinite().all()
        assert not gradient[:, 5].any()


def test_large_exponents_and_orders_do_not_underflow():
    p = torch.full((1000,), 1e-3)
    torch.testing.assert_close(power_transform(p, 40.0), p)
    assert renyi_entropy(p, 40.0).item() == pytest.approx(math.log(1000), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_temperature_softmax_precision(dtype):
    limit = 1e-12 if dtype == torch.float64 else 2e-6
    for classes, scale, temperature in itertools.product(
        SIZES, (0.3, 3.0, 50.0, 300.0), (0.5, 1, 4, 20)
    ):
        v = (logits(0, classes, scale, rows=2) + 1000).to(dtype)
        result = temperature_softmax(v, temperature)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected = special.softmax(v.double().numpy() / temperature, axis=-1)
        error = np.abs(result.double().numpy() - expected).sum(-1).max() / 2
        assert error <= limit, (classes, scale, temperature)


def test_leading_shapes_and_gradients():
    v = logits(0, 5, 1.0, rows=6).reshape(2, 3, 5)
    p, q = v.softmax(-1), v.flip(0).softmax(-1)
    assert temperature_softmax(v, 2).shape == power_transform(p, 0.5).shape == (2, 3, 5)
    for value in (power_sum(p, 0.5), shannon_entropy(p), renyi_entropy(p, 0.5)):
        assert value.shape == (2, 3)
    assert kl_divergence(p, q[0]).shape == (2, 3)
    assert shannon_entropy(p[0, 0]).shape == ()
    functions = (
        lambda x: temperature_softmax(x, 2.5),
        lambda x: power_transform(x.softmax(-1), 0.3),
        lambda x: power_sum(x.softmax(-1), 0.3),
        lambda x: shannon_entropy(x.softmax(-1)),
        lambda x: renyi_entropy(x.softmax(-1), 0.3),
        lambda x: renyi_entropy(x.softmax(-1), 0.99),
        lambda x: kl_divergence(x.softmax(-1), q),
        lambda x: kl_divergence(q, x.softmax(-1)),
    )
    for function in functions:
        assert torch.autograd.gradcheck(function, v.clone().requires_grad_())
        mapped = torch.func.vmap(lambda row, f=function: f(row.expand(2, 3, 5)))(v[0])
        assert mapped.isfinite().all()


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: temperature_softmax(torch.zeros(3), 0), ValueError, r"temperature .* got 0;"),
        (lambda: temperature_softmax(torch.zeros(3), -1.0), ValueError, "positive and finite"),
        (lambda: temperature_softmax(torch.zeros(3), math.nan), ValueError, "got nan"),
        (lambda: temperature_softmax(torch.zeros(3), math.inf), ValueError, "got inf"),
        (lambda: temperature_softmax(torch.zeros(3), "4"), TypeError, r"not str \('4'\)"),
        (lambda: temperature_softmax(torch.zeros(3), True), TypeError, "not bool"),
        (lambda: temperature_softmax(torch.zeros(3), torch.ones(())), TypeError, r"float\(temp"),
        (lambda: temperature_softmax(torch.zeros(3).int(), 2), TypeError, r"int32.*\.float\(\)"),
        (lambda: temperature_softmax([0.0, 1.0], 2), TypeError, "torch.as_tensor"),
        (lambda: shannon_entropy(torch.tensor(1.0)), ValueError, r"\(\.\.\., K\)"),
        (lambda: shannon_entropy(torch.ones(4, 1)), ValueError, r"got \(4, 1\)"),
        (lambda: power_sum(torch.ones(3), 0), ValueError, "exponent"),
        (lambda: renyi_entropy(torch.ones(3), -1), ValueError, "order"),
        (lambda: kl_divergence(torch.ones(2, 3), torch.ones(2, 4)), ValueError, "classes"),
        (lambda: kl_divergence(torch.ones(2, 3), torch.ones(5, 3)), ValueError, "broadcast"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()
