import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from ttm_lab import analysis
from ttm_lab.course import evidence, kept, paper
from ttm_lab.files import find_root

NOTEBOOKS = find_root(__file__) / "notebooks"
KEPT = find_root(__file__) / "data" / "results"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("TTM_LAB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("TTM_LAB_NOTEBOOK", "01_example")
    return tmp_path / "results"


def test_claims_are_complete_and_in_order():
    claims = evidence.claims()
    numbers = {"A": range(1, 9), "B": range(1, 15), "C": range(10, 15)}
    assert list(claims) == [f"{letter}{k}" for letter, ks in numbers.items() for k in ks]
    for claim_id, claim in claims.items():
        assert claim["kind"] == ("exact" if claim_id.startswith("A") else "empirical")
        assert all(claim[field] for field in ("statement", "where", "expected", "source"))


def test_published_values_follow_from_the_published_tables():
    table = paper.results()
    cifar = table[table["dataset"] == "CIFAR-100"]
    top1 = cifar.pivot_table(index=["teacher", "student"], columns="method", values="top1")

    def difference(first, second):
        return (top1[first] - top1[second]).dropna()

    claims = evidence.claims()
    pooled = evidence.pooled_difference("WTTM", "TTM")
    together = (
        "; pooled by inverse variance "
        f"{pooled['pooled']:+.3f} ± {pooled['error']:.3f}, z = {pooled['z']:.1f}"
    )
    for claim_id, first, second, more in [("B1", "TTM", "KD", ""), ("B2", "WTTM", "TTM", together)]:
        d = difference(first, second)
        text = f"higher in {(d > 0).sum()} of {len(d)} pairs, mean {d.mean():+.2f} points"
        assert claims[claim_id]["paper_value"] == text + more
    for part in ("CRD", "ITRD"):
        d = difference(f"WTTM+{part}", part)
        assert f"{part}: {(d > 0).sum()} of {len(d)}" in claims["B3"]["paper_value"]
        assert f"mean {d.mean():+.2f}" in claims["B3"]["paper_value"]
    d = difference("WTTM without CE", "KD")
    assert claims["B8"]["paper_value"] == f"higher in {(d > 0).sum()} of {len(d)} pairs"
    larger = table[table["source"].str.contains("Table 7")].set_index("method")["top1"]
    for method in ("WTTM", "KD"):
        assert (
            f"{method} {', '.join(map('{:.2f}'.format, larger[method]))}"
            in (claims["B9"]["paper_value"])
        )
    deit = table[table["student"] == "DeiT-Tiny"].set_index("method")["top1"]
    text = ", ".join(f"{method} {deit[method]:.2f}" for method in ("KD", "NKD", "WTTM"))
    assert claims["B11"]["paper_value"] == text


def table(*rows, quantity="entropy"):
    """Contrasts as ``analysis.contrasts`` gives them, from (name, low, high)."""
    rows = [
        {"name": name, "difference": (low + high) / 2, "low": low, "high": high, "p": 0.01}
        for name, low, high in rows
    ]
    return pd.DataFrame(rows).assign(quantity=quantity)


ENTROPY = (("TTM minus KD", 1.0, 2.0), ("WTTM minus TTM", 0.2, 0.4))


def test_record_is_collected_with_its_claim(results):
    evidence.record("B4", table(*ENTROPY), scope="digits", note="8 seeds")
    found = evidence.collect()
    assert list(dict.fromkeys(found["id"])) == list(evidence.claims())
    rows = found[found["id"] == "B4"]
    numbers = rows[["measure", "measured", "low", "high"]].to_numpy().tolist()
    assert [row[0] for row in numbers] == ["TTM minus KD", "WTTM minus TTM"]
    assert np.allclose([row[1:] for row in numbers], [[1.5, 1.0, 2.0], [0.3, 0.2, 0.4]])
    assert set(rows["verdict_in_scope"]) == {"holds on digits"}
    assert set(rows["unit"]) == {"nats"}
    assert set(rows["notebook"]) == {"01_example"}
    assert set(found[found["id"] != "B4"]["verdict_in_scope"]) == {"not run"}


def test_a_claim_has_one_verdict_a_scope_by_its_weakest_part(results):
    high, unknown, tiny, low = (0.1, 0.2), (-0.1, 0.2), (-0.01, 0.04), (-0.2, -0.1)
    for parts, verdict, because in [
        ((high, high), "holds", ""),
        ((high, unknown), "not decided", "second"),
        ((tiny, unknown), "negligible", "first"),
        ((low, tiny), "does not hold", "first"),
        ((unknown, unknown), "not decided", ""),
        ((high, low), "does not hold", "second"),
    ]:
        names = ("first", "second")
        contrasts = table(*((n, *ends) for n, ends in zip(names, parts, strict=True)))
        said = evidence.record("B4", contrasts, scope="digits")
        assert said == (f"{verdict}, by {because}" if because else verdict)
        rows = evidence.collect().query("id == 'B4'")
        assert list(rows["verdict"]) == [verdict] * 2
        assert list(rows["because"]) == [because] * 2
    # another notebook's record of the same claim and scope counts for the same verdict
    evidence.record("B4", table(("third", *high)), scope="digits", notebook="09_other")
    rows = evidence.collect().query("id == 'B4'")
    assert list(rows["verdict"]) == ["does not hold"] * 3
    evidence.record("B4", table(*ENTROPY), scope="CIFAR-10", notebook="09_other")
    verdicts = evidence.collect().query("id == 'B4'").groupby("scope")["verdict"].unique()
    assert {scope: list(v) for scope, v in verdicts.items()} == {
        "digits": ["does not hold"],
        "CIFAR-10": ["holds"],
    }


def test_no_caller_types_a_verdict_and_a_file_s_word_does_not_count(results):
    with pytest.raises(TypeError, match="verdict"):
        evidence.record("B4", table(*ENTROPY), scope="digits", verdict="holds")
    evidence.record("B5", table(("a", -0.2, -0.1), quantity="divergence"), scope="digits")
    (path,) = results.iterdir()
    content = json.loads(path.read_text())
    assert content["verdict"] == "does not hold"
    path.write_text(json.dumps(content | {"verdict": "holds"}))
    assert set(evidence.collect().query("id == 'B5'")["verdict"]) == {"does not hold"}


def test_recording_again_replaces_and_another_measure_adds(results):
    for value in (1.0, 2e-14):
        evidence.record("A2", value, tolerance=1e-12, scope="float64", measure="one")
    evidence.record("A2", 1e-15, tolerance=1e-12, scope="float64", measure="two")
    evidence.record("A2", 1.0, tolerance=1e-12, scope="float64", measure="two", notebook="02_b")
    rows = evidence.collect(results).query("id == 'A2'")
    assert list(rows["measured"]) == [2e-14, 1e-15, 1.0]
    assert set(rows["verdict_in_scope"]) == {"does not hold (float64)"}


def test_file_is_plain_json_without_nan(results):
    nan = float("nan")
    contrasts = table(("a", nan, nan)).assign(difference=torch.tensor(0.1), p=np.float32(nan))
    assert evidence.record("B4", contrasts, scope="digits") == "not decided"
    (path,) = results.iterdir()
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["contrasts"][0]["low"] is None
    assert content["verdict"] == "not decided"
    assert np.isnan(evidence.collect().query("id == 'B4'")["low"].iloc[0])


def test_what_is_no_record_is_skipped_and_named(results):
    evidence.record("B4", table(*ENTROPY), scope="digits")
    (good,) = results.iterdir()
    content = json.loads(good.read_text())
    bad = ["", "[]", "null", "7", "{", '{"claim": "B4"}', "[" * 100_000]
    bad += [
        json.dumps(content | change)
        for change in (
            {"claim": "Z9"},
            {"claim": []},
            {"contrasts": []},
            {"contrasts": {}},
            {"contrasts": [1]},
            {"scope": 3},
            {"note": "half a character, \ud800"},
            {"contrasts": [{"name": "a", "difference": {}, "tolerance": 1}]},
            {"contrasts": [{"name": "a", "difference": 10**400, "tolerance": 1}]},
            {"teachers": "two"},
            {"command": 1},
            {"contrasts": [content["contrasts"][0] | {"seeds": "five"}]},
            {"contrasts": [{"name": "a", "difference": 1, "tolerance": 1, "quantity": "mood"}]},
            {
                "contrasts": [
                    {"name": "a", "difference": 1, "low": "x", "high": 2, "quantity": "nll"}
                ]
            },
        )
    ]
    for k, text in enumerate(bad):
        (results / f"bad{k}.json").write_text(text)
    (results / "bad.json").write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match="is no record of evidence") as told:
        found = evidence.collect()
    named = {str(w.message).split(" is no ")[0].rsplit("/", 1)[-1] for w in told}
    assert named == {"bad.json", *(f"bad{k}.json" for k in range(len(bad)))}
    assert len(found.query("id == 'B4'")) == 2


def test_notebook_running_in_jupyterlab_is_named(results, monkeypatch):
    monkeypatch.delenv("TTM_LAB_NOTEBOOK")
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/03_from_kd_to_ttm.ipynb")
    evidence.record("A2", 0.0, tolerance=1e-12, scope="float64")
    (path,) = results.iterdir()
    assert json.loads(path.read_text())["notebook"] == "03_from_kd_to_ttm"


@pytest.mark.parametrize(
    ("claim", "measured", "options", "message"),
    [
        ("C1", 1.0, {"scope": "digits"}, "choose one of A1"),
        ("A1", 1.0, {"scope": "float64"}, "its tolerance"),
        ("A1", 1.0, {"scope": "float64", "tolerance": -1.0}, "tolerance=-1.0"),
        ("B4", 1.0, {"scope": "digits"}, "give a table of analysis.contrasts, got 1.0"),
        ("B4", table(*ENTROPY), {"scope": " "}, "scope is empty"),
        ("B4", table(*ENTROPY, quantity="size"), {"scope": "digits"}, "'size' must be one of"),
        ("B4", table(*ENTROPY).drop(columns="low"), {"scope": "digits"}, "lack the columns"),
        ("B4", table(*ENTROPY).assign(difference=9.0), {"scope": "digits"}, "outside its own"),
        ("B1", table(("a", 1, 2)).assign(quantity="accuracy"), {"scope": "CIFAR-100"}, "no pair"),
    ],
)
def test_what_cannot_be_evidence_is_refused(results, claim, measured, options, message):
    with pytest.raises(ValueError, match=message):
        evidence.record(claim, measured, **options)
    assert not results.exists()


def test_only_its_own_data_and_measure_decide_a_claim(results):
    accuracy = table(("TTM minus KD", 1.0, 2.0), quantity="accuracy")
    for scope in ("digits", "CIFAR-10, resnet20 to resnet8", "CIFAR-100, vgg13 to vgg8, 5 seeds"):
        evidence.record("B1", accuracy, scope=scope)
    evidence.record("B4", table(*ENTROPY), scope="CIFAR-10", decides=False)
    found = evidence.collect()
    assert found.query("id == 'B1'")["verdict_in_scope"].tolist() == [
        "not decided on CIFAR-10, resnet20 to resnet8",
        "holds on CIFAR-100, vgg13 to vgg8, 5 seeds",
        "not decided on digits",
    ]
    assert set(found.query("id == 'B4'")["verdict"]) == {"not decided"}


def test_no_claim_counts_pairs_that_one_record_cannot_hold():
    for claim in evidence.claims().values():
        if claim["decided_by"] == "CIFAR-100":
            assert "pairs" not in claim["statement"], claim["id"]
            assert "a CIFAR-100 pair" in claim["statement"], claim["id"]


def test_margins_are_those_fixed_before_the_runs():
    margins = {name: margin for name, (_, margin) in evidence.QUANTITIES.items()}
    assert margins.pop("divergence") == margins["nll"]
    fixed = {"accuracy": 0.3, "nll": 0.02, "entropy": 0.05, "ece": 0.01}
    assert margins == fixed | {"auroc": 0.01, "cost": 0.0}


def test_holm_is_r_s_p_adjust_over_a_scope(results):
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R
    assert evidence.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    some = evidence.holm([0.5, float("nan"), 0.9])
    assert some[[0, 2]] == pytest.approx([1.0, 1.0])
    assert np.isnan(some[1])
    evidence.record("B4", table(*ENTROPY).assign(p=[0.01, 0.04]), scope="digits")
    evidence.record("B5", table(("a", 0.1, 0.2)).assign(p=0.03), scope="digits")
    evidence.record("B5", table(("a", 0.1, 0.2)).assign(p=0.03), scope="CIFAR-10")
    found = evidence.collect().dropna(subset=["holm"])
    by = found.set_index(["id", "scope", "measure"])["holm"].to_dict()
    assert by == pytest.approx(
        {
            ("B4", "digits", "TTM minus KD"): 0.03,
            ("B4", "digits", "WTTM minus TTM"): 0.06,
            ("B5", "digits", "a"): 0.06,
            ("B5", "CIFAR-10", "a"): 0.03,
        }
    )


def part(d, quantity="accuracy", name="a", **judged):
    """One contrast as a record keeps it, from the differences of its seeds."""
    row = analysis.contrasts({name: d}, **judged).iloc[0].to_dict()
    return row | {"quantity": quantity}


def exactly(mean, deviation, seeds):
    """Differences with just this mean and deviation."""
    d = np.random.default_rng(seeds).normal(size=seeds)
    return mean + deviation * (d - d.mean()) / d.std(ddof=1)


def test_the_plain_interval_is_scipys_however_much_the_judged_one_is_widened():
    d = exactly(0.4, 1.0, 6)
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    for judged in ({}, {"contrasts": 9}, {"contrasts": 9, "test_over_train": 1 / 3}):
        assert evidence.interval_alone(part(d, **judged)) == pytest.approx(tuple(expected))
    assert np.isnan(evidence.interval_alone(part([0.4]))).all()


def test_the_smallest_effect_is_decided_in_four_cases_of_five():
    # stated before any run: five pairs, about 1.7 deviations for one contrast, 3.2 for ten
    for contrasts, stated in ((1, 1.7), (10, 3.2)):
        found = evidence.smallest_effect(part(exactly(0, 2.0, 5), contrasts=contrasts))
        assert found / 2 == pytest.approx(stated, abs=0.06)
    random = np.random.default_rng(7)
    for seeds, contrasts in ((5, 17), (12, 4)):
        given = part(exactly(0.1, 1.0, seeds), contrasts=contrasts)
        effect = evidence.smallest_effect(given)
        d = random.normal(effect, 1.0, (seeds, 20_000))
        low = stats.ttest_1samp(d, 0).confidence_interval(1 - 0.05 / contrasts).low
        assert (low > 0).mean() == pytest.approx(0.8, abs=0.012)  # four standard errors
    plain, shared = (
        evidence.smallest_effect(part(exactly(0, 1.0, 8), test_over_train=r)) for r in (0, 1 / 3)
    )
    assert shared / plain == pytest.approx(np.sqrt(1 + 8 / 3))
    assert np.isnan(evidence.smallest_effect(part([0.4])))


def test_as_many_seeds_as_needed_decide_and_one_fewer_does_not():
    for mean, judged in (
        (1.1, {"contrasts": 17}),
        (-0.6, {"contrasts": 3}),
        (0.05, {}),  # to negligible
        (2.0, {"contrasts": 14, "test_over_train": 1 / 3}),
    ):
        n = int(evidence.seeds_needed(part(exactly(mean, 1.0, 4), **judged)))
        ends = [
            tuple(part(exactly(mean, 1.0, k), **judged)[end] for end in ("low", "high"))
            for k in (n - 1, n)
        ]
        fewer, enough = (evidence.direction_verdict(*both, 0.3) for both in ends)
        assert (fewer, enough != "not decided") == ("not decided", True)
    never = part(exactly(1.0, 1.0, 4), test_over_train=1 / 3)
    assert evidence.seeds_needed(never) == np.inf  # an error of 0.58 deviations is shared
    assert np.isnan(evidence.seeds_needed(part([1.0])))


def test_what_flips_a_verdict_does():
    def flip(*parts, claim="B4", scope="digits", **more):
        verdict, _ = evidence.claim_verdict(claim, parts, scope, **more)
        return verdict, evidence.what_flips(claim, parts, scope, **more)

    small, large = (part(exactly(mean, 0.2, 6), "entropy", f"{mean}") for mean in (0.5, 2.0))
    moved = f"the interval of “0.5” {small['low']:.2g} nats further towards zero"
    assert flip(small, large) == ("holds", moved)
    down, lower = (part(exactly(mean, 0.2, 6), "entropy", f"{mean}") for mean in (-0.5, -2.0))
    verdict, told = flip(down, lower)  # one of the two would be enough to keep it
    assert (verdict, told.split("”")[0]) == ("does not hold", "the interval of “-2.0")
    tiny = part(exactly(0.01, 0.01, 6), "entropy", "tiny")
    room = f"the interval of “tiny” {0.05 - tiny['high']:.2g} nats further from zero"
    assert flip(tiny, large) == ("negligible", room)
    open_part = part(exactly(0.3, 1.0, 6), "entropy", "open")
    n = evidence.seeds_needed(open_part)
    assert flip(open_part, large)[1].startswith(f"about {n:.0f} seeds, if")
    never = part(exactly(1.0, 1.0, 4), "entropy", test_over_train=1 / 3)
    assert flip(never)[1].startswith("no number of seeds up to 10,000, if")
    published = flip(open_part, claim="B5", scope="published tables, pairs of CIFAR-100")
    assert published[1].startswith(f"about {n:.0f} pairs of networks, if")
    assert "varies between seeds" in flip(part([1.0], "entropy"))[1]
    for where in ({"claim": "B1"}, {"decides": False}):  # B1 is about CIFAR-100, these are digits
        assert flip(open_part, **where)[1].startswith("other data or another measure")
    assert evidence.what_flips("A1", [{"difference": 0.0, "tolerance": 1.0}], "float64") == ""


def test_the_matrix_has_one_verdict_a_place_and_a_pair_judges_only_its_place(results):
    high, low = (table(("a", *ends), quantity="accuracy") for ends in ((1, 2), (-2, -1)))
    evidence.record("B1", high, scope="CIFAR-100, vgg13 to vgg8, 5 seeds")
    evidence.record("B1", high, scope="CIFAR-100, resnet32 to resnet8, 5 seeds, 15 epochs")
    evidence.record("B1", low, scope="CIFAR-100, resnet56 to resnet20, 5 seeds, 10 epochs")
    evidence.record("B1", high, scope="digits, 8 seeds")
    evidence.record("B4", high.assign(quantity="entropy"), scope="CIFAR-10, a to b")
    evidence.record("B4", high.assign(quantity="entropy"), scope="Imagenette, a to b")
    evidence.record("A1", 0.0, tolerance=1.0, scope="float64")
    found = evidence.matrix(evidence.collect())
    assert list(found.index) == [
        n for n, c in evidence.claims().items() if c["kind"] == "empirical"
    ]
    assert list(found.columns) == list(evidence.PLACES)
    assert found.loc["B1"].tolist() == [
        *("not run", "not decided", "not run", "does not hold", "holds", "not run", "not run")
    ]
    assert found.loc["B4", "CIFAR-10 JPEG"] == "holds"
    assert (found != "not run").sum().sum() == 4


def test_published_tables_are_judged_over_their_pairs():
    by_claim = {(one["claim"], one["scope"]): one for one in kept.published()}
    cifar = paper.results().query("dataset == 'CIFAR-100'")
    top1 = cifar.pivot(index=["teacher", "student"], columns="method", values="top1")
    one = by_claim["B1", "published tables, pairs of CIFAR-100"]
    test = stats.ttest_rel(top1["TTM"], top1["KD"])
    (contrast,) = one["contrasts"]
    judged = tuple(test.confidence_interval(1 - 0.05 / 8))  # eight contrasts in these tables
    assert (contrast["low"], contrast["high"]) == pytest.approx(judged)
    assert contrast["p"] == pytest.approx(test.pvalue)
    assert (one["verdict"], contrast["seeds"]) == ("holds", 13)
    # WTTM minus TTM: by hand from the tables' spreads, +0.113 +- 0.043
    rows = cifar.set_index(["teacher", "student", "method"])[["top1", "std", "runs"]].unstack()
    d = rows["top1", "WTTM"] - rows["top1", "TTM"]
    weight = 1 / sum(rows["std", m] ** 2 / rows["runs", m] for m in ("TTM", "WTTM"))
    mean, error = (weight * d).sum() / weight.sum(), weight.sum() ** -0.5
    assert (mean, error) == pytest.approx((0.113, 0.043), abs=0.001)
    one = by_claim["B2", "published tables, pairs of CIFAR-100"]
    pooled = {c["name"]: c for c in one["contrasts"]}["WTTM minus TTM, pooled by inverse variance"]
    half = stats.norm.ppf(1 - 0.05 / 8 / 2) * error
    assert (pooled["low"], pooled["high"]) == pytest.approx((mean - half, mean + half))
    assert one["verdict"] == "negligible"  # real, perhaps, and below 0.3 points
    assert "positive in 10 of 13" in one["note"]
    for claim in ("B9", "B11"):  # numbers without a spread
        assert by_claim[claim, "published tables, ImageNet"]["verdict"] == "not decided"


def test_kept_runs_on_cifar_100_are_judged_as_their_table_says():
    table = pd.read_csv(KEPT / "cifar100_gpu.csv")
    last = table[table["epoch"] == 10].pivot(index="seed", columns="arm")
    late = table[table["epoch"] > 6].groupby(["seed", "arm"])["validation_entropy"].mean().unstack()
    scope = "CIFAR-100, resnet56 to resnet20, 5 seeds, 10 epochs, validation part"
    found = {one["claim"]: one for one in kept.entries(KEPT) if one["scope"] == scope}
    assert set(found) == {"B1", "B2", "B4", "B6", "B8", "B12", "B13"}
    contrasts = {c["name"]: c for one in found.values() for c in one["contrasts"]}
    accuracy = 100 * last["validation_accuracy"]
    for name, more, less in (
        ("TTM minus KD, as published", accuracy["ttm, decay / 10"], accuracy["kd"]),
        ("U minus U shuffled", accuracy["U"], accuracy["U shuffled"]),
        ("WTTM minus TTM, late epochs", late["wttm, decay / 10"], late["ttm, decay / 10"]),
        (
            "entropy term",
            accuracy[["ttm", "ttm, decay / 10"]].mean(axis=1),
            accuracy[["kd", "kd, decay / 10"]].mean(axis=1),
        ),
    ):
        test = stats.ttest_rel(more, less)
        expected = tuple(test.confidence_interval(1 - 0.05 / 17))
        assert (contrasts[name]["low"], contrasts[name]["high"]) == pytest.approx(expected)
    assert {claim: one["verdict"] for claim, one in found.items()} == {
        **dict.fromkeys(("B1", "B2", "B6", "B8", "B12", "B13"), "not decided"),
        "B4": "holds",
    }
    for one in found.values():
        for limit in ("bfloat16", "all 50,000 training pictures", "the test part was not looked"):
            assert limit in one["note"]
        assert "the same validation pictures, with 1 other seed" in one["settings"]
        assert one["command"].startswith("python benchmarks/gpu.py train")


def test_notebook_9_judges_the_same_contrasts_in_the_same_scope():
    cells = json.loads((NOTEBOOKS / "09_does_it_hold.ipynb").read_text(encoding="utf-8"))["cells"]
    code = {cell["id"]: "".join(cell["source"]) for cell in cells}
    space = {"pair": ("resnet56", "resnet20"), "seeds": 5, "epochs": 10}
    exec(code["list-accuracy"] + "\n" + code["list-entropy"], space)
    table, row = (one for one in kept.tables(KEPT) if one.pair == space["pair"])
    judged = kept.judged(table)["name"]
    assert {name: kept.CONTRASTS[name] for name in judged} == space["CONTRASTS"]
    exec(code["verdicts"].partition("\n")[0], space)
    assert table.words["scope"] == space["scope"]  # so that the kept entry stands for its record
    exec(code["row-list"], space)
    place = {"KD as TTM": "KD x 10", "TTM as KD": "TTM / 10"}  # in the square of the other tables
    asked = [
        (claim, measure, *({place.get(arm, arm) for arm in arms} for arms in sides))
        for claim, measure, *sides in space["ROW_CONTRASTS"].values()
    ]
    judged = [kept.CONTRASTS[name] for name in kept.judged(row)["name"]]
    assert asked == [(claim, measure, *map(set, sides)) for claim, measure, *sides in judged]


def plan_table(seeds=3):
    """Rows as the plan cifar100-2x2 leaves them, with numbers of our own."""
    random, rows = np.random.default_rng(3), []
    arms = ("CE", "KD, wd 5e-4", "KD, wd 5e-5", "TTM, wd 5e-4", "TTM, wd 5e-5", "WTTM, wd 5e-5")
    for seed in range(seeds):
        for k, arm in enumerate(arms):
            row = {"key": f"{seed}{k}", "pair": "resnet32:resnet8", "arm": arm, "seed": seed}
            row |= {"part": "test", "epochs": 15, "precision": "float32", "weight_decay": 5e-4}
            row |= {"command": "ttm-lab plan cifar100-2x2 --execute", "date": "2026-12-01"}
            row |= {"hardware": "a processor", "diverged": np.nan}
            names = ["accuracy", "nll", "entropy", "train_accuracy", "train_nll"]
            names += ["rescaled_nll", "rescaled_train_nll"]
            row |= dict(zip(names, 0.4 + 0.05 * k + random.normal(0, 0.01, 7), strict=True))
            course = k + random.normal(0, 0.1, 15)
            rows.append(row | {"entropy_by_epoch": " ".join(f"{h:.5g}" for h in course)})
    return pd.DataFrame(rows)


def test_the_plan_s_table_counts_once_it_is_there(tmp_path):
    assert not kept.tables(tmp_path)
    rows = plan_table().to_dict("records")
    rows.append(rows[0] | {"seed": 3})  # a seed without all its arms
    rows.append(rows[1] | {"seed": 4, "accuracy": np.nan, "diverged": "at step 9"})
    pd.DataFrame(rows).to_csv(tmp_path / "cifar100-2x2.csv", index=False)
    scope = "CIFAR-100, resnet32 to resnet8, 3 seeds, 15 epochs, test part"
    found = {one["claim"]: one for one in kept.entries(tmp_path) if one["scope"] == scope}
    assert set(found) == {"B1", "B2", "B4", "B7", "B13"}
    wide = plan_table().pivot(index="seed", columns="arm")
    kd, ttm = (wide.xs(arm, axis=1, level="arm") for arm in ("KD, wd 5e-4", "TTM, wd 5e-5"))

    def interval(d):
        return tuple(stats.ttest_1samp(d, 0).confidence_interval(1 - 0.05 / 12))

    gap = [100 * (x["train_accuracy"] - x["accuracy"]) for x in (kd, ttm)]
    contrasts = {c["name"]: c for one in found.values() for c in one["contrasts"]}
    assert {c["contrasts"] for c in contrasts.values()} == {12}
    found_gap = contrasts["accuracy gap, KD minus TTM"]
    assert (found_gap["low"], found_gap["high"]) == pytest.approx(interval(gap[0] - gap[1]))
    nll = [x["rescaled_nll"] - x["rescaled_train_nll"] for x in (kd, ttm)]
    found_nll = contrasts["rescaled NLL gap, KD minus TTM"]
    assert (found_nll["low"], found_nll["high"]) == pytest.approx(interval(nll[0] - nll[1]))
    late = [
        x["entropy_by_epoch"].map(lambda text: np.mean([float(h) for h in text.split()[9:]]))
        for x in (kd, ttm)
    ]  # the rate first falls after 150 of 240, here after 9 of 15 epochs
    found_late = contrasts["TTM minus KD, late epochs"]
    assert (found_late["low"], found_late["high"]) == pytest.approx(interval(late[1] - late[0]))
    assert evidence.place(scope) == "CIFAR-100, short schedule"


def test_b14_compares_students_of_two_methods_with_those_of_one(tmp_path):
    plan_table().to_csv(tmp_path / "cifar100-2x2.csv", index=False)
    arms, random = ("KD, wd 5e-4", "KD, wd 5e-5", "TTM, wd 5e-5"), np.random.default_rng(0)
    rows = [(s, a, b, random.uniform(0.1, 0.3)) for s in range(3) for a in arms for b in arms]
    rows = pd.DataFrame(rows, columns=["seed", "arm", "next_arm", "divergence"])
    rows.to_csv(tmp_path / "cifar100-2x2_distances.csv", index=False)
    (found,) = (one for one in kept.entries(tmp_path) if one["claim"] == "B14")
    value = rows.set_index(["seed", "arm", "next_arm"])["divergence"].unstack(["arm", "next_arm"])
    for contrast, kd in zip(found["contrasts"], arms, strict=False):
        ttm = arms[2]
        between = (value[kd, ttm] + value[ttm, kd]) / 2
        excess = between - (value[kd, kd] + value[ttm, ttm]) / 2
        assert contrast["difference"] == pytest.approx(excess.mean())
        assert contrast["contrasts"] == 12 + 2


def test_the_row_by_the_papers_settings_is_judged_as_its_table_says():
    accuracy = 100 * pd.read_csv(KEPT / "cifar100_row.csv").pivot(
        index="seed", columns="arm", values="accuracy"
    )
    history = pd.read_csv(KEPT / "cifar100_row_history.csv")
    assert set(history["epoch"]) == set(range(1, 57))
    late = history[history["epoch"] > 35]  # the rate first drops at five eighths
    late = late.groupby(["seed", "arm"])["train_entropy"].mean().unstack()
    scope = "CIFAR-100, resnet56 to resnet20, 10 seeds, 56 epochs, test part"
    found = {one["claim"]: one for one in kept.entries(KEPT) if one["scope"] == scope}
    assert set(found) == {"B1", "B2", "B4", "B13"}
    contrasts = {c["name"]: c for one in found.values() for c in one["contrasts"]}
    for name, more, less in (
        ("TTM minus KD, as published", accuracy["ttm"], accuracy["kd"]),
        ("TTM minus KD, TTM's scale", accuracy["ttm"], accuracy["kd as ttm"]),
        ("TTM minus KD, KD's scale", accuracy["ttm as kd"], accuracy["kd"]),
        ("WTTM minus TTM, late epochs", late["wttm"], late["ttm"]),
    ):
        difference = more - less
        level = 1 - 0.05 / 9  # the scale belongs to no claim, and is looked at, too
        wanted = stats.ttest_1samp(difference, 0).confidence_interval(level)
        assert (contrasts[name]["low"], contrasts[name]["high"]) == pytest.approx(tuple(wanted))
    rows = kept.beside_the_paper(kept.tables(KEPT))
    rows = rows[rows["differs"].str.startswith("test part; bfloat16, epochs 56 (paper: 240)")]
    assert rows["method"].tolist() == ["student (plain training)", "KD", "TTM", "WTTM"]
    assert rows["runs"].tolist() == [5, 10, 10, 10]
    assert rows.set_index("method")["mean"]["TTM"] == pytest.approx(accuracy["ttm"].mean())
    # pictures of other sets were shown to the students of the first table alone
    scopes = [one["scope"] for one in kept.entries(KEPT) if one["claim"] == "C13"]
    assert len(scopes) == 2
    assert not any("56 epochs" in scope for scope in scopes)


def test_a_plan_that_has_just_begun_says_what_it_can(tmp_path):
    path = tmp_path / "cifar100-2x2.csv"
    plan_table(seeds=1).to_csv(path, index=False)
    found = [one for one in kept.entries(tmp_path) if one["scope"].startswith("CIFAR-100")]
    assert {one["verdict"] for one in found} == {"not decided"}  # one seed has no interval
    table = plan_table()
    table[table["arm"].isin(["CE", "WTTM, wd 5e-5"])].to_csv(path, index=False)
    assert kept.entries(tmp_path) == kept.published()


@pytest.mark.parametrize("wrong", ["key\n", "twice"])
def test_a_kept_table_that_is_none_is_left_out_and_named(tmp_path, wrong):
    twice = pd.concat([plan_table(), plan_table()]).to_csv(index=False)
    (tmp_path / "cifar100-2x2.csv").write_text(twice if wrong == "twice" else wrong)
    (tmp_path / "cifar100_gpu.csv").write_bytes(b"\xff\x00")
    with pytest.warns(UserWarning, match="is left out") as told:
        assert kept.entries(tmp_path) == kept.published()
    assert {str(w.message).split(" is left")[0].rsplit("/", 1)[-1] for w in told} == {
        *("cifar100-2x2.csv", "cifar100_gpu.csv")
    }


def test_a_kept_entry_stands_for_a_notebook_s_record_of_the_same_scope(results):
    mine = analysis.contrasts({"a": exactly(0.5, 0.1, 5)}).assign(quantity="entropy")
    evidence.record("B4", table(*ENTROPY), scope="digits")
    one = evidence.entry("B4", mine, scope="digits", command="the command", teachers=2)
    rows = evidence.collect(kept=[one]).query("id == 'B4'")
    assert rows[["measure", "command", "teachers"]].values.tolist() == [["a", "the command", 2]]
    plain = stats.ttest_1samp(exactly(0.5, 0.1, 5), 0).confidence_interval(0.95)
    assert tuple(rows[["alone_low", "alone_high"]].iloc[0]) == pytest.approx(tuple(plain))


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.1, 0.2, 0.05, "holds"),
        (-0.2, -0.1, 0.05, "does not hold"),
        (-0.1, 0.1, 0.05, "not decided"),
        (-0.01, 0.06, 0.05, "not decided"),
        (0.0, 0.1, 0.05, "not decided"),
        (-0.05, 0.05, 0.05, "negligible"),
        (0.01, 0.04, 0.05, "negligible"),
        (-0.04, -0.01, 0.05, "negligible"),
        (0.01, 0.04, 0.0, "holds"),
        (0.01, 0.06, 0.05, "holds"),
        (0.2, 0.2, 0.05, "not decided"),
        (float("nan"), float("nan"), 0.05, "not decided"),
        (-float("inf"), float("inf"), 0.05, "not decided"),
    ],
)
def test_direction(low, high, margin, verdict):
    assert evidence.direction_verdict(low, high, margin) == verdict


def test_direction_with_ends_swapped_or_without_a_margin():
    with pytest.raises(ValueError, match="swap"):
        evidence.direction_verdict(0.2, 0.1)
    with pytest.raises(ValueError, match="margin=-1"):
        evidence.direction_verdict(0.1, 0.2, -1)


def test_exact():
    assert evidence.exact_verdict(-1e-15, 1e-14) == "holds"
    assert evidence.exact_verdict(2e-14, 1e-14) == "does not hold"
    assert evidence.exact_verdict(float("nan"), 1e-14) == "does not hold"
    with pytest.raises(ValueError, match="tolerance"):
        evidence.exact_verdict(0.0, float("nan"))


def test_notebook_7_records_a_pair_of_the_paper_for_that_pair_alone(results):
    cells = json.loads(next(NOTEBOOKS.glob("07_*.ipynb")).read_text(encoding="utf-8"))["cells"]
    code = {cell["id"]: "".join(cell["source"]) for cell in cells}
    scores = {"CE": [70.0, 70.4, 70.2], "KD": [71.0, 71.3, 71.1], "TTM": [73.0, 73.4, 73.1]}
    scores["WTTM"] = [73.1, 73.3, 73.3]
    rows = [(m, s, v / 100) for m, values in scores.items() for s, v in enumerate(values)]
    space = {
        **{"analysis": analysis, "evidence": evidence, "paper": paper, "pd": pd},
        **{"profile": "paper", "max_steps": None, "seeds": 3},
        **{"teacher": "resnet56", "student": "resnet20"},
        "data": SimpleNamespace(name="cifar100"),
        "measured": pd.DataFrame(rows, columns=["method", "seed", "accuracy"]),
    }
    exec(code["differences"] + "\nfound = differences(measured)", space)
    exec(code["record"] + "\n" + code["record-claims"], space)
    found = evidence.collect().set_index("id").loc[["B1", "B2"]]
    assert list(found["verdict_in_scope"]) == [
        "holds on CIFAR-100, resnet56 to resnet20, 3 seeds",
        "not decided on CIFAR-100, resnet56 to resnet20, 3 seeds",
    ]
    drawn = space["found"].set_index("name").loc["TTM minus KD"]
    interval = stats.ttest_rel(scores["TTM"], scores["KD"]).confidence_interval(1 - 0.05 / 6)
    assert tuple(found.loc["B1", ["low", "high"]]) == pytest.approx(tuple(interval))
    assert tuple(drawn[["low", "high"]]) == pytest.approx(tuple(interval))


def test_b10_asks_whether_ttm_stays_within_a_few_per_cent_of_kd(tmp_path):
    rows = [
        {
            "teacher": "a",
            "student": "b",
            "round": r,
            "method": m,
            "ms": ms + 0.1 * r,
            "megabytes": 4,
        }
        for r in range(5)
        for m, ms in (("KD", 100.0), ("TTM", 102.0 + r % 2), ("WTTM", 108.0 + r % 2))
    ]
    about = {"command": "the command", "date": "2026-12-01", "hardware": "a processor"}
    pd.DataFrame(rows).assign(**about).to_csv(tmp_path / "step_cost.csv", index=False)
    (found,) = (one for one in kept.entries(tmp_path) if one["claim"] == "B10")
    ttm, wttm = found["contrasts"]
    assert ttm["difference"] == pytest.approx(5 - 2.4, abs=0.02)
    assert ttm["low"] > 0 > wttm["high"]
    assert found["verdict"] == "does not hold"
    assert "1.000 and 1.000 times KD's" in found["note"]
    assert evidence.place(found["scope"]) == "CIFAR-100, short schedule"


def test_students_of_a_language_model_are_judged_by_size(tmp_path):
    assert not kept.sequences(tmp_path)
    noise = np.random.default_rng(0).normal(0, 0.001, (3, 2, 5, 2))
    mean = {"ce": (3.0, 3.0), "kd": (2.0, 3.1), "ttm": (3.2, 3.0), "ttm4": (5.0, 4.0)}
    mean["wttm"] = 3.4, 3.2  # late entropy, cross-entropy: more entropy than TTM, worse than KD
    rows = [
        {"size": size, "arm": arm, "seed": seed}
        | dict(zip(("late_entropy", "cross_entropy"), mean[arm] + noise[seed, s, a], strict=True))
        for s, size in enumerate(("quarter", "half"))
        for a, arm in enumerate(mean)
        for seed in range(3)
        if size == "quarter" or seed < 2
    ]
    rows.append({"size": "teacher", "arm": "teacher", "seed": 0})
    pd.DataFrame(rows).to_csv(tmp_path / "stories_tokens.csv", index=False)
    words = ("text", "rule", "date", "machine", "training", "command")
    (tmp_path / "stories_tokens.json").write_text(json.dumps({word: word for word in words}))
    found = {(one["claim"], one["scope"]): one for one in kept.sequences(tmp_path)}
    quarter = "sequences, stories260K to a quarter of it, 3 seeds"
    half = "sequences, stories260K to a half of it, 2 seeds"
    assert {scope for _, scope in found} == {quarter, half}
    assert found["B4", quarter]["verdict"] == "holds"
    assert found["C14", quarter]["verdict"] == "does not hold"
    assert found["C14", quarter]["because"] == "cross-entropy, KD minus WTTM"
    first = found["C14", quarter]["contrasts"][0]
    table = pd.DataFrame(rows).query("size == 'quarter'").pivot(index="seed", columns="arm")
    gap = table["cross_entropy"]["kd"] - table["cross_entropy"]["ttm"]
    half = stats.t.isf(0.025 / 5, 2) * gap.std() / np.sqrt(3)  # five are looked at
    assert first["low"] == pytest.approx(gap.mean() - half)
    assert evidence.place(quarter) == "sequences"
