"""Batches are augmented as torchvision would do it, and from their seed alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ttm_lab.data import FileSplit, Split, splits
from ttm_lab.data.splits import _Images, hash_seed

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def random_pictures(count, size=32, channels=3):
    generator = torch.Generator().manual_seed(5)
    shape = (count, channels, size, size)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def split():
    return Split(random_pictures(50), torch.arange(50) % 7, MEAN, STD)


@pytest.mark.parametrize("size", [32, 8])
def test_every_crop_and_flip_equals_torchvisions_bit_for_bit(size):
    reach = size // 8
    moves = torch.cartesian_prod(
        torch.arange(2 * reach + 1), torch.arange(2 * reach + 1), torch.arange(2)
    )
    assert len(moves) == {32: 81 * 2, 8: 9 * 2}[size]
    images = random_pictures(len(moves), size)
    part = Split(images, torch.arange(len(moves)), (0.0,) * 3, (1.0,) * 3).to("cpu")
    assert part.count_views("crop-flip") == len(moves)
    views = torch.arange(len(moves)) * (len(moves) + 1)  # view k of picture k
    found, labels = part.take(views, "crop-flip")
    assert torch.equal(labels, part.labels)
    ours = found.mul(255).round().to(torch.uint8)
    for image, (top, left, mirrored), found in zip(images, moves.tolist(), ours, strict=True):
        wanted = functional.crop(functional.pad(image, [reach] * 4), top, left, size, size)
        wanted = functional.horizontal_flip(wanted) if mirrored else wanted
        assert torch.equal(found, wanted)


# A picture of which each crop and flip shows another centre: pixel values name their place.
PLACES = torch.stack(
    [torch.arange(32).repeat(32, 1).T, torch.arange(32).repeat(32, 1), torch.zeros(32, 32)]
).to(torch.uint8)


def find_moves(images):
    """Which of the 81 x 2 moves made each picture out of ``PLACES``: an index for each."""
    first, last = images[:, :2, 16, 15].long(), images[:, :2, 16, 16].long()
    mirrored = (last[:, 1] < first[:, 1]).long()
    centre = torch.where(mirrored.bool()[:, None], last, first)
    top, left = centre[:, 0] - 12, centre[:, 1] - 11
    return (top * 9 + left) * 2 + mirrored


def torchvision_moves(count):
    transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    torch.manual_seed(0)
    return find_moves(torch.stack([transform(PLACES) for _ in range(count)]))


def our_moves(count, batch_size=256):
    place = Split(PLACES[None], torch.zeros(1).long(), (0.0,) * 3, (1.0,) * 3)
    batches = place.batches(
        batch_size, order=torch.zeros(count).long(), augmentation="crop-flip", seed=0
    )
    return find_moves(torch.cat([images for images, _ in batches]).mul(255).round())


@pytest.mark.parametrize("draw", [our_moves, torchvision_moves])
def test_crops_and_flips_are_uniform_over_all_162(draw):
    counts = torch.bincount(draw(16200), minlength=162)
    assert len(counts) == 162
    # One fixed seed; a right sampler fails for one seed in 1,000.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_moves_of_neighbouring_pictures_and_batches_are_independent():
    # Batches of one picture: each comes from the next seed, in place of a drawn sequence.
    for moves in (our_moves(16200), our_moves(4000, batch_size=1)):
        for part in (moves // 18, moves // 2 % 9, moves % 2):
            pairs = torch.bincount(part[:-1] * 9 + part[1:], minlength=81).reshape(9, 9)
            seen = pairs[pairs.sum(1) > 0][:, pairs.sum(0) > 0]
            assert stats.chi2_contingency(seen).pvalue > 1e-3


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop-flip"])
def test_equal_views_are_equal_images_and_other_views_are_others(augmentation):
    part = Split(PLACES[None].repeat(3, 1, 1, 1), torch.arange(3), (0.0,) * 3, (1.0,) * 3)
    count = part.count_views(augmentation)
    assert count == {"none": 1, "crop": 81, "crop-flip": 162}[augmentation]
    images, labels = part.take(torch.arange(3 * count), augmentation)
    assert torch.equal(labels, torch.arange(3).repeat_interleave(count))
    assert len(set(map(tuple, images[:count].flatten(1).tolist()))) == count
    options = {"order": torch.tensor([2, 0, 1]), "augmentation": augmentation, "seed": 4}
    for views, (batch, names) in zip(
        part.views(2, **options), part.batches(2, **options), strict=True
    ):
        assert torch.equal(batch, images[views])
        assert torch.equal(names, views // count)


def test_crop_alone_never_mirrors():
    place = Split(PLACES[None], torch.zeros(1).long(), (0.0,) * 3, (1.0,) * 3)
    ((images, _),) = place.batches(500, order=torch.zeros(500).long(), augmentation="crop")
    moves = find_moves(images.mul(255).round())
    assert set((moves % 2).tolist()) == {0}
    assert len(set(moves.tolist())) > 75


def test_normalisation_equals_torchvisions(split):
    ((images, labels),) = split.batches(50)
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    torch.testing.assert_close(images, transform(split.images), rtol=0, atol=1e-6)
    assert torch.equal(labels, split.labels)


def test_float_pictures_without_augmentation_come_as_they_are():
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = Split(images, torch.arange(5))
    order = torch.tensor([4, 0, 2])
    ((found, labels),) = plain.batches(8, order=order)
    assert torch.equal(found, images[order])
    assert torch.equal(labels, order)


def assert_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def assert_batches_depend_on_seed_and_number_alone(part, augmentation):
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(1))
    options = {"order": order, "augmentation": augmentation, "seed": 9}
    whole = list(part.batches(4, **options))
    assert sum(len(labels) for _, labels in whole) == len(part)
    assert_same(whole, part.batches(4, **options))
    assert_same(whole[2:], part.batches(4, start=2, **options))
    assert list(part.batches(4, start=len(whole), **options)) == []
    other = next(iter(part.batches(4, **(options | {"seed": 10}))))
    assert not torch.equal(other[0], whole[0][0])
    # Two processes take every second picture each, with the same augmentation.
    shares = [part.batches(4, shard=(k, 2), **options) for k in range(2)]
    for (images, labels), *halves in zip(whole, *shares, strict=True):
        for k, half in enumerate(halves):
            mine = slice(k, None, 2) if len(labels) > 1 else slice(None)
            assert torch.equal(half[0], images[mine])
            assert torch.equal(half[1], labels[mine])


def test_batches_in_memory_depend_on_seed_and_number_alone(split):
    before = torch.get_rng_state()
    assert_batches_depend_on_seed_and_number_alone(split, "crop-flip")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Nine pictures of different sizes, some grey, in files."""
    root, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k in range(9):
        shape = (40 + 7 * k, 90 - 5 * k, 3)[: 2 if k % 4 == 3 else 3]
        coarse = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        coarse.save(root / f"{k}.png")
    paths = tuple(f"{k}.png" for k in range(9))
    return FileSplit(root, paths, torch.arange(9), MEAN, STD, size=28)


def by_hand(files, position, transform):
    picture = functional.pil_to_tensor(
        Image.open(files.root / files.paths[position]).convert("RGB")
    )
    picture = functional.to_dtype(transform(picture), torch.float32, scale=True)
    return functional.normalize(picture, MEAN, STD)


def test_batches_from_files_equal_torchvisions_transforms_by_hand(files):
    augment = v2.Compose([v2.RandomResizedCrop(28, antialias=True), v2.RandomHorizontalFlip()])
    plain = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(28)])
    order = torch.tensor([8, 3, 5, 0, 1])
    for augmentation, transform in (("resized-crop-flip", augment), ("none", plain)):
        batches = list(files.batches(3, order=order, augmentation=augmentation, seed=40))
        assert [len(labels) for _, labels in batches] == [3, 2]
        assert torch.equal(torch.cat([labels for _, labels in batches]), order)
        for step, (images, labels) in enumerate(batches):
            assert images.shape[1:] == (3, 28, 28)
            for k, position in enumerate(labels.tolist()):
                torch.manual_seed(hash_seed(40 + step, k))
                wanted = by_hand(files, position, transform)
                torch.testing.assert_close(images[k], wanted, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (300, 20), (20, 300), (7, 5)])
def test_cutting_out_before_converting_changes_no_pixel(tmp_path, size):
    """Also where no crop fits and RandomResizedCrop falls back on the middle of the picture."""
    noise = random_pictures(1, 300)[0, :, : size[1], : size[0]]
    Image.fromarray(noise.permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    one = FileSplit(tmp_path, ("0.png",), torch.zeros(1).long(), MEAN, STD, size=28)
    order = torch.zeros(60, dtype=torch.int64)
    ((images, _),) = one.batches(60, order=order, augmentation="resized-crop-flip", seed=9)
    augment = v2.Compose([v2.RandomResizedCrop(28, antialias=True), v2.RandomHorizontalFlip()])
    for k, found in enumerate(images):
        torch.manual_seed(hash_seed(9, k))
        torch.testing.assert_close(found, by_hand(one, 0, augment), rtol=0, atol=0)


@pytest.mark.parametrize("augment", [True, False])
def test_workers_hand_over_bytes(files, augment):
    for position in range(9):
        pixels, label = _Images(files, augment)[position, 3, 0]
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (28, 28, 3)
        assert label == position


def test_an_epoch_starts_without_preparing_all_of_it(files, monkeypatch):
    seeds = []
    monkeypatch.setattr(splits, "hash_seed", lambda *parts: seeds.append(parts) or 0)
    order = torch.zeros(1000, dtype=torch.int64)
    batches = files.batches(2, order=order, augmentation="resized-crop-flip", seed=4, start=3)
    next(batches)
    assert seeds == [(7, 0), (7, 1)]


def test_evaluation_from_files_is_torchvisions_preset_for_imagenet(files):
    from torchvision.transforms._presets import ImageClassification

    picture = Image.open(files.root / files.paths[0]).convert("RGB")
    preset = ImageClassification(crop_size=28, resize_size=32, mean=MEAN, std=STD)
    images, _ = next(files.batches(1))
    # The preset resizes within Pillow, whose rounding differs by less than two grey steps.
    assert (images[0] - preset(picture)).abs().max() < 2 / 255 / min(STD)


def test_batches_from_files_depend_on_seed_and_number_alone(files):
    assert_batches_depend_on_seed_and_number_alone(files, "resized-crop-flip")


def test_workers_give_the_same_batches_and_leave_torchs_random_state_alone(files):
    options = {"augmentation": "resized-crop-flip", "seed": 3}
    before = torch.get_rng_state()
    helped = replace(files, workers=2)
    assert_same(files.batches(2, **options), helped.batches(2, **options))
    assert_same(files.batches(2, start=3, **options), helped.batches(2, start=3, **options))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_part_gives_no_batch(split, files):
    none = torch.tensor([], dtype=torch.int64)
    empty = Split(split.images[:0], split.labels[:0], MEAN, STD)
    assert list(empty.batches(4, augmentation="crop-flip")) == []
    no_files = FileSplit(files.root, (), none, MEAN, STD, workers=2)
    assert list(no_files.batches(4, augmentation="resized-crop-flip")) == []


def test_an_augmentation_that_does_not_fit_is_refused_by_name(split, files):
    with pytest.raises(ValueError, match=r"'resized-crop-flip'.*Split.*'crop-flip'"):
        next(split.batches(4, augmentation="resized-crop-flip"))
    with pytest.raises(ValueError, match=r"'crop-flip'.*FileSplit.*'resized-crop-flip'"):
        next(files.batches(4, augmentation="crop-flip"))


def test_a_broken_file_is_named_whoever_reads_it(files):
    (files.root / "broken.png").write_bytes((files.root / "0.png").read_bytes()[:-200])
    for workers in (0, 1):
        broken = replace(
            files, paths=("1.png", "broken.png"), labels=torch.tensor([0, 1]), workers=workers
        )
        with pytest.raises(ValueError, match=r"broken\.png cannot be decoded"):
            list(broken.batches(2))
