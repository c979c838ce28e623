"""The two recurrent operations of a DiS block as differentiable functions, with their contracts checked.

Each is a custom operator of torch, so that ``torch.compile`` takes a model as one graph and torch's FLOP counter counts
the scan. The operator's implementation is the engine's; its backward is an operator as well.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dis_cli.scan.contract import ScanInputs, compute_dtype
from dis_cli.scan.engines.choose import choose_engine, engine_module


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

    Raises:
        ValueError: A tensor's shape does not fit the others, or the engine cannot be used.
    """
    _check_scan_shapes(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias)
    name = choose_engine(engine, u.device.type, u.dtype).name
    flags = {"delta_softplus": delta_softplus, "reverse": reverse}
    module = engine_module(name)
    if not hasattr(module, "scan_forward"):
        return module.selective_scan(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, **flags)
    compute = compute_dtype(u)
    tensors = [None if tensor is None else tensor.to(compute) for tensor in (u, delta, A, B, C, D, z, delta_bias)]
    result, _ = torch.ops.dis.selective_scan(*tensors, delta_softplus, reverse, name)
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

    Computes in float32, or in float64 when ``x`` is float64, and returns the dtype of ``x``.

    Args:
        x: Input.
        weight: Taps per channel; the last one meets the token itself.
        bias: Per channel.
        reverse: Look at the tokens that come after instead, as if the sequence were flipped.

    Raises:
        ValueError: A tensor's shape does not fit the others, or the engine cannot be used.
    """
    if x.ndim != 3:
        raise ValueError(f"x must be (batch, length, channels), got shape {tuple(x.shape)}")
    if weight.ndim != 2 or weight.shape[0] != x.shape[2] or weight.shape[1] == 0:
        raise ValueError(f"weight must be ({x.shape[2]}, taps), got shape {tuple(weight.shape)}")
    _check_shape("bias", bias, (x.shape[2],))
    name = choose_engine(engine, x.device.type, x.dtype).name
    module = engine_module(name)
    if not hasattr(module, "conv_silu_forward"):
        return module.causal_conv_silu(x, weight, bias, reverse=reverse)
    compute = compute_dtype(x)
    tensors = [tensor.to(compute) for tensor in (x, weight, bias)]
    return torch.ops.dis.causal_conv_silu(*tensors, reverse, name).to(x.dtype)


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


# The operators. What torch calls besides (fakes, setups, FLOP formulas) is handed every argument of its operator, used
# or not, and untyped: hence the suppressions, here and in the other files of operators. The scan's backward returns a
# list, since an absent tensor has no gradient.


@torch.library.custom_op("dis::selective_scan", mutates_args=())
def _scan_op(
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
    engine: str,
) -> tuple[Tensor, Tensor]:
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    return engine_module(engine).scan_forward(inputs)


@_scan_op.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, engine):  # noqa: ARG001 # pyright: ignore
    return u.new_empty(u.shape), u.new_empty(engine_module(engine).ends_shape(*u.shape, A.shape[1]))


@torch.library.custom_op("dis::selective_scan_backward", mutates_args=())
def _scan_backward_op(
    grad: Tensor,
    ends: Tensor,
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
    engine: str,
) -> list[Tensor]:
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    gradients = engine_module(engine).scan_backward(grad, ends, inputs)
    return [gradient for gradient in gradients if gradient is not None]


@_scan_backward_op.register_fake
def _(grad, ends, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, engine):  # noqa: ARG001 # pyright: ignore
    return [tensor.new_empty(tensor.shape) for tensor in (u, delta, A, B, C, D, z, delta_bias) if tensor is not None]


def _scan_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:8])
    ctx.flags = inputs[8:]


def _scan_autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    ends, *tensors = ctx.saved_tensors
    gradients = iter(torch.ops.dis.selective_scan_backward(grad, ends, *tensors, *ctx.flags))
    return (*(None if tensor is None else next(gradients) for tensor in tensors), None, None, None)


_scan_op.register_autograd(_scan_autograd, setup_context=_scan_setup)


@torch.library.custom_op("dis::causal_conv_silu", mutates_args=())
def _conv_op(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, engine: str) -> Tensor:
    return engine_module(engine).conv_silu_forward(x, weight, bias, reverse=reverse)


@_conv_op.register_fake
def _(x, weight, bias, reverse, engine):  # noqa: ARG001 # pyright: ignore
    return x.new_empty(x.shape)


@torch.library.custom_op("dis::causal_conv_silu_backward", mutates_args=())
def _conv_backward_op(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, engine: str
) -> tuple[Tensor, Tensor, Tensor]:
    return engine_module(engine).conv_silu_backward(grad, x, weight, bias, reverse=reverse)


@_conv_backward_op.register_fake
def _(grad, x, weight, bias, reverse, engine):  # noqa: ARG001 # pyright: ignore
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:3])
    ctx.flags = inputs[3:]


def _conv_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.dis.causal_conv_silu_backward(grad, *ctx.saved_tensors, *ctx.flags)
    return (*gradients, None, None)


_conv_op.register_autograd(_conv_autograd, setup_context=_conv_setup)


# FLOPs are 2 per multiply-accumulate, as torch's own formulas count: of the scan the state update, the read-out with C
# and D u (dis_cli/models/flops.py), twice that for its backward.


def scan_flops(batch: int, length: int, channels: int, states: int) -> int:
    """FLOPs of one scan."""
    return 2 * batch * length * channels * (2 * states + 1)


def conv_flops(batch: int, length: int, channels: int, taps: int) -> int:
    """FLOPs of one convolution."""
    return 2 * batch * length * channels * taps


def _scan_flops(u_shape: Sequence[int], A_shape: Sequence[int]) -> int:
    batch, length, channels = u_shape
    return scan_flops(batch, length, channels, A_shape[1])


def _conv_flops(x_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    batch, length, channels = x_shape
    return conv_flops(batch, length, channels, weight_shape[1])


@register_flop_formula(torch.ops.dis.selective_scan)
def _(u_shape, delta_shape, A_shape, *_, **__) -> int:  # noqa: ARG001 # pyright: ignore
    return _scan_flops(u_shape, A_shape)


@register_flop_formula(torch.ops.dis.selective_scan_backward)
def _(grad_shape, ends_shape, u_shape, delta_shape, A_shape, *_, **__) -> int:  # noqa: ARG001 # pyright: ignore
    return 2 * _scan_flops(u_shape, A_shape)


@register_flop_formula(torch.ops.dis.causal_conv_silu)
def _(x_shape, weight_shape, *_, **__) -> int:  # pyright: ignore
    return _conv_flops(x_shape, weight_shape)


@register_flop_formula(torch.ops.dis.causal_conv_silu_backward)
def _(grad_shape, x_shape, weight_shape, *_, **__) -> int:  # noqa: ARG001 # pyright: ignore
    return 2 * _conv_flops(x_shape, weight_shape)
