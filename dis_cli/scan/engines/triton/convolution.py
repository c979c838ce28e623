"""The causal convolution with SiLU, of any number of taps: a warp for 64 channels, T tokens of them in registers.

Taps come four at a time: the window of T + 3 tokens is loaded once for them. The backward takes two kernels: the first
computes the convolution again and writes the gradient before the activation, the second is the forward's, run the other
way, since the gradient of x is the convolution of that gradient with the same taps in the opposite direction.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dis_cli.scan.engines.triton.arithmetic import sigmoid, silu_slope, tokens


@triton.jit
def add_taps(
    total, x_at, row, weight_at, tap, first, ok, length, K: tl.constexpr, T: tl.constexpr, COUNT: tl.constexpr
):
    """``total`` plus COUNT taps, from number ``tap`` on, for T tokens from ``first`` on; the last meets the token."""
    window = tokens(x_at, row, first - (K - 1) + tap, ok, length, T + COUNT - 1)
    for k in tl.static_range(COUNT):
        w = tl.load(weight_at + (tap + k), mask=ok, other=0.0)
        more = ()
        for i in tl.static_range(T):
            more = more + (total[i] + w * window[i + k],)
        total = more
    return total


@triton.jit
def convolve(x_at, row, weight_at, shift, first, ok, length, K: tl.constexpr, T: tl.constexpr):
    """T tokens of the convolution: those taps first that do not make four."""
    total = ()
    for _ in tl.static_range(T):
        total = total + (shift,)
    if K % 4:
        total = add_taps(total, x_at, row, weight_at, 0, first, ok, length, K, T, K % 4)
    for tap in range(K % 4, K, 4):
        total = add_taps(total, x_at, row, weight_at, tap, first, ok, length, K, T, 4)
    return total


@triton.jit(do_not_specialize=["length", "tiles"])
def convolution_kernel(
    x,
    weight,
    bias,
    out,
    x_batch,
    x_row,
    out_batch,
    out_row,
    length,
    channels,
    groups,
    tiles,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
    REVERSE: tl.constexpr,
    ACTIVATE: tl.constexpr,
    ADD: tl.constexpr,
    EVEN: tl.constexpr,
    ASM: tl.constexpr,
):
    """T tokens and BLOCK channels of ``out``; without ACTIVATE no bias and no SiLU, with ADD added to it."""
    program = tl.program_id(0)
    d = program % groups * BLOCK + tl.arange(0, BLOCK)
    first = program // groups % tiles * T
    sample = (program // groups // tiles).to(tl.int64)
    ok = tl.full([BLOCK], True, tl.int1) if EVEN else d < channels
    start = length - 1 if REVERSE else 0
    sign: tl.constexpr = -1 if REVERSE else 1
    x_at = x + sample * x_batch + start * x_row + d
    out_at = out + sample * out_batch + start * out_row + d
    shift = tl.load(bias + d, mask=ok, other=0.0) if ACTIVATE else tl.zeros([BLOCK], tl.float32)
    total = convolve(x_at, sign * x_row, weight + d * K, shift, first, ok, length, K, T)
    for i in tl.static_range(T):
        inside = ok & (first + i < length)
        result = total[i]
        if ACTIVATE:
            result *= sigmoid(result, ASM)
        to = out_at + (first + i) * (sign * out_row)
        if ADD:
            result += tl.load(to, mask=inside, other=0.0).to(tl.float32)
        tl.store(to, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def weight_sums(
    grads, x_at, row, part_at, channels, tap, first, ok, length, K: tl.constexpr, T: tl.constexpr, COUNT: tl.constexpr
):
    """Adds what T tokens give to the gradients of COUNT taps; the first T tokens begin them."""
    window = tokens(x_at, row, first - (K - 1) + tap, ok, length, T + COUNT - 1)
    for k in tl.static_range(COUNT):
        total = tl.load(part_at + (tap + k) * channels, mask=ok & (first > 0), other=0.0)
        for i in tl.static_range(T):
            total += grads[i] * window[i + k]
        tl.store(part_at + (tap + k) * channels, total, mask=ok)


@triton.jit(do_not_specialize=["length"])
def activation_gradient_kernel(
    grad,
    x,
    weight,
    bias,
    out,
    part_weight,
    part_bias,
    grad_batch,
    grad_row,
    x_batch,
    x_row,
    out_batch,
    out_row,
    length,
    channels,
    groups,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
    REVERSE: tl.constexpr,
    EVEN: tl.constexpr,
    ASM: tl.constexpr,
):
    """``out``, the gradient before the activation, of BLOCK channels of a sample; and its sums with x and with 1.

    part_weight (batch, K, channels) and part_bias (batch, channels) are this sample's gradients of the parameters.
    """
    program = tl.program_id(0)
    d = program % groups * BLOCK + tl.arange(0, BLOCK)
    sample = (program // groups).to(tl.int64)
    ok = tl.full([BLOCK], True, tl.int1) if EVEN else d < channels
    start = length - 1 if REVERSE else 0
    sign: tl.constexpr = -1 if REVERSE else 1
    x_at = x + sample * x_batch + start * x_row + d
    grad_at = grad + sample * grad_batch + start * grad_row + d
    out_at = out + sample * out_batch + start * out_row + d
    part_at = part_weight + sample * K * channels + d
    shift = tl.load(bias + d, mask=ok, other=0.0)
    sum_bias = tl.zeros([BLOCK], tl.float32)
    for first in range(0, length, T):
        before = convolve(x_at, sign * x_row, weight + d * K, shift, first, ok, length, K, T)
        grads = ()
        for i in tl.static_range(T):
            inside = ok & (first + i < length)
            given = tl.load(grad_at + (first + i) * (sign * grad_row), mask=inside, other=0.0).to(tl.float32)
            through = tl.where(inside, given * silu_slope(before[i], ASM), 0.0)
            tl.store(out_at + (first + i) * (sign * out_row), through.to(out.dtype.element_ty), mask=inside)
            sum_bias += through
            grads = grads + (through,)
        if K % 4:
            weight_sums(grads, x_at, sign * x_row, part_at, channels, 0, first, ok, length, K, T, K % 4)
        for tap in range(K % 4, K, 4):
            weight_sums(grads, x_at, sign * x_row, part_at, channels, tap, first, ok, length, K, T, 4)
        tl.debug_barrier()
    tl.store(part_bias + sample * channels + d, sum_bias, mask=ok)


def naive_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, reverse: bool) -> Tensor:
    """The same in a loop over the taps; ``bias`` None leaves the activation out, too."""
    taps = weight.shape[1]
    x = x.flip(1) if reverse else x
    padded = torch.cat([x.new_zeros(len(x), taps - 1, x.shape[2]), x], dim=1)
    total = sum(weight[:, k] * padded[:, k : k + x.shape[1]] for k in range(taps))
    if bias is not None:
        total = (total + bias) * torch.sigmoid(total + bias)
    return total.flip(1) if reverse else total


def naive_activation_gradient(grad: Tensor, before: Tensor) -> Tensor:
    """The gradient before the activation, from that after it and the convolution's result with its bias."""
    gate = torch.sigmoid(before)
    return grad * (gate + before * gate * (1 - gate))
