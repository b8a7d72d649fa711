"""Kept outputs come back as they were; a damaged file is named."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ttm_lab.course.outputs import Outputs


@pytest.fixture
def outputs():
    random = np.random.default_rng(0)
    rows = [("teacher", np.nan, np.nan, 0), ("CE", np.nan, np.nan, 0)]
    rows += [("KD", 4.0, 0.9, seed) for seed in (0, 1)] + [("KD", 8.0, 0.9, 0)]
    models = pd.DataFrame(rows, columns=Outputs.COLUMNS)
    logits = random.normal(0, 5, (5, 30, 3)).astype(np.float32)
    return Outputs(models, logits, np.arange(30) % 3, ("a", "b", "ç"), np.arange(30) + 7)


def test_outputs_come_back_as_they_were_up_to_half_precision(outputs, tmp_path):
    outputs.save(tmp_path / "kept.npz")
    back = Outputs.load(tmp_path / "kept.npz")
    pd.testing.assert_frame_equal(back.models, outputs.models)
    assert np.abs(back.logits / outputs.logits - 1).max() <= 2**-11  # float16 has 11 bits
    assert np.array_equal(back.labels, outputs.labels)
    assert np.array_equal(back.pictures, outputs.pictures)
    assert back.class_names == outputs.class_names
    assert np.array_equal(back.teacher(), back.logits[0])
    found = {name: rows.tolist() for name, rows in back.kinds().items()}
    assert found == {"CE": [1], "KD, T = 4, weight 0.9": [2, 3], "KD, T = 8, weight 0.9": [4]}


def test_outputs_that_float16_cannot_hold_come_back_whole(outputs, tmp_path):
    """65,504 is float16's largest number; 70,000 would come back as infinite."""
    for largest, dtype in ((65504, np.float32), (-7e4, np.float32), (1e300, np.float64)):
        logits = outputs.logits.astype(dtype)
        logits[3, 7, 1] = largest
        replace(outputs, logits=logits).save(tmp_path / "kept.npz")
        back = Outputs.load(tmp_path / "kept.npz").logits
        assert back.dtype == dtype
        assert back[3, 7, 1] == logits[3, 7, 1]
        assert largest == 65504 or np.array_equal(back, logits)


def test_a_damaged_file_of_outputs_is_named(outputs, tmp_path):
    file = tmp_path / "kept.npz"
    outputs.save(file)
    whole = file.read_bytes()
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    for damaged in (whole[: len(whole) // 2], b"", (tmp_path / "other.npz").read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"kept\.npz is no file of outputs, or it is damaged"):
            Outputs.load(file)
    with pytest.raises(FileNotFoundError):
        Outputs.load(tmp_path / "absent.npz")


def test_outputs_that_do_not_fit_together_are_refused(outputs):
    for change, words in (
        ({"labels": outputs.labels[1:]}, r"want \(5, 29, 3\)"),
        ({"class_names": ("a", "b")}, r"want \(5, 30, 2\)"),
        ({"models": outputs.models.drop(columns="seed")}, r"lack the columns \['seed'\]"),
        ({"labels": outputs.labels + 1}, "labels run from 1 to 3"),
        ({"logits": outputs.logits * np.inf}, "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(outputs, **change)
    few = outputs.models["method"] != "teacher"
    without = replace(outputs, models=outputs.models[few], logits=outputs.logits[few])
    with pytest.raises(ValueError, match="teacher"):
        without.teacher()
