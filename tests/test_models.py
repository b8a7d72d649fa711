"""Networks by name, with weights that depend on the seed alone."""

import pytest
import torch
from safetensors.torch import save_file

from ttm_lab.models import create_model, list_models, load_weights


@pytest.mark.parametrize("name", ["cnn_small", "cnn_large"])
def test_logits_have_a_column_a_class(name):
    assert name in list_models()
    assert create_model(name, 7)(torch.zeros(3, 1, 8, 8)).shape == (3, 7)


def test_the_seed_alone_decides_the_weights_and_global_randomness_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = create_model("cnn_small", 10, seed=1).state_dict()
    assert torch.rand(1) == expected
    torch.manual_seed(6)
    again, other = (create_model("cnn_small", 10, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_unknown_model_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"'resnet7'.*available: cnn_large, cnn_small"):
        create_model("resnet7")


def test_weights_go_out_and_come_back(tmp_path):
    model = create_model("cnn_small", 10, seed=1)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    other = load_weights(create_model("cnn_small", 10, seed=2), tmp_path / "m.safetensors")
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(model(images), other(images))


def test_truncated_and_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(create_model("cnn_small", 10).state_dict(), path)
    with pytest.raises(ValueError, match=r"classifier.bias: file \(10,\), model \(5,\)"):
        load_weights(create_model("cnn_small", 5), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"m\.safetensors is not a whole"):
        load_weights(create_model("cnn_small", 10), path)
    with pytest.raises(FileNotFoundError):
        load_weights(create_model("cnn_small", 10), tmp_path / "none.safetensors")
