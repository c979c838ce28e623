"""The residual sum and its RMS norm (arXiv 1910.07467), a row of the stream at a time."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def norm_forward_kernel(
    hidden,
    residual,
    weight,
    normed,
    total,
    scale,
    width,
    epsilon,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """One row: total = hidden + residual, scale = 1 / sqrt(mean(total^2) + epsilon), normed = total scale weight."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    ok = d < width
    x = tl.load(hidden + row * width + d, mask=ok, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual + row * width + d, mask=ok, other=0.0).to(tl.float32)
    # Not `rsqrt`, which is an approximation: one number a row is cheap.
    s = 1.0 / tl.sqrt_rn(tl.sum(x * x, 0) / width + epsilon)
    w = tl.load(weight + d, mask=ok, other=0.0)
    tl.store(total + row * width + d, x, mask=ok)
    tl.store(scale + row, s)
    tl.store(normed + row * width + d, x * s * w, mask=ok)


@triton.jit(do_not_specialize=["rows"])
def norm_backward_kernel(
    grad_normed,
    grad_total,
    total,
    scale,
    weight,
    grad,
    part_weight,
    rows,
    width,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
):
    """ROWS rows one after the other; part_weight (programs, width) is their share of the weight's gradient."""
    program = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    ok = d < width
    w = tl.load(weight + d, mask=ok, other=0.0)
    sum_weight = tl.zeros([BLOCK], tl.float32)
    for i in range(0, ROWS):
        row = program.to(tl.int64) * ROWS + i
        inside = ok & (row < rows)
        g = tl.load(grad_normed + row * width + d, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(total + row * width + d, mask=inside, other=0.0)
        s = tl.load(scale + row, mask=row < rows, other=0.0)
        unit = x * s
        sum_weight += g * unit
        gw = g * w
        result = s * (gw - unit * (tl.sum(gw * unit, 0) / width))
        if HAS_TOTAL:
            result += tl.load(grad_total + row * width + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad + row * width + d, result, mask=inside)
    tl.store(part_weight + program.to(tl.int64) * width + d, sum_weight, mask=ok)


def naive_norm_forward(hidden: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, ...]:
    """The same in torch's operators: normed, total and scale."""
    total = hidden + residual
    scale = 1 / (total.square().mean(-1) + epsilon).sqrt()
    return total * scale[..., None] * weight, total, scale


def naive_norm_backward(
    grad_normed: Tensor, grad_total: Tensor, total: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The same in torch's operators: gradients of the sum (b, l, d) and of the weight."""
    unit, gw = total * scale[..., None], grad_normed * weight
    grad = scale[..., None] * (gw - unit * (gw * unit).mean(-1, keepdim=True)) + grad_total
    return grad, (grad_normed * unit).flatten(0, -2).sum(0)
