"""A recipe is what it says: its schedule, plain values, and refusals by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab import student

from ttm_lab.settings import fast


def test_the_schedule_is_the_papers():
    settings = student(epochs=240, learning_rate=0.05)
    rates = [settings.learning_rate_at(epoch) for epoch in range(240)]  # epoch 0 is the first
    expected = [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 30
    assert np.allclose(rates, expected)


def test_learning_rates_of_cosine_and_warm_up():
    settings = student(epochs=10, schedule="cosine", warmup_epochs=2, learning_rate=0.4)
    rates = [settings.learning_rate_at(epoch) for epoch in range(10)]
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.4])
    assert rates[6] == pytest.approx(0.2)  # half-way down
    assert rates[2:] == sorted(rates[2:], reverse=True)


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
        ({"decay_at": (150,)}, r"decay_at=\(150.0,\) must be fractions"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        student(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augmentation": "rotate"}, r"augmentation='rotate' must be one of"),
        ({"precision": "float16"}, r"precision='float16' must be one of"),
        ({"optimizer": "adam"}, r"optimizer='adam' must be one of"),
        ({"schedule": "linear"}, r"schedule='linear' must be one of"),
        ({"warmup_epochs": -1}, r"warmup_epochs=-1 must be zero or positive"),
        ({"track_test": "yes"}, r"track_test='yes' must be one of"),
    ],
)
def test_words_that_are_no_choice_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        student(**changes)


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.float16, np.longdouble, np.str_])
def test_settings_of_numpy_kinds_are_plain_ones_or_refused(kind):
    """Equal settings have one identity; a kind that does not fit a field is named."""
    plain = student("kd", precision="float32")
    values = {
        np.bool_: {"track_test": np.True_, "remember": 1},
        np.int8: {"temperature": np.int8(16), "epochs": np.array(2, np.int8)},
        np.float16: {"temperature": np.float16(0.5), "decay_at": np.array([0.5], np.float16)},
        np.longdouble: {"temperature": np.longdouble(4)},
        np.str_: {"precision": np.str_("float32")},
    }[kind]
    got = replace(plain, **values)
    for name, value in vars(got).items():
        assert type(value) in (str, bool, int, float, tuple, type(None)), name
    assert json.loads(json.dumps(vars(got))) == {**vars(got), "decay_at": [*got.decay_at]}
    with pytest.raises(ValueError, match=r"epochs=.* must be a whole number"):
        replace(plain, epochs=np.float64(2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": "4"}, "temperature='4' must be a number"),
        ({"temperature": True}, "temperature=True must be a number"),
        ({"temperature": 10**400}, "temperature=10+ must be a number"),
        ({"learning_rate": np.zeros(2)}, "learning_rate=array.* must be a number"),
        ({"learning_rate": np.datetime64("2020")}, "learning_rate=.*date.* must be a number"),
        ({"decay_at": 0.5}, "decay_at=0.5 must be several numbers"),
        ({"decay_at": ("half",)}, "decay_at='half' must be a number"),
        ({"epochs": 10**24}, "epochs=10+ must be less than 9223372036854775808"),
        ({"batch_size": 2**70}, "batch_size=.* must be less than"),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        student(**changes)


def test_fast_settings_are_valid_and_say_what_they_turn_on():
    chosen = fast("cpu")
    settings = student(**chosen)
    assert settings.remember
    assert settings.fold_batch_norm
    able = torch.cpu.get_capabilities()
    hardware = able.get("amx_bf16") or able.get("avx512_bf16")
    assert settings.precision == ("bfloat16" if hardware else "float32")
    assert not settings.compiled
