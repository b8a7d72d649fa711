"""The batch's report: one HTML page made only from the files that a batch left in its folder.

``status.json`` gives notebooks, times and environment; the records below ``results/`` give the
measurements. No script, no font and no picture is loaded from anywhere.
"""

import json
import os
import re
from contextlib import suppress
from html import escape, unescape
from pathlib import Path
from urllib.parse import quote, unquote

import pandas as pd

from ttm_lab.course.evidence import QUANTITIES, collect
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
.number { font-variant-numeric: tabular-nums; }
.value { font-weight: 600; }
.soft { color: var(--soft); font-size: .88em; }
.id { font-weight: 700; width: 3rem; }
.claim { width: 31%; } .expected { width: 19%; } .verdict { width: 14%; }
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
  thead { position: absolute; clip-path: inset(50%); height: 1px; overflow: hidden; }
  table, tbody, tr, td, td.id, td.claim, td.expected, td.verdict { display: block; width: 100%; }
  td { border: 0; padding: .12rem 0; }
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


def write(folder: Path) -> Path:
    """Write ``report.html`` into a batch's folder from its ``status.json`` and ``results/``."""
    status = read_status(folder)
    if status is None:
        raise ValueError(f"{folder / 'status.json'} is not what a batch writes: run it again")
    claims = collect(folder / "results")
    notebooks = status["notebooks"]
    titles = {name: _title(folder / f"{name}.ipynb") for name in notebooks}
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TTM Lab report: {escape(status["profile"])}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>TTM Lab report</h1>
<p class="soft">{_headline(status)}</p>
{_notices(notebooks)}
{_claims_section(claims, titles)}
{_notebooks_section(folder, status, titles)}
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


def _claims_section(claims: pd.DataFrame, titles: dict) -> str:
    ran = claims[claims["verdict"] != "not run"]
    rest = claims[claims["verdict"] == "not run"]
    parts = [
        "<h2>Claims</h2>",
        "<p>Each row is a claim, what a notebook measured for it, and one verdict for the scope "
        "beside it: data, networks, seeds. Square brackets are paired 95 % t intervals over "
        "seeds, widened so that all contrasts of a scope are covered at once (Bonferroni) and, "
        "where every seed splits one pool of pictures anew, for the pictures that seeds share "
        "(Nadeau and Bengio). Each part of a claim is read off its interval: wholly within the "
        f"margin ({_margins()}) it is <em>negligible</em>, wholly above zero it <em>holds</em>, "
        "wholly below it <em>does not hold</em>, else it is <em>not decided</em>. A claim holds "
        "if all its parts do; else the part that speaks most against it decides, and is named. "
        "Holm’s p is shown and decides nothing. An interval holds for its teacher and its test "
        "part; a result on digits decides nothing about CIFAR-100 or ImageNet. <em>The "
        "paper</em> is Zheng and Yang, “Knowledge Distillation Based on Transformed Teacher "
        "Matching”, ICLR 2024, arXiv 2402.11148.</p>",
    ]
    kinds = {"exact": "Exact statements", "empirical": "Empirical claims"}
    for kind, heading in kinds.items():
        some = ran[ran["kind"] == kind]
        if len(some):
            parts.append(f"<h3>{heading}</h3>\n{_claims_table(some, titles)}")
    if len(rest):
        rows = "\n".join(
            f'<tbody><tr><td class="id">{row["id"]}</td><td>{_statement(row)}</td>'
            f'<td data-label="Expected">{_expected(row)}</td>'
            f"<td>{_mark('not run')}</td></tr></tbody>"
            for row in rest.to_dict("records")
        )
        heads = _heads("", "Claim", "Expected", "Verdict")
        parts.append(
            f"<details><summary>Not run in this batch: {rest['id'].nunique()} claims</summary>\n"
            f"<table>{heads}\n{rows}\n</table></details>"
        )
    return "\n".join(parts)


def _margins() -> str:
    return ", ".join(
        f"{f'{margin:g} {unit}'.strip()} of {name.upper() if len(name) == 3 else name}"
        for name, (unit, margin) in QUANTITIES.items()
    )


def _claims_table(claims: pd.DataFrame, titles: dict) -> str:
    bodies = []
    for _, records in claims.groupby("id", sort=False):
        row = records.iloc[0]
        span = f'rowspan="{len(records)}"'
        first = (
            f'<td class="id" {span}>{row["id"]}</td>'
            f'<td class="claim" {span}>{_statement(row)}</td>'
            f'<td class="expected" {span} data-label="Expected">{_expected(row)}</td>'
        )
        rows = []
        for _, parts in records.groupby("scope", sort=False):
            verdict = f'<td class="verdict" rowspan="{len(parts)}">{_verdict(parts.iloc[0])}</td>'
            for row in parts.to_dict("records"):
                name = row["notebook"]
                link = f'<a href="{quote(name)}.html">{escape(titles.get(name, name))}</a>'
                rows.append(
                    f'<tr>{first}<td data-label="Measured">{_measured(row)}'
                    f'<div class="soft">{link if name in titles else escape(name)}</div></td>'
                    f"{verdict}</tr>"
                )
                first = verdict = ""
        bodies.append("<tbody>" + "\n".join(rows) + "</tbody>")
    heads = _heads("", "Claim", "Expected", "Measured here", "Verdict")
    return f"<table>{heads}\n" + "\n".join(bodies) + "\n</table>"


def _verdict(row: pd.Series) -> str:
    """The one verdict of a claim and scope, its scope, and the part of the claim it rests on."""
    scope = row["verdict_in_scope"].removeprefix(row["verdict"]).strip(" ()")
    because = f'<div class="soft">by {_words(row["because"])}</div>' if row["because"] else ""
    return f'{_mark(row["verdict"])}<div class="soft">{escape(scope)}</div>{because}'


def _heads(*names: str) -> str:
    cells = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"<thead><tr>{cells}</tr></thead>"


def _statement(row: dict) -> str:
    return f'{_words(row["statement"])}.<div class="soft">{escape(row["where"])}</div>'


def _expected(row: dict) -> str:
    paper = row["paper_value"]
    published = f'<div class="soft">paper: {escape(paper)}</div>' if paper else ""
    return _words(row["expected"]) + published


def _measured(row: dict) -> str:
    parts = []
    if pd.notna(row["measured"]):
        text = _number(row["measured"])
        if pd.notna(row["low"]) and pd.notna(row["high"]):
            text += f" [{_number(row['low'])}, {_number(row['high'])}]"
        parts.append(f'<span class="number value">{text}</span> {escape(row["unit"])}')
    if row["measure"]:
        parts.append(f"<div>{_words(row['measure'])}</div>")
    if pd.notna(row["holm"]):
        parts.append(f'<div class="soft">Holm’s p {_number(row["holm"])}</div>')
    if row["note"]:
        parts.append(f'<div class="soft">{escape(row["note"])}</div>')
    return "".join(parts)


def _words(text: str) -> str:
    """Text with p_T, q_T and the like set as subscripts."""
    return re.sub(r"\b([pqH])_(\w+)", r"\1<sub>\2</sub>", escape(text))


def _number(value: float) -> str:
    """Three significant digits, with powers of ten written as such."""
    digits, _, power = f"{value:.3g}".replace("-", "−").partition("e")
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


def _notebooks_section(folder: Path, status: dict, titles: dict) -> str:
    rows = []
    for name, entry in sorted(status["notebooks"].items()):
        title = escape(titles[name])
        if (folder / f"{name}.html").exists():
            title = f'<a href="{quote(name)}.html">{title}</a>'
        files = [f'<a href="logs/{quote(name)}.log">log</a>']
        if (folder / f"{name}.ipynb").exists():
            files.insert(0, f'<a href="{quote(name)}.ipynb">notebook</a>')
        given = ", ".join(f"{k} = {v!r}" for k, v in entry["parameters"].items())
        error = f'<div class="soft">{escape(entry["error"])}</div>' if entry["error"] else ""
        over = over_budget(status, entry)
        over = over and f' <span class="mark open">{over}</span>'
        rows.append(
            f'<tbody><tr><td>{title}<div class="soft">{escape(given)}</div></td>'
            f"<td>{_mark(entry['status'])}{error}</td>"
            f'<td class="number" data-label="Seconds">{entry["seconds"]:.1f}{over}</td>'
            f'<td data-label="Files">{", ".join(files)}</td></tr></tbody>'
        )
    heads = _heads("Notebook", "Status", "Seconds", "Files")
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


def _title(executed: Path) -> str:
    """The notebook's heading, or its file's name where there is none."""
    with suppress(ValueError):
        cells = read_notebook(executed).cells
        if cells and cells[0].source.startswith("# "):
            return cells[0].source.splitlines()[0].removeprefix("# ").strip()
    return executed.stem


def link_pages(folder: Path, notebooks: list[Path]) -> None:
    """Let the batch's pages lead to each other, to the report and to the checkout's files.

    A link to a notebook leads to its page if the batch has one, else to the notebook itself; any
    other that holds from the notebook's own folder and not from the page's is mended.
    """
    places = {path.stem: path for path in notebooks}
    pages = {stem: page for stem in places if (page := folder / f"{stem}.html").exists()}
    places |= pages

    def way(target: Path) -> str:
        return quote(Path(os.path.relpath(target, folder)).as_posix())

    def follow(found: re.Match) -> str:
        start, address = found.groups()
        target = Path(unquote(unescape(address)))
        if target.suffix in (".ipynb", ".html") and target.stem in places:
            return start + way(places[target.stem])
        source = notebooks[0].parent / target
        if source.exists() and not (folder / target).exists():
            return start + way(source)
        return found[0]

    order, titles = list(places), {path.stem: _title(path) for path in notebooks}
    for k, stem in enumerate(order):
        if stem not in pages:
            continue
        beside = [("prev", "←", order[k - 1 : k]), ("next", "→", order[k + 1 : k + 2])]
        links = [
            f'<a rel="{rel}" href="{way(places[name])}">{sign} {escape(titles[name])}</a>'
            for rel, sign, names in beside
            for name in names
        ]
        links.append('<a href="report.html">report</a>')
        style = "padding: 1em; font-family: system-ui, sans-serif"
        links = " · ".join(links)
        around = f'<nav class="batch" aria-label="Course" style="{style}">{links}</nav>'
        text = pages[stem].read_text(encoding="utf-8", errors="replace")
        text = re.sub(r'<nav class="batch".*?</nav>', "", text)
        text = re.sub(r'(<a\s[^<>]*?href=")(?![\w+.-]+:|[/#])([^"#?<>]+)', follow, text)
        start, main, rest = text.partition("<main>")
        body, end, rest = rest.rpartition("</main>")
        atomic_write(pages[stem], start + main + around + body + around + end + rest)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
