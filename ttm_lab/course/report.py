"""The batch's report: one HTML page made only from files.

``status.json`` in the batch's folder gives notebooks, times and environment; the records below its
``results/``, the kept tables and the paper's own (``kept.py``) give the measurements. No script, no
font and no picture is loaded from anywhere.
"""

import json
import math
import os
import re
from contextlib import suppress
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from ttm_lab.course import kept, paper
from ttm_lab.course.evidence import PLACES, QUANTITIES, collect, matrix, place
from ttm_lab.course.execute import read_notebook
from ttm_lab.files import atomic_write

MARKS = {  # a sign and a word beside each colour
    "holds": ("good", "✓"),
    "does not hold": ("bad", "✗"),
    "negligible": ("none", "≈"),
    "not decided": ("open", "?"),
    "not run": ("none", "–"),
    "done": ("good", "✓"),
    "failed": ("bad", "✗"),
    "timed out": ("bad", "✗"),
    "interrupted": ("open", "…"),
    "unfinished": ("open", "…"),
}

STYLE = """
:root { --text: #1b1f24; --soft: #57606a; --line: #d8dee4; --back: #ffffff; --panel: #f6f8fa;
  --good: #00603f; --good-back: #d9f2e6; --bad: #8a2c00; --bad-back: #fde3d3;
  --open: #5c4a00; --open-back: #fbf0c4; --link: #00558a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --soft: #a5adb7; --line: #3b424a;
  --back: #15181c; --panel: #1e2227; --good: #9fe3c4; --good-back: #113a2a; --bad: #ffc2a1;
  --bad-back: #4a2110; --open: #f1dd8b; --open-back: #3f3609; --link: #86c5f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; color: var(--text);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.75rem 0 .5rem; font-size: 1.3rem; }
a { color: var(--link); }
p { max-width: 46rem; }
table { width: 100%; border-collapse: collapse; font-size: .93rem; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); }
th, td { padding: .55rem .9rem .55rem 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.value { font-weight: 600; }
.soft { color: var(--soft); font-size: .88em; }
.id { font-weight: 700; width: 3rem; }
.matrix { font-size: .85rem; } .matrix th[scope=row] { width: 27%; font-weight: 400;
  color: var(--text); border-bottom: 1px solid var(--line); }
.matrix a { text-decoration: none; } .not-run { color: var(--soft); }
.only-narrow { display: none; }
.claim { margin: 2.2rem 0 0; padding-top: .3rem; border-top: 2px solid var(--line); }
.claim h3 { margin: .4rem 0; font-size: 1.05rem; }
.scope { margin: 1.1rem 0 0; } .scope p { margin: .3rem 0; max-width: none; }
.scope details { margin: .2rem 0; font-size: .88em; } .scope summary { font-weight: 400; }
.scope dl { margin: .3rem 0; font-size: .88em; gap: .1rem 1rem; }
.scope td { border: 0; padding: .2rem .9rem .2rem 0; } .forest { width: 16rem; }
svg { display: block; width: 15rem; max-width: 100%; height: auto; overflow: visible; }
svg text { font: 10px system-ui, sans-serif; fill: var(--soft); text-anchor: middle; }
.wide { overflow-x: auto; } .wide td { white-space: nowrap; }
.mark { display: inline-block; padding: .05rem .55rem; border-radius: 1rem; font-weight: 600;
  white-space: nowrap; background: var(--panel); color: var(--soft); }
.good { background: var(--good-back); color: var(--good); }
.bad { background: var(--bad-back); color: var(--bad); }
.open { background: var(--open-back); color: var(--open); }
.notice { padding: .7rem 1rem; border-left: 4px solid var(--open); background: var(--open-back);
  color: var(--open); max-width: none; }
details { margin-top: 1rem; } sub, sup { line-height: 0; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 46rem) {
  body { padding: 1.25rem .9rem 3rem; }
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px;
    overflow: hidden; }
  table, tbody, tr, td, td.id, td.forest, .matrix th[scope=row] { display: block; width: 100%; }
  td, .scope td, .matrix th[scope=row] { border: 0; padding: .12rem 0; }
  .matrix .not-run { display: none; } .only-narrow { display: block; }
  tbody { border-bottom: 1px solid var(--line); padding: .7rem 0; }
  tr + tr { margin-top: .7rem; }
  td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); font-size: .88em; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
}
"""


def read_status(folder: Path) -> dict | None:
    """A batch's ``status.json``, or None if there is none or its content cannot be one.

    The names of its notebooks lead to files that are linked and removed: all lie in ``folder``.
    """
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        whole = isinstance(status["profile"], str)
        whole &= isinstance(status.get("environment", {}), dict)
        whole &= status.get("budget") is None or 0 < status["budget"] < 1e10
        for name, entry in status["notebooks"].items():
            inside = (folder / name).parent == folder and name != ".." and "\0" not in name
            whole &= inside and len(os.fsencode(name)) < 250 and entry["status"] in MARKS
            whole &= 0 <= entry["seconds"] < 1e10 and isinstance(entry["parameters"], dict)
            files = [entry["log"], *entry["results"]]
            texts = (entry["error"], entry["inputs"], *files)
            whole &= all(isinstance(text, str) for text in texts)
            whole &= not any(Path(f).is_absolute() or ".." in Path(f).parts for f in files)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return status if whole else None


def write(folder: Path, kept_folder: Path | None = None) -> Path:
    """Write ``report.html`` into a batch's folder from its ``status.json`` and ``results/``.

    ``kept_folder`` holds the kept results, by default ``data/results`` of the checkout.
    """
    status = read_status(folder)
    if status is None:
        raise ValueError(f"{folder / 'status.json'} is not what a batch writes: run it again")
    claims = collect(folder / "results", kept.entries(kept_folder))
    notebooks = status["notebooks"]
    links = {name: _link(folder / f"{name}.ipynb") for name in notebooks}
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TTM Lab report: {escape(status["profile"])}</title>
<style>{STYLE}</style>
</head>
<body>
<header><p class="soft">The names of notebooks lead to the notebooks as they ran, for JupyterLab.
<code>make site</code> shows the whole course in pages, with this report.</p></header>
<main>
<h1>TTM Lab report</h1>
<p class="soft">{_headline(status)}</p>
{_notices(notebooks)}
{_matrix_section(claims)}
{_claims_section(claims[claims["kind"] == "empirical"], links)}
{_exact_section(claims[claims["kind"] == "exact"], links)}
{_paper_section(kept.tables(kept_folder))}
{_notebooks_section(status, links)}
{_environment_section(status)}
</main>
</body>
</html>
"""
    path = folder / "report.html"
    atomic_write(path, page.encode(errors="replace"))  # an error's text may hold half a character
    return path


def _headline(status: dict) -> str:
    notebooks = status["notebooks"].values()
    done = sum(entry["status"] == "done" for entry in notebooks)
    seconds = sum(entry["seconds"] for entry in notebooks)
    day, _, time = escape(status["finished"][:16]).partition("T")
    return (
        f"Profile <strong>{escape(status['profile'])}</strong>, {day} {time}. "
        f"{done} of {len(notebooks)} notebooks finished; together they took {_duration(seconds)}."
    )


def _notices(notebooks: dict) -> str:
    told = []
    failed = [name for name, entry in notebooks.items() if entry["status"] != "done"]
    if failed:
        names = escape(", ".join(failed))
        told.append(f"Not finished: {names}. What they measure is missing below.")
    if any(entry["parameters"].get("max_steps") is not None for entry in notebooks.values()):
        told.append(
            "Trainings were cut short by <code>max_steps</code>: the numbers below show that the "
            "notebooks run, and nothing about the claims."
        )
    outdated = [name for name, entry in notebooks.items() if entry.get("outdated")]
    if outdated:
        told.append(
            f"Made from earlier notebooks, code or packages: {escape(', '.join(outdated))}. "
            "Run the batch again to renew them."
        )
    return "\n".join(f'<p class="notice" role="note">{text}</p>' for text in told)


def _matrix_section(claims: pd.DataFrame) -> str:
    """One verdict a claim and place, and the rule it comes from."""
    table, rows = matrix(claims), []
    claims = claims[claims["kind"] == "empirical"].assign(place=claims["scope"].map(place))
    for claim_id, verdicts in table.iterrows():
        records = claims[claims["id"] == claim_id]
        cells = []
        for name in PLACES:
            if verdicts[name] == "not run":
                cells.append('<td class="not-run">not run</td>')
                continue
            here = records[records["place"] == name]
            pairs = sum(" to " in scope for scope in here["scope"].unique())
            if name == PLACES[0] and here["seeds"].max() > 1:
                pairs = int(here["seeds"].max())
            told = f'<div class="soft">{pairs} pair{"s" * (pairs > 1)}</div>' if pairs else ""
            mark = f'<a href="#{claim_id}">{_mark(verdicts[name])}</a>'
            cells.append(f'<td data-label="{escape(name)}">{mark}{told}</td>')
        first = f"<strong>{claim_id}</strong> {_words(records.iloc[0]['statement'])}"
        rows.append(f'<tr><th scope="row">{first}</th>{"".join(cells)}</tr>')
    heads = _heads("Claim", *(escape(name) for name in PLACES))
    rows = "\n".join(f"<tbody>{row}</tbody>" for row in rows)
    return f"""<h2>What holds where</h2>
<p>Each cell is one verdict, computed by one rule from intervals that are drawn below. It is valid
for its place alone: a pair of networks says nothing about all pairs of the paper, and digits decide
nothing about CIFAR-100 or ImageNet. <span class="only-narrow">Places that are not listed: not
run.</span></p>
<table class="matrix">{heads}
{rows}
</table>
<p>{_rule()}</p>"""


def _rule() -> str:
    return (
        "<strong>The rule.</strong> A contrast is a difference, written so that its claim expects "
        "it to be positive. Its interval is a paired 95 % t interval over seeds, widened so that "
        "all contrasts of a scope are covered at once (Bonferroni) and, where every seed splits "
        "one pool of pictures anew, for the pictures that seeds share (Nadeau and Bengio); in the "
        "published tables pairs of networks take the place of seeds. Wholly within the margin "
        f"({_margins()}) it is <em>negligible</em>, else wholly above zero it <em>holds</em>, "
        "wholly below it <em>does not hold</em>, else it is <em>not decided</em>. A claim holds if "
        "all its parts do; else the part that speaks most against it decides, and is named. Of "
        "several scopes in one place, too, the one that speaks most against the claim counts. "
        "Holm’s p is shown and decides nothing. An interval holds for its teacher and the part of "
        "the data it was measured on. <em>The paper</em> is Zheng and Yang, “Knowledge "
        "Distillation Based on Transformed Teacher Matching”, ICLR 2024, arXiv 2402.11148."
    )


def _claims_section(claims: pd.DataFrame, links: dict) -> str:
    """The empirical claims: where each was tried, with all its contrasts."""
    parts = [
        "<h2>Claims</h2>",
        '<p class="soft">In the drawings the thin line is the interval that is judged, the thick '
        "one that of the contrast alone, with seeds taken as independent; shaded is what would be "
        "negligible. The smallest detectable effect is the true difference that as many seeds "
        "would decide with a probability of 80 %.</p>",
    ]
    for claim_id, records in claims.groupby("id", sort=False):
        row = records.iloc[0]
        published = f" The paper: {escape(row['paper_value'])}." if row["paper_value"] else ""
        parts.append(
            f'<section class="claim" id="{claim_id}"><h3>{claim_id}. {_words(row["statement"])}'
            f"</h3>\n<p>{_summary(records)} Expected: {_words(row['expected'])}.{published} "
            f'<span class="soft">{escape(row["where"])}; {escape(row["source"])}.</span></p>'
        )
        ran = records[records["verdict"] != "not run"]
        order = ran["scope"].map(lambda scope: [*PLACES, ""].index(place(scope)))
        ran = ran.assign(order=order).sort_values("order", kind="stable")
        parts += [_scope(some, links) for _, some in ran.groupby("scope", sort=False)]
        parts.append("</section>")
    return "\n".join(parts)


def _summary(records: pd.DataFrame) -> str:
    """Where a claim stands, in a sentence."""
    found = matrix(records).loc[records.iloc[0]["id"]]
    told = [f"{name}: {verdict}" for name, verdict in found.items() if verdict != "not run"]
    others = records[(records["scope"] != "") & (records["scope"].map(place) == "")]
    told += list(dict.fromkeys(others["verdict_in_scope"]))
    sentence = escape("; ".join([*told, "not run elsewhere" if told else "not run"]))
    return f"<strong>{sentence[0].upper()}{sentence[1:]}.</strong>"


def _scope(records: pd.DataFrame, links: dict) -> str:
    """A claim in one scope: the verdict, each contrast with its drawing, and what lies behind."""
    first = records.iloc[0]
    because = f", by {_words(first['because'])}" if first["because"] else ""
    rows = []
    for (unit, margin), some in records.groupby(["unit", "margin"], sort=False):
        ends = some[["measured", "low", "high", "alone_low", "alone_high"]]
        low, high = min(ends.min().min(), -margin), max(ends.max().max(), margin)
        for k, row in enumerate(some.to_dict("records")):
            drawing = _forest(row, low, high, axis=k == len(some) - 1)
            smallest = f"{_number(row['smallest'])} {escape(unit)}" * pd.notna(row["smallest"])
            p = _number(row["holm"]) if pd.notna(row["holm"]) else ""
            rows.append(
                f'<tbody><tr><td>{_words(row["measure"])}</td><td class="forest">{drawing}</td>'
                f'<td data-label="Difference">{_measured(row)}</td>'
                f'<td data-label="Smallest detectable">{smallest}</td>'
                f'<td data-label="Holm’s p">{p}</td></tr></tbody>'
            )
    heads = _heads("Contrast", "", "Difference", "Smallest detectable", "Holm’s p")
    return (
        f'<div class="scope"><p>{_mark(first["verdict"])} {escape(first["scope"])}{because}</p>\n'
        f"<table>{heads}\n" + "\n".join(rows) + f"\n</table>\n{_facts(records, links)}</div>"
    )


def _facts(records: pd.DataFrame, links: dict) -> str:
    first, facts = records.iloc[0], {}
    runs = "pair" if place(first["scope"]) == PLACES[0] else "seed"
    counts = {runs: records["seeds"].max(), "teacher": first["teachers"]}
    counts["contrast"] = records["contrasts"].max()
    told = [
        f"{n:.0f} {name if n == 1 else name + 's'}" for name, n in counts.items() if pd.notna(n)
    ]
    facts["Rests on"] = ", ".join(told) + " judged at once" * pd.notna(counts["contrast"])
    facts |= {"Settings": escape(first["settings"]), "Would flip it": escape(first["flip"])}
    names = dict.fromkeys(name for name in records["notebook"] if name)
    commands = [c for c in dict.fromkeys(records["command"]) if c]
    commands = commands or [f"ttm-lab reproduce --only {name.partition('_')[0]}" for name in names]
    facts["Command"] = "<br>".join(f"<code>{escape(c)}</code>" for c in commands)
    facts["Explained in"] = ", ".join(links.get(name, escape(name)) for name in names)
    notes = "; ".join(escape(note) for note in dict.fromkeys(records["note"]) if note)
    items = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items() if text)
    return f"<dl>{items}</dl>" + (
        f"<details><summary>How it came about</summary>{notes}</details>" if notes else ""
    )


def _forest(row: dict, low: float, high: float, axis: bool) -> str:
    """A contrast as a line on a scale from ``low`` to ``high``, with ticks if it has the axis."""

    def x(value: float) -> str:
        return f"{6 + 228 * (value - low) / (high - low):.1f}"

    def line(start: float, end: float, style: str) -> str:
        if pd.isna(start) or pd.isna(end):
            return ""
        return f'<line x1="{x(start)}" x2="{x(end)}" y1="12" y2="12" style="{style}"/>'

    if not low < high or not math.isfinite(high - low) or pd.isna(row["measured"]):
        return ""
    unit, margin = escape(row["unit"]), row["margin"]
    shade = float(x(margin)) - float(x(-margin))
    told = f"{_plain(row['measured'])} {unit}"
    for name, ends in {"interval": ("low", "high"), "alone": ("alone_low", "alone_high")}.items():
        if pd.notna(row[ends[0]]):
            told += f", {name} {_plain(row[ends[0]])} to {_plain(row[ends[1]])}"
    shapes = [
        f'<rect x="{x(-margin)}" y="2" width="{shade:.1f}" height="20" style="fill: var(--line)"/>',
        f'<line x1="{x(0)}" x2="{x(0)}" y1="2" y2="22" style="stroke: var(--soft)"/>',
        line(row["alone_low"], row["alone_high"], "stroke: var(--link); stroke-width: 5"),
        line(row["low"], row["high"], "stroke: var(--text); stroke-width: 1.5"),
        f'<circle cx="{x(row["measured"])}" cy="12" r="3.2" '
        'style="fill: var(--text); stroke: var(--back, none)"/>',
    ]
    if axis:
        size = max(-low, high)
        step = next(k for k in (5, 2, 1) if k * 10.0 ** math.floor(math.log10(size)) <= size)
        step *= 10.0 ** math.floor(math.log10(size))
        for tick in (-step, 0, step):
            if low <= tick <= high:
                shapes.append(f'<text x="{x(tick)}" y="34">{_plain(tick)}</text>')
    box = f"0 0 240 {38 if axis else 24}"
    return f'<svg viewBox="{box}" role="img" aria-label="{told}">{"".join(shapes)}</svg>'


def _exact_section(claims: pd.DataFrame, links: dict) -> str:
    """The exact statements, one line each."""
    rows = []
    for claim_id, records in claims.groupby("id", sort=False):
        first, told = records.iloc[0], []
        for row in records[records["verdict"] != "not run"].to_dict("records"):
            bound = f" of {_number(row['tolerance'])}" if pd.notna(row["tolerance"]) else ""
            told.append(
                f"{_words(row['measure'])}: {_measured(row)}{bound} ({escape(row['scope'])}, "
                f"{links.get(row['notebook'], escape(row['notebook']))})"
            )
        rows.append(
            f'<tbody><tr><td class="id">{claim_id}</td><td>{_words(first["statement"])}. '
            f'<span class="soft">{escape(first["where"])}</span></td>'
            f"<td>{_mark(first['verdict'])}</td>"
            f'<td class="soft">{"; ".join(told)}</td></tr></tbody>'
        )
    heads = _heads("", "Statement", "Verdict", "Residual of its tolerance")
    return f"<h2>Exact statements</h2>\n<table>{heads}\n" + "\n".join(rows) + "\n</table>"


def _paper_section(tables: list) -> str:
    """Our accuracies beside the paper's, then its tables, cell by cell."""
    ours = kept.beside_the_paper(tables)
    keys, rows = ["teacher", "student", "method"], []
    published = paper.results().rename(columns={"runs": "published runs"})
    for row in ours.merge(published, on=keys, how="left").to_dict("records"):
        rows.append(
            f"<tbody><tr><td>{escape(row['teacher'])} to {escape(row['student'])}, "
            f"{escape(row['method'])}</td>"
            f'<td class="number" data-label="Paper">{_published(row)}</td>'
            f'<td class="number" data-label="Ours"><span class="value">{row["mean"]:.2f}</span> '
            f"[{row['low']:.2f}, {row['high']:.2f}]</td>"
            f'<td data-label="Runs">{row["runs"]}</td>'
            f'<td data-label="Differs">{escape(row["differs"])}</td></tr></tbody>'
        )
    heads = _heads("Cell", "Paper", "Ours", "Our runs", "Our run differs by")
    parts = [
        "<h2>The paper’s tables, and ours</h2>",
        "<p>Top-1 accuracy in per cent. The paper’s numbers with standard deviation and, in round "
        "brackets, runs, where it gives them; ours with plain 95 % t intervals over seeds. Runs "
        "that differ in so much test directions of differences, and reproduce no cell.</p>",
        f"<table>{heads}\n" + "\n".join(rows) + "\n</table>" if rows else "<p>Not run.</p>",
    ]
    pairs = set(zip(ours["teacher"], ours["student"], strict=True))
    parts += [
        f'<p class="soft">Ours, {escape(table.words["scope"])}: {escape(table.words["note"])}</p>'
        for table in tables
        if table.pair in pairs
    ]
    means = {key: ", ".join(f"{x:.2f}" for x in rows["mean"]) for key, rows in ours.groupby(keys)}
    numbers = published["source"].str.extract(r"Table (\d+)")[0].astype(int)
    for number, table in published.groupby(numbers):
        methods = list(dict.fromkeys(table["method"]))
        rows = []
        for (teacher, student), some in table.groupby(["teacher", "student"], sort=False):
            by_method = {row["method"]: row for row in some.to_dict("records")}
            cells = [f"<td>{escape(teacher)} to {escape(student)}</td>"]
            for method in methods:
                if (row := by_method.get(method)) is None:
                    cells.append("<td></td>")
                    continue
                key = (teacher, student, method)
                told = f"ours {means[key]}" if key in means else "not run"
                told = f'{_published(row)}<div class="soft">{told}</div>'
                cells.append(f'<td data-label="{escape(method)}">{told}</td>')
            rows.append(f"<tbody><tr>{''.join(cells)}</tr></tbody>")
        heads = _heads("Pair", *(escape(method) for method in methods))
        parts.append(
            f"<details><summary>Table {number}, {escape(table['dataset'].iloc[0])}</summary>\n"
            f'<div class="wide"><table>{heads}\n' + "\n".join(rows) + "\n</table></div></details>"
        )
    return "\n".join(parts)


def _published(row: dict) -> str:
    std = f" ± {row['std']:.2f}" if pd.notna(row["std"]) else ""
    runs = f" ({row['published runs']:.0f})" if pd.notna(row["published runs"]) else ""
    return f"{row['top1']:.2f}{std}{runs}"


def _margins() -> str:
    return ", ".join(
        f"{f'{margin:g} {unit}'.strip()} of {name.upper() if len(name) == 3 else name}"
        for name, (unit, margin) in QUANTITIES.items()
    )


def _heads(*names: str) -> str:
    cells = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"<thead><tr>{cells}</tr></thead>"


def _measured(row: dict) -> str:
    """A number with the interval that is judged."""
    if pd.isna(row["measured"]):
        return ""
    text = _number(row["measured"])
    if pd.notna(row["low"]) and pd.notna(row["high"]):
        text += f" [{_number(row['low'])}, {_number(row['high'])}]"
    return f'<span class="number value">{text}</span> {escape(row["unit"])}'


def _words(text: str) -> str:
    """Text with p_T, q_T and the like set as subscripts."""
    return re.sub(r"\b([pqH])_(\w+)", r"\1<sub>\2</sub>", escape(text))


def _plain(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _number(value: float) -> str:
    """Three significant digits, with powers of ten written as such."""
    digits, _, power = _plain(value).partition("e")
    if not power:
        return digits
    exponent = power.replace("+", "").replace("−0", "−").lstrip("0")
    return f"{digits} × 10<sup>{exponent}</sup>"


def _mark(word: str) -> str:
    kind, sign = MARKS[word]
    return f'<span class="mark {kind}"><span aria-hidden="true">{sign}</span> {word}</span>'


def over_budget(status: dict, entry: dict) -> str:
    """What to say of a notebook that took longer than its profile allows; else nothing."""
    budget = status.get("budget")
    return f"over {budget} s" if budget and entry["seconds"] > budget else ""


def _notebooks_section(status: dict, links: dict) -> str:
    rows = []
    for name, entry in sorted(status["notebooks"].items()):
        given = ", ".join(f"{k} = {v!r}" for k, v in entry["parameters"].items())
        error = f'<div class="soft">{escape(entry["error"])}</div>' if entry["error"] else ""
        over = over_budget(status, entry)
        over = over and f' <span class="mark open">{over}</span>'
        rows.append(
            f'<tbody><tr><td>{links[name]}<div class="soft">{escape(given)}</div></td>'
            f'<td>{_mark(entry["status"])} <a href="logs/{quote(name)}.log">log</a>{error}</td>'
            f'<td class="number" data-label="Seconds">{entry["seconds"]:.1f}{over}</td>'
            "</tr></tbody>"
        )
    heads = _heads("Notebook", "Status", "Seconds")
    return f"<h2>Notebooks</h2>\n<table>{heads}\n" + "\n".join(rows) + "\n</table>"


def _environment_section(status: dict) -> str:
    environment = dict(status["environment"])
    packages = environment.pop("packages", {})
    commit = environment.pop("git_commit", None)
    changed = environment.pop("git_changed", None)
    environment.pop("command", None)
    environment["notebooks at a time"] = status["jobs"]
    if commit:
        environment["git"] = commit[:12] + (" with uncommitted changes" if changed else "")
    environment["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    items = "\n".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in environment.items()
        if value is not None
    )
    return f"<h2>Environment</h2>\n<dl>\n{items}\n</dl>"


def _link(executed: Path) -> str:
    """A notebook's heading, or its file's name where there is none, as a link where it is there."""
    title = executed.stem
    with suppress(ValueError):
        for cell in read_notebook(executed).cells[:2]:  # papermill puts an error above the heading
            if cell.cell_type == "markdown" and cell.source.startswith("# "):
                title = cell.source.splitlines()[0].removeprefix("# ").strip()
                break
    if not executed.exists():
        return escape(title)
    return f'<a href="{quote(executed.name)}">{escape(title)}</a>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
