"""Smaller networks, for notebook 11: pruned, with coarser weights, or computed in int8.

Pruning and int8 are torch's own. What torch can only store coarsely, weights of fewer than 8 bits,
is simulated: the weights are rounded, the arithmetic stays float32, and no speed follows from it.
Every function leaves the network that it is given as it was.
"""

import copy
import json
import lzma
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

from ttm_lab.analysis import contrasts
from ttm_lab.course import evidence
from ttm_lab.files import find_root, read_table
from ttm_lab.models import create_model

# Every way and level of the kept table: what share of the weights is 0, and how many bits a weight
# has. Both come as they are, and with the statistics of batch norm estimated anew.
FRACTIONS = (0.5, 0.7, 0.9)
BITS = (5, 4, 3)
# What claim C11 is judged in, named before any was measured: way and level.
JUDGED = {"int8": ("int8", 8), "70 % pruned": ("pruned", 0.7), "4 bits": ("rounded", 4)}
ARMS = {"ce": "CE", "kd": "KD", "kd10": "KD x 10", "ttm": "TTM", "wttm": "WTTM"}
TEACHERS = {"resnet20": "resnet56", "resnet8": "resnet32"}  # who taught the kept students
EPOCHS = {"resnet8": 6, "resnet20": 10}  # of their training
# The digits' students by width: channels of the two convolutions.
WIDTHS = {"cnn_tiny": (2, 4), "cnn_small": (4, 8), "cnn_medium": (8, 16)}


def weighted_layers(network: nn.Module) -> list[nn.Module]:
    """The convolutions and linear layers: what is pruned and rounded."""
    return [layer for layer in network.modules() if _has_weights(layer)]


def _has_weights(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d | nn.Linear)


def prune_weights(network: nn.Module, fraction: float, *, masks: bool = False) -> nn.Module:
    """A copy whose smallest weights are 0: the given ``fraction`` of those of all layers together.

    Biases and batch norm stay. With ``masks`` torch's masks are left on, so that training keeps
    the zeros; ``torch.nn.utils.prune.remove`` takes them off.
    """
    # torch's pruning cannot read weights that lie channels last
    pruned = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    weights = [(layer, "weight") for layer in weighted_layers(pruned)]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=fraction)
    return pruned if masks else without_masks(pruned)


def without_masks(pruned: nn.Module) -> nn.Module:
    """The same network, its masks multiplied into the weights and gone."""
    for layer in weighted_layers(pruned):
        prune.remove(layer, "weight")
    return pruned


def codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Whole numbers (the shape of ``weight``) and scales (one an output) whose product is close.

    Symmetric: with 3 bits the numbers are -3 to 3. Scales are float16 numbers.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} must lie between 2 and 8")
    largest = 2 ** (bits - 1) - 1
    size = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    scale = (size / largest).half().float()
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight / scale).round().clamp(-largest, largest), scale


def round_weights(network: nn.Module, bits: int) -> nn.Module:
    """A copy whose convolutions and linear layers have weights of 2 to 8 bits, as float32."""
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for layer in weighted_layers(rounded):
            whole, scale = codes(layer.weight, bits)
            layer.weight.copy_(whole * scale)
    return rounded


def reestimate(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose batch norms have the mean and variance of what ``images`` (N, C, H, W) bring.

    No label and no gradient is needed. A network without batch norm comes back as it was.
    """
    renewed = copy.deepcopy(network)
    update_bn(images.split(250), renewed)
    return renewed.eval()


def to_int8(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy that computes in int8, convolutions too; ``images`` (N, C, H, W) set its scales.

    Batch norm is folded first. This is torch's FX graph mode. It is deprecated in favour of
    torchao, whose one-line call knows linear layers only, and is the only one in torch itself that
    runs convolutions in int8. On x86 torch keeps activations to 7 of the 8 bits, since sums would
    overflow in older processors.

    Raises ``RuntimeError`` where this torch cannot do it.
    """
    engine = torch.backends.quantized.engine
    try:
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
    except ImportError as error:
        raise RuntimeError(f"torch {torch.__version__} has no FX quantization any more") from error
    if engine == "none":
        raise RuntimeError("this torch has no int8 kernels: torch.backends.quantized.engine")
    traced = torch.fx.symbolic_trace(copy.deepcopy(network).eval())
    for node in traced.graph.nodes:
        if node.target is torch.relu_:
            node.target = nn.functional.relu  # which is fused with the convolution before it
    traced.recompile()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # hundreds, all of them about deprecation
        observed = prepare_fx(traced, get_default_qconfig_mapping(engine), (images[:1],))
        observed(images)
        return convert_fx(observed)


def fold(network: nn.Module) -> nn.Module:
    """A copy with batch norm folded, channels last: the fastest float32, to compare int8 with."""
    from torch.ao.quantization.quantize_fx import fuse_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fuse_fx(copy.deepcopy(network).eval()).to(memory_format=torch.channels_last)


def convolutions(network: nn.Module, images: Tensor) -> dict[str, int]:
    """How many convolutions a pass over ``images`` runs in int8, and in floating point.

    Counted as they are called: a module's name proves nothing.
    """
    with torch.inference_mode(), _Calls() as calls:
        network(images)
    int8 = sum(name.startswith("quantized.conv2d") for name in calls.names)
    return {"int8": int8, "float32": sum(name.startswith("aten.conv") for name in calls.names)}


class _Calls(TorchDispatchMode):
    """The names of torch's operators, in the order of their calls."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


def stored(network: nn.Module, bits: int | None = None) -> bytes:
    """What has to be kept of a network: its numbers, one after another, compressed by xz.

    Floating-point numbers are kept in float16, those of a network in int8 (scales, biases) in
    float32. ``bits`` is what the weights were rounded to (``round_weights``): then whole numbers
    and scales are kept. xz finds nearly what whole numbers of few bits, and zeros, are worth.
    """
    parts = []
    for name, value in network.state_dict().items():
        parts += [(name, part) for part in (value if isinstance(value, tuple) else (value,))]
    parts = [(name, part) for name, part in parts if torch.is_tensor(part)]
    rounded = {f"{name}.weight" for name, layer in network.named_modules() if _has_weights(layer)}
    kind = torch.float32 if any(part.is_quantized for _, part in parts) else torch.float16
    kept = []
    for name, part in parts:
        if part.is_quantized:
            kept += [part.int_repr(), part.q_per_channel_scales().float()]
        elif bits is not None and name in rounded:
            whole, scale = codes(part, bits)
            kept += [whole.to(torch.int8), scale.half()]
        elif part.is_floating_point():
            kept.append(part.to(kind))
    return lzma.compress(b"".join(part.detach().numpy().tobytes() for part in kept))


def time_ratios(
    network: nn.Module, reference: nn.Module, images: Tensor, *, rounds: int = 15
) -> np.ndarray:
    """Time of ``network`` over that of ``reference`` for one pass, a number a round.

    The two take turns, and who is first changes, so that whatever else the machine does meets
    both. A first pass of each is not counted.
    """
    both = network, reference
    ratios = []
    with torch.inference_mode():
        for one in both:
            one(images)
        for k in range(rounds):
            seconds = {}
            for one in both if k % 2 else both[::-1]:
                start = time.perf_counter()
                one(images)
                seconds[one] = time.perf_counter() - start
            ratios.append(seconds[network] / seconds[reference])
    return np.array(ratios)


def pareto(size: Sequence[float], score: Sequence[float]) -> np.ndarray:
    """Which entries nothing beats: none is as small with a better score, or smaller and as good."""
    size, score = np.asarray(size, float), np.asarray(score, float)
    no_larger, no_worse = size <= size[:, None], score >= score[:, None]
    better = (size < size[:, None]) | (score > score[:, None])
    return ~(no_larger & no_worse & better).any(axis=1)


def digits_networks(path: str | Path | None = None) -> dict[tuple[str, str, int], nn.Module]:
    """The kept networks of the digits by (model, method, seed), in eval mode.

    Students of each width in ``WIDTHS``, by CE, KD, TTM and WTTM, and each seed's own teacher,
    ``("cnn_large", "teacher", seed)``. ``path`` is ``data/results/digits_students.safetensors`` of
    the checkout by default.
    """
    path = path or find_root() / "data" / "results" / "digits_students.safetensors"
    states: dict[tuple, dict] = {}
    for name, value in load_file(path).items():
        model, method, seed, parameter = name.split("/")
        states.setdefault((model, method, int(seed)), {})[parameter] = value.float()
    networks = {}
    for key, state in sorted(states.items()):
        networks[key] = create_model(key[0], 10, seed=0)
        networks[key].load_state_dict(state)
        networks[key].eval()
    return networks


def kept_tables(folder: str | Path | None = None) -> dict[str, tuple[pd.DataFrame, dict]]:
    """By kind of student, most seeds first: rows of the kept table, and how they were made.

    From ``cifar100_compression.csv`` and ``.json`` in ``folder``, by default ``data/results`` of
    the checkout; without kinds of which networks are missing that claim C11 is judged by. A row is
    a network: arm, seed, way, level and repair (what was done to it), its measures as fractions
    and nats, and bytes.
    """
    path = Path(folder or find_root() / "data" / "results") / "cifar100_compression.csv"
    if not path.exists():
        return {}
    notes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    table, found = read_table(path).replace({"arm": ARMS}), {}
    for model in table.groupby("model")["seed"].nunique().sort_values(ascending=False).index:
        rows = table[table["model"] == model]
        with suppress(KeyError):
            judged(rows)
            found[model] = rows, notes[model]
    return found


def changes(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """What compression changed: ``measure`` minus that of the same network as it was.

    A row a seed; columns are (way, level, repair, arm). Models of several widths are averaged.
    """
    columns = ["way", "level", "repair", "arm"]
    wide = rows.pivot_table(index="seed", columns=columns, values=measure)
    before = wide["float", 32, "none"]
    return pd.DataFrame({key: wide[key] - before[key[-1]] for key in wide}).rename_axis(
        columns=columns
    )


def judged(rows: pd.DataFrame, repair: str = "batch norm", **options) -> pd.DataFrame:
    """``analysis.contrasts`` of claim C11: accuracy kept, TTM's and WTTM's minus KD's, in points.

    In each way of ``JUDGED``; with ``options`` of ``contrasts``. KD at TTM's scale of the loss is
    taken where it is there: it was trained with the same weight decay. Raises ``KeyError`` where
    the rows lack one of the networks.
    """
    change = 100 * changes(rows, "accuracy").dropna(axis="columns")
    base = "KD x 10" if "KD x 10" in set(rows["arm"]) else "KD"
    differences = {
        f"{arm} minus {base}, {name}": change[way, level, how, arm] - change[way, level, how, base]
        for arm in ("TTM", "WTTM")
        for name, (way, level) in JUDGED.items()
        for how in ("none" if way == "int8" else repair,)
    }
    return contrasts(differences, **options).assign(quantity="accuracy")


def entries(folder: str | Path | None = None) -> list[dict]:
    """The kept table as evidence: an entry a kind of student."""
    return [
        evidence.entry("C11", judged(rows), **words(model, rows, note))
        for model, (rows, note) in kept_tables(folder).items()
    ]


def words(model: str, rows: pd.DataFrame, note: dict) -> dict:
    """Scope and what else ``evidence.entry`` shows of a kept table."""
    seeds = rows.loc[rows["arm"] != "teacher", "seed"].nunique()
    return {
        "scope": f"CIFAR-100, {TEACHERS[model]} to {model}, {seeds} seeds, "
        f"{EPOCHS[model]} epochs, test part",
        "command": note["command"],
        "settings": "ways and levels fixed before the runs; nothing searched",
        "teachers": 1,
        "note": f"{rows['pictures'].max():,} test pictures; {note['date']}, {note['machine']}",
        "notebook": "11_compression",
    }
