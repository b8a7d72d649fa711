"""The digits study: a fair search, kept whole, and settings that follow from it."""

import pandas as pd
import pytest

from ttm_lab import runs, studies

SEARCH = runs.find_root(__file__) / "data" / "results" / "digits_search.csv"


@pytest.fixture(scope="module")
def searched() -> pd.DataFrame:
    return runs.read_table(SEARCH)


def test_the_settings_are_what_the_kept_search_chose(searched):
    pd.testing.assert_frame_equal(studies.chosen_settings(), studies.choose(searched))


def test_every_method_family_and_seed_had_the_same_number_of_trials(searched):
    counts = searched.groupby(["seed", "family", "method"]).size()
    assert counts.nunique() == 1
    wanted = {(f, m) for f, methods in studies.FAMILIES.items() for m in methods}
    wanted -= {("published", "ce")}  # shared with "tuned"
    for _, rows in searched.groupby("seed"):
        assert set(zip(rows["family"], rows["method"], strict=True)) == wanted


def test_all_methods_draw_from_the_same_ranges(searched):
    assert searched["learning_rate"].between(0.0005, 0.3).all()
    assert set(searched["epochs"]) == {10, 15, 20}
    by_method = searched.groupby("method")["learning_rate"].agg(["min", "max"])
    assert (by_method["min"] < 0.002).all()
    assert (by_method["max"] > 0.1).all()
    published = searched[searched["family"] == "published"].set_index("method")
    assert (published["temperature"] == 4.0).all()
    assert (published.loc["kd", "distill_weight"] == 0.9).all()
    assert (published.loc["ttm", "distill_weight"] == 36.0).all()  # lambda T / (1 - lambda)


def test_the_best_trial_has_the_highest_accuracy_then_the_lowest_nll():
    table = pd.DataFrame(
        {
            "seed": 0,
            "family": "tuned",
            "method": ["kd", "kd", "kd", "kd", "ttm"],
            "learning_rate": [0.1, 0.2, 0.3, 0.4, 0.5],
            "validation_accuracy": [0.9, 0.95, 0.95, float("nan"), 0.5],
            "validation_nll": [0.1, 0.3, 0.2, float("nan"), 1.0],
        }
    )
    assert studies.choose(table)["learning_rate"].tolist() == [0.3, 0.5]


def test_a_broken_off_search_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "FAMILIES", {"published": ("kd", "wttm"), "no-ce": ("ttm",)})
    monkeypatch.setattr(studies, "TEACHER", studies.replace(studies.TEACHER, max_steps=2))
    whole = studies.search([3], tmp_path / "whole.csv", trials=1)

    with monkeypatch.context() as patch:
        real = studies.teacher_and_data
        answers = iter([real(3, None)])  # the second call finds nothing and stops the search
        patch.setattr(studies, "teacher_and_data", lambda *_args, **_kwargs: next(answers))
        with pytest.raises(StopIteration):
            studies.search([3], tmp_path / "broken.csv", trials=1)
    assert len(runs.read_table(tmp_path / "broken.csv")) == 2
    studies.search([3], tmp_path / "broken.csv", trials=1)
    pd.testing.assert_frame_equal(runs.read_table(tmp_path / "broken.csv"), whole)


def test_settings_by_family():
    tuned = studies.student_settings(0, "tuned")
    published = studies.student_settings(0, "published")
    assert [s.label for s in tuned] == ["CE", "KD", "TTM", "WTTM"]
    assert tuned[0] == published[0]  # CE is one student, trained once
    assert [s.label for s in studies.student_settings(0, "appendix")] == [
        "KD, T = 1",
        "label smoothing",
    ]
    assert all(s.ce_weight == 0 for s in studies.student_settings(0, "no-ce"))
    with pytest.raises(ValueError, match=r"seed 999 was not searched.*search-digits --seeds 999"):
        studies.student_settings(999, "tuned")
    with pytest.raises(ValueError, match="'best' must be one of"):
        studies.student_settings(0, "best")


def test_finished_seeds_are_forgotten_when_the_training_code_changes(tmp_path, monkeypatch):
    assert studies.finished_seeds(tmp_path, None) == []
    studies.mark_finished(tmp_path, [0, 1], None)
    assert studies.finished_seeds(tmp_path, None) == [0, 1]
    assert studies.finished_seeds(tmp_path, 2) == []
    monkeypatch.setattr(runs, "code_fingerprint", lambda: "other")
    assert studies.finished_seeds(tmp_path, None) == []
