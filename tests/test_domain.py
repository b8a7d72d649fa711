"""Weights across a shift, their terms, and the corruptions, held against closed forms."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from ttm_lab.course import corruptions, domain
from ttm_lab.data import Dataset, Split
from ttm_lab.files import find_root
from ttm_lab.losses import TTMLoss, kd_loss, ttm_loss
from ttm_lab.models import create_model
from ttm_lab.objectives import Output
from ttm_lab.training import Settings, distill_many, train_teacher


def outputs(count=12, classes=5):
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(count, classes, generator=draw) for _ in range(2))
    samples = torch.randperm(count, generator=draw)
    return Output(student, samples=samples), Output(teacher), torch.arange(count) % classes


def weights_of(count=400, seed=0):
    draw = torch.Generator().manual_seed(seed)
    is_source = torch.arange(count) < 0.6 * count
    features = torch.randn(count, 3, generator=draw)
    features[~is_source] += 0.8
    logits = 3 * torch.randn(count, 10, generator=draw)
    made = domain.picture_weights(logits, features, is_source, temperature=4.0, seed=seed)
    return made, logits, is_source


def test_weights_of_every_kind_have_mean_one_and_are_what_they_are_called():
    made, logits, _ = weights_of()
    assert tuple(made) == domain.KINDS
    for kind, w in made.items():
        assert float(w.mean()) == pytest.approx(1, abs=1e-5), kind
        assert w.min() >= 0, kind
    p = logits.double().softmax(-1)
    for kind, values in (("U", (p**0.25).sum(-1)), ("entropy", -(p * p.log()).sum(-1))):
        assert torch.allclose(made[kind].double(), values / values.mean(), rtol=1e-5)
    assert not torch.equal(made["shuffled"], made["U"])
    assert torch.equal(made["shuffled"].sort().values, made["U"].sort().values)


def test_the_ratio_turns_a_mean_over_the_mixture_into_that_over_the_target():
    """Two normals, of which all is known: the weights fit theirs, and means move to the target."""
    random, share = np.random.default_rng(0), 0.4
    is_source = np.arange(5000) >= share * 5000
    x = random.normal(size=5000) + np.where(is_source, 0.0, 1.0)
    w = domain.target_probability(x[:, None], is_source)
    w /= w.mean()
    source, target = stats.norm(0).pdf(x), stats.norm(1).pdf(x)
    exact = target / ((1 - share) * source + share * target)
    assert np.abs(w - exact).max() < 0.15
    for values, wanted in ((x, 1.0), (x**2, 2.0), (np.sin(x), np.sin(1) * np.exp(-0.5))):
        assert (w * values).mean() == pytest.approx(wanted, abs=0.08)
        assert abs(values.mean() - wanted) > 0.1  # equal weights do not


def test_effective_share():
    assert domain.effective_share([3.0, 3, 3]) == pytest.approx(1)
    assert domain.effective_share([1.0, 0, 0, 0]) == pytest.approx(1 / 4)
    assert domain.effective_share(torch.tensor([1.0, 2])) == pytest.approx(9 / 10)


def test_a_weighted_term_finds_the_weight_of_each_picture_in_the_batch():
    student, teacher, labels = outputs()
    loss, w = TTMLoss(4.0, reduction="none"), torch.rand(12)
    by_hand = sum(
        w[place] * loss(student.logits[i : i + 1], teacher.logits[i : i + 1])
        for i, place in enumerate(student.samples)
    )
    assert torch.allclose(domain.Weighted(loss, w)(student, teacher, labels), by_hand / 12)
    equal = domain.Weighted(loss, torch.ones(12))
    assert torch.allclose(
        equal(student, teacher, labels), TTMLoss(4.0)(student.logits, teacher.logits)
    )
    assert equal.identity() != domain.Weighted(loss, w).identity()


def test_source_cross_entropy_knows_no_label_of_the_target():
    student, teacher, labels = outputs()
    is_source = torch.arange(12) < 7
    term, own = domain.SourceCrossEntropy(is_source), is_source[student.samples]
    value = term(student, teacher, labels)
    assert torch.allclose(value, F.cross_entropy(student.logits[own], labels[own]))
    other = torch.where(own, labels, (labels + 1) % 5)
    assert term(student, teacher, other) == value
    assert domain.SourceCrossEntropy(torch.zeros(12, dtype=bool))(student, teacher, labels) == 0


def test_arms_at_one_scale():
    student, teacher, labels = outputs()
    is_source, z, v = torch.ones(12, dtype=bool), student.logits, teacher.logits
    w = {kind: torch.ones(12) for kind in domain.KINDS} | {"U": torch.arange(12) / 5.5}
    ce = F.cross_entropy(z, labels)
    each = w["U"][student.samples] * ttm_loss(z, v, 4.0, reduction="none")
    wanted = {
        "CE": ce,
        "KD": 0.1 * ce + 0.9 * kd_loss(z, v, 4.0),
        "TTM": 0.1 * ce + 3.6 * ttm_loss(z, v, 4.0),
        "WTTM": 0.1 * ce + 3.6 * each.mean(),
    }
    for arm, value in wanted.items():
        made = domain.objective(arm, w, is_source, temperature=4.0, share=0.9)
        found = made.total(made(student, teacher, labels))
        assert torch.allclose(found, value), arm


def test_joined_hides_the_target_s_labels_and_keeps_the_source_s_scale():
    draw = torch.Generator().manual_seed(0)

    def part(count, mean):
        images = torch.randint(256, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
        return Split(images, torch.arange(count) % 10, (mean,), (0.3,))

    source = Dataset("s", 0, tuple("0123456789"), part(20, 0.5), part(10, 0.5), part(10, 0.5))
    target, test = part(30, 0.2), part(15, 0.2)
    data, is_source = domain.joined("both", source, target, test)
    assert is_source.sum() == 20
    assert is_source[:20].all()
    assert torch.equal(data.train.labels[:20], source.train.labels)
    assert (data.train.labels[20:] == 0).all()
    assert torch.equal(data.train.images[20:], target.images)
    assert data.train.mean == data.test.mean == (0.5,)
    assert torch.equal(data.test.labels, test.labels)


def test_a_study_is_trained_kept_and_found_again(tmp_path):
    source, other = domain.digits_halves()
    teacher = domain.digits_teacher(source, max_steps=2)
    target, test = domain.turned(other, 25), domain.turned(source.test, 25)
    options = {"seeds": [0], "arms": ["CE", "WTTM"], "folder": tmp_path, "max_steps": 2}
    study = domain.digits_study(teacher, source, target, test, **options)
    again = domain.digits_study(teacher, source, target, test, **options)
    rows = study.rows(source.test, target="turned")
    assert list(rows["arm"]) == ["CE", "WTTM"]
    assert rows.equals(again.rows(source.test, target="turned"))
    assert rows["target_accuracy"].between(0, 1).all()


def test_weights_of_one_train_the_student_that_the_plain_loss_trains():
    source, _ = domain.digits_halves()
    teacher = train_teacher(source, Settings("cnn_large", max_steps=2), progress=False)
    everything = torch.ones(len(source.train), dtype=bool)
    w = dict.fromkeys(domain.KINDS, torch.ones(len(source.train)))
    made = domain.objective("TTM", w, everything, temperature=4.0, share=0.9)
    plain = {"temperature": 4.0, "ce_weight": 0.1, "distill_weight": 3.6}
    both = [
        Settings("cnn_small", made, max_steps=3),
        Settings("cnn_small", "ttm", max_steps=3, **plain),
    ]
    first, second = distill_many(teacher, source, both, progress=False)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_turning_by_a_right_angle_moves_rows_to_columns():
    images = torch.rand(3, 1, 8, 8)
    part = domain.turned(Split(images, torch.arange(3)), 90)
    assert torch.allclose(part.images, images.rot90(1, (-2, -1)), atol=1e-6)
    assert torch.equal(part.labels, torch.arange(3))


@pytest.mark.parametrize("kind", corruptions.STRENGTHS)
@pytest.mark.parametrize("shape", [(40, 3, 32, 32), (40, 1, 8, 8)])
def test_a_stronger_corruption_is_farther_from_the_picture(kind, shape):
    smooth = torch.nn.functional.interpolate(torch.rand(shape[0], shape[1], 4, 4), shape[-1])
    images = 0.2 + 0.6 * smooth
    found = [corruptions.corrupt(images, kind, a) for a in corruptions.STRENGTHS[kind]]
    far = [float((one - images).square().mean()) for one in found]
    assert 0 < far[0] < far[1] < far[2]
    assert all(one.min() >= 0 and one.max() <= 1 and one.shape == images.shape for one in found)
    none, strongest = corruptions.RANGES[kind]
    assert (corruptions.corrupt(images, kind, none) - images).abs().mean() < 0.02
    assert float((corruptions.corrupt(images, kind, strongest) - images).square().mean()) > far[0]


def test_corruptions_are_what_their_units_say():
    images = torch.full((200, 1, 16, 16), 0.5)
    noisy = corruptions.corrupt(images, "noise", 0.1, seed=3)
    assert float((noisy - images).std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(noisy, corruptions.corrupt(images, "noise", 0.1, seed=3))
    assert not torch.equal(noisy, corruptions.corrupt(images, "noise", 0.1, seed=4))
    assert torch.allclose(corruptions.corrupt(images, "brightness", 0.3), images + 0.3)
    dot = torch.zeros(1, 1, 31, 31)
    dot[..., 15, 15] = 1
    spread = corruptions.corrupt(dot, "blur", 1.5)[0, 0].double()
    place = torch.arange(31).double() - 15
    assert float((spread.sum(0) * place**2).sum()) == pytest.approx(1.5**2, rel=0.03)


def test_corruptions_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="kind='fog'"):
        corruptions.corrupt(torch.rand(2, 1, 8, 8), "fog", 1.0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        corruptions.corrupt(torch.randn(2, 1, 8, 8), "blur", 1.0)


def test_a_teacher_from_imagenet_sees_pixels_as_it_learned_them(tmp_path):
    """benchmarks/domain.py undoes the photos' normalisation, enlarges, and maps 0..1 to -1..1."""
    folder, name = find_root(__file__) / "benchmarks", "timm/tf_efficientnet_lite0"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        spec = importlib.util.spec_from_file_location("domain_script", folder / "domain.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
    plain = create_model(name, seed=0).eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pt")
    images = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    part = Split(images.byte(), torch.zeros(2).long(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    teacher = script.imagenet_teacher(name, tmp_path / "weights.pt", part).eval()
    (given, _), *_ = part.batches(2)
    with torch.no_grad():
        wanted = plain(F.interpolate(images / 127.5 - 1, size=128, mode="bilinear"))
        logits, features = script.look(teacher, given)
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert features.shape == (2, 1280)
    assert torch.allclose(plain.get_classifier()(features), logits, atol=1e-5)
