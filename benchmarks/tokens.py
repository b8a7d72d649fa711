"""TTM on tokens: students of a small, real language model, measured against it exactly.

    python benchmarks/tokens.py --root DIR

``DIR`` holds ``stories260K.bin`` and ``tok512.bin`` of llama2.c (github.com/karpathy/llama2.c), as
in the public repository DaveBben/esp32-llm, folder ``data``. That model writes the text itself, at
temperature 1: 1,024 pieces of 128 tokens to learn from, 64 to choose temperatures on, and 64 to
measure on. So every position has the true distribution of its next token, the teacher's: no
student can have a lower cross-entropy than the teacher's entropy, and the difference is
D(teacher || student).

A student of half the teacher's size begins as the teacher's first and last layer of five, one of a
quarter as its last layer with half of the hidden features, drawn anew for each seed: from nothing
it would take far more text. Each goes once through the text, in an order of its seed's, and
minimises 0.1 cross-entropy + 0.9 distillation (CE: cross-entropy alone) with AdamW, whose steps do
not depend on a loss's scale; WTTM's weight is divided by the mean of U. Arms of one seed share
initial weights, batches and the teacher's logits. One row a run goes to
``data/results/stories_tokens.csv``. Stop it at any time: the same command goes on.
"""

import argparse
import copy
import datetime
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import machine
from scipy import optimize
from torch.nn import functional as F

from ttm_lab.analysis import calibration_error
from ttm_lab.course import stories
from ttm_lab.files import atomic_write, find_root, read_table, runs_folder
from ttm_lab.losses import kd_loss, ttm_loss, wttm_loss
from ttm_lab.probability import largest_temperature, power_sum, shannon_entropy

SIZES = {"quarter": ([4], 86), "half": ([0, 4], 172)}  # layers and hidden features that it keeps
SEEDS = {"quarter": 5, "half": 3}
CE_WEIGHT, BATCH, RATE, NATS = 0.1, 8, 0.005, 0.1
LENGTH, TRAIN, HELD = 128, 1024, 128
OUTPUT = find_root(__file__) / "data" / "results" / "stories_tokens.csv"
WRITTEN = 32  # texts that each student writes, twice


def text(teacher, folder: Path) -> tuple:
    """The teacher's own text: to learn from, to choose on, to measure on; (N, 128) each."""
    path = folder / "text.pt"
    if not path.exists():
        draw = torch.Generator().manual_seed(0)
        parts = [
            stories.write(teacher, 256, LENGTH, generator=draw).to(torch.int16)
            for _ in range(-(-(HELD + TRAIN) // 256))
        ]
        torch.save(torch.cat(parts), path)
    tokens = torch.load(path).long()
    return tokens[HELD:][:TRAIN], tokens[: HELD // 2], tokens[HELD // 2 : HELD]


@torch.no_grad()
def answers(model, tokens) -> torch.Tensor:
    """A model's logits (N, L - 1, K) for every token but the first, in half precision."""
    return torch.cat([model(part[:, :-1]).half() for part in tokens.split(64)])


def begin(teacher: stories.Llama, size: str, seed: int) -> stories.Llama:
    """A student with some of its teacher's layers, and some of their hidden features."""
    layers, hidden = SIZES[size]
    student = copy.deepcopy(teacher).train()
    student.layers = torch.nn.ModuleList(student.layers[place] for place in layers)
    draw = torch.Generator().manual_seed(seed)
    for layer in student.layers:
        chosen = torch.randperm(layer.up.out_features, generator=draw)[:hidden].sort().values
        for part, dimension in ((layer.gate, 0), (layer.up, 0), (layer.down, 1)):
            part.weight = torch.nn.Parameter(part.weight.detach().index_select(dimension, chosen))
    return student


def arms(known: torch.Tensor) -> dict:
    """Name: (temperature, weight, loss). TTM's temperature costs 0.1 nats, by the rule."""
    rule = round(largest_temperature(known.float(), NATS), 2)
    strength = power_sum(known.float().softmax(-1), 1 / rule).mean().item()
    share = 1 - CE_WEIGHT
    return {
        "ce": (1.0, 0.0, None),
        "kd": (2.0, share, kd_loss),
        "ttm": (rule, share, ttm_loss),
        "ttm4": (4.0, share, ttm_loss),
        "wttm": (rule, share / strength, wttm_loss),
    }


def loss_of(arm: tuple, logits, known, labels):
    temperature, weight, loss = arm
    value = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    if loss is None:
        return value
    return CE_WEIGHT * value + weight * loss(logits, known, temperature)


def rate(step: int, steps: int) -> float:
    """Learning rate of a step: up over the first 5 %, then down along a cosine."""
    rise = max(1, steps // 20)
    return RATE * min((step + 1) / rise, (1 + math.cos(math.pi * step / steps)) / 2)


def train(first, seed: int, passes: int, methods: dict, text, known, held, folder: Path) -> dict:
    """Students by arm, all begun as ``first``, with their entropy on held-out text as it went."""
    students = {arm: copy.deepcopy(first) for arm in methods}
    optimizers = {
        arm: torch.optim.AdamW(student.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.01)
        for arm, student in students.items()
    }
    epoch = len(text) // BATCH
    steps, course, start = passes * epoch, {arm: [] for arm in methods}, 0
    path = folder / "checkpoint.pt"
    if path.exists():
        saved = torch.load(path)
        start, course = saved["step"], saved["course"]
        for arm, student in students.items():
            student.load_state_dict(saved["students"][arm])
            optimizers[arm].load_state_dict(saved["optimizers"][arm])
    for step in range(start, steps):
        order = torch.randperm(
            len(text), generator=torch.Generator().manual_seed(1000 * seed + step // epoch)
        )
        chosen = order[step % epoch * BATCH :][:BATCH]
        tokens, teacher = text[chosen], known[chosen].float()
        for arm, student in students.items():
            loss = loss_of(methods[arm], student(tokens[:, :-1]), teacher, tokens[:, 1:])
            optimizers[arm].zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizers[arm].param_groups[0]["lr"] = rate(step, steps)
            optimizers[arm].step()
        if (step + 1) % 8 == 0:
            for arm, student in students.items():
                q = answers(student, held[:16]).float().softmax(-1)
                course[arm].append(shannon_entropy(q).mean().item())
            state = {
                "step": step + 1,
                "course": course,
                "students": {arm: student.state_dict() for arm, student in students.items()},
                "optimizers": {arm: part.state_dict() for arm, part in optimizers.items()},
            }
            part = path.with_suffix(".part")
            torch.save(state, part)
            part.replace(path)
            print(f"step {step + 1} of {steps}, loss {loss.item():.3f}", flush=True)
    return {arm: (student.eval(), course[arm]) for arm, student in students.items()}


def cross_entropy(p, logits) -> float:
    """Mean of -sum p log q in nats."""
    return -(p * logits.log_softmax(-1)).sum(-1).mean().item()


def best_scale(p, logits) -> float:
    """The factor on the logits that has the lowest cross-entropy."""
    found = optimize.minimize_scalar(
        lambda log: cross_entropy(p, logits * math.exp(log)), (-0.5, 0.5), tol=1e-3
    )
    return math.exp(found.x)


@torch.no_grad()
def nats(model, tokens) -> float:
    """Mean -log probability that a model gives each token of a text after the first."""
    logits = torch.cat([model(part[:, :-1]) for part in tokens.split(64)])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


def measure(student, teacher, choose: tuple, test: tuple, pieces) -> dict:
    """One student against the teacher, position by position, and what it writes.

    ``choose`` and ``test`` are tokens and the teacher's logits; the scale is fitted on the first.
    """
    chosen = answers(student, choose[0]).float()
    scale = best_scale(choose[1].float().softmax(-1), chosen)
    logits, known, labels = answers(student, test[0]).float(), test[1].float(), test[0][:, 1:]
    p, q = known.softmax(-1), logits.softmax(-1)
    write = partial(stories.write, student, WRITTEN, LENGTH)
    plain = write(generator=torch.Generator().manual_seed(1))
    scaled = write(generator=torch.Generator().manual_seed(1), temperature=1 / scale)
    return {
        "cross_entropy": cross_entropy(p, logits),
        "entropy": shannon_entropy(q).mean().item(),
        "top_token": q.amax(-1).mean().item(),
        "agreement": (known.argmax(-1) == logits.argmax(-1)).float().mean().item(),
        "accuracy": (logits.argmax(-1) == labels).float().mean().item(),
        "ece": calibration_error(logits.flatten(0, 1).numpy(), labels.flatten().numpy()),
        "scale": scale,
        "scaled_cross_entropy": cross_entropy(p, logits * scale),
        "scaled_entropy": shannon_entropy((logits * scale).softmax(-1)).mean().item(),
        "written_nats": nats(teacher, plain),
        "scaled_written_nats": nats(teacher, scaled),
        "text": stories.read(plain[0, :64], pieces).replace("\n", " / "),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="the folder of the two files")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 5 quarters, 3 halves")
    parser.add_argument("--passes", type=int, default=1, help="times through the text")
    options = parser.parse_args()
    teacher = stories.load_llama(options.root / "stories260K.bin")
    pieces = stories.load_tokens(options.root / "tok512.bin")
    folder = runs_folder("stories")
    folder.mkdir(parents=True, exist_ok=True)
    learn, choose, test = text(teacher, folder)
    choose, test = ((part, answers(teacher, part)) for part in (choose, test))
    methods = arms(choose[1])
    if not (path := folder / "answers.pt").exists():
        torch.save(answers(teacher, learn), path)
    known = torch.load(path, mmap=True)
    keep_text(teacher, test[0][0], pieces)
    if not rows():
        found = measure(teacher, teacher, choose, test, pieces)
        save([{"size": "teacher", "arm": "teacher", "seed": 0, "temperature": 1.0} | found])
    for size in options.sizes:
        for seed in options.seeds or range(SEEDS[size]):
            setting = {"size": size, "seed": seed, "passes": options.passes}
            if any(setting.items() <= row.items() for row in rows()):
                continue
            print(setting, flush=True)
            here = folder / f"{size}_seed{seed}_passes{options.passes}"
            here.mkdir(exist_ok=True)
            first = begin(teacher, size, seed)
            setting["parameters"] = sum(part.numel() for part in first.parameters())
            students = train(first, seed, options.passes, methods, learn, known, choose[0], here)
            made = []
            for arm, (student, course) in students.items():
                temperature, weight, _ = methods[arm]
                late = course[len(course) // 2 :]
                found = measure(student, teacher, choose, test, pieces)
                found |= {"late_entropy": sum(late) / len(late), "distill_weight": weight}
                made.append(setting | {"arm": arm, "temperature": temperature} | found)
                torch.save(student.state_dict(), here / f"{arm}.pt")
            save(rows() + made)
            print(pd.DataFrame(made).drop(columns="text").round(3).T, flush=True)


def rows() -> list[dict]:
    return read_table(OUTPUT).to_dict("records") if OUTPUT.exists() else []


def keep_text(teacher, tokens, pieces) -> None:
    """One piece of the text with the teacher's logits, for the explorer of notebook 14."""
    shown = [
        "\n" if token == stories.START else pieces[token].decode(errors="replace")
        for token in tokens[1:]
    ]
    logits = answers(teacher, tokens[None])[0].numpy()
    np.savez_compressed(OUTPUT.with_name("stories_text.npz"), pieces=shown, logits=logits)


def save(found: list[dict]) -> None:
    atomic_write(OUTPUT, pd.DataFrame(found).to_csv(index=False, float_format="%.6g"))
    about = {
        "command": "python benchmarks/tokens.py --root DIR",
        "date": str(datetime.date.today()),
        "machine": machine(),
        "teacher": "stories260K.bin of llama2.c (A. Karpathy, MIT licence), 260,032 parameters, "
        "trained on TinyStories; as kept in DaveBben/esp32-llm, data/, at "
        "934dab4d242d259abd88678488ea3b62d4fca601",
        "text": f"written by the teacher at temperature 1: {TRAIN} pieces of {LENGTH} tokens to "
        f"learn from, {HELD // 2} to choose the rule's temperature and the scale on, "
        f"{HELD // 2} to measure on",
        "training": f"batches of {BATCH} pieces, AdamW, learning rate {RATE} with a rise of 5 % "
        f"and a cosine, no search; {CE_WEIGHT} cross-entropy + {1 - CE_WEIGHT} distillation",
        "rule": f"D(p || p_T) = {NATS} nats",
    }
    atomic_write(OUTPUT.with_suffix(".json"), json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
