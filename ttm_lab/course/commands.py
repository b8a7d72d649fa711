"""The commands of ``ttm-lab`` that concern the notebooks."""

import argparse
import ast
import json
from contextlib import suppress
from pathlib import Path

from ttm_lab.course.cli import add_command, count, local_path, say
from ttm_lab.course.paper_commands import as_text, check_output, several_seeds
from ttm_lab.files import atomic_write, find_root, read_table

# Each command imports what it works with when it is called: the help of `ttm-lab` shows these
# commands, too, and needs neither papermill nor torch.


def add_commands(commands) -> None:
    """Add the course's commands to the subparsers of ``ttm-lab``."""
    batch = add_command(commands, "reproduce", reproduce)
    add = batch.add_argument
    add("--profile", choices=["quick", "standard", "paper"], default="quick")
    some = "notebooks at a time (default: one a core in quick, as memory allows, else 1)"
    add("--jobs", type=int, metavar="N", help=some)
    add("--timeout", type=float, metavar="S", help="seconds a notebook may take")
    add(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        type=_parameter,
        metavar="NAME=VALUE",
        help="a notebook parameter, such as: -p max_steps=2",
    )
    add("--name", help="folder below runs/reproduce (default: the profile)")
    add("--fresh", action="store_true", help="run again what finished before, too")

    copies = add_command(commands, "handout", handout)
    add = copies.add_argument
    add("--output", metavar="DIR", required=True, help="the folder of the copies")
    add("--overwrite", action="store_true", help="replace copies that are there already")

    for command in (batch, copies):
        command.add_argument(
            "--only",
            nargs="+",
            action="extend",
            metavar="NOTEBOOK",
            help="numbers or names, such as: --only 01 05",
        )
        command.add_argument("--root", metavar="DIR", help="the checkout, if not this folder's")

    add = add_command(commands, "search-digits", search_digits).add_argument
    add("--seeds", type=several_seeds, required=True, help="such as 0-11 or 3,5")
    add("--trials", type=count, default=24, help="for each method (default: 24)")
    text = "default: data/results/digits_search.csv in the checkout"
    add("--output", type=local_path, metavar="FILE", help=text)

    add = add_command(commands, "plan", plan).add_argument
    add("name", metavar="NAME", help="such as cifar100-2x2 (another word lists all)")
    add("--execute", action="store_true", help="train and measure what is not done")
    add("--seeds", type=several_seeds, help="only these, such as 0-2 (default: all)")
    add("--root", type=local_path, metavar="DIR", help="where the images are, or should go")
    add("--jobs", type=count, help="at once (default: what cores or cards allow)")
    add("--threads", type=count, default=1, help="of each run (default: 1)")
    add("--engine", choices=["joblib", "ray"], default="joblib")
    add("--card-share", type=float, default=1.0, help="of a GPU, for each job")


def plan(options) -> int:
    """Print or run a plan of experiments.

    Print a plan's runs, what each costs on this machine (measured now), and what is done.
    --execute runs the rest, and adds a row for each to data/results/NAME.csv.

    Example: ttm-lab plan cifar100-2x2 --execute --root DIR
    """
    import torch

    from ttm_lab.course import experiments, plans

    torch.set_num_threads(options.threads)
    chosen = plans.find(options.name)
    if not options.execute:
        table = experiments.overview(chosen)
        hours = table.loc[~table["done"], "minutes"].sum() / 60
        table["minutes"] = table["minutes"].map("{:.1f}".format)
        print(as_text(table, digits=5))
        print(
            f"\n{table['done'].sum()} of {len(table)} are done; one worker takes {hours:.1f} hours"
        )
        print(f"here for what is left, with threads={options.threads}. --execute runs it.")
        return 0
    failures = 0
    for group, failed in experiments.execute(
        chosen,
        seeds=options.seeds,
        root=options.root,
        workers=options.jobs,
        engine=options.engine,
        card_share=options.card_share,
    ):
        done = f"{len(group) - len(failed)} of {len(group)} runs"
        print(f"{group[0].pair}, seed {group[0].seed}: {done}", flush=True)
        for arm, message in failed.items():
            say(f"{arm}, seed {group[0].seed}, failed: {message}")
        failures += len(failed)
    print(f"Rows: {chosen.table()}")
    return 1 if failures else 0


def reproduce(options) -> int:
    """Run the notebooks and write the report.

    Each notebook runs in its own process; the report is runs/reproduce/NAME/report.html, with the
    executed notebooks beside it. What finished before with the same inputs is skipped.
    """
    from ttm_lab.course import batch

    return batch.reproduce(
        options.profile,
        only=_names(options.only),
        parameters=dict(options.parameters),
        jobs=options.jobs,
        timeout=options.timeout,
        name=options.name,
        root=options.root,
        fresh=options.fresh,
    )


def handout(options) -> int:
    """Copy the notebooks without solutions, for students.

    Stubs and checks of the exercises stay.

    Example: ttm-lab handout --output handout --only 02 03
    """
    from ttm_lab.course.handout import hand_out

    copies = hand_out(
        options.output,
        only=_names(options.only),
        root=options.root,
        overwrite=options.overwrite,
    )
    print(*copies, sep="\n")
    return 0


def search_digits(options) -> int:
    """Search the settings of notebooks 5 and 6.

    Random search on validation digits, with the same number of trials for every method. The
    settings chosen for these seeds replace older ones of the same seeds. The same command
    continues a search that was stopped.

    Example: ttm-lab search-digits --seeds 0-11
    """
    import pandas as pd

    from ttm_lab.course import digits

    root = find_root()
    if options.output is None and not (root / "notebooks").is_dir():
        raise ValueError("change into the checkout, or name --output")
    check_output("--output", options.output, ".csv")
    output = Path(options.output or root / "data" / "results" / "digits_search.csv")
    _check_budget(output, options.trials)
    chosen = digits.choose(digits.search(options.seeds, output, trials=options.trials))
    others = digits.chosen_settings()
    others = others[~others["seed"].isin(chosen["seed"])]
    merged = pd.concat([others, chosen]).sort_values(["seed", "family", "method"])
    atomic_write(digits.SETTINGS_FILE, merged.to_csv(index=False))
    print(f"Trials: {output}\nChosen settings: {digits.SETTINGS_FILE}")
    return 0


def _check_budget(output: Path, trials: int) -> None:
    """Refuse to continue a table that holds another number of trials for each method."""
    if not output.exists():
        return
    try:
        counts = set(read_table(output).groupby(["seed", "family", "method"]).size())
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{output} is no table of trials ({error}): remove it, or name another --output"
        ) from error
    if counts != {trials}:
        raise ValueError(
            f"{output} holds {sorted(counts)} trials for each method, so --trials {trials} would "
            "not be an equal budget: use the same number, or another --output"
        )


def _names(only: list[str] | None) -> list[str] | None:
    """The notebooks named by ``--only``, with commas or spaces between them."""
    return only and [name for word in only for name in word.split(",") if name]


def _parameter(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        value = ast.literal_eval(value)  # what fails is a plain word, a string
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a parameter is a number, text, None, True, False, or lists of them"
        ) from None
    return name, value
