"""The commands of ``ttm-lab`` that train networks, as in the paper's tables, and measure them."""

import argparse
import os
import re
import tempfile
import warnings
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from ttm_lab.course.cli import add_command, count, local_path, say
from ttm_lab.files import atomic_write, runs_folder


def add_commands(commands) -> None:
    """Add the commands to the subparsers of ``ttm-lab``."""
    network = "a network, such as resnet56 or wrn-40-2 (an unknown name lists all)"

    teacher = add_command(commands, "train-teacher", _train_teacher)
    add = teacher.add_argument
    add("--model", required=True, metavar="NAME", help=network)
    seed = {"type": partial(count, least=0), "help": "draws initial weights and order (default: 0)"}
    add("--seed", default=0, **seed)

    distill = add_command(commands, "distill", _distill)
    add = distill.add_argument
    add("--pair", type=_pair, required=True, metavar="TEACHER:STUDENT", help=f"each {network}")
    some = "of ce, kd, ttm, wttm, dkd, dist; each but ce also with +std, such as kd+std, on "
    some += "standardised logits (default: ce,kd,ttm,wttm, as far as published)"
    add("--methods", type=lambda words: words.lower().split(","), metavar="NAMES", help=some)
    many = "students of each method, with the seeds 0 to N-1 (default: 1); or seeds, as 3-5 or 0,7"
    add("--seeds", type=_number_of_seeds, default=[0], metavar="N", help=many)
    weights = "the teacher's weights: a file, a run's folder, or the word published (default: "
    weights += "published for ImageNet's networks; others are trained first)"
    add("--teacher", type=local_path, metavar="PATH", help=weights)
    add("--fine-tune", type=count, metavar="EPOCHS", help="of the teacher on these pictures first")
    add("--keep-logits", type=local_path, metavar="FILE.npz", help="keep logits on test (float16)")
    add("--per-class", type=count, help="keep logits of the first so many images of each class")
    add = distill.add_argument_group("loss, of every method but ce").add_argument
    for name in ("--temperature", "--distill-weight", "--ce-weight"):
        add(name, type=float, metavar="X", help="instead of the published one")
    add = distill.add_argument_group("speed, of every method but ce").add_argument
    kept = "keep the teacher's logits in runs/remembered and use them again (default: no)"
    add("--remember", action=argparse.BooleanOptionalAction, help=kept)
    table = "write the numbers there, too"
    distill.add_argument("--output", type=local_path, metavar="FILE.csv", help=table)

    for command in (teacher, distill):
        _add_training_options(command)
        _add_data_options(command)

    evaluate = add_command(commands, "evaluate", _evaluate)
    add = evaluate.add_argument
    add("weights", nargs="+", type=local_path, metavar="PATH", help="run folders, or files")
    add("--model", metavar="NAME", help="whose weights the files hold, such as resnet56")
    add("--part", choices=["train", "validation", "test"], default="test", help="default: test")

    add("--output", type=local_path, metavar="FILE.csv", help="write the numbers there, too")
    _add_data_options(evaluate, "those of the run, else ")

    add = add_command(commands, "fetch-teacher", _fetch_teacher).add_argument
    add("names", nargs="+", metavar="NAME", help="such as resnet56")
    add("--folder", type=local_path, help="default: data/downloads/teachers in the checkout")


def _add_training_options(parser) -> None:
    switch = {"action": "store_const", "const": True}
    add = parser.add_argument_group("training").add_argument
    fast = "bfloat16 where the hardware has it, and --remember for images of at most 64x64: faster "
    fast += "at the same accuracy here"
    add("--fast", action="store_true", help=fast)
    add("--compiled", **switch, help="torch.compile the student (half a minute or more at first)")
    add("--epochs", type=count, help="the learning rate falls at the same shares of them")
    add("--batch-size", type=count, help="of all processes together (default: the recipe's)")
    add("--learning-rate", type=float, metavar="X", help="default: the recipe's")
    kinds = "none, crop, crop-flip or resized-crop-flip (default: the recipe's, or the strongest "
    kinds += "that these images offer; digits: crop)"
    add("--augmentation", metavar="KIND", help=kinds)
    autocast = "bfloat16 is autocast: faster on most GPUs, less exact (default: float32)"
    add("--precision", choices=["float32", "bfloat16"], help=autocast)
    add("--track-test", **switch, help="measure every epoch on test, to show the best as well")
    add("--max-steps", type=count, help="stop each training early, for a trial")


def _add_data_options(parser, default: str = "") -> None:
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


def _train_teacher(options) -> int:
    """Train a teacher on the labels.

    By the recipe of the paper's code; the accuracy on the test part is printed. The run is kept
    in runs/, and the same command continues a run that was stopped.

    Example: ttm-lab train-teacher --model resnet56 --data cifar100
    """
    from ttm_lab import distributed, training
    from ttm_lab.course import paper, paper_rows

    _check_device(options.device)
    paper_rows.check_model(options.model)
    settings = paper.teacher_settings(options.model, **_changes(options))
    with distributed.processes(options.device) as device:
        data = _load_data(options, [options.model])
        folder = runs_folder(paper_rows.teacher_folder(data, options.model))
        trained = training.train_teacher(
            data, settings, seed=options.seed, folder=folder, device=device
        )
        if distributed.rank() > 0:
            return 0
    measured = paper_rows.measure(paper_rows.TrainedPair(trained, []), data)
    table = paper_rows.summarize(measured, options.model, "")
    print("Top-1 accuracy on the test part in per cent:")
    print(as_text(table.dropna(axis="columns", how="all").drop(columns="seeds")))
    print(f"\nRun: {trained.folder}")
    print(f"Distil from it with: ttm-lab distill --teacher {trained.folder} ...")
    return 0


def _distill(options) -> int:
    """Make a row of the paper's tables.

    Train or load the pair's teacher, distil a student for each method and seed with the published
    settings, and print the accuracies with intervals beside the paper's. Nothing is chosen on the
    way: all training images are used, and the last epoch counts. Runs are kept in runs/, and the
    same command continues runs that were stopped.

    Example: ttm-lab distill --pair resnet56:resnet20 --methods kd,ttm,wttm --seeds 5
    Your own pictures, in mine/<class>/: ttm-lab distill --data folder --root mine --test-share 0.2
    --size 64 --pair torchvision/mobilenet_v3_small:resnet8 --fine-tune 10 --learning-rate 0.005
    --output mine.csv
    Several GPUs: torchrun --nproc-per-node 4 -m ttm_lab distill --pair resnet56:resnet20
    (--batch-size is the batch of all processes together, so the learning rate stays.)
    """
    from ttm_lab import distributed
    from ttm_lab.checks import check_data
    from ttm_lab.course import outputs, paper, paper_rows, pictures
    from ttm_lab.data import Split
    from ttm_lab.models import model_name

    teacher, student = options.pair
    _check_device(options.device)
    check_output("--output", options.output, ".csv")
    check_output("--keep-logits", options.keep_logits, ".npz")
    changes = _changes(options)
    for name in options.pair:
        paper_rows.check_model(name)
    methods = options.methods or _default_methods(teacher, student, changes)
    wanted = {"seeds": options.seeds, "weights": options.teacher, "changes": changes}
    paper_rows.check_pair(teacher, student, methods, **wanted)
    with distributed.processes(options.device) as device:
        data = _load_data(options, options.pair)
        if options.remember is None and not isinstance(data.train, Split):
            changes.pop("remember", None)  # --fast; large images have no countable views
        networks = [model_name(name).replace("/", "-") for name in options.pair]
        folder = runs_folder("-".join([data.name, *networks]))
        if paper.teacher_settings(student).augmentation not in data.train.augmentations:
            changes.setdefault("augmentation", data.train.augmentations[-1])
        check_data(data, [paper.teacher_settings(student, **changes)])  # before the teacher learns
        if epochs := options.fine_tune:
            tuned = pictures.fine_tune(teacher, data, options.teacher, epochs, device=device)
            wanted["weights"] = tuned.folder
        row = paper_rows.distill_pair(
            data, teacher, student, methods, **wanted, folder=folder, device=device
        )
        if distributed.rank() > 0:
            return 0
    measured = paper_rows.measure(row, data)
    report = options.output and Path(options.output).with_suffix(".md")
    if options.output:
        paper_rows.save_results(options.output, row, measured, data)
        atomic_write(report, pictures.report(measured, row, data))
    if options.keep_logits:
        outputs.save_outputs(options.keep_logits, row, data, options.per_class)
    _print_row(measured, teacher, student, changes)
    print(f"\nRuns: {folder}")
    made = {"Table": options.output, "Report": report, "Logits": options.keep_logits}
    print(*(f"{kind}: {path}\n" for kind, path in made.items() if path), sep="", end="")
    return 0


def _default_methods(teacher: str, student: str, changes: dict) -> list[str]:
    """The paper's methods, less KD and TTM where the paper has no settings for them."""
    from ttm_lab.course import paper

    methods = ["ce"]
    for method in ("kd", "ttm", "wttm"):
        found = paper.published_loss(teacher, student, method, mean_weight=1.0) | changes
        if method == "wttm" or {"temperature", "distill_weight"} <= found.keys():
            methods.append(method)
        elif os.environ.get("RANK", "0") == "0":
            say(
                f"no {method}: its settings for this pair are not published (to run it, "
                "name --methods, --temperature and --distill-weight)"
            )
    return methods


def _print_row(measured, teacher: str, student: str, changes: dict) -> None:
    """A row beside the paper's, and how it differs from KD's."""
    import pandas as pd

    from ttm_lab.analysis import paired_interval
    from ttm_lab.course import paper
    from ttm_lab.course.paper_rows import summarize

    table = summarize(measured, teacher, student)
    known, dataset = table["paper"].notna(), measured["dataset"].iloc[0]
    print("Top-1 accuracy on the test part in per cent, with 95 % t intervals over seeds:")
    print(as_text(table if known.any() else table.drop(columns=["paper", "paper std"])))
    if known.any():
        sources = paper.published_row(teacher, student, dataset)["source"]
        tables = sources[table.index[known]].str.extract(r"(Table \d+)")[0].unique()
        print(f"paper: Zheng and Yang (ICLR 2024), {', '.join(tables)}")
        same = ("track_test", "compiled", "remember")  # up to rounding
        changed = [f"{name}={value}" for name, value in changes.items() if name not in same]
        if changed:
            print(f"These runs differ from the published recipe: {', '.join(changed)}.")
        if "/" in paper.model_name(student):
            print("The paper does not state its ImageNet recipe: that of its library is assumed.")
    else:
        print(f"The paper has no results of this pair on {dataset}.")
    students = measured[measured["method"] != "teacher"]
    points = 100 * students.pivot(index="seed", columns="method", values="accuracy")
    others = [name for name in table.index if name not in ("teacher", "KD")]
    if "KD" in points and others:
        rows = {name: paired_interval(points[name] - points["KD"]) for name in others}
        print("\nAccuracy minus KD, in pairs over seeds, with 95 % t intervals, in points:")
        print(as_text(pd.DataFrame(rows, index=["difference", "low", "high"]).T))


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
    from ttm_lab.course.paper_rows import check_model, weights_file
    from ttm_lab.models import create_model, load_weights
    from ttm_lab.settings import default_device

    _check_device(options.device)
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
    data = _load_data(options, list(models.values()))
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
    from ttm_lab.course.teachers import fetch_teacher

    paths = [fetch_teacher(name, options.folder) for name in options.names]
    print(*paths, sep="\n")
    return 0


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


def _load_data(options, models):
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
    with distributed.first_process_first(), warnings.catch_warnings(record=True) as warned:
        data = load_dataset(name, **values)
    for warning in warned if distributed.rank() == 0 else ():
        say(f"note: {warning.message}")
    if data.name != "folder":
        return data
    name = Path(options.root).resolve().name
    # a folder that happens to be called cifar100 is still not that data set
    return replace(data, name=f"folder-{name}" if name in NAMES else name)


def _changes(options) -> dict:
    """The fields of ``Settings`` that the command line names; the others stay the recipe's.

    Digits are moved but, unlike what the recipe does with photographs, not mirrored.
    """
    from ttm_lab.settings import Settings, fast

    preset = fast(options.device) if options.fast else {}
    if options.data == "digits":
        preset["augmentation"] = "crop"
    given = {name: value for name, value in vars(options).items() if value is not None}
    names = {field.name for field in fields(Settings)} & vars(options).keys() - {"model"}
    return {name: value for name, value in (preset | given).items() if name in names}


def _pair(text: str) -> tuple[str, str]:
    teacher, colon, student = text.partition(":")
    if not (colon and teacher and student):
        raise argparse.ArgumentTypeError(f"{text!r} is not TEACHER:STUDENT")
    return teacher, student


def _number_of_seeds(text: str) -> list[int]:
    if not text.isdecimal():
        return several_seeds(text)
    if count(text) > 1000:
        raise argparse.ArgumentTypeError(
            f"{text} students of each method are too many: one with that seed is {text}-{text}"
        )
    return list(range(int(text)))


def several_seeds(text: str) -> list[int]:
    """Read seeds such as ``0-11`` or ``3,5``."""
    try:
        ends = [part.partition("-")[::2] for part in text.split(",")]
        ranges = [range(int(first), int(last or first) + 1) for first, last in ends]
    except ValueError:
        ranges = []
    if not ranges or not all(ranges):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0-11 or 3,5")
    return [seed for seeds in ranges for seed in seeds]


def as_text(table, digits: int = 2) -> str:
    text = table.to_string(float_format=lambda x: f"{x:.{digits}f}", na_rep="-")
    return "\n".join(line.rstrip() for line in text.splitlines())
