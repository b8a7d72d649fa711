"""Measures against torchmetrics and closed forms; intervals against scipy and simulation."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from ttm_lab import analysis
from ttm_lab.data import load_dataset
from ttm_lab.models import create_model


@pytest.fixture
def sample():
    random = np.random.default_rng(0)
    logits, teacher = random.normal(0, 2, (2, 400, 10))
    return logits, teacher, random.integers(0, 10, 400)


def test_measures_agree_with_torch_in_float64(sample):
    logits, teacher, labels = sample
    got = analysis.evaluate(logits, labels, teacher=teacher, temperature=4.0)
    z, v, y = map(torch.from_numpy, sample)
    q, p = z.softmax(1), (v / 4).softmax(1)
    assert got["accuracy"] == (z.argmax(1) == y).double().mean().item()
    assert got["nll"] == pytest.approx(torch.nn.functional.cross_entropy(z, y).item())
    one_hot = torch.nn.functional.one_hot(y, 10)
    assert got["brier"] == pytest.approx(((q - one_hot) ** 2).sum(1).mean().item())
    assert got["entropy"] == pytest.approx(torch.distributions.Categorical(q).entropy().mean())
    assert got["confidence"] == pytest.approx(q.amax(1).mean().item())
    assert got["agreement"] == (z.argmax(1) == v.argmax(1)).double().mean().item()
    assert got["divergence"] == pytest.approx((p * (p / q).log()).sum(1).mean().item())


def test_a_vocabulary_is_measured_a_part_at_a_time():
    """Half precision of many classes: no copy of all of it, and the measures of float64."""
    random = np.random.default_rng(0)
    logits, teacher = random.normal(0, 3, (2, 300, 20_000)).astype(np.float16)
    labels = random.integers(0, 20_000, 300)
    tracemalloc.start()
    got = analysis.evaluate(logits, labels, teacher=teacher, temperature=2.0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 80e6  # 48 MB are those of the logits in float64
    z, v = (torch.from_numpy(x).double() for x in (logits, teacher))
    q, p = z.softmax(1), (v / 2).softmax(1)
    assert got["nll"] == pytest.approx(F.cross_entropy(z, torch.from_numpy(labels)).item())
    assert got["divergence"] == pytest.approx(F.kl_div(q.log(), p, reduction="batchmean").item())
    assert got["ece"] == pytest.approx(analysis.calibration_error(logits, labels))


def test_probabilities_are_no_logits(sample):
    logits, _, labels = sample
    p = torch.from_numpy(logits).softmax(1)
    words = "every row of logits sums to 1 .* pass logits or log-probabilities"
    for measure in (analysis.evaluate, analysis.reliability, analysis.fit_temperature):
        with pytest.raises(ValueError, match=words):
            measure(p, labels)
    with pytest.raises(ValueError, match=words):
        analysis.evaluate(logits, labels, teacher=p.float())
    log_p = analysis.evaluate(p.log(), labels)
    pd.testing.assert_series_equal(log_p, analysis.evaluate(logits, labels))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_agrees_with_torchmetrics(sample, bins):
    from torchmetrics.functional.classification import multiclass_calibration_error  # a second

    logits, _, labels = sample
    expected = multiclass_calibration_error(
        torch.from_numpy(logits).softmax(1), torch.from_numpy(labels), 10, n_bins=bins
    )
    assert analysis.calibration_error(logits, labels, bins=bins) == pytest.approx(
        expected.item(), abs=1e-6
    )


def test_confidence_one_belongs_to_the_last_bin():
    # Two sure answers, one right, and two at 0.95, both right: all four share the last of 10 bins,
    # so the error is |3/4 - 0.975|, not the mean of two separate bins.
    sure, fairly = [[1000.0, 0.0]] * 2, [[np.log(19.0), 0.0]] * 2
    error = analysis.calibration_error(np.array(sure + fairly), np.array([0, 1, 0, 0]), bins=10)
    assert error == pytest.approx(abs(0.75 - 0.975))


def test_reliability_table_counts_every_sample_once(sample):
    logits, _, labels = sample
    table = analysis.reliability(logits, labels, bins=7)
    assert table["count"].sum() == len(labels)
    weighted = (table["accuracy"] * table["count"]).sum() / len(labels)
    assert weighted == pytest.approx(analysis.evaluate(logits, labels)["accuracy"])


def test_plain_arrays_tensors_and_networks_give_the_same():
    data = load_dataset("digits")
    model = create_model("cnn_small", 10, seed=0)
    logits = model(data.test.images)
    direct = analysis.evaluate(model, data.test)
    for values in (logits, logits.detach().numpy(), logits.detach().double()):
        again = analysis.evaluate(values, data.test.labels)
        pd.testing.assert_series_equal(direct, again, rtol=1e-6)


def test_predict_leaves_the_network_in_its_mode():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(64, 10))
    model.train()
    images = torch.rand(5, 1, 8, 8)
    first, second = analysis.predict(model, images), analysis.predict(model, images)
    assert np.array_equal(first, second)  # dropout was off
    assert model.training


def test_fitted_temperature_undoes_a_known_scaling():
    # Labels drawn from softmax(z): the best temperature for 3 z is 3, up to sampling noise.
    random = np.random.default_rng(1)
    logits = random.normal(0, 1.5, (40_000, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) > random.random((len(logits), 1))).argmax(1)
    assert analysis.fit_temperature(3 * logits, labels) == pytest.approx(3.0, rel=0.02)
    fitted = analysis.fit_temperature(logits, labels)
    nll = [
        analysis.evaluate(logits / t, labels)["nll"] for t in (0.9 * fitted, fitted, 1.1 * fitted)
    ]
    assert nll[1] == min(nll)


def test_paired_interval_is_scipys_t_interval():
    first, second = np.random.default_rng(2).normal([[1.0], [0.5]], 0.3, (2, 8))
    expected = stats.ttest_rel(first, second).confidence_interval(0.9)
    mean, low, high = analysis.paired_interval(first - second, confidence=0.9)
    assert mean == pytest.approx(first.mean() - second.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high))
    _, low, high = analysis.paired_interval([0.3])
    assert np.isnan([low, high]).all()


def test_bonferroni_is_scipys_interval_at_the_divided_level():
    d = dict(zip("abc", np.random.default_rng(4).normal(0.2, 0.3, (3, 8)), strict=True))
    for many, given in ((3, None), (13, 13)):
        table = analysis.contrasts(d, contrasts=given).set_index("name")
        for name, values in d.items():
            test = stats.ttest_1samp(values, 0)
            expected = test.confidence_interval(1 - 0.05 / many)
            found = table.loc[name, ["low", "high"]].astype(float)
            assert tuple(found) == pytest.approx((expected.low, expected.high))
            assert table.loc[name, "p"] == pytest.approx(test.pvalue)
            assert table.loc[name, "seeds"] == 8
    with pytest.raises(ValueError, match="contrasts=2, but 3 are given"):
        analysis.contrasts(d, contrasts=2)
    with pytest.raises(ValueError, match="contrasts=0 and test_over_train=0"):
        analysis.paired_interval([0.1, 0.2], contrasts=0)
    with pytest.raises(ValueError, match="test_over_train=-1"):
        analysis.paired_interval([0.1, 0.2], test_over_train=-1)
    assert np.isnan(analysis.contrasts({"a": [1.0, 1.0]})["p"]).all()


def test_nadeau_and_bengio_widen_by_their_factor():
    d = np.random.default_rng(5).normal(0.2, 0.3, 8)
    _, low, high = analysis.paired_interval(d)
    _, wider_low, wider_high = analysis.paired_interval(d, test_over_train=1 / 3)
    factor = np.sqrt((1 / 8 + 1 / 3) / (1 / 8))  # the digits: a fifth in test, three in train
    assert (wider_high - wider_low) / (high - low) == pytest.approx(factor)
    assert factor == pytest.approx(1.91, abs=0.01)


def test_intervals_cover_where_seeds_split_one_pool():
    """Eight splits of a pool of 100, a fifth in test and the rest in train, 2,000 new pools.

    A split's difference is a mean over its test part, so two splits correlate by 0.2, which is
    what Nadeau and Bengio take. Four contrasts of each pool have to be covered at once.
    """
    random = np.random.default_rng(6)
    single, naive, together = [], [], []
    for _ in range(2000):
        pools = random.normal(0, 1, (4, 100))  # four contrasts, all truly zero
        tests = random.permuted(np.tile(np.arange(100), (8, 1)), axis=1)[:, :20]
        d = pools[:, tests].mean(axis=2)
        naive.append(covers_zero(analysis.contrasts({"a": d[0]})))
        single.append(covers_zero(analysis.contrasts({"a": d[0]}, test_over_train=0.2 / 0.8)))
        four = dict(zip("abcd", d, strict=True))
        together.append(covers_zero(analysis.contrasts(four, test_over_train=0.2 / 0.8)))
    assert np.mean(naive) < 0.8
    assert np.mean(single) == pytest.approx(0.95, abs=0.015)  # three standard errors
    assert np.mean(together) >= 0.95 - 0.015


def covers_zero(table):
    return ((table["low"] <= 0) & (table["high"] >= 0)).all()


def test_compare_over_images_covers_and_pairs(sample):
    logits, _, labels = sample
    better = logits + 1.5 * np.eye(10)[labels]
    table = analysis.compare(better, logits, labels, resamples=300).set_index("measure")
    assert set(table["over"]) == {"images"}
    assert table.loc["accuracy", "low"] > 0
    assert table.loc["nll", "high"] < 0
    rows = (better.argmax(1) == labels) * 1.0 - (logits.argmax(1) == labels)
    half = 1.96 * rows.std() / np.sqrt(len(rows))  # the normal interval of a mean is near it
    assert table.loc["accuracy", "difference"] == pytest.approx(rows.mean())
    assert table.loc["accuracy", "high"] - rows.mean() == pytest.approx(half, rel=0.25)
    same = analysis.compare(logits, logits, labels, resamples=50)
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)


def test_compare_over_seeds_is_scipys_paired_t_interval():
    random = np.random.default_rng(3)
    labels = {s: random.integers(0, 4, 60) for s in (5, 6, 7)}
    students = {
        m: {s: random.normal(0, 1, (60, 4)) + k * np.eye(4)[labels[s]] for s in labels}
        for k, m in enumerate(("KD", "TTM"), start=1)
    }
    table = analysis.compare(students["TTM"], students["KD"], labels, measures=("accuracy",))
    accuracies = [
        [analysis.evaluate(students[m][s], labels[s])["accuracy"] for s in labels]
        for m in ("TTM", "KD")
    ]
    wanted = stats.ttest_rel(*accuracies).confidence_interval(0.95)
    assert table.loc[0, "over"] == "seeds"
    assert np.allclose(table.loc[0, ["low", "high"]].astype(float), wanted)
    with pytest.raises(ValueError, match="seeds differ"):
        analysis.compare(students["TTM"], {5: labels[5]}, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "words"),
    [
        (np.zeros(5), np.zeros(5, int), ValueError, r"shape \(N, K\)"),
        (np.zeros((5, 3), int), np.zeros(5, int), TypeError, "int64"),
        (np.full((5, 3), np.nan), np.zeros(5, int), ValueError, "15 values that are not finite"),
        (np.zeros((5, 3)), np.zeros(4, int), ValueError, "5 whole numbers"),
        (np.zeros((5, 3)), np.full(5, 3), ValueError, "from 3 to 3, classes from 0 to 2"),
    ],
)
def test_bad_input_is_named(logits, labels, error, words):
    with pytest.raises(error, match=words):
        analysis.evaluate(logits, labels)


def test_wrong_comparisons_are_named(sample):
    logits, _, labels = sample
    pair, network = [logits, logits], torch.nn.Linear(2, 2)
    for arguments, error, words in [
        ((pair, pair, [labels]), ValueError, "1 arrays of labels for 2 students"),
        (([], [], labels), ValueError, "0 and 0 students cannot be paired"),
        (({0: logits}, pair, labels), TypeError, "both as mappings"),
        ((network, network, labels), TypeError, "use predict"),
    ]:
        with pytest.raises(error, match=words):
            analysis.compare(*arguments)
    with pytest.raises(ValueError, match="confidence=95 must lie between 0 and 1"):
        analysis.paired_interval([0.1, 0.2], confidence=95)


def test_a_frozen_part_stays_frozen_and_any_network_can_be_asked():
    frozen = torch.nn.BatchNorm1d(4)
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), frozen)
    frozen.eval()
    analysis.predict(network, torch.rand(3, 4))
    assert (network.training, frozen.training) == (True, False)
    images = torch.rand(3, 4)
    assert np.array_equal(analysis.predict(torch.nn.Identity(), images), images)
    assert analysis.predict(network.bfloat16(), images).dtype == np.float32


def test_predict_takes_named_logits_and_refuses_what_is_none():
    class Named(torch.nn.Module):
        def __init__(self, hand_over):
            super().__init__()
            self.hand_over = hand_over

        def forward(self, images):
            return self.hand_over(images)

    images = torch.rand(3, 4)
    for hand_over in (lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x, aux=None)):
        assert np.array_equal(analysis.predict(Named(hand_over), images), images)
    for hand_over, words in (
        (lambda x: (x, x), "returns a tuple instead of logits"),
        (lambda x: {"out": x}, r"returns a dict of \['out'\]"),
        (lambda x: None, "returns a NoneType"),
    ):
        with pytest.raises(ValueError, match=words):
            analysis.predict(Named(hand_over), images)
    with pytest.raises(ValueError, match="there are no pictures"):
        analysis.predict(torch.nn.Identity(), images[:0])


@pytest.mark.filterwarnings("error")
def test_a_masked_class_below_temperature_one_is_a_class_left_out(sample):
    logits, teacher, labels = sample
    least = np.finfo(float).min
    masked = [np.column_stack([x, np.full(len(x), least)]) for x in (logits, teacher)]
    expected = analysis.evaluate(logits, labels, teacher=teacher, temperature=0.5)
    found = analysis.evaluate(masked[0], labels, teacher=masked[1], temperature=0.5)
    pd.testing.assert_series_equal(found, expected)
