import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from ttm_lab import analysis, paper
from ttm_lab.course import evidence
from ttm_lab.files import find_root

NOTEBOOKS = find_root(__file__) / "notebooks"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("TTM_LAB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("TTM_LAB_NOTEBOOK", "01_example")
    return tmp_path / "results"


def test_claims_are_complete_and_in_order():
    claims = evidence.claims()
    assert list(claims) == [f"A{k}" for k in range(1, 9)] + [f"B{k}" for k in range(1, 15)]
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
    pooled = paper.pooled_difference("WTTM", "TTM")
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
    assert margins == {"accuracy": 0.3, "nll": 0.02, "entropy": 0.05, "ece": 0.01}


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
