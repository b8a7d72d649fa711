"""The path that CIFAR takes, on digits at 32x32: augmentation, autocast, schedules, resume."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from ttm_lab import training
from ttm_lab.analysis import evaluate
from ttm_lab.data import Dataset, load_dataset
from ttm_lab.data.splits import hash_seed
from ttm_lab.models import create_model
from ttm_lab.training import Settings, distill, distill_many, train_teacher


@pytest.fixture(scope="module")
def data() -> Dataset:
    whole = load_dataset("digits", size=32)

    def cut(split, count):
        return replace(split, images=split.images[:count], labels=split.labels[:count])

    parts = {"train": cut(whole.train, 90), "validation": cut(whole.validation, 40)}
    return replace(whole, **parts, test=cut(whole.test, 40))


@pytest.fixture(scope="module")
def teacher(data):
    settings = Settings("resnet8", epochs=2, batch_size=16, augmentation="crop")
    return train_teacher(data, settings, progress=False)


def student(method="wttm", **changes) -> Settings:
    values = {"temperature": 4.0, "distill_weight": 2.0, "epochs": 2, "batch_size": 16}
    return Settings("resnet8", method, **(values | {"augmentation": "crop-flip"} | changes))


def same_weights(first, second) -> bool:
    a, b = first.model.state_dict(), second.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_one_step_sees_the_pictures_that_torchvision_would_make(data):
    """The whole training part as one batch; crops and flips by torchvision, weights in float64.

    Rounding moves some values across ReLU's corner, which alone turns gradients by a per cent; one
    wrong crop or flip among noise pictures turns them by far more.
    """
    noise = torch.randint(256, (90, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    data = replace(data, train=replace(data.train, images=noise.to(torch.uint8)))
    settings = Settings(
        "resnet8", batch_size=90, max_steps=1, augmentation="crop-flip", learning_rate=0.5
    )
    got = train_teacher(data, settings, seed=3, progress=False)

    order = torch.randperm(90, generator=torch.Generator().manual_seed(hash_seed(3, "order", 0)))
    seed = hash_seed(3, "augmentation", 0)
    (numbers,) = data.train.views(90, order=order, augmentation="crop-flip", seed=seed)
    views = []
    for index, number in zip(order, numbers, strict=True):
        move, mirrored = divmod(int(number) % 162, 2)
        top, left = divmod(move, 9)
        padded = v2.functional.pad(data.train.images[index], [4, 4, 4, 4])
        view = v2.functional.crop(padded, top, left, 32, 32)
        views.append(v2.functional.horizontal_flip(view) if mirrored else view)
    images = v2.Normalize(data.train.mean, data.train.std)(torch.stack(views).double() / 255)

    reference = create_model("resnet8", 10, seed=3).double().train()
    F.cross_entropy(reference(images), data.train.labels[order]).backward()
    for name, weight in reference.named_parameters():
        step = 0.5 * (weight.grad + settings.weight_decay * weight.detach())
        change = dict(got.model.named_parameters())[name] - weight
        assert (change + step).norm() < 0.03 * step.norm(), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_in_company_each_student_is_what_it_is_alone(data, teacher, precision):
    settings = [student(m, precision=precision) for m in ("ce", "kd", "ttm", "wttm")]
    many = distill_many(teacher, data, settings, progress=False)
    for one in (many[0], many[3]):
        alone = distill(teacher, data, one.settings, progress=False)
        assert same_weights(one, alone)
        pd.testing.assert_frame_equal(one.history, alone.history, check_exact=True)


def test_students_of_other_augmentation_or_precision_do_not_share_batches(data, teacher):
    settings = [student(), student(augmentation="none"), student(precision="bfloat16")]
    for one in distill_many(teacher, data, settings, progress=False):
        assert same_weights(one, distill(teacher, data, one.settings, progress=False))


OPTIMIZERS = [
    {},
    {"precision": "bfloat16", "track_test": True},
    {"optimizer": "adamw", "schedule": "cosine", "warmup_epochs": 1, "learning_rate": 1e-3},
]


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=["sgd", "bfloat16", "adamw"])
def test_broken_off_anywhere_a_run_ends_bit_identical(
    data, teacher, tmp_path, monkeypatch, changes
):
    """Six batches an epoch, a resume point after every second: within epochs and between them."""
    settings = [student("kd", epochs=3, **changes), student("wttm", epochs=2, **changes)]
    whole = distill_many(teacher, data, settings, progress=False)
    options = {"folder": tmp_path, "progress": False, "checkpoint_seconds": 0}
    monkeypatch.setattr(training.Meter, "BLOCK", 2)
    # sums of metrics are formed block by block, so the run to compare with has the same blocks
    reference = distill_many(teacher, data, settings, progress=False)
    assert same_weights(reference[0], whole[0])

    kind = torch.optim.AdamW if changes.get("optimizer") else torch.optim.SGD
    original, count = kind.step, 0

    def step(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count in (6, 13, 20, 21):
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(kind, "step", step)
    interruptions = 0
    while interruptions < 5:
        try:
            broken = distill_many(teacher, data, settings, **options)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == 4
    for one, two in zip(reference, broken, strict=True):
        assert same_weights(one, two)
        pd.testing.assert_frame_equal(one.history, two.history, check_exact=True)


def test_cut_short_at_a_resume_point_the_metrics_still_come(data, teacher, tmp_path, monkeypatch):
    """A run that dies between its last step and its metrics has them after a resume."""
    monkeypatch.setattr(training.Meter, "BLOCK", 2)
    settings = student(max_steps=4)
    options = {"folder": tmp_path, "progress": False, "checkpoint_seconds": 0}
    whole = distill(teacher, data, settings, progress=False)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Student, "end_epoch", die)
        with pytest.raises(KeyboardInterrupt):
            distill(teacher, data, settings, **options)
    again = distill(teacher, data, settings, **options)
    assert same_weights(whole, again)
    pd.testing.assert_frame_equal(whole.history, again.history, check_exact=True)
    assert (again.folder / "model.safetensors").exists()


def test_autocast_reaches_the_networks_and_spares_the_losses(data, teacher):
    seen = []

    def own(student_logits, teacher_logits, labels):
        seen.append((student_logits.dtype, teacher_logits.dtype))
        return (student_logits.float() - teacher_logits.float()).square().mean()

    low = distill(teacher, data, student(own, precision="bfloat16", max_steps=2), progress=False)
    assert set(seen[1:]) == {(torch.bfloat16, torch.bfloat16)}  # the first call tries it out
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    high = distill(teacher, data, student("kd", max_steps=1), progress=False).history.iloc[0]
    low = distill(
        teacher, data, student("kd", max_steps=1, precision="bfloat16"), progress=False
    ).history.iloc[0]
    assert low["loss"] != high["loss"]
    assert low["loss"] == pytest.approx(high["loss"], rel=0.02)


def test_a_compiled_student_is_the_student(data, teacher, tmp_path, monkeypatch):
    """Through torch.compile's own tracing and its backward pass, without the C++ compiler."""
    compiled = []

    def trace(model):
        compiled.append(type(model).__name__)
        return original(model, backend="aot_eager")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    options = {"progress": False, "checkpoint_seconds": 0}
    plain = distill(teacher, data, student(max_steps=3), **options)
    assert not compiled
    other = distill(teacher, data, student(max_steps=3, compiled=True), folder=tmp_path, **options)
    assert compiled == ["ResNet"]
    assert other.model.state_dict().keys() == plain.model.state_dict().keys()
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    again = distill(teacher, data, student(max_steps=3, compiled=True), folder=tmp_path, **options)
    assert same_weights(again, other)


def test_without_a_validation_part_everything_trains_and_test_can_be_followed(data, teacher):
    nothing = replace(
        data.validation, images=data.validation.images[:0], labels=data.validation.labels[:0]
    )
    whole = replace(data, validation=nothing)
    plain = distill(teacher, whole, student(), progress=False)
    assert not [c for c in plain.history if c.startswith(("validation_", "test_"))]
    tracked = distill(teacher, whole, student(track_test=True), progress=False)
    assert same_weights(plain, tracked)
    last = tracked.history.iloc[-1]
    direct = evaluate(tracked, data.test, teacher=teacher, temperature=4.0)
    for name in ("accuracy", "entropy", "confidence", "divergence"):
        assert last[f"test_{name}"] == pytest.approx(direct[name], rel=1e-4, abs=1e-6)
