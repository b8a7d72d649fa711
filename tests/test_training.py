"""Training does what the formulas say, the same alone and in company, and says what is wrong."""

import hashlib
import io
import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from lab import few_digits, same_weights, student
from safetensors.torch import save_file
from torch import nn
from torchvision.models import GoogLeNetOutputs

from ttm_lab import runs, training
from ttm_lab.analysis import evaluate
from ttm_lab.data import Dataset, Split
from ttm_lab.losses import ttm_loss
from ttm_lab.models import create_model
from ttm_lab.objectives import LogitTerm
from ttm_lab.training import Diverged, Settings, distill, distill_many, train_teacher


@pytest.fixture(scope="module")
def data() -> Dataset:
    return few_digits()


@pytest.fixture(scope="module")
def teacher(data):
    settings = Settings("cnn_large", epochs=10, learning_rate=0.1)
    return train_teacher(data, settings, progress=False)


METHODS = {
    "ce": lambda q, z, v, T: 0 * z.sum(),
    "kd": lambda q, z, v, T: (
        T**2 * ((v / T).softmax(1) * ((v / T).softmax(1) / (z / T).softmax(1)).log()).sum(1).mean()
    ),
    "ttm": lambda q, z, v, T: ((v / T).softmax(1) * ((v / T).softmax(1) / q).log()).sum(1).mean(),
    "wttm": lambda q, z, v, T: (
        (v.softmax(1) ** (1 / T)).sum(1)
        * ((v / T).softmax(1) * ((v / T).softmax(1) / q).log()).sum(1)
    ).mean(),
}


@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_sgd_on_the_formula(data, teacher, method):
    """One batch with the whole training part, against float64 and autograd."""
    settings = student(method, batch_size=len(data.train), max_steps=1, ce_weight=0.7)
    got = distill(teacher, data, settings, seed=4, progress=False)

    reference = create_model("cnn_small", 10, seed=4).double()
    z, v = reference(data.train.images.double()), teacher.model(data.train.images).double().detach()
    loss = 0.7 * F.cross_entropy(z, data.train.labels)
    loss = loss + 2.0 * METHODS[method](z.softmax(1), z, v, 4.0)
    loss.backward()
    for name, weight in reference.named_parameters():
        step = weight.grad + settings.weight_decay * weight.detach()
        expected = weight.detach() - settings.learning_rate * step
        found = dict(got.model.named_parameters())[name]
        assert torch.allclose(found.double(), expected, atol=1e-6)
    assert got.history["loss"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_in_company_each_student_is_what_it_is_alone(data, teacher):
    settings = [student(m, epochs=e) for m, e in (("ce", 2), ("kd", 3), ("ttm", 1), ("wttm", 2))]
    many = distill_many(teacher, data, settings, seeds=[0, 1], progress=False)
    assert [(s.seed, s.name) for s in many] == [
        (seed, label) for seed in (0, 1) for label in ("CE", "KD", "TTM", "WTTM")
    ]
    for one in many:
        alone = distill(teacher, data, one.settings, seed=one.seed, progress=False)
        assert same_weights(one.model, alone.model)
        pd.testing.assert_frame_equal(one.history, alone.history, check_exact=True)


def test_dropout_too_is_the_same_alone_and_in_company(data, teacher, monkeypatch):
    def with_dropout(name, num_classes, *, seed):
        return nn.Sequential(create_model(name, 32, seed=seed), nn.Dropout(), nn.Linear(32, 10))

    def fixed(name, num_classes, *, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return with_dropout(name, num_classes, seed=seed)

    monkeypatch.setattr(training, "create_model", fixed)
    settings = [student("ttm"), student("wttm")]
    many = distill_many(teacher, data, settings, progress=False)
    assert same_weights(many[1].model, distill(teacher, data, settings[1], progress=False).model)


def test_the_teacher_is_asked_once_a_batch(data, teacher):
    calls = []
    teacher.model.zero_grad()
    handle = teacher.model.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    try:
        settings = [student(m, epochs=2) for m in ("kd", "ttm", "wttm")]
        distill_many(teacher, data, settings, progress=False)
    finally:
        handle.remove()
    # one picture to try it out, the validation part once, then 150 images an epoch
    assert sum(calls) == 1 + len(data.validation) + 2 * len(data.train)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_same_seed_same_student_and_the_callers_randomness_is_untouched(data, teacher):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = distill(teacher, data, student(), seed=7, progress=False)
    assert torch.equal(torch.rand(3), expected)
    again = distill(teacher, data, student(), seed=7, progress=False)
    other = distill(teacher, data, student(), seed=8, progress=False)
    assert same_weights(first.model, again.model)
    assert not same_weights(first.model, other.model)


def test_methods_of_one_seed_start_from_the_same_weights(data, teacher):
    settings = [student(m, learning_rate=1e-30) for m in ("ce", "kd", "wttm")]
    first, *others = distill_many(teacher, data, settings, progress=False)
    assert all(same_weights(first.model, o.model) for o in others)


def test_history_agrees_with_measuring_the_student(data, teacher):
    got = distill(teacher, data, student("kd", ce_weight=0.5), progress=False)
    last = got.history.iloc[-1]
    direct = evaluate(got, data.validation, teacher=teacher, temperature=4.0)
    for name in ("accuracy", "entropy", "confidence", "divergence"):
        assert last[f"validation_{name}"] == pytest.approx(direct[name], rel=1e-5, abs=1e-7)
    assert last["loss"] == pytest.approx(0.5 * last["ce_loss"] + 2 * last["distill_loss"])
    assert list(got.history["epoch"]) == [1, 2]


def test_a_loss_of_your_own_equals_the_named_one(data, teacher):
    def own(student_logits, teacher_logits, labels):
        return ttm_loss(student_logits, teacher_logits, 4.0)

    named = distill(teacher, data, student("ttm"), progress=False)
    given = distill(teacher, data, student(own), progress=False)
    assert same_weights(named.model, given.model)
    assert "own" in given.name


def test_max_steps_cuts_every_training(data, teacher):
    got = distill(teacher, data, student(epochs=50, max_steps=4), progress=False)
    assert len(got.history) == 2  # 3 steps an epoch


def test_epochs_without_end_end_with_the_last_step(data, teacher):
    settings = [student(m, epochs=10**18, max_steps=4) for m in ("kd", "ttm")]
    for got in distill_many(teacher, data, settings, progress=False):
        assert len(got.history) == 2


def test_seeds_that_torch_cannot_take_are_refused_and_others_work(data, teacher, tmp_path):
    settings = student(max_steps=1)
    for seed in (2**63, 2**64 - 1):
        assert distill(teacher, data, settings, seed=seed, progress=False).seed == seed
    with pytest.raises(ValueError, match=f"seed={2**70} must be less than {2**64}"):
        distill(teacher, data, settings, seed=2**70, folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


# Networks that return more than logits


class Wrapped(nn.Module):
    """The digits' network, which hands its logits over in its own way."""

    def __init__(self, hand_over, num_classes=10, seed=None):
        super().__init__()
        self.network = create_model("cnn_small", num_classes, seed=seed)
        self.hand_over = hand_over

    def forward(self, images):
        return self.hand_over(self, self.network(images))


@dataclass
class Output:
    logits: torch.Tensor
    hidden_states: tuple = ()


HANDED_OVER = {
    "dict": lambda _, z: {"features": z[:, :3], "logits": z},
    "object": lambda _, z: Output(z),
    "auxiliary": lambda net, z: GoogLeNetOutputs(z, z.flip(0), z * 2) if net.training else z,
}


@pytest.mark.parametrize("kind", HANDED_OVER)
def test_named_logits_train_like_bare_ones(data, teacher, monkeypatch, kind):
    plain = create_model("cnn_small", 10, seed=3)
    expected = distill_many(
        plain, data, [student("wttm"), student("dist")], progress=False, seeds=[1]
    )
    wrapped = Wrapped(HANDED_OVER[kind], seed=3)
    make = lambda _, classes, *, seed: Wrapped(HANDED_OVER[kind], classes, seed)  # noqa: E731
    monkeypatch.setattr(training, "create_model", make)
    got = distill_many(wrapped, data, [student("wttm"), student("dist")], progress=False, seeds=[1])
    for one, other in zip(got, expected, strict=True):
        assert same_weights(one.model.network, other.model)
        pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
        same = evaluate(one, data.test, teacher=wrapped)
        pd.testing.assert_series_equal(same, evaluate(other, data.test, teacher=plain))


@pytest.mark.parametrize(
    ("hand_over", "words"),
    [
        (lambda net, z: (z, z.mean(1)), "the network returns a tuple instead of logits: wrap it"),
        (lambda net, z: {"out": z}, r"returns a dict of \['out'\] instead of logits"),
        (lambda net, z: (z, z) if net.training else z, "in training: the network returns a tuple"),
        (lambda net, z: z[:, :3] if net.training else z, r"in training gives logits \(2, 3\)"),
        (lambda net, z: z if net.training else z.softmax(-1), "gives probabilities, not logits"),
    ],
)
def test_answers_that_are_no_logits_are_refused_before_work(
    data, teacher, monkeypatch, tmp_path, hand_over, words
):
    if "in training" not in words:
        with pytest.raises(ValueError, match=f"teacher.*{words}"):
            distill(Wrapped(hand_over), data, student(), folder=tmp_path, progress=False)
    make = lambda name, classes, *, seed: Wrapped(hand_over, classes, seed)  # noqa: E731
    monkeypatch.setattr(training, "create_model", make)
    with pytest.raises(ValueError, match=f"cnn_small.*{words}"):
        distill(teacher, data, student(), folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_learning_works_at_all(data, teacher):
    settings = student("ttm", epochs=30, learning_rate=0.05)
    assert evaluate(distill(teacher, data, settings, progress=False), data.test)["accuracy"] > 0.5


def test_a_diverging_student_does_not_take_the_others_along(data, teacher):
    wild = student(lambda z, v, y: (z * float("nan")).sum(), name="wild")
    with pytest.raises(Diverged, match=r"wild, seed 0: loss nan in epoch 1.*Lower") as caught:
        distill_many(teacher, data, [wild, student("ttm")], progress=False)
    assert [s.name for s in caught.value.trained] == ["TTM"]
    alone = distill(teacher, data, student("ttm"), progress=False)
    assert same_weights(caught.value.trained[0].model, alone.model)


def test_one_that_diverges_alone_ends_the_training(data, teacher):
    wild = student(lambda z, v, y: (z * float("nan")).sum(), name="wild", epochs=10**12)
    with pytest.raises(Diverged, match=r"wild, seed 0: loss nan in epoch 1") as caught:
        distill(teacher, data, wild, progress=False)
    assert caught.value.trained == []


# Run folders


def test_a_finished_run_is_read_back_not_trained_again(data, teacher, tmp_path):
    settings = [student("kd"), student("wttm")]
    first = distill_many(teacher, data, settings, folder=tmp_path, progress=False)
    names = {p.name for p in first[0].folder.iterdir()} - {".lock"}
    assert names == {"config.json", "environment.json", "metrics.csv", "model.safetensors"}
    stamps = [(s.folder / "model.safetensors").stat().st_mtime_ns for s in first]
    again = distill_many(teacher, data, settings, folder=tmp_path, progress=False)
    for one, two, stamp in zip(first, again, stamps, strict=True):
        assert same_weights(one.model, two.model)
        pd.testing.assert_frame_equal(one.history, two.history, check_exact=True)
        assert (two.folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_finished_run_is_read_without_an_optimizer(data, teacher, tmp_path, monkeypatch):
    first = distill(teacher, data, student(), folder=tmp_path, progress=False)
    monkeypatch.setattr(torch.optim, "SGD", None)  # torch.optim takes seconds to load
    again = distill(teacher, data, student(), folder=tmp_path, progress=False)
    assert same_weights(first.model, again.model)


def test_everything_that_decides_the_result_decides_the_folder(data, teacher, tmp_path):
    def own(factor):
        def scaled(z, v, y):
            return factor * ttm_loss(z, v, 4.0)

        return scaled

    base = student("wttm", max_steps=1)
    changed = [
        replace(base, temperature=2.0),
        replace(base, weight_decay=0.0),
        replace(base, decay_at=(0.5,)),
        student(LogitTerm(own(1.0), name="own", factor=1), max_steps=1, name="WTTM"),
        student(LogitTerm(own(2.0), name="own", factor=2), max_steps=1, name="WTTM"),
        replace(base, epochs=3),
    ]
    other_data = replace(data, train=Split(data.train.images[1:], data.train.labels[1:]))
    other_teacher = create_model("cnn_large", 10, seed=9)
    options = {"folder": tmp_path, "progress": False}
    folders = [distill(teacher, data, s, **options).folder for s in [base, *changed]]
    folders += [
        distill(teacher, data, base, seed=1, **options).folder,
        distill(teacher, other_data, base, **options).folder,
        distill(other_teacher, data, base, **options).folder,
    ]
    assert len(set(folders)) == len(folders)
    assert distill(teacher, data, base, **options).folder == folders[0]
    relabelled = distill(teacher, data, replace(base, name="WTTM "), **options)
    assert relabelled.folder == folders[0]
    config = json.loads((folders[1] / "config.json").read_text())
    assert config["settings"]["temperature"] == 2.0
    assert config["data"]["sha256"] == data.fingerprint


def test_a_loss_without_a_name_is_refused_with_a_folder(data, teacher, tmp_path):
    def own(z, v, y):
        return ttm_loss(z, v, 4.0)

    for method in (own, lambda z, v, y: ttm_loss(z, v, 4.0)):
        settings = student(method, max_steps=1, name="mine")
        assert distill(teacher, data, settings, progress=False).name == "mine"
        with pytest.raises(ValueError, match=r"no name of its own.*name=.*folder=None"):
            distill(teacher, data, settings, folder=tmp_path, progress=False)


def test_runs_of_an_earlier_version_are_named_in_one_line(data, teacher, tmp_path, capsys):
    config = tmp_path / "kd-seed0-0123456789ab" / "config.json"
    config.parent.mkdir()
    config.write_text('{"seed": 0, "training_code": "12ab"}')
    distill(teacher, data, student("kd", max_steps=1), folder=tmp_path, progress=False)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "kd-seed0-0123456789ab, were made by an earlier version" in said


def test_a_teacher_that_cannot_be_folded_says_so_in_the_config(data, tmp_path):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    got = distill(plain, data, student(max_steps=1), folder=tmp_path, progress=False)
    config = json.loads((got.folder / "config.json").read_text())
    assert config["settings"]["fold_batch_norm"] is False


def test_numpy_numbers_give_the_run_of_plain_ones(data, teacher, tmp_path):
    plain = student("kd", temperature=4, max_steps=1)
    numbers = {"temperature": np.float64(4), "epochs": np.int64(2), "decay_at": [150 / 240, 0.75]}
    other = replace(plain, **numbers)
    options = {"folder": tmp_path, "progress": False}
    first = distill(teacher, data, plain, seed=1, **options)
    assert distill(teacher, data, replace(plain, temperature=4.0), seed=1, **options).folder == (
        first.folder
    )
    got = distill_many(teacher, data, [other], seeds=np.arange(1), **options)
    assert got[0].folder.exists()
    with pytest.raises(ValueError, match=r"seed=1.5 must be a whole number"):
        distill(teacher, data, plain, seed=1.5, progress=False)


def test_teachers_that_differ_in_structure_alone_are_told_apart(data, tmp_path):
    folders = set()
    for activation in (nn.ReLU(), nn.Tanh()):
        own = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), activation, nn.Linear(8, 10))
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.fill_(0.01)
        settings = student(max_steps=1)
        folders.add(distill(own, data, settings, folder=tmp_path, progress=False).folder)
    assert len(folders) == 2


def test_weights_that_blew_up_in_the_last_step_are_not_a_finished_run(data, teacher, tmp_path):
    settings = student("ce", learning_rate=1e30, max_steps=1)
    with pytest.raises(Diverged, match="validation_"):
        distill(teacher, data, settings, folder=tmp_path, progress=False)
    assert not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize("method", [ttm_loss, lambda z, v, y: z.mean(0)])
def test_a_loss_of_the_wrong_form_is_refused_with_the_remedy(data, teacher, method):
    with pytest.raises(ValueError, match=r"must take \(student_logits.*method='wttm'"):
        distill(teacher, data, student(method, name="own"), progress=False)


def test_a_damaged_finished_run_is_named_with_the_remedy(data, teacher, tmp_path):
    settings = student(max_steps=3)
    options = {"folder": tmp_path, "progress": False}
    folder = distill(teacher, data, settings, **options).folder
    whole = {name: (folder / name).read_bytes() for name in ("metrics.csv", "model.safetensors")}
    for name, damage in [
        ("metrics.csv", whole["metrics.csv"][:-9]),
        ("metrics.csv", b""),
        ("model.safetensors", whole["model.safetensors"][:-9]),
    ]:
        (folder / name).write_bytes(damage)
        with pytest.raises(ValueError, match=rf"{folder.name} is damaged.*delete that folder"):
            distill(teacher, data, settings, **options)
        (folder / name).write_bytes(whole[name])
    (folder / "metrics.csv").unlink()
    with pytest.raises(ValueError, match="is damaged"):
        distill(teacher, data, settings, **options)


def test_files_of_another_run_are_not_taken_for_this_one_s(data, teacher, tmp_path):
    options = {"folder": tmp_path, "progress": False}
    one, two = (distill(teacher, data, student(epochs=n), **options).folder for n in (1, 2))
    shutil.copy(two / "model.safetensors", one)
    with pytest.raises(ValueError, match=rf"{one.name} is damaged.*is not that of the weights"):
        distill(teacher, data, student(epochs=1), **options)
    shutil.copytree(two, one, dirs_exist_ok=True)
    with (
        pytest.warns(UserWarning, match=r"config\.json was damaged"),
        pytest.raises(ValueError, match=rf"{one.name} is damaged.*is not that of the weights"),
    ):
        distill(teacher, data, student(epochs=1), **options)
    save_file(create_model("cnn_small", 10).state_dict(), two / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{two.name} is damaged.*was not written by this run"):
        distill(teacher, data, student(epochs=2), **options)


@pytest.mark.parametrize("name", ["run", "weights_sha256", "metrics_sha256"])
def test_a_damaged_name_among_the_notes_of_a_run_is_noticed(name, data, teacher, tmp_path):
    settings = student(max_steps=1)
    options = {"folder": tmp_path, "progress": False}
    path = distill(teacher, data, settings, **options).folder / "model.safetensors"
    whole = path.read_bytes()
    start = whole.index(f'"{name}'.encode()) + 1 if name == "run" else whole.index(name.encode())
    for bit in range(7):
        damaged = bytearray(whole)
        damaged[start] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged.*delete that folder"):
            distill(teacher, data, settings, **options)


@pytest.fixture(scope="module")
def broken_off(data, teacher, tmp_path_factory):
    """Settings, their whole run, and a folder that was broken off with two resume points."""
    folder = tmp_path_factory.mktemp("broken")
    settings = student(epochs=4, batch_size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Meter, "BLOCK", 2)
        whole = distill(teacher, data, settings, progress=False)
        original, count = torch.optim.SGD.step, iter(range(100))

        def step(self, *arguments, **options):
            if next(count) == 13:  # of 5 steps an epoch: the newest is of epoch 3, after 2 batches
                raise KeyboardInterrupt
            return original(self, *arguments, **options)

        patch.setattr(torch.optim.SGD, "step", step)
        options = {"folder": folder, "progress": False, "checkpoint_seconds": 0}
        with pytest.raises(KeyboardInterrupt):
            distill(teacher, data, settings, **options)
    names = sorted(path.name for path in folder.glob("*/checkpoint/*"))
    assert names == ["step-000000010.pt", "step-000000012.pt"]
    return settings, whole, folder


# What a resume point of another version lacks, or has of another shape, and what is said of it.
OTHER_VERSIONS = {
    "no model": ("'model'", lambda s: s.pop("model")),
    "a layer less": ("Missing key", lambda s: s["model"].popitem()),
    "another layer": (
        "size mismatch for classifier.bias",
        lambda s: s["model"].update({"classifier.bias": torch.ones(3)}),
    ),
    "no optimizer": ("'optimizer'", lambda s: s.pop("optimizer")),
    "empty optimizer": ("'param_groups'", lambda s: s.update(optimizer={})),
    "no meter": ("'meter'", lambda s: s.pop("meter")),
    "meter without a count": ("'count'", lambda s: s["meter"].pop("count")),
    "no step": ("'steps'", lambda s: s.pop("steps")),
    "no history": ("'rows'", lambda s: s.pop("rows")),
}


@pytest.mark.parametrize("name", OTHER_VERSIONS)
def test_a_resume_point_of_another_version_is_named_and_the_one_before_taken(
    name, broken_off, data, teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(training.Meter, "BLOCK", 2)
    settings, whole, folder = broken_off
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (newest,) = tmp_path.glob("*/checkpoint/step-000000012.pt")
    state = torch.load(io.BytesIO(newest.read_bytes()[:-32]), weights_only=True)
    reason, damage = OTHER_VERSIONS[name]
    damage(state)
    torch.save(state, newest)
    content = newest.read_bytes()
    newest.write_bytes(content + hashlib.sha256(content).digest())
    words = rf"(?s)damaged checkpoint .*step-000000012\.pt: .*{reason}"
    with pytest.warns(UserWarning, match=words):
        got = distill(teacher, data, settings, folder=tmp_path, progress=False)
    assert same_weights(got.model, whole.model)
    pd.testing.assert_frame_equal(got.history, whole.history, check_exact=True)


def test_a_run_in_the_words_of_the_first_version_goes_on(
    broken_off, data, teacher, tmp_path, monkeypatch, recwarn
):
    """Folders and resume points from before optimizer, decay_at and divergence had these names."""
    monkeypatch.setattr(training.Meter, "BLOCK", 2)
    settings, whole, folder = broken_off
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (run,) = tmp_path.glob("wttm-*")
    kept = json.loads((run / "config.json").read_text())["settings"]
    assert {"optimiser", "milestones"} <= kept.keys()
    assert not {"optimizer", "decay_at"} & kept.keys()
    newest = run / "checkpoint" / "step-000000012.pt"
    state = torch.load(io.BytesIO(newest.read_bytes()[:-32]), weights_only=True)
    state["optimiser"] = state.pop("optimizer")
    old = lambda row: {k.replace("divergence", "distance"): x for k, x in row.items()}  # noqa: E731
    state["rows"] = [old(row) for row in state["rows"]]
    state["meter"]["totals"] = old(state["meter"]["totals"])
    assert "validation_distance" in state["rows"][0]
    torch.save(state, newest)
    newest.write_bytes(newest.read_bytes() + hashlib.sha256(newest.read_bytes()).digest())
    got = distill(teacher, data, settings, folder=tmp_path, progress=False)
    assert not [w for w in recwarn if "damaged checkpoint" in str(w.message)]
    assert (got.folder, same_weights(got.model, whole.model)) == (run, True)
    pd.testing.assert_frame_equal(got.history, whole.history, check_exact=True)
    read = runs.read_config(run)["settings"]
    assert (read["optimizer"], tuple(read["decay_at"])) == ("sgd", settings.decay_at)


@pytest.mark.parametrize("victim", ["runs", "runs/*", "runs/*/config.json"])
@pytest.mark.parametrize("step", [1, 4, 6])  # of six, and of nine of the student beside it
def test_what_is_deleted_while_it_trains_is_said_and_written_anew(
    victim, step, data, teacher, tmp_path, monkeypatch
):
    settings = [student("kd"), student("wttm", epochs=3)]
    wanted = distill_many(teacher, data, settings, progress=False)
    original, count = training.Student.step, iter(range(1, 100))

    def delete(self, *arguments):
        original(self, *arguments)
        if next(count) == 2 * step:
            for path in list(tmp_path.glob(victim)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    options = {"folder": tmp_path / "runs", "progress": False, "checkpoint_seconds": 0}
    with monkeypatch.context() as patch:
        patch.setattr(training.Student, "step", delete)
        with pytest.warns(UserWarning, match=r"config\.json was deleted; it is written anew"):
            got = distill_many(teacher, data, settings, **options)
    for one, two in zip(got, wanted, strict=True):
        assert same_weights(one.model, two.model)
        names = {path.name for path in one.folder.iterdir()} - {".lock"}
        assert names == {"config.json", "environment.json", "metrics.csv", "model.safetensors"}
    monkeypatch.setattr(training.Student, "step", None)  # would fail
    distill_many(teacher, data, settings, **options)


def test_a_finished_folder_deleted_while_others_train_is_there_at_the_end(
    data, teacher, tmp_path, monkeypatch
):
    original = training.Student.end_epoch

    def delete(self, *arguments):
        original(self, *arguments)
        if len(self.rows) == 3:
            shutil.rmtree(tmp_path)

    monkeypatch.setattr(training.Student, "end_epoch", delete)
    settings = [student("kd"), student("wttm", epochs=3)]
    with pytest.warns(UserWarning, match=r"kd-seed0-.*config\.json was deleted"):
        got = distill_many(teacher, data, settings, folder=tmp_path, progress=False)
    for one in got:
        assert len([path for path in one.folder.iterdir() if path.name != ".lock"]) == 4


def test_weights_that_blew_up_unseen_are_not_a_finished_run(data, teacher, tmp_path):
    unseen = replace(data, validation=Split(data.validation.images[:0], data.validation.labels[:0]))
    settings = student("ce", learning_rate=1e38, weight_decay=1e10, max_steps=1)
    with pytest.raises(Diverged, match="not finite in epoch 1"):
        distill(teacher, unseen, settings, folder=tmp_path, progress=False)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_lack_of_memory_is_not_taken_for_damage(broken_off, data, teacher, tmp_path, monkeypatch):
    settings, _, folder = broken_off
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def full(*_):
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(training.Student, "resume", full)
    with pytest.raises(torch.OutOfMemoryError, match="is full"):
        distill(teacher, data, settings, folder=tmp_path, progress=False)


def test_the_environment_of_a_finished_run_is_not_made_up(data, teacher, tmp_path):
    options = {"folder": tmp_path, "progress": False}
    folder = distill(teacher, data, student(epochs=1), **options).folder
    (folder / "environment.json").unlink()
    (folder / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"config\.json was deleted; it is written anew"):
        distill(teacher, data, student(epochs=1), **options)
    assert (folder / "config.json").exists()
    assert not (folder / "environment.json").exists()
