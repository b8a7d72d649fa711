"""Probes, the geometry of features, and the kept rows of transfer, against closed forms."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ttm_lab.course import transfer


def blobs(classes=4, count=30, spread=0.3, seed=0):
    """Features around a corner for each class, in three parts, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), count)
    parts = ("pool", "validation", "test")
    places = 5 * np.eye(classes)[labels]
    x = {p: places + random.normal(0, spread, places.shape) for p in parts}
    return x, dict.fromkeys(parts, labels)


def test_draws_take_the_same_number_of_each_class_and_know_their_number():
    labels = np.array([0, 1, 1, 2, 2, 2, 2, 0, 1, 0])
    places = transfer.drawn(labels, 3, 0)
    assert sorted(labels[places]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(set(places)) == len(places)
    assert (transfer.drawn(labels, 3, 0) == places).all()
    assert len({tuple(transfer.drawn(labels, 1, draw)) for draw in range(20)}) > 5
    assert sorted(labels[transfer.drawn(labels, 4, 0)]) == sorted(labels)


def test_a_probe_finds_what_features_tell_and_nothing_else():
    x, labels = blobs()
    assert transfer.probe(x, labels, 5)["accuracy"] == 100
    random = np.random.default_rng(1)
    noise = {part: random.normal(size=values.shape) for part, values in x.items()}
    assert transfer.probe(noise, labels, 5)["accuracy"] == pytest.approx(25, abs=12)


def test_a_probe_does_not_see_the_scale_of_features():
    x, labels = blobs(spread=2.5)
    factor, shift = np.array([1e3, 1e-3, 1, 50]), np.array([0, 5, -3, 100])
    scaled = {part: values * factor + shift for part, values in x.items()}
    found, same = transfer.probe(x, labels, 5), transfer.probe(scaled, labels, 5)
    assert found["chosen"] == same["chosen"]
    assert found["accuracy"] == pytest.approx(same["accuracy"], abs=1)


def test_accuracy_is_the_mean_over_classes_and_validation_chooses():
    x, labels = blobs(classes=2, spread=0.01)
    x["test"] = np.concatenate([x["test"][:1], x["test"][30:]])  # one picture of class 0
    x["test"][0] = x["test"][-1]  # which looks like class 1
    labels["test"] = np.array([0] + [1] * 30)
    assert transfer.probe(x, labels, 5)["accuracy"] == 50
    wrong = {**labels, "validation": 1 - labels["validation"]}  # all C are equally bad: the first
    assert transfer.probe(x, wrong, 5, strengths=(0.1, 1.0))["chosen"] == 0.1


def test_separation_is_one_for_single_directions_and_zero_for_none():
    labels = np.arange(300) % 3
    assert transfer.separation(np.eye(3)[labels] * 7, labels) == pytest.approx(1)
    random = np.random.default_rng(0)
    assert transfer.separation(random.normal(size=(30_000, 8)), np.arange(30_000) % 3) < 1e-3
    x = random.normal(size=(24, 5)) + 2 * np.eye(5)[labels[:24]]
    unit, y = x / np.linalg.norm(x, axis=1, keepdims=True), labels[:24]
    distance = 1 - unit @ unit.T  # pair by pair, each picture with itself too
    within = np.mean([distance[np.ix_(y == k, y == k)].mean() for k in range(3)])
    assert transfer.separation(x, y) == pytest.approx(1 - within / distance.mean())


def kept_rows(arms, seeds=3):
    random, rows = np.random.default_rng(0), []
    for place, name in enumerate(("one", "two")):
        for arm in [*arms, "untrained", "pixels", "teacher"]:
            for seed in range(1 if arm in ("pixels", "teacher") else seeds):
                for way, counts in (("probe", (1, 5)), ("fine-tuning", (5,))):
                    if way == "probe" or (place and arm in arms):
                        for n in counts:
                            row = {"students": "resnet8", "dataset": name, "way": way}
                            row |= {"pictures": n, "arm": arm, "seed": seed, "draw_sd": 1.0}
                            rows.append(row | {"accuracy": random.uniform(20, 60)})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("arms", [("ce", "kd", "ttm", "wttm"), ("ce", "kd", "kd10", "ttm", "wttm")])
def test_kept_rows_are_judged_with_the_arms_that_there_are(tmp_path, arms):
    table = kept_rows(arms)
    table.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "rows.json").write_text(json.dumps({"resnet8": {"command": "c"}}))
    tables, notes = transfer.read_kept(tmp_path / "rows.csv")
    assert notes["resnet8"]["command"] == "c"
    rows = tables["resnet8"]
    found = transfer.judged(rows).set_index("name")
    assert len(found) == (8 if "kd10" in arms else 4) == found["contrasts"].iloc[0]
    wide = table[table["way"] == "probe"].groupby(["arm", "seed"])["accuracy"].mean()
    gaps = wide["ttm"] - wide["kd"]
    contrast = found.loc["TTM minus KD, probe"]
    assert contrast["difference"] == pytest.approx(gaps.mean())
    half = stats.t.isf(0.025 / len(found), 2) * gaps.std() / 3**0.5
    assert contrast["high"] - contrast["low"] == pytest.approx(2 * half)
    tuned = table[table["way"] == "fine-tuning"].pivot(index="seed", columns="arm")["accuracy"]
    wanted = (tuned["wttm"] - tuned["kd"]).mean()
    assert found.loc["WTTM minus KD, fine-tuning", "difference"] == pytest.approx(wanted)


def test_a_network_that_misses_a_number_of_pictures_is_left_out(tmp_path):
    table = kept_rows(("kd", "ttm", "wttm"))
    gone = (table["arm"] == "ttm") & (table["seed"] == 1) & (table["pictures"] == 5)
    table[~gone].to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "rows.json").write_text("{}")
    rows = transfer.read_kept(tmp_path / "rows.csv")[0]["resnet8"]
    assert set(transfer.judged(rows)["seeds"]) == {2}
