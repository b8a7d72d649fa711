"""Several processes that train one network together, started by ``torchrun``.

``torchrun --nproc-per-node 8 -m ttm_lab distill ...`` runs the same command in eight processes.
Each takes its part of every batch: ``batch_size`` is the batch of all processes together, so the
learning rate never depends on how many there are. Batch norm sees the whole batch, too, so the
number of processes changes a result by rounding only. Process 0 alone reads and writes run folders.

Without torchrun every function here does nothing, or what one process would do.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from types import MethodType

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def processes(device: str | None = None) -> Iterator[str | None]:
    """Join the processes that torchrun started, and give this one's device.

    Outside torchrun the device is handed back as it is. Several GPUs talk through NCCL, CPUs
    through gloo.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1 or dist.is_initialized():
        yield device
        return
    use_gpu = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    if use_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if use_gpu else "gloo")
    try:
        yield device or "cpu"
    finally:
        dist.destroy_process_group()


def shard() -> tuple[int, int]:
    """Which part of each batch this process takes, as ``Split.batches`` wants it."""
    return rank(), world_size()


def loss_factor(here: int, batch: int) -> float:
    """What to multiply the mean loss over ``here`` pictures of a whole batch with.

    The mean of that over processes, which is what happens to gradients, is the mean over the
    batch. A batch with fewer pictures than processes is taken whole by each.
    """
    return here * world_size() / batch if batch >= world_size() else 1.0


def in_metrics(batch: int) -> bool:
    """Whether this process's pictures of a batch enter the metrics."""
    return batch >= world_size() or rank() == 0


def total(values: Tensor) -> Tensor:
    """The sum over processes of a tensor that has the same shape in each."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def from_first(state, device: torch.device):
    """Process 0's ``state``: a resume point, or its answer where each must answer alike.

    It is what ``torch.save`` takes and weights-only loading gives back.
    """
    if world_size() == 1:
        return state
    buffer = BytesIO()
    if rank() == 0:
        torch.save(state, buffer)
    content = [buffer.getvalue()]
    dist.broadcast_object_list(content, src=0, device=device)
    return torch.load(BytesIO(content[0]), map_location="cpu", weights_only=True)


def wrap(model: nn.Module) -> nn.Module:
    """The network to train with: its gradients become the mean over processes."""
    if world_size() == 1:
        return model
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = MethodType(_batch_norm_of_all, module)
    device = next(model.parameters()).device
    return nn.parallel.DistributedDataParallel(model, [device] if device.type == "cuda" else None)


def average_gradients(module: nn.Module) -> None:
    """Make the gradients of a module that ``wrap`` has not seen the mean over processes."""
    for parameter in module.parameters():
        if world_size() > 1 and parameter.grad is not None:
            total(parameter.grad).div_(world_size())


def unwrap(model: nn.Module) -> None:
    """Give a network that ``wrap`` has changed its own batch norm back."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            vars(module).pop("forward", None)


def _batch_norm_of_all(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm over the pictures of all processes. (torch's SyncBatchNorm refuses CPUs.)"""
    if not self.training:
        return type(self).forward(self, x)
    around = [0, *range(2, x.ndim)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    values = x if x.dtype == torch.float64 else x.float()
    number = total(values.new_tensor(x.numel() // x.shape[1]))
    mean = _sum_of_all(values.sum(around)) / number
    values = values - mean.view(shape)
    variance = _sum_of_all(values.square().sum(around)) / number
    with torch.no_grad():
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * number / (number - 1), share)
    scale = torch.rsqrt(variance + self.eps)
    scale, shift = (scale * self.weight, self.bias) if self.affine else (scale, None)
    values = values * scale.view(shape)
    return (values if shift is None else values + shift.view(shape)).to(x.dtype)


class _SumOfAll(torch.autograd.Function):
    """A sum over processes; each one's share of the gradient comes back from all of them.

    (torch deprecates its own, ``torch.distributed.nn.functional.all_reduce``.)
    """

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return total(values.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return total(gradient.clone())


_sum_of_all = _SumOfAll.apply
