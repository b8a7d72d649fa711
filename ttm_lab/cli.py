"""The command ``ttm-lab``: a thin door to the functions of the package."""

import argparse
import ast
import signal
import sys
from pathlib import Path

from ttm_lab import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 failed, 2 refused, 130 stopped."""
    options = _parser().parse_args(arguments)
    if options.command == "search-digits":
        return _search_digits(options)
    try:
        from ttm_lab import reproduce  # needs the notebooks extra, which --help does not
    except ModuleNotFoundError as missing:
        print(
            f"{missing.name} is not installed; it comes with: pip install 'ttm-lab[notebooks]'",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as tidily as on Ctrl-C
    try:
        return reproduce.reproduce(
            options.profile,
            only=options.only and [part for parts in options.only for part in parts],
            parameters=dict(options.parameters),
            jobs=options.jobs,
            timeout=options.timeout,
            name=options.name,
            root=options.root,
            fresh=options.fresh,
        )
    except reproduce.Refused as refused:
        print(f"ttm-lab: {refused}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nStopped. Finished notebooks are kept: the same command goes on from here.",
            file=sys.stderr,
        )
        return 130


def _search_digits(options) -> int:
    """Search, and put what was chosen for these seeds beside what was chosen for others."""
    import pandas as pd

    from ttm_lab import runs, studies

    root = runs.find_root()
    if options.output is None and not (root / "notebooks").is_dir():
        print("ttm-lab: change into the checkout, or name --output", file=sys.stderr)
        return 2
    output = Path(options.output or root / "data" / "results" / "digits_search.csv")
    if output.exists():
        counts = runs.read_table(output).groupby(["seed", "family", "method"]).size()
        if set(counts) != {options.trials}:
            print(
                f"ttm-lab: {output} holds {sorted(set(counts))} trials for each method, so "
                f"--trials {options.trials} would not be an equal budget: use the same number, "
                "or another --output",
                file=sys.stderr,
            )
            return 2
    chosen = studies.choose(studies.search(options.seeds, output, trials=options.trials))
    others = studies.chosen_settings()
    others = others[~others["seed"].isin(chosen["seed"])]
    merged = pd.concat([others, chosen]).sort_values(["seed", "family", "method"])
    runs.atomic_write(studies.SETTINGS_FILE, merged.to_csv(index=False))
    print(f"Trials: {output}\nChosen settings: {studies.SETTINGS_FILE}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ttm-lab", description="The course as a batch.")
    parser.add_argument("--version", action="version", version=f"ttm-lab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    batch = commands.add_parser(
        "reproduce",
        help="run the notebooks and write the report",
        description="Run the notebooks, each in its own process, and write runs/reproduce/NAME/"
        "report.html. What finished before with the same inputs is skipped.",
    )
    batch.add_argument("--profile", choices=["quick", "standard", "paper"], default="quick")
    batch.add_argument(
        "--only",
        nargs="+",
        metavar="NOTEBOOK",
        type=lambda text: [part for part in text.split(",") if part],
        help="numbers or names, such as: --only 01 05",
    )
    batch.add_argument("--jobs", type=int, default=1, help="notebooks at a time (default: 1)")
    batch.add_argument("--timeout", type=float, metavar="S", help="seconds a notebook may take")
    batch.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        type=_parameter,
        metavar="NAME=VALUE",
        help="a notebook parameter, such as: -p max_steps=2",
    )
    batch.add_argument("--name", help="folder below runs/reproduce (default: the profile)")
    batch.add_argument("--root", metavar="DIR", help="the checkout, if not the current folder")
    batch.add_argument("--fresh", action="store_true", help="run again what finished before, too")
    search = commands.add_parser(
        "search-digits",
        help="search the settings of notebooks 5 and 6",
        description="Random search on validation digits, the same number of trials for every "
        "method. Goes on where it was stopped. Example: ttm-lab search-digits --seeds 0-11",
    )
    search.add_argument("--seeds", type=_seeds, required=True, help="such as 0-11 or 3,5")
    search.add_argument(
        "--trials", type=_positive, default=24, help="for each method (default: 24)"
    )
    search.add_argument(
        "--output", metavar="FILE", help="default: data/results/digits_search.csv in the checkout"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seeds(text: str) -> list[int]:
    try:
        ends = [part.partition("-")[::2] for part in text.split(",")]
        seeds = [range(int(a), int(b or a) + 1) for a, b in ends]
        if not all(seeds):
            raise ValueError
        return [seed for several in seeds for seed in several]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0-11 or 3,5") from None


def _parameter(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a plain word is a string
