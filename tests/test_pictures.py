"""A reader's own pictures: a test part drawn, a teacher fine-tuned, students and their report."""

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ttm_lab import analysis
from ttm_lab.course import cli, pictures
from ttm_lab.data import load_dataset
from ttm_lab.models import create_model, load_weights
from ttm_lab.runs import environment
from ttm_lab.settings import Settings
from ttm_lab.training import train_teacher

KINDS = {"cat": 10, "dog": 15, "eel": 5}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a folder of pictures for each class, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTM_LAB_RUNS", str(tmp_path / "runs"))
    random = np.random.default_rng(0)
    for kind, count in KINDS.items():
        (tmp_path / "mine" / kind).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / kind / f"{number}.png")
    return tmp_path / "mine"


def kept_network(path, classes=100):
    network = create_model("resnet8", classes, seed=3)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return network


def test_a_test_part_is_drawn_from_class_folders_alone(mine):
    parts = {"validation": 0.25, "test_share": 0.2, "workers": 0}
    data = load_dataset("folder", root=mine, **parts)
    assert data.class_names == tuple(KINDS)
    counts = {p: np.bincount(getattr(data, p).labels).tolist() for p in data.indices}
    assert counts == {"train": [6, 9, 3], "validation": [2, 3, 1], "test": [2, 3, 1]}
    everything = np.concatenate([data.indices[part] for part in counts])
    assert sorted(everything) == list(range(30))
    again = load_dataset("folder", root=mine, **parts)
    other = load_dataset("folder", root=mine, seed=1, **parts)
    assert again.fingerprint == data.fingerprint != other.fingerprint
    files = load_dataset("folder", root=mine, size=100, **parts)  # these stay in their files
    for part, places in data.indices.items():
        assert (files.indices[part] == places).all()
        assert (getattr(files, part).labels == getattr(data, part).labels).all()


def assert_same_answer(report, method, seed, path, data):
    """The report's code answers for a picture of the test part as the measured student did."""
    (folder,) = (path.parents[2] / "runs" / "mine-resnet8-resnet8").glob(f"{method}-seed{seed}-*")
    network = load_weights(create_model("resnet8", 3), folder / "model.safetensors").eval()
    (code,) = re.findall(r"```python\n(.*?)```", report, re.S)
    found = {}
    exec(code.replace('"new.jpg"', repr(str(path))), found)
    wanted = analysis.predict(network, data.test)[:1]
    np.testing.assert_allclose(found["logits"].numpy(), wanted, atol=0.02)
    assert found["classes"] == list(data.class_names)


def test_a_test_part_is_drawn_from_train_where_it_stands_alone(mine):
    flat = load_dataset("folder", root=mine, test_share=0.2)
    (mine / "train").mkdir()
    for kind in KINDS:
        (mine / kind).rename(mine / "train" / kind)
    data = load_dataset("folder", root=mine, test_share=0.2)
    assert torch.equal(data.test.images, flat.test.images)
    (mine / "test").mkdir()
    with pytest.raises(ValueError, match="has a folder 'test' or 'val': leave out test_share"):
        load_dataset("folder", root=mine, test_share=0.2)


@pytest.mark.parametrize(("name", "share"), [("folder", 0), ("folder", 1.0), ("digits", 0.2)])
def test_a_share_that_makes_no_sense_is_named(mine, name, share):
    with pytest.raises(ValueError, match=f"test_share={share} must lie between 0 and 1"):
        load_dataset(name, root=mine, test_share=share)


def test_a_class_too_small_to_share_is_named(mine):
    with pytest.raises(ValueError, match=r"test=0.05 .*the rarest, 'eel', has 5"):
        load_dataset("folder", root=mine, test_share=0.05)


def test_a_training_starts_from_a_network_and_is_known_by_it(mine):
    data = load_dataset("folder", root=mine, test_share=0.2, validation=0)
    still = Settings("resnet8", epochs=1, max_steps=1, learning_rate=1e-30, weight_decay=0)
    starts = [create_model("resnet8", 3, seed=seed) for seed in (7, 8)]
    options = {"folder": mine.parent / "runs" / "a", "device": "cpu", "progress": False}
    trained = [train_teacher(data, still, start=start, **options) for start in starts]
    trained.append(train_teacher(data, still, **options))
    assert len({one.folder for one in trained}) == 3
    for one, start in zip(trained, starts, strict=False):
        for name, parameter in one.model.named_parameters():
            torch.testing.assert_close(parameter, start.get_parameter(name), atol=1e-20, rtol=0)
    assert train_teacher(data, still, start=starts[0], **options).folder == trained[0].folder
    assert "start" not in json.loads((trained[2].folder / "config.json").read_text())


def test_fine_tuning_takes_all_but_the_last_layer(mine):
    network = kept_network(mine.parent / "weights.safetensors")
    fresh = create_model("resnet8", 3, seed=0)
    last = fresh.fc.weight.clone()
    made = pictures.with_new_head(network, fresh)
    assert torch.equal(made.fc.weight, last)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wanted = network.eval().forward_features(x)
    assert torch.equal(made.eval().forward_features(x), wanted)
    with pytest.raises(ValueError, match="another network's: layer"):
        pictures.with_new_head(create_model("resnet14", 100), fresh)


def test_one_command_leaves_students_and_their_report(mine, capsys, monkeypatch):
    kept_network("weights.safetensors")
    command = (
        "distill --data folder --root mine --test-share 0.2 --pair resnet8:resnet8 --fine-tune 2 "
        "--teacher weights.safetensors --epochs 1 --methods kd,ttm --seeds 2 --output mine.csv"
    )
    monkeypatch.setattr(sys, "argv", ["ttm-lab", *command.split()])
    environment.cache_clear()  # it has read the command of these tests
    assert cli.main() == 0
    assert "Report: mine.md" in capsys.readouterr().out
    table, report = pd.read_csv("mine.csv"), (mine.parent / "mine.md").read_text()
    assert "24 pictures to train on and 6 to test on, of 3 classes; epochs: 1" in report
    assert f"ttm-lab {command}" in report
    for method, rows in table.groupby("method"):
        (line,) = re.findall(rf"^\| {method} \|(.*)\|$", report, re.M)
        seeds, parameters, accuracy, nll, ece, entropy, *_ = line.replace(",", "").split("|")
        assert int(seeds) == len(rows)
        assert int(parameters) == sum(p.numel() for p in create_model("resnet8", 3).parameters())
        wanted = 100 * rows["accuracy"].mean(), *(rows[k].mean() for k in ("nll", "ece", "entropy"))
        found = [float(x) for x in (accuracy, nll, ece, entropy)]
        assert found == pytest.approx(wanted, abs=6e-4, rel=1e-5)
    data = load_dataset("folder", root=mine, test_share=0.2, validation=0)
    tested = sorted(mine.rglob("*.png"))[data.indices["test"][0]]
    best = table[table["method"] != "teacher"].nlargest(1, "accuracy").iloc[0]
    assert_same_answer(report, best["method"].lower(), best["seed"], tested, data)
    (teacher,) = (mine.parent / "runs" / "mine-resnet8").iterdir()
    assert json.loads((teacher / "config.json").read_text())["settings"]["epochs"] == 2


def test_pictures_in_files_get_what_they_offer_and_a_wrong_wish_costs_no_teacher(mine, capsys):
    kept_network("weights.safetensors")
    (mine / "cat" / "one.HEIC").write_bytes(b"a telephone's")
    (mine / "cat" / ".DS_Store").write_bytes(b"hidden")
    command = (
        "distill --data folder --root mine --test-share 0.2 --pair resnet8:resnet8 --size 72 "
        "--teacher weights.safetensors --fine-tune 1 --epochs 1 --max-steps 1 --methods ttm "
        "--workers 0 --output mine.csv"
    )
    assert cli.main([*command.split(), "--augmentation", "crop-flip"]) == 2
    said = capsys.readouterr().err
    assert (
        "crop-flip' does not fit mine, whose pictures offer ('none', 'resized-crop-flip')" in said
    )
    assert "left out: 1 .heic; pictures end in .jpg" in said
    assert not (mine.parent / "runs").exists()
    assert cli.main(command.split()) == 0
    (student,) = (mine.parent / "runs" / "mine-resnet8-resnet8").iterdir()
    settings = json.loads((student / "config.json").read_text())["settings"]
    assert settings["augmentation"] == "resized-crop-flip"
    with pytest.warns(UserWarning, match=r"left out: 1 \.heic"):
        data = load_dataset("folder", root=mine, size=72, test_share=0.2, validation=0, workers=0)
    report = (mine.parent / "mine.md").read_text()
    assert_same_answer(report, "ttm", 0, mine / data.test.paths[0], data)


def test_a_teacher_of_other_classes_is_refused_with_the_option_that_helps(mine, capsys):
    command = "distill --data folder --root mine --test-share 0.2 --pair resnet56:resnet8 --methods"
    assert cli.main([*command.split(), "kd", "--fine-tune", "1", "--teacher", "missing"]) == 2
    assert "there is no missing" in capsys.readouterr().err
    weights = kept_network("weights.safetensors", classes=7) and "weights.safetensors"
    command = command.replace("resnet56", "resnet8")
    assert cli.main([*command.split(), "kd", "--fine-tune", "1", "--teacher", weights]) == 2
    assert "other shapes ['fc.weight: file (7, 64), model (100, 64)" in capsys.readouterr().err
