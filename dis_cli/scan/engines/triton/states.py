"""B and C as the scans read them, and the sums of their gradients: per token and state, shared by all channels."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def tile(programs_n, programs_t, TIMES: tl.constexpr, STATES: tl.constexpr):
    """Sample, times and states of a program."""
    program = tl.program_id(0)
    t = (program % programs_t) * TIMES + tl.arange(0, TIMES)
    n = (program // programs_t % programs_n) * STATES + tl.arange(0, STATES)
    return (program // programs_t // programs_n).to(tl.int64), t, n


@triton.jit(do_not_specialize=["length"])
def pack_kernel(
    B,
    C,
    BC,
    B_batch,
    B_row,
    C_batch,
    C_row,
    length,
    states,
    padded,
    programs_n,
    programs_t,
    TIMES: tl.constexpr,
    STATES: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """BC (batch, 2 states, padded) in float32: B, then C, with time innermost, in scan order, 0 beyond ``length``.

    One entry over time then is consecutive numbers, which a scan loads as scalars, two at once.
    """
    sample, t, n = tile(programs_n, programs_t, TIMES, STATES)
    inside = (t < length)[:, None] & (n < states)[None, :]
    source = length - 1 - t if REVERSE else t
    to = BC + sample * (2 * states) * padded + n[None, :] * padded + t[:, None]
    place = (t < padded)[:, None] & (n < states)[None, :]
    values = tl.load(B + sample * B_batch + source[:, None] * B_row + n[None, :], mask=inside, other=0.0)
    tl.store(to, values.to(tl.float32), mask=place)
    values = tl.load(C + sample * C_batch + source[:, None] * C_row + n[None, :], mask=inside, other=0.0)
    tl.store(to + states * padded, values.to(tl.float32), mask=place)


@triton.jit(do_not_specialize=["batch", "length"])
def sum_kernel(
    parts,
    grad_B,
    grad_C,
    B_batch,
    B_row,
    C_batch,
    C_row,
    batch,
    length,
    states,
    padded,
    groups,
    programs_n,
    programs_t,
    TIMES: tl.constexpr,
    STATES: tl.constexpr,
    T: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Gradients of B and C: the sums of ``parts`` over the groups of channels, always in the same order.

    parts (groups, batch, states, padded / T, 2 T) holds, of T tokens in scan order, those of B and then those of C.
    """
    sample, t, n = tile(programs_n, programs_t, TIMES, STATES)
    inside = (t < length)[:, None] & (n < states)[None, :]
    part_at = parts + sample * states * 2 * padded + n[None, :] * (2 * padded) + (t // T * (2 * T) + t % T)[:, None]
    total_B = tl.zeros([TIMES, STATES], tl.float32)
    total_C = tl.zeros([TIMES, STATES], tl.float32)
    for _ in range(0, groups):
        total_B += tl.load(part_at, mask=inside, other=0.0)
        total_C += tl.load(part_at + T, mask=inside, other=0.0)
        part_at += batch.to(tl.int64) * states * 2 * padded
    source = length - 1 - t if REVERSE else t
    to_B = grad_B + sample * B_batch + source[:, None] * B_row + n[None, :]
    to_C = grad_C + sample * C_batch + source[:, None] * C_row + n[None, :]
    tl.store(to_B, total_B.to(grad_B.dtype.element_ty), mask=inside)
    tl.store(to_C, total_C.to(grad_C.dtype.element_ty), mask=inside)


def naive_pack(B: Tensor, C: Tensor, padded: int, *, reverse: bool) -> Tensor:
    """The same in torch's operators: B and C (b, l, n) to (b, 2 n, padded)."""
    both = torch.cat([B, C], dim=2).float()
    return F.pad((both.flip(1) if reverse else both).transpose(1, 2), (0, padded - both.shape[1]))


def naive_sum(parts: Tensor, length: int, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """The same in torch's operators: parts (groups, b, n, chunks, 2, T) to the gradients (b, l, n) of B and C."""
    both = parts.sum(0).permute(3, 0, 2, 4, 1).flatten(2, 3)[:, :, :length]
    grad_B, grad_C = both.flip(2) if reverse else both
    return grad_B, grad_C
