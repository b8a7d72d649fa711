"""benchmarks/stacked.py trains the students that ``distill_many`` trains."""

import sys
from pathlib import Path

import pytest
import torch

from ttm_lab.data import Dataset, Split
from ttm_lab.models import create_model
from ttm_lab.training import Settings, distill_many

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from stacked import Stack

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"))]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_a_stack_is_many_students_and_goes_on_where_it_stopped(device, tmp_path):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (150, 3, 32, 32), generator=draw, dtype=torch.uint8)
    labels = torch.arange(150) % 10
    part = lambda n: Split(images[:n], labels[:n], (0.5,) * 3, (0.25,) * 3)  # noqa: E731
    data = Dataset("noise", 0, tuple("abcdefghij"), part(150), part(40), part(40))
    teacher = create_model("resnet14", 10, seed=9).eval().to(device)
    recipe = {"epochs": 2, "augmentation": "crop-flip", "decay_at": (0.5,)}
    soft = {"temperature": 4.0, "ce_weight": 0.1} | recipe
    settings = [
        Settings("resnet8", learning_rate=0.02, **recipe),
        Settings("resnet8", "kd", distill_weight=0.9, learning_rate=0.02, **soft),
        Settings(
            "resnet8", "ttm", distill_weight=3.6, learning_rate=0.01, weight_decay=5e-5, **soft
        ),
        Settings("resnet8", "wttm", distill_weight=0.2, learning_rate=0.02, **soft),
    ]
    seeds = [0, 1]
    alone = distill_many(teacher, data, settings, seeds=seeds, device=device, progress=False)
    stack = Stack(seeds, settings, data, teacher, device)
    stack.train_epoch()
    stack.save(tmp_path / "resume.safetensors")
    stack = Stack(seeds, settings, data, teacher, device)
    stack.load(tmp_path / "resume.safetensors")
    stack.train_epoch()
    assert len(stack.rows) == 2
    with pytest.raises(ValueError, match="holds other students"):
        Stack([0], settings, data, teacher, device).load(tmp_path / "resume.safetensors")
    network = create_model("resnet8", 10)
    for trained, weights in zip(alone, stack.state_dicts(), strict=True):
        network.load_state_dict(weights)
        for name, x in trained.model.state_dict().items():
            torch.testing.assert_close(weights[name], x.cpu(), rtol=5e-3, atol=5e-4)
    for column in ("train_accuracy", "train_entropy", "validation_accuracy", "validation_entropy"):
        wanted = torch.tensor([trained.history[column].iloc[-1] for trained in alone])
        measured = stack.rows[-1][column].flatten().double()
        torch.testing.assert_close(measured, wanted.double(), rtol=1e-3, atol=1e-2)
