"""3x3 convolutions of many students at once, in Triton: grouped ones are slow in cuDNN.

Activations are (B, S * C, H, W) in channels-last memory, so the C channels of one student's pixel
lie side by side. A program takes one student and a block of pixels, and multiplies the nine
shifted blocks by that student's weights with float32 sums. The input's gradient is the same
convolution with turned weights; the weights' gradient adds up partial sums in a fixed order, so
results are the same each time. ``python benchmarks/stacked_kernels.py`` checks and times them.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


def _configurations(*choices: tuple[int, int]) -> list[triton.Config]:
    """Block sizes and warps to try on a GPU; elsewhere there is nothing to time."""
    choices = choices if torch.cuda.is_available() else choices[:1]
    return [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in choices]


@triton.autotune(_configurations((128, 4), (64, 4), (256, 8)), key=["C"])
@triton.jit
def _convolve(
    x, weight, y, pixels, height, width, channels,
    C: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    student = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = pixel // width % height, pixel % width
    channel = tl.arange(0, C)
    here = pixel[:, None] * channels + (student * C + channel)[None, :]
    square = channel[:, None] * C + channel[None, :]
    total = tl.zeros((BLOCK, C), tl.float32)
    for tap in tl.static_range(9):
        down: tl.constexpr = tap // 3 - 1
        right: tl.constexpr = tap % 3 - 1
        inside = (row + down >= 0) & (row + down < height)
        inside = inside & (column + right >= 0) & (column + right < width) & (pixel < pixels)
        shifted = here + (down * width + right) * channels
        block = tl.load(x + shifted, mask=inside[:, None], other=0.0)
        weights = tl.load(weight + (student * 9 + tap) * C * C + square)
        total = tl.dot(block, weights, total, input_precision=PRECISION)
    tl.store(y + here, total.to(y.dtype.element_ty), mask=(pixel < pixels)[:, None])


@triton.autotune(_configurations((64, 4), (128, 4), (128, 8)), key=["C"])
@triton.jit
def _weight_gradient(
    x, gradient, partial, pixels, height, width, channels, students, per_chunk,
    C: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    student, chunk, down = tl.program_id(0), tl.program_id(1), tl.program_id(2) - 1
    channel = tl.arange(0, C)
    left = tl.zeros((C, C), tl.float32)
    middle = tl.zeros((C, C), tl.float32)
    right = tl.zeros((C, C), tl.float32)
    for start in range(0, per_chunk, BLOCK):
        pixel = chunk * per_chunk + start + tl.arange(0, BLOCK)
        row, column = pixel // width % height + down, pixel % width
        inside = (row >= 0) & (row < height) & (pixel < pixels)
        here = pixel[:, None] * channels + (student * C + channel)[None, :]
        outer = tl.load(gradient + here, mask=(pixel < pixels)[:, None], other=0.0)
        there = here + down * width * channels
        block = tl.load(x + there - channels, mask=(inside & (column > 0))[:, None], other=0.0)
        left = tl.dot(tl.trans(block), outer, left, input_precision=PRECISION)
        block = tl.load(x + there, mask=inside[:, None], other=0.0)
        middle = tl.dot(tl.trans(block), outer, middle, input_precision=PRECISION)
        after = inside & (column < width - 1)
        block = tl.load(x + there + channels, mask=after[:, None], other=0.0)
        right = tl.dot(tl.trans(block), outer, right, input_precision=PRECISION)
    square = channel[:, None] * C + channel[None, :]
    place = partial + ((chunk * students + student) * 9 + (down + 1) * 3) * C * C + square
    tl.store(place, left)
    tl.store(place + C * C, middle)
    tl.store(place + 2 * C * C, right)


def _launch(x: Tensor, weight: Tensor, students: int) -> Tensor:
    """The convolution of x with ``weight`` (students, 9, C in, C out)."""
    count, channels, height, width = x.shape
    pixels, C = count * height * width, channels // students
    y = torch.empty_like(x)
    _convolve[lambda chosen: (triton.cdiv(pixels, chosen["BLOCK"]), students)](
        x, weight, y, pixels, height, width, channels,
        C=C, PRECISION=_precision(x),
    )  # fmt: skip
    return y


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, students: int) -> Tensor:
        ctx.students = students
        ctx.save_for_backward(x, weight)
        C = weight.shape[1]
        taps = weight.view(students, C, C, 9).permute(0, 3, 2, 1).contiguous()
        return _launch(x, taps, students)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        students, C = ctx.students, weight.shape[1]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        turned = weight.view(students, C, C, 9).flip(-1).permute(0, 3, 1, 2).contiguous()
        for_input = _launch(gradient, turned, students)
        count, channels, height, width = x.shape
        pixels = count * height * width
        chunks = max(1, min(16, pixels // 512))
        per_chunk = triton.cdiv(pixels, chunks * 128) * 128  # whole blocks of any configuration
        partial = x.new_empty(chunks, students, 9, C, C, dtype=torch.float32)
        _weight_gradient[students, chunks, 3](
            x, gradient, partial, pixels, height, width, channels, students, per_chunk,
            C=C, PRECISION=_precision(x),
        )  # fmt: skip
        for_weight = partial.sum(0).permute(0, 3, 2, 1).reshape(weight.shape).to(weight.dtype)
        return for_input, for_weight, None


def grouped_conv(x: Tensor, weight: Tensor, groups: int, stride: int, padding: int) -> Tensor:
    """``F.conv2d`` with groups; Triton's for 3x3 of stride 1 between equal widths.

    x (B, S * C, H, W) channels-last, weight (S * C, C, 3, 3) contiguous, of one dtype.
    """
    if stride == 1 and weight.shape[-1] == 3 and x.shape[1] == weight.shape[0]:
        return _Convolution.apply(x, weight.contiguous(), groups)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, None, stride, padding, 1, groups)


def compare(count: int, students: int, C: int, size: int, dtype, device) -> dict[str, float]:
    """Relative errors in norm, of the result and both gradients, against float64 on the CPU."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, students * C, size, size, generator=draw).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(students * C, C, 3, 3, generator=draw).to(device, dtype).requires_grad_()
    outer = torch.randn(x.shape, generator=draw).to(device, dtype)
    found = grouped_conv(x, weight, students, 1, 1)
    found = found, *torch.autograd.grad(found, (x, weight), outer)
    x, weight = (t.detach().cpu().double().requires_grad_() for t in (x, weight))
    wanted = F.conv2d(x, weight, padding=1, groups=students)
    wanted = wanted.detach(), *torch.autograd.grad(wanted, (x, weight), outer.cpu().double())
    return {
        name: float((a.detach().cpu().double() - b).norm() / b.norm())
        for name, a, b in zip(("result", "input", "weight"), found, wanted, strict=True)
    }


def cudnn_conv(x: Tensor, weight: Tensor, groups: int, stride: int, padding: int) -> Tensor:
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, None, stride, padding, 1, groups)


def milliseconds(convolve, C: int, size: int, students: int = 45) -> tuple[float, float]:
    """Forward, and backward to input and weights, of a batch of 64."""
    kind = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(64, students * C, size, size, **kind)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(students * C, C, 3, 3, **kind).requires_grad_()
    outer, y = torch.randn_like(x), convolve(x, weight, students, 1, 1)

    def median(work):
        return triton.testing.do_bench(work, warmup=10, rep=40, return_mode="median")

    return (
        median(lambda: convolve(x, weight, students, 1, 1)),
        median(lambda: torch.autograd.grad(y, (x, weight), outer, retain_graph=True)),
    )


def main() -> None:
    torch.backends.cudnn.benchmark = True
    for C, size in ((16, 32), (32, 16), (64, 8)):
        print(C, compare(4, 3, C, size, torch.bfloat16, "cuda"))
        for name, convolve in (("triton", grouped_conv), ("cudnn", cudnn_conv)):
            forward, backward = milliseconds(convolve, C, size)
            print(f"{C} {name}: forward {forward:.3f} ms, backward {backward:.3f} ms", flush=True)
    print(_convolve.best_config, _weight_gradient.best_config)


if __name__ == "__main__":
    main()
