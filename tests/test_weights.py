"""Weights come from safetensors and from the files that published code writes, never with code."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ttm_lab import runs
from ttm_lab.models import create_model, load_weights


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def teacher():
    network = create_model("resnet8", 10, seed=1)
    network(torch.randn(4, 3, 32, 32))  # so that the batch norms have seen something
    return network


@pytest.fixture
def fresh():
    return create_model("resnet8", 10, seed=2)


def published(teacher, kind):
    """What the benchmark's and the paper's training code hand to torch.save."""
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    teacher(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    decays = np.sum(np.asarray([150, 180, 210]) < 240)
    for group in optimizer.param_groups:
        group["lr"] = 0.05 * (0.1**decays)
    assert isinstance(optimizer.param_groups[0]["lr"], np.float64)
    state, accuracy = teacher.state_dict(), torch.tensor([72.3])
    return {
        "plain": state,
        "best": {"epoch": 231, "model": state, "best_acc": accuracy},
        "epoch": {
            **{"epoch": 240, "model": state, "accuracy": accuracy},
            "optimizer": optimizer.state_dict(),
        },
        "last": {
            "opt": argparse.Namespace(model="resnet8", lr_decay_epochs=[150, 180, 210], trial=0),
            "model": state,
            "optimizer": optimizer.state_dict(),
        },
    }[kind]


def replace_in_pickle(path, old, new):
    """Change a torch file's pickle, the archive's or that of the format before."""
    if not zipfile.is_zipfile(path):
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            if name.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(name, data)


def scalar_module():
    return np.float64(0).__reduce__()[0].__module__.encode()


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ["plain", "best", "epoch", "last"])
def test_published_files_load(tmp_path, teacher, fresh, kind, archive):
    path = tmp_path / "resnet8_best.pth"
    torch.save(published(teacher, kind), path, _use_new_zipfile_serialization=archive)
    if kind in ("epoch", "last"):  # otherwise the list of allowed types would be needless
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
    assert load_weights(fresh, path) is fresh
    assert same(fresh, teacher)


@pytest.mark.parametrize("code", [*(c for c in np.typecodes["All"] if c not in "OV"), "U3", "S3"])
def test_numpy_numbers_of_any_kind_beside_weights_load(tmp_path, teacher, fresh, code):
    """A counter, a flag, an accuracy, a date, a name: whatever a training kept as it was."""
    number = np.ones(1, code)[0]
    file = tmp_path / "best.pth"
    torch.save({"state_dict": teacher.state_dict(), "kept": number}, file)
    assert same(load_weights(fresh, file), teacher)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_files_of_both_numpy_versions_load(tmp_path, teacher, fresh, module, archive):
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save(published(teacher, "epoch"), path, _use_new_zipfile_serialization=archive)
    # in a pickle a global is the letter c, its module and its name, each up to a new line
    replace_in_pickle(path, b"c" + scalar_module() + b"\nscalar\n", b"c" + module + b"\nscalar\n")
    assert same(load_weights(fresh, path), teacher)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_a_file_saved_from_a_gpu_loads_on_the_cpu(tmp_path, monkeypatch, teacher, fresh, archive):
    path = tmp_path / "gpu.pth"
    with monkeypatch.context() as patch:  # the only thing in which such a file differs
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(published(teacher, "last"), path, _use_new_zipfile_serialization=archive)
    assert b"cuda:0" in path.read_bytes()
    assert same(load_weights(fresh, path), teacher)
    assert {p.device.type for p in fresh.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
@pytest.mark.parametrize("form", ["model", "state_dict", "safetensors"])
def test_prefixes_of_wrappers_are_dropped(tmp_path, teacher, fresh, prefix, form):
    state = {prefix + name: value for name, value in teacher.state_dict().items()}
    path = tmp_path / "wrapped"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({form: state}, path)
    assert same(load_weights(fresh, path), teacher)


def test_files_from_before_num_batches_tracked_load(tmp_path, teacher, fresh):
    state = {k: v for k, v in teacher.state_dict().items() if not k.endswith("batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    load_weights(fresh, tmp_path / "old.pth")
    teacher.eval(), fresh.eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh(images), teacher(images))


def test_weights_go_out_and_come_back(tmp_path):
    model = create_model("cnn_small", 10, seed=1)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    other = load_weights(create_model("cnn_small", 10, seed=2), tmp_path / "m.safetensors")
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(model(images), other(images))


def test_a_mismatch_names_what_is_missing_unexpected_and_of_another_shape(tmp_path, teacher):
    state = teacher.state_dict()
    state["layer9.weight"] = state.pop("layer2.0.conv1.weight")
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit ResNet") as raised:
        load_weights(create_model("resnet8", 100), tmp_path / "other.pth")
    for part in (
        "missing ['layer2.0.conv1.weight']",
        "unexpected ['layer9.weight']",
        "fc.weight: file (10, 64), model (100, 64)",
        "fc.bias: file (10,), model (100,)",
    ):
        assert part in str(raised.value)


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path, teacher, fresh):
    before = create_model("resnet8", 10, seed=2)
    torch.save({**teacher.state_dict(), "more": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"unexpected \['more'\]"):
        load_weights(fresh, tmp_path / "more.pth")
    assert same(fresh, before)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save_in_archive(content, path):
    torch.save(content, path)


def save_in_legacy_format(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_as_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [save_in_archive, save_in_legacy_format, save_as_pickle])
@pytest.mark.parametrize("how", ["os", "exec"])
def test_a_file_that_would_run_code_is_refused_unrun(tmp_path, teacher, fresh, save, how):
    marker, path = tmp_path / "ran", tmp_path / "teacher.pth"
    call = (
        (os.mkdir, str(marker)) if how == "os" else (exec, f"import os; os.mkdir({str(marker)!r})")
    )
    hostile = Hostile(*call)
    pickle.loads(pickle.dumps(hostile))
    assert marker.exists()  # so it does run where nobody looks
    marker.rmdir()
    save({"model": teacher.state_dict(), "epoch": hostile}, path)
    with pytest.raises(ValueError, match=r"teacher\.pth is ") as raised:
        load_weights(fresh, path)
    assert not marker.exists()
    if save is not save_as_pickle:
        assert "refused: it asks for" in str(raised.value)
    assert "weights_only" not in str(raised.value)  # the way round is not offered
    assert raised.value.__suppress_context__


def test_the_allowed_types_are_allowed_nowhere_else(tmp_path, teacher, fresh):
    torch.save(published(teacher, "last"), tmp_path / "last.pth")
    load_weights(fresh, tmp_path / "last.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.pth", weights_only=True)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("kept", [0, 5, 9, 100, 0.5, 0.9, -1])
def test_a_truncated_file_is_named_with_the_remedy(tmp_path, teacher, fresh, form, kept):
    path = tmp_path / "cut.file"
    if form == "safetensors":
        save_file(teacher.state_dict(), path)
    else:
        torch.save(teacher.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"cut\.file is not a whole .*remove it"):
        load_weights(fresh, path)


@pytest.mark.parametrize("content", [[1, 2], {"opt": argparse.Namespace()}, {3: torch.ones(1)}])
def test_other_contents_are_named(tmp_path, fresh, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds .*not weights by name; save model\."):
        load_weights(fresh, tmp_path / "other.pth")


def test_a_missing_file_is_missing(tmp_path, fresh):
    with pytest.raises(FileNotFoundError):
        load_weights(fresh, tmp_path / "none.safetensors")


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, teacher, fresh, form, value):
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    name = next(iter(state))
    state[name].view(-1)[3] = value
    path = tmp_path / "weights"
    (save_file if form == "safetensors" else torch.save)(state, path)
    with pytest.raises(ValueError, match=rf"NaN or infinite, in \['{name}'\]"):
        load_weights(fresh, path)


def test_one_flipped_bit_of_weights_with_a_checksum_is_noticed(tmp_path, teacher, fresh):
    runs.Run(tmp_path, "student", {}).finish(teacher, pd.DataFrame({"epoch": [1]}), nn.Module())
    (path,) = tmp_path.glob("*/model.safetensors")
    whole = path.read_bytes()
    assert same(load_weights(fresh, path), teacher)
    for place in range(9, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1  # the smallest change of a value, somewhere
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_weights(fresh, path)


def test_tensors_of_other_forms_are_refused_or_converted(tmp_path, teacher, fresh):
    state = teacher.state_dict()
    name = next(iter(state))
    path = tmp_path / "weights.pth"
    quantized = torch.quantize_per_tensor(state[name], 0.1, 0, torch.qint8)
    for value in (state[name].to_sparse(), state[name].to("meta"), quantized):
        torch.save(state | {name: value}, path)
        with pytest.raises(ValueError, match=r"weights\.pth holds .*not weights by name"):
            load_weights(fresh, path)
    torch.save(state | {name: state[name].to(torch.float8_e4m3fn)}, path)
    assert torch.allclose(load_weights(fresh, path).state_dict()[name], state[name], atol=0.1)
    torch.save(state | {name: state[name].double() * 1e300}, path)
    with pytest.raises(ValueError, match=rf"NaN or infinite, in \['{name}'\]"):
        load_weights(fresh, path)
