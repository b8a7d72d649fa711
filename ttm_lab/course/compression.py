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
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

from ttm_lab.files import find_root, read_table
from ttm_lab.models import create_model

# Every way and level of the kept table: what share of the weights is 0, and how many bits a weight
# has. Both come as they are, and with the statistics of batch norm estimated anew.
FRACTIONS = (0.3, 0.5, 0.7, 0.8, 0.9)
BITS = (6, 5, 4, 3)
# The digits' students by width: channels of the two convolutions.
WIDTHS = {"cnn_tiny": (2, 4), "cnn_small": (4, 8), "cnn_medium": (8, 16)}


def weighted_layers(network: nn.Module) -> list[nn.Module]:
    """The convolutions and linear layers: what is pruned and rounded."""
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def prune_weights(network: nn.Module, fraction: float, *, masks: bool = False) -> nn.Module:
    """A copy whose smallest weights are 0: the given ``fraction`` of those of all layers together.

    Biases and batch norm stay. With ``masks`` torch's masks are left on, so that training keeps
    the zeros; ``torch.nn.utils.prune.remove`` takes them off.
    """
    pruned = copy.deepcopy(network)
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
    """What would be kept of a network: the parameters as safetensors, compressed by xz.

    Floating-point numbers are kept in float16, those of a network in int8 (scales, biases) in
    float32. ``bits`` is what the weights were rounded to (``round_weights``): then whole numbers
    and scales are kept. xz gives nearly what whole numbers of few bits, and zeros, are worth.
    """
    state, tensors = dict(network.state_dict()), {}
    if bits is not None:
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                whole, scale = codes(state.pop(f"{name}.weight"), bits)
                state[f"{name}.scale"], tensors[name] = scale, whole.to(torch.int8)
    flat = {}
    for name, value in state.items():
        several = value if isinstance(value, tuple) else (value,)
        flat |= {f"{name}.{k}": part for k, part in enumerate(several) if torch.is_tensor(part)}
    whole_network = any(value.is_quantized for value in flat.values())
    for name, value in flat.items():
        if value.is_quantized:
            tensors[name] = value.int_repr().contiguous()
            tensors[f"{name}.scales"] = value.q_per_channel_scales().float()
        elif value.is_floating_point():
            tensors[name] = (value.float() if whole_network else value.half()).contiguous()
    return lzma.compress(save(tensors), preset=9)


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


def kept_rows(model: str, folder: str | Path | None = None) -> tuple[pd.DataFrame, dict]:
    """The kept table's rows of one kind of student, and how they were made.

    From ``cifar100_compression.csv`` and ``.json`` in ``folder``, by default ``data/results`` of
    the checkout. Raises ``LookupError`` where there is no row of that model.
    """
    folder = Path(folder or find_root() / "data" / "results")
    path = folder / "cifar100_compression.csv"
    rows = read_table(path)
    rows = rows[rows["model"] == model].reset_index(drop=True)
    if rows.empty:
        raise LookupError(f"{path} has no {model}: python benchmarks/compression.py makes it")
    notes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return rows, notes[model]
