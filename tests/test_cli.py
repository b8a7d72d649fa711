"""The commands do what they say, go on where they stopped, and refuse in one line."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats

from ttm_lab import data, training
from ttm_lab.course import batch, cli, digits, paper_commands, paper_rows
from ttm_lab.course.outputs import Outputs
from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.files import read_table
from ttm_lab.models import create_model, load_weights

# Imports every module of the library as if only the plain dependencies were installed.
WITHOUT_EXTRAS = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    names = set(sys.argv[1].split(","))
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import ttm_lab
"""
EXTRAS = (
    "IPython,ipykernel,ipywidgets,jupyterlab,matplotlib,nbclient,nbconvert,nbformat,papermill,"
    "psutil,seaborn,sympy,hypothesis,pytest,torchmetrics,yaml"
)


def without_extras(code):
    command = [sys.executable, "-c", WITHOUT_EXTRAS + code, EXTRAS]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_library_needs_no_notebook_packages():
    modules = "probability losses data models runs training analysis course.digits course.cli"
    modules += " course.paper course.paper_rows course.paper_commands"
    code = f"import importlib\nfor m in {modules.split()}: importlib.import_module('ttm_lab.' + m)"
    done = without_extras(code)
    assert done.returncode == 0, done.stderr


def test_batch_without_notebook_packages_says_what_to_install():
    done = without_extras("from ttm_lab.course.cli import main\nsys.exit(main(['reproduce']))")
    assert done.returncode == 2
    assert "pip install 'ttm-lab[notebooks]'" in done.stderr


def test_options_reach_the_batch(monkeypatch):
    seen = {}
    monkeypatch.setattr(batch, "reproduce", lambda *a, **k: seen.update(profile=a[0], **k) or 0)
    words = "--profile paper --only 01,02 05 --jobs 3 --timeout 9.5 --name n --root r --fresh"
    given = ["-p", "max_steps=2", "-p", "data=cifar10", "-p", "flag=None", "-p", "path=a=b"]
    assert cli.main(["reproduce", *words.split(), *given]) == 0
    assert seen == {
        "profile": "paper",
        "only": ["01", "02", "05"],
        "parameters": {"max_steps": 2, "data": "cifar10", "flag": None, "path": "a=b"},
        "jobs": 3,
        "timeout": 9.5,
        "name": "n",
        "root": "r",
        "fresh": True,
    }


@pytest.mark.parametrize("words", [["-p", "value"], ["-p", "a b=1"], ["--profile", "huge"]])
def test_mistyped_options_are_refused(words, capsys):
    assert cli.main(["reproduce", *words]) == 2
    assert words[1] in capsys.readouterr().err


def test_a_search_adds_its_seeds_and_keeps_the_others(tmp_path, monkeypatch, capsys):
    settings = tmp_path / "settings.csv"
    kept = digits.chosen_settings()
    settings.write_text(kept.to_csv(index=False))
    monkeypatch.setattr(digits, "SETTINGS_FILE", settings)
    found = kept[kept["seed"] == 0].assign(seed=99)
    monkeypatch.setattr(digits, "search", lambda seeds, path, *, trials: found)
    command = ["search-digits", "--seeds", "99", "--output", str(tmp_path / "new.csv")]
    assert cli.main(command) == 0
    merged = read_table(settings)
    assert set(merged["seed"]) == {*kept["seed"], 99}
    assert len(merged) == len(kept) + len(found)
    budget = ["search-digits", "--seeds", "99", "--trials", "1"]
    assert cli.main(budget) == 2
    assert "would not be an equal budget" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    settings = training.Settings("cnn_small", epochs=1, max_steps=1)
    return training.train_teacher(
        load_dataset("digits"), settings, folder=folder, device="cpu", progress=False
    ).folder


DOCUMENTS = {
    "list": b"[]",
    "nothing": b"null",
    "number": b"17",
    "text": b'"config"',
    "empty object": b"{}",
    "empty": b"",
    "half right": b'{"settings": {"model": "cnn_small"}, "seed": 0}',
    "other kinds": b'{"settings": [], "seed": {}, "data": 3}',
    "unhashable": b'{"settings": {"model": [], "method": {}}, "seed": 0, "data": {"name": []}}',
    "deep": b"[" * 100_000,
    "latin": "{'é': 1}".encode("latin-1"),
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "zeros": bytes(100),
    "table": b"a,b\n1,2\n1,2,3,4\n",
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("file", ["config.json", "metrics.csv"])
def test_a_run_with_a_damaged_file_is_refused_by_its_name(name, file, finished, workplace, capsys):
    shutil.copytree(finished, "run")
    Path("run", file).write_bytes(DOCUMENTS[name])
    error = refusal("evaluate run --device cpu", capsys)
    assert f"run/{file} is missing, damaged or no run's" in error
    assert "give its model.safetensors" in error


def test_a_run_from_before_checksums_is_read_or_named(finished, workplace, capsys):
    shutil.copytree(finished, "run")
    table = hashlib.sha256(Path("run/metrics.csv").read_bytes()).hexdigest()
    state = load_file("run/model.safetensors")
    save_file(state, "run/model.safetensors", {"metrics_sha256": table})
    assert call("evaluate run --device cpu") == 0
    capsys.readouterr()
    for notes in ({"metrics_sha256": table}, {}):
        save_file(state, "run/model.safetensors", notes)
        for name in ("empty", "utf-16", "table"):
            Path("run/metrics.csv").write_bytes(DOCUMENTS[name])
            assert "run/metrics.csv is missing, dam" in refusal("evaluate run --device cpu", capsys)
    for content in DOCUMENTS.values():  # no checksum says that these are not its config
        Path("run/config.json").write_bytes(content)
        assert "run/config.json is missing, dam" in refusal("evaluate run --device cpu", capsys)


def test_settings_of_another_version_are_named(finished, workplace, capsys):
    shutil.copytree(finished, "run")
    save_file(load_file("run/model.safetensors"), "run/model.safetensors")
    path = Path("run/config.json")
    path.write_text(path.read_text().replace('"momentum"', '"impulse"'))
    assert call("evaluate run --device cpu") == 0  # its weights are all that this needs
    capsys.readouterr()
    command = "distill --data digits --pair cnn_small:cnn_tiny --methods kd --teacher run"
    error = refusal(f"{command} --device cpu", capsys)
    assert "run/config.json holds settings of another version" in error
    assert "'impulse'" in error


@pytest.mark.parametrize("words", [["--seeds", "5-3"], ["--seeds", "1", "--trials", "0"]])
def test_a_search_of_nothing_is_refused(words):
    assert cli.main(["search-digits", *words]) == 2


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to run commands in, with nothing downloaded and no runs yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTM_LAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TTM_LAB_DATA", str(tmp_path / "data"))
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def call(command: str) -> int:
    return cli.main(shlex.split(command))


def refusal(command: str, capsys) -> str:
    """The one line that a refused command writes."""
    assert call(command) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("ttm-lab")
    return shown.err


NAMED = "distill --pair resnet56:resnet20"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("distill --pair x", "'x' is not TEACHER:STUDENT"),
        ("distill --pair resnet56:resnet21", "unknown model 'resnet21'; available: MobileNetV2,"),
        ("distill --pair resnet57:resnet20", "unknown model 'resnet57'"),
        (f"{NAMED} --methods kd,foo", "'foo' must be one of ('ce', 'kd', 'ttm', 'wttm'"),
        (f"{NAMED} --methods kd,kd", "each different"),
        (f"{NAMED} --methods dkd", "(on the command line --temperature X --distill-weight X)"),
        (f"{NAMED} --methods dist --temperature 4", "no distill_weight of DIST"),
        (f"{NAMED} --methods kd+std --temperature 2", "no distill_weight of KD+STD"),
        (f"{NAMED} --seeds 0", "--seeds: '0'"),
        (f"{NAMED} --seeds 1,1", "each different"),
        (f"{NAMED} --seeds 5-3", "'5-3' is not like 0-11 or 3,5"),
        (f"{NAMED} --epochs 0", "--epochs: '0' is not a whole number of at least 1"),
        (f"{NAMED} --learning-rate -1", "learning_rate=-1.0 must be positive"),
        (f"{NAMED} --learning-rate nan", "learning_rate=nan must be positive"),
        (f"{NAMED} --temperature 0", "temperature=0.0 must be positive"),
        (f"{NAMED} --precision fp16", "choose from"),
        (f"{NAMED} --augmentation mirror", "must be one of ('none', 'crop', 'crop-flip'"),
        (f"{NAMED} --split-seed -1", "--split-seed: '-1'"),
        (f"{NAMED} --device cuda", "--device cuda cannot be used here"),
        (f"{NAMED} --device gpu", "--device gpu cannot be used here"),
        (f"{NAMED} --teacher missing.pth", "no missing.pth: give a file of weights, the folder of"),
        (f"{NAMED} --teacher .", "not the folder of a finished run"),
        ("distill --pair resnet20:resnet8 --teacher published", "only for wrn_40_2, resnet56"),
        (f"{NAMED} --output table.json", "must end in .csv"),
        (f"{NAMED} --output file/table.csv", "--output file/table.csv"),
        (f"{NAMED} --keep-logits table.csv", "--keep-logits table.csv must end in .npz"),
        (f"{NAMED} --per-class 0", "--per-class: '0'"),
        ("train-teacher --model resnet57", "unknown model 'resnet57'"),
        ("train-teacher", "--model"),
        ("train-teacher --model resnet20 --seed -1", "--seed: '-1'"),
        ("evaluate missing", "there is no missing: give a file of weights"),
        ("evaluate file", "say whose it is with --model"),
        ("evaluate . --model resnet20", "not the folder of a finished run"),
        ("evaluate file --model resnet57", "unknown model 'resnet57'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    command, words, workplace, monkeypatch, capsys
):
    if "--device cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a GPU")

    def never(*_, **__):
        raise AssertionError("data were loaded")

    monkeypatch.setattr(data, "load_dataset", never)
    Path("file").write_bytes(b"")
    assert words in refusal(command, capsys)
    assert os.listdir() == ["file"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--data folder", "needs root=, the folder: pictures belong in root/train/"),
        ("--data imagenet", "needs root=, the folder"),
        ("--data digits --validation 0.2", "leave out root and validation"),
        ("--validation 1.5", "validation=1.5 must be a share from 0 to below 1"),
        ("--data nonsense", "unknown data set 'nonsense'; available: 'digits', 'cifar10'"),
        ("--data folder --root nowhere", "there is no folder"),
        ("--data digits --workers 1 --size 8 --augmentation resized-crop-flip", "augmentation="),
    ],
)
def test_data_that_are_not_there_are_refused_before_a_teacher_is_trained(
    command, words, workplace, monkeypatch, capsys
):
    assert words in refusal(f"{NAMED} {command}", capsys)
    assert os.listdir() == []


def test_weights_of_other_classes_are_refused(workplace, capsys):
    torch.save(create_model("resnet8", 100).state_dict(), "hundred.pth")
    error = refusal("evaluate hundred.pth --model resnet8 --data digits", capsys)
    assert "fc.weight: file (100, 64), model (10, 64)" in error


def test_imagenet_s_methods_are_those_with_published_settings(workplace, monkeypatch, capsys):
    monkeypatch.setattr(
        paper_rows, "distill_pair", lambda *a, **k: pytest.fail("no data were needed")
    )
    assert call("distill --pair ResNet-34:ResNet-18") == 2
    assert capsys.readouterr().err.startswith("ttm-lab: no ttm: its settings for this pair")
    asked = paper_commands._default_methods
    assert asked("ResNet-34", "ResNet-18", {}) == ["ce", "kd", "wttm"]
    assert asked("ResNet-50", "MobileNet", {}) == ["ce", "wttm"]
    assert asked("resnet56", "resnet20", {}) == ["ce", "kd", "ttm", "wttm"]
    assert asked("resnet20", "resnet8", {}) == ["ce", "kd", "ttm", "wttm"]
    given = {"temperature": 2.0, "distill_weight": 3.0}
    assert asked("DeiT III-Small", "DeiT-Tiny", given) == ["ce", "kd", "ttm", "wttm"]
    capsys.readouterr()
    # WTTM is what the paper is about: it is asked for, never left out
    assert call("distill --pair 'DeiT III-Small:DeiT-Tiny'") == 2
    assert "temperature and distill_weight of WTTM" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["train-teacher", "distill", "evaluate", "fetch-teacher", "handout"]
)
def test_help_shows_an_example_that_works(command, capsys):
    assert call(f"{command} --help") == 0
    text = capsys.readouterr().out
    (example,) = re.findall(r"^Example: ttm-lab (.*)$", text, re.MULTILINE)
    assert cli._parser().parse_args(shlex.split(example)).command == command
    shown = set(re.findall(r"--[a-z-]+", text))
    assert set(re.findall(r"--[a-z-]+", example)) <= shown


def test_an_unknown_published_teacher_is_answered_with_the_known_ones(workplace, capsys):
    error = refusal("fetch-teacher resnet21", capsys)
    for name in ("wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50"):
        assert name in error
    assert os.listdir() == []


SMALL = "--data digits --max-steps 2 --device cpu"


def numbers(text: str) -> dict[str, list[str]]:
    """The rows of the first printed table, by method."""
    rows = [line.split() for line in text.partition("\n\n")[0].splitlines()]
    return {words[0]: words[1:] for words in rows if words[1:] and words[0] != "method"}


def never_trains(*_, **__):
    raise AssertionError("something was trained")


def test_a_row_from_the_command_line(workplace, monkeypatch, capsys):
    command = f"distill --pair resnet8:resnet8 {SMALL} --size 16 --seeds 2 --output out/row.csv"
    command += " --keep-logits out/logits.npz --per-class 3"
    assert call(command) == 0
    first = capsys.readouterr()
    measured = read_table("out/row.csv")
    students = ["CE", "KD", "TTM", "WTTM"]
    assert list(measured["method"]) == ["teacher", *students * 2]
    assert list(measured["seed"]) == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert set(measured["dataset"]) == {"digits"}
    shown = numbers(first.out)
    for method in students:
        values = 100 * measured.loc[measured["method"] == method, "accuracy"]
        low, high = stats.t.interval(0.95, 1, loc=values.mean(), scale=stats.sem(values) + 1e-300)
        assert shown[method] == [f"{values.mean():.2f}", f"{low:.2f}", f"{high:.2f}", "2"]
    assert "paper" not in first.out.splitlines()[1]  # the paper has nothing on digits
    assert "The paper has no results of this pair on digits." in first.out
    note = json.loads(Path("out/row.json").read_text())
    assert note["data"]["name"] == "digits"
    assert note["settings"]["KD"]["temperature"] == 4

    # the logits kept are those of the same networks, for the first three pictures of each class
    kept = Outputs.load("out/logits.npz")
    assert kept.logits.shape == (9, 30, 10)
    assert list(kept.models["method"]) == list(measured["method"])
    labels = load_dataset("digits", seed=0, size=16).test.labels.numpy()
    assert np.array_equal(kept.labels, labels[kept.pictures])
    for k in range(10):
        assert kept.pictures[kept.labels == k].tolist() == np.flatnonzero(labels == k)[:3].tolist()
    assert json.loads(Path("out/logits.json").read_text())["settings"] == note["settings"]

    # every run is there, whole, and with what the command line and the published recipe say
    folders = sorted(Path("runs").glob("*/*"))
    assert len(folders) == 9  # a teacher, with others of its kind, and the pair's students
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        made = config["settings"]
        assert made["model"] == "resnet8"
        assert (made["max_steps"], made["epochs"], made["batch_size"]) == (2, 240, 64)
        assert made["augmentation"] == "crop"  # a mirrored digit is no digit
        assert load_weights(create_model(made["model"], 10), folder / "model.safetensors")

    # the accuracies are those of the weights on disk
    pictures = load_dataset("digits", seed=0, size=16).test
    ((images, labels),) = pictures.batches(len(pictures))
    kept = next(folder for folder in folders if folder.name.startswith("kd-seed1"))
    network = load_weights(create_model("resnet8", 10), kept / "model.safetensors").eval()
    with torch.no_grad():
        accuracy = (network(images).argmax(1) == labels).double().mean().item()
    row = measured[(measured["method"] == "KD") & (measured["seed"] == 1)]
    assert row["accuracy"].item() == pytest.approx(accuracy, abs=1e-9)

    # once more: nothing is trained, the same is printed
    monkeypatch.setattr("ttm_lab.training.Student.step", never_trains)
    assert call(command) == 0
    assert capsys.readouterr().out == first.out
    assert sorted(Path("runs").glob("*/*")) == folders


def test_a_teacher_is_trained_evaluated_and_distilled_from(workplace, monkeypatch, capsys):
    train = f"train-teacher --model resnet8 {SMALL} --seed 5"
    assert call(train) == 0
    shown = capsys.readouterr().out
    (folder,) = Path("runs/digits-resnet8").iterdir()
    assert folder.name.startswith("teacher-seed5-")
    accuracy = float(numbers(shown)["teacher"][0])
    wanted = load_dataset("digits", size=32).fingerprint  # what CIFAR networks take
    assert json.loads((folder / "config.json").read_text())["data"]["sha256"] == wanted
    assert f"--teacher {workplace / folder}" in shown

    # evaluated: on the run's own data, which nobody had to name, and as a bare file
    assert call(f"evaluate {folder} --output table.csv") == 0
    by_folder = capsys.readouterr()
    assert by_folder.err == ""
    assert "digits, test: 360 pictures" in by_folder.out
    table = pd.read_csv("table.csv", index_col="weights")
    assert 100 * table.loc[str(folder), "accuracy"] == pytest.approx(accuracy, abs=0.005)
    weights = folder / "model.safetensors"
    assert call(f"evaluate {weights} --model resnet8 --data digits --output file.csv") == 0
    capsys.readouterr()
    by_file = pd.read_csv("file.csv", index_col="weights")
    assert np.array_equal(by_file.to_numpy(), table.to_numpy())

    # distilled from: this teacher is taken and none trained
    distill = f"distill --pair resnet8:resnet8 --methods kd {SMALL} --teacher {folder}"
    assert call(distill) == 0
    assert float(numbers(capsys.readouterr().out)["teacher"][0]) == accuracy
    made = [run.name for run in Path("runs/digits-resnet8-resnet8").iterdir()]
    assert [name.partition("-")[0] for name in made] == ["kd"]

    # the pair's own teacher has seed 0; once trained by itself, the pair finds it
    assert call(train.replace("--seed 5", "--seed 0")) == 0
    monkeypatch.setattr("ttm_lab.training.Student.step", never_trains)
    with pytest.raises(AssertionError):  # at the student, with no new folder for a teacher
        call(distill.partition(" --teacher")[0])
    assert len(list(Path("runs/digits-resnet8").iterdir())) == 2
    capsys.readouterr()
    assert call(train) == 0
    assert capsys.readouterr().out == shown


def test_what_the_command_line_says_wins_over_the_recipe(workplace, capsys):
    changes = "--epochs 1 --batch-size 500 --learning-rate 0.02 --augmentation crop-flip"
    loss = "--temperature 2 --distill-weight 3 --ce-weight 0.5 --precision bfloat16"
    command = "distill --pair cnn_large:cnn_small --data digits --methods ce,wttm --seeds 3-3"
    assert call(f"{command} {changes} {loss} --track-test") == 0
    assert "best epoch on test" in capsys.readouterr().out
    made = {}
    for config in Path("runs").glob("digits-cnn_large*/*/config.json"):  # the teacher's is its own
        config = json.loads(config.read_text())
        made[config["settings"]["method"], config["settings"]["model"], config["seed"]] = config
    assert set(made) == {("ce", "cnn_large", 0), ("ce", "cnn_small", 3), ("wttm", "cnn_small", 3)}
    for (method, *_), config in made.items():
        s = config["settings"]
        assert (s["epochs"], s["batch_size"], s["learning_rate"]) == (1, 500, 0.02)
        assert (s["augmentation"], s["precision"], s["track_test"]) == (
            "crop-flip",
            "bfloat16",
            True,
        )
        wanted = (2, 3, 0.5) if method == "wttm" else (None, None, 1)
        assert (s["temperature"], s["distill_weight"], s["ce_weight"]) == wanted


def test_a_remembered_teacher_is_not_asked_again(workplace, monkeypatch, capsys):
    """Written down by one command, then used by the same again; four pictures keep views few."""
    part = noise("digits", 10)
    few = replace(part.train, images=part.train.images[:4], labels=part.train.labels[:4])
    part = replace(part, train=few)
    monkeypatch.setattr(data, "load_dataset", lambda name, **_: part)
    teacher = "--augmentation crop-flip --epochs 1 --max-steps 2"
    distill = f"distill --pair resnet8:resnet8 --data digits {teacher} --methods kd,wttm"
    fast = f"{distill} --fast --precision float32 --device cpu"
    assert call(fast) == 0
    assert " of 4 teacher answers remembered" in capsys.readouterr().err
    shutil.rmtree("runs/digits-resnet8-resnet8")
    monkeypatch.setattr("ttm_lab.teacher_cache.TeacherCache._compute", never_trains)
    assert call(fast) == 0
    shown = capsys.readouterr()
    assert "100% of 4 teacher answers remembered" in shown.err
    found = [json.loads(p.read_text()) for p in Path("runs").glob("digits-resnet8*/*/config.json")]
    asked = {(c["settings"]["method"], c["settings"]["remember"]) for c in found}
    assert asked == {("ce", False), ("kd", True), ("wttm", True)}  # the teacher's run is one
    assert len(list(Path("runs/digits-resnet8").iterdir())) == 1
    assert call(f"{distill} --no-remember --seeds 1-1") == 0
    assert "remembered" not in capsys.readouterr().err


def noise(name: str, classes: int) -> Dataset:
    """Random pictures that pass for a data set of 32x32 colour pictures."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 32, 32), generator=generator, dtype=torch.uint8)
    part = Split(images, torch.arange(20) % classes, mean=(0.5,) * 3, std=(0.25,) * 3)
    empty = Split(images[:0], part.labels[:0], mean=part.mean, std=part.std)
    return Dataset(name, 0, tuple(map(str, range(classes))), part, empty, part)


@pytest.mark.parametrize(("name", "classes"), [("cifar100", 100), ("cifar10", 10)])
def test_the_paper_s_column_stands_beside_its_own_data_only(
    name, classes, workplace, monkeypatch, capsys
):
    seen = {}
    monkeypatch.setattr(
        data, "load_dataset", lambda name, **k: seen.update(k, name=name) or noise(name, classes)
    )
    torch.save(create_model("wrn-40-2", classes, seed=0).state_dict(), "teacher.pth")
    choice = "" if name == "cifar100" else f" --data {name}"  # the default for CIFAR networks
    command = "distill --pair wrn-40-2:wrn-16-2 --methods kd,wttm --max-steps 1"
    assert call(f"{command} --teacher teacher.pth{choice}") == 0
    shown = capsys.readouterr().out
    assert (seen["name"], seen["validation"], seen["seed"], seen["size"]) == (name, 0.0, 0, None)
    if name == "cifar100":  # paper, Tables 1 and 11
        assert numbers(shown)["teacher"][-2:] == ["75.61", "-"]
        assert numbers(shown)["KD"][-2:] == ["74.92", "0.28"]
        assert numbers(shown)["WTTM"][-2:] == ["76.37", "0.10"]
        assert "paper: Zheng and Yang (ICLR 2024), Table 1\n" in shown
        assert "differ from the published recipe: max_steps=1.\n" in shown
    else:
        assert "75.61" not in shown
        assert "76.37" not in shown
        assert "The paper has no results of this pair on cifar10." in shown


def test_a_folder_of_pictures_goes_by_its_own_name(workplace, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for kind in "ab":
            folder = Path("cifar100") / part / kind
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    made = "train-teacher --model resnet8 --max-steps 1 --epochs 1"
    assert call(f"{made} --data folder --root cifar100 --workers 0") == 0
    (run,) = Path("runs/folder-cifar100-resnet8").iterdir()  # not the data set of that name
    capsys.readouterr()
    error = refusal(f"evaluate {run}", capsys)
    assert "was trained on pictures of a folder folder-cifar100" in error
    assert "--data folder --root DIR" in error
    assert call(f"evaluate {run} --data folder --root cifar100") == 0
    assert "folder-cifar100, test: 6 pictures" in capsys.readouterr().out
    # the same pictures, but another split than the one it learned from
    split = "--data folder --root cifar100 --validation 0.34"
    assert call(f"evaluate {run} {split} --part validation") == 0
    assert "was not trained on exactly these data" in capsys.readouterr().err
    assert "is empty" in refusal(
        f"evaluate {run} --data folder --root cifar100 --part validation", capsys
    )


# Runs a command that keeps a resume point after every epoch, and sends itself a signal at the end
# of one epoch, as a user or a batch system would send it in the middle of the work.
STOPPED = """
import signal, sys
from ttm_lab import training
from ttm_lab.course import cli
what, epoch, number, *command = sys.argv[1:]
training.Clock.due = lambda self: True
report = training.Progress.epoch_done
def epoch_done(self, done, students):
    report(self, done, students)
    if (self.what, done + 1) == (what, int(epoch)):
        signal.raise_signal(int(number))
training.Progress.epoch_done = epoch_done
sys.exit(cli.main(command))
"""


def stop_in(what: str, epoch: int, number: signal.Signals, command: str) -> str:
    """Start a command in a process of its own, stopped in an epoch; returns its last words."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    place = [what, str(epoch), str(int(number))]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *place, *shlex.split(command)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert f"{what}: epoch {epoch}/" in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def contents(folder: str) -> dict[str, bytes]:
    files = [p for name in ("metrics.csv", "model.safetensors") for p in Path(folder).rglob(name)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_stopped_twice_it_ends_as_if_never_stopped(workplace, monkeypatch, capsys):
    command = "distill --pair cnn_small:cnn_small --data digits --methods ce,kd --epochs 6 "
    command += "--device cpu"
    last = stop_in("teacher, seed 0", 3, signal.SIGINT, command)
    assert last == "ttm-lab: stopped. The same command goes on from the last resume point."
    assert len(list(Path("runs").rglob("checkpoint/step-*.pt"))) == 2
    assert not list(Path("runs").rglob("model.safetensors"))
    assert stop_in("2 students, seed 0", 4, signal.SIGTERM, command) == last
    (teacher,) = Path("runs").rglob("model.safetensors")
    assert teacher.parent.name.startswith("teacher")
    assert len(list(Path("runs").rglob("checkpoint"))) == 2
    assert call(command) == 0
    resumed = capsys.readouterr()
    epochs = re.findall(r"^(.*): epoch (\d+)/6", resumed.err, re.MULTILINE)
    # the teacher is done, and of the students' fourth epoch nothing was kept
    assert epochs == [("2 students, seed 0", number) for number in "456"]
    assert not list(Path("runs").rglob("checkpoint"))

    monkeypatch.setenv("TTM_LAB_RUNS", str(workplace / "whole"))
    assert call(command) == 0
    assert numbers(capsys.readouterr().out) == numbers(resumed.out)
    assert len(contents("whole")) == 6
    assert contents("runs") == contents("whole")


ODD = [  # words, variables, and what the one line says; nothing is written
    ([*NAMED.split(), "--seeds", "20261125"], {}, "one with that seed is 20261125-20261125"),
    (["search-digits", "--seeds", "0", "--output", "file.csv"], {}, "file.csv is no table of"),
    (["train-teacher", "--model", "cnn_small", "--size", "²"], {}, "'²' is not a whole number"),
    (["evaluate", "file.csv"], {"WORLD_SIZE": ""}, "say whose it is with --model"),
    (["evaluate", "file.csv", "--device", "mps"], {}, "--device mps cannot be used here"),
    ([*NAMED.split(), "--output", "/proc/x.csv"], {}, "/proc/x.csv cannot be written"),
    ([*NAMED.split(), "--keep-logits", "file.csv/x.npz"], {}, "file.csv/x.npz cannot be written"),
    (["handout", "--output", "x", "--root", "nowhere"], {}, "no notebooks in"),
    (["reproduce", "--root", "nowhere", "--name", "n" * 61], {}, "at most 60 letters"),
    *(
        (["reproduce", "-p", f"max_steps={value}"], {}, "a parameter is a number, text")
        for value in ("1e999", "{1}", "b'x'", "1j", "...", "[-1e999]", "{(1, 2): 3}", r"'\udcff'")
    ),
    (["reproduce", "--root", "nowhere", "-p", "max_steps=" + "[" * 9000], {}, "no notebooks in"),
    (["reproduce", "-p", "=1"], {}, "'=1' is not NAME=VALUE"),
]


@pytest.mark.parametrize(
    ("words", "variables", "said"), ODD, ids=[f"{w[0]} {w[-1][:30]!a}" for w, _, _ in ODD]
)
def test_odd_words_and_variables_are_refused_in_a_line_with_nothing_written(
    words, variables, said, workplace, monkeypatch, capsys
):
    Path("file.csv").write_text("a,b\n1,2\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert len(shown.err) < 700
    assert os.listdir() == ["file.csv"]


def test_what_fits_no_memory_and_paths_that_are_none_are_one_line(workplace, monkeypatch, capsys):
    Path("file").write_bytes(b"")
    monkeypatch.setenv("TTM_LAB_RUNS", "file")
    assert call(f"train-teacher --model cnn_small {SMALL}") == 1
    assert "Not a directory: 'file/digits-cnn_small" in capsys.readouterr().err

    def too_large(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore")

    monkeypatch.setattr(data, "load_dataset", too_large)
    assert call(f"train-teacher --model cnn_small {SMALL} --size 9999") == 1
    error = capsys.readouterr().err
    assert "give a smaller --batch-size" in error
    assert error.count("\n") == 1


def test_a_network_that_does_not_take_the_pictures_is_named(workplace, capsys):
    torch.save(create_model("cnn_small", 10).state_dict(), "grey.pth")
    error = refusal("evaluate grey.pth --model cnn_small --data digits --size 16", capsys)
    assert "cnn_small does not take the pictures of digits" in error
