"""The backward scan, with the forward's layout: a warp for 64 channels of a sample, T tokens of them in registers.

The adjoint of ``h_t = decay_t h_{t-1} + step_t u_t B_t`` runs from the last token to the first: ``g_t = C_t grad_t +
decay_{t+1} g_{t+1}`` (Mamba, arXiv 2312.00752, section 3.3.2: states are computed again, not kept). The forward kept
the state after every CHUNK tokens; a sweep over a chunk writes the state before each T of its tokens to the program's
own memory, and the way back computes the T states and decays once more, in registers.

The gradients of B and C are sums over channels. Of T tokens they are 2 T numbers in each thread, which a
reduce-scatter adds over a warp by 16 exchanges, without shared memory; ``sum_kernel`` adds the warps' rows. Every
sum has one order, so the same numbers give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dis_cli.scan.engines.triton.arithmetic import LN2, products, sigmoid, silu_slope, steps, times, tokens


@triton.jit
def halve(values, lane, COUNT: tl.constexpr):
    """COUNT tensors to half as many: two threads that differ in one bit each keep one half, and give the other."""
    upper = (lane & (COUNT // 2)) != 0
    rest = ()
    for i in tl.static_range(COUNT // 2):
        keep = tl.where(upper, values[i + COUNT // 2], values[i])
        give = tl.where(upper, values[i], values[i + COUNT // 2])
        rest = rest + (keep + tl.gather(give, lane ^ (COUNT // 2), 0),)
    return rest


@triton.jit
def sums_over_lanes(values, lane):
    """The sums of 16 tensors over 32 threads: thread i gets that of tensor i % 16."""
    values = halve(values, lane, 16)
    values = halve(values, lane, 8)
    values = halve(values, lane, 4)
    values = halve(values, lane, 2)
    return values[0] + tl.gather(values[0], lane ^ 16, 0)


@triton.jit(do_not_specialize=["length", "batch"])
def scan_backward_kernel(
    grad,
    u,
    delta,
    A2,
    BC,
    D,
    z,
    bias,
    ends,
    grad_u,
    grad_delta,
    grad_z,
    part_BC,
    part_A,
    part_D,
    part_bias,
    scratch,
    grad_batch,
    grad_row,
    u_batch,
    u_row,
    delta_batch,
    delta_row,
    z_batch,
    z_row,
    grad_u_batch,
    grad_u_row,
    grad_delta_batch,
    grad_delta_row,
    grad_z_batch,
    grad_z_row,
    batch,
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
    ADD_Z: tl.constexpr,
    EVEN: tl.constexpr,
    ASM: tl.constexpr,
):
    """Gradients of BLOCK channels of a sample, with the arguments of ``scan_forward_kernel``.

    part_BC (groups, batch, states, padded / T, 2 T) is this group's share of the gradients of B and C; part_A (batch,
    states, channels), part_D and part_bias (batch, channels) are this sample's of those of A, D and the bias.
    """
    SUBS: tl.constexpr = CHUNK // T
    THREADS: tl.constexpr = 32
    tl.static_assert(2 * T == 16)
    program = tl.program_id(0)
    group = program % groups
    sample = (program // groups).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    thread = tl.arange(0, THREADS)
    d = group * BLOCK + lane
    ok = tl.full([BLOCK], True, tl.int1) if EVEN else d < channels
    all_lanes = lane >= 0
    zero = tl.zeros([BLOCK], tl.float32)
    sum_D = zero
    sum_bias = zero
    skip = tl.load(D + d, mask=ok, other=0.0) if HAS_D else zero
    shift = tl.load(bias + d, mask=ok, other=0.0) if HAS_BIAS else zero
    start = length - 1 if REVERSE else 0
    sign: tl.constexpr = -1 if REVERSE else 1
    grad_at = grad + sample * grad_batch + start * grad_row + d
    u_at = u + sample * u_batch + start * u_row + d
    delta_at = delta + sample * delta_batch + start * delta_row + d
    grad_u_at = grad_u + sample * grad_u_batch + start * grad_u_row + d
    grad_delta_at = grad_delta + sample * grad_delta_batch + start * grad_delta_row + d
    z_at = z + sample * z_batch + start * z_row + d if HAS_Z else u_at
    grad_z_at = grad_z + sample * grad_z_batch + start * grad_z_row + d if HAS_Z else grad_u_at
    BC_at = BC + sample * (2 * states) * padded
    part_BC_at = part_BC + (group * batch + sample) * (2 * states) * padded + thread
    part_A_at = part_A + sample * states * channels + d
    # A program's own memory, each of its rows (states, BLOCK): the adjoint state, then the state before each T tokens.
    own = scratch + program.to(tl.int64) * ((1 + SUBS) * states * BLOCK) + lane
    kept = (length + CHUNK - 1) // CHUNK - 1
    for back in range(0, kept + 1):
        chunk = kept - back
        first = chunk * CHUNK
        subs = (tl.minimum(CHUNK, length - first) + T - 1) // T
        ends_at = ends + (sample * kept + chunk - 1) * states * channels + d
        for n in range(0, states):
            begin = tl.load(ends_at + n * channels, mask=ok & (chunk > 0), other=0.0)
            tl.store(own + (states + n) * BLOCK, begin)
        for sub in range(0, subs - 1):
            t = first + sub * T
            x = tokens(u_at, sign * u_row, t, ok, length, T)
            step = steps(tokens(delta_at, sign * delta_row, t, ok, length, T), shift, SOFTPLUS, T, ASM)
            step_x = products(step, x, T)
            tl.debug_barrier()
            for n in range(0, states):
                a = tl.load(A2 + n * channels + d, mask=ok, other=0.0)
                h = tl.load(own + ((sub + 1) * states + n) * BLOCK)
                B = times(BC_at + n * padded + t, T)
                for i in tl.static_range(T):
                    h = tl.exp2(step[i] * a) * h + step_x[i] * B[i]
                tl.store(own + ((sub + 2) * states + n) * BLOCK, h)
        tl.debug_barrier()
        for sub_back in range(0, subs):
            sub = subs - 1 - sub_back
            t = first + sub * T
            more_follow = t + T < length
            x = tokens(u_at, sign * u_row, t, ok, length, T)
            step = steps(tokens(delta_at, sign * delta_row, t, ok, length, T), shift, SOFTPLUS, T, ASM)
            step_x = products(step, x, T)
            grad_y = tokens(grad_at, sign * grad_row, t, ok, length, T)
            if HAS_Z:
                gates = tokens(z_at, sign * z_row, t, ok, length, T)
                through = ()
                for i in tl.static_range(T):
                    through = through + (grad_y[i] * (gates[i] * sigmoid(gates[i], ASM)),)
                grad_y = through
            y = ()
            grad_step_x = ()
            grad_exponent = ()
            for i in tl.static_range(T):
                y = y + (skip * x[i],)
                grad_step_x = grad_step_x + (zero,)
                grad_exponent = grad_exponent + (zero,)
            for n in range(0, states):
                a = tl.load(A2 + n * channels + d, mask=ok, other=0.0)
                h = tl.load(own + ((sub + 1) * states + n) * BLOCK)
                carry = tl.load(own + n * BLOCK, mask=all_lanes & more_follow, other=0.0)
                sum_A = tl.load(part_A_at + n * channels, mask=ok & more_follow, other=0.0)
                B = times(BC_at + n * padded + t, T)
                C = times(BC_at + (states + n) * padded + t, T)
                before = (h,)
                decays = ()
                more = ()
                for i in tl.static_range(T):
                    decay = tl.exp2(step[i] * a)
                    h = decay * h + step_x[i] * B[i]
                    decays = decays + (decay,)
                    before = before + (h,)
                    if HAS_Z:
                        more = more + (y[i] + h * C[i],)
                if HAS_Z:
                    y = more
                to_B = ()
                to_C = ()
                more_step_x = ()
                more_exponent = ()
                for j in tl.static_range(T):
                    # From the last token to the first, so that tuples grow at their front.
                    g = grad_y[T - 1 - j] * C[T - 1 - j] + carry
                    to_B = (step_x[T - 1 - j] * g,) + to_B
                    to_C = (grad_y[T - 1 - j] * before[T - j],) + to_C
                    more_step_x = (grad_step_x[T - 1 - j] + g * B[T - 1 - j],) + more_step_x
                    carry = decays[T - 1 - j] * g
                    # Of the exponent step A.
                    q = carry * before[T - 1 - j]
                    sum_A += q * step[T - 1 - j]
                    more_exponent = (grad_exponent[T - 1 - j] + q * a,) + more_exponent
                grad_step_x = more_step_x
                grad_exponent = more_exponent
                tl.store(own + n * BLOCK, carry)
                tl.store(part_A_at + n * channels, sum_A, mask=ok)
                # A thread's own channels are added first, in registers.
                folded = ()
                for i in tl.static_range(T):
                    folded = folded + (tl.sum(tl.reshape(to_B[i], [THREADS, BLOCK // THREADS]), 1),)
                for i in tl.static_range(T):
                    folded = folded + (tl.sum(tl.reshape(to_C[i], [THREADS, BLOCK // THREADS]), 1),)
                totals = sums_over_lanes(folded, thread)
                tl.store(part_BC_at + (n * padded + t) * 2, totals, mask=thread < 2 * T)
            for i in tl.static_range(T):
                inside = ok & (t + i < length)
                # Read again: registers are scarcer than loads.
                x_i = tl.load(u_at + (t + i) * (sign * u_row), mask=inside, other=0.0).to(tl.float32)
                grad_delta_i = LN2 * grad_exponent[i] + grad_step_x[i] * x_i
                if SOFTPLUS:
                    raw = tl.load(delta_at + (t + i) * (sign * delta_row), mask=inside, other=0.0).to(tl.float32)
                    grad_delta_i *= sigmoid(raw + shift, ASM)
                to_delta = grad_delta_at + (t + i) * (sign * grad_delta_row)
                tl.store(to_delta, grad_delta_i.to(grad_delta.dtype.element_ty), mask=inside)
                grad_u_i = grad_step_x[i] * step[i] + grad_y[i] * skip
                to_u = grad_u_at + (t + i) * (sign * grad_u_row)
                tl.store(to_u, grad_u_i.to(grad_u.dtype.element_ty), mask=inside)
                if HAS_Z:
                    gate = tl.load(z_at + (t + i) * (sign * z_row), mask=inside, other=0.0).to(tl.float32)
                    grad_i = tl.load(grad_at + (t + i) * (sign * grad_row), mask=inside, other=0.0).to(tl.float32)
                    grad_z_i = grad_i * y[i] * silu_slope(gate, ASM)
                    to_z = grad_z_at + (t + i) * (sign * grad_z_row)
                    if ADD_Z:
                        grad_z_i += tl.load(to_z, mask=inside, other=0.0).to(tl.float32)
                    tl.store(to_z, grad_z_i.to(grad_z.dtype.element_ty), mask=inside)
                if HAS_BIAS:
                    # With a bias there is a time step beyond the last token, too.
                    sum_bias += tl.where(t + i < length, grad_delta_i, 0.0)
                if HAS_D:
                    sum_D += grad_y[i] * x_i
            tl.debug_barrier()
    if HAS_D:
        tl.store(part_D + sample * channels + d, sum_D, mask=ok)
    if HAS_BIAS:
        tl.store(part_bias + sample * channels + d, sum_bias, mask=ok)


def naive_scan_backward(
    grad: Tensor, u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
) -> tuple[Tensor, ...]:
    """The same in a loop, from the last token to the first, with all states kept.

    Args:
        step: Time steps (b, l, d), after bias and softplus.

    Returns:
        Gradients of u, step, A (b, d, n), B, C, D (b, d) and z, those of A and D still of each sample.
    """
    steps_, tokens_ = step[..., None], u[..., None]
    decay = torch.exp(steps_ * A)  # (b, l, d, n)
    states = [u.new_zeros(len(u), *A.shape)]
    for t in range(u.shape[1]):
        states.append(decay[:, t] * states[-1] + (steps_ * tokens_)[:, t] * B[:, t, None])
    h, before = torch.stack(states[1:], 1), torch.stack(states[:-1], 1)
    gate = torch.sigmoid(z)
    y = (h * C[:, :, None]).sum(3) + D * u
    grad_z, grad_y = grad * y * (gate + z * gate * (1 - gate)), (grad * z * gate)[..., None]
    g = grad_y * C[:, :, None]
    for t in reversed(range(u.shape[1] - 1)):
        g[:, t] += decay[:, t + 1] * g[:, t + 1]
    grad_step_x, grad_exponent = (g * B[:, :, None]).sum(3), g * decay * before
    return (
        grad_step_x * step + grad_y[..., 0] * D,
        grad_step_x * u + (grad_exponent * A).sum(3),
        (grad_exponent * steps_).sum(1),
        (g * steps_ * tokens_).sum(2),
        (grad_y * h).sum(2),
        (grad_y[..., 0] * u).sum(1),
        grad_z,
    )
