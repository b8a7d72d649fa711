"""Remembered teacher logits are those that were computed, whatever came between."""

import errno
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ttm_lab import teacher_cache, training
from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.models import create_model
from ttm_lab.teacher_cache import TeacherCache
from ttm_lab.training import Settings, distill, distill_many


@pytest.fixture(scope="module")
def data() -> Dataset:
    whole = load_dataset("digits", size=32)

    def cut(split, count):
        return replace(split, images=split.images[:count], labels=split.labels[:count])

    parts = {"train": cut(whole.train, 60), "validation": cut(whole.validation, 20)}
    return replace(whole, **parts, test=cut(whole.test, 20))


@pytest.fixture(scope="module")
def teacher():
    """A network whose running averages and scales matter, as a trained one's do."""
    network = create_model("resnet8", 10, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor, low in ((layer.running_mean, -0.2), (layer.running_var, 0.6)):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
                for tensor in (layer.weight, layer.bias):
                    tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return network.eval()


def student(method="wttm", **changes) -> Settings:
    values = {"temperature": 4.0, "distill_weight": 2.0, "epochs": 3, "batch_size": 16}
    values |= {"augmentation": "crop-flip", "remember": True}
    return Settings("resnet8", method, **(values | changes))


def same(first, second) -> bool:
    a, b = first.model.state_dict(), second.model.state_dict()
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def linear(images):
    """Logits that are easy to know: sums over the picture's three channels, each its own way."""
    return (images.double().sum((2, 3)) * torch.tensor([1, 2, 3])).float()


@pytest.mark.parametrize("file", [False, True])
def test_every_answer_is_the_teachers_and_is_computed_once(data, tmp_path, file):
    asked = []

    def ask(images):
        asked.append(len(images))
        return linear(images)

    path = tmp_path / "memory.f32" if file else None
    part = data.train.to("cpu")
    memory = TeacherCache(ask, part, "crop-flip", 3, path)
    views = torch.randint(60 * 162, (700,), generator=torch.Generator().manual_seed(1))
    wanted = linear(part.take(views, "crop-flip")[0])
    first = torch.cat([logits for _, logits in memory.batches(iter(views.split(50)))])
    assert torch.equal(first, wanted)
    different = len(views.unique())
    assert (memory.asked, memory.computed) == (700, different)
    assert set(asked) == {memory.chunk}  # always chunks of one size
    count = len(asked)
    assert torch.equal(memory.look_up(views.flip(0)), wanted.flip(0))
    assert len(asked) == count
    if file:  # and in the next process
        again = TeacherCache(None, part, "crop-flip", 3, path)
        assert torch.equal(again.look_up(views), wanted)
        assert again.hit_rate == 1


def test_rows_that_were_torn_are_computed_again(data, tmp_path):
    path, part = tmp_path / "memory.f32", data.train.to("cpu")
    memory = TeacherCache(linear, part, "crop", 3, path)
    views = torch.arange(200)
    wanted = memory.look_up(views).clone()
    words = np.memmap(path, np.uint32, "r+").reshape(-1, 4)
    words[7, 1] ^= 1  # one bit
    words[8, :2] = 0  # half a row never reached the disk
    words[9, [0, 1]] = words[9, [1, 0]]
    words[10] = 0
    words[11, [0, 2]] ^= 1 << 31  # two sign bits
    again = TeacherCache(linear, part, "crop", 3, path)
    assert torch.equal(again.look_up(views), wanted)
    assert again.computed == 5


def test_a_file_of_another_size_or_too_full_a_disk_is_refused(data, tmp_path, monkeypatch):
    part = data.train.to("cpu")
    path = tmp_path / "memory.f32"
    TeacherCache(linear, part, "crop", 3, path)
    assert path.stat().st_size == 60 * 81 * 4 * 4
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"memory\.f32 has 77,756 bytes instead of 77,760.*delete"):
        TeacherCache(linear, part, "crop", 3, path)
    usage = teacher_cache.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"takes up to 0\.0 GB in .*make room"):
        TeacherCache(linear, part, "crop", 3, tmp_path / "other.f32")
    assert not (tmp_path / "other.f32").exists()


def test_a_file_that_could_not_grow_is_made_the_next_time(data, tmp_path, monkeypatch):
    part, path = data.train.to("cpu"), tmp_path / "memory.f32"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(os, "truncate", full)
    with pytest.raises(OSError, match=r"memory\.f32"):
        TeacherCache(linear, part, "crop", 3, path)
    assert path.stat().st_size == 0
    monkeypatch.undo()
    TeacherCache(linear, part, "crop", 3, path)
    assert path.stat().st_size == 60 * 81 * 4 * 4


def test_size_and_hit_rate_of_the_papers_run(tmp_path):
    """50,000 pictures x 162 views x (100 logits and a checksum); 240 draws of 162 views."""
    part = Split(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1).long(), (0,), (1,))
    TeacherCache(None, part, "crop-flip", 100, tmp_path / "one.f32")
    size = (tmp_path / "one.f32").stat().st_size
    assert 50_000 * size == pytest.approx(3.27e9, rel=1e-3)
    generator = torch.Generator().manual_seed(0)
    small = Split(torch.zeros(500, 1, 8, 8), torch.zeros(500).long())
    memory = TeacherCache(lambda images: images[:, 0, 0, :2], small, "crop-flip", 2)
    memory.chunk, draws = 1, 50  # 18 views at 8x8: a smaller copy of the same urn
    for _ in range(draws):
        memory.look_up(torch.arange(500) * 18 + torch.randint(18, (500,), generator=generator))
    expected = 1 - 18 * (1 - (17 / 18) ** draws) / draws
    assert memory.hit_rate == pytest.approx(expected, abs=0.01)
    assert pytest.approx(0.478, abs=5e-4) == 1 - 162 * (1 - (161 / 162) ** 240) / 240


def test_students_learn_from_the_same_logits_as_without(data, teacher):
    """Remembered or fresh, folded or not: the same up to rounding."""
    seen = {}

    def own(name):
        def loss(student_logits, teacher_logits, labels):
            seen.setdefault(name, []).append(teacher_logits.clone())
            return (student_logits - teacher_logits).square().mean()

        return loss

    ways = {
        "plain": {"remember": False, "fold_batch_norm": False},
        "folded": {"remember": False},
        "remembered": {},
    }
    for name, changes in ways.items():
        distill(teacher, data, student(own(name), epochs=12, **changes), progress=False)
    plain, folded, remembered = (torch.cat(seen[name][1:]) for name in ways)  # first: a trial
    assert plain.shape == (12 * 60, 10)
    size = plain.abs().max()
    assert (remembered - folded).abs().max() <= 1e-6 * size
    assert (folded - plain).abs().max() <= 1e-5 * size


def test_company_seeds_and_later_runs_share_the_answers(data, teacher, tmp_path, monkeypatch):
    computed = []
    original = TeacherCache._compute

    def count(self, numbers):
        computed.append(len(numbers))
        return original(self, numbers)

    monkeypatch.setattr(TeacherCache, "_compute", count)
    settings = [student("kd"), student("wttm")]
    options = {"progress": False, "folder": tmp_path / "experiment"}
    many = distill_many(teacher, data, settings, seeds=[0, 1], **options)
    views = {
        int(view)
        for seed in (0, 1)
        for epoch in range(3)
        for batch in data.train.views(
            16,
            order=training.epoch_order(60, seed, epoch),
            augmentation="crop-flip",
            seed=training.hash_seed(seed, "augmentation", epoch),
        )
        for view in batch
    }
    assert sum(computed) == len(views)
    (file,) = (tmp_path / "remembered").glob("*.f32")
    computed.clear()
    alone = distill(teacher, data, settings[1], seed=1, **(options | {"folder": tmp_path / "two"}))
    assert computed == []
    assert same(alone, many[3])
    other = create_model("resnet8", 10, seed=8)
    distill(other, data, settings[0], **options)
    assert len(list(file.parent.glob("*.f32"))) == 2


def test_broken_off_a_run_that_remembers_ends_bit_identical(data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Meter, "BLOCK", 2)
    settings = [student("kd"), student("ttm", epochs=2)]
    whole = distill_many(teacher, data, settings, folder=tmp_path / "a", progress=False)
    original, count = torch.optim.SGD.step, 0

    def step(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count in (5, 12):
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    options = {"folder": tmp_path / "b" / "runs", "progress": False, "checkpoint_seconds": 0}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill_many(teacher, data, settings, **options)
    broken = distill_many(teacher, data, settings, **options)
    assert all(same(one, two) for one, two in zip(whole, broken, strict=True))
