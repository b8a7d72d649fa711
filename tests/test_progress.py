"""Measures are summed up right, on any device, and come back after a resume."""

import numpy as np
import pandas as pd
import pytest
import torch
from lab import device_without_float64, few_digits, same_weights, student
from torch import nn

from ttm_lab import training
from ttm_lab.analysis import evaluate
from ttm_lab.data import Dataset
from ttm_lab.models import create_model
from ttm_lab.training import distill, distill_many


@pytest.fixture(scope="module")
def data() -> Dataset:
    return few_digits()


@pytest.fixture(scope="module")
def teacher():
    return create_model("cnn_large", 10, seed=1)


def test_training_needs_no_float64_on_the_device(data, teacher, tmp_path, monkeypatch):
    """Sums of metrics are float64, but not there: mps has none. A resume point holds them, too."""
    settings = [student(m, track_test=True) for m in ("ce", "kd", "ttm", "wttm", "dkd", "dist")]
    settings += [student("wttm", remember=True, precision="bfloat16", optimizer="adamw")]
    expected = distill_many(teacher, data, settings, progress=False)
    # metrics and resume points in the midst of epochs
    monkeypatch.setattr(training.Meter, "BLOCK", 2)
    monkeypatch.setattr(training.Clock, "due", lambda self: True)

    def die(self, epoch, held_out):
        raise KeyboardInterrupt

    options = {"folder": tmp_path, "progress": False}
    with device_without_float64():
        with monkeypatch.context() as patch:
            patch.setattr(training.Student, "end_epoch", die)
            with pytest.raises(KeyboardInterrupt):
                distill_many(teacher, data, settings, **options)
        assert list(tmp_path.rglob("step-*2.pt"))
        got = distill_many(teacher, data, settings, **options)
    for one, other in zip(expected, got, strict=True):
        assert same_weights(one.model, other.model)
        pd.testing.assert_frame_equal(one.history, other.history, rtol=1e-12)


def test_masked_classes_below_temperature_one_do_not_look_diverged(data):
    """finfo.min / T is -inf there, and times a probability of 0 not a number."""

    class Masked(nn.Module):
        def forward(self, images):
            logits = images.flatten(1)[:, :10].cumsum(-1).clone()
            logits[:, 9] = torch.finfo(logits.dtype).min
            return logits

    got = distill(Masked(), data, student("ttm", temperature=0.5), progress=False)
    assert np.isfinite(got.history).all(axis=None)
    direct = evaluate(got, data.validation, teacher=Masked(), temperature=0.5)
    assert got.history.iloc[-1]["validation_divergence"] == pytest.approx(
        direct["divergence"], 1e-5
    )
