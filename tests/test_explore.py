"""Explorers: what a control does to picture and numbers, held against closed forms in float64."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from scipy import special, stats

from ttm_lab.course import corruptions, explore, figures
from ttm_lab.course.outputs import Outputs


def controls(box):
    """The controls of an explorer by their label."""
    return {control.description: control for control in box.children[0].children}


def numbers(box):
    """The numbers below the picture, by name."""
    cells = re.findall(
        r"<div[^>]*>([^<]+)</div><div[^>]*>([^<]+)</div></div>", box.children[-1].value
    )
    return {name.replace("&#x27;", "'"): value for name, value in cells}


def floats(text):
    return [float(x) for x in re.findall(r"[-+]?\d+\.?\d*", text.replace("−", "-"))]


def picture(box):
    return box.children[-2].value


@pytest.fixture(scope="module")
def teacher():
    random = np.random.default_rng(0)
    labels = np.arange(30) % 10
    logits = random.normal(0, 2, (30, 10))
    logits[np.arange(30), labels] += 4
    images = random.random((30, 1, 8, 8))
    return logits, labels, [str(k) for k in range(10)], images


def outputs(seeds=3):
    random = np.random.default_rng(0)
    labels = np.arange(50) % 5
    rows, logits = [], []
    for method, T in (("teacher", np.nan), ("CE", np.nan), ("KD", 4.0), ("TTM", 4.0)):
        for seed in range(1 if method == "teacher" else seeds):
            rows.append({"method": method, "temperature": T, "distill_weight": T, "seed": seed})
            logits.append(random.normal(0, 1, (50, 5)) + 1.5 * np.eye(5)[labels])
    models, names = pd.DataFrame(rows), ("a", "b", "c", "d", "e")
    return Outputs(models, np.stack(logits), labels, names, np.arange(50))


def test_a_control_redraws_the_picture_and_its_words():
    drawn = []

    def figure(T, k):
        drawn.append((T, k))
        made, ax = figures.plt.subplots(figsize=(3, 2))
        ax.bar([0], [T])
        return made

    box = explore.panel(
        figure,
        lambda T, k: {"temperature": f"{T:.2f}", "picture <number>": str(k)},
        {
            "T": explore.temperature_slider(0.25, 20, 4.0),
            "k": explore.linear_slider("picture", 0, 9, 2, 1),
        },
        {"last": lambda: setattr(box.children[0].children[1], "value", 9)},
    )
    temperature, number = box.children[0].children
    assert drawn == [(4.0, 2)]
    before = picture(box)
    temperature.index += 1
    assert drawn[-1][0] == 4 * 2 ** (1 / 8)
    number.value = 7
    assert drawn[-1][1] == 7
    assert numbers(box) == {"temperature": "4.36", "picture &lt;number&gt;": "7"}
    assert (
        'alt="temperature T 4.36; picture 7; temperature 4.36; picture &lt;number&gt; 7"'
        in picture(box)
    )
    assert picture(box) != before
    assert 'width="390"' in picture(box)  # the size stays as the picture changes
    assert 'height="260"' in picture(box)
    box.children[1].children[0].click()
    assert drawn[-1][1] == 9


def test_pyplot_does_not_know_the_pictures(teacher, monkeypatch):
    """A slider moves while a cell runs, and a cell's end shows and closes what pyplot knows."""
    figures.plt.close("all")  # what other tests left
    known, draw = [], figures.to_png

    def to_png(figure, **options):
        known.append(figures.plt.get_fignums())
        return draw(figure, **options)

    monkeypatch.setattr(figures, "to_png", to_png)
    for make in (explore.temperature_path, explore.arrows, explore.triangle, explore.decomposition):
        make()
    for make in (explore.temperature, explore.sample_weights):
        make(*teacher)
    explore.students(outputs())
    explore.corruption(
        {"CE": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))},
        torch.rand(8, 1, 8, 8),
        range(8),
    )
    assert known == [[]] * 8


def test_the_temperature_slider_doubles_in_eight_steps_and_meets_whole_powers():
    values = [value for _, value in explore.temperature_slider(0.25, 20, 4.0).options]
    assert values[0] == 0.25
    assert values[-1] == 20
    assert {0.5, 1, 2, 4, 8, 16} <= set(values)
    assert np.allclose(np.array(values[1:-1]) / values[:-2], 2 ** (1 / 8))


def test_temperature_numbers_follow_the_slider(teacher):
    logits, labels, names, images = teacher
    box = explore.temperature(logits, labels, names, images)
    control = controls(box)
    control["picture"].value = 3
    for T in (0.25, 1.0, 4.0, 20.0):
        control["temperature T"].value = T
        p, p_t = special.softmax(logits[3]), special.softmax(logits[3] / T)
        found = numbers(box)
        assert floats(found["entropy of p_T"])[0] == pytest.approx(stats.entropy(p_t), abs=6e-4)
        assert floats(found["top probability"])[0] == pytest.approx(p_t.max(), abs=6e-4)
        U = np.sum(p ** (1 / T))
        assert floats(found["power sum U of p, exponent 1/T"])[0] == pytest.approx(U, abs=6e-4)


def test_buttons_go_to_the_most_and_least_certain_picture(teacher):
    box = explore.temperature(*teacher)
    top = special.softmax(teacher[0], -1).max(-1)
    most, least = box.children[1].children
    least.click()
    assert controls(box)["picture"].value == top.argmin()
    most.click()
    assert controls(box)["picture"].value == top.argmax()


@pytest.mark.parametrize("make", [explore.temperature, explore.sample_weights])
def test_colour_pictures_and_none_are_shown_and_a_wrong_count_is_named(teacher, make):
    logits, labels, names, _ = teacher
    colour = np.zeros((30, 3, 32, 32), dtype=np.uint8)
    assert picture(make(logits, labels, names, colour)) != picture(make(logits, labels, names))
    with pytest.raises(ValueError, match="'images': 29"):
        make(logits, labels, names, colour[1:])
    with pytest.raises(ValueError, match="labels run from -1 to 8"):
        make(logits, labels - 1, names)


def test_descents_end_where_the_theory_says():
    box = explore.triangle()
    control = controls(box)
    v = np.array([3.0, 1.0, 0.0])
    control["teacher's 7"].value, control["teacher's 1"].value = v[:2]
    for start in control["student starts"].options:
        control["student starts"].value = start
        for T in (2.0, 4.0):
            control["temperature T"].value = T
            found = numbers(box)
            p, p_t = special.softmax(v), special.softmax(v / T)
            for name, goal in {"KD": p, "TTM": p_t, "WTTM": p_t}.items():
                assert np.allclose(floats(found[f"{name} ends at"]), goal, atol=2e-3), (name, T)


def test_the_terms_add_up_with_the_right_entropy_only():
    box = explore.decomposition()
    control = controls(box)
    v, z = np.array([4.0, 2.0, 0.0]), np.array([0.0, 1.0, 2.5])
    for T, sharpness in ((1.0, 1.0), (2.0, 0.5), (4.0, 2.0), (8.0, 4.0)):
        control["temperature T"].value, control["student sharpness"].value = T, sharpness
        p_t, q = special.softmax(v / T), special.softmax(sharpness * z)
        for entropy in control["entropy used"].options:
            control["entropy used"].value = entropy
            found = {name: floats(value)[0] for name, value in numbers(box).items()}
            assert found["D(p_T || q)"] == pytest.approx(stats.entropy(p_t, q), abs=6e-4)
            right = entropy == "Rényi, order 1/T" or T == 1
            assert (abs(found["left over"]) < 1e-3) == right, (T, entropy)


def test_weights_are_power_sums(teacher):
    box = explore.sample_weights(*teacher)
    for T in (1.0, 4.0, 64.0):
        controls(box)["temperature T"].value = T
        U = np.sum(special.softmax(teacher[0], -1) ** (1 / T), axis=-1)
        found = numbers(box)
        for name, value in (("smallest", U.min()), ("mean", U.mean()), ("largest", U.max())):
            assert floats(found[f"{name} weight"])[0] == pytest.approx(value, abs=6e-4)


def test_two_kinds_of_student_are_compared_in_pairs_over_seeds():
    made = outputs()
    box = explore.students(made)
    control = controls(box)
    assert control["student A"].options == ("CE", "KD, T = 4, weight 4", "TTM, T = 4, weight 4")
    right = (made.logits.argmax(-1) == made.labels).mean(-1)  # teacher, then three seeds a kind
    found = numbers(box)
    gaps = 100 * (right[1:4] - right[7:10])
    half = stats.t.ppf(0.975, 2) * gaps.std(ddof=1) / np.sqrt(3)
    assert floats(found["A minus B"]) == pytest.approx([gaps.mean()], abs=6e-3)
    interval = floats(found["95 % interval, 3 seeds"])
    assert interval == pytest.approx([gaps.mean() - half, gaps.mean() + half], abs=6e-3)
    control["seeds"].value = "1"
    found = numbers(box)
    assert floats(found["A: accuracy"])[0] == pytest.approx(100 * right[2], abs=0.06)
    assert floats(found["A minus B"]) == pytest.approx([gaps[1]], abs=6e-3)
    assert found["95 % interval, 1 seed"] == "–"


def test_one_kind_of_student_cannot_be_compared():
    made = outputs()
    kept = made.models["method"].isin(["teacher", "KD"]).to_numpy()
    few = Outputs(
        made.models[kept], made.logits[kept], made.labels, made.class_names, made.pictures
    )
    with pytest.raises(ValueError, match="two kinds"):
        explore.students(few)


def test_names_with_markup_or_dollars_stay_text(teacher, monkeypatch):
    """In pictures, which are asked for their texts, and in the words around them."""
    names = ["<b>3</b>", r"$\frac$", "$a_b$"]
    texts, draw = [], figures.to_png

    def to_png(figure, **options):
        texts.extend(text.get_text() for text in figure.findobj(Text))
        return draw(figure, **options)

    monkeypatch.setattr(figures, "to_png", to_png)
    logits, labels, _, images = teacher
    few = (logits[:, :3], labels % 3, names)
    boxes = [make(names) for make in (explore.temperature_path, explore.arrows, explore.triangle)]
    boxes += [explore.temperature(*few), explore.temperature(*few, images)]
    boxes += [explore.sample_weights(*few), explore.sample_weights(*few, images)]
    made = outputs()
    made.models["method"] = made.models["method"].replace({"KD": names[0], "TTM": names[1]})
    boxes.append(explore.students(made))
    for name in names:
        assert sum(name.replace("$", r"\$") in text for text in texts) >= 5, name
    for box in boxes:
        for shown in (picture(box), box.children[-1].value):
            assert "<b>" not in shown


def test_transfer_shows_the_pair_and_its_interval():
    random, rows = np.random.default_rng(0), []
    for name in ("near", "far"):
        for arm in ("pixels", "CE", "KD", "TTM", "teacher"):
            for seed in range(1 if arm in ("pixels", "teacher") else 3):
                for n in (1, 20):
                    row = {"dataset": name, "arm": arm, "seed": seed, "pictures": n, "draw_sd": 2.0}
                    rows.append(row | {"accuracy": random.uniform(20, 60)})
    table = pd.DataFrame(rows)
    box = explore.transfer(table)
    control = controls(box)
    assert set(control["student A"].options) == {"CE", "KD", "TTM"}
    control["pictures"].value, control["of each class"].value = "far", 20
    chosen = table[(table["dataset"] == "far") & (table["pictures"] == 20)]
    wide = chosen.pivot(index="seed", columns="arm", values="accuracy")
    gaps = wide["TTM"] - wide["KD"]
    half = stats.t.isf(0.025, 2) * gaps.std() / 3**0.5
    found = numbers(box)
    assert floats(found["A: TTM"]) == pytest.approx([wide["TTM"].mean()], abs=0.06)
    assert floats(found["difference"]) == pytest.approx([gaps.mean()], abs=6e-3)
    ends = [float(x) for x in found["95 % interval, 3 seeds"].split()[::2][:2]]
    assert ends == pytest.approx([gaps.mean() - half, gaps.mean() + half], abs=0.06)
    assert found["another draw of pictures moves"] == "2.0 points"


# Notebook 12


def test_corruption_says_what_the_network_makes_of_the_pictures_at_this_strength():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    images, labels = torch.rand(40, 1, 8, 8), np.arange(40) % 10
    box = explore.corruption({"KD": network}, images, labels)
    before = picture(box)
    controls(box)["corruption"].value = "contrast"
    controls(box)["strength"].value = 20
    shown = numbers(box)
    assert floats(shown["strength in its unit"]) == [corruptions.RANGES["contrast"][1]]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    with torch.no_grad():
        q = network(mean + 0.05 * (images - mean)).double().softmax(-1).numpy()
    right = 100 * (q.argmax(1) == labels).mean()
    assert floats(shown["KD: accuracy"])[0] == pytest.approx(right, abs=0.06)
    assert floats(shown["KD: confidence"])[0] == pytest.approx(100 * q.max(1).mean(), abs=0.06)
    entropy = -(q * np.log(q)).sum(1).mean()
    assert floats(shown["KD: entropy"])[0] == pytest.approx(entropy, abs=0.006)
    assert picture(box) != before


def test_a_temperature_moves_the_auroc_of_all_scores_but_the_largest_logit():
    random = np.random.default_rng(0)
    sets = {"known": 3.0, "signs": 1.5, "cloth": 2.5}
    logits = {arm: {s: random.normal(0, w, (80, 6)) for s, w in sets.items()} for arm in "AB"}
    box = explore.unknowns(logits)
    move = controls(box)
    move["student"].value, move["unknown"].value = "B", "cloth"
    z = {name: logits["B"][name] for name in ("known", "cloth")}
    for order in (0.5, 1.0):
        move["score"].value, move["Rényi order"].value = "Rényi entropy", order
        for T in (1.0, 4.0):
            move["temperature T"].value = T
            q = {name: special.softmax(x / T, axis=1) for name, x in z.items()}
            scores = {  # the logarithm of the sum of powers has the entropy's order
                name: stats.entropy(p, axis=1) if order == 1 else (p**order).sum(axis=1)
                for name, p in q.items()
            }
            won = stats.mannwhitneyu(scores["cloth"], scores["known"]).statistic / 80**2
            assert floats(numbers(box)["AUROC"])[0] == pytest.approx(won, abs=6e-4)
            mean = stats.entropy(q["known"], axis=1).mean()
            assert floats(numbers(box)["entropy of known"])[0] == pytest.approx(mean, abs=6e-4)
    move["score"].value = "largest logit"
    assert numbers(box)["AUROC"] == numbers(box)["AUROC at T = 1"]
    move["score"].value = "energy"
    assert numbers(box)["AUROC"] != numbers(box)["AUROC at T = 1"]
