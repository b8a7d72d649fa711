import json

import numpy as np
import pytest
import torch

from ttm_lab import paper
from ttm_lab.course import evidence


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
    for claim_id, first, second in [("B1", "TTM", "KD"), ("B2", "WTTM", "TTM")]:
        d = difference(first, second)
        text = f"higher in {(d > 0).sum()} of {len(d)} pairs, mean {d.mean():+.2f} points"
        assert claims[claim_id]["paper_value"] == text
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


def test_record_is_collected_with_its_claim(results):
    evidence.record(
        "B4",
        torch.tensor(0.5),
        low=np.float32(0.25),
        high=0.75,
        unit="nats",
        verdict="holds",
        scope="digits",
        measure="TTM minus KD",
    )
    table = evidence.collect()
    assert list(dict.fromkeys(table["id"])) == list(evidence.claims())
    row = table.set_index("id").loc["B4"]
    assert (row["measured"], row["low"], row["high"]) == (0.5, 0.25, 0.75)
    assert row["verdict_in_scope"] == "holds on digits"
    assert row["notebook"] == "01_example"
    assert set(table[table["id"] != "B4"]["verdict_in_scope"]) == {"not run"}


def test_recording_again_replaces_and_another_measure_adds(results):
    for value in (1.0, 2.0):
        evidence.record("A2", value, verdict="holds", scope="float64", measure="one")
    evidence.record("A2", 3.0, verdict="holds", scope="float64", measure="two")
    evidence.record("A2", 4.0, verdict="holds", scope="float64", measure="two", notebook="02_b")
    rows = evidence.collect(results).query("id == 'A2'")
    assert list(rows["measured"]) == [2.0, 3.0, 4.0]
    assert set(rows["verdict_in_scope"]) == {"holds (float64)"}


def test_file_is_plain_json_without_nan(results):
    path = evidence.record(
        "B6", 0.1, low=float("nan"), high=float("nan"), verdict="not decided", scope="digits"
    )
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["low"] is None
    assert [p.name for p in results.iterdir()] == [path.name]


def test_notebook_running_in_jupyterlab_is_named(results, monkeypatch):
    monkeypatch.delenv("TTM_LAB_NOTEBOOK")
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/03_from_kd_to_ttm.ipynb")
    path = evidence.record("A2", 0.0, verdict="holds", scope="float64")
    assert json.loads(path.read_text())["notebook"] == "03_from_kd_to_ttm"


@pytest.mark.parametrize(
    ("claim", "measured", "verdict", "scope", "message"),
    [
        ("C1", 1.0, "holds", "digits", "choose one of A1"),
        ("B4", 1.0, "true", "digits", "choose one of holds"),
        ("B4", 1.0, "holds", " ", "scope is empty"),
        ("B4", float("nan"), "holds", "digits", "not decided"),
        ("B4", None, "does not hold", "digits", "not decided"),
        ("B1", 1.0, "holds", "digits", "cannot decide B1, a claim about CIFAR-100"),
        ("B9", 1.0, "does not hold", "CIFAR-100", "a claim about ImageNet"),
    ],
)
def test_what_cannot_be_evidence_is_refused(results, claim, measured, verdict, scope, message):
    with pytest.raises(ValueError, match=message):
        evidence.record(claim, measured, verdict=verdict, scope=scope)
    assert not results.exists()


def test_claim_about_one_data_set_may_be_seen_elsewhere_and_decided_there(results):
    evidence.record("B1", 1.0, verdict="not decided", scope="digits")
    evidence.record("B1", 1.0, verdict="holds", scope="CIFAR-100, 2 pairs", measure="two pairs")
    verdicts = evidence.collect().query("id == 'B1'")["verdict_in_scope"]
    assert list(verdicts) == ["not decided on digits", "holds on CIFAR-100, 2 pairs"]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.2, "holds"),
        (-0.2, -0.1, "does not hold"),
        (-0.1, 0.1, "not decided"),
        (0.0, 0.1, "not decided"),
        (float("nan"), float("nan"), "not decided"),
        (-float("inf"), float("inf"), "not decided"),
    ],
)
def test_direction(low, high, verdict):
    assert evidence.direction_verdict(low, high) == verdict


def test_direction_with_ends_swapped():
    with pytest.raises(ValueError, match="swap"):
        evidence.direction_verdict(0.2, 0.1)


def test_exact():
    assert evidence.exact_verdict(-1e-15, 1e-14) == "holds"
    assert evidence.exact_verdict(2e-14, 1e-14) == "does not hold"
    assert evidence.exact_verdict(float("nan"), 1e-14) == "does not hold"
    with pytest.raises(ValueError, match="tolerance"):
        evidence.exact_verdict(0.0, float("nan"))
