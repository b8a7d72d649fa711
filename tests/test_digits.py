"""The digits study: a fair search, kept whole, and settings that follow from it."""

import numpy as np
import pandas as pd
import pytest

from ttm_lab.analysis import predict
from ttm_lab.course import digits
from ttm_lab.files import find_root, read_table

SEARCH = find_root(__file__) / "data" / "results" / "digits_search.csv"


@pytest.fixture(scope="module")
def searched() -> pd.DataFrame:
    return read_table(SEARCH)


def test_the_settings_are_what_the_kept_search_chose(searched):
    pd.testing.assert_frame_equal(digits.chosen_settings(), digits.choose(searched))


def test_every_method_family_and_seed_had_the_same_number_of_trials(searched):
    counts = searched.groupby(["seed", "family", "method"]).size()
    assert counts.nunique() == 1
    wanted = {(f, m) for f, methods in digits.FAMILIES.items() for m in methods}
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
    assert digits.choose(table)["learning_rate"].tolist() == [0.3, 0.5]


def test_a_broken_off_search_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "FAMILIES", {"published": ("kd", "wttm"), "no-ce": ("ttm",)})
    monkeypatch.setattr(digits, "TEACHER", digits.replace(digits.TEACHER, max_steps=2))
    whole = digits.search([3], tmp_path / "whole.csv", trials=1)

    with monkeypatch.context() as patch:
        real = digits.teacher_and_data
        answers = [real(3, None)]  # the second call finds nothing and stops the search
        patch.setattr(digits, "teacher_and_data", lambda *_args, **_kwargs: answers.pop())
        with pytest.raises(RuntimeError, match="seed 3: IndexError"):
            digits.search([3], tmp_path / "broken.csv", trials=1)
    assert len(read_table(tmp_path / "broken.csv")) == 2
    digits.search([3], tmp_path / "broken.csv", trials=1)
    pd.testing.assert_frame_equal(read_table(tmp_path / "broken.csv"), whole)


@pytest.mark.slow
def test_a_search_in_processes_writes_the_same_table(tmp_path, monkeypatch, one_thread):
    tables = {}
    for workers in (1, 2):
        monkeypatch.setattr(digits, "free_cores", lambda workers=workers: workers)
        monkeypatch.setattr(digits, "FAMILIES", {"appendix": digits.FAMILIES["appendix"]})
        file = tmp_path / f"{workers}.csv"
        digits.search([1, 3], file, trials=1)
        tables[workers] = file.read_bytes()
    assert tables[1] == tables[2]


def test_the_one_rate_lies_where_the_search_s_worst_method_does_best(searched):
    wanted = (searched["family"] != "tuned") | (searched["method"] == "ce")
    some = searched[wanted & (searched["epochs"] == digits.EPOCHS)]
    some = some.assign(
        quarter=np.floor(4 * np.log10(some["learning_rate"])),
        group=some["method"].map(digits.ONE_RATE),
        accuracy=some["validation_accuracy"].fillna(0.0),  # diverged
    )
    means = some.groupby(["group", "quarter", "family", "method"])["accuracy"].mean()
    worst = means.groupby(["group", "quarter"]).min()
    for rate in set(digits.ONE_RATE.values()):
        assert worst[rate].idxmax() == np.floor(4 * np.log10(rate))
        assert worst[rate].max() > 0.85


def test_settings_by_family():
    tuned = digits.student_settings(0, "tuned")
    published = digits.student_settings(0, "published")
    assert [s.name for s in tuned] == ["CE", "KD", "TTM", "WTTM"]
    assert tuned[1].learning_rate != digits.student_settings(1, "tuned")[1].learning_rate
    one = {f: digits.student_settings(0, f) for f in ("published", "no-ce", "appendix")}
    for family, settings in one.items():  # the same for every seed
        other = digits.student_settings(1, family)
        for a, b in zip(settings, other, strict=True):
            assert (a.learning_rate, a.epochs) == (b.learning_rate, b.epochs)
    # and for both sides of a contrast of B4's second half, B5 and B6
    for same in (published[:2] + one["appendix"], published[2:], one["no-ce"]):
        assert len({(s.learning_rate, s.epochs) for s in same}) == 1
    assert [s.name for s in digits.student_settings(0, "appendix")] == [
        "KD, T = 1",
        "label smoothing",
    ]
    assert all(s.ce_weight == 0 for s in digits.student_settings(0, "no-ce"))
    with pytest.raises(ValueError, match=r"seed 999 was not searched.*search-digits --seeds 999"):
        digits.student_settings(999, "tuned")
    with pytest.raises(ValueError, match="'best' must be one of"):
        digits.student_settings(0, "best")


def test_finished_seeds_are_forgotten_when_the_numbers_change(tmp_path, monkeypatch):
    assert digits.finished_seeds(tmp_path, None) == []
    digits.mark_finished(tmp_path, [0, 1], None)
    assert digits.finished_seeds(tmp_path, None) == [0, 1]
    assert digits.finished_seeds(tmp_path, 2) == []
    for damage in ("[]", "null", "{}", "[" * 100_000, '{"numerics": "3"}', "é"):
        (tmp_path / "damaged").mkdir(exist_ok=True)
        (tmp_path / "damaged/finished.json").write_bytes(damage.encode("latin-1"))
        assert digits.finished_seeds(tmp_path / "damaged", None) == []
    monkeypatch.setattr(digits, "NUMERICS", -1)
    assert digits.finished_seeds(tmp_path, None) == []


def contents(folder):
    files = [p for p in folder.rglob("*") if p.name in ("model.safetensors", "metrics.csv")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_seeds_in_processes_are_those_of_a_loop_byte_for_byte(tmp_path, monkeypatch, one_thread):
    families = ["published", "appendix"]
    serial, parallel = tmp_path / "serial", tmp_path / "parallel"
    with monkeypatch.context() as patch:
        patch.setattr(digits, "run_tasks", None)  # one worker starts no process
        one_by_one = digits.train_seeds([0, 3], families, serial, max_steps=2, workers=1)
    at_once = digits.train_seeds([0, 3], families, parallel, max_steps=2, workers=2)
    assert len(contents(serial)) == 2 * 2 * (1 + 4 + 2)
    assert contents(parallel) == contents(serial)
    config = next(parallel.glob("kd-seed3-*")) / "environment.json"
    assert '"torch_threads": 1' in config.read_text()
    assert list(at_once) == list(one_by_one) == [0, 3]
    for family in families:
        for a, b in zip(at_once[3].students[family], one_by_one[3].students[family], strict=True):
            pd.testing.assert_frame_equal(a.history, b.history, check_exact=True)

    monkeypatch.setattr(digits, "run_tasks", None)  # all is finished: none started
    again = digits.train_seeds([0, 3], families, parallel, max_steps=2, workers=2)
    assert again[3].students["published"][0].folder.parent == parallel


def test_the_grid_of_students_is_trained_once_by_one_teacher(tmp_path, monkeypatch, one_thread):
    first = digits.student_grid(tmp_path, seeds=(0, 1), max_steps=2)
    kinds = first.kinds()
    assert len(kinds) == 1 + 3 * 4
    assert all(first.models["seed"].to_numpy()[rows].tolist() == [0, 1] for rows in kinds.values())
    teacher, data = digits.teacher_and_data(0, tmp_path, max_steps=2)
    assert np.allclose(first.teacher(), predict(teacher.model, data.test))
    assert np.array_equal(first.labels, data.test.labels)
    last = np.array(list(tmp_path.glob("wttm-seed1-*/model.safetensors")))
    assert len(last) == 4

    monkeypatch.setattr("ttm_lab.training.Student.step", None)  # nothing is trained again
    again = digits.student_grid(tmp_path, seeds=(0, 1), max_steps=2)
    assert np.array_equal(again.logits, first.logits)


def test_what_is_unfinished_decides_how_many_processes_start(tmp_path, monkeypatch):
    asked = []

    def noted(_function, tasks, **_options):
        asked.append([seed for seed, *_ in tasks])
        yield from ()

    monkeypatch.setattr(digits, "run_tasks", noted)
    digits.train_students(0, ["no-ce"], tmp_path, max_steps=2)
    digits.train_seeds([0, 3], ["no-ce"], tmp_path, max_steps=2, workers=4)
    digits.train_seeds([0, 3], ["appendix"], tmp_path, max_steps=2, workers=4)
    digits.train_seeds([0, 3], ["appendix"], None, max_steps=2, workers=4)
    assert asked == [[0, 3]]  # first only seed 3 was missing, at last there is nothing to share
    config = next(tmp_path.glob("ttm-seed3-*")) / "config.json"
    for damage in ("[]", "{", ""):
        config.write_text(damage)
        with pytest.warns(UserWarning, match=r"config\.json was (damaged|deleted)"):
            digits.train_seeds([0, 3], ["no-ce"], tmp_path, max_steps=2, workers=4)
    assert asked == [[0, 3]]  # one seed alone is no reason for a process


def test_a_failure_in_a_process_surfaces_with_seed_and_message(tmp_path):
    tasks = [(seed, ["tuned"], tmp_path, 2) for seed in (999, 998)]
    words = r"seed (999|998): ValueError: .*search-digits --seeds \1"
    with pytest.raises(RuntimeError, match=words):
        list(digits._work_off(digits._train_one, tasks, 2, "seeds"))
