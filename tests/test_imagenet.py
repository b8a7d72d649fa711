"""ImageNet's path with its real loader and networks, on a few small pictures."""

import hashlib
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model_weights

from ttm_lab import training
from ttm_lab.course import cli, paper, paper_rows, samples
from ttm_lab.data import load_dataset
from ttm_lab.files import find_root
from ttm_lab.models import create_model
from ttm_lab.training import distill

OTHER_CLASSES = "ignore:.*ImageNet has 1000:UserWarning"
pytestmark = pytest.mark.filterwarnings(OTHER_CLASSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return samples.draw_pictures(tmp_path_factory.mktemp("pictures"), train=2, val=1)


def load(folder, **options):
    return load_dataset("imagenet", root=folder, **{"validation": 0.0, "workers": 0, **options})


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "resnet34.safetensors"
    save_file(create_model("torchvision/resnet34", 6, seed=1).state_dict(), path)
    return path


# The handful of pictures


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_the_same_pictures_are_drawn_again_and_others_by_another_seed(folder, tmp_path):
    again = files(samples.draw_pictures(tmp_path / "again", train=2, val=1))
    assert again == files(folder)
    other = files(samples.draw_pictures(tmp_path / "other", train=2, val=1, seed=1))
    assert other.keys() == again.keys()
    assert not set(other.values()) & set(again.values())


def test_drawn_pictures_are_as_varied_as_imagenets(folder):
    opened = {name: Image.open(folder / name) for name in files(folder)}
    assert sum(name.startswith("train/") for name in opened) == 12
    assert sum(name.startswith("val/") for name in opened) == 6
    assert {picture.mode for picture in opened.values()} == {"L", "CMYK", "RGB"}
    assert len({picture.size for picture in opened.values()}) == 18
    for picture in opened.values():
        assert picture.format == "JPEG"
        assert all(260 <= side <= 500 for side in picture.size)


def test_the_first_pictures_are_copied_and_no_others(folder, tmp_path):
    copied = files(samples.copy_pictures(folder, tmp_path, classes=2, train=1, val=3))
    assert sorted(copied) == [
        "train/blue-disc/000.jpg",
        "train/green-square/000.jpg",
        "val/blue-disc/000.jpg",
        "val/green-square/000.jpg",
    ]
    for name, content in copied.items():
        assert content == (folder / name).read_bytes()
    with pytest.raises(FileNotFoundError, match="nothing"):
        samples.copy_pictures(tmp_path / "nothing", tmp_path / "more")


# The step and the run


def test_a_pair_runs_from_files_with_the_published_settings(folder, teacher_file):
    """The loss of the first step in float64, from torchvision's own reading of the files."""
    data = load(folder, size=32)
    changes = {"max_steps": 1, "batch_size": 12, "augmentation": "none", "learning_rate": 0.001}
    teacher, (ce, wttm) = paper_rows.distill_pair(
        data,
        "ResNet-34",
        "ResNet-18",
        ["ce", "wttm"],
        weights=teacher_file,
        changes=changes,
        progress=False,
    )
    images, labels = next(data.train.batches(12))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    student = create_model("torchvision/resnet18", 6, seed=0).double().train()
    with torch.no_grad():
        z, v = student(images.double()), teacher.model.double()(images.double())
    q, p, p_T = z.softmax(1), v.softmax(1), (v / 1.25).softmax(1)
    cross_entropy = -q[torch.arange(12), labels].log().mean()
    weighted = ((p**0.8).sum(1) * (p_T * (p_T / q).log()).sum(1)).mean()
    assert ce.history["loss"].item() == pytest.approx(float(cross_entropy), rel=1e-5)
    loss = float(cross_entropy + 1.6 * weighted)
    assert wttm.history["loss"].item() == pytest.approx(loss, rel=1e-4)


class Cut(Exception):
    """Stands in for a power cut."""


def test_resumed_with_other_workers_ends_bit_identical(folder, teacher_file, tmp_path, monkeypatch):
    teacher = paper_rows.load_teacher("ResNet-34", teacher_file, 6)
    settings = paper.settings(
        "ResNet-34", "ResNet-18", "wttm", epochs=2, batch_size=5, learning_rate=0.01
    )
    options = {"progress": False, "checkpoint_seconds": 0}
    whole = distill(teacher, load(folder, size=32), settings, **options)

    step = training.Student.step

    def cut(self, *arguments):
        if self.steps == 5:  # in the middle of the second epoch
            raise Cut
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training.Student, "step", cut)
        patch.setattr(training.Meter, "BLOCK", 2)  # a resume point after every second batch
        with pytest.raises(Cut):
            distill(teacher, load(folder, size=32), settings, folder=tmp_path, **options)
    kept = sorted(path.name for path in tmp_path.glob("*/checkpoint/*"))
    assert kept[-1] == "step-000000005.pt"

    helped = load(folder, size=32, workers=2)
    resumed = distill(teacher, helped, settings, folder=tmp_path, **options)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.history.equals(resumed.history)


def test_without_its_pictures_imagenet_says_what_belongs_where(tmp_path, capsys):
    command = f"distill --pair ResNet-34:ResNet-18 --data imagenet --root {tmp_path}/imagenet"
    assert cli.main(shlex.split(command)) == 2
    said = capsys.readouterr().err
    for words in ("ILSVRC2012", "image-net.org", "train/<wnid>/", "val/<wnid>/"):
        assert words in said


# The recipe


def test_the_convolutional_recipe_falls_three_times():
    settings = paper.teacher_settings("ResNet-18")
    rates = [settings.learning_rate_at(epoch) for epoch in range(100)]
    assert np.allclose(rates, np.repeat([0.1, 0.01, 0.001, 0.0001], [30, 30, 30, 10]))


def test_deit_s_rates_rise_and_follow_half_a_cosine():
    settings = paper.teacher_settings("DeiT-Tiny")
    for epoch in range(300):
        rise = 1e-3 * (epoch + 1) / 20
        fall = 0.5e-3 * (1 + math.cos(math.pi * (epoch - 20) / 280))
        wanted = rise if epoch < 20 else fall
        assert math.isclose(settings.learning_rate_at(epoch), wanted, rel_tol=1e-12)


def test_deit_takes_an_adamw_step_at_224_pixels(folder, tmp_path):
    """AdamW's first step: every weight decays, and moves by g / (|g| + eps) learning rates."""
    pytest.importorskip("timm")
    teacher = "timm/deit3_small_patch16_224"
    path = tmp_path / "teacher.safetensors"
    save_file(create_model(teacher, 6, seed=1).state_dict(), path)
    row = paper_rows.distill_pair(
        load(folder),
        "DeiT III-Small",
        "DeiT-Tiny",
        ["wttm"],
        weights=path,
        changes={"temperature": 2.0, "distill_weight": 1.0, "max_steps": 1, "batch_size": 2},
        progress=False,
    )
    (student,) = row.students
    rate = 1e-3 / 20
    assert student.history["learning_rate"].tolist() == [pytest.approx(rate)]
    assert sum(p.numel() for p in row.teacher.model.parameters()) > 21e6
    before = dict(create_model("timm/deit_tiny_patch16_224", 6, seed=0).named_parameters())
    moved = 0
    for name, after in student.model.named_parameters():
        change = after.detach() - before[name].detach() * (1 - rate * 0.05)
        assert float(change.abs().max()) <= rate * 1.01, name
        moved += int((change.abs() > 0.9 * rate).sum())
    assert moved > 0.5 * sum(p.numel() for p in before.values())


def test_mobilenet_is_the_paper_s_and_has_its_published_settings():
    pytest.importorskip("timm")
    settings = paper.settings("ResNet-50", "MobileNet", "wttm")
    assert settings.distill_weight == 3.5
    assert settings.temperature == pytest.approx(1 / 0.7, abs=1e-5)
    model = create_model(settings.model)
    assert sum(p.numel() for p in model.parameters()) == 4_231_976  # MobileNet V1, width 1.0


# torchvision's published weights, fetched


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A function that makes torchvision's weights of ResNet-18 a file of ours, by its name."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    weights = get_model_weights("resnet18").IMAGENET1K_V1.value

    def offer(path: Path):
        monkeypatch.setattr(weights, "url", path.as_uri())

    return offer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = create_model("torchvision/resnet18", seed=5)
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    torch.save(model.state_dict(), path)
    name = f"resnet18-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    return path.rename(path.with_name(name)), model


def test_published_weights_are_fetched_once(published, trained):
    path, model = trained
    published(path)
    found = paper_rows.load_teacher("ResNet-18", "published", 1000)
    for name, value in model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name
    assert not found.model.training
    gone = path.with_name("hidden")
    path.rename(gone)
    try:
        paper_rows.load_teacher("ResNet-18", "published", 1000)
    finally:
        gone.rename(path)


def test_weights_with_another_checksum_are_refused(published, trained, tmp_path):
    path, _ = trained
    changed = tmp_path / path.name
    changed.write_bytes(path.read_bytes()[:-1] + b"!")
    published(changed)
    with pytest.raises(ConnectionError, match=r"invalid hash value.*download that file"):
        paper_rows.load_teacher("ResNet-18", "published", 1000)
    assert not list((tmp_path / "hub").rglob("*.pth")), "kept what was refused"


def test_a_dead_link_says_what_to_do(published, tmp_path):
    published(tmp_path / "resnet18-00000000.pth")
    with pytest.raises(ConnectionError, match=r"resnet18-0+\.pth cannot be fetched.*download"):
        paper_rows.load_teacher("ResNet-18", "published", 1000)


# The commands that notebook 8 tells readers to type


def commands():
    import nbformat

    notebook = nbformat.read(find_root(__file__) / "notebooks" / "08_imagenet.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"^(?:ttm-lab|torchrun) .+$", text, re.M)


def test_the_notebook_s_commands_are_understood():
    found = commands()
    assert len(found) >= 5
    pairs = set()
    for command in found:
        words = shlex.split(command.replace("...", "2.0"))
        if words[0] == "torchrun":
            words = words[words.index("ttm_lab") :]
        options = cli._parser().parse_args(words[1:])
        assert options.data == "imagenet"
        changes = {
            name: getattr(options, name)
            for name in ("temperature", "distill_weight")
            if getattr(options, name) is not None
        }
        for method in options.methods:
            paper.settings(*options.pair, method, **(changes if method != "ce" else {}))
        pairs.add(options.pair)
    assert pairs == {
        ("ResNet-34", "ResNet-18"),
        ("ResNet-50", "MobileNet"),
        ("DeiT III-Small", "DeiT-Tiny"),
    }
