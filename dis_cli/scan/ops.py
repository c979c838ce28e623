"""The two recurrent operations of a DiS block as differentiable functions, with their contracts checked."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dis_cli.scan import torch_engine
from dis_cli.scan.engines import choose_engine
from dis_cli.scan.reference import causal_conv_silu_reference, selective_scan_reference


def selective_scan(
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
    engine: str = "auto",
) -> Float[Tensor, "b l d"]:
    """The selective scan of Mamba (arXiv 2312.00752, algorithm 2), differentiable in every tensor.

    ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t`` and ``y_t = (C_t h_t + D u_t) SiLU(z_t)`` with ``h_0 = 0``. It
    computes in float32, or in float64 when ``u`` is float64, and returns the dtype of ``u``. Rows may have any stride.

    Args:
        u: Input.
        delta: Time step before bias and softplus.
        A: Diagonal state matrix, negative.
        B: Input projection, per token.
        C: Output projection, per token.
        D: Skip weight; None adds no skip.
        z: Gate before its SiLU; None does not gate.
        delta_bias: Added to ``delta`` before softplus; None adds nothing.
        delta_softplus: Whether ``delta`` goes through softplus (linear beyond 20).
        reverse: Scan from the last token to the first.
        engine: What computes it (``dis_cli.scan.engines``).

    Raises:
        ValueError: A tensor's shape does not fit the others, or the engine cannot be used.
    """
    _check_scan_shapes(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias)
    if choose_engine(engine, u.device.type, u.dtype).name == "reference":
        return selective_scan_reference(
            u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus, reverse=reverse
        )
    compute = torch.float64 if u.dtype == torch.float64 else torch.float32
    tensors = [None if tensor is None else tensor.to(compute) for tensor in (u, delta, A, B, C, D, z, delta_bias)]
    result: Tensor = _SelectiveScan.apply(*tensors, delta_softplus, reverse)  # pyright: ignore[reportAssignmentType]
    return result.to(u.dtype)


def causal_conv_silu(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"],
    *,
    reverse: bool = False,
    engine: str = "auto",
) -> Float[Tensor, "b l d"]:
    """Depthwise convolution over a token and those before it, then SiLU; differentiable in every tensor.

    Args:
        x: Input.
        weight: Taps per channel; the last one meets the token itself.
        bias: Per channel.
        reverse: Look at the tokens that come after instead, as if the sequence were flipped.
        engine: What computes it (``dis_cli.scan.engines``).

    Raises:
        ValueError: A tensor's shape does not fit the others, or the engine cannot be used.
    """
    if x.ndim != 3:
        raise ValueError(f"x must be (batch, length, channels), got shape {tuple(x.shape)}")
    if weight.ndim != 2 or weight.shape[0] != x.shape[2]:
        raise ValueError(f"weight must be ({x.shape[2]}, taps), got shape {tuple(weight.shape)}")
    _check_shape("bias", bias, (x.shape[2],))
    if choose_engine(engine, x.device.type, x.dtype).name == "reference":
        return causal_conv_silu_reference(x, weight, bias, reverse=reverse)
    result: Tensor = _CausalConvSiLU.apply(x, weight, bias, reverse)  # pyright: ignore[reportAssignmentType]
    return result


def _check_scan_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise ValueError, naming the argument, the shape got and the one wanted, where shapes do not fit."""
    if u.ndim != 3:
        raise ValueError(f"u must be (batch, length, channels), got shape {tuple(u.shape)}")
    batch, length, channels = u.shape
    if A.ndim != 2:
        raise ValueError(f"A must be ({channels}, states), got shape {tuple(A.shape)}")
    state_dim = A.shape[1]
    _check_shape("A", A, (channels, state_dim))
    _check_shape("delta", delta, (batch, length, channels))
    _check_shape("B", B, (batch, length, state_dim))
    _check_shape("C", C, (batch, length, state_dim))
    _check_shape("D", D, (channels,))
    _check_shape("z", z, (batch, length, channels))
    _check_shape("delta_bias", delta_bias, (channels,))


def _check_shape(name: str, tensor: Tensor | None, wanted: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != wanted:
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        reverse: bool,
    ) -> Tensor:
        out, ends = torch_engine.scan_forward(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus, reverse=reverse
        )
        ctx.save_for_backward(ends, u, delta, A, B, C, D, z, delta_bias)
        ctx.flags = {"delta_softplus": delta_softplus, "reverse": reverse}
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable  # its type hides the argument's name
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (*torch_engine.scan_backward(grads[0], *ctx.saved_tensors, **ctx.flags), None, None)


class _CausalConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.reverse = reverse
        return torch_engine.conv_silu_forward(x, weight, bias, reverse=reverse)

    @staticmethod
    @torch.autograd.function.once_differentiable  # its type hides the argument's name
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (*torch_engine.conv_silu_backward(grads[0], *ctx.saved_tensors, reverse=ctx.reverse), None)
