"""Plans of runs: what they cost, what each leaves behind, and what is not made again."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from ttm_lab.analysis import predict
from ttm_lab.course import cli, experiments, plans
from ttm_lab.course.experiments import Plan, Run, execute, overview, unpack_correct
from ttm_lab.course.paper import mean_power_sum
from ttm_lab.data import load_dataset
from ttm_lab.models import create_model
from ttm_lab.training import Settings, Trained, distill

PAIR = "cnn_small:cnn_small"
SHORT = {"epochs": 1, "max_steps": 2, "batch_size": 256}
KD = Settings("cnn_small", "kd", 4.0, 0.9, 0.1, name="KD", **SHORT)
WTTM = Settings("cnn_small", "wttm", 4.0, 3.6, 0.1, name="WTTM", **SHORT)
OF_TODAY = ["date", "commit"]  # midnight, and a commit, may come while a test runs


def source(pair: str, seed: int, root: str | None):
    """An untrained teacher and the digits; in ``root``, if given, it is killed the first time."""
    if root is not None:
        mark = Path(root) / f"{seed}.killed"
        if seed == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    model = create_model(pair.split(":")[0], 10, seed=7)
    return Trained(model, replace(KD, name="teacher"), 0, pd.DataFrame()), load_dataset("digits")


def make_plan(settings=(KD, WTTM), seeds=(0, 1), name="trial", **options) -> Plan:
    runs = tuple(Run(PAIR, s, seed, s.name == "WTTM") for seed in seeds for s in settings)
    return Plan(name, runs, source, ["digits", 7], (1078, 1, 8, 8, 10), **options)


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TTM_LAB_RUNS", str(tmp_path / "runs"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_each_run_leaves_a_row_that_says_what_it_learned(tmp_path):
    plan = make_plan(seeds=(3,))
    ((group, failed),) = execute(plan, results=tmp_path, workers=1)
    assert (group, failed) == (list(plan.runs), {})
    rows = plan.rows(tmp_path).set_index("arm")
    assert list(rows.index) == ["KD", "WTTM"]

    teacher, data = source(PAIR, 3, None)
    mean = mean_power_sum(teacher, data, 4.0)
    alone = distill(teacher, data, replace(WTTM, distill_weight=3.6 / mean), seed=3, progress=False)
    row, logits = rows.loc["WTTM"], predict(alone.model, data.test).astype(float)
    labels = data.test.labels.numpy()
    correct = logits.argmax(1) == labels
    assert row["distill_weight"] == pytest.approx(3.6 / mean)
    assert np.array_equal(unpack_correct(row["correct"], row["pictures"]), correct)
    assert row["accuracy"] == row["rescaled_accuracy"] == correct.mean()
    q = softmax(logits, axis=1)
    rescaled = softmax(logits / row["fitted_temperature"], axis=1)
    truth = np.arange(len(labels)), labels
    assert row["nll"] == pytest.approx(-np.log(q[truth]).mean())
    assert row["rescaled_nll"] == pytest.approx(-np.log(rescaled[truth]).mean())
    assert row["entropy"] == pytest.approx(-(q * np.log(q)).sum(1).mean())
    train = softmax(predict(alone.model, data.train).astype(float), axis=1)
    chosen = train[np.arange(len(train)), data.train.labels.numpy()]
    assert row["train_nll"] == pytest.approx(-np.log(chosen).mean())
    by_epoch = alone.history["validation_entropy"]
    assert [float(x) for x in str(row["entropy_by_epoch"]).split()] == pytest.approx(
        by_epoch, rel=1e-4
    )
    assert row["command"] == "ttm-lab plan trial --execute"
    assert f"torch={torch.__version__}".split("+")[0] in row["versions"]
    assert (tmp_path / "runs" / "trial" / row["run"]).is_dir()
    assert {"date", "hardware", "commit", "brier", "ece"} <= set(rows.columns)


def test_what_has_a_row_or_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    plan = make_plan()
    first = make_plan(seeds=(0,))
    assert len(list(execute(plan, seeds=[0], results=tmp_path, workers=1))) == 1
    rows = plan.rows(tmp_path).drop(columns=OF_TODAY)
    assert list(overview(plan, results=tmp_path)["done"]) == [True, True, False, False]

    monkeypatch.setattr("ttm_lab.training.Student.step", None)  # nothing can be trained any more
    assert list(execute(first, results=tmp_path, workers=1)) == []
    plan.table(tmp_path).unlink()  # a clone without the rows, but with the runs
    assert [failed for _, failed in execute(first, results=tmp_path, workers=1)] == [{}]
    pd.testing.assert_frame_equal(plan.rows(tmp_path).drop(columns=OF_TODAY), rows)


@pytest.mark.parametrize("engine", ["joblib", "ray"])
def test_side_by_side_and_killed_on_the_way_gives_the_rows_of_one_after_the_other(
    engine, tmp_path, request
):
    options = {"workers": 2} if engine == "joblib" else {"engine": "ray"}
    if engine == "ray":
        request.getfixturevalue("cluster")
    plan = make_plan()
    list(execute(plan, results=tmp_path / "loop", workers=1))
    killed = make_plan(name="other")
    ended = list(execute(killed, results=tmp_path, root=str(tmp_path), **options))
    assert (tmp_path / "1.killed").exists()
    assert [failed for _, failed in ended] == [{}, {}]
    first, second = plan.rows(tmp_path / "loop"), killed.rows(tmp_path)
    other = ["command", *OF_TODAY]
    pd.testing.assert_frame_equal(first.drop(columns=other), second.drop(columns=other))


def test_a_failed_run_is_named_and_a_diverged_one_is_a_result(tmp_path):
    never = replace(KD, model="resnet8", name="too large")  # digits of 8x8 are too small for it
    away = replace(KD, learning_rate=1e30, max_steps=5, name="far too fast")
    plan = make_plan([KD, never, away], seeds=(0,))
    ((group, failed),) = execute(plan, results=tmp_path, workers=1)
    assert len(group) == 3
    assert list(failed) == ["too large"]
    rows = plan.rows(tmp_path).set_index("arm")
    assert list(rows.index) == ["KD", "far too fast"]
    assert np.isnan(rows.loc["far too fast", "accuracy"])
    assert "far too fast, seed 0" in rows.loc["far too fast", "diverged"]
    assert np.isnan(rows["diverged"].map(lambda x: np.nan if x != x else 1)["KD"])
    ((group, _),) = execute(plan, results=tmp_path, workers=1)
    assert [run.settings.name for run in group] == ["too large"]  # alone is tried again


def test_a_source_that_fails_names_all_runs_of_its_group(tmp_path):
    plan = make_plan()
    plan = replace(plan, runs=tuple(run._replace(pair="nobody:cnn_small") for run in plan.runs))
    ended = list(execute(plan, results=tmp_path, workers=1))
    assert [list(failed) for _, failed in ended] == [["KD", "WTTM"]] * 2
    assert all("nobody" in message for _, failed in ended for message in failed.values())
    assert not plan.table(tmp_path).exists()


def test_a_row_is_known_by_all_that_decides_it_and_not_by_its_label(monkeypatch):
    plan, run = make_plan(), make_plan().runs[0]
    others = [
        run._replace(seed=5),
        run._replace(by_mean_weight=True),
        run._replace(settings=replace(KD, learning_rate=0.1)),
        run._replace(settings=replace(KD, method="ttm")),
    ]
    keys = {plan.key(r) for r in (run, *others)}
    keys |= {replace(plan, part="validation").key(run), replace(plan, known_by="other").key(run)}
    assert plan.key(run._replace(settings=replace(KD, name="another name"))) == plan.key(run)
    monkeypatch.setattr(experiments, "NUMERICS", -1)
    assert len(keys | {plan.key(run)}) == 8


def test_costs_are_measured_and_grow_with_the_steps(tmp_path):
    long = replace(KD, max_steps=None, epochs=30, name="long")
    table = overview(make_plan([KD, long], seeds=(0,)), results=tmp_path)
    assert list(table["arm"]) == ["KD", "long"]
    assert (table["minutes"] > 0).all()
    short, much = table["minutes"]
    assert much / short == pytest.approx(30 * 5 / 2)  # ceil(1078 / 256) batches an epoch


def test_a_file_that_is_no_table_of_runs_is_named(tmp_path):
    (tmp_path / "trial.csv").write_text("method,seed\nKD,0\n")
    with pytest.raises(ValueError, match=r"trial\.csv is no table of runs"):
        make_plan().rows(tmp_path)


def test_the_command_prints_a_plan_and_then_runs_what_is_left(tmp_path, monkeypatch, capsys):
    never = replace(KD, model="resnet8", name="too large")
    monkeypatch.setitem(plans.PLANS, "trial", lambda: make_plan([KD], seeds=(0, 1)))
    monkeypatch.setitem(plans.PLANS, "both", lambda: make_plan([KD, never], seeds=(0, 1)))
    monkeypatch.setattr(experiments, "find_root", lambda: tmp_path)  # its data/results are used
    assert cli.main(["plan", "trial"]) == 0
    assert "0 of 2 are done" in capsys.readouterr().out
    assert cli.main(["plan", "both", "--execute", "--jobs", "1", "--seeds", "0"]) == 1
    shown = capsys.readouterr()
    assert "cnn_small:cnn_small, seed 0: 1 of 2 runs" in shown.out
    assert "too large, seed 0, failed: ValueError" in shown.err
    assert cli.main(["plan", "trial"]) == 0
    assert "1 of 2 are done" in capsys.readouterr().out
    assert cli.main(["plan", "trail"]) == 2
    assert "there is no plan 'trail'" in capsys.readouterr().err
