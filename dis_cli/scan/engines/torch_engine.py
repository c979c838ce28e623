"""The selective scan and the convolution in plain torch: in place, chunk by chunk, with hand-written backwards.

States are laid out as (batch, time, N, D): the innermost axis is the long one, so that every operation runs over
contiguous vectors, and the sums over N or D are matrix products. A chunk's three state arrays are meant to stay in the
cache; only the state at the end of each time chunk outlives it. The backward recomputes the states of one chunk at a
time from there, so memory beyond inputs and outputs is a few chunks plus ``b n d l / chunk_length``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dis_cli.scan.contract import ScanGradients, ScanInputs

# Elements of one state array of a chunk: 4 MiB in float32. Measured on two cores, forward and backward: at batch 32, 18
# tokens and width 192, an eighth of it is 1.5x slower (call overhead); at 257 tokens and width 768, a quarter is
# 1.15x faster.
CHUNK_ELEMENTS = 1 << 20
MIN_CHUNK_LENGTH = 16


def why_not() -> None:
    """It computes everywhere."""


@dataclass(frozen=True)
class _Chunk:
    """A rectangle of (batch, time); ``order`` walks its times, relative to its start, in scan direction."""

    batch: slice
    time: slice
    order: list[int]
    number: int


def _chunks(batch: int, length: int, state_size: int, *, reverse: bool) -> Iterator[_Chunk]:
    """All chunks of a scan, in the order in which its states can be computed."""
    chunk_length = max(1, min(length, max(MIN_CHUNK_LENGTH, CHUNK_ELEMENTS // max(1, state_size))))
    largest_batch = max(1, CHUNK_ELEMENTS // max(1, state_size * chunk_length))
    # As many chunks as that needs, equally large: a small last one costs as many calls as the others.
    chunk_batch = -(-batch // -(-batch // largest_batch)) if batch else 1
    starts = list(range(0, length, chunk_length))
    for batch_start in range(0, batch, chunk_batch):
        for number, start in enumerate(reversed(starts) if reverse else starts):
            stop = min(start + chunk_length, length)
            order = list(range(stop - start))
            yield _Chunk(
                slice(batch_start, min(batch_start + chunk_batch, batch)),
                slice(start, stop),
                order[::-1] if reverse else order,
                number,
            )


def _biased(delta: Tensor, delta_bias: Tensor | None) -> Tensor:
    return delta if delta_bias is None else delta + delta_bias


def _time_step(delta: Tensor, delta_bias: Tensor | None, *, delta_softplus: bool) -> Tensor:
    biased = _biased(delta, delta_bias)
    return F.softplus(biased) if delta_softplus else biased


def _states(
    step: Tensor, step_u: Tensor, A_t: Tensor, B: Tensor, carry: Tensor | None, order: list[int]
) -> tuple[Tensor, Tensor]:
    """Decay ``exp(step A)`` and states of one chunk, both (b, l, n, d); ``carry`` is the state before it."""
    decay = (step[:, :, None, :] * A_t).exp_()
    h = step_u[:, :, None, :] * B[:, :, :, None]
    previous = carry
    for t in order:
        current = h[:, t]
        if previous is not None:
            current.addcmul_(decay[:, t], previous)
        previous = current
    return decay, h


def ends_shape(batch: int, length: int, channels: int, states: int) -> tuple[int, ...]:
    """Shape of the states between time chunks that ``scan_forward`` keeps for ``scan_backward``."""
    numbers = (chunk.number for chunk in _chunks(batch, length, states * channels, reverse=False))
    # The state after the last chunk is nobody's start.
    return max(numbers, default=0), batch, states, channels


def scan_forward(inputs: ScanInputs, *, add_to: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The scan, in the dtype of its inputs.

    Args:
        inputs: All of one dtype, on one device.
        add_to: Added to the result before the gate, and overwritten with the result.

    Returns:
        The result (b, l, d), and the states between the time chunks for ``scan_backward``.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, A_is_log = inputs
    batch, length, channels = u.shape
    state_dim = A.shape[1]
    A_t = _transposed(A, A_is_log=A_is_log)
    out = torch.empty_like(u, memory_format=torch.contiguous_format) if add_to is None else add_to
    ends = u.new_empty(ends_shape(batch, length, channels, state_dim))
    for chunk in _chunks(batch, length, state_dim * channels, reverse=reverse):
        here = (chunk.batch, chunk.time)
        step = _time_step(delta[here], delta_bias, delta_softplus=delta_softplus)
        carry = ends[chunk.number - 1, chunk.batch] if chunk.number else None
        _, h = _states(step, step * u[here], A_t, B[here], carry, chunk.order)
        if chunk.number < len(ends):
            ends[chunk.number, chunk.batch] = h[:, chunk.order[-1]]
        y = _contract_states(C[here], h)
        if D is not None:
            y.addcmul_(u[here], D)
        if add_to is not None:
            y += add_to[here]
        if z is not None:
            y.mul_(F.silu(z[here]))
        out[here] = y
    return out, ends


def scan_backward(
    grad: Tensor,
    ends: Tensor,
    inputs: ScanInputs,
    *,
    grad_B: Tensor | None = None,
    grad_C: Tensor | None = None,
    grad_z: Tensor | None = None,
    add_to_z: bool = False,
) -> ScanGradients:
    """Gradients of all inputs.

    The adjoint of the recurrence is a scan in the other direction: ``g_t = C_t grad_t + exp(delta_{t+1} A) g_{t+1}``.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, A_is_log = inputs
    batch, length, _ = u.shape
    A_t = _transposed(A, A_is_log=A_is_log)
    grad_u = torch.empty_like(u, memory_format=torch.contiguous_format)
    grad_delta = torch.empty_like(grad_u)
    if z is not None and grad_z is None:
        grad_z = torch.empty_like(grad_u)
    grad_B = torch.empty_like(B, memory_format=torch.contiguous_format) if grad_B is None else grad_B
    grad_C = torch.empty_like(C, memory_format=torch.contiguous_format) if grad_C is None else grad_C
    grad_A_t = torch.zeros_like(A_t)
    grad_D = None if D is None else torch.zeros_like(D)
    carried: Tensor | None = None  # exp(delta A) g of the token that follows this chunk in scan order
    # Batch slices are independent; the time chunks of each are walked from the last to the first.
    for chunk in reversed(list(_chunks(batch, length, A.numel(), reverse=reverse))):
        here = (chunk.batch, chunk.time)
        first, last = chunk.order[0], chunk.order[-1]
        u_here, B_here, C_here, grad_y = u[here], B[here], C[here], grad[here]
        step = _time_step(delta[here], delta_bias, delta_softplus=delta_softplus)
        step_u = step * u_here
        before = ends[chunk.number - 1, chunk.batch] if chunk.number else None
        decay, h = _states(step, step_u, A_t, B_here, before, chunk.order)

        if z is not None and grad_z is not None:
            gate = z[here]
            y = _contract_states(C_here, h)
            if D is not None:
                y.addcmul_(u_here, D)
            grad_gate = torch.ops.aten.silu_backward(grad_y * y, gate)
            grad_z[here] = grad_z[here] + grad_gate if add_to_z else grad_gate
            grad_y = grad_y * F.silu(gate)
        grad_y = grad_y.contiguous()

        # g holds d loss / d h, the adjoint state.
        g = C_here[:, :, :, None] * grad_y[:, :, None, :]
        if chunk.number < len(ends) and carried is not None:
            g[:, last] += carried
        for following, t in zip(chunk.order[:0:-1], chunk.order[-2::-1], strict=True):
            g[:, t].addcmul_(decay[:, following], g[:, following])
        carried = decay[:, first] * g[:, first] if chunk.number else None

        grad_C[here] = _contract_channels(h, grad_y)
        grad_B[here] = _contract_channels(g, step_u)
        grad_step_u = _contract_states(B_here, g)

        # d loss / d (step A) = g * exp(step A) * h_before, collected in `decay`.
        decay.mul_(g)
        later, earlier = _lagged(1, reverse=reverse)
        decay[:, later].mul_(h[:, earlier])
        decay[:, first] = 0.0 if before is None else decay[:, first] * before
        torch.mul(decay, step[:, :, None, :], out=h)
        grad_A_t += h.sum((0, 1))
        grad_step = decay.mul_(A_t).sum(2).addcmul_(grad_step_u, u_here)

        grad_here = grad_step_u.mul_(step)
        if D is not None and grad_D is not None:
            grad_here.addcmul_(grad_y, D)
            grad_D += (grad_y * u_here).sum((0, 1))
        grad_u[here] = grad_here
        if delta_softplus:
            grad_step = torch.ops.aten.softplus_backward(grad_step, _biased(delta[here], delta_bias), 1.0, 20.0)
        grad_delta[here] = grad_step
    grad_bias = None if delta_bias is None else grad_delta.sum((0, 1))
    grad_A = (grad_A_t * A_t if A_is_log else grad_A_t).t().contiguous()
    return ScanGradients(grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias)


def _transposed(A: Tensor, *, A_is_log: bool) -> Tensor:
    return (-torch.exp(A) if A_is_log else A).t().contiguous()


def _contract_states(weights: Tensor, states: Tensor) -> Tensor:
    """Sum over N: weights (b, l, n), states (b, l, n, d) -> (b, l, d)."""
    b, t, n, d = states.shape
    # The scan keeps its precision where autocast lowers that of matrix products.
    with torch.autocast(states.device.type, enabled=False):
        return torch.bmm(weights.reshape(b * t, 1, n), states.reshape(b * t, n, d)).view(b, t, d)


def _contract_channels(states: Tensor, values: Tensor) -> Tensor:
    """Sum over D: states (b, l, n, d), values (b, l, d) -> (b, l, n)."""
    b, t, n, d = states.shape
    return torch.bmm(states.reshape(b * t, n, d), values.reshape(b * t, d, 1)).view(b, t, n)


def conv_silu_forward(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
    """``causal_conv_silu`` without autograd."""
    return F.silu(_conv(x, weight, bias, reverse=reverse))


def conv_silu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    reverse: bool,
    grad_x: Tensor | None = None,
    add_to_x: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``weight`` and ``bias`` from ``grad`` (b, l, d); the activation is computed again.

    That of ``x`` is written, or added, to ``grad_x`` where given.
    """
    grad = torch.ops.aten.silu_backward(grad, _conv(x, weight, bias, reverse=reverse))
    taps = weight.shape[1]
    if grad_x is None:
        grad_x = grad * weight[:, -1]
    elif add_to_x:
        grad_x.addcmul_(grad, weight[:, -1])
    else:
        torch.mul(grad, weight[:, -1], out=grad_x)
    grad_weight = torch.empty_like(weight)
    grad_weight[:, -1] = (grad * x).sum((0, 1))
    for lag in range(1, taps):
        tap = taps - 1 - lag
        later, earlier = _lagged(lag, reverse=reverse)
        grad_x[:, earlier].addcmul_(grad[:, later], weight[:, tap])
        grad_weight[:, tap] = (grad[:, later] * x[:, earlier]).sum((0, 1))
    return grad_x, grad_weight, grad.sum((0, 1))


def _conv(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
    taps = weight.shape[1]
    result = torch.addcmul(bias, x, weight[:, -1])
    for lag in range(1, taps):
        later, earlier = _lagged(lag, reverse=reverse)
        result[:, later].addcmul_(x[:, earlier], weight[:, taps - 1 - lag])
    return result


def _lagged(lag: int, *, reverse: bool) -> tuple[slice, slice]:
    """Where a token and the one ``lag`` before it (in scan direction) stand: two equally long slices of time."""
    later, earlier = slice(lag, None), slice(None, -lag)
    return (earlier, later) if reverse else (later, earlier)
