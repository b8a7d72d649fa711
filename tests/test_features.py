"""Methods on features against torchdistill's own values, NumPy, and an interrupted training."""

import math
import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ttm_lab.course import features, paper
from ttm_lab.data import load_dataset
from ttm_lab.losses import KDLoss, StandardizedLoss, WTTMLoss
from ttm_lab.models import create_model
from ttm_lab.objectives import CrossEntropy, FeatureTerm, LogitTerm, Objective, Output
from ttm_lab.progress import Meter
from ttm_lab.training import Settings, distill, epoch_order

OPTIONS = {"epochs": 2, "batch_size": 64, "learning_rate": 0.02, "max_steps": 12}
PENULTIMATE = ("classifier:input", "classifier:input")


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", seed=0)


@pytest.fixture(scope="module")
def teacher():
    return create_model("cnn_large", 10, seed=1)


def sides(*shape, widths=None, seed=0):
    """A feature of the student, which asks for a gradient, and one of the teacher."""
    generator = torch.Generator().manual_seed(seed)
    one, two = widths or (shape[1], shape[1])
    student = torch.randn(shape[0], one, *shape[2:], generator=generator)
    teacher = torch.randn(shape[0], two, *shape[2:], generator=generator)
    return student.requires_grad_(), teacher


def value_and_gradient(term, student, teacher, labels=None, samples=None):
    student.grad = None
    loss = term(
        Output(None, {term.student_features[0]: student}, samples),
        Output(None, {term.teacher_features[0]: teacher}),
        labels,
    )
    loss.backward()
    return loss.detach(), student.grad


def places(**more):
    """What torchdistill's examples name: one pair of layers."""
    pair = {
        "student": {"path": "layer3", "io": "output"},
        "teacher": {"path": "conv", "io": "input"},
    }
    return {"pair1": pair | more}


@pytest.mark.parametrize("name", ["FitNet", "AT", "RKD", "PKT", "VID"])
def test_each_term_is_torchdistills_loss(torchdistill, name):
    shape, widths = ((6, 4, 3, 3), (4, 5)) if name in ("FitNet", "VID") else ((6, 4), None)
    if name == "AT":
        shape, widths = (6, 4, 3, 3), (4, 7)
    student, teacher = sides(*shape, widths=widths)
    student_io, teacher_io = {"layer3": {}}, {"conv": {}}
    if name == "FitNet":
        term = FeatureTerm(nn.MSELoss(), "a", "b", project=nn.Conv2d(4, 5, 1), name="FitNet")
        side = {"is_from_teacher": False, "module_path": "layer3", "io": "output"}
        target = {"is_from_teacher": True, "module_path": "conv", "io": "input"}
        own = torchdistill.SimpleLossWrapper(nn.MSELoss(), input=side, target=target)
    elif name == "AT":
        term, own = features.at("a", "b"), torchdistill.ATLoss(places(weight=1))
    elif name == "RKD":
        term = features.rkd("a", "b", distance=25, angle=50)
        own = torchdistill.RKDLoss("layer3", "conv", 25, 50, "mean")
    elif name == "PKT":
        term = features.pkt("a", "b")
        own = torchdistill.PKTLoss("layer3", "output", "conv", "input")
    else:
        term = features.vid("a", "b", (4, 5), variance=3.0)
        own = torchdistill.VIDLoss(places())
    got, slope = value_and_gradient(term, student, teacher)
    student.grad = None
    student_io["layer3"]["output"] = term.project(student)
    teacher_io["conv"] = {"input": teacher, "output": teacher}
    expected = own(student_io, teacher_io, None)
    expected.backward()
    assert got.item() > 0
    torch.testing.assert_close(got, expected.detach())
    torch.testing.assert_close(slope, student.grad)


def test_standardized_kd_is_torchdistills(torchdistill):
    student, teacher = sides(6, 10)
    own = torchdistill.LogitStdKDLoss(".", "output", ".", "output", 2.0, alpha=0.5, beta=9)
    labels = torch.arange(6)
    expected = own({".": {"output": student}}, {".": {"output": teacher}}, labels)
    got = 0.5 * F.cross_entropy(student, labels) + 9 * StandardizedLoss(KDLoss(2.0))(
        student, teacher
    )
    torch.testing.assert_close(got, expected)


def crd_reference(ours, other, bank_ours, bank_other, contrast, temperature):
    """Tian et al. 2020, Eq. 17 to 19: one picture and one negative at a time."""
    count, total = len(bank_ours), 0.0
    for anchor, bank in ((ours, bank_other), (other, bank_ours)):
        scores = np.array(
            [
                [math.exp(anchor[b] @ bank[k] / temperature) for k in row]
                for b, row in enumerate(contrast)
            ]
        )
        chance = scores / (scores.mean() * count)
        noise = (contrast.shape[1] - 1) / count
        for row in chance:
            total -= math.log(row[0] / (row[0] + noise))
            total -= sum(math.log(noise / (p + noise)) for p in row[1:])
    return total / len(ours)


def test_crd_is_its_definition(torchdistill, monkeypatch):
    labels = torch.arange(12) % 3
    crd = features.CRD("a", "b", (4, 5), labels, dimension=6, negatives=7)
    banks = [getattr(crd.loss, f"memory_v{side}").double().numpy().copy() for side in (1, 2)]
    samples, seen = torch.tensor([5, 0, 7, 11]), {}
    student, teacher = sides(4, 4, widths=(4, 5))
    handle = crd.loss.register_forward_pre_hook(lambda _, inputs: seen.update(inputs[0]["samples"]))
    got, _ = value_and_gradient(crd, student, teacher, labels[samples], samples)
    handle.remove()
    contrast = seen["input"]["contrast_idx"]
    assert torch.equal(contrast[:, 0], samples)
    with torch.no_grad():
        embedded = [
            F.normalize(linear.linear(x)).double().numpy()
            for linear, x in ((crd.project, student), (crd.project_teacher, teacher))
        ]
    expected = crd_reference(*embedded, *banks, contrast.numpy(), 0.07)
    assert got.item() == pytest.approx(expected, rel=1e-4)
    for side, (before, x) in enumerate(zip(banks, embedded, strict=True), 1):
        mixed = 0.5 * before[samples] + 0.5 * x
        before[samples] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        np.testing.assert_allclose(getattr(crd.loss, f"memory_v{side}"), before, atol=1e-6)


def test_crds_negatives_are_all_other_classes_alike(torchdistill):
    labels = torch.tensor([2, 0, 1, 1, 2, 0, 0, 2, 1, 0])
    crd = features.CRD("a", "b", (4, 5), labels, dimension=6, negatives=60_000)
    seen = []
    crd.loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]["samples"]["input"]))
    student, teacher = sides(3, 4, widths=(4, 5))
    samples = torch.tensor([3, 0, 1])
    value_and_gradient(crd, student, teacher, labels[samples], samples)
    for own, row in zip(samples, seen[0]["contrast_idx"][:, 1:], strict=True):
        share = row.bincount(minlength=10) / len(row)
        others = labels != labels[own]
        assert not share[~others].any()
        assert (share[others] * others.sum() - 1).abs().max() < 0.1  # 10 standard deviations


def test_what_a_term_trains_starts_from_its_seed():
    before = torch.get_rng_state()
    one, two, other = (features.ITRD("a", "b", (4, 5), alpha=1.5, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.project.weight, two.project.weight)
    assert not torch.equal(one.project.weight, other.project.weight)
    assert one.identity() == two.identity() != other.identity()


def objective(name, data) -> Objective:
    if name == "VID":
        term = features.vid("features.3", "features.3", (8, 64))
    elif name == "CRD":
        term = features.CRD(*PENULTIMATE, (32, 256), data.train.labels, dimension=8, negatives=50)
    else:
        term = features.ITRD(*PENULTIMATE, (32, 256), alpha=1.01)
    terms = {"ce": (1, CrossEntropy()), "distill": (2, WTTMLoss(4.0)), "own": (0.1, term)}
    return Objective(terms)


@pytest.mark.parametrize("name", ["VID", "CRD", "ITRD"])
def test_killed_and_resumed_it_ends_with_the_same_trained_parts(
    request, data, teacher, tmp_path, monkeypatch, name
):
    if name != "ITRD":
        request.getfixturevalue("torchdistill")
    monkeypatch.setattr(Meter, "BLOCK", 2)
    options = {"progress": False, "checkpoint_seconds": 0}
    settings = Settings("cnn_small", objective(name, data), name=name, **OPTIONS)
    whole = distill(teacher, data, settings, folder=tmp_path / "whole", **options)

    step, count = torch.optim.SGD.step, 0

    def killed(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", killed)
    again = Settings("cnn_small", objective(name, data), name=name, **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, data, again, folder=tmp_path / "broken", **options)
    broken = distill(teacher, data, again, folder=tmp_path / "broken", **options)
    assert count < 8 + 12  # it did not begin again
    for file in ("model.safetensors", "objective.safetensors", "metrics.csv"):
        assert (broken.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    trained = load_file(whole.folder / "objective.safetensors")
    start = objective(name, data).state_dict()
    assert trained.keys() == start.keys()
    for key in start:
        assert not torch.equal(start[key], trained[key])


def test_crds_bank_holds_the_pictures_that_were_seen(
    torchdistill, data, teacher, tmp_path, monkeypatch
):
    """One step moves the rows of its 64 pictures; trying the objective out moved none."""
    made = objective("CRD", data)
    settings = Settings("cnn_small", made, name="CRD", **(OPTIONS | {"max_steps": 1}))
    run = distill(teacher, data, settings, seed=5, folder=tmp_path, progress=False)
    trained = load_file(run.folder / "objective.safetensors")
    seen = epoch_order(len(data.train), 5, 0)[:64]
    for side in ("memory_v1", "memory_v2"):
        before = getattr(made.terms["own"].loss, side)
        moved = (trained[f"terms.own.loss.{side}"] != before).any(1).nonzero().flatten()
        assert torch.equal(moved, seen.sort().values)
    other = features.CRD(*PENULTIMATE, (32, 256), data.train.labels.flip(0), negatives=5)
    settings = Settings("cnn_small", other, distill_weight=1, **OPTIONS)
    with pytest.raises(ValueError, match="give it data"):
        distill(teacher, data, settings, progress=False)
    monkeypatch.setattr("ttm_lab.distributed.world_size", lambda: 2)
    with pytest.raises(ValueError, match="train it in one process"):
        value_and_gradient(other, *sides(2, 4), None, torch.arange(2))


def itrd_reference(z, kept, t, alpha, correlation, mutual):
    """Miles et al. 2022, with NumPy's correlation and one pair of pictures at a time."""
    n, total, unit = len(t), 0.0, [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (kept, t)]
    for a, b in zip(z.T, t.T, strict=True):
        # their code standardises with n - 1 and averages over n
        total += abs(np.corrcoef(a, b)[0, 1] * (n - 1) / n - 1) ** (2 * alpha)
    alone = joint = 0.0
    for i in range(n):
        for j in range(n):
            product = unit[0][i] @ unit[0][j]
            alone += (product / n) ** 2
            joint += (product * (unit[1][i] @ unit[1][j]) / n) ** 2
    return correlation * math.log2(total) + mutual * (alone - joint)


@pytest.mark.parametrize("widths", [(4, 5), (5, 5)])
def test_itrd_is_its_formula(widths):
    student, teacher = sides(8, 4, widths=widths)
    options = {"alpha": 1.5, "correlation": 2.0, "mutual": 0.7}
    term = features.ITRD("a", "b", widths, **options)
    got, slope = value_and_gradient(term, student, teacher)
    projected, raw = (x.detach().double().numpy() for x in (term.project(student), student))
    kept = raw if widths[0] == widths[1] else projected
    expected = itrd_reference(projected, kept, teacher.double().numpy(), *options.values())
    assert got.item() == pytest.approx(expected, rel=1e-5)
    assert slope.isfinite().all()


def test_itrd_of_a_perfect_student_has_a_closed_form():
    """r_j = (n - 1) / n for each of d features; unit vectors at right angles: both squares 1/n."""
    features_of_both = torch.eye(6)[:, :5] + 0  # the last picture is all zeros
    term = features.ITRD("a", "b", (5, 5), alpha=1.01, mutual=0.0)
    with torch.no_grad():
        term.project.weight.copy_(torch.eye(5))
        term.project.bias.zero_()
    got = term(Output(None, {"a": features_of_both}), Output(None, {"b": features_of_both}), None)
    assert got.item() == pytest.approx(2 * math.log2(5 * (1 / 6) ** 2.02), rel=1e-5)
    constant = torch.cat([features_of_both[:, :4], torch.ones(6, 1)], 1)  # a dead feature
    got = term(Output(None, {"a": features_of_both}), Output(None, {"b": constant}), None)
    assert got.isfinite()


def test_without_torchdistill_the_message_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdistill", None)
    for name in [name for name in sys.modules if name.startswith("torchdistill.")]:
        monkeypatch.delitem(sys.modules, name)
    for make in (features.at, features.rkd, features.pkt):
        with pytest.raises(ImportError, match=re.escape("pip install 'ttm-lab[features]'")):
            make("a", "b")
    features.ITRD("a", "b", (4, 4), alpha=1.5)


def test_combinations_have_the_papers_weights():
    """Tables 8 and 9 and A.5: three of them as printed there."""
    make = partial(features.ITRD, "fc:input", "fc:input", (64, 64))
    found = paper.combination("resnet56", "resnet20", "ITRD", make)
    assert found.weights == {"ce": 1, "distill": 5, "itrd": 1}
    assert found.terms["distill"].loss.temperature == pytest.approx(2)
    values = found.terms["itrd"].values
    assert [values[key] for key in ("alpha", "correlation", "mutual")] == [1.01, 2, 1]
    values = paper.combination("ResNet50", "vgg8", "ITRD", make).terms["itrd"].values
    assert [values[key] for key in ("alpha", "correlation", "mutual")] == [1.5, 2, 0]
    found = paper.combination("vgg13", "vgg8", "CRD", lambda: LogitTerm(F.mse_loss, name="x"))
    assert found.weights == {"ce": 1, "distill": 4, "crd": 0.8}
    assert found.terms["distill"].loss.temperature == pytest.approx(5)
    for pair, name in ((("resnet56", "resnet8"), "CRD"), (("vgg13", "vgg8"), "KD")):
        with pytest.raises(ValueError, match=rf"no weights of WTTM\+{name} from"):
            paper.combination(*pair, name, make)
    for one, other in paper.pairs():
        for name, term in (("CRD", lambda: LogitTerm(F.mse_loss, name="x")), ("ITRD", make)):
            paper.combination(one, other, name, term)
