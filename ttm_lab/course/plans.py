"""The course's plans of experiments: which runs, with which settings, in plain Python.

**The 2x2 on CIFAR-100.** From KD to TTM at beta = lambda T / (1 - lambda) two things change: the
entropy term, and the loss is 1 / (1 - lambda) = 10 times as large. For SGD with momentum, loss
times c at (learning rate, weight decay) is loss at (c x learning rate, weight decay / c). So once
learning rates are searched, scale is weight decay, and the arms are {KD, TTM} x {5e-4, 5e-5}, all
at KD's scale: TTM as published is "TTM, wd 5e-5" at ten times its learning rate. WTTM, at its
published scale like the latter, and CE stand beside them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ttm_lab.course.experiments import Plan, Run
from ttm_lab.course.paper import KD_WEIGHT, TEMPERATURE, TTM_WEIGHT
from ttm_lab.course.paper_rows import load_teacher
from ttm_lab.data import Dataset, load_dataset
from ttm_lab.files import find_root
from ttm_lab.training import Settings, Trained

_PAIR = "resnet32:resnet8"
_KD = 1 - KD_WEIGHT, KD_WEIGHT  # weights of CE and of the distillation term
_TTM = 1 - KD_WEIGHT, (1 - KD_WEIGHT) * TTM_WEIGHT  # at KD's scale
# At this scale KD's and TTM's gradients are the same where a student starts, at logits near 0: one
# grid for all, around the published rate of 0.05 and, for TTM as published, 0.5.
RATES = (0.02, 0.05, 0.125, 0.3125, 0.78125)
SEARCHED_SEED = 100  # not among the seeds that are measured
# How many times KD's gradient theirs is on logits where ResNet-8 starts, rounded: 1,000 pictures.
_TIMES = {"DKD": 5, "DIST": 12, "KD+STD": 3}


def _arm(name: str, method: str, ce_weight=1.0, distill_weight=None, **changes) -> Settings:
    values = {"epochs": 6, "precision": "bfloat16", "augmentation": "crop-flip", **changes}
    temperature = None if method == "ce" else TEMPERATURE
    loss = {"temperature": temperature, "ce_weight": ce_weight, "distill_weight": distill_weight}
    return Settings("resnet8", method, name=name, **loss, **values)


def arms(**changes) -> list[Settings]:
    """The six arms of the 2x2, with ``changes`` to any other field of ``Settings``."""
    return [
        _arm("CE", "ce", **changes),
        _arm("KD, wd 5e-4", "kd", *_KD, weight_decay=5e-4, **changes),
        _arm("KD, wd 5e-5", "kd", *_KD, weight_decay=5e-5, **changes),
        _arm("TTM, wd 5e-4", "ttm", *_TTM, weight_decay=5e-4, **changes),
        _arm("TTM, wd 5e-5", "ttm", *_TTM, weight_decay=5e-5, **changes),
        _arm("WTTM, wd 5e-5", "wttm", *_TTM, weight_decay=5e-5, **changes),
    ]


def _on_cifar100(name: str, settings: Sequence[Settings], seeds: Sequence[int], part: str) -> Plan:
    runs = tuple(Run(_PAIR, s, seed, s.method == "wttm") for seed in seeds for s in settings)
    kept = find_root() / "data" / "results" / "cifar100_teacher_weights.safetensors"
    if not kept.exists():
        raise FileNotFoundError(f"there is no {kept}: change into the checkout")
    known_by = ["cifar100", hashlib.sha256(kept.read_bytes()).hexdigest()]
    source = partial(kept_cifar100, kept.parents[1])
    return Plan(name, runs, source, known_by, (45_000, 3, 32, 32, 100), part)


def kept_cifar100(folder: Path, pair: str, seed: int, root: str | None) -> tuple[Trained, Dataset]:
    """The teacher in ``folder``/results, and CIFAR-100 with the 5,000 pictures held out for it.

    Raises ``ValueError`` where that teacher's training is not finished, or where ``root`` does not
    hold exactly CIFAR-100's pictures.
    """
    note = json.loads((folder / "results" / "cifar100_teacher.json").read_text(encoding="utf-8"))
    if note["model"] != pair.split(":")[0]:
        raise ValueError(f"{pair} needs a {pair.split(':')[0]}, kept is a {note['model']}")
    if note["steps"] < note["of"]:
        raise ValueError(
            f"the kept {note['model']} is at step {note['steps']:,} of {note['of']:,}: finish it "
            "with python benchmarks/cifar100_teacher.py --root DIR"
        )
    data = load_dataset("cifar100", root=root, validation="listed")
    weights = folder / "results" / "cifar100_teacher_weights.safetensors"
    return load_teacher(note["model"], weights, data.num_classes), data


def _at_rates(settings: Sequence[Settings], rates: Sequence[float]) -> list[Settings]:
    """Each of the settings at each of the rates, for half of the epochs: a search."""
    return [
        replace(arm, name=f"{arm.name}, lr {rate:g}", learning_rate=rate, epochs=3)
        for rate in rates
        for arm in settings
    ]


def _at_best_rates(
    settings: Sequence[Settings], search: Plan, results: str | Path | None
) -> list[Settings]:
    """Each at the rate with the best validation accuracy of its search.

    Raises ``ValueError`` while rows of the search are missing from the folder ``results``.
    """
    arm_of = {search.key(run): run.settings.name.split(", lr")[0] for run in search.runs}
    rows = search.rows(results)
    if not set(arm_of) <= set(rows["key"]):
        raise ValueError(f"learning rates are searched first: ttm-lab plan {search.name} --execute")
    rows = rows.assign(arm=rows["key"].map(arm_of)).dropna(subset=["arm", "accuracy"])
    rows = rows.sort_values(["accuracy", "nll"], ascending=[False, True], kind="stable")
    rates = rows.drop_duplicates("arm").set_index("arm")["learning_rate"]
    return [replace(arm, learning_rate=rates[arm.name]) for arm in settings]


def cifar100_2x2_rates() -> Plan:
    """The search behind ``cifar100-2x2``: every arm at every rate."""
    settings = _at_rates(arms(), RATES)
    return _on_cifar100("cifar100-2x2-rates", settings, [SEARCHED_SEED], "validation")


def cifar100_2x2(results: str | Path | None = None) -> Plan:
    """Six arms, five seeds, each arm at its best rate."""
    settings = _at_best_rates(arms(), cifar100_2x2_rates(), results)
    return _on_cifar100("cifar100-2x2", settings, range(5), "test")


def other_methods() -> list[Settings]:
    """Other losses of logits, with the weights and temperatures of their authors' code."""
    return [
        _arm("DKD", "dkd", distill_weight=1.0),
        _arm("DIST", "dist", distill_weight=1.0),
        replace(_arm("KD+STD", "kd+std", 0.1, 9.0), temperature=2.0),
    ]


def cifar100_methods_rates() -> Plan:
    """The search behind ``cifar100-methods``: rates of the 2x2, and one more, over that size."""
    settings = [
        one
        for arm in other_methods()
        for one in _at_rates([arm], [rate / _TIMES[arm.name] for rate in (*RATES, 1.953125)])
    ]
    return _on_cifar100("cifar100-methods-rates", settings, [SEARCHED_SEED], "validation")


def cifar100_methods(results: str | Path | None = None) -> Plan:
    """Other methods with the pair, seeds and budget of ``cifar100-2x2``."""
    settings = _at_best_rates(other_methods(), cifar100_methods_rates(), results)
    return _on_cifar100("cifar100-methods", settings, range(5), "test")


def temperatures() -> list[Settings]:
    """TTM at KD's scale, whatever the temperature: the gradient stays 3.6 (q - p_T).

    The first two come from the teacher's answers to training pictures alone, each by a rule and
    rounded: D(p || p_T) is 0.1 nats, as notebook 14 has it for tokens; a tenth of the classes is
    left in doubt, exp of the mean entropy of p_T being 10.
    """
    return [
        replace(_arm(f"TTM, T = {temperature:g}", "ttm", *_TTM), temperature=temperature)
        for temperature in (1.5, 2.25, 3.0, 4.0, 6.0, 8.0)
    ]


def cifar100_temperatures_rates() -> Plan:
    """The search behind ``cifar100-temperatures``: the middle three of the 2x2's rates."""
    settings = _at_rates(temperatures(), RATES[1:4])
    return _on_cifar100("cifar100-temperatures-rates", settings, [SEARCHED_SEED], "validation")


def cifar100_temperatures(results: str | Path | None = None) -> Plan:
    """TTM at six temperatures with the pair, seeds and budget of ``cifar100-2x2``."""
    settings = _at_best_rates(temperatures(), cifar100_temperatures_rates(), results)
    return _on_cifar100("cifar100-temperatures", settings, range(5), "test")


def cifar100_2x2_common() -> Plan:
    """KD and TTM at each other's scale too, all at one learning rate and weight decay.

    Scale acts as step size here, which is what published comparisons see.
    """
    factor = 1 / (1 - KD_WEIGHT)
    settings = [
        _arm("CE", "ce"),
        _arm("KD", "kd", *_KD),
        _arm("KD x 10", "kd", 1.0, KD_WEIGHT * factor),
        _arm("TTM / 10", "ttm", *_TTM),
        _arm("TTM", "ttm", 1.0, TTM_WEIGHT),
        _arm("WTTM", "wttm", 1.0, TTM_WEIGHT),
    ]
    settings = [replace(s, learning_rate=0.01) for s in settings]
    return _on_cifar100("cifar100-2x2-common", settings, range(5), "test")


PLANS = {
    "cifar100-2x2-rates": cifar100_2x2_rates,
    "cifar100-2x2": cifar100_2x2,
    "cifar100-2x2-common": cifar100_2x2_common,
    "cifar100-methods-rates": cifar100_methods_rates,
    "cifar100-methods": cifar100_methods,
    "cifar100-temperatures-rates": cifar100_temperatures_rates,
    "cifar100-temperatures": cifar100_temperatures,
}


def find(name: str) -> Plan:
    """The plan of that name; ``ValueError`` naming those that there are."""
    if name not in PLANS:
        raise ValueError(f"there is no plan {name!r}; there are {', '.join(PLANS)}")
    return PLANS[name]()
