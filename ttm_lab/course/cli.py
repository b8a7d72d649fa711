"""The program ``ttm-lab``: it parses, calls a command, and says what went wrong in one line.

A command is a short function whose docstring is its help, and imports what takes long when it is
called, so that help and refusals come at once.
"""

import argparse
import inspect
import io
import os
import signal
import sys
from functools import partial

from ttm_lab import __version__
from ttm_lab.files import user_path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 failed, 2 refused, 130 stopped."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stopped:  # after --help or a refusal
        return stopped.code
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as tidily as on Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a console cannot show is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        return options.run(options)
    except ModuleNotFoundError as missing:
        say(f"{missing.name} is not installed; it comes with: pip install 'ttm-lab[notebooks]'")
        return 2
    except (ValueError, ImportError, FileNotFoundError, ConnectionError) as error:
        say(error)
        return 2
    except (FloatingPointError, OSError, MemoryError) as error:
        say(error)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        say("stopped. The same command goes on from the last resume point.")
        return 130
    except RuntimeError as error:
        if "memory" in str(error):  # torch's word for too little of it
            reason = str(error).partition("\n")[0]
            say(f"{reason}: give a smaller --batch-size or --size, or fewer seeds at a time")
        elif int(os.environ.get("WORLD_SIZE") or 1) > 1:
            say(
                f"process {os.environ['RANK']} cannot go on, most likely because another one was "
                f"lost ({error}). Start the same command again: it goes on from the last resume "
                "point."
            )
        else:
            raise
        return 1


def say(message) -> None:
    print(f"ttm-lab: {message}", file=sys.stderr)


# The options --------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Shows texts as they are written, and says what is wrong in one line."""

    def __init__(self, **options):
        formatter = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
        super().__init__(formatter_class=formatter, **options)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_command(commands, name: str, run) -> argparse.ArgumentParser:
    """A command's parser; ``run(options)`` returns the exit status, its docstring is the help."""
    text = inspect.cleandoc(run.__doc__)
    parser = commands.add_parser(name, help=text.splitlines()[0], description=text)
    parser.set_defaults(run=run)
    return parser


def _parser() -> argparse.ArgumentParser:
    from ttm_lab.course import commands as course
    from ttm_lab.course import paper_commands

    parser = _Parser(
        prog="ttm-lab",
        description="Distil by TTM and WTTM: the paper's tables, and the course as a batch.",
    )
    parser.add_argument("--version", action="version", version=f"ttm-lab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    course.add_commands(commands)
    paper_commands.add_commands(commands)
    return parser


def local_path(text: str) -> str:
    """Read a path, whose ``~`` is the home folder: shells leave that of --root=~/images."""
    try:
        return str(user_path(text)) if text[:1] == "~" else text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str, least: int = 1) -> int:
    """Read a whole number of at least ``least``."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)
