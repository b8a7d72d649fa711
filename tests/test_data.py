"""The digits: real pictures, split by seed into parts that share none."""

import hashlib

import numpy as np
import pytest
import torch

from ttm_lab.data import Dataset, Split, load_dataset


def test_digits_have_the_promised_shapes_types_and_range():
    data = load_dataset("digits", seed=3)
    assert data.num_classes == 10
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    for split in (data.train, data.validation, data.test):
        assert split.images.shape == (len(split), 1, 8, 8)
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert split.images.min() == 0
        assert split.images.max() == 1


def test_parts_share_no_picture_and_hold_the_classes_in_equal_shares():
    data = load_dataset("digits", seed=0)
    everything = np.concatenate(list(data.indices.values()))
    assert sorted(everything) == list(range(1797))
    whole = np.bincount(torch.cat([data.train.labels, data.validation.labels, data.test.labels]))
    for split, share in ((data.train, 0.6), (data.validation, 0.2), (data.test, 0.2)):
        assert np.abs(np.bincount(split.labels) - share * whole).max() <= 1


def test_the_split_is_the_same_on_every_platform():
    # Fixed by hand from one machine: another platform or library version must give the same.
    digest = hashlib.sha256()
    for seed in range(3):
        for index in load_dataset("digits", seed=seed).indices.values():
            digest.update(index.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "d751269fd5b87803"


def test_same_seed_same_data_other_seed_other_split():
    first, again, other = (load_dataset("digits", seed=s) for s in (1, 1, 2))
    assert torch.equal(first.test.images, again.test.images)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_unknown_names_and_seeds_are_refused():
    with pytest.raises(ValueError, match=r"'cifar11'.*available"):
        load_dataset("cifar11")
    with pytest.raises(ValueError, match=r"seed=-1"):
        load_dataset("digits", seed=-1)


def test_labels_out_of_range_are_refused_before_any_training():
    good = Split(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 1, 0]))
    bad = Split(torch.zeros(2, 1, 8, 8), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"validation labels run from 0 to 2.*2 classes"):
        Dataset("mine", 0, ("a", "b"), good, bad, good)
    with pytest.raises(TypeError, match=r"float32; convert"):
        Dataset("mine", 0, ("a", "b"), Split(good.images, torch.zeros(4)), good, good)
