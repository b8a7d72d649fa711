"""On a GPU: the losses are as exact, and training gives the same students, as on a CPU."""

import copy

import pytest
import torch

from ttm_lab import losses
from ttm_lab.data import Dataset, Split
from ttm_lab.models import create_model
from ttm_lab.objectives import LogitTerm
from ttm_lab.training import Settings, distill, distill_many

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LOSSES = {"kd": losses.kd_loss, "ttm": losses.ttm_loss, "wttm": losses.wttm_loss}
GRADIENT_BOUNDS = {torch.float32: 5e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}
RECIPE = {"temperature": 4.0, "epochs": 2, "augmentation": "crop-flip", "learning_rate": 0.02}


@pytest.fixture(scope="module")
def data() -> Dataset:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, 3, 32, 32), generator=draw, dtype=torch.uint8)
    labels = torch.arange(200) % 10
    part = lambda n: Split(images[:n], labels[:n], (0.5,) * 3, (0.25,) * 3)  # noqa: E731
    return Dataset("noise", 0, tuple("abcdefghij"), part(200), part(50), part(50))


@pytest.fixture(scope="module")
def teacher():
    return create_model("resnet14", 10, seed=9).eval()


def students() -> list[Settings]:
    weights = {"kd": 0.9, "ttm": 3.6, "wttm": 2.0}
    return [Settings("resnet8", m, distill_weight=w, **RECIPE) for m, w in weights.items()]


def same_weights(first, second) -> bool:
    return all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.parametrize("dtype", GRADIENT_BOUNDS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_exact(name, dtype):
    T, draw = 4.0, torch.Generator().manual_seed(1)
    logits = 6 * torch.randn(2, 64, 100, generator=draw)
    z, v = logits.to(dtype).cuda()
    z = z.clone().requires_grad_()
    loss = LOSSES[name](z, v, T, reduction="none")
    loss.sum().backward()

    exact = z.detach().cpu().double().requires_grad_()
    log_p = (v.cpu().double() / T).log_softmax(-1)
    log_q = (exact / T if name == "kd" else exact).log_softmax(-1)
    power_sum = v.cpu().double().softmax(-1).pow(1 / T).sum(-1)
    factor = {"kd": torch.tensor(T**2), "ttm": torch.tensor(1.0), "wttm": power_sum}[name]
    wanted = factor * (log_p.exp() * (log_p - log_q)).sum(-1)
    wanted.sum().backward()
    size = 0.05 + (log_p.exp() * (log_p.abs() + log_q.abs())).sum(-1)
    assert ((loss.cpu().double() - wanted).abs() <= 5e-6 * factor * size).all()
    gradient = z.grad.cpu().double()
    assert (gradient - exact.grad).norm() <= GRADIENT_BOUNDS[dtype] * exact.grad.norm()


def test_training_is_that_of_the_cpu(data, teacher):
    short = [Settings(**{**vars(s), "max_steps": 3}) for s in students()]
    on_cpu = distill_many(copy.deepcopy(teacher), data, short, device="cpu", progress=False)
    on_gpu = distill_many(copy.deepcopy(teacher), data, short, device="cuda", progress=False)
    for a, b in zip(on_cpu, on_gpu, strict=True):
        for name, x in a.model.state_dict().items():
            torch.testing.assert_close(b.model.state_dict()[name].cpu(), x, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_alone_in_company_and_after_a_stop(data, teacher, precision, tmp_path):
    together = [Settings(**{**vars(s), "precision": precision}) for s in students()]
    company = distill_many(teacher, data, together, device="cuda", progress=False)
    alone = distill(teacher, data, together[1], device="cuda", progress=False)
    assert same_weights(alone.model.state_dict(), company[1].model.state_dict())

    def after(steps):
        loss, left = losses.TTMLoss(4.0), iter(range(steps))

        def method(student_logits, teacher_logits):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return loss(student_logits, teacher_logits)

        method = LogitTerm(method, name="ttm")
        settings = Settings(**{**vars(together[1]), "method": method})
        return distill(
            teacher, data, settings, folder=tmp_path, device="cuda", checkpoint_seconds=0,
            progress=False,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        after(5)
    resumed = after(100)
    assert same_weights(resumed.model.state_dict(), company[1].model.state_dict())


def test_remembered_logits_and_compiled_students(data, teacher):
    asked, plain = students()[1], {"device": "cuda", "progress": False}
    asked = Settings(**{**vars(asked), "max_steps": 3})
    before = distill(teacher, data, asked, **plain).model.state_dict()
    for switch in ("remember", "compiled"):
        changed = Settings(**{**vars(asked), switch: True})
        after = distill(teacher, data, changed, **plain).model.state_dict()
        for name, x in before.items():
            torch.testing.assert_close(after[name], x, rtol=2e-3, atol=2e-4)
