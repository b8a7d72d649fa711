"""Objectives: what a student minimises, with parts of its own that are trained and resumed."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ttm_lab.data import load_dataset
from ttm_lab.losses import KDLoss, StandardizedLoss, WTTMLoss, ttm_loss
from ttm_lab.models import create_model
from ttm_lab.objectives import (
    ConfidencePenalty,
    CrossEntropy,
    FeatureTerm,
    LogitTerm,
    Objective,
    Output,
    Term,
    recorded,
)
from ttm_lab.probability import shannon_entropy
from ttm_lab.progress import Meter
from ttm_lab.training import Settings, distill, distill_many, train_teacher

PINNED = {  # of ten steps on all training digits
    "KD": [
        2.36569,
        2.33294,
        2.30874,
        2.30284,
        2.30922,
        2.30612,
        2.30293,
        2.30233,
        2.30111,
        2.30093,
    ],
    "WTTM": [
        2.38219,
        2.31405,
        2.30882,
        2.32696,
        2.31846,
        2.3076,
        2.3015,
        2.30119,
        2.30067,
        2.30059,
    ],
}
OPTIONS = {"epochs": 2, "batch_size": 64, "learning_rate": 0.02, "max_steps": 12}


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", seed=0)


@pytest.fixture(scope="module")
def teacher(data):
    settings = Settings("cnn_large", epochs=3, learning_rate=0.1)
    return train_teacher(data, settings, progress=False).model


def hint(**values) -> FeatureTerm:
    """FitNet's loss: the student's features (B, 32), projected, against the teacher's (B, 256)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        project = nn.Linear(32, 256)
    places = ("classifier:input", "classifier:input")
    return FeatureTerm(nn.MSELoss(), *places, project=project, name="hint", **values)


def wttm_and_hint() -> Objective:
    return Objective(
        {"ce": (1, CrossEntropy()), "distill": (2, WTTMLoss(4.0)), "hint": (0.5, hint())}
    )


def weights(trained) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


def test_a_loss_of_the_package_is_a_method(data, teacher, tmp_path):
    named = Settings("cnn_small", "wttm", temperature=4, distill_weight=2, **OPTIONS)
    given = Settings("cnn_small", WTTMLoss(4.0), distill_weight=2, **OPTIONS)
    assert given.name == "WTTM"
    first = distill(teacher, data, named, progress=False)
    second = distill(teacher, data, given, folder=tmp_path, progress=False)
    assert torch.equal(weights(first), weights(second))
    other = Settings("cnn_small", WTTMLoss(3.0), distill_weight=2, **OPTIONS)
    assert distill(teacher, data, other, folder=tmp_path, progress=False).folder != second.folder


@pytest.mark.parametrize("name", ["kd+std", "dkd+std"])  # dkd takes labels, too
def test_standardized_losses_are_methods(data, teacher, name):
    named = Settings("cnn_small", name, temperature=2, distill_weight=9, **OPTIONS)
    assert named.name == name.upper()
    first = distill(teacher, data, named, progress=False)
    if name == "kd+std":
        given = Settings("cnn_small", StandardizedLoss(KDLoss(2.0)), distill_weight=9, **OPTIONS)
        assert given.name == "KD+STD"
        second = distill(teacher, data, given, progress=False)
        assert torch.equal(weights(first), weights(second))
    assert first.history["distill_loss"].between(0, 100).all()


def test_label_smoothing_and_confidence_penalty_are_what_their_papers_say():
    """Closed forms in float64: CE with a smoothed target; minus the entropy."""
    logits = 3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    labels, student = torch.tensor([0, 3, 6, 2, 2]), Output(logits)
    target = 0.9 * F.one_hot(labels, 7).double() + 0.1 / 7
    expected = -(target * logits.double().log_softmax(1)).sum(1).mean()
    got = CrossEntropy(label_smoothing=0.1)(student, None, labels)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    q = logits.double().softmax(1)
    entropy = shannon_entropy(q).mean()
    assert ConfidencePenalty()(student, None, labels).item() == pytest.approx(-entropy.item())
    uniform = ConfidencePenalty()(Output(torch.zeros(5, 7)), None, labels)
    assert uniform.item() == pytest.approx(-torch.tensor(7.0).log().item())
    with pytest.raises(ValueError, match=r"label_smoothing=1\.5 must be from 0 to 1"):
        CrossEntropy(label_smoothing=1.5)


def test_objectives_that_ask_no_teacher_train_and_are_told_apart(data, teacher, tmp_path):
    def run(terms):
        options = {"epochs": 4, "batch_size": 64, "learning_rate": 0.1}
        settings = Settings("cnn_small", Objective(terms), name="own", **options)
        return distill(teacher, data, settings, folder=tmp_path, progress=False)

    plain = run({"ce": (1, CrossEntropy())})
    smoothed = run({"ce": (1, CrossEntropy(label_smoothing=0.5))})
    penalised = run({"ce": (1, CrossEntropy()), "penalty": (1, ConfidencePenalty())})
    assert len({plain.folder, smoothed.folder, penalised.folder}) == 3
    for less_sure in (smoothed, penalised):
        last = less_sure.history["train_entropy"].iloc[-1]
        assert last > plain.history["train_entropy"].iloc[-1]


def test_one_step_moves_student_and_projection_by_the_gradient(data, teacher):
    """WTTM and a hint through a trained projection, against autograd in float64."""
    size = len(data.train)
    objective = wttm_and_hint()
    settings = Settings(
        "cnn_small", objective, batch_size=size, max_steps=1, weight_decay=0, momentum=0
    )
    got = distill(teacher, data, settings, seed=3, progress=False)

    network = create_model("cnn_small", 10, seed=3).double()
    project = hint().project.double()
    images, labels = data.train.images, data.train.labels
    with torch.no_grad():
        wanted, v = teacher.forward_features(images).double(), teacher(images).double()
    features = network.forward_features(images.double())
    z = network.head(features)
    p, q = (v / 4).softmax(1), z.log_softmax(1)
    weight = (v.softmax(1) ** 0.25).sum(1)
    wttm = (weight * (p * (p.log() - q)).sum(1)).mean()
    loss = F.cross_entropy(z, labels) + 2 * wttm + 0.5 * F.mse_loss(project(features), wanted)
    loss.backward()
    for name, parameter in network.named_parameters():
        moved = parameter.detach() - settings.learning_rate * parameter.grad
        assert torch.allclose(got.model.get_parameter(name).double(), moved, atol=1e-6)
    assert got.history["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert got.history["hint_loss"].item() == pytest.approx(
        F.mse_loss(project(features), wanted).item(), rel=1e-5
    )
    # the template stays as its author made it; each student trained a copy
    assert torch.equal(objective.terms["hint"].project.weight, hint().project.weight)


def test_broken_off_the_projection_too_ends_bit_identical(data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(Meter, "BLOCK", 2)
    options = {"progress": False, "checkpoint_seconds": 0}
    settings = Settings("cnn_small", wttm_and_hint(), name="both", **OPTIONS)
    whole = distill(teacher, data, settings, folder=tmp_path / "whole", **options)

    step, count = torch.optim.SGD.step, 0

    def interrupted(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", interrupted)
    again = Settings("cnn_small", wttm_and_hint(), name="both", **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, data, again, folder=tmp_path / "broken", **options)
    broken = distill(teacher, data, again, folder=tmp_path / "broken", **options)
    assert count > 12 - 8
    for name in ("model.safetensors", "objective.safetensors", "metrics.csv"):
        assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    trained = load_file(whole.folder / "objective.safetensors")["terms.hint.project.weight"]
    assert not torch.equal(trained, hint().project.weight)
    loaded = distill(teacher, data, again, folder=tmp_path / "broken", **options)
    assert torch.equal(weights(loaded), weights(whole))


def test_in_company_features_and_logits_share_no_state(data, teacher):
    several = [
        Settings("cnn_small", "ttm", temperature=4, distill_weight=1, **OPTIONS),
        Settings("cnn_small", wttm_and_hint(), name="both", **OPTIONS),
    ]
    together = distill_many(teacher, data, several, progress=False)
    for settings, one in zip(several, together, strict=True):
        alone = distill(teacher, data, settings, progress=False)
        assert torch.equal(weights(alone), weights(one))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8"])
def test_recorded_features_are_the_networks_own(name):
    network = create_model(name, 10, seed=0).eval()
    images, place = torch.randn(4, 3, 32, 32), f"{[*dict(network.named_children())][-1]}:input"
    with torch.no_grad(), recorded(network, [place]) as features:
        logits = network(images)
    assert torch.equal(features[place], network.forward_features(images))
    assert torch.equal(network.head(features[place]), logits)


def test_the_authors_name_and_values_decide_the_folder(data, teacher, tmp_path):
    def loss(scale):
        return lambda student, teacher, labels: scale * ttm_loss(student, teacher, 4.0)

    def run(factor, **values):
        term = LogitTerm(loss(factor), **values)
        settings = Settings("cnn_small", term, distill_weight=1, name="own", **OPTIONS)
        return distill(teacher, data, settings, folder=tmp_path, progress=False)

    first = run(1, name="mine", scale=1)
    assert run(1, name="mine", scale=1).folder == first.folder
    assert run(2, name="mine", scale=2).folder != first.folder
    assert run(1, name="other", scale=1).folder != first.folder
    method = json.loads((first.folder / "config.json").read_text())["settings"]["method"]
    assert method["distill"] == [1.0, ["mine", {"scale": 1}]]
    for values, words in [
        ({}, r"no name of its own.*name=.*folder=None"),
        ({"name": "mine", "scale": torch.ones(1)}, r"cannot be written down.*folder=None"),
    ]:
        with pytest.raises(ValueError, match=words):
            run(1, **values)


SHARPNESS = 1.0


def reads_from_outside(student, teacher):
    return SHARPNESS * ttm_loss(student, teacher, 4.0)


def test_numbers_that_a_loss_reads_from_outside_are_part_of_its_identity(monkeypatch):
    def mine(**values):
        return LogitTerm(reads_from_outside, name="mine", **values).identity()

    def inside(scale):
        return LogitTerm(lambda z, v: scale * ttm_loss(z, v, 4.0), name="mine").identity()

    first = mine()
    assert json.loads(json.dumps(first)) == first == ["mine", {"SHARPNESS": 1.0}]
    monkeypatch.setitem(globals(), "SHARPNESS", 2.0)
    assert mine() == ["mine", {"SHARPNESS": 2.0}]
    assert mine(scale=3) == ["mine", {"SHARPNESS": 2.0, "scale": 3}]
    assert inside(1) != inside(2)
    hint = FeatureTerm(reads_from_outside, "a", "b", name="mine").identity()
    assert hint[0] == ["mine", {"SHARPNESS": 2.0}]


class Unnamed(Term):
    def forward(self, student, teacher, labels):
        return student.logits.square().mean()


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        (FeatureTerm(nn.MSELoss(), "layer9", "classifier", name="x"), {}, r"no module 'layer9'"),
        (hint(), {"remember": True, "augmentation": "crop"}, "remember=True does not fit"),
        (hint(), {"compiled": True}, "compiled=True does not fit"),
        (FeatureTerm(nn.MSELoss(), *2 * ["classifier:input"], name="x"), {}, "must take"),
        (lambda a, b, c: a.mean(0), {}, "return a tensor with one number"),
        (ttm_loss, {}, r"must take \(student_logits, teacher_logits, labels\)"),
    ],
)
def test_what_cannot_be_computed_is_refused_before_training(
    data, teacher, method, changes, words, monkeypatch
):
    monkeypatch.setattr(torch.optim.SGD, "step", None)
    settings = Settings("cnn_small", method, distill_weight=1, **(OPTIONS | changes))
    with pytest.raises(ValueError, match=words):
        distill(teacher, data, settings, progress=False)


def test_a_term_without_identity_trains_but_leaves_no_folder(data, teacher, tmp_path):
    settings = Settings("cnn_small", Unnamed(), distill_weight=1, **OPTIONS)
    assert distill(teacher, data, settings, progress=False).name == "Unnamed"
    with pytest.raises(ValueError, match=r"Unnamed has no identity.*folder=None"):
        distill(teacher, data, settings, folder=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({}, "at least one term"),
        ({"ce": (-1, CrossEntropy())}, "weight -1"),
        ({"a b": (1, CrossEntropy())}, "letters and digits"),
        ({"ce": (float("nan"), CrossEntropy())}, "weight nan"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(terms, words):
    with pytest.raises(ValueError, match=words):
        Objective(terms)


def test_ten_steps_are_pinned(data):
    """What fails here changed the numbers of a training: raise ``training.NUMERICS``."""
    fixed = create_model("cnn_large", 10, seed=1)
    common = {"temperature": 4, "batch_size": len(data.train), "epochs": 10, "learning_rate": 0.5}
    settings = [
        Settings("cnn_small", "kd", distill_weight=2, **common),
        Settings("cnn_small", "wttm", distill_weight=1, **common),
    ]
    for trained in distill_many(fixed, data, settings, progress=False):
        losses = trained.history["loss"].tolist()
        assert losses == pytest.approx(PINNED[trained.name], rel=1e-4)
