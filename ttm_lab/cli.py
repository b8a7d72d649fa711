"""The command ``ttm-lab``: a thin door to the functions of the package."""

import argparse
import ast
import signal
import sys

from ttm_lab import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 failed, 2 refused, 130 stopped."""
    options = _parser().parse_args(arguments)
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
            only=[part for parts in options.only or [] for part in parts],
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
    return parser


def _parameter(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a plain word is a string
