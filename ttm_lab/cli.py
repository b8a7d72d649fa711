"""The command ``ttm-lab``: a thin door to the functions of the package."""

import argparse
import ast
import io
import json
import os
import re
import signal
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from ttm_lab import __version__
from ttm_lab.files import atomic_write, find_root, read_table, runs_folder, user_path

_LOSS_FIELDS = ("temperature", "distill_weight", "ce_weight")
_NETWORK = "a network, such as resnet56 or wrn-40-2 (any other word lists all)"
_TRAINING_FIELDS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "augmentation",
    "precision",
    "compiled",
    "track_test",
    "max_steps",
)
_ASKING_FIELDS = ("remember", "fold_batch_norm")
# No machine holds, and nobody waits for, more of anything; each seed is a training of its own.
_MOST, _MOST_SEEDS = 10**9, 1000


class _Output:
    """Standard output or error that may fail without stopping the work: closed, or a full disk.

    What its encoding has no characters for is written as ``\\u...``.
    """

    def __init__(self, stream):
        self.stream = io.StringIO() if stream is None else stream  # None: closed by `>&-`
        self.error = None

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        encoding = self.stream.encoding or "utf-8"
        self._try(self.stream.write, text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, function, *arguments) -> None:
        if self.error is not None:
            return
        try:
            function(*arguments)
        except OSError as error:
            self.error = error
            with suppress(OSError):  # else Python tries once more at its end, and complains
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 failed, 2 refused, 130 stopped."""
    output, errors = _Output(sys.stdout), _Output(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            status = _main(sys.argv[1:] if arguments is None else arguments)
        except SystemExit as stopped:  # argparse, after --help or a refusal
            status = stopped.code
        output.flush()
        # whoever closes a pipe has seen enough
        if output.error and not isinstance(output.error, BrokenPipeError):
            _say(f"not everything could be shown ({output.error}); no file is missing")
            status = status or 1
        errors.flush()
    return status


def _say(message) -> None:
    print(f"ttm-lab: {message}", file=sys.stderr)


def _main(arguments: list[str]) -> int:
    for word in arguments:
        if re.search("[\x00-\x1f\x7f\ud800-\udfff]", word):
            _say(
                f"{word!a:.100} has characters that are no text: write it anew, or rename that file"
            )
            return 2
        if not word.strip() or re.fullmatch("--[^=]*=\\s*", word):
            _say(f"{word!r:.100} is empty where a word belongs: is a variable of the shell unset?")
            return 2
    options = _parser().parse_args(arguments)
    try:
        vars(options).update({name: _at_home(value) for name, value in vars(options).items()})
    except ValueError as error:
        _parser().error(str(error))
    commands = {
        "reproduce": _reproduce,
        "handout": _handout,
        "search-digits": _search_digits,
        "train-teacher": _train_teacher,
        "distill": _distill,
        "evaluate": _evaluate,
        "fetch-teacher": _fetch_teacher,
        "remember-teacher": _remember_teacher,
    }
    # what is wrong with a command's input becomes one line, not a traceback
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as tidily as on Ctrl-C
    from ttm_lab import distributed

    try:
        processes = distributed.started()
        return commands[options.command](options)
    except ModuleNotFoundError as missing:
        _say(f"{missing.name} is not installed; it comes with: pip install 'ttm-lab[notebooks]'")
        return 2
    except (ValueError, ImportError, FileNotFoundError, ConnectionError) as error:
        _say(error)
        return 2
    except (FloatingPointError, OSError) as error:
        path = getattr(error, "filename", None)
        ways = "--output, --root, --folder, TTM_LAB_RUNS and TTM_LAB_DATA name other places"
        _say(f"{error.strerror}: {str(path)[:300]} ({ways})" if path else error)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        _say("stopped. The same command goes on from the last resume point.")
        return 130
    except (MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if reason.startswith("Symlink loop"):  # what Python before 3.13 says
            _say(f"{reason}: mend that link, or name another path")
        elif isinstance(error, MemoryError) or "memory" in reason:
            _say(
                f"the memory is too small for this ({reason}): give a smaller --batch-size or "
                "--size, or fewer seeds or methods at a time"
            )
        elif processes > 1:
            _say(
                f"process {os.environ.get('RANK')} cannot go on, most likely because another one "
                f"was lost ({error}). Start the same command again: it goes on from the last "
                "resume point."
            )
        else:
            raise
        return 1


def _at_home(value):
    """A path as ``user_path`` reads it: shells leave the ~ of --root=~/pictures."""
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    return str(user_path(value)) if isinstance(value, str) and value[:1] == "~" else value


def _only(options) -> list[str] | None:
    return options.only and [part for parts in options.only for part in parts]


def _reproduce(options) -> int:
    from ttm_lab.course import batch

    return batch.reproduce(
        options.profile,
        only=_only(options),
        parameters=dict(options.parameters),
        jobs=options.jobs,
        timeout=options.timeout,
        name=options.name,
        root=options.root,
        fresh=options.fresh,
    )


def _handout(options) -> int:
    from ttm_lab.course import handout

    for copy in handout.hand_out(
        options.output, only=_only(options), root=options.root, overwrite=options.overwrite
    ):
        print(copy)
    return 0


def _train_teacher(options) -> int:
    from ttm_lab import distributed, paper, training

    changes = _given(options, _TRAINING_FIELDS)
    paper.check_model(options.model)
    settings = paper.teacher_settings(options.model, **changes)
    _check_device(options.device)
    with distributed.processes(options.device) as device:
        data = _load_data(options, [options.model])
        folder = runs_folder(paper.teacher_folder(data, options.model))
        trained = training.train_teacher(
            data, settings, seed=options.seed, folder=folder, device=device
        )
        if distributed.rank() > 0:
            return 0
    measured = paper.measure(paper.Row(trained, []), data)
    table = paper.summarise(measured, options.model, "")
    print("Top-1 accuracy on the test part in per cent:")
    print(_as_text(table.dropna(axis="columns", how="all").drop(columns="seeds")))
    print(f"\nRun: {trained.folder}")
    print(f"Distil from it with: ttm-lab distill --teacher {trained.folder} ...")
    return 0


def _distill(options) -> int:
    from ttm_lab import distributed, paper
    from ttm_lab.analysis import compare_seeds
    from ttm_lab.data import Split

    teacher, student = options.pair
    changes = _given(options, (*_TRAINING_FIELDS, *_LOSS_FIELDS, *_ASKING_FIELDS))
    _check_device(options.device)
    _check_output(options.output)
    _check_output(options.keep_logits, "--keep-logits", ".npz")
    for name in options.pair:
        paper.check_model(name)
    methods = options.methods or _default_methods(teacher, student, changes)
    paper.check_pair(
        teacher,
        student,
        methods,
        seeds=options.seeds,
        weights=options.teacher,
        changes=changes,
    )
    with distributed.processes(options.device) as device:
        data = _load_data(options, options.pair)
        if options.remember is None and not isinstance(data.train, Split):
            changes.pop("remember", None)  # large pictures have no countable views
        networks = [paper.model_name(name).replace("/", "-") for name in (teacher, student)]
        row = paper.distil_pair(
            data,
            teacher,
            student,
            methods,
            seeds=options.seeds,
            weights=options.teacher,
            folder=runs_folder("-".join([data.name, *networks])),
            changes=changes,
            device=device,
        )
        if distributed.rank() > 0:
            return 0
    measured = paper.measure(row, data)
    if options.output:
        paper.save_results(options.output, row, measured, data)
    if options.keep_logits:
        paper.save_outputs(options.keep_logits, row, data, options.per_class)
    table = paper.summarise(measured, teacher, student)
    known = table["paper"].notna()
    print("Top-1 accuracy on the test part in per cent, with 95 % t intervals over seeds:")
    print(_as_text(table if known.any() else table.drop(columns=["paper", "paper std"])))
    if known.any():
        sources = paper.published_row(teacher, student, measured["dataset"].iloc[0])["source"]
        tables = sources[table.index[known]].str.extract(r"(Table \d+)")[0].unique()
        print(f"paper: Zheng and Yang (ICLR 2024), {', '.join(tables)}")
        same = ("track_test", "compiled", *_ASKING_FIELDS)  # up to rounding
        changed = [f"{name}={value}" for name, value in changes.items() if name not in same]
        if changed:
            print(f"These runs differ from the published recipe: {', '.join(changed)}.")
        if "/" in paper.model_name(student):
            print("The paper does not state its ImageNet recipe: that of its library is assumed.")
    else:
        print(f"The paper has no results of this pair on {data.name}.")
    students = measured[measured["method"] != "teacher"]
    if "KD" in set(students["method"]) and students["method"].nunique() > 1:
        differences = compare_seeds(students, "KD").set_index("method")
        differences = 100 * differences[["difference", "low", "high"]]
        print("\nAccuracy minus KD, in pairs over seeds, with 95 % t intervals, in points:")
        print(_as_text(differences))
    print(f"\nRuns: {row.students[0].folder.parent}")
    if options.output:
        print(f"Table: {options.output}")
    if options.keep_logits:
        print(f"Logits: {options.keep_logits}")
    return 0


def _default_methods(teacher: str, student: str, changes: dict) -> list[str]:
    """The paper's methods, less KD and TTM where the paper has no settings for them."""
    from ttm_lab import paper

    methods = ["ce"]
    for method in ("kd", "ttm", "wttm"):
        found = paper.published_loss(teacher, student, method, mean_weight=1.0) | changes
        if method == "wttm" or {"temperature", "distill_weight"} <= found.keys():
            methods.append(method)
        elif os.environ.get("RANK", "0") == "0":
            _say(
                f"no {method}: its settings for this pair are not published (to run it, "
                "name --methods, --temperature and --distill-weight)"
            )
    return methods


def _evaluate(options) -> int:
    import pandas as pd

    from ttm_lab import paper
    from ttm_lab.analysis import evaluate

    _check_device(options.device)
    _check_output(options.output)
    sources = {str(Path(source)): _run_config(source) for source in options.weights}
    for source, config in sources.items():
        if not (options.model or config):
            raise ValueError(
                f"{source} is not the folder of a run: for a file of weights, say whose it is "
                "with --model"
            )
    models = [options.model or config["settings"]["model"] for config in sources.values()]
    for source, model in zip(sources, models, strict=True):
        paper.check_model(model)
        paper.weights_file(source)
    options.data, options.split_seed = _data_of_runs(options, sources)
    data = _load_data(options, models)
    part = getattr(data, options.part)
    if not len(part):
        raise ValueError(f"the {options.part} part is empty: keep pictures aside with --validation")
    names = [Path(source).resolve().name for source in sources]
    rows = {}
    for (source, config), model, name in zip(sources.items(), models, names, strict=True):
        try:
            trained = paper.load_teacher(model, source, data.num_classes)
        except ValueError as error:
            if "does not fit" not in str(error):
                raise
            raise ValueError(
                f"{error}. {data.name} has {data.num_classes} classes: name the data that the "
                "network was trained on with --data, and the network with --model"
            ) from error
        if config and config["data"]["sha256"] != data.fingerprint:
            _say(
                f"note: {source} was not trained on exactly these data, or on another "
                "split of them (--validation, --split-seed, --size)"
            )
        network = trained.model.to(options.device or _best_device())
        try:
            rows[name if names.count(name) == 1 else source] = evaluate(network, part)
        except (RuntimeError, AssertionError) as error:  # timm asserts the size
            if "memory" in str(error):
                raise
            raise ValueError(
                f"{model} does not take the pictures of {data.name} ({error}): give their --size, "
                "or the --data that it was trained on"
            ) from error
    table = pd.DataFrame(rows).T
    table.index.name = "weights"
    if options.output:
        atomic_write(options.output, table.to_csv())
    print(f"{data.name}, {options.part}: {len(part):,} pictures")
    print(_as_text(table, digits=4))
    return 0


def _run_config(source: str) -> dict | None:
    """What made a run's folder, or None for a file."""
    from ttm_lab import runs

    if not Path(source).exists():
        raise FileNotFoundError(f"there is no file or folder {source}")
    return runs.read_config(source) if (Path(source) / "config.json").exists() else None


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


def _remember_teacher(options) -> int:
    from ttm_lab import paper, training

    changes = _given(options, _TRAINING_FIELDS)
    paper.check_pair(options.model, options.model, ["ce"], weights=options.teacher, changes=changes)
    _check_device(options.device)
    data = _load_data(options, [options.model])
    teacher = paper.obtain_teacher(
        data,
        options.model,
        options.teacher,
        folder=runs_folder("-"),
        changes=changes,
        device=options.device,
    )
    memory = training.remember_teacher(
        teacher,
        data,
        paper.teacher_settings(options.model, **changes),
        remembered=runs_folder("remembered"),
        device=options.device,
    )
    views = data.train.count_views(memory.augmentation)
    print(f"{memory.asked:,} views: {len(data.train):,} pictures, {views} views each")
    print(f"computed now: {memory.computed:,}, known before: {memory.asked - memory.computed:,}")
    print(f"{memory.size_in_bytes / 1e9:.2f} GB: {memory.path}")
    print("ttm-lab distill --remember (or --fast) reads it, with the same teacher and precision.")
    return 0


def _fetch_teacher(options) -> int:
    from ttm_lab.models import fetch_teacher

    for path in [fetch_teacher(name, options.folder) for name in options.names]:
        print(path)
    return 0


def _given(options, names) -> dict:
    """The settings that the command line names; the others stay the recipe's.

    Digits are moved but, unlike what the recipe does with photographs, not mirrored.
    """
    from ttm_lab import training

    given = {name: getattr(options, name, None) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    preset = training.fast(options.device) if options.fast else {}
    preset = {name: value for name, value in preset.items() if name in names}
    return preset | ({"augmentation": "crop"} if options.data == "digits" else {}) | given


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_device(device: str | None) -> None:
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


def _check_output(path: str | None, option: str = "--output", ending: str = ".csv") -> None:
    """Before the long work: can the file be written afterwards?"""
    if path is None:
        return
    if Path(path).suffix != ending:
        raise ValueError(f"{option} {path} must end in {ending}")
    if Path(path).is_dir():
        raise ValueError(f"{option} {path} is a folder")
    try:
        whole = Path(path).absolute().with_suffix(".json")  # which goes beside it
        folder = next(p for p in whole.parents if p.exists())
        for name in whole.relative_to(folder).parts:
            with suppress(FileNotFoundError):  # other errors: a name too long, a file for a folder
                (folder / name).lstat()
        tempfile.TemporaryFile(dir=folder).close()  # the one sure test; it leaves nothing
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written: {error.strerror}") from error


def _load_data(options, models):
    from ttm_lab import distributed, paper
    from ttm_lab.data import load_dataset
    from ttm_lab.data.folders import layout
    from ttm_lab.data.sources import NAMES

    ours = [paper.model_name(model) for model in models]
    name = options.data or ("imagenet" if "/" in ours[-1] else "cifar100")
    size = options.size
    if size is None and name in ("digits", "fashion_mnist") and "cnn" not in ours[-1]:
        size = 32  # small grey pictures, as CIFAR networks take them
    values = {"seed": options.split_seed or 0, "size": size, "root": options.root}
    if name == "digits":
        if options.validation is not None or options.root is not None:
            raise ValueError(
                "the digits come with scikit-learn, in fixed shares of 60 % train, 20 % validation "
                "and 20 % test: leave out --validation and --root"
            )
    else:
        values |= {"validation": options.validation or 0.0, "skip_corrupt": options.skip_corrupt}
        values |= {"workers": options.workers}
    if name in ("folder", "imagenet") and options.root is None:
        raise ValueError(f"--data {name} needs --root DIR: {layout(name, 'DIR')}")
    # one process downloads, the others then find the files
    with distributed.first_process_first():
        data = load_dataset(name, **values)
    if name != "folder":
        return data
    name = Path(options.root).resolve().name
    # a folder that happens to be called cifar100 is still not that data set
    return replace(data, name=f"folder-{name}" if name in NAMES else name)


def _as_text(table, digits: int = 2) -> str:
    text = table.to_string(float_format=lambda x: f"{x:.{digits}f}", na_rep="-")
    return "\n".join(line.rstrip() for line in text.splitlines())


def _search_digits(options) -> int:
    """Search, and put what was chosen for these seeds beside what was chosen for others."""
    import pandas as pd

    from ttm_lab.course import digits

    root = find_root()
    if options.output is None and not (root / "notebooks").is_dir():
        raise ValueError("change into the checkout, or name --output")
    _check_output(options.output)
    output = Path(options.output or root / "data" / "results" / "digits_search.csv")
    if output.exists():
        try:
            counts = read_table(output).groupby(["seed", "family", "method"]).size()
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{output} is no table of trials ({error}): remove it, or name another --output"
            ) from error
        if set(counts) != {options.trials}:
            raise ValueError(
                f"{output} holds {sorted(set(counts))} trials for each method, so "
                f"--trials {options.trials} would not be an equal budget: use the same number, "
                "or another --output"
            )
    chosen = digits.choose(digits.search(options.seeds, output, trials=options.trials))
    others = digits.chosen_settings()
    others = others[~others["seed"].isin(chosen["seed"])]
    merged = pd.concat([others, chosen]).sort_values(["seed", "family", "method"])
    atomic_write(digits.SETTINGS_FILE, merged.to_csv(index=False))
    print(f"Trials: {output}\nChosen settings: {digits.SETTINGS_FILE}")
    return 0


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without all options before it."""

    def error(self, message: str):
        message = message if len(message) < 400 else f"{message[:300]} ... {message[-90:]}"
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ttm-lab",
        description="Distil by TTM and WTTM: the paper's tables, and the course as a batch.",
    )
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
        "--jobs",
        type=int,
        metavar="N",
        help="notebooks at a time (default: one a core in quick, as memory allows, else 1)",
    )
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
    batch.add_argument("--fresh", action="store_true", help="run again what finished before, too")
    copies = commands.add_parser(
        "handout",
        help="copy the notebooks without solutions, for students",
        description="Copy the notebooks without their solutions; stubs and checks stay.",
        epilog="Example: ttm-lab handout --output handout --only 02 03",
        formatter_class=_HelpFormatter,
    )
    copies.add_argument("--output", metavar="DIR", required=True, help="the folder of the copies")
    copies.add_argument(
        "--overwrite", action="store_true", help="replace copies that are there already"
    )
    for command in (batch, copies):
        command.add_argument(
            "--only",
            nargs="+",
            metavar="NOTEBOOK",
            type=lambda text: [part for part in text.split(",") if part],
            help="numbers or names, such as: --only 01 05",
        )
        command.add_argument("--root", metavar="DIR", help="the checkout, if not this folder's")
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
    _add_training_commands(commands)
    return parser


def _add_training_commands(commands) -> None:
    def add(name: str, help: str, description: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help,
            description=description,
            epilog=f"Example: {example}",
            formatter_class=_HelpFormatter,
        )

    teacher = add(
        "train-teacher",
        "train a teacher on the labels",
        "Train one network by the recipe of the paper's code, and print its test accuracy.\n"
        "Runs are kept in runs/; the same command goes on where it was stopped.",
        "ttm-lab train-teacher --model resnet56 --data cifar100",
    )
    teacher.add_argument("--model", required=True, metavar="NAME", help=_NETWORK)
    teacher.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="draws initial weights and order (default: 0)",
    )

    distill = add(
        "distill",
        "make a row of the paper's tables",
        "Train or load the pair's teacher, distil a student for each method and seed with the\n"
        "published settings, and print the accuracies with intervals beside the paper's. Nothing\n"
        "is chosen on the way: all training pictures are used and the last epoch counts. Runs are\n"
        "kept in runs/; the same command goes on where it was stopped.",
        "ttm-lab distill --pair resnet56:resnet20 --methods kd,ttm,wttm --seeds 5\n"
        "Several GPUs: torchrun --nproc-per-node 4 -m ttm_lab distill --pair resnet56:resnet20\n"
        "(--batch-size is the batch of all processes together, so the learning rate stays.)",
    )
    distill.add_argument(
        "--pair", type=_pair, required=True, metavar="TEACHER:STUDENT", help=f"each {_NETWORK}"
    )
    distill.add_argument(
        "--methods",
        type=lambda text: text.lower().split(","),
        metavar="NAMES",
        help="of ce, kd, ttm, wttm, dkd, dist (default: ce,kd,ttm,wttm, as far as published)",
    )
    distill.add_argument(
        "--seeds",
        type=_number_of_seeds,
        default=[0],
        metavar="N",
        help="how many students of each method, with the seeds 0 to N-1 (default: 1); or which, "
        "as in 3-5 or 0,7",
    )
    distill.add_argument(
        "--teacher",
        metavar="PATH",
        help="the teacher's weights: a file, a run's folder, or the word published (default: it is "
        "trained first; for ImageNet's networks, published)",
    )
    group = distill.add_argument_group("loss, of every method but ce")
    for name in _LOSS_FIELDS:
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            metavar="X",
            help="instead of the published one",
        )
    remember = add(
        "remember-teacher",
        "ask a teacher about every view of every picture, once",
        "Train or load a teacher as distill does, and keep its logits for every crop and flip of\n"
        "every training picture (CIFAR-100: 8.1 million views, 3.3 GB) in runs/remembered, where\n"
        "distill --remember finds them. The same command goes on where it was stopped.",
        "ttm-lab remember-teacher --model resnet56 --data cifar100",
    )
    remember.add_argument("--model", required=True, metavar="NAME", help=_NETWORK)
    remember.add_argument(
        "--teacher", metavar="PATH", help="its weights, as for distill (default: it is trained)"
    )
    distill.add_argument_group("speed, of every method but ce").add_argument(
        "--remember",
        action=argparse.BooleanOptionalAction,
        help="keep the teacher's logits in runs/remembered and use them again (default: no)",
    )
    for parser in (teacher, distill, remember):
        group = parser.add_argument_group("training")
        group.add_argument(
            "--fast",
            action="store_true",
            help="what makes training faster at the same accuracy here: bfloat16 where the "
            "hardware has it, and --remember for pictures of at most 64x64",
        )
        group.add_argument(
            "--compiled",
            action="store_const",
            const=True,
            help="run the student through torch.compile (half a minute or more at first)",
        )
        group.add_argument(
            "--epochs",
            type=_positive,
            metavar="N",
            help="instead of the recipe's; the learning rate falls at the same shares of them",
        )
        group.add_argument(
            "--batch-size", type=_positive, metavar="N", help="instead of the recipe's"
        )
        group.add_argument(
            "--learning-rate", type=float, metavar="X", help="instead of the recipe's"
        )
        group.add_argument(
            "--augmentation",
            metavar="KIND",
            help="none, crop, crop-flip or resized-crop-flip (default: the recipe's; digits: crop)",
        )
        group.add_argument(
            "--precision",
            choices=["float32", "bfloat16"],
            help="bfloat16 is autocast: faster on most GPUs, less exact (default: float32)",
        )
        group.add_argument(
            "--track-test",
            action="store_const",
            const=True,
            help="also measure every epoch on test, to show the best beside the last",
        )
        group.add_argument(
            "--max-steps", type=_positive, metavar="N", help="stop each training early, for a trial"
        )

    evaluate = add(
        "evaluate",
        "measure trained networks",
        "Accuracy, negative log-likelihood, Brier score, calibration error, entropy and\n"
        "confidence of the networks in run folders or files of weights.",
        "ttm-lab evaluate runs/cifar100-resnet56-resnet20/wttm-seed0-*",
    )
    evaluate.add_argument("weights", nargs="+", metavar="PATH", help="run folders, or files")
    evaluate.add_argument(
        "--model", metavar="NAME", help="whose weights the files hold, such as resnet56"
    )
    evaluate.add_argument(
        "--part",
        choices=["train", "validation", "test"],
        default="test",
        help="of the data (default: test)",
    )
    for parser in (teacher, distill, remember, evaluate):
        group = parser.add_argument_group("data")
        group.add_argument(
            "--data",
            metavar="NAME",
            help="cifar100, cifar10, fashion_mnist, imagenet, folder or digits (default: "
            + ("those of the run, else " if parser is evaluate else "")
            + "cifar100, and imagenet for its networks)",
        )
        group.add_argument("--root", metavar="DIR", help="where the pictures are, or should go")
        group.add_argument(
            "--size",
            type=partial(_positive, most=10_000),
            metavar="PIXELS",
            help="side of the pictures (default: their own; 32 where CIFAR networks get small grey "
            "ones; 224 for large ones)",
        )
        group.add_argument(
            "--validation",
            type=float,
            metavar="SHARE",
            help="of the training pictures, kept aside (default: 0, as in the paper's code)",
        )
        group.add_argument("--split-seed", type=_seed, metavar="N", help="draws them (default: 0)")
        group.add_argument(
            "--skip-corrupt", action="store_true", help="leave out broken picture files"
        )
        group.add_argument(
            "--workers",
            type=int,
            metavar="N",
            help="processes that decode picture files (default: one for each core, at most 8)",
        )
        parser.add_argument(
            "--device", help="such as cpu or cuda:1 (default: a GPU if there is one)"
        )
    for parser in (distill, evaluate):
        parser.add_argument("--output", metavar="FILE.csv", help="write the numbers there, too")
    distill.add_argument(
        "--keep-logits", metavar="FILE.npz", help="write everyone's logits on test there (float16)"
    )
    distill.add_argument(
        "--per-class",
        type=_positive,
        metavar="N",
        help="keep logits for the first N pictures of each class (default: for all)",
    )

    fetch = add(
        "fetch-teacher",
        "download a published CIFAR-100 teacher",
        "Download teachers that the paper used, from the address of the RepDistiller benchmark.\n"
        "A file's checksum is recorded at first use and checked from then on.",
        "ttm-lab fetch-teacher resnet56 wrn_40_2",
    )
    fetch.add_argument("names", nargs="+", metavar="NAME", help="such as resnet56")
    fetch.add_argument("--folder", help="default: data/downloads/teachers in the checkout")


def _pair(text: str) -> tuple[str, str]:
    teacher, colon, student = text.partition(":")
    if not (colon and teacher and student):
        raise argparse.ArgumentTypeError(f"{text!r} is not TEACHER:STUDENT")
    return teacher, student


def _number_of_seeds(text: str) -> list[int]:
    if not text.isdigit():
        return _seeds(text)
    if _positive(text) > _MOST_SEEDS:
        raise argparse.ArgumentTypeError(
            f"{text} students of each method are more than {_MOST_SEEDS:,}: for one student with "
            f"the seed {text} write {text}-{text}"
        )
    return list(range(int(text)))


def _positive(text: str, most: int = _MOST) -> int:
    number = _whole(text)
    if not 0 < number <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of at least 1 (and at most {most})"
        )
    return number


def _seed(text: str) -> int:
    seed = _whole(text)
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return seed


def _whole(text: str) -> int:
    """The number that a word of digits stands for; -1 for any other word, and for a huge number."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1


def _seeds(text: str) -> list[int]:
    try:
        ends = [part.partition("-")[::2] for part in text.split(",")]
        ranges = [range(_seed(a), _seed(b or a) + 1) for a, b in ends]
        if not all(ranges) or sum(r.stop - r.start for r in ranges) > _MOST_SEEDS:
            raise ValueError
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not like 0-11 or 3,5 (at most {_MOST_SEEDS:,} seeds)"
        ) from None
    return [seed for seeds in ranges for seed in seeds]


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
