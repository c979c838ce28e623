"""The residual sum and its RMS norm, which begin every block, as one operator where the engine has one.

torch has no RMS norm of its own for the CPU: it runs a dozen elementwise operators, which cost a small model as much as
its optimizer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dis_cli.scan.engines.choose import choose_engine, engine_module, runs_eagerly


def add_rms_norm(
    hidden: Float[Tensor, "b l d"],
    residual: Float[Tensor, "b l d"] | None,
    weight: Float[Tensor, " d"],
    *,
    epsilon: float,
    engine: str = "auto",
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
    """``total = hidden + residual`` and ``total / sqrt(mean(total^2) + epsilon) * weight``.

    Args:
        hidden: Added to the stream.
        residual: The stream so far; None starts one.
        weight: Of the norm, per channel.
        epsilon: Added to the mean square.
        engine: What computes it (``dis_cli.scan.engines.choose``); torch's operators where the engine has no norm.

    Returns:
        The normed sum, and the sum, both in float32 (float64 for a float64 stream).
    """
    name = choose_engine(engine, hidden.device.type, weight.dtype).name
    if hasattr(engine_module(name), "norm_forward"):
        stream = None if residual is None else residual.float()
        if runs_eagerly():
            return _Eager.apply(hidden.float(), stream, weight.float(), epsilon, name)  # pyright: ignore[reportReturnType]
        normed, total, _ = torch.ops.dis.add_rms_norm(hidden.float(), stream, weight.float(), epsilon, name)
        return normed, total
    total = hidden if residual is None else residual + hidden
    return F.rms_norm(total, (total.shape[-1],), weight, epsilon), total


@torch.library.custom_op("dis::add_rms_norm", mutates_args=())
def _op(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, engine: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The normed sum, the sum, and 1 / rms of each row, for the backward."""
    return engine_module(engine).norm_forward(hidden, residual, weight, epsilon)


@_op.register_fake
def _(hidden, residual, weight, epsilon, engine):  # noqa: ARG001 # pyright: ignore
    return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape[:-1])


def _backward(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, scale: Tensor, weight: Tensor, engine: str
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden, which is also that of residual, and of weight."""
    return engine_module(engine).norm_backward(grad_normed, grad_total, total, scale, weight)


_backward_op = torch.library.custom_op("dis::add_rms_norm_backward", _backward, mutates_args=())


@_backward_op.register_fake
def _(grad_normed, grad_total, total, scale, weight, engine):  # noqa: ARG001 # pyright: ignore
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], total: Tensor, scale: Tensor) -> None:
    _, residual, weight, _, ctx.engine = inputs
    ctx.save_for_backward(total, scale, weight)
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_normed: Tensor | None, grad_total: Tensor | None, backward: Any) -> tuple[Any, ...]:
    if grad_normed is None:
        return grad_total, grad_total if ctx.has_residual else None, None, None, None
    grad, grad_weight = backward(grad_normed, grad_total, *ctx.saved_tensors, ctx.engine)
    return grad, grad if ctx.has_residual else None, grad_weight, None, None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output[1], output[2])


def _autograd(ctx: Any, grad_normed: Tensor | None, grad_total: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    return _gradients(ctx, grad_normed, grad_total, torch.ops.dis.add_rms_norm_backward)


_op.register_autograd(_autograd, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The operator without torch's dispatcher."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, engine: str
    ) -> tuple[Tensor, Tensor]:
        normed, total, scale = engine_module(engine).norm_forward(hidden, residual, weight, epsilon)
        _save(ctx, (hidden, residual, weight, epsilon, engine), total, scale)
        return normed, total

    @staticmethod
    @torch.autograd.function.once_differentiable  # its type hides the arguments' names
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gradients(ctx, grads[0], grads[1], _backward)
