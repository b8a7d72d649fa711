"""What does not fit together is refused before any training."""

import pytest
import torch
from lab import few_digits, student
from torch import nn

from ttm_lab import training
from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.models import create_model
from ttm_lab.training import Settings, distill, distill_many, train_teacher


@pytest.fixture(scope="module")
def data() -> Dataset:
    return few_digits()


@pytest.fixture(scope="module")
def teacher():
    return create_model("cnn_large", 10, seed=1)


def test_a_last_batch_of_one_is_refused_only_where_batch_norm_meets_it(
    data, teacher, monkeypatch, tmp_path
):
    def with_batch_norm(name, num_classes, *, seed):
        layers = [create_model(name, 32, seed=seed), nn.BatchNorm1d(32), nn.Linear(32, 10)]
        return nn.Sequential(*layers)

    one_left = student(batch_size=149, epochs=1)
    alone = distill(teacher, data, one_left, progress=False)  # no batch norm: nothing to refuse
    assert len(alone.history) == 1
    monkeypatch.setattr(training, "create_model", with_batch_norm)
    for size in (149, 1):
        words = f"cnn_small in training .*more than 1 value.*batch_size={size} makes a batch of one"
        settings = student(batch_size=size, epochs=1)
        with pytest.raises(ValueError, match=words):
            distill(teacher, data, settings, folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    for fits in ({"batch_size": 148}, {"batch_size": 149, "max_steps": 1}):
        settings = student(epochs=1, **fits)
        got = distill(teacher, data, settings, progress=False)
        state = got.model.state_dict()
        # trying it out before has not moved batch norm
        assert state["1.num_batches_tracked"] == (1 if "max_steps" in fits else 2)


def test_what_does_not_fit_is_refused_before_training(data, teacher):
    with pytest.raises(ValueError, match=r"teacher gives logits \(1, 7\).*num_classes=10"):
        distill(create_model("cnn_large", 7), data, student(), progress=False)
    broken = create_model("cnn_large", 10)
    nn.init.constant_(broken.classifier.bias, float("nan"))
    with pytest.raises(ValueError, match="teacher gives logits that are not finite"):
        distill(broken, data, student(), progress=False)
    with pytest.raises(TypeError, match="must be a network or Trained, got str"):
        distill("resnet56", data, student(), progress=False)
    with pytest.raises(ValueError, match="must each be different"):
        distill_many(teacher, data, [student(), student()], progress=False)
    with pytest.raises(ValueError, match="a teacher learns from labels"):
        train_teacher(data, student("kd"), progress=False)


def test_what_does_not_fit_the_pictures_is_refused_before_training(data):
    with pytest.raises(ValueError, match=r"'resized-crop-flip' does not fit digits.*'crop-flip'"):
        train_teacher(data, Settings("resnet8", augmentation="resized-crop-flip"), progress=False)
    with pytest.raises(ValueError, match=r"resnet8 does not take the pictures of digits, \(1, 8,"):
        train_teacher(load_dataset("digits"), Settings("resnet8"), progress=False)
    with pytest.raises(ValueError, match="uint8 images come with mean and std"):
        Split(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
