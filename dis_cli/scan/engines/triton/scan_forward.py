"""The forward scan: T tokens of a channel in a thread's registers, and a loop over the states at run time.

A program is one warp: the channels of one sample, two for each thread. It walks the sequence T tokens at a time, and
for each T tokens the states: of a state it keeps nothing in registers but the T tokens at hand, so that any number of
states takes the same registers, and no sum crosses threads. Between T tokens a state lies in memory that only its
program reads and writes (``scratch``), which stays in the second-level cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dis_cli.scan.engines.triton.arithmetic import products, sigmoid, steps, times, tokens


@triton.jit(do_not_specialize=["length"])
def scan_forward_kernel(
    u,
    delta,
    A2,
    BC,
    D,
    z,
    bias,
    add,
    out,
    ends,
    scratch,
    u_batch,
    u_row,
    delta_batch,
    delta_row,
    z_batch,
    z_row,
    add_batch,
    add_row,
    out_batch,
    out_row,
    length,
    channels,
    states,
    padded,
    groups,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADD: tl.constexpr,
    EVEN: tl.constexpr,
    ASM: tl.constexpr,
):
    """``out`` and ``ends`` of BLOCK channels of a sample.

    A2 (states, channels) is log2(e) A, BC (batch, 2 states, padded) as ``pack_kernel`` makes it, ends (batch, chunks -
    1, states, channels) the state after every CHUNK tokens. ``groups`` programs share a sample.
    """
    program = tl.program_id(0)
    group = program % groups
    sample = (program // groups).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    d = group * BLOCK + lane
    ok = tl.full([BLOCK], True, tl.int1) if EVEN else d < channels
    all_lanes = lane >= 0
    zero = tl.zeros([BLOCK], tl.float32)
    skip = tl.load(D + d, mask=ok, other=0.0) if HAS_D else zero
    shift = tl.load(bias + d, mask=ok, other=0.0) if HAS_BIAS else zero
    start = length - 1 if REVERSE else 0
    sign: tl.constexpr = -1 if REVERSE else 1
    u_at = u + sample * u_batch + start * u_row + d
    delta_at = delta + sample * delta_batch + start * delta_row + d
    out_at = out + sample * out_batch + start * out_row + d
    add_at = add + sample * add_batch + start * add_row + d if ADD else out_at
    z_at = z + sample * z_batch + start * z_row + d if HAS_Z else u_at
    BC_at = BC + sample * (2 * states) * padded
    state_at = scratch + program.to(tl.int64) * states * BLOCK + lane
    kept = (length + CHUNK - 1) // CHUNK - 1
    tl.static_assert(CHUNK % T == 0)
    for t in range(0, length, T):
        x = tokens(u_at, sign * u_row, t, ok, length, T)
        step = steps(tokens(delta_at, sign * delta_row, t, ok, length, T), shift, SOFTPLUS, T, ASM)
        step_x = products(step, x, T)
        y = ()
        for i in tl.static_range(T):
            y = y + (skip * x[i],)
        is_end = ((t + T) % CHUNK == 0) & (t + T < length)
        ends_at = ends + (sample * kept + (t + T) // CHUNK - 1) * states * channels + d
        for n in range(0, states):
            a = tl.load(A2 + n * channels + d, mask=ok, other=0.0)
            h = tl.load(state_at + n * BLOCK, mask=all_lanes & (t > 0), other=0.0)
            B = times(BC_at + n * padded + t, T)
            C = times(BC_at + (states + n) * padded + t, T)
            more = ()
            for i in tl.static_range(T):
                h = tl.exp2(step[i] * a) * h + step_x[i] * B[i]
                more = more + (y[i] + h * C[i],)
            y = more
            tl.store(state_at + n * BLOCK, h)
            tl.store(ends_at + n * channels, h, mask=ok & is_end)
        for i in tl.static_range(T):
            inside = ok & (t + i < length)
            total = y[i]
            if ADD:
                total += tl.load(add_at + (t + i) * (sign * add_row), mask=inside, other=0.0).to(tl.float32)
            if HAS_Z:
                gate = tl.load(z_at + (t + i) * (sign * z_row), mask=inside, other=0.0).to(tl.float32)
                total *= gate * sigmoid(gate, ASM)
            tl.store(out_at + (t + i) * (sign * out_row), total.to(out.dtype.element_ty), mask=inside)
        # A thread reads back what it has written itself; the barrier of one warp makes that certain, and costs nothing.
        tl.debug_barrier()


def naive_scan_forward(
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    add_to: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The same in a loop, from the first token to the last: ``out``, and ``ends`` (b, chunks - 1, n, d).

    Args:
        step: Time steps (b, l, d), after bias and softplus.
        chunk: Tokens between two states kept.
    """
    state = u.new_zeros(len(u), B.shape[2], u.shape[2])
    out, ends = torch.empty_like(u), []
    for t in range(u.shape[1]):
        if t and t % chunk == 0:
            ends.append(state)
        here = step[:, t, None]
        state = torch.exp(here * A.t()) * state + here * u[:, t, None] * B[:, t, :, None]
        out[:, t] = (state * C[:, t, :, None]).sum(1) + D * u[:, t]
    if add_to is not None:
        out = out + add_to
    if z is not None:
        out = out * z * torch.sigmoid(z)
    return out, torch.stack(ends, 1) if ends else u.new_empty(len(u), 0, *state.shape[1:])
