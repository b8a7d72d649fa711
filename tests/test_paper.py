"""The published settings reach a run unchanged."""

import re

import pytest

from ttm_lab.course import paper
from ttm_lab.course.paper import settings
from ttm_lab.course.paper_rows import check_pair

# Exponent, TTM weight, WTTM weight: the paper's Tables 8 (similar networks) and 9 (others).
PUBLISHED = {
    ("wrn-40-2", "wrn-16-2"): (0.1, 101, 4),
    ("resnet56", "resnet20"): (0.3, 7, 1.5),
    ("resnet110", "resnet32"): (0.1, 33, 1.5),
    ("vgg13", "vgg8"): (0.1, 45, 2.25),
    ("vgg13", "MobileNetV2"): (0.2, 16, 3),
    ("ResNet50", "vgg8"): (0.1, 70, 2),
    ("resnet32x4", "ShuffleNetV2"): (0.4, 40, 16),
    ("wrn-40-2", "ShuffleNetV1"): (0.3, 8, 3),
}
# Tables 1 and 3, in the paper's spelling and as create_model has them.
PAIRS = {
    "wrn-40-2 wrn-16-2": "wrn_40_2 wrn_16_2",
    "wrn-40-2 wrn-40-1": "wrn_40_2 wrn_40_1",
    "resnet56 resnet20": "resnet56 resnet20",
    "resnet110 resnet20": "resnet110 resnet20",
    "resnet110 resnet32": "resnet110 resnet32",
    "resnet32x4 resnet8x4": "resnet32x4 resnet8x4",
    "vgg13 vgg8": "vgg13 vgg8",
    "vgg13 MobileNetV2": "vgg13 MobileNetV2",
    "ResNet50 MobileNetV2": "ResNet50 MobileNetV2",
    "ResNet50 vgg8": "ResNet50 vgg8",
    "resnet32x4 ShuffleNetV1": "resnet32x4 ShuffleV1",
    "resnet32x4 ShuffleNetV2": "resnet32x4 ShuffleV2",
    "wrn-40-2 ShuffleNetV1": "wrn_40_2 ShuffleV1",
}
METHODS = ("ce", "kd", "ttm", "wttm")


@pytest.mark.parametrize("pair", PUBLISHED, ids=":".join)
def test_cifar_settings_are_the_published_ones(pair):
    exponent, ttm_weight, wttm_weight = PUBLISHED[pair]
    slow = pair[1] in ("MobileNetV2", "ShuffleNetV1", "ShuffleNetV2")
    made = {method: settings(*pair, method) for method in METHODS}
    for method, s in made.items():
        assert s.method == method
        assert (s.epochs, s.batch_size, s.momentum, s.weight_decay) == (240, 64, 0.9, 5e-4)
        assert (s.optimizer, s.schedule, s.augmentation) == ("sgd", "steps", "crop-flip")
        assert (s.warmup_epochs, s.precision, s.max_steps) == (0, "float32", None)
        rate = 0.01 if slow else 0.05
        # epochs count from 0 here, so these are the first of a step and the last before the next
        for start, end, factor in [
            (0, 149, 1),
            (150, 179, 0.1),
            (180, 209, 0.01),
            (210, 239, 1e-3),
        ]:
            for epoch in (start, end):
                assert s.learning_rate_at(epoch) == pytest.approx(rate * factor, rel=1e-12)
    assert made["ce"].ce_weight == 1
    kd = made["kd"]
    assert kd.temperature == 4
    assert (kd.ce_weight, kd.distill_weight) == pytest.approx((0.1, 0.9), rel=1e-12)
    for method, weight in (("ttm", ttm_weight), ("wttm", wttm_weight)):
        s = made[method]
        assert s.temperature == pytest.approx(1 / exponent, rel=1e-12)
        assert (s.ce_weight, s.distill_weight) == (1, weight)


def test_teachers_learn_by_the_same_recipe():
    s = paper.teacher_settings("wrn-40-2")
    assert (s.model, s.method, s.name) == ("wrn_40_2", "ce", "teacher")
    assert (s.epochs, s.batch_size, s.learning_rate, s.weight_decay) == (240, 64, 0.05, 5e-4)


def test_every_pair_of_the_tables_builds_in_both_spellings():
    assert sorted(" ".join(pair) for pair in paper.pairs()) == sorted(PAIRS.values())
    for spelled, ours in PAIRS.items():
        assert check_pair(*spelled.split()) is None
        for method in METHODS:
            assert settings(*spelled.split(), method) == settings(*ours.split(), method)


def test_imagenet_settings_are_the_published_ones_and_the_assumed_recipe():
    wttm = settings("ResNet-34", "ResNet-18", "wttm")
    assert wttm.model == "torchvision/resnet18"
    assert (wttm.temperature, wttm.distill_weight) == (pytest.approx(1 / 0.8), 1.6)
    for teacher in ("ResNet-50", "ResNet-101", "ResNet-152"):
        assert settings(teacher, "ResNet-18", "wttm") == wttm  # paper, Table 10
    mobile = settings("ResNet-50", "MobileNet", "wttm")
    assert mobile.model == "timm/mobilenetv1_100"
    assert (mobile.temperature, mobile.distill_weight) == (pytest.approx(1 / 0.7), 3.5)
    for s in (wttm, mobile, settings("ResNet-34", "ResNet-18", "ce")):
        # torchdistill: SGD 0.1, momentum 0.9, weight decay 1e-4, batch 256, steps at 30, 60, 90
        assert (s.epochs, s.batch_size, s.momentum, s.weight_decay) == (100, 256, 0.9, 1e-4)
        assert (s.optimizer, s.augmentation) == ("sgd", "resized-crop-flip")
        rates = [s.learning_rate_at(epoch) for epoch in (0, 29, 30, 59, 60, 89, 90, 99)]
        assert rates == pytest.approx([0.1] * 2 + [0.01] * 2 + [1e-3] * 2 + [1e-4] * 2)
    kd = settings("ResNet-34", "ResNet-18", "kd")  # that library's file for this pair
    assert (kd.temperature, kd.ce_weight, kd.distill_weight) == (1, 0.5, 0.5)


def test_deit_has_cls_kd_s_recipe_and_asks_for_what_is_published_nowhere():
    pair = "DeiT III-Small", "DeiT-Tiny"
    with pytest.raises(ValueError, match="temperature and distill_weight of WTTM"):
        settings(*pair, "wttm")
    with pytest.raises(ValueError, match=r"no distill_weight of WTTM.*--distill-weight"):
        settings(*pair, "wttm", temperature=2)
    s = settings(*pair, "wttm", temperature=2, distill_weight=3)
    assert (s.temperature, s.distill_weight, s.ce_weight) == (2, 3, 1)
    assert (s.optimizer, s.schedule, s.warmup_epochs) == ("adamw", "cosine", 20)
    assert (s.epochs, s.batch_size, s.learning_rate, s.weight_decay) == (300, 1024, 1e-3, 0.05)
    kd = settings(*pair, "kd")
    assert (kd.temperature, kd.ce_weight, kd.distill_weight) == (1, 0.5, 0.5)


def test_a_pair_outside_the_tables_gets_the_numbers_of_figure_1():
    kd, ttm = (settings("resnet20", "resnet8", method) for method in ("kd", "ttm"))
    assert (kd.temperature, kd.ce_weight, kd.distill_weight) == pytest.approx((4, 0.1, 0.9))
    assert (ttm.temperature, ttm.ce_weight, ttm.distill_weight) == (4, 1, 36)
    wttm = settings("resnet20", "resnet8", "wttm", mean_weight=2.5)
    assert (wttm.temperature, wttm.ce_weight, wttm.distill_weight) == (4, 1, 14.4)
    with pytest.raises(ValueError, match="distill_weight"):
        settings("resnet20", "resnet8", "wttm")


@pytest.mark.parametrize("method", ["dkd", "dist", "wttm+std"])
def test_methods_of_others_need_their_numbers(method):
    words = re.escape(f"temperature and distill_weight of {method.upper()}")
    with pytest.raises(ValueError, match=words):
        settings("resnet56", "resnet20", method)
    s = settings("resnet56", "resnet20", method, temperature=4, distill_weight=2)
    assert (s.method, s.temperature, s.distill_weight, s.epochs) == (method, 4, 2, 240)


def test_changes_reach_every_field():
    s = settings("resnet56", "resnet20", "wttm", temperature=2, epochs=3, augmentation="none")
    assert (s.temperature, s.distill_weight, s.epochs, s.augmentation) == (2, 1.5, 3, "none")
    with pytest.raises(ValueError, match="learning_rate"):
        settings("resnet56", "resnet20", "kd", learning_rate=-1)
