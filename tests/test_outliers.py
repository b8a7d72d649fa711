"""Scores of unknown inputs by definition, detection by another library, and the kept table."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import special, stats

from ttm_lab.analysis import outlier_scores
from ttm_lab.course import evidence, kept, networks, outliers
from ttm_lab.files import find_root
from ttm_lab.probability import power_sum

RESULTS = find_root(__file__) / "data" / "results"


@pytest.fixture(scope="module")
def script():
    """benchmarks/outliers.py as a module."""
    folder = find_root(__file__) / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        spec = importlib.util.spec_from_file_location("outliers_script", folder / "outliers.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(0, 4, (300, 10))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_scores_are_what_their_names_say(logits, temperature):
    found = outlier_scores(logits, temperature=temperature, orders=(0.3, 0.999, 5.0))
    q = special.softmax(logits / temperature, axis=1)
    assert np.allclose(found["largest probability"], -np.log(q.max(axis=1)))
    assert np.allclose(found["entropy"], stats.entropy(q, axis=1))
    for order in (0.3, 0.999, 5.0):
        wanted = np.log((q**order).sum(axis=1)) / (1 - order)
        assert np.allclose(found[f"Rényi {order:g}"], wanted)
    assert np.allclose(found["largest logit"], -logits.max(axis=1) / temperature)
    assert np.allclose(found["energy"], -special.logsumexp(logits / temperature, axis=1))


def test_only_level_scores_see_a_constant_and_only_the_largest_logit_keeps_its_order(logits):
    before, moved = outlier_scores(logits), outlier_scores(logits + 7.5)
    for name in before:
        shift = 7.5 if name in ("largest logit", "energy") else 0.0
        assert np.allclose(before[name] - moved[name], shift), name
    hotter = outlier_scores(logits, temperature=4.0)
    kept_order = {n: (stats.rankdata(before[n]) == stats.rankdata(hotter[n])).all() for n in before}
    assert [name for name, same in kept_order.items() if same] == ["largest logit"]


def test_scores_of_nearly_one_hot_outputs_keep_their_order():
    gaps = np.linspace(40, 700, 200)  # below 1e-16 the largest probability itself rounds to 1
    z = np.stack([gaps, 0 * gaps, 0 * gaps], axis=1)
    found = outlier_scores(z)
    assert (special.softmax(z, axis=1).max(axis=1) == 1).all()
    assert np.allclose(found["largest probability"], 2 * np.exp(-gaps), rtol=1e-12, atol=0)
    assert np.allclose(found["entropy"], 2 * (1 + gaps) * np.exp(-gaps), rtol=1e-12, atol=0)
    for name in found:
        assert (np.diff(found[name]) < 0).all(), name


def test_the_power_sum_has_the_order_of_its_renyi_entropy(logits):
    found = outliers.scores(logits, 2.0)
    q = torch.from_numpy(logits / 2).softmax(-1)
    assert np.allclose(found["U"], power_sum(q, 0.25))
    assert np.array_equal(stats.rankdata(found["U"]), stats.rankdata(found["Rényi 0.25"]))


def test_probabilities_are_refused(logits):
    with pytest.raises(ValueError, match="pass logits"):
        outlier_scores(special.softmax(logits, axis=1))


@pytest.mark.parametrize("levels", [0, 7])
def test_detection_is_torchmetrics(levels):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    random = np.random.default_rng(levels)
    known, unknown = random.uniform(0, 0.8, 400), random.uniform(0.1, 1, 150)
    if levels:  # with ties
        known, unknown = np.round(known * levels) / levels, np.round(unknown * levels) / levels
    truth = torch.tensor([1] * 400 + [0] * 150)
    surety = torch.from_numpy(1 - np.concatenate([known, unknown]))
    auroc, fpr = outliers.detection(known, unknown)
    assert auroc == pytest.approx(float(functional.binary_auroc(surety, truth)), abs=1e-6)
    specificity, _ = functional.binary_specificity_at_sensitivity(surety, truth, 0.95)
    assert fpr == pytest.approx(1 - float(specificity), abs=1e-6)


def test_measure_has_a_row_for_every_set_score_and_scale(logits):
    far = {"near": logits[:50] + 0.0, "far": 0.1 * logits[50:90]}
    found = outliers.measure(logits, far, 2.0, recoded={"far": far["far"]})
    assert not found.duplicated(["scale", "set", "score"]).any()
    scores = len(outliers.scores(logits).columns)
    assert len(found) == 2 * 2 * scores
    row = found.set_index(["scale", "set", "score"]).loc["fitted", "far", "entropy"]
    flat = outlier_scores(far["far"], temperature=2.0)["entropy"]
    usual = outlier_scores(logits, temperature=2.0)["entropy"]
    wanted = stats.mannwhitneyu(flat, usual).statistic / (len(flat) * len(usual))
    assert row["auroc"] == pytest.approx(wanted)
    assert row["auroc_recoded"] == pytest.approx(0.5)  # the same pictures on both sides
    assert found.loc[found["set"] == "near", "auroc_recoded"].isna().all()


def table(seeds, arms, model="resnet8"):
    """Rows as benchmarks/outliers.py writes them; TTM is better by 0.05 +- what a seed does."""
    random, rows = np.random.default_rng(1), []
    for seed in range(seeds):
        for arm in arms:
            for scale in outliers.SCALES:
                for name in outliers.UNKNOWN:
                    auroc = 0.7 + 0.05 * (arm == "ttm") + random.normal(0, 0.002)
                    row = {"model": model, "arm": arm, "seed": seed, "scale": scale, "set": name}
                    rows.append(row | {"score": outliers.SCORE, "auroc": auroc})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_the_claim_is_judged_with_whatever_seeds_and_arms_there_are(tmp_path, seeds):
    for arms, pairs in ((("kd", "ttm", "wttm"), 2), (("ce", "kd", "kd10", "ttm", "wttm"), 4)):
        rows = table(seeds, arms)
        rows.to_csv(tmp_path / outliers.TABLE, index=False)
        found = outliers.judged(outliers.read(tmp_path / outliers.TABLE))
        assert len(found) == 2 * pairs
        assert (found["contrasts"] == 2 * pairs).all()
        wide = rows[rows["scale"] == "fitted"].groupby(["seed", "arm"])["auroc"].mean().unstack()
        gap = wide["ttm"] - wide["kd"]
        row = found.set_index("name").loc["TTM minus KD, fitted"]
        assert row["difference"] == pytest.approx(gap.mean())
        if seeds > 1:
            interval = stats.ttest_1samp(gap, 0).confidence_interval(1 - 0.05 / (2 * pairs))
            assert (row["low"], row["high"]) == pytest.approx(tuple(interval))
        else:
            assert np.isnan(row["low"])


def test_a_seed_without_an_arm_is_left_out():
    rows = table(3, ("kd", "ttm", "wttm")).replace({"arm": outliers.NAMES})
    rows = rows[~((rows["seed"] == 1) & (rows["arm"] == "KD"))]
    assert (outliers.judged(rows)["seeds"] == 2).all()


def test_a_kept_table_becomes_an_entry_of_its_model_and_epochs(tmp_path):
    rows = table(5, ("kd", "kd10", "ttm", "wttm"), model="resnet20")
    rows.to_csv(tmp_path / outliers.TABLE, index=False)
    note = {"command": "python x", "date": "2026-12-01", "hardware": "a machine"}
    note = {"resnet20": note | {"pictures": {"CIFAR-100": 1000}}}
    (tmp_path / outliers.TABLE).with_suffix(".json").write_text(json.dumps(note))
    (entry,) = kept.unknown_pictures(kept.tables(RESULTS), tmp_path)
    assert entry["scope"].startswith("CIFAR-100, resnet56 to resnet20, 5 seeds, 10 epochs")
    assert evidence.place(entry["scope"]) == "CIFAR-100, short schedule"
    assert (entry["claim"], entry["command"]) == ("C13", "python x")
    assert entry["verdict"] == "negligible"  # WTTM, the part that speaks most against the claim
    assert "1,000 of CIFAR-100" in entry["note"]
    assert kept.unknown_pictures([], tmp_path) == []
    assert kept.unknown_pictures(kept.tables(RESULTS), tmp_path / "empty") == []


def test_the_kept_table_is_whole():
    rows = outliers.read()
    for model, note in json.loads((RESULTS / "cifar100_outliers.json").read_text()).items():
        assert note["command"].startswith(f"python benchmarks/outliers.py --model {model}")
        arms = {(outliers.NAMES[arm], seed) for arm, seed in networks.students(model)}
        mine = rows[rows["model"] == model]
        assert set(zip(mine["arm"], mine["seed"], strict=True)) == arms
    keys = ["model", "arm", "seed", "scale", "set", "score"]
    assert not rows.duplicated(keys).any()
    assert (
        len(rows)
        == rows[keys[:3]].drop_duplicates().shape[0] * rows[keys[3:]].drop_duplicates().shape[0]
    )
    assert rows[["auroc", "fpr95"]].stack().between(0, 1).all()
    known = {*outliers.UNKNOWN, "Tiny-ImageNet, other meaning"}
    assert known | {f"CIFAR-100 as {name}" for name in outliers.UNKNOWN} == set(rows["set"])
    wide = rows[rows["score"] == "largest logit"].pivot(
        index=["model", "arm", "seed", "set"], columns="scale", values="auroc"
    )
    assert np.allclose(wide["as trained"], wide["fitted"])  # no temperature moves it


def test_the_kept_logits_are_of_the_table():
    found, rows = outliers.kept_logits(), outliers.read()
    assert set(found) == set(rows.loc[rows["model"] == "resnet20", "arm"]) - {"teacher"}
    at = rows[
        (rows["model"] == "resnet20") & (rows["seed"] == rows["seed"][rows["seed"] >= 0].min())
    ]
    at = at[(at["scale"] == "as trained") & (at["score"] == "entropy")].set_index(["arm", "set"])
    for arm, sets in found.items():
        known = outlier_scores(sets["known"])["entropy"]
        for name in outliers.UNKNOWN:
            auroc, _ = outliers.detection(known, outlier_scores(sets[name])["entropy"])
            assert auroc == pytest.approx(at.loc[(arm, name), "auroc"], abs=0.1)  # 200 pictures


def test_clothes_and_noise_are_pictures_like_the_digits():
    for images in (outliers.fashion(), outliers.noise(500)):
        assert images.shape == (500, 1, 8, 8)
        assert torch.equal((16 * images).round() / 16, images)
        assert (images.min(), images.max()) == (0, 1)
    assert not torch.equal(outliers.noise(5), outliers.noise(5, seed=1))


def test_the_control_goes_through_the_files_of_the_set(script, tmp_path):
    random = np.random.default_rng(0)
    smooth = random.integers(0, 255, (3, 4, 4), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    assert np.array_equal(script.recode(smooth, {"size": (32, 32), "mode": "RGB"}), smooth)
    grey = script.recode(smooth, {"size": (28, 28), "mode": "L"})
    assert (grey == grey[:1]).all()
    folder = tmp_path / "a"
    folder.mkdir()
    Image.fromarray(smooth.transpose(1, 2, 0)).resize((64, 48)).save(folder / "x.jpg", quality=20)
    Image.fromarray(smooth.transpose(1, 2, 0)).save(tmp_path / "y.png")
    images, coded = script.read_folder(str(tmp_path), None)
    assert images.shape == (2, 3, 32, 32)
    assert np.array_equal(images[1], smooth)
    with Image.open(folder / "x.jpg") as picture:
        assert coded[0]["qtables"] == picture.quantization
    assert coded[0]["size"] == (64, 48)
    assert "qtables" not in coded[1]
    rough = np.abs(script.recode(smooth, coded[0]).astype(int) - smooth).mean()
    assert 1 < rough < 40  # quality 20 is seen, and the picture is still the picture
    with pytest.raises(SystemExit, match="holds no pictures"):
        script.read_folder(str(tmp_path / "none"), None)


def test_evenly_spaced_pictures(script):
    assert list(script.spaced(5, None)) == [0, 1, 2, 3, 4]
    assert list(script.spaced(5, 9)) == [0, 1, 2, 3, 4]
    assert list(script.spaced(10_000, 3)) == [0, 4999, 9999]
