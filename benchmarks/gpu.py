"""One GPU, a few minutes: how fast distillation is there, and CIFAR-100 students by the dozen.

    python benchmarks/gpu.py pack --root DIR --to FOLDER      CIFAR-100's training part, 2 pieces
    python benchmarks/gpu.py speed --out DIR                  steps a second, switch by switch
    python benchmarks/gpu.py train --pictures DIR --out DIR   learning rates, on validation; then
                                                              the 2x2 and its company
    python benchmarks/gpu.py row --pictures DIR --out DIR     CE, KD, TTM, WTTM, the paper's recipe
    python benchmarks/gpu.py keep --root DIR --rows DIR ...   what the rows' students do on the test
                                                              part, into data/results

DIR of ``pack`` holds ``train/<class>/*.png``. A piece is lossless and below 60 MB, so that it
travels where little does. The next three take the pieces' folder; results are written
as they come, and the same call goes on where another was cut off, given what that left in
``--out``. ``keep`` needs no GPU.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from machine import machine
from PIL import Image
from safetensors.torch import load_file, save_file
from stacked import Stack

from ttm_lab.analysis import evaluate, predict
from ttm_lab.course import paper
from ttm_lab.data import Dataset, Split, load_dataset
from ttm_lab.data.cifar100 import listed_validation
from ttm_lab.data.sources import CIFAR100_SCALE
from ttm_lab.models import create_model
from ttm_lab.probability import power_sum
from ttm_lab.training import Settings, distill_many

ROOT = Path(__file__).parents[1]
TEACHER = "resnet32"
STUDENT = "resnet20"
TEMPERATURE, CE_SHARE = 4.0, 0.1  # lambda = 0.9: KD's cross-entropy has the weight 0.1


# Pictures -----------------------------------------------------------------------------------------


def pack(root: Path, to: Path) -> None:
    """Each class as one lossless WebP, 500 pictures one below the other, in two folders."""
    names = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    for label, name in enumerate(names):
        files = sorted((root / "train" / name).glob("*.png"))
        column = np.concatenate([np.asarray(Image.open(file).convert("RGB")) for file in files])
        piece = to / f"piece{2 * label // len(names) + 1}"
        piece.mkdir(parents=True, exist_ok=True)
        Image.fromarray(column).save(piece / f"{label:02d}.webp", lossless=True, quality=80)


def load(folder: Path) -> Dataset:
    """CIFAR-100's training part from its pieces: 45,000 to learn from, the listed 5,000 held out.

    The order within a split is by class, then by file name, as ``load_dataset`` has it.
    """
    files = sorted(folder.glob("*/*.webp"), key=lambda file: file.name)
    with ThreadPoolExecutor() as pool:
        columns = list(pool.map(lambda f: np.asarray(Image.open(f).convert("RGB")), files))
    images = np.concatenate(columns).reshape(-1, 32, 32, 3)
    labels = np.arange(len(images)) * len(files) // len(images)
    images, labels = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    kept, held_out = listed_validation(images, labels)
    part = lambda chosen: Split(images[chosen], labels[chosen], **CIFAR100_SCALE)  # noqa: E731
    names = tuple(map(str, range(100)))
    # the test part stays at home: nothing here looks at it
    return Dataset("cifar100", 0, names, part(kept), part(held_out), part(held_out))


def load_teacher(device, name: str = TEACHER, file: Path | None = None):
    kept = ROOT / "data" / "results" / "cifar100_teacher_weights.safetensors"
    weights = load_file(file or kept)
    network = create_model(name, 100)
    network.load_state_dict(weights)
    return network.eval().to(device, memory_format=torch.channels_last)


# Speed --------------------------------------------------------------------------------------------


def noise(count: int = 4096) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8)
    part = Split(images, torch.arange(count) % 100, **CIFAR100_SCALE)
    empty = Split(images[:0], torch.arange(0), **CIFAR100_SCALE)
    return Dataset("noise", 0, tuple(map(str, range(100))), part, empty, part)


def three(**changes) -> list[Settings]:
    recipe = {"temperature": TEMPERATURE, "augmentation": "crop-flip", "batch_size": 64} | changes
    weights = {"kd": 0.9, "ttm": 3.6, "wttm": 2.0}
    return [Settings(STUDENT, m, distill_weight=w, **recipe) for m, w in weights.items()]


def seconds(work, rounds: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / rounds


def plain_loop(teacher, data, rounds: int = 60) -> float:
    """Seconds a step of one KD student as published code has it, its pictures already there."""
    student = create_model(STUDENT, 100).cuda()
    optimizer = torch.optim.SGD(student.parameters(), 0.05, 0.9, weight_decay=5e-4)
    images, labels = next(iter(data.train.to("cuda").batches(64)))
    images, T = images.contiguous(), TEMPERATURE

    def step():
        logits = student(images)
        with torch.no_grad():
            known = teacher(images)
        soft = F.kl_div((logits / T).log_softmax(1), (known / T).softmax(1), reduction="batchmean")
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * T**2 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    seconds(step, 20)
    return seconds(step, rounds)


def package_loop(teacher, data, settings, rounds: int = 128) -> float:
    """Seconds a step of ``distill_many``: the difference of a longer and a shorter training."""

    def train(steps):
        chosen = [replace(s, max_steps=steps, epochs=10) for s in settings]
        start = time.perf_counter()
        distill_many(teacher, data, chosen, device="cuda", progress=False)
        return time.perf_counter() - start

    train(20)
    short = train(20)
    return (train(20 + rounds) - short) / rounds


def stack_loop(
    teacher, data, seeds: int, arms: int, compiled=True, model: str = STUDENT, rounds: int = 60
) -> float:
    """Seconds a step of a stack, as one replayed graph."""
    settings = [
        replace(three(precision="bfloat16")[arm % 3], model=model, learning_rate=0.01 * (1 + arm))
        for arm in range(arms)
    ]
    stack = Stack(range(seeds), settings, data, teacher, "cuda", compiled=compiled)
    draw = torch.Generator("cuda").manual_seed(0)
    batch = (
        torch.randn(seeds, 64, 32, 32, 3, generator=draw, device="cuda").to(stack.dtype),
        torch.randn(seeds, 64, 100, generator=draw, device="cuda"),
        torch.randint(100, (seeds, 64), generator=draw, device="cuda"),
        torch.ones(seeds, arms, 64, device="cuda"),
    )
    for _ in range(3):
        stack.step(*batch)
    return seconds(lambda: stack.step(*batch), rounds)


def speed(out: Path, compiled: bool) -> None:
    torch.backends.cudnn.benchmark = True
    data, teacher, rows = noise(), load_teacher("cuda"), []

    def note(what, students, each):
        rows.append({"what": what, "students": students, "ms a step": 1e3 * each})
        rows[-1]["student pictures a second"] = round(64 * students / each)
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(out / "speed.csv", index=False)

    note("plain loop, float32", 1, plain_loop(teacher, data))
    for fused in (False, True):
        for seeds, arms in ((1, 3), (5, 3), (5, 9), (5, 14)):
            each = stack_loop(teacher, data, seeds, arms, fused)
            note("stack, compiled" if fused else "stack", seeds * arms, each)
    for count in (1, 3):
        each = stack_loop(teacher, data, 1, count, model="resnet56")
        note("stack of resnet56, compiled", count, each)
    note("distill_many, float32", 3, package_loop(teacher, data, three()))
    half = three(precision="bfloat16")
    note("distill_many, bfloat16", 3, package_loop(teacher, data, half))
    remembered = three(precision="bfloat16", remember=True)
    note("distill_many, bfloat16, remembered", 3, package_loop(teacher, data, remembered))
    if compiled:
        whole = three(precision="bfloat16", compiled=True)
        note("distill_many, bfloat16, compiled", 3, package_loop(teacher, data, whole))
    print(machine())


# The experiment -----------------------------------------------------------------------------------


def arms(mean_power_sum: float) -> dict[str, Settings]:
    """The arms of the 2x2, in units of KD's scale, at the learning rate 0.05.

    For SGD with momentum the loss c * L at (rate, decay) is L at (c * rate, decay / c). TTM at the
    paper's beta = 36 is ten times "ttm" below, so with the learning rate searched its gradient's
    scale is exactly a tenth of the weight decay.
    """
    recipe = {"temperature": TEMPERATURE, "augmentation": "crop-flip", "precision": "bfloat16"}
    soft = {"ce_weight": CE_SHARE} | recipe
    beta = CE_SHARE * 36
    return {
        "ce": Settings(STUDENT, **recipe),
        "kd": Settings(STUDENT, "kd", distill_weight=0.9, **soft),
        "kd, decay / 10": Settings(STUDENT, "kd", distill_weight=0.9, weight_decay=5e-5, **soft),
        "ttm": Settings(STUDENT, "ttm", distill_weight=beta, **soft),
        "ttm, decay / 10": Settings(STUDENT, "ttm", distill_weight=beta, weight_decay=5e-5, **soft),
        "wttm, decay / 10": Settings(
            STUDENT, "wttm", distill_weight=beta / mean_power_sum, weight_decay=5e-5, **soft
        ),
    }


RATES = (0.025, 0.05, 0.1, 0.2, 0.5)


@torch.no_grad()
def power_sums(teacher, data: Dataset) -> torch.Tensor:
    """U (N,) of each training picture, as it is, at T = 4."""
    asked = [teacher(x) for x, _ in data.train.batches(1000)]
    return power_sum(torch.cat(asked).softmax(-1), 1 / TEMPERATURE).cpu()


def write(stack: Stack, names, out: Path, name: str, weights: bool) -> None:
    """The history, a row for each student and epoch, and the weights of the students."""
    rows = []
    for epoch, row in enumerate(stack.rows, 1):
        for i, seed in enumerate(stack.seeds):
            for j, arm in enumerate(names):
                values = {key: float(value[i, j]) for key, value in row.items()}
                rate = stack.settings[j].learning_rate
                rows.append({"arm": arm, "rate": rate, "seed": seed, "epoch": epoch} | values)
    pd.DataFrame(rows).to_csv(out / f"{name}_history.csv", index=False)
    if weights:
        states = stack.state_dicts()
        for i, seed in enumerate(stack.seeds):
            # convolutions as the networks are kept, in half precision; the rest weighs nothing
            tensors = {
                f"{arm}/{key}": x.half() if x.ndim == 4 else x
                for j, arm in enumerate(names)
                for key, x in states[i * len(names) + j].items()
            }
            save_file(tensors, out / f"{name}_seed{seed}.safetensors")


def run(stack: Stack, names, out: Path, name: str, stop: float) -> float:
    """All epochs of a stack, or as many as end before ``stop``; gives seconds of the last one.

    The same call goes on where another ran out of time.
    """
    took, resume = 0.0, out / f"{name}_resume.safetensors"
    if resume.exists():
        stack.load(resume)
        print(f"{name} goes on after epoch {stack.epoch}", flush=True)
    for epoch in range(stack.epoch, stack.recipe.epochs):
        start = time.perf_counter()
        stack.train_epoch()
        took = time.perf_counter() - start
        row = stack.rows[-1]
        accuracy = row.get("validation_accuracy", row["train_accuracy"]).mean(0)
        shown = " ".join(f"{float(x):.3f}" for x in accuracy)
        print(f"{name} epoch {epoch + 1}, {took:.2f} s: {shown}", flush=True)
        write(stack, names, out, name, weights=False)
        stack.save(resume)
        if time.perf_counter() + took > stop:
            print(f"{name}: no time for another epoch", flush=True)
            break
    write(stack, names, out, name, weights=name != "search")
    return took


def keep(root: Path, folders: list[Path]) -> None:
    """Measure the students of ``paper_row`` on the test part; write table, history and notes."""
    test = load_dataset("cifar100", root=root, validation="listed").test
    rows, histories, settings = [], [], {}
    network = create_model(STUDENT, 100)
    for folder in folders:
        histories.append(pd.read_csv(folder / "row_history.csv"))
        settings |= json.loads((folder / "settings.json").read_text())
        for file in sorted(folder.glob("row_seed*.safetensors")):
            states = {}
            for key, x in load_file(file).items():
                arm, _, name = key.partition("/")
                states.setdefault(arm, {})[name] = x
            for arm, state in states.items():
                network.load_state_dict(state)  # from half precision
                seed = int(file.stem.removeprefix("row_seed"))
                found = evaluate(predict(network, test), test.labels)
                rows.append({"arm": arm, "seed": seed} | found.to_dict())
                print(f"{arm}, seed {seed}: {found['accuracy']:.2%}", flush=True)
    kept, columns = ROOT / "data" / "results", ["arm", "seed", "epoch"]
    order = ["seed", "arm"]
    table = pd.DataFrame(rows).sort_values(order)
    history = pd.concat(histories).sort_values([*order, "epoch"])
    history = history[columns + [name for name in history if name.startswith("train")]]
    for name, frame in (("cifar100_row", table), ("cifar100_row_history", history)):
        frame.to_csv(kept / f"{name}.csv", index=False, float_format="%.5g")
    earlier = json.loads((kept / "cifar100_gpu.json").read_text())
    note = {
        "command": "python benchmarks/gpu.py row --pictures DIR --teacher resnet56 "
        "--teacher-weights FILE --out DIR --fit --seconds 565 --reserve 30, without 'ce' and 'ttm "
        "as kd'; 'ttm as kd' with --arms 'ttm as kd' --epochs 56 in the place of --fit; once "
        "these were looked at, all six arms with --first-seed 5 --epochs 56",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": (folders[0] / "machine.txt").read_text().strip(),
        "data": "CIFAR-100: all 50,000 training pictures learned from, the 10,000 test pictures "
        "measured once, after the last epoch",
        "teacher": earlier["teacher"],
        "settings": settings,
    }
    (kept / "cifar100_row.json").write_text(json.dumps(note, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("pack", "speed", "train", "row", "keep"))
    parser.add_argument("--root", type=Path)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--rows", type=Path, nargs="*", help="folders that `row` wrote")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epochs", type=int, default=30, help="at most: as many as fit")
    parser.add_argument("--search-epochs", type=int, default=10)
    parser.add_argument("--search-seed", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--reserve", type=float, default=40, help="seconds for what is no epoch")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--teacher-weights", type=Path)
    parser.add_argument("--arms", nargs="*", choices=ARMS, help="of the row (default: all)")
    parser.add_argument("--fit", action="store_true", help="the row in as many epochs as fit")
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    start = time.perf_counter()
    if options.what == "pack":
        return pack(options.root, options.to)
    if options.what == "keep":
        return keep(options.root, options.rows)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "speed":
        return speed(options.out, options.compiled)
    experiment(options, start + options.seconds)


def experiment(options, stop: float) -> None:
    torch.backends.cudnn.benchmark = True
    device, compiled = options.device, options.device == "cuda"
    student_epochs = None  # a second, as the search went
    data = load(options.pictures)
    teacher = load_teacher(device, options.teacher, options.teacher_weights)
    if options.what == "row":
        return paper_row(options, data, teacher, stop)
    sums = power_sums(teacher, data.to(device))
    named = arms(float(sums.mean()))
    notes = options.out / "search.json"
    if notes.exists():
        best = json.loads(notes.read_text())
    else:
        names = [f"{name} @ {rate}" for name in named for rate in RATES]
        settings = [
            replace(s, learning_rate=rate, epochs=options.search_epochs)
            for s in named.values()
            for rate in RATES
        ]
        stack = Stack([options.search_seed], settings, data, teacher, device, compiled=compiled)
        took = run(stack, names, options.out, "search", stop)
        student_epochs = stack.count / took if took else None
        reached = stack.rows[-1]["validation_accuracy"].mean(0).view(len(named), -1)
        best = {name: RATES[int(row.argmax())] for name, row in zip(named, reached, strict=True)}
        notes.write_text(json.dumps(best, indent=1))
        print(best, flush=True)
        del stack
    settings = {n: replace(s, learning_rate=best[n]) for n, s in named.items()}
    smoothing = {"label smoothing": 0.5}
    weighted, plain = settings["wttm, decay / 10"], settings["ce"]
    # What the weight does: U of each picture as it is, the same values in two other orders, and
    # ("ttm" at this rate) one mean for all. Equal settings are told apart by their labels.
    uniform = replace(
        settings["ttm, decay / 10"], learning_rate=weighted.learning_rate, name="uniform"
    )
    shuffled = sums[torch.randperm(len(sums), generator=torch.Generator().manual_seed(0))]
    backward = torch.empty_like(sums)
    backward[sums.argsort()] = sums.sort(descending=True).values
    orders = {"U": sums, "U shuffled": shuffled, "U reversed": backward}
    settings |= {name: replace(uniform, name=name) for name in orders}
    if uniform.learning_rate != settings["ttm, decay / 10"].learning_rate:
        settings["uniform"] = uniform
    # Without cross-entropy, TTM and WTTM at one rate; KD at T = 1 and label smoothing at CE's.
    settings["ttm, no labels"] = replace(uniform, ce_weight=0)
    settings["wttm, no labels"] = replace(weighted, ce_weight=0)
    rate = plain.learning_rate
    settings["kd, T = 1"] = replace(named["kd"], temperature=1.0, learning_rate=rate)
    settings["label smoothing"] = replace(plain, name="label smoothing")
    if rate != best["kd"]:
        settings["kd at the rate of ce"] = replace(named["kd"], learning_rate=rate)
    epochs = options.epochs
    if student_epochs:
        seconds = len(settings) * options.seeds / student_epochs
        epochs = min(epochs, max(2, int((stop - time.perf_counter() - options.reserve) / seconds)))
        print(f"{seconds:.1f} s an epoch expected, so {epochs} epochs", flush=True)
    if (begun := options.out / "settings.json").exists():
        epochs = json.loads(begun.read_text())["ce"]["epochs"]
    settings = {name: replace(s, epochs=epochs) for name, s in settings.items()}
    factors = [
        orders[n] / orders[n].mean() if n in orders else torch.ones_like(sums) for n in settings
    ]
    smoothing = torch.tensor([smoothing.get(name, 0.0) for name in settings])
    described = {name: asdict(s) for name, s in settings.items()}
    begun.write_text(json.dumps(described, indent=1))
    (options.out / "machine.txt").write_text(machine() + "\n")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    stack = Stack(
        seeds,
        settings.values(),
        data,
        teacher,
        device,
        sample_weights=torch.stack(factors),
        smoothing=smoothing,
        compiled=compiled,
    )
    run(stack, list(settings), options.out, f"train{options.first_seed}", stop)


ARMS = ("ce", "kd", "ttm", "wttm", "kd as ttm", "ttm as kd")


def paper_row(options, data: Dataset, teacher, stop: float) -> None:
    """Cross-entropy, KD, TTM and WTTM with the published settings, on all 50,000 pictures.

    With ``--fit``, in as many epochs as fit, a multiple of 8 up to ``--epochs``.
    """
    both = data.train, data.validation
    images, labels = (torch.cat([getattr(p, k) for p in both]) for k in ("images", "labels"))
    data = replace(
        data,
        train=Split(images, labels, **CIFAR100_SCALE),
        validation=Split(images[:0], labels[:0], **CIFAR100_SCALE),
    )
    settings = {
        method: paper.settings(options.teacher, STUDENT, method, precision="bfloat16")
        for method in ARMS[:4]
    }
    # The student's temperature put into TTM and taken out of KD, all else equal: the gradient of
    # w T^2 KL(p_T || q_T) is w T (q_T - p_T), that of TTM's beta KL(p_T || q) is beta (q - p_T).
    kd, ttm = settings["kd"], settings["ttm"]
    weight = ttm.distill_weight / ttm.temperature
    settings["kd as ttm"] = replace(ttm, method="kd", distill_weight=weight, name="KD as TTM")
    weight = kd.distill_weight * kd.temperature
    settings["ttm as kd"] = replace(kd, method="ttm", distill_weight=weight, name="TTM as KD")
    settings = {name: settings[name] for name in options.arms or settings}
    seeds = range(options.first_seed, options.first_seed + options.seeds)

    def make(epochs: int) -> Stack:
        chosen = [replace(s, epochs=epochs) for s in settings.values()]
        asked = teacher if any(s.method != "ce" for s in chosen) else None
        compiled = options.device == "cuda"
        return Stack(seeds, chosen, data, asked, options.device, compiled=compiled)

    begun, epochs = options.out / "settings.json", options.epochs
    if begun.exists():
        epochs = next(iter(json.loads(begun.read_text()).values()))["epochs"]
    elif options.fit:
        probe = make(options.epochs)
        probe.train_epoch()  # compiles, and looks for kernels
        start = time.perf_counter()
        probe.train_epoch()
        took = time.perf_counter() - start
        del probe
        left = stop - time.perf_counter() - options.reserve
        epochs = min(epochs, int(left / took) // 8 * 8)  # the milestones are eighths
        print(f"{took:.2f} s an epoch, so {epochs} epochs", flush=True)
    described = {name: asdict(replace(s, epochs=epochs)) for name, s in settings.items()}
    begun.write_text(json.dumps(described, indent=1))
    (options.out / "machine.txt").write_text(machine() + "\n")
    run(make(epochs), list(settings), options.out, "row", stop)


if __name__ == "__main__":
    main()
