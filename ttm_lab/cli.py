"""The command ``ttm-lab``: one short function a command, whose docstring is its help.

What takes long to import is imported when a command is called, so that help and refusals come at
once.
"""

import argparse
import inspect
import io
import os
import re
import signal
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from ttm_lab import __version__
from ttm_lab.files import atomic_write, user_path


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


# The commands -------------------------------------------------------------------------------------


def _evaluate(options) -> int:
    """Measure trained networks.

    Accuracy, negative log-likelihood, Brier score, calibration error, entropy and confidence of
    the networks in run folders or files of weights.

    Example: ttm-lab evaluate runs/cifar100-resnet56-resnet20/wttm-seed0-*
    """
    import pandas as pd

    from ttm_lab import runs
    from ttm_lab.analysis import evaluate
    from ttm_lab.checks import check_network
    from ttm_lab.models import check_model, create_model, load_weights, weights_file
    from ttm_lab.settings import default_device

    check_device(options.device)
    check_output("--output", options.output, ".csv")
    configs, models = {}, {}
    for source in options.weights:
        weights_file(source)
        configs[source] = runs.read_config(source) if Path(source).is_dir() else None
        if not (options.model or configs[source]):
            raise ValueError(
                f"{source} is not the folder of a run: for a file of weights, say whose it is "
                "with --model"
            )
        models[source] = options.model or configs[source]["settings"]["model"]
        check_model(models[source])
    options.data, options.split_seed = _data_of_runs(options, configs)
    data = load_data(options, list(models.values()))
    part = getattr(data, options.part)
    if not len(part):
        raise ValueError(f"the {options.part} part is empty: keep pictures aside with --validation")
    rows = {}
    for source, model in models.items():
        network = create_model(model, data.num_classes)
        if configs[source]:
            runs.load_finished(source, network)
        else:
            load_weights(network, weights_file(source))
        check_network(model, network, replace(data, train=part))
        if configs[source] and configs[source]["data"]["sha256"] != data.fingerprint:
            say(
                f"note: {source} was not trained on exactly these data, or on another "
                "split of them (--validation, --split-seed, --size)"
            )
        rows[source] = evaluate(network.to(default_device(options.device)), part)
    table = pd.DataFrame(rows).T.rename_axis("weights")
    if options.output:
        atomic_write(options.output, table.to_csv())
    print(f"{data.name}, {options.part}: {len(part):,} pictures")
    print(as_text(table, digits=4))
    return 0


def _data_of_runs(options, configs: dict) -> tuple[str | None, int | None]:
    """Name and seed of the data to evaluate on: as asked for, else those of the runs."""
    from ttm_lab.data.sources import NAMES

    made_from = {(c["data"]["name"], c["data"]["seed"]) for c in configs.values() if c}
    if options.data or not made_from:
        return options.data, options.split_seed
    if len(made_from) > 1:
        names = ", ".join(f"{name} (split seed {seed})" for name, seed in sorted(made_from))
        raise ValueError(f"these runs were trained on {names}: name one with --data, --split-seed")
    name, seed = made_from.pop()
    if name not in NAMES:
        raise ValueError(
            f"{next(iter(configs))} was trained on pictures of a folder {name}: say where it is "
            "with --data folder --root DIR"
        )
    return name, seed if options.split_seed is None else options.split_seed


def _fetch_teacher(options) -> int:
    """Download a published CIFAR-100 teacher.

    The teachers are those that the paper used, from the address of the RepDistiller benchmark.

    Example: ttm-lab fetch-teacher resnet56 wrn_40_2
    """
    from ttm_lab.models import fetch_teacher

    paths = [fetch_teacher(name, options.folder) for name in options.names]
    print(*paths, sep="\n")
    return 0


# What they share ----------------------------------------------------------------------------------


def check_device(device: str | None) -> None:
    import torch

    if device is None:
        return
    try:
        kind = torch.device(device)
        if "RANK" not in os.environ:  # under torchrun each process has its own GPU, not this one
            torch.empty(1, device=kind).cpu()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = re.split(r"\. |\n", str(error))[0]  # torch goes on for pages
        raise ValueError(f"--device {device} cannot be used here: {reason}") from error


def check_output(option: str, path: str | None, ending: str) -> None:
    """Before the long work: can the file be written afterwards? Raises ``ValueError`` if not."""
    if path is None:
        return
    if Path(path).suffix != ending:
        raise ValueError(f"{option} {path} must end in {ending}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=Path(path).parent).close()
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written: {error.strerror}") from error


def load_data(options, models):
    from ttm_lab import distributed
    from ttm_lab.data import load_dataset
    from ttm_lab.data.sources import NAMES
    from ttm_lab.models import model_name

    student = model_name(models[-1])
    name, size = options.data or ("imagenet" if "/" in student else "cifar100"), options.size
    if size is None and name in ("digits", "fashion_mnist") and "cnn" not in student:
        size = 32  # small grey images, as CIFAR networks take them
    values = {"seed": options.split_seed or 0, "size": size, "root": options.root}
    values |= {"workers": options.workers, "test_share": options.test_share}
    if name != "digits" or options.validation is not None:
        values["validation"] = options.validation or 0.0
    # one process downloads, the others then find the files
    with distributed.first_process_first():
        data = load_dataset(name, **values)
    if data.name != "folder":
        return data
    name = Path(options.root).resolve().name
    # a folder that happens to be called cifar100 is still not that data set
    return replace(data, name=f"folder-{name}" if name in NAMES else name)


def as_text(table, digits: int = 2) -> str:
    text = table.to_string(float_format=lambda x: f"{x:.{digits}f}", na_rep="-")
    return "\n".join(line.rstrip() for line in text.splitlines())


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

    evaluate = add_command(commands, "evaluate", _evaluate)
    add = evaluate.add_argument
    add("weights", nargs="+", type=local_path, metavar="PATH", help="run folders, or files")
    add("--model", metavar="NAME", help="whose weights the files hold, such as resnet56")
    add("--part", choices=["train", "validation", "test"], default="test", help="default: test")

    add("--output", type=local_path, metavar="FILE.csv", help="write the numbers there, too")
    add_data_options(evaluate, "those of the run, else ")

    add = add_command(commands, "fetch-teacher", _fetch_teacher).add_argument
    add("names", nargs="+", metavar="NAME", help="such as resnet56")
    add("--folder", type=local_path, help="default: data/downloads/teachers in the checkout")
    return parser


def add_data_options(parser, default: str = "") -> None:
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    add = parser.add_argument_group("data").add_argument
    names = "cifar100, cifar10, fashion_mnist, imagenet, folder or digits (default: "
    names += f"{default}cifar100, and imagenet for its networks)"
    add("--data", metavar="NAME", help=names)
    add("--root", type=local_path, metavar="DIR", help="where the images are, or should go")
    side = "of the images (default: their own; 224 for large ones; 32 where CIFAR networks get "
    side += "small grey ones)"
    add("--size", type=count, metavar="PIXELS", help=side)
    share = "of the training images, kept aside (default: 0, as in the paper's code)"
    add("--validation", type=float, metavar="SHARE", help=share)
    add("--test-share", type=float, metavar="SHARE", help="drawn from a folder without a test part")
    add("--split-seed", type=partial(count, least=0), help="draws them (default: 0)")
    workers = "processes that decode image files (default: one for each core, at most 8)"
    add("--workers", type=int, help=workers)


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
