"""Training does what the formulas say, the same alone and in company, and says what is wrong."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ttm_lab import training
from ttm_lab.analysis import evaluate
from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.losses import WTTMLoss, ttm_loss
from ttm_lab.models import create_model
from ttm_lab.training import Diverged, Settings, distill, distill_many, train_teacher


@pytest.fixture(scope="module")
def data() -> Dataset:
    whole = load_dataset("digits", seed=0)
    cut = lambda split, n: Split(split.images[:n], split.labels[:n])  # noqa: E731
    return replace(
        whole,
        train=cut(whole.train, 150),
        validation=cut(whole.validation, 60),
        test=cut(whole.test, 60),
    )


@pytest.fixture(scope="module")
def teacher(data):
    settings = Settings("cnn_large", epochs=10, learning_rate=0.1)
    return train_teacher(data, settings, progress=False)


def student(method="wttm", **changes) -> Settings:
    values = {"temperature": 4.0, "distill_weight": 2.0, "epochs": 2, "learning_rate": 0.02}
    return Settings("cnn_small", method, **(values | changes))


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


METHODS = {
    "ce": lambda q, z, v, T: 0 * z.sum(),
    "kd": lambda q, z, v, T: (
        T**2 * ((v / T).softmax(1) * ((v / T).softmax(1) / (z / T).softmax(1)).log()).sum(1).mean()
    ),
    "ttm": lambda q, z, v, T: ((v / T).softmax(1) * ((v / T).softmax(1) / q).log()).sum(1).mean(),
    "wttm": lambda q, z, v, T: (
        (v.softmax(1) ** (1 / T)).sum(1)
        * ((v / T).softmax(1) * ((v / T).softmax(1) / q).log()).sum(1)
    ).mean(),
}


@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_sgd_on_the_formula(data, teacher, method):
    """One batch with the whole training part, against float64 and autograd."""
    settings = student(method, batch_size=len(data.train), max_steps=1, ce_weight=0.7)
    got = distill(teacher, data, settings, seed=4, progress=False)

    reference = create_model("cnn_small", 10, seed=4).double()
    z, v = reference(data.train.images.double()), teacher.model(data.train.images).double().detach()
    loss = 0.7 * F.cross_entropy(z, data.train.labels)
    loss = loss + 2.0 * METHODS[method](z.softmax(1), z, v, 4.0)
    loss.backward()
    for name, weight in reference.named_parameters():
        step = weight.grad + settings.weight_decay * weight.detach()
        expected = weight.detach() - settings.learning_rate * step
        found = dict(got.model.named_parameters())[name]
        assert torch.allclose(found.double(), expected, atol=1e-6)
    assert got.history["loss"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_schedule_is_the_papers():
    settings = student(epochs=240, learning_rate=0.05)
    rates = [settings.learning_rate_at(epoch) for epoch in range(240)]  # epoch 0 is the first
    expected = [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 30
    assert np.allclose(rates, expected)


def test_in_company_each_student_is_what_it_is_alone(data, teacher):
    settings = [student(m, epochs=e) for m, e in (("ce", 2), ("kd", 3), ("ttm", 1), ("wttm", 2))]
    many = distill_many(teacher, data, settings, seeds=[0, 1], progress=False)
    assert [(s.seed, s.label) for s in many] == [
        (seed, label) for seed in (0, 1) for label in ("CE", "KD", "TTM", "WTTM")
    ]
    for one in many:
        alone = distill(teacher, data, one.settings, seed=one.seed, progress=False)
        assert same_weights(one.model, alone.model)
        pd.testing.assert_frame_equal(one.history, alone.history, check_exact=True)


def test_dropout_too_is_the_same_alone_and_in_company(data, teacher, monkeypatch):
    def with_dropout(name, num_classes, *, seed):
        return nn.Sequential(create_model(name, 32, seed=seed), nn.Dropout(), nn.Linear(32, 10))

    def fixed(name, num_classes, *, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return with_dropout(name, num_classes, seed=seed)

    monkeypatch.setattr(training, "create_model", fixed)
    settings = [student("ttm"), student("wttm")]
    many = distill_many(teacher, data, settings, progress=False)
    assert same_weights(many[1].model, distill(teacher, data, settings[1], progress=False).model)


def test_the_teacher_is_asked_once_a_batch(data, teacher):
    calls = []
    teacher.model.zero_grad()
    handle = teacher.model.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    try:
        settings = [student(m, epochs=2) for m in ("kd", "ttm", "wttm")]
        distill_many(teacher, data, settings, progress=False)
    finally:
        handle.remove()
    # one picture to try it out, the validation part once, then 150 images an epoch
    assert sum(calls) == 1 + len(data.validation) + 2 * len(data.train)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_same_seed_same_student_and_the_callers_randomness_is_untouched(data, teacher):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = distill(teacher, data, student(), seed=7, progress=False)
    assert torch.equal(torch.rand(3), expected)
    again = distill(teacher, data, student(), seed=7, progress=False)
    other = distill(teacher, data, student(), seed=8, progress=False)
    assert same_weights(first.model, again.model)
    assert not same_weights(first.model, other.model)


def test_methods_of_one_seed_start_from_the_same_weights(data, teacher):
    settings = [student(m, learning_rate=1e-30) for m in ("ce", "kd", "wttm")]
    first, *others = distill_many(teacher, data, settings, progress=False)
    assert all(same_weights(first.model, o.model) for o in others)


def test_history_agrees_with_measuring_the_student(data, teacher):
    got = distill(teacher, data, student("kd", ce_weight=0.5), progress=False)
    last = got.history.iloc[-1]
    direct = evaluate(got, data.validation, teacher=teacher, temperature=4.0)
    for name in ("accuracy", "entropy", "confidence", "distance"):
        assert last[f"validation_{name}"] == pytest.approx(direct[name], rel=1e-5, abs=1e-7)
    assert last["loss"] == pytest.approx(0.5 * last["ce_loss"] + 2 * last["distill_loss"])
    assert list(got.history["epoch"]) == [1, 2]


def test_a_loss_of_your_own_equals_the_named_one(data, teacher):
    def own(student_logits, teacher_logits, labels):
        return ttm_loss(student_logits, teacher_logits, 4.0)

    named = distill(teacher, data, student("ttm"), progress=False)
    given = distill(teacher, data, student(own), progress=False)
    assert same_weights(named.model, given.model)
    assert "own" in given.label


def test_max_steps_cuts_every_training(data, teacher):
    got = distill(teacher, data, student(epochs=50, max_steps=4), progress=False)
    assert len(got.history) == 2  # 3 steps an epoch


def test_learning_works_at_all(data, teacher):
    settings = student("ttm", epochs=30, learning_rate=0.05)
    assert evaluate(distill(teacher, data, settings, progress=False), data.test)["accuracy"] > 0.5


def test_a_diverging_student_does_not_take_the_others_along(data, teacher):
    wild = student(lambda z, v, y: (z * float("nan")).sum(), label="wild")
    with pytest.raises(Diverged, match=r"wild, seed 0: loss nan in epoch 1.*Lower") as caught:
        distill_many(teacher, data, [wild, student("ttm")], progress=False)
    assert [s.label for s in caught.value.trained] == ["TTM"]
    alone = distill(teacher, data, student("ttm"), progress=False)
    assert same_weights(caught.value.trained[0].model, alone.model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "kdd"}, r"method='kdd' must be one of"),
        ({"temperature": None}, r"temperature must be given for method='wttm'"),
        ({"temperature": 0.0}, r"temperature=0.0 must be positive"),
        ({"distill_weight": -1.0}, r"distill_weight=-1.0 must be zero or positive"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan must be positive"),
        ({"epochs": 0}, r"epochs=0 must be positive"),
        ({"epochs": 1.5}, r"epochs=1.5 must be a whole number"),
        ({"milestones": (150,)}, r"milestones=\(150.0,\) must be fractions"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        student(**changes)


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


# Run folders


def test_a_finished_run_is_read_back_not_trained_again(data, teacher, tmp_path):
    settings = [student("kd"), student("wttm")]
    first = distill_many(teacher, data, settings, folder=tmp_path, progress=False)
    names = {p.name for p in first[0].folder.iterdir()} - {".lock"}
    assert names == {"config.json", "environment.json", "metrics.csv", "model.safetensors"}
    stamps = [(s.folder / "model.safetensors").stat().st_mtime_ns for s in first]
    again = distill_many(teacher, data, settings, folder=tmp_path, progress=False)
    for one, two, stamp in zip(first, again, stamps, strict=True):
        assert same_weights(one.model, two.model)
        pd.testing.assert_frame_equal(one.history, two.history, check_exact=True)
        assert (two.folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_finished_run_is_read_without_an_optimiser(data, teacher, tmp_path, monkeypatch):
    first = distill(teacher, data, student(), folder=tmp_path, progress=False)
    monkeypatch.setattr(torch.optim, "SGD", None)  # torch.optim takes seconds to load
    again = distill(teacher, data, student(), folder=tmp_path, progress=False)
    assert same_weights(first.model, again.model)


def test_everything_that_decides_the_result_decides_the_folder(data, teacher, tmp_path):
    def own(factor):
        def scaled(z, v, y):
            return factor * ttm_loss(z, v, 4.0)

        return scaled

    base = student("wttm", max_steps=1)
    changed = [
        replace(base, temperature=2.0),
        replace(base, weight_decay=0.0),
        replace(base, milestones=(0.5,)),
        student(own(1.0), max_steps=1, label="WTTM"),
        student(own(2.0), max_steps=1, label="WTTM"),
        replace(base, epochs=3),
    ]
    other_data = replace(data, train=Split(data.train.images[1:], data.train.labels[1:]))
    other_teacher = create_model("cnn_large", 10, seed=9)
    options = {"folder": tmp_path, "progress": False}
    folders = [distill(teacher, data, s, **options).folder for s in [base, *changed]]
    folders += [
        distill(teacher, data, base, seed=1, **options).folder,
        distill(teacher, other_data, base, **options).folder,
        distill(other_teacher, data, base, **options).folder,
    ]
    assert len(set(folders)) == len(folders)
    assert distill(teacher, data, base, **options).folder == folders[0]
    relabelled = distill(teacher, data, replace(base, label="WTTM "), **options)
    assert relabelled.folder == folders[0]
    config = json.loads((folders[1] / "config.json").read_text())
    assert config["settings"]["temperature"] == 2.0
    assert config["data"]["sha256"] == data.fingerprint


def test_a_loss_that_cannot_be_told_apart_is_refused_with_a_folder(data, teacher, tmp_path):
    table = torch.rand(3)

    def with_a_tensor(z, v, y):
        return z.sum() * table.sum()

    class Scaled:
        factor = 2

        def loss(self, z, v, y):
            return self.factor * ttm_loss(z, v, 4.0)

    for method, words in [
        (with_a_tensor, r"cannot be written down.*folder=None"),
        (lambda z, v, y: ttm_loss(z, v, 4.0), r"a lambda .* cannot be told from others"),
        (Scaled().loss, r"a method of an object .* cannot be told from others"),
    ]:
        settings = student(method, max_steps=1, label="mine")
        assert distill(teacher, data, settings, progress=False).label == "mine"
        with pytest.raises(ValueError, match=words):
            distill(teacher, data, settings, folder=tmp_path, progress=False)


def test_numpy_numbers_give_the_run_of_plain_ones(data, teacher, tmp_path):
    plain = student("kd", temperature=4, max_steps=1)
    numbers = {"temperature": np.float64(4), "epochs": np.int64(2), "milestones": [150 / 240, 0.75]}
    other = replace(plain, **numbers)
    options = {"folder": tmp_path, "progress": False}
    first = distill(teacher, data, plain, seed=1, **options)
    assert distill(teacher, data, replace(plain, temperature=4.0), seed=1, **options).folder == (
        first.folder
    )
    got = distill_many(teacher, data, [other], seeds=np.arange(1), **options)
    assert got[0].folder.exists()
    with pytest.raises(ValueError, match=r"seed=1.5 must be a whole number"):
        distill(teacher, data, plain, seed=1.5, progress=False)


def test_teachers_that_differ_in_structure_alone_are_told_apart(data, tmp_path):
    folders = set()
    for activation in (nn.ReLU(), nn.Tanh()):
        own = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), activation, nn.Linear(8, 10))
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.fill_(0.01)
        settings = student(max_steps=1)
        folders.add(distill(own, data, settings, folder=tmp_path, progress=False).folder)
    assert len(folders) == 2


def test_weights_that_blew_up_in_the_last_step_are_not_a_finished_run(data, teacher, tmp_path):
    settings = student("ce", learning_rate=1e30, max_steps=1)
    with pytest.raises(Diverged, match="validation_"):
        distill(teacher, data, settings, folder=tmp_path, progress=False)
    assert not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize("method", [ttm_loss, WTTMLoss(4.0), lambda z, v, y: z.mean(0)])
def test_a_loss_of_the_wrong_form_is_refused_with_the_remedy(data, teacher, method):
    with pytest.raises(ValueError, match=r"must take \(student_logits.*method='wttm'"):
        distill(teacher, data, student(method, label="own"), progress=False)


def test_a_damaged_finished_run_is_named_with_the_remedy(data, teacher, tmp_path):
    settings = student(max_steps=3)
    options = {"folder": tmp_path, "progress": False}
    folder = distill(teacher, data, settings, **options).folder
    whole = {name: (folder / name).read_bytes() for name in ("metrics.csv", "model.safetensors")}
    for name, damage in [
        ("metrics.csv", whole["metrics.csv"][:-9]),
        ("metrics.csv", b""),
        ("model.safetensors", whole["model.safetensors"][:-9]),
    ]:
        (folder / name).write_bytes(damage)
        with pytest.raises(ValueError, match=rf"{folder.name} is damaged.*delete that folder"):
            distill(teacher, data, settings, **options)
        (folder / name).write_bytes(whole[name])
    (folder / "metrics.csv").unlink()
    with pytest.raises(ValueError, match="is damaged"):
        distill(teacher, data, settings, **options)


def test_compiling_without_a_compiler_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "/no/such/compiler"))
    data = load_dataset("digits", seed=0)
    settings = Settings("cnn_small", epochs=1, max_steps=1, compiled=True)
    with pytest.raises(ValueError, match=r"compiled=True needs a C\+\+ compiler .* install g\+\+"):
        train_teacher(data, settings, folder=tmp_path / "runs", device="cpu", progress=False)
    assert not list(tmp_path.iterdir())
