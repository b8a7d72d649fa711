import pandas as pd
import pytest
import torch

from ttm_lab.course.networks import students, teacher
from ttm_lab.files import find_root


def test_the_kept_students_are_those_of_the_kept_table():
    table = pd.read_csv(find_root() / "data" / "results" / "cifar100_gpu_test.csv")
    found = students()
    assert set(found) == {(arm, seed) for arm in ("ce", "kd", "ttm", "wttm") for seed in (0, 1)}
    assert {(0, 1)} == {tuple(sorted(table.seed[table.arm == "ce"]))}
    assert not any(network.training for network in found.values())


def test_the_teacher_is_the_kept_one_and_works():
    with torch.inference_mode():
        assert teacher()(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_a_student_that_is_not_kept_is_named():
    with pytest.raises(FileNotFoundError, match="no resnet110 in"):
        students("resnet110")
