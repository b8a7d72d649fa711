"""Rows of the paper's tables made anew: each from one teacher, beside the paper's own data only."""

import json
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from ttm_lab import runs
from ttm_lab.course import paper, paper_rows
from ttm_lab.course.paper_rows import distill_pair, load_teacher, measure, save_results, summarize
from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.files import read_table
from ttm_lab.models import create_model
from ttm_lab.training import Settings, Trained

METHODS = ("ce", "kd", "ttm", "wttm")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("resnet57", "resnet20"), {}, ValueError, "unknown model 'resnet57'"),
        (("resnet56", "resnet21"), {}, ValueError, "unknown model 'resnet21'"),
        (("resnet56", "resnet20", ["KD"]), {}, ValueError, "'KD' must be one of"),
        (("resnet56", "resnet20", ["kd", "foo"]), {}, ValueError, "method='foo' must be one of"),
        (("resnet56", "resnet20", ["kd", "kd"]), {}, ValueError, "methods"),
        (("resnet56", "resnet20", []), {}, ValueError, "methods"),
        (("resnet56", "resnet20"), {"seeds": [0, 0]}, ValueError, "seeds"),
        (("resnet56", "resnet20"), {"seeds": []}, ValueError, "seeds"),
        (("resnet56", "resnet20"), {"seeds": [-1]}, ValueError, "seeds"),
        (("resnet56", "resnet20"), {"changes": {"epochs": 0}}, ValueError, "epochs=0"),
        (("resnet56", "resnet20"), {"changes": {"temperature": 0}}, ValueError, "temperature=0"),
        (("resnet56", "resnet20"), {"weights": "missing.pth"}, FileNotFoundError, "missing.pth"),
        (("resnet20", "resnet8"), {"weights": "published"}, ValueError, "wrn_40_2, resnet56"),
        (("ResNet-50", "MobileNet"), {}, ValueError, "KD from ResNet-50 to MobileNet"),
        (
            ("DeiT III-Small", "DeiT-Tiny"),
            {"changes": {"temperature": 2, "distill_weight": 1}},
            ValueError,
            "give a file",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    arguments, options, error, words, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("the teacher was trained")

    monkeypatch.setattr(paper_rows, "train_teacher", never)
    with pytest.raises(error, match=words):
        distill_pair(None, *arguments, **options)


def test_the_folder_of_an_unfinished_run_is_no_teacher(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="finished run"):
        load_teacher("resnet20", tmp_path, 10)


def test_published_weights_are_for_their_own_classes_only(monkeypatch):
    for name in ("resnet56", "ResNet-34"):
        with pytest.raises(ValueError, match=r"classes apart, these data have 10"):
            load_teacher(name, "published", 10)

    def fails(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fails)
    with pytest.raises(ConnectionError, match=r"resnet18-\w+\.pth cannot be fetched.*no network"):
        load_teacher("ResNet-18", "published", 1000)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = load_dataset("digits", seed=0)
    cut = lambda split, n: Split(split.images[:n], split.labels[:n])  # noqa: E731
    return replace(whole, train=cut(whole.train, 200), test=cut(whole.test, 50))


@pytest.fixture(scope="module")
def row(digits, tmp_path_factory):
    changes = {"epochs": 2, "augmentation": "crop", "track_test": True}
    options = {"folder": tmp_path_factory.mktemp("runs"), "device": "cpu"}
    return distill_pair(digits, "cnn_large", "cnn_small", seeds=(0, 3), changes=changes, **options)


def logits_of(trained: Trained, images) -> np.ndarray:
    with torch.no_grad():
        return trained.model.eval()(images).double().numpy()


def test_a_row_has_every_method_and_seed_from_one_teacher(row):
    made = [(s.settings.method, s.seed) for s in row.students]
    assert made == [(method, seed) for seed in (0, 3) for method in METHODS]
    assert row.teacher.settings.model == "cnn_large"
    assert all(s.settings.epochs == 2 for s in (row.teacher, *row.students))


def test_wttm_outside_the_tables_is_weighed_by_the_mean_power_sum(row, digits):
    logits = logits_of(row.teacher, digits.train.images)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = (p**0.25).sum(1).mean()  # exponent 1/4, on training pictures as they are
    weights = [s.settings.distill_weight for s in row.students if s.name == "WTTM"]
    assert weights == pytest.approx([36 / mean] * 2, rel=1e-5)


def test_a_teacher_comes_from_a_run_folder_or_its_file(row, digits):
    trained = row.teacher.model.state_dict()
    folder = row.teacher.folder
    by_folder, by_file = (
        load_teacher("cnn_large", weights, digits.num_classes)
        for weights in (folder, folder / "model.safetensors")
    )
    for loaded in (by_folder, by_file):
        assert all(torch.equal(w, trained[name]) for name, w in loaded.model.state_dict().items())
    # a run knows how it was trained, a file does not
    assert (by_folder.settings, by_folder.seed) == (row.teacher.settings, row.teacher.seed)
    assert by_folder.history["loss"].to_list() == row.teacher.history["loss"].to_list()
    assert by_file.history.empty


def test_the_loss_s_numbers_do_not_reach_ce_and_teacher(digits):
    changes = {"temperature": 2, "distill_weight": 5, "ce_weight": 0.5, "epochs": 1, "max_steps": 1}
    made = distill_pair(digits, "cnn_small", "cnn_small", ("ce", "wttm"), changes=changes)
    ce, wttm = (s.settings for s in made.students)
    assert (wttm.temperature, wttm.distill_weight, wttm.ce_weight) == (2, 5, 0.5)
    for plain in (ce, made.teacher.settings):
        assert (plain.temperature, plain.distill_weight, plain.ce_weight) == (None, None, 1)


def test_measured_numbers_are_of_the_test_part(row, digits):
    measured = measure(row, digits)
    assert list(measured["method"]) == ["teacher", *["CE", "KD", "TTM", "WTTM"] * 2]
    assert list(measured["seed"]) == [0, *[0] * 4, *[3] * 4]
    assert set(measured["dataset"]) == {"digits"}
    labels = digits.test.labels.numpy()
    teacher_choice = logits_of(row.teacher, digits.test.images).argmax(1)
    for (_, found), one in zip(measured.iterrows(), (row.teacher, *row.students), strict=True):
        choice = logits_of(one, digits.test.images).argmax(1)
        assert found["accuracy"] == pytest.approx(np.mean(choice == labels), abs=1e-12)
        if one is not row.teacher:
            assert found["agreement"] == pytest.approx(np.mean(choice == teacher_choice), abs=1e-12)
        assert found["best_test_accuracy"] == max(one.history["test_accuracy"])
        assert found["accuracy"] == pytest.approx(one.history["test_accuracy"].iloc[-1], abs=1e-12)


def table_of(accuracies: dict, dataset="CIFAR-100", **columns) -> pd.DataFrame:
    rows = [
        {"method": method, "seed": seed, "accuracy": value, "dataset": dataset, **columns}
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("pair", "values"),
    [  # paper, Tables 1 and 11, and 3 and 12
        (
            ("resnet56", "resnet20"),
            {"teacher": (72.34, None), "CE": (69.06, None), "KD": (70.66, 0.24)}
            | {"TTM": (71.83, 0.16), "WTTM": (71.92, 0.40)},
        ),
        (("wrn-40-2", "wrn-16-2"), {"KD": (74.92, 0.28), "WTTM": (76.37, 0.10)}),
        (("wrn_40_2", "wrn_16_2"), {"KD": (74.92, 0.28), "WTTM": (76.37, 0.10)}),
        (("vgg13", "MobileNetV2"), {"teacher": (74.64, None), "CE": (64.60, None)}),
    ],
)
def test_the_paper_s_numbers_stand_beside_their_methods(pair, values):
    shown = summarize(table_of({method: [0.5] for method in values}), *pair)
    for method, (top1, std) in values.items():
        assert shown.loc[method, "paper"] == top1
        if std is None:
            assert np.isnan(shown.loc[method, "paper std"])
        else:
            assert shown.loc[method, "paper std"] == std


def test_imagenet_s_repeated_pair_shows_table_5():
    measured = table_of({"teacher": [0.7], "KD": [0.7], "WTTM": [0.7], "TTM": [0.7]}, "ImageNet")
    for pair in [("ResNet-34", "ResNet-18"), ("torchvision/resnet34", "torchvision/resnet18")]:
        shown = summarize(measured, *pair)["paper"]
        assert shown["KD"] == 70.66  # Table 7 has 71.21
        assert (shown["teacher"], shown["WTTM"]) == (73.31, 72.19)
        assert np.isnan(shown["TTM"])  # never run on ImageNet
    row = paper.published_row("ResNet-34", "ResNet-18", "ImageNet")
    assert row.index.is_unique
    assert row["source"].str.startswith("paper Table 5").all()
    # a pair that only Table 7 has
    assert summarize(measured, "ResNet-50", "ResNet-18")["paper"]["KD"] == 71.35


def test_a_teacher_alone_stands_beside_the_paper_s():
    measured = table_of({"teacher": [0.7]})
    for name in ("wrn-40-2", "wrn_40_2"):
        assert summarize(measured, name, "")["paper"].to_list() == [75.61]  # Table 1
    assert summarize(measured, "resnet8", "")["paper"].isna().all()
    assert summarize(table_of({"teacher": [0.7]}, "digits"), "vgg13", "")["paper"].isna().all()


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "cifar10-jpeg", "cifar100", "ImageNet"])
def test_results_on_other_data_stand_alone(dataset):
    measured = table_of({"KD": [0.5], "WTTM": [0.5]}, dataset)
    assert summarize(measured, "resnet56", "resnet20")["paper"].isna().all()
    nameless = measured.drop(columns="dataset")
    assert summarize(nameless, "resnet56", "resnet20")["paper"].isna().all()


def test_a_summary_is_of_one_data_set():
    mixed = pd.concat([table_of({"KD": [0.5]}), table_of({"KD": [0.9]}, "digits")])
    with pytest.raises(ValueError, match=r"CIFAR-100.*digits"):
        summarize(mixed, "resnet56", "resnet20")


@pytest.mark.parametrize(
    ("name", "classes", "wanted"),
    [("cifar100", 100, "CIFAR-100"), ("cifar100", 7, "cifar100"), ("cifar10", 10, "cifar10")],
)
def test_data_are_the_paper_s_only_with_all_classes(name, classes, wanted):
    part = Split(torch.rand(20, 1, 8, 8), torch.arange(20) % classes)
    empty = Split(part.images[:0], part.labels[:0])
    data = Dataset(name, 0, tuple(map(str, range(classes))), part, empty, part)
    teacher = Trained(create_model("cnn_small", classes), Settings("cnn_small"), 0, pd.DataFrame())
    assert set(measure(paper_rows.TrainedPair(teacher, []), data)["dataset"]) == {wanted}


def test_means_and_intervals_are_scipy_s():
    values = {"KD": [0.701, 0.712, 0.698, 0.709], "TTM": [0.715], "teacher": [0.72]}
    shown = summarize(table_of(values), "resnet56", "resnet20")
    percent = 100 * np.array(values["KD"])
    low, high = stats.t.interval(0.95, 3, loc=percent.mean(), scale=stats.sem(percent))
    found = shown.loc["KD", ["accuracy", "low", "high", "seeds"]].to_list()
    assert found == pytest.approx([percent.mean(), low, high, 4], rel=1e-12)
    assert shown.loc["TTM", "accuracy"] == pytest.approx(71.5)
    assert shown.loc["TTM", ["low", "high"]].isna().all()  # one seed has no interval
    assert list(shown.index) == ["KD", "TTM", "teacher"]
    assert "best epoch on test" not in shown
    best = summarize(table_of({"KD": [0.5, 0.6]}, best_test_accuracy=0.75), "resnet56", "resnet20")
    assert best.loc["KD", "best epoch on test"] == 75


def test_a_saved_table_comes_back_and_says_how_it_was_made(row, digits, tmp_path, monkeypatch):
    home = tmp_path / "home of someone"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    command = ["ttm-lab", "distill", "--root", str(home / "pictures"), f"--output={home}/t.csv"]
    monkeypatch.setattr("sys.argv", command)
    runs.environment.cache_clear()
    try:
        measured = measure(row, digits)
        save_results(home / "t.csv", row, measured, digits)
    finally:
        runs.environment.cache_clear()
    pd.testing.assert_frame_equal(read_table(home / "t.csv"), measured, check_exact=True)
    text = (home / "t.json").read_text()
    assert str(home) not in text
    note = json.loads(text)
    words = note["environment"]["command"]
    assert words.startswith("ttm-lab distill --root '~/pictures'")
    assert pd.Timestamp(note["environment"]["started"]).tzinfo is not None
    assert torch.__version__.startswith(note["environment"]["packages"]["torch"])
    assert note["data"] == {
        "name": "digits",
        "classes": 10,
        "split_seed": 0,
        "train": 200,
        "validation": 360,
        "test": 50,
    }
    # the very teacher that the students' run folders name
    config = json.loads((row.students[0].folder / "config.json").read_text())
    assert note["teacher"] == {"model": "cnn_large", "weights": config["teacher"]}
    assert list(note["settings"]) == ["teacher", "CE", "KD", "TTM", "WTTM"]
    for one in (row.teacher, *row.students):
        again = Settings(**note["settings"][one.name])
        assert again == one.settings


def test_how_a_foreign_teacher_was_trained_is_not_made_up(row, digits, tmp_path):
    weights = row.teacher.folder / "model.safetensors"
    foreign = load_teacher("cnn_large", weights, digits.num_classes)
    save_results(tmp_path / "t.csv", row._replace(teacher=foreign), pd.DataFrame(), digits)
    note = json.loads((tmp_path / "t.json").read_text())
    assert list(note["settings"]) == ["CE", "KD", "TTM", "WTTM"]
    assert note["teacher"]["model"] == "cnn_large"


def test_a_table_needs_a_name_that_leaves_room_for_its_note(row, digits, tmp_path):
    for name in ("t.json", "t"):
        with pytest.raises(ValueError, match="must end in"):
            save_results(tmp_path / name, row, pd.DataFrame(), digits)
    assert not list(tmp_path.iterdir())
