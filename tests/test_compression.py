"""Compressed networks: what is zero, what is rounded, what runs in int8, and what is kept."""

import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ttm_lab.course import compression, evidence, kept
from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.files import find_root
from ttm_lab.models import create_model

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import compression as benchmark


@pytest.fixture(scope="module")
def network():
    """A residual network whose batch norms have seen some pictures."""
    made = create_model("resnet8", 10, seed=0)
    images = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return compression.reestimate(made, images), images


def weights(network):
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return torch.cat([layer.weight.detach().ravel() for layer in layers])


def test_the_smallest_weights_of_the_whole_network_are_gone_and_the_rest_is_as_it_was(network):
    network, _ = network
    before = weights(network)
    after = weights(compression.prune_weights(network, 0.7))
    bound = before.abs().sort().values[round(0.7 * len(before))]
    assert torch.equal(after, torch.where(before.abs() < bound, 0, before))
    assert torch.equal(weights(network), before)
    pruned = compression.prune_weights(network.to(memory_format=torch.channels_last), 0.7)
    assert torch.equal(weights(pruned), after)
    assert all(torch.equal(pruned.state_dict()[k], v) for k, v in network.named_buffers())


def test_masks_keep_the_zeros_through_training_and_come_off(network):
    network, images = network
    pruned = compression.prune_weights(network, 0.5, masks=True).train()
    zero = weights(compression.prune_weights(network, 0.5)) == 0
    optimizer = torch.optim.SGD(list(pruned.parameters()), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        pruned(images[:16]).square().sum().backward()
        optimizer.step()
    trained = compression.without_masks(pruned)
    assert set(trained.state_dict()) == set(network.state_dict())
    assert (weights(trained)[zero] == 0).all()
    assert not torch.equal(weights(trained)[~zero], weights(network)[~zero])


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weights_have_as_many_values_as_their_bits_allow(network, bits):
    network, _ = network
    rounded = compression.round_weights(network, bits)
    for was, now in zip(network.conv1.weight, rounded.conv1.weight, strict=True):
        step = was.abs().max() / (2 ** (bits - 1) - 1)
        assert len(now.unique()) <= 2**bits - 1
        assert (now - was).abs().max() <= 0.501 * step
    again = compression.round_weights(rounded, bits)
    assert torch.equal(weights(again), weights(rounded)), "what is rounded stays as it is"
    assert not weights(compression.round_weights(nn.Conv2d(1, 2, 3), 4)).isnan().any()


def test_zeros_can_be_rounded_and_other_bits_are_refused():
    layer = nn.Sequential(nn.Linear(3, 2))
    nn.init.zeros_(layer[0].weight)
    assert (compression.round_weights(layer, 3)[0].weight == 0).all()
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"bits={bits} must lie between 2 and 8"):
            compression.round_weights(layer, bits)


def test_batch_norm_gets_the_mean_and_variance_of_the_pictures(network):
    network, images = network
    pruned = compression.prune_weights(network, 0.5)
    renewed = compression.reestimate(pruned, images)
    seen = nn.functional.conv2d(images, pruned.conv1.weight, padding=1)
    assert torch.allclose(renewed.bn1.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(renewed.bn1.running_var, seen.var((0, 2, 3)), rtol=1e-4)
    assert not torch.allclose(pruned.bn1.running_var, renewed.bn1.running_var, rtol=1e-2)
    assert not renewed.training


def test_every_convolution_runs_in_int8_and_says_nearly_the_same(network):
    network, images = network
    small = compression.to_int8(network, images)
    many = sum(isinstance(m, nn.Conv2d) for m in network.modules())
    assert compression.convolutions(network, images[:2]) == {"int8": 0, "float32": many}
    assert compression.convolutions(small, images[:2]) == {"int8": many, "float32": 0}
    with torch.inference_mode():
        wanted, found = network(images), small(images)
    assert (found - wanted).norm() < 0.1 * wanted.norm()
    folded = compression.fold(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.inference_mode():
        assert torch.allclose(folded(images[:8]), wanted[:8], atol=1e-4)


def test_a_file_is_as_large_as_what_it_has_to_say(network):
    network, images = network
    count = len(weights(network))
    others = sum(v.numel() for v in network.state_dict().values()) - count
    size = len(compression.stored(network))
    assert size == pytest.approx(2 * (count + others), rel=0.12)
    assert len(lzma.decompress(compression.stored(network))) >= 2 * count
    assert len(compression.stored(compression.to_int8(network, images))) < 0.7 * size
    for bits in (4, 3):
        rounded = compression.round_weights(network, bits)
        assert len(compression.stored(rounded, bits)) < 1.35 * count * bits / 8 + 4 * others
    assert len(compression.stored(compression.prune_weights(network, 0.9))) < 0.35 * size


def test_a_network_takes_as_long_as_itself_and_the_sleeper_longer():
    class Counting(nn.Module):
        """A clock that a network moves instead of the time it takes."""

        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self, images):
            clock[0] += self.seconds
            return images

    clock = [0.0]
    slow, fast = Counting(3.0), Counting(1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression.time, "perf_counter", lambda: clock[0])
        found = compression.time_ratios(slow, fast, torch.zeros(1), rounds=4)
        assert found == pytest.approx([3, 3, 3, 3])


def test_the_front_is_what_nothing_beats():
    size, score = [1, 2, 2, 3, 4, 4], [10, 30, 20, 30, 50, 50]
    assert compression.pareto(size, score).tolist() == [True, True, False, False, True, True]


def test_the_kept_digits_are_as_good_as_their_note_says():
    found = compression.digits_networks()
    path = find_root() / "data" / "results" / "digits_students.json"
    note = json.loads(path.read_text(encoding="utf-8"))["test_accuracy"]
    seeds = sorted({seed for *_, seed in found})
    assert len(seeds) == 5
    assert len(found) == len(seeds) * (4 * len(compression.WIDTHS) + 1)
    seed = seeds[-1]
    test = load_dataset("digits", seed=seed).test
    for model, method in (("cnn_tiny", "CE"), ("cnn_medium", "WTTM"), ("cnn_large", "teacher")):
        with torch.inference_mode():
            logits = found[model, method, seed](next(test.batches(len(test)))[0])
        accuracy = float((logits.argmax(1) == test.labels).double().mean())
        assert accuracy == pytest.approx(note[f"{model}/{method}"][-1], abs=1e-3)


def table(seeds, extra=0.0):
    """Rows as the benchmark writes them: TTM loses ``extra`` less than KD in every way."""
    random, rows = np.random.default_rng(0), []
    ways = [("float", 32, "none"), ("int8", 8, "none")]
    ways += [
        (w, n, r) for w, n in (("pruned", 0.7), ("rounded", 4)) for r in ("none", "batch norm")
    ]
    for seed in range(seeds):
        for k, (way, level, repair) in enumerate(ways):
            for arm in ("teacher", "ce", "kd", "kd10", "ttm", "wttm"):
                kept_more = extra if arm in ("ttm", "wttm") and k else 0.0
                row = {"model": "resnet8", "arm": arm, "seed": seed, "way": way, "level": level}
                accuracy = 0.6 - 0.05 * k + kept_more + random.normal(0, 1e-4)
                rows.append(row | {"repair": repair, "accuracy": accuracy, "pictures": 5000})
    return pd.DataFrame(rows)


NOTE = {"command": "python x", "date": "2026-11-26", "machine": "a machine", "teacher": "resnet32"}


def test_the_kept_table_judges_its_claim_against_kd_of_the_same_scale(tmp_path):
    assert compression.kept_tables(tmp_path) == {}
    assert compression.entries(tmp_path) == []
    rows = table(5, extra=0.02)
    rows.to_csv(tmp_path / "cifar100_compression.csv", index=False)
    (tmp_path / "cifar100_compression.json").write_text(json.dumps({"resnet8": NOTE}))
    (entry,) = compression.entries(tmp_path)
    assert entry["verdict"] == "holds"
    assert entry["scope"] == "CIFAR-100, resnet32 to resnet8, 5 seeds, 6 epochs, test part"
    assert [part["difference"] for part in entry["contrasts"]] == pytest.approx([2] * 6, abs=0.1)
    assert all("KD x 10" in part["name"] for part in entry["contrasts"])
    assert entry in kept.entries(tmp_path)
    matrix = evidence.matrix(evidence.collect(tmp_path / "none", kept=[entry]))
    assert matrix.loc["C11", "CIFAR-100, short schedule"] == "holds"
    without = rows[(rows["way"] != "int8") | (rows["arm"] != "wttm")]
    without.to_csv(tmp_path / "cifar100_compression.csv", index=False)
    assert compression.entries(tmp_path) == [], "a part of a claim judges nothing"


def test_two_seeds_that_agree_decide_nothing_and_the_table_with_most_seeds_comes_first(tmp_path):
    both = pd.concat([table(2).assign(model="resnet20"), table(3)])
    both.to_csv(tmp_path / "cifar100_compression.csv", index=False)
    notes = json.dumps({"resnet8": NOTE, "resnet20": NOTE})
    (tmp_path / "cifar100_compression.json").write_text(notes)
    assert list(compression.kept_tables(tmp_path)) == ["resnet8", "resnet20"]
    rows, _ = compression.kept_tables(tmp_path)["resnet8"]
    change = compression.changes(rows, "accuracy")
    assert change["int8", 8, "none", "KD"].mean() == pytest.approx(-0.05, abs=1e-3)
    assert change["float", 32, "none", "TTM"].abs().max() == 0


@pytest.mark.slow
def test_the_benchmark_compresses_every_student_once(tmp_path, monkeypatch, capsys):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (600, 3, 8, 8), generator=draw, dtype=torch.uint8)
    part = lambda n: Split(images[:n], torch.arange(n) % 100, (0.5,) * 3, (0.25,) * 3)  # noqa: E731
    names = tuple(f"c{k}" for k in range(100))
    data = Dataset("noise", 0, names, part(600), part(200), part(300))
    made = [create_model("resnet8", seed=seed).eval() for seed in range(3)]
    students = {("ce", 0): made[0], ("wttm", 0): made[1]}
    monkeypatch.setattr(compression, "FRACTIONS", (0.7, 0.9))
    monkeypatch.setattr(compression, "BITS", (4,))
    monkeypatch.setattr(benchmark.networks, "students", lambda model: students)
    monkeypatch.setattr(benchmark.networks, "teacher", lambda: made[2])
    monkeypatch.setattr(benchmark, "load_dataset", lambda *_, **__: data)
    monkeypatch.setattr(benchmark, "FILE", tmp_path / "rows.csv")
    monkeypatch.setattr(benchmark.c, "time_ratios", lambda *_, **__: np.array([1.0, 2.0, 3.0]))
    argv = ["compression.py", "--root", "/where", "--model", "resnet8", "--pictures", "200"]
    monkeypatch.setattr(sys, "argv", [*argv, "--steps", "2"])
    benchmark.main()
    rows = pd.read_csv(tmp_path / "rows.csv")
    kinds = 2 + 2 * (len(compression.FRACTIONS) + len(compression.BITS))
    assert len(rows) == 2 * (kinds + 1) + kinds
    assert not rows.isna().any(axis=None)
    assert (rows["pictures"] == 200).all()
    trained = rows[rows["repair"] == "2 steps"]
    assert set(trained["arm"]) == {"ce", "wttm"}
    same = rows[(rows["way"] == "pruned") & (rows["level"] == 0.9) & (rows["repair"] == "none")]
    assert (trained["nll"].to_numpy() != same[same["arm"] != "teacher"]["nll"].to_numpy()).all()
    note = json.loads((tmp_path / "rows.json").read_text())["resnet8"]
    assert "--root DIR" in note["command"]
    assert "/where" not in note["command"]
    assert {row["way"] for row in note["times"]} == {"int8", "90 % pruned", "float32"}
    capsys.readouterr()
    benchmark.main()
    assert capsys.readouterr().out == "", "nothing is done twice"
    monkeypatch.setattr(sys, "argv", [*argv[:-1], "300"])
    with pytest.raises(ValueError, match=r"has resnet8 on .200. pictures"):
        benchmark.main()
