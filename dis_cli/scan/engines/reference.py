"""The recurrences written as their equations: slow, differentiable by autograd, and the ground truth of all tests.

Symbols (Mamba, arXiv 2312.00752): ``u`` input, ``delta`` time step, ``A`` state matrix (diagonal), ``B`` input and
``C`` output projection, ``D`` skip, ``z`` gate, ``h`` state.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dis_cli.scan.contract import compute_dtype


def selective_scan_reference(
    u: Float[Tensor, "b l d"],
    delta: Float[Tensor, "b l d"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    *,
    D: Float[Tensor, " d"] | None = None,
    z: Float[Tensor, "b l d"] | None = None,
    delta_bias: Float[Tensor, " d"] | None = None,
    delta_softplus: bool = True,
    reverse: bool = False,
) -> Float[Tensor, "b l d"]:
    """The selective scan, one token after the other (arXiv 2312.00752, algorithm 2).

    ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t`` and ``y_t = (C_t h_t + D u_t) SiLU(z_t)`` with ``h_0 = 0``. B is
    discretised by Euler's rule (``delta B``), not by a zero-order hold, as in the published code.

    Args:
        u: Input.
        delta: Time step before bias and softplus.
        A: Diagonal state matrix, negative.
        B: Input projection, per token.
        C: Output projection, per token.
        D: Skip weight; None adds no skip.
        z: Gate before its SiLU; None does not gate.
        delta_bias: Added to ``delta`` before softplus; None adds nothing.
        delta_softplus: Whether ``delta`` goes through softplus.
        reverse: Scan from the last token to the first.
    """
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    length = u.shape[1]
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])  # (b, d, n)
    outputs: list[Tensor] = [u[:, 0]] * length
    for t in reversed(range(length)) if reverse else range(length):
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[:, t, None, :] * u[:, t, :, None]
        outputs[t] = (h * C[:, t, None, :]).sum(-1)
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + u * D
    return y if z is None else y * F.silu(z)


def causal_conv_silu_reference(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"],
    *,
    reverse: bool = False,
) -> Float[Tensor, "b l d"]:
    """Depthwise convolution over the tokens that came before, then SiLU.

    Args:
        x: Input.
        weight: Taps per channel; the last one meets the token itself.
        bias: Per channel.
        reverse: Look at the tokens that come after instead, as if the sequence were flipped.
    """
    channels, taps = weight.shape
    sequence = x.transpose(1, 2)
    sequence = sequence.flip(-1) if reverse else sequence
    result = F.silu(F.conv1d(F.pad(sequence, (taps - 1, 0)), weight[:, None], bias, groups=channels))
    return (result.flip(-1) if reverse else result).transpose(1, 2)


# The engine: the same for tensors of any dtype.


def why_not() -> None:
    """It computes everywhere."""


def selective_scan(u: Tensor, *sequences: Tensor, **options: Any) -> Tensor:
    """``dis_cli.scan.selective_scan`` by the recurrence."""
    dtype = compute_dtype(u)
    options = {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in options.items()}
    return selective_scan_reference(u.to(dtype), *(tensor.to(dtype) for tensor in sequences), **options).to(u.dtype)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
    """``dis_cli.scan.causal_conv_silu`` by torch's convolution."""
    tensors = [tensor.to(compute_dtype(x)) for tensor in (x, weight, bias)]
    return causal_conv_silu_reference(*tensors, reverse=reverse).to(x.dtype)
