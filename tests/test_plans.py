"""The 2x2 on CIFAR-100: scale is weight decay, and the arms are what they are called."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ttm_lab.course import plans
from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.files import find_root
from ttm_lab.losses import kd_loss, ttm_loss, wttm_loss
from ttm_lab.models import create_model
from ttm_lab.objectives import Output, make_objective
from ttm_lab.training import Settings, distill_many


def trained_in_float64(loss, scale, learning_rate, weight_decay, steps=20) -> torch.Tensor:
    """The weights after some steps of SGD with momentum on ``scale`` times a loss."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).double()
    optimiser = torch.optim.SGD(
        network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=weight_decay
    )
    for _ in range(steps):
        inputs, labels = torch.randn(32, 6, dtype=torch.float64), torch.randint(5, (32,))
        teacher = 3 * torch.randn(32, 5, dtype=torch.float64)
        optimiser.zero_grad()
        (scale * loss(network(inputs), teacher, labels)).backward()
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("term", [kd_loss, ttm_loss, wttm_loss])
@pytest.mark.parametrize("c", [10.0, 0.3])
def test_loss_times_c_is_another_learning_rate_and_weight_decay(term, c):
    def loss(student, teacher, labels):
        return F.cross_entropy(student, labels) + 2 * term(student, teacher, 4.0)

    rate, decay = 0.01, 5e-3
    scaled = trained_in_float64(loss, c, rate, decay)
    moved = trained_in_float64(loss, 1, c * rate, decay / c)
    torch.testing.assert_close(scaled, moved, rtol=1e-11, atol=1e-13)
    # and the weight decay is needed for it
    assert not torch.allclose(scaled, trained_in_float64(loss, 1, c * rate, decay), rtol=1e-5)


def test_the_arms_at_kd_s_scale_are_the_published_losses_at_another_rate():
    found = {arm.name: arm for arm in plans.arms(learning_rate=0.1)}
    assert list(found) == [
        "CE",
        *("KD, wd 5e-4", "KD, wd 5e-5", "TTM, wd 5e-4", "TTM, wd 5e-5"),
        "WTTM, wd 5e-5",
    ]
    published = {"temperature": 4.0, "ce_weight": 1.0, "distill_weight": 36.0}
    published |= {"learning_rate": 0.01, "weight_decay": 5e-4}
    small = {"epochs": 1, "max_steps": 4, "augmentation": "none", "precision": "float32"}
    teacher, data = create_model("cnn_large", 10, seed=1), load_dataset("digits")
    for method in ("ttm", "wttm"):
        arm = replace(found[f"{method.upper()}, wd 5e-5"], model="cnn_small", **small)
        other = Settings("cnn_small", method, **published, **small)
        ours, theirs = distill_many(teacher, data, [arm, other], progress=False)
        for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for kd in ("KD, wd 5e-4", "KD, wd 5e-5"):
        assert (found[kd].ce_weight, found[kd].distill_weight) == pytest.approx((0.1, 0.9))
    decays = [found[name].weight_decay for name in found]
    assert decays == [5e-4, 5e-4, 5e-5, 5e-4, 5e-5, 5e-5]


def test_kd_and_ttm_start_with_the_same_gradient_at_kd_s_scale():
    labels, teacher = torch.tensor([0, 3]), 2 * torch.randn(2, 5, dtype=torch.float64)
    gradients = []
    for weight, term in ((0.9, kd_loss), (3.6, ttm_loss)):
        student = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
        loss = 0.1 * F.cross_entropy(student, labels) + weight * term(student, teacher, 4.0)
        gradients += torch.autograd.grad(loss, student)
    torch.testing.assert_close(*gradients)


def test_every_plan_is_found_by_name_and_another_name_lists_them():
    with pytest.raises(ValueError, match="no plan 'cifar'; there are cifar100-2x2-rates, cifar100"):
        plans.find("cifar")
    search, common = plans.find("cifar100-2x2-rates"), plans.find("cifar100-2x2-common")
    assert len(search.runs) == 6 * len(plans.RATES)
    assert search.part == "validation"
    assert {run.seed for run in search.runs}.isdisjoint({run.seed for run in common.runs})
    assert len({common.key(run) for run in common.runs}) == len(common.runs) == 6 * 5
    assert {r.settings.name for r in common.runs if r.by_mean_weight} == {"WTTM"}
    kept = {r.settings.name: r.settings for r in common.runs}
    scale = {name: s.ce_weight for name, s in kept.items()}
    assert scale == pytest.approx(
        {"CE": 1, "KD": 0.1, "KD x 10": 1, "TTM / 10": 0.1, "TTM": 1, "WTTM": 1}
    )
    assert {(s.learning_rate, s.weight_decay) for s in kept.values()} == {(0.01, 5e-4)}


def test_the_2x2_takes_each_arm_s_best_rate_and_wants_the_whole_search(tmp_path):
    search = plans.cifar100_2x2_rates()
    best = dict(zip([arm.name for arm in plans.arms()], [0, 1, 2, 3, 1, 2], strict=True))
    rows = [
        {
            "key": search.key(run),
            "accuracy": 0.5 - abs(plans.RATES.index(run.settings.learning_rate) - best[arm]) / 10,
            "nll": 1.0,
            "learning_rate": run.settings.learning_rate,
        }
        for run in search.runs
        if (arm := run.settings.name.split(", lr")[0])
    ]
    rows[-1]["accuracy"] = float("nan")  # diverged
    pd.DataFrame(rows[:-1]).to_csv(search.table(tmp_path))
    with pytest.raises(ValueError, match="searched first: ttm-lab plan cifar100-2x2-rates"):
        plans.cifar100_2x2(tmp_path)
    pd.DataFrame(rows).to_csv(search.table(tmp_path))
    plan = plans.cifar100_2x2(tmp_path)
    assert len(plan.runs) == 6 * 5
    assert plan.part == "test"
    chosen = {run.settings.name: run.settings.learning_rate for run in plan.runs}
    assert chosen == {arm: plans.RATES[k] for arm, k in best.items()}


def test_other_methods_have_their_authors_weights_and_the_budget_of_the_2x2(tmp_path):
    search = plans.find("cifar100-methods-rates")
    assert search.part == "validation"
    rows = [
        {"key": search.key(r), "accuracy": r.settings.learning_rate, "nll": 1.0}
        | {"learning_rate": r.settings.learning_rate}
        for r in search.runs
    ]
    pd.DataFrame(rows).to_csv(search.table(tmp_path))
    plan = plans.cifar100_methods(tmp_path)
    found = {r.settings.name: r.settings for r in plan.runs}
    told = {
        name: (s.method, s.temperature, s.ce_weight, s.distill_weight) for name, s in found.items()
    }
    assert told == {
        "DKD": ("dkd", 4.0, 1.0, 1.0),
        "DIST": ("dist", 4.0, 1.0, 1.0),
        "KD+STD": ("kd+std", 2.0, 0.1, 9.0),
    }
    for name, s in found.items():  # the best is the largest here
        rates = [r.settings.learning_rate for r in search.runs if r.settings.name[:3] == name[:3]]
        assert s.learning_rate == max(rates)
    of_2x2 = plans.cifar100_2x2_common().runs[0].settings
    same = ("model", "epochs", "precision", "augmentation", "batch_size", "weight_decay")
    assert {tuple(getattr(s, k) for k in same) for s in (*found.values(), of_2x2)} == {
        tuple(getattr(of_2x2, k) for k in same)
    }


def test_each_method_s_rates_fit_the_size_of_its_gradient():
    """Where a student starts, with small logits: beside KD's, for a kept teacher's answers."""
    with np.load(find_root() / "data" / "results" / "cifar100_logits.npz") as kept:
        teacher = torch.from_numpy(kept["logits"][kept["model_method"] == "teacher"][0]).float()
        labels = torch.from_numpy(kept["labels"]).long()
    start = 0.3 * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))

    def size(settings) -> float:
        student = start.clone().requires_grad_()
        weights = {k: getattr(settings, k) for k in ("temperature", "ce_weight", "distill_weight")}
        objective = make_objective(settings.method, **weights)
        objective.total(objective(Output(student), Output(teacher), labels)).backward()
        return student.grad.norm().item()

    kd = size(next(arm for arm in plans.arms() if arm.name == "KD, wd 5e-4"))
    runs = plans.find("cifar100-methods-rates").runs
    for arm in plans.other_methods():
        rates = [r.settings.learning_rate for r in runs if r.settings.method == arm.method]
        assert size(arm) / kd == pytest.approx(min(plans.RATES) / min(rates), rel=0.5), arm.name


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder as ``data`` with a finished teacher, and noise in place of CIFAR-100."""
    images = torch.zeros(30, 3, 32, 32, dtype=torch.uint8)
    part = Split(images, torch.arange(30) % 10, mean=(0.5,) * 3, std=(0.25,) * 3)
    data = Dataset("cifar100", 0, tuple("abcdefghij"), part, part, part)
    calls = []
    monkeypatch.setattr(plans, "load_dataset", lambda *a, **o: calls.append((a, o)) or data)
    note = {"model": "resnet8", "steps": 10, "of": 10}
    weights = create_model("resnet8", 10, seed=5).half().state_dict()
    (tmp_path / "results").mkdir()
    save_file(weights, tmp_path / "results" / "cifar100_teacher_weights.safetensors")
    file = tmp_path / "results" / "cifar100_teacher.json"
    file.write_text(json.dumps(note))
    return SimpleNamespace(folder=tmp_path, note=note, file=file, calls=calls)


def test_two_of_the_temperatures_are_those_that_the_rules_name():
    arms = plans.temperatures()
    assert [arm.distill_weight for arm in arms] == pytest.approx([3.6] * len(arms))
    table = pd.read_csv(find_root(__file__) / "data/results/cifar100-temperatures_teacher.csv")
    table = table.set_index("temperature")
    assert list(table.index) == [arm.temperature for arm in arms]
    assert table.loc[1.5, "divergence"] == pytest.approx(0.1, rel=0.1)
    assert table.loc[2.25, "classes"] == pytest.approx(10, rel=0.1)


def test_the_kept_teacher_comes_with_the_pictures_listed_for_it(kept):
    teacher, _ = plans.kept_cifar100(kept.folder, "resnet8:resnet8", 0, "here")
    assert kept.calls == [(("cifar100",), {"root": "here", "validation": "listed"})]
    wanted = create_model("resnet8", 10, seed=5).half().float().state_dict()
    assert all(torch.equal(x, wanted[name]) for name, x in teacher.model.state_dict().items())


def test_an_unfinished_or_another_teacher_is_refused(kept):
    with pytest.raises(ValueError, match="resnet32:resnet8 needs a resnet32"):
        plans.kept_cifar100(kept.folder, "resnet32:resnet8", 0, None)
    kept.file.write_text(json.dumps(kept.note | {"steps": 4}))
    with pytest.raises(ValueError, match="step 4 of 10: finish it with"):
        plans.kept_cifar100(kept.folder, "resnet8:resnet8", 0, None)
