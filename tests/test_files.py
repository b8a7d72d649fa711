"""Where data and runs lie, as people write paths; files are written whole, tables come back."""

import errno
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import save_file

from ttm_lab import runs
from ttm_lab.course import cli, samples
from ttm_lab.course.evidence import results_folder
from ttm_lab.course.outputs import Outputs
from ttm_lab.course.paper_rows import weights_file
from ttm_lab.course.teachers import fetch_teacher
from ttm_lab.data import load_dataset
from ttm_lab.files import (
    atomic_write,
    downloads_folder,
    find_root,
    read_table,
    runs_folder,
    user_path,
)
from ttm_lab.models import create_model, load_weights
from ttm_lab.teacher_cache import TeacherCache


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An own home folder, and a working folder in which nobody may make one called ~."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert os.listdir(tmp_path / "work") == []


def test_every_variable_may_begin_with_the_home_folder(home, monkeypatch):
    for variable in ("TTM_LAB_DATA", "TTM_LAB_RUNS", "TTM_LAB_RESULTS"):
        monkeypatch.setenv(variable, f"~/{variable}")
    assert downloads_folder() == home / "TTM_LAB_DATA"
    assert runs_folder("digits") == home / "TTM_LAB_RUNS" / "digits"
    assert results_folder() == home / "TTM_LAB_RESULTS"


def draw(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    for k, picture in enumerate(pixels):
        path = folder / ("train", "test")[k % 2] / ("cat", "dog")[k // 2 % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def test_every_function_that_takes_a_path_knows_the_home_folder(home, monkeypatch):
    draw(home / "pictures")
    assert len(load_dataset("folder", root="~/pictures", validation=0).train) == 4
    with pytest.raises(FileNotFoundError, match=f"no folder {home / 'imagenet'}"):
        load_dataset("imagenet", root="~/imagenet")
    network = create_model("resnet8", 100, seed=0)
    for path in (home / "w.safetensors", home / "teachers/resnet8_vanilla/ckpt_epoch_240.pth"):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), path)
    load_weights(network, "~/w.safetensors")
    assert weights_file("~/w.safetensors") == home / "w.safetensors"
    monkeypatch.setattr("ttm_lab.course.teachers.ADDRESSES", {"resnet8": "http://127.0.0.1:9"})
    assert fetch_teacher("resnet8", "~/teachers") == path
    assert runs.Run("~/runs", "kd", {}).folder.parent == home / "runs"
    atomic_write("~/a/table.csv", "a,b\n")
    assert (home / "a/table.csv").read_text() == "a,b\n"
    assert samples.draw_pictures("~/drawn", train=1, val=1) == home / "drawn"
    part = load_dataset("digits").test
    assert TeacherCache(len, part, "none", 10, "~/m.f32").path == home / "m.f32"
    outputs = Outputs.load(find_root(__file__) / "data/results/cifar10_logits.npz")
    outputs.save("~/outputs.npz")
    assert np.array_equal(Outputs.load("~/outputs.npz").labels, outputs.labels)
    assert find_root("~/pictures") == home / "pictures"


def test_the_command_line_knows_it_behind_an_equals_sign(home, capsys):
    draw(home / "pictures")
    save_file(create_model("resnet8", 2, seed=0).state_dict(), home / "w.safetensors")
    said = "evaluate --model resnet8 --data folder --root=~/pictures --output=~/o/o.csv"
    assert cli.main([*said.split(), "~/w.safetensors"]) == 0
    assert (home / "o/o.csv").read_text().startswith("weights,")
    assert (
        cli.main(["handout", "--only=01", "--output=~/out", f"--root={find_root(__file__)}"]) == 0
    )
    assert len(list((home / "out").glob("01_*.ipynb"))) == 1


def test_the_home_of_an_unknown_user_is_refused(home, capsys):
    with pytest.raises(ValueError, match=r"~nobody-of-that-name/x: .*write the whole path"):
        user_path("~nobody-of-that-name/x")
    assert cli.main(["fetch-teacher", "resnet56", "--folder=~nobody-of-that-name/x"]) == 2
    assert "write the whole path" in capsys.readouterr().err


def test_atomic_write_leaves_the_old_file_when_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    atomic_write(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")  # as the system does: no name

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*file\.txt"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_file_systems_that_cannot_sync_are_written_to_all_the_same(tmp_path, monkeypatch):
    def refuse(number):
        def fsync(_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
        refuse(number)
        atomic_write(tmp_path / "file", str(number))
        assert (tmp_path / "file").read_text() == str(number)
    refuse(errno.EIO)  # a failing disk is no such file system
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        atomic_write(tmp_path / "file", "lost")
    assert (tmp_path / "file").read_text() == str(errno.ENOSYS)


def test_tables_come_back_bit_by_bit(tmp_path):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"n": range(5000), "x": np.exp(random.normal(0, 20, 5000))})
    atomic_write(tmp_path / "t.csv", table.to_csv(index=False))
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv"), table, check_exact=True)
