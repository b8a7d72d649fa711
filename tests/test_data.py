"""Real pictures by name, split by seed into parts that share none; what is wrong is said."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms.v2 import functional

from ttm_lab.data import Dataset, FileSplit, Split, cifar100, load_dataset


@pytest.fixture(autouse=True)
def downloads(tmp_path, monkeypatch):
    """Nothing is ever written where a user keeps data."""
    monkeypatch.setenv("TTM_LAB_DATA", str(tmp_path / "downloads"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "downloads"


def test_digits_have_the_promised_shapes_types_and_range():
    data = load_dataset("digits", seed=3)
    assert data.num_classes == 10
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    for split in (data.train, data.validation, data.test):
        assert split.images.shape == (len(split), 1, 8, 8)
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert split.images.min() == 0
        assert split.images.max() == 1


def test_parts_share_no_picture_and_hold_the_classes_in_equal_shares():
    data = load_dataset("digits", seed=0)
    everything = np.concatenate(list(data.indices.values()))
    assert sorted(everything) == list(range(1797))
    whole = np.bincount(torch.cat([data.train.labels, data.validation.labels, data.test.labels]))
    for split, share in ((data.train, 0.6), (data.validation, 0.2), (data.test, 0.2)):
        assert np.abs(np.bincount(split.labels) - share * whole).max() <= 1


def test_the_split_is_the_same_on_every_platform():
    # Fixed by hand from one machine: another platform or library version must give the same.
    digest = hashlib.sha256()
    for seed in range(3):
        for index in load_dataset("digits", seed=seed).indices.values():
            digest.update(index.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "d751269fd5b87803"


def test_same_seed_same_data_other_seed_other_split():
    first, again, other = (load_dataset("digits", seed=s) for s in (1, 1, 2))
    assert torch.equal(first.test.images, again.test.images)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_unknown_names_and_seeds_are_refused():
    with pytest.raises(ValueError, match=r"'cifar11'.*available"):
        load_dataset("cifar11")
    with pytest.raises(ValueError, match=r"seed=-1"):
        load_dataset("digits", seed=-1)


def test_labels_out_of_range_are_refused_before_any_training():
    good = Split(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 1, 0]))
    bad = Split(torch.zeros(2, 1, 8, 8), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"validation labels run from 0 to 2.*2 classes"):
        Dataset("mine", 0, ("a", "b"), good, bad, good)
    with pytest.raises(TypeError, match=r"float32; convert"):
        Dataset("mine", 0, ("a", "b"), Split(good.images, torch.zeros(4)), good, good)


def test_digits_at_32_are_the_same_digits_as_rgb_pictures():
    small, large = load_dataset("digits", seed=4), load_dataset("digits", seed=4, size=32)
    for part in ("train", "validation", "test"):
        old, new = getattr(small, part), getattr(large, part)
        assert new.images.shape == (len(old), 3, 32, 32)
        assert new.images.dtype == torch.uint8
        assert torch.equal(new.labels, old.labels)
        assert torch.equal(new.images[:, 0], new.images[:, 2])
        for image, enlarged in zip(old.images[:20, 0], new.images[:20, 0], strict=True):
            wanted = Image.fromarray(image.numpy() * 255).resize((32, 32), Image.BILINEAR)
            assert np.abs(enlarged.numpy() - np.asarray(wanted)).max() <= 0.51
    pixels = large.train.images.double() / 255
    np.testing.assert_allclose(large.train.mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(large.train.std, pixels.std((0, 2, 3), correction=0), rtol=1e-6)


def test_digits_refuse_what_they_cannot_follow():
    with pytest.raises(ValueError, match=r"fixed shares"):
        load_dataset("digits", validation=0.3)
    with pytest.raises(ValueError, match=r"leave out root"):
        load_dataset("digits", root="pictures")


@pytest.mark.parametrize(
    "option", [{"validation": 1.0}, {"validation": -0.1}, {"size": 0}, {"workers": -1}]
)
def test_options_out_of_range_are_refused_before_any_file_is_looked_for(option):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        load_dataset("folder", root="nowhere", **option)


# Sets that torchvision downloads: small archives in the real format, from a server of our own.


def cifar_archive(train, test, names):
    """``cifar-100-python.tar.gz`` of (pixels (N, 3, 32, 32), labels) pairs, and its checksums."""
    files = {"meta": {"fine_label_names": names}}
    for part, (pixels, labels) in {"train": train, "test": test}.items():
        rows = np.asarray(pixels, np.uint8).reshape(len(labels), 3072)
        files[part] = {"data": rows, "fine_labels": [int(k) for k in labels]}
    body, checksums = io.BytesIO(), {}
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        for part, content in files.items():
            data = pickle.dumps(content, protocol=2)
            checksums[part] = hashlib.md5(data).hexdigest()
            info = tarfile.TarInfo(f"cifar-100-python/{part}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return body.getvalue(), checksums


def offer_cifar100(monkeypatch, folder, archive, checksums, address):
    """Let torchvision look for this archive, in place of the original one."""
    (folder / "cifar-100-python.tar.gz").write_bytes(archive)
    kind = datasets.CIFAR100
    monkeypatch.setattr(kind, "url", f"{address}/cifar-100-python.tar.gz")
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(kind, "train_list", [["train", checksums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", checksums["test"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": checksums["meta"]})


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder, and the address at which it is served."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
        thread.join()


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def small_cifar100(server, monkeypatch):
    """100 classes with four pictures to train on and one to test."""
    folder, address = server
    train = noise(400), np.random.default_rng(1).permutation(np.arange(400) % 100)
    test = noise(100, seed=2), np.arange(100)[::-1]
    names = [f"class {k}" for k in range(100)]
    archive, checksums = cifar_archive(train, test, names)
    offer_cifar100(monkeypatch, folder, archive, checksums, address)
    return train, test


def test_cifar100_is_downloaded_once_and_every_picture_arrives(
    small_cifar100, server, downloads, monkeypatch
):
    (pixels, labels), (test_pixels, test_labels) = small_cifar100
    data = load_dataset("cifar100", seed=1, validation=0.25)
    assert (downloads / "cifar-100-python.tar.gz").is_file()
    assert (len(data.train), len(data.validation), len(data.test)) == (300, 100, 100)
    assert data.class_names[7] == "class 7"
    for part in ("train", "validation"):
        split, index = getattr(data, part), data.indices[part]
        assert np.array_equal(split.images, pixels[index])
        assert np.array_equal(split.labels, labels[index])
        # The constants of the published recipe, not this archive's own.
        assert split.mean == (0.5071, 0.4867, 0.4408)
        assert split.std == (0.2675, 0.2565, 0.2761)
    assert sorted(np.concatenate([data.indices["train"], data.indices["validation"]])) == list(
        range(400)
    )
    assert np.bincount(data.validation.labels).tolist() == [1] * 100
    assert np.array_equal(data.test.images, test_pixels)
    assert np.array_equal(data.test.labels, test_labels)
    # From now on nothing is asked of the network.
    monkeypatch.setattr(datasets.CIFAR100, "url", "http://127.0.0.1:9/gone.tar.gz")
    again = load_dataset("cifar100", seed=1, validation=0.25)
    assert again.fingerprint == data.fingerprint


def test_pictures_of_another_size_on_request(small_cifar100):
    data = load_dataset("cifar100", validation=0.25, size=16)
    wanted = functional.resize(torch.from_numpy(small_cifar100[1][0]), [16, 16], antialias=True)
    assert torch.equal(data.test.images, wanted)


def test_a_download_with_another_checksum_is_refused(small_cifar100, server, downloads):
    (server[0] / "cifar-100-python.tar.gz").write_bytes(b"something else")
    with pytest.raises(
        ConnectionError, match=r"remove what is damaged in .*cifar-100-python\.tar\.gz"
    ):
        load_dataset("cifar100", validation=0.25)
    assert not (downloads / "cifar-100-python").exists()


def test_without_a_network_the_message_says_what_to_put_where(
    small_cifar100, server, downloads, monkeypatch
):
    archive, address = server[0] / "cifar-100-python.tar.gz", datasets.CIFAR100.url
    body = archive.read_bytes()
    archive.unlink()
    with pytest.raises(ConnectionError) as refused:
        load_dataset("cifar100", validation=0.25)
    target = downloads / "cifar-100-python.tar.gz"
    assert f"damaged in {downloads}, and" in str(refused.value)
    assert f"fetch {address} into it" in str(refused.value)
    assert "load_dataset('digits', size=32)" in str(refused.value)
    # Doing what it says is enough.
    target.write_bytes(body)
    assert len(load_dataset("cifar100", validation=0.25).train) == 300


def offer_fashion_mnist(monkeypatch, folder, address):
    """Fashion-MNIST's four files with 40 pictures to train on and 20 to test."""
    generator, resources, parts = np.random.default_rng(0), [], {}
    for part, count in (("train", 40), ("t10k", 20)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        parts[part] = pixels, labels
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">{array.ndim + 1}i", 0x800 + array.ndim, *array.shape)
            data = gzip.compress(header + array.tobytes())
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(data)
            resources.append((f"{part}-{name}-ubyte.gz", hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    return parts


def test_fashion_mnist_is_grey_at_28_and_rgb_on_request(server, tmp_path, monkeypatch):
    parts = offer_fashion_mnist(monkeypatch, *server)
    data = load_dataset("fashion_mnist", root=tmp_path, validation=0.25)
    pixels, labels = parts["train"]
    assert np.array_equal(data.train.images[:, 0], pixels[data.indices["train"]])
    assert np.array_equal(data.train.labels, labels[data.indices["train"]])
    assert np.array_equal(data.test.images[:, 0], parts["t10k"][0])
    assert data.class_names[9] == "Ankle boot"
    scaled = pixels[data.indices["train"]] / 255
    np.testing.assert_allclose(data.train.mean, [scaled.mean()], rtol=1e-12)
    np.testing.assert_allclose(data.train.std, [scaled.std()], rtol=1e-12)

    large = load_dataset("fashion_mnist", root=tmp_path, validation=0.25, size=32)
    assert large.train.images.shape == (30, 3, 32, 32)
    assert len(large.train.mean) == 3
    assert torch.equal(large.train.images[:, 0], large.train.images[:, 2])


def test_fashion_mnist_without_a_network_names_the_files_that_are_missing(
    server, tmp_path, monkeypatch
):
    offer_fashion_mnist(monkeypatch, *server)
    (server[0] / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(ConnectionError) as refused:
        load_dataset("fashion_mnist", root=tmp_path)
    assert f"damaged in {tmp_path / 'FashionMNIST' / 'raw'}, and" in str(refused.value)
    assert f"{server[1]}/t10k-images-idx3-ubyte.gz" in str(refused.value)


def test_an_unpacked_file_that_is_damaged_is_refused_until_it_is_removed(
    server, tmp_path, monkeypatch
):
    """Fashion-MNIST's archives alone have checksums."""
    offer_fashion_mnist(monkeypatch, *server)
    load = functools.partial(load_dataset, "fashion_mnist", root=tmp_path, validation=0)
    whole = load().fingerprint
    damaged = tmp_path / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ConnectionError, match=r"remove what is damaged in .*raw"):
        load()
    damaged.unlink()
    assert load().fingerprint == whole


# Picture folders


def save(path, pixels=None, mode="RGB", size=(8, 8), seed=0, **options):
    """A picture file of the given or random pixels; gives the pixels."""
    if pixels is None:
        shape = (*size, 3) if mode == "RGB" else size
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def make_folder(root, parts=("train", "test"), classes=("cat", "dog"), count=4, size=(8, 8)):
    saved, seed = {}, 0
    for part in parts:
        for name in classes:
            for k in range(count):
                path, seed = f"{part}/{name}/{k}.png", seed + 1
                saved[path] = save(root / path, size=size, seed=seed)
    return saved


def test_small_pictures_come_into_memory_in_the_order_of_their_paths(tmp_path):
    saved = make_folder(tmp_path, classes=("dog", "cat", "a cat"))
    data = load_dataset("folder", root=tmp_path, validation=0)
    assert data.class_names == ("a cat", "cat", "dog")
    assert len(data.validation) == 0
    for part, split in (("train", data.train), ("test", data.test)):
        wanted = [saved[path] for path in sorted(saved) if path.startswith(part)]
        assert split.images.dtype == torch.uint8
        assert np.array_equal(split.images.permute(0, 2, 3, 1), wanted)
        assert split.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    pixels = data.train.images.double() / 255
    np.testing.assert_allclose(data.test.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    assert list(data.validation.batches(4)) == []
    assert load_dataset("folder", root=tmp_path, validation=0).fingerprint == data.fingerprint


def test_every_mode_becomes_rgb(tmp_path):
    grey = save(tmp_path / "train/a/grey.png", mode="L")
    rgb = save(tmp_path / "train/a/rgb.BMP")
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "train/a/palette.png")
    clear = np.dstack([rgb, grey])
    save(tmp_path / "train/a/clear.png", clear)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "train/a/red.jpg")
    save(tmp_path / "test/a/1.webp", rgb, lossless=True)
    data = load_dataset("folder", root=tmp_path, validation=0)
    found = data.train.images.permute(0, 2, 3, 1).numpy()
    names = sorted(["grey.png", "rgb.BMP", "palette.png", "clear.png"])
    pictures = dict(zip(sorted([*names, "red.jpg"]), found, strict=True))
    assert np.array_equal(pictures["grey.png"], np.dstack([grey] * 3))
    assert np.array_equal(pictures["rgb.BMP"], rgb)
    opaque = grey[..., None] / 255  # over white
    assert np.abs(pictures["clear.png"] - (opaque * rgb + (1 - opaque) * 255)).max() <= 1
    assert np.array_equal(pictures["palette.png"], palette.convert("RGB"))
    assert np.abs(pictures["red.jpg"].astype(int) - (255, 0, 0)).max() < 10
    assert np.array_equal(data.test.images[0].permute(1, 2, 0), rgb)


def test_hidden_files_other_files_and_depth(tmp_path):
    make_folder(tmp_path)
    cats = tmp_path / "train/cat"
    (cats / ".hidden.png").write_bytes(b"no picture")
    (cats / "notes.txt").write_text("no picture")
    (cats / ".cache").mkdir()
    (cats / ".cache/1.png").write_bytes(b"no picture")
    save(cats / "more/of/them.png")
    data = load_dataset("folder", root=tmp_path, validation=0)
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 5 + [1] * 4


def test_validation_pictures_come_from_training_by_seed_in_equal_shares(tmp_path):
    make_folder(tmp_path, classes=("a", "b", "c"), count=20, size=(4, 4))
    data, again, other = (
        load_dataset("folder", root=tmp_path, validation=0.2, seed=seed) for seed in (1, 1, 2)
    )
    whole = load_dataset("folder", root=tmp_path, validation=0)
    train, validation = data.indices["train"], data.indices["validation"]
    assert sorted([*train, *validation]) == list(range(60))
    assert np.bincount(data.validation.labels).tolist() == [4, 4, 4]
    assert torch.equal(data.validation.images, whole.train.images[validation])
    assert torch.equal(data.train.labels, whole.train.labels[train])
    assert torch.equal(data.test.images, whole.test.images)
    assert np.array_equal(again.indices["validation"], validation)
    assert not np.array_equal(other.indices["validation"], validation)
    assert again.fingerprint == data.fingerprint != other.fingerprint


def test_three_parts_are_taken_as_they_are(tmp_path):
    saved = make_folder(tmp_path, parts=("train", "val", "test"))
    data = load_dataset("folder", root=tmp_path, validation=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 8, 8)
    wanted = [saved[path] for path in sorted(saved) if path.startswith("val")]
    assert np.array_equal(data.validation.images.permute(0, 2, 3, 1), wanted)


def test_val_alone_is_the_test_part(tmp_path):
    saved = make_folder(tmp_path, parts=("train", "val"))
    data = load_dataset("folder", root=tmp_path, validation=0.25)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 8)
    assert np.array_equal(data.test.images[0].permute(1, 2, 0), saved["val/cat/0.png"])


def test_size_decides_what_is_held_in_memory(tmp_path):
    make_folder(tmp_path / "large", size=(70, 100))
    make_folder(tmp_path / "small", size=(20, 30))
    load = functools.partial(load_dataset, "folder", validation=0.25, workers=0)

    large = load(root=tmp_path / "large")
    assert isinstance(large.train, FileSplit)
    assert large.train.mean == (0.485, 0.456, 0.406)
    images, labels = next(large.train.batches(4, augmentation="resized-crop-flip"))
    assert images.shape == (4, 3, 224, 224)
    assert labels.dtype == torch.int64
    assert len(next(load(root=tmp_path / "large", size=96).test.batches(4))[0][0, 0]) == 96
    assert load(root=tmp_path / "large", size=32).train.images.shape == (6, 3, 32, 32)

    assert load(root=tmp_path / "small").train.images.shape == (6, 3, 20, 30)
    assert load(root=tmp_path / "small", size=16).train.images.shape == (6, 3, 16, 16)
    assert isinstance(load(root=tmp_path / "small", size=65).train, FileSplit)


def test_files_and_memory_give_the_same_parts(tmp_path):
    make_folder(tmp_path, count=10)
    load = functools.partial(load_dataset, "folder", root=tmp_path, seed=3, workers=0)
    memory, files = load(validation=0.2), load(validation=0.2, size=65)
    for part in ("train", "validation", "test"):
        assert np.array_equal(memory.indices[part], files.indices[part])
        assert torch.equal(getattr(memory, part).labels, getattr(files, part).labels)
    listed = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("train/*/*"))
    assert files.validation.paths == tuple(listed[i] for i in files.indices["validation"])


def test_a_picture_of_another_size_is_scaled_and_its_middle_cut_out(tmp_path):
    make_folder(tmp_path, size=(16, 16))
    # 32 x 96: red, then a green square in the middle, then blue
    stripes = np.repeat(np.eye(3, dtype=np.uint8) * 255, 32, axis=0)[None].repeat(32, axis=0)
    save(tmp_path / "test/cat/0.png", stripes)
    data = load_dataset("folder", root=tmp_path, validation=0)
    picture = torch.from_numpy(stripes).permute(2, 0, 1)
    wanted = functional.center_crop(functional.resize(picture, 16, antialias=True), 16)
    assert (data.test.images[0].int() - wanted.int()).abs().max() <= 1
    assert data.test.images[0, :, 8, 8].tolist() == [0, 255, 0]


def load_parts(root, train, test, **options):
    """Both parts, in memory, of one class made of these pixels or pictures."""
    for part, pictures in (("train", train), ("test", test)):
        for k, pixels in enumerate(pictures):
            save(root / part / "a" / f"{k:03}.png", pixels)
    return load_dataset("folder", root=root, validation=0, **options)


def inputs(split, augmentation="none"):
    return torch.cat([images for images, _ in split.batches(100, augmentation=augmentation)])


@pytest.mark.parametrize("noise", [0, 1])
def test_a_band_that_never_changes_in_train_is_not_blown_up(tmp_path, noise):
    generator = np.random.default_rng(0)
    train, test = generator.integers(0, 256, (2, 20, 16, 16, 3), dtype=np.uint8)
    train[..., 1] = 200 + (generator.random(train.shape[:-1]) < 0.2) * noise  # as JPEG leaves it
    data = load_parts(tmp_path, train, test)
    scaled = train / 255
    std = np.maximum(scaled.std((0, 1, 2)), 1 / 255)
    np.testing.assert_allclose(data.train.std, std, rtol=1e-9)
    wanted = (test / 255 - scaled.mean((0, 1, 2))) / std
    np.testing.assert_allclose(inputs(data.test).permute(0, 2, 3, 1), wanted, atol=1e-4)


def test_a_standard_deviation_of_zero_is_refused():
    images, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long()
    with pytest.raises(ValueError, match=r"std=\(1\.0, 0\.0, 1\.0\) must be above 0"):
        Split(images, labels, (0.0,) * 3, (1.0, 0.0, 1.0))


def test_one_odd_file_does_not_decide_for_all(tmp_path):
    saved = make_folder(tmp_path, count=4, size=(20, 30))
    saved |= {"train/a/0.png": save(tmp_path / "train/a/0.png", size=(300, 400))}  # comes first
    save(tmp_path / "train/zebra/0.png", size=(20, 30))
    for part in ("test/a", "test/zebra"):
        save(tmp_path / part / "0.png", size=(20, 30))
    data = load_dataset("folder", root=tmp_path, validation=0)
    assert data.train.images.shape == (10, 3, 20, 30)
    assert np.array_equal(data.train.images[1].permute(1, 2, 0), saved["train/cat/0.png"])

    make_folder(tmp_path / "large", size=(70, 100))
    save(tmp_path / "large/train/cat/0.png", size=(8, 8))
    assert isinstance(
        load_dataset("folder", root=tmp_path / "large", validation=0).train, FileSplit
    )


@pytest.mark.parametrize("size", [None, 96])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_stand_upright_as_their_exif_says(tmp_path, suffix, size):
    upright = np.zeros((40, 24, 3), np.uint8)
    upright[:10] = 255  # the sky
    ways = {3: 2, 6: 1, 8: -1}  # how often the camera was turned left, by the orientation's code
    for k, turns in ways.items():
        exif = Image.Exif()
        exif[0x0112] = k
        for part in ("train", "test"):
            path = tmp_path / part / "a" / f"{k}.{suffix}"
            save(path, np.ascontiguousarray(np.rot90(upright, turns)), exif=exif, quality=95)
    data = load_dataset("folder", root=tmp_path, validation=0, size=size, workers=0)
    scale = torch.tensor(data.train.std).view(3, 1, 1), torch.tensor(data.train.mean).view(3, 1, 1)
    for images in (inputs(data.train), inputs(data.test)):
        pictures = images * scale[0] + scale[1]
        if size is None:
            assert pictures.shape[-2:] == (40, 24)
            wanted = torch.from_numpy(upright).permute(2, 0, 1) / 255
        else:  # larger than 64: from files, the middle of 8/7 of the size
            wanted = torch.from_numpy(upright).permute(2, 0, 1)
            wanted = functional.center_crop(functional.resize(wanted, 109), 96) / 255
        assert (pictures - wanted).abs().mean() < 0.02


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")  # Pillow's
def test_a_damaged_exif_does_not_lose_the_picture(tmp_path):
    pixels = np.full((8, 8, 3), 100, np.uint8)
    for part in ("train", "test"):
        save(tmp_path / part / "a/0.jpg", pixels, exif=b"Exif\0\0no TIFF at all")
        save(tmp_path / part / "a/1.jpg", pixels, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")
    data = load_dataset("folder", root=tmp_path, validation=0)
    assert (data.train.images.int() - 100).abs().max() < 3


def test_what_lies_under_transparency_is_white_in_every_mode(tmp_path):
    red = Image.new("RGB", (8, 8), "red")
    clear = red.copy()
    clear.putalpha(0)
    half = red.copy()
    half.putalpha(128)
    keyed = red.convert("P")
    pictures = {
        "clear.png": clear,
        "clear.webp": clear,
        "half.png": half,
        "grey.png": clear.convert("LA"),
        "palette.png": keyed,
        "key.png": red,
    }
    options = {
        "palette.png": {"transparency": keyed.getpixel((0, 0))},
        "key.png": {"transparency": (255, 0, 0)},
        "clear.webp": {"lossless": True, "exact": True},
    }
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        for name, picture in pictures.items():
            picture.save(tmp_path / part / "a" / name, **options.get(name, {}))
    data = load_dataset("folder", root=tmp_path, validation=0)
    for name, found in zip(sorted(pictures), data.train.images, strict=True):
        wanted = (255, 127, 127) if name == "half.png" else (255, 255, 255)
        assert found[:, 4, 4].tolist() == list(wanted), name


def test_grey_of_more_than_8_bits_is_refused(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "train/cat/deep.png", np.zeros((8, 8), np.uint16))
    with pytest.raises(ValueError, match=r"cat/deep\.png .*more than 8 bits: save it with 8"):
        load_dataset("folder", root=tmp_path, validation=0)


@pytest.mark.parametrize("size", [None, 96])
def test_a_corrupt_picture_is_named(tmp_path, size):
    make_folder(tmp_path, count=5, size=(40, 40))
    path = tmp_path / "train/cat/0.png"
    path.write_bytes(path.read_bytes()[:-1000])
    load = functools.partial(load_dataset, "folder", root=tmp_path, validation=0, workers=0)
    with pytest.raises(ValueError, match=r"train/cat/0\.png cannot be decoded.*remove it"):
        inputs(load(size=size).train)


def test_a_folder_of_another_layout_is_refused_with_the_layout_it_needs(tmp_path):
    load = functools.partial(load_dataset, "folder", validation=0)
    with pytest.raises(ValueError, match=r"needs root=.*root/train/<class>/"):
        load()
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone: .*gone/train/<class>/"):
        load(root=tmp_path / "gone")
    make_folder(tmp_path / "flat", parts=(".",))
    with pytest.raises(FileNotFoundError, match=r"flat holds cat, dog: pictures belong in"):
        load(root=tmp_path / "flat")
    make_folder(tmp_path / "alone", parts=("train",))
    with pytest.raises(FileNotFoundError, match=r"alone holds train: .*alone/test/<class>"):
        load(root=tmp_path / "alone")
    make_folder(tmp_path / "loose", classes=(".",))
    with pytest.raises(ValueError, match=r"Couldn't find any class folder in .*loose/train"):
        load(root=tmp_path / "loose")


def test_classes_that_do_not_fit_are_named(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "test/cow").mkdir()
    (tmp_path / "test/cow/notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"/test: Found no valid file for the classes cow"):
        load_dataset("folder", root=tmp_path)
    save(tmp_path / "test/cow/0.png")
    with pytest.raises(ValueError, match=r"test holds the class 'cow', which .*train lacks"):
        load_dataset("folder", root=tmp_path)


def test_a_class_too_small_for_both_parts_is_named(tmp_path):
    make_folder(tmp_path, count=10)
    save(tmp_path / "train/cow/0.png")
    with pytest.raises(
        ValueError, match=r"validation=0\.2 .*'cow', has 1\).*for validation give 0"
    ):
        load_dataset("folder", root=tmp_path, validation=0.2)


def test_imagenet_says_what_belongs_where():
    with pytest.raises(ValueError, match=r"ILSVRC2012.*image-net\.org.*root/train/<wnid>/"):
        load_dataset("imagenet")
    with pytest.raises(FileNotFoundError, match=r"gone/val/<wnid>/"):
        load_dataset("imagenet", root="gone")


def test_imagenet_reads_files_and_leaves_the_unlabelled_test_folder_alone(tmp_path):
    wnids = ("n02123045", "n01440764")
    make_folder(tmp_path, parts=("train", "val"), classes=wnids, size=(30, 40))
    save(tmp_path / "test/ILSVRC2012_test_00000001.png")
    with pytest.warns(UserWarning, match="2 classes. ImageNet has 1000") as caught:
        data = load_dataset("imagenet", root=tmp_path, validation=0.25, workers=0)
    assert caught[0].filename == __file__
    assert data.class_names == ("n01440764", "n02123045")
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 8)
    assert data.test.paths[0] == "val/n01440764/0.png"
    images, labels = next(data.test.batches(8))
    assert images.shape == (8, 3, 224, 224)
    assert labels.tolist() == [0] * 4 + [1] * 4


# CIFAR-100 as class folders


def sum_of_digests(pictures):
    """The published checksum, written out: pictures are (label, pixels (32, 32, 3)) pairs."""
    digests = [hashlib.sha256(bytes([k]) + pixels.tobytes()).hexdigest() for k, pixels in pictures]
    return f"{sum(int(digest, 16) for digest in digests) % 2**256:064x}"


@pytest.fixture
def cifar100_folders(tmp_path, monkeypatch):
    """100 classes with two pictures to train on and one to test, that count as CIFAR-100."""
    generator, saved, names = np.random.default_rng(0), {}, [f"class {k:02}" for k in range(100)]
    for part, count in (("train", 2), ("test", 1)):
        pictures = []
        for label, name in enumerate(names):
            for k in range(count):
                path = f"{part}/{name}/{generator.integers(10**9)}-{k}.png"
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                saved[path] = save(tmp_path / "mirror" / path, pixels)
                pictures.append((label, pixels))
        monkeypatch.setitem(cifar100.CHECKSUMS, part, sum_of_digests(pictures))
        monkeypatch.setitem(cifar100.COUNTS, part, len(pictures))
    return tmp_path / "mirror", saved


def test_class_folders_are_known_as_cifar100_by_their_pictures(cifar100_folders):
    root, saved = cifar100_folders
    data = load_dataset("cifar100", root=root, validation=0.5)
    assert (data.name, data.num_classes, data.class_names[3]) == ("cifar100", 100, "class 03")
    assert data.train.mean == (0.5071, 0.4867, 0.4408)
    for part, source in (("train", "train"), ("validation", "train"), ("test", "test")):
        split, paths = getattr(data, part), sorted(path for path in saved if source in path)
        wanted = [saved[paths[k]] for k in data.indices[part]]
        assert np.array_equal(split.images.permute(0, 2, 3, 1), wanted)
        assert split.labels.tolist() == [
            int(paths[k].split("/")[1][-2:]) for k in data.indices[part]
        ]
    assert sorted([*data.indices["train"], *data.indices["validation"]]) == list(range(200))
    # As for torchvision's files, pictures of another size on request.
    wanted = functional.resize(data.test.images, [16, 16], antialias=True)
    again = load_dataset("cifar100", root=root, validation=0.5, size=16)
    assert torch.equal(again.test.images, wanted)


def test_the_second_time_nothing_is_decoded_unless_something_changed(
    cifar100_folders, downloads, monkeypatch
):
    root, saved = cifar100_folders
    load = functools.partial(load_dataset, "cifar100", root=root, validation=0)
    whole, decoded = load().fingerprint, []
    (kept,) = downloads.iterdir()
    read = Image.open
    monkeypatch.setattr(Image, "open", lambda file: decoded.append(file) or read(file))
    assert load().fingerprint == whole
    assert not decoded
    # A kept file that is cut, foreign or changed is not believed, and is made anew.
    body = kept.read_bytes()
    changed = body[:300_000] + bytes([body[300_000] ^ 1]) + body[300_001:]
    images = np.load(kept)
    for damage in (body[:-100], b"", b"something else", changed, "another picture"):
        if damage == "another picture":
            np.savez(kept, **{**images, "train": images["train"][::-1]})
        else:
            kept.write_bytes(damage)
        assert load().fingerprint == whole
        assert len(decoded) == 300
        decoded.clear()
        assert load().fingerprint == whole
        assert not decoded
    # What changes in the folders is seen: the pictures are no longer CIFAR-100's.
    save(root / next(iter(saved)), seed=1, size=(32, 32))
    with pytest.warns(UserWarning, match="not hold exactly CIFAR-100's pictures.*as a folder"):
        data = load()
    assert data.name == "folder"


def test_folders_of_other_pictures_are_a_folder(cifar100_folders, recwarn):
    root, saved = cifar100_folders
    path = next(iter(saved))
    for change in ("one value", "one more", "another label"):
        if change == "one value":
            save(root / path, saved[path] ^ (np.arange(3072).reshape(32, 32, 3) == 7))
        if change == "one more":
            save(root / path, saved[path])
            save(root / "train/class 07/more.png", size=(32, 32))
        if change == "another label":
            (root / "train/class 07/more.png").unlink()
            (root / path).rename(root / "train/class 50/moved.png")
        with pytest.warns(UserWarning, match="exactly CIFAR-100's") as caught:
            data = load_dataset("cifar100", root=root, validation=0)
        assert {warning.filename for warning in caught} == {__file__}
        assert data.name == "folder"
        assert data.train.mean != (0.5071, 0.4867, 0.4408)
        with pytest.raises(ValueError, match=r"exactly CIFAR-100's pictures.*'listed'"):
            load_dataset("cifar100", root=root, validation="listed")


def test_a_disk_that_takes_no_kept_file_costs_time_only(cifar100_folders, downloads):
    downloads.write_bytes(b"a file, where the folder should be")
    with pytest.warns(UserWarning, match=r"decoded again next time: .*downloads") as caught:
        data = load_dataset("cifar100", root=cifar100_folders[0], validation=0)
    assert (data.name, len(data.train)) == ("cifar100", 200)
    assert caught[0].filename == __file__


def test_the_listed_pictures_are_held_out_whatever_their_order(server, tmp_path, monkeypatch):
    count, names = 5200, [f"class {k}" for k in range(100)]
    pixels, labels = noise(count), np.arange(count) % 100
    rows = pixels.transpose(0, 2, 3, 1)
    checksum = sum_of_digests(zip(labels.tolist(), rows, strict=True))
    wanted = set()
    for k in range(100):
        own = [hashlib.sha256(bytes([k]) + row.tobytes()).hexdigest() for row in rows[k::100]]
        wanted |= set(sorted(own)[:50])
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(count)
        train = pixels[order], labels[order]
        archive, checksums = cifar_archive(train, (pixels[:9], labels[:9]), names)
        offer_cifar100(monkeypatch, server[0], archive, checksums, server[1])
        load = functools.partial(load_dataset, "cifar100", root=tmp_path / str(seed))
        with pytest.raises(ValueError, match=r"these 5,200 are not exactly those"):
            load(validation="listed")
        with monkeypatch.context() as patch:
            patch.setitem(cifar100.CHECKSUMS, "train", checksum)
            data = load(validation="listed", seed=seed)
        held_out = data.indices["validation"]
        assert len(held_out) == 5000
        found = zip(data.validation.labels, data.validation.images, strict=True)
        digests = {
            hashlib.sha256(bytes([k]) + x.permute(1, 2, 0).numpy().tobytes()).hexdigest()
            for k, x in found
        }
        assert digests == wanted
        # Neither part is reordered.
        assert held_out.tolist() == sorted(held_out)
        assert data.indices["train"].tolist() == sorted(set(range(count)) - set(held_out))
        assert np.array_equal(data.train.images, train[0][data.indices["train"]])


def test_only_cifar100_has_listed_pictures():
    with pytest.raises(ValueError, match=r"'listed' names pictures of cifar100, not of cifar10"):
        load_dataset("cifar10", validation="listed")
    with pytest.raises(ValueError, match=r"validation='some' must be a share.*or 'listed'"):
        load_dataset("cifar100", validation="some")


# Real pictures, where there are any: the folder may hold some of these four files.


def shared(name):
    folder = os.environ.get("TTM_LAB_SHARED_DATA")
    if not folder:
        pytest.skip("TTM_LAB_SHARED_DATA names no folder of real pictures")
    if not (Path(folder) / name).is_file():
        pytest.skip(f"{folder} holds no {name}")
    return Path(folder) / name


def test_real_cifar10_pictures_from_a_folder(tmp_path):
    wanted = {"airplane": 60, "automobile": 60}
    with tarfile.open(shared("cifar10-jpeg.tar.xz"), "r|xz") as archive:
        for member in archive:  # sorted: the first two classes come first
            name = Path(member.name).parts[-2] if member.isfile() else None
            if not wanted.get(name):
                continue
            wanted[name] -= 1
            part = "test" if wanted[name] < 10 else "train"
            path = tmp_path / part / name / Path(member.name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())
            if not any(wanted.values()):
                break
    data = load_dataset("folder", root=tmp_path, validation=0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 20, 20)
    assert data.class_names == ("airplane", "automobile")
    files = sorted(tmp_path.glob("train/*/*.jpg"))
    for image, k in zip(data.validation.images, data.indices["validation"], strict=True):
        assert np.array_equal(image.permute(1, 2, 0), Image.open(files[k]))


def test_real_cifar100_pictures_are_pixel_exact(server, monkeypatch):
    with np.load(shared("cifar100-head.npz")) as head:
        pixels, labels = head["images"], head["fine"]
    names = [f"class {k}" for k in range(100)]
    archive, checksums = cifar_archive((pixels, labels), (pixels[:200], labels[:200]), names)
    offer_cifar100(monkeypatch, server[0], archive, checksums, server[1])
    data = load_dataset("cifar100", validation=0)
    assert np.array_equal(data.train.images, pixels)
    assert np.array_equal(data.train.labels, labels)
    ((images, _),) = data.train.batches(2000)
    # The published constants are those of the whole set: these thousand come close to them.
    assert images.mean((0, 2, 3)).abs().max() < 0.05
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05


@pytest.mark.slow
def test_all_real_cifar100_pictures_from_folders_with_the_listed_ones_held_out(tmp_path):
    with tarfile.open(shared("cifar100-png.tar.xz"), "r|xz") as archive:
        archive.extractall(tmp_path, filter="data")
    data = load_dataset("cifar100", root=tmp_path, validation="listed")
    assert data.name == "cifar100"
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5000, 10_000)
    listed = Path(__file__).parents[1] / "data" / "cifar100_validation.txt"
    digests = sorted(
        hashlib.sha256(bytes([k]) + image.permute(1, 2, 0).numpy().tobytes()).hexdigest()[:16]
        for k, image in zip(data.validation.labels, data.validation.images, strict=True)
    )
    assert digests == listed.read_text().split()
    # The parts of the course's experiments, in their order: its kept runs are known by it.
    assert data.fingerprint.startswith("eb0352ece99f2598")
    assert load_dataset("cifar100", root=tmp_path, validation="listed").fingerprint == (
        data.fingerprint
    )


def test_real_imagenet_pictures_through_the_real_loader(tmp_path):
    with tarfile.open(shared("imagenet-one-per-class.tar")) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "imagenet").rename(tmp_path / "train")
    (tmp_path / "val").symlink_to(tmp_path / "train", target_is_directory=True)
    with pytest.warns(UserWarning, match="91 classes"):
        data = load_dataset("imagenet", root=tmp_path, validation=0, workers=0)
    grey = [k for k, p in enumerate(data.train.paths) if Image.open(tmp_path / p).mode == "L"]
    assert len(grey) == 7
    chosen = torch.tensor([*grey, *range(4)])
    ((images, labels),) = data.train.batches(
        16, order=chosen, augmentation="resized-crop-flip", seed=0
    )
    assert images.shape == (len(chosen), 3, 224, 224)
    assert images.isfinite().all()
    assert torch.equal(labels, chosen)
    # Grey stays grey, once the normalisation is taken back.
    scaled = images[: len(grey)] * torch.tensor(data.train.std).view(3, 1, 1)
    scaled += torch.tensor(data.train.mean).view(3, 1, 1)
    torch.testing.assert_close(scaled[:, 0], scaled[:, 2], rtol=0, atol=1e-5)
