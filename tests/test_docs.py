"""The pages of docs/: what they say about notebooks, code and commands is so."""

import importlib.util
import inspect
import json
import re
import shlex

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from ttm_lab import analysis, data, losses, probability, training
from ttm_lab.course import cli, explore, paper
from ttm_lab.files import find_root

ROOT = find_root(__file__)
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
NOTEBOOKS = {path.name: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
LESSONS = [name for name in NOTEBOOKS if not name.startswith("00")]


def rows(page, heading):
    """The cells of a table's rows, below the heading of its section."""
    section = PAGES[page].split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def markdown(name):
    """What a reader of the notebook sees before opening a solution."""
    cells = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))["cells"]
    shown = [c for c in cells if "solution" not in c["metadata"].get("tags", [])]
    return "\n".join("".join(c["source"]) for c in shown if c["cell_type"] == "markdown")


def formulas(text):
    return " ".join(re.findall(r"\$\$?(.+?)\$\$?", text, re.DOTALL))


SYMBOLS = rows("notation", "Symbols")


def test_each_symbol_has_one_row_and_each_row_is_whole():
    symbols = [row[0] for row in SYMBOLS]
    assert len(set(symbols)) == len(symbols) > 20
    assert {len(row) for row in SYMBOLS} == {7}


@pytest.mark.parametrize("row", SYMBOLS, ids=lambda row: row[0])
def test_a_symbol_appears_first_where_the_table_says(row):
    (first,) = re.findall(r"\.\./notebooks/(.+?)\)", row[-1])
    symbol = re.findall(r"\$(.+?)\$", row[0])[0].replace("\\Vert ", r"\|").split(r"\alpha(q)")[0]
    wanted = re.compile(r"(?<![A-Za-z\\])" + re.escape(symbol) + r"(?![A-Za-z])")
    using = [name for name in LESSONS if wanted.search(formulas(markdown(name)))]
    assert using[0] == first
    assert row[-1].startswith(f"[{int(first[:2])}]")


def names_of_the_package():
    """Public functions of the package, their parameters, and the fields of its settings."""
    known = set(inspect.signature(data.Dataset).parameters) | {"num_classes"}
    for module in (analysis, losses, probability, training):
        for name, thing in vars(module).items():
            if callable(thing) and not name.startswith("_") and "ttm_lab" in str(thing.__module__):
                known |= {name, *inspect.signature(thing).parameters}
    return known


def test_names_in_our_column_are_names_of_the_package():
    known = names_of_the_package()
    assert "gamma" not in known
    ours = [row[2] for row in SYMBOLS] + [row[2] for row in rows("notation", "The losses")]
    ours = {name for cell in ours for name in re.findall(r"`(\w+)`", cell)}
    assert len(ours) > 15
    assert ours <= known, ours - known


def test_settings_in_the_table_of_commands_can_be_made():
    table = rows("notation", "Reading the official code")
    calls = [call for row in table for call in re.findall(r"`(Settings\(.+?\))`", row[-1])]
    kd, ttm = (
        eval(c.replace("...", "'cnn_small'"), {"Settings": training.Settings}) for c in calls
    )
    assert (kd.method, kd.temperature, kd.ce_weight, kd.distill_weight) == ("kd", 4, 0.1, 0.9)
    # the same row gives the official code's exponent and weight
    exponent, beta = re.search(r"--ttm_l (\S+) .*-b (\d+)", table[1][1]).groups()
    assert (ttm.method, 1 / ttm.temperature) == ("ttm", float(exponent))
    assert ttm.distill_weight == float(beta)


def test_glossary_is_in_order_and_has_every_term_once():
    terms = [line.split(" | ")[0].strip("| ") for line in PAGES["glossary"].splitlines()]
    terms = [term for term in terms[terms.index("---") + 1 :] if term]
    assert 30 <= len(terms) <= 75
    assert terms == sorted(set(terms), key=str.lower)


def test_links_lead_somewhere():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            assert (ROOT / "docs" / target).exists(), f"{name} links to {target}"


def test_teaching_names_sections_explorers_and_commands_that_exist():
    text = PAGES["teaching"]
    explorers = set(re.findall(r"`explore\.(\w+)", text))
    assert {"temperature_path", "temperature", "triangle", "sample_weights"} <= explorers
    assert all(callable(getattr(explore, name)) for name in explorers)
    for number, title in re.findall(r"\bnb (\d), \*(.+?)\*", text):
        (name,) = [name for name in NOTEBOOKS if name.startswith(f"0{number}")]
        headings = re.findall(r"^#+ (.+)$", markdown(name), re.MULTILINE)
        assert title in [re.sub(r"^\d+\. ", "", heading) for heading in headings], title
    for line in re.findall(r"^ttm-lab (.+)$", text, re.MULTILINE):
        assert cli._parser().parse_args(shlex.split(line, comments=True)).command


# References and landscape -----------------------------------------------------------------------

REFERENCES = re.findall(r"^## (.+ \d{4})$", PAGES["references"], re.MULTILINE)


def cited():
    """The keys of the papers that pages and notebooks link to."""
    texts = [text for name, text in PAGES.items() if name != "references"]
    texts += [
        path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *NOTEBOOKS.values()]
    ]
    return set(re.findall(r"references\.md#([\w-]+)", "\n".join(texts)))


def test_references_are_in_order_and_each_leads_to_its_paper():
    assert sorted(set(REFERENCES)) == REFERENCES
    entries = re.split(r"^## .+$", PAGES["references"], flags=re.MULTILINE)[1:]
    assert len(entries) == len(REFERENCES) > 25
    for name, entry in zip(REFERENCES, entries, strict=True):
        assert re.search(r"\[arXiv (\S+)\]\(https://arxiv\.org/abs/\1\)", entry) or re.search(
            r"\[doi (\S+)\]\(https://doi\.org/\1\)", entry
        ), name


def test_every_citation_has_its_reference_and_every_reference_is_cited():
    assert cited() == {name.lower().replace(" ", "-") for name in REFERENCES}


def test_a_method_stands_in_the_year_of_its_paper():
    for _, method, year, *_ in rows("landscape", "One table"):
        assert method.endswith(f"-{year})"), method


def test_the_picture_of_the_landscape_names_every_method_at_its_year():
    spec = importlib.util.spec_from_file_location("landscape", ROOT / "docs" / "landscape.py")
    landscape = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(landscape)
    table = [row[1:3] for row in rows("landscape", "One table")]
    named = [(re.match(r"\[(.+)\]", method)[1], int(year)) for method, year in table]
    ax = landscape.draw(landscape.methods(PAGES["landscape"])).axes[0]
    places = {text.get_text(): round(text.get_position()[0]) for text in ax.texts}
    assert places == {name: max(year, landscape.START - 1) for name, year in named}
    plt.close(ax.figure)


def test_the_advice_quotes_the_measured_differences():
    arms = {
        "KD minus labels alone": ("kd", "ce"),
        "KD: $T=4$ minus $T=1$": ("kd", "kd, T = 1"),
        "TTM minus KD, at one gradient scale": ("ttm", "kd"),
        "WTTM minus TTM, both at ten times that scale": ("wttm, decay / 10", "ttm, decay / 10"),
        "KD at ten times the scale minus KD": ("kd, decay / 10", "kd"),
        "TTM at ten times the scale minus TTM": ("ttm, decay / 10", "ttm"),
    }
    runs = pd.read_csv(ROOT / "data" / "results" / "cifar100_gpu.csv")
    last = runs[runs["epoch"] == runs["epoch"].max()].set_index(["seed", "arm"])
    accuracy = 100 * last["validation_accuracy"].unstack()
    quoted = {row[0]: row[1:] for row in rows("landscape", "Which should I use?")}
    assert set(quoted) == set(arms)
    for name, (first, second) in arms.items():
        found = analysis.paired_interval(accuracy[first] - accuracy[second], contrasts=len(arms))
        mean, low, high = (f"{number:+.1f}" for number in found)
        assert quoted[name] == [mean, f"{low} to {high}"], name
    row = pd.read_csv(ROOT / "data" / "results" / "cifar100_row.csv")
    row = 100 * row.pivot(index="seed", columns="arm", values="accuracy")
    published = row["ttm"] - row["kd"]
    temperature = (row["ttm"] + row["ttm as kd"] - row["kd as ttm"] - row["kd"]).mean() / 2
    mean, low, high = (f"{number:+.1f}" for number in analysis.paired_interval(published))
    said = f"{mean} points above KD on the test part (alone {low} to {high}): {temperature:+.1f} of"
    assert said in PAGES["landscape"]
    assert f"{published.mean() - temperature:+.1f} the other settings" in PAGES["landscape"]
    means = last.groupby("arm")[["validation_entropy", "validation_nll"]].mean()
    for arm in ("kd", "ttm", "ce"):
        entropy, nll = means.loc[arm]
        assert f"{entropy:.2f} and {nll:.2f}" in PAGES["landscape"], arm


def test_the_landscape_counts_pairs_and_ranges_as_the_paper_s_tables_do():
    table = paper.results().query("dataset == 'CIFAR-100'")
    top1 = table.pivot_table(index=["teacher", "student"], columns="method", values="top1")
    text = PAGES["landscape"]
    for method in ("DKD", "DIST", "CRD", "ITRD"):
        both = top1[["WTTM", method]].dropna()
        won, count = (both["WTTM"] > both[method]).sum(), len(both)
        assert re.search(rf"above {method} in {won}\b( of (the )?{count})?", text), method
    tuned = paper.hyperparameters().set_index(["dataset", "method"])
    ttm, wttm = tuned.loc[("CIFAR-100", "TTM")], tuned.loc[("ImageNet", "WTTM")]
    said = "$T$ from {:g} to {:g} and $\\beta$ from {:g} to {:g} on CIFAR-100".format(
        *ttm["temperature"].agg(["min", "max"]), *ttm["distill_weight"].agg(["min", "max"])
    )
    assert said in text
    low, high = wttm["temperature"].agg(["min", "max"])
    assert f"$T$ from {low:.2f} to {high:.2f} on ImageNet" in text
