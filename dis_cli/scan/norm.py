"""The residual sum and its RMS norm, which begin every block, as one operator on the CPU.

torch has no RMS norm of its own for the CPU: it runs a dozen elementwise operators, which cost a small model as much as
its optimizer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dis_cli.scan import kernel
from dis_cli.scan.engines import choose_engine


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
        engine: "kernel", or "auto" where that is chosen, runs the compiled kernel; all others run torch's operators.

    Returns:
        The normed sum, and the sum, both in float32 (float64 for a float64 stream).
    """
    if choose_engine(engine, hidden.device.type, weight.dtype).name == "kernel":
        stream = None if residual is None else residual.float()
        normed, total, _ = torch.ops.dis.add_rms_norm(hidden.float(), stream, weight.float(), epsilon)
        return normed, total
    total = hidden if residual is None else residual + hidden
    return F.rms_norm(total, (total.shape[-1],), weight, epsilon), total


@torch.library.custom_op("dis::add_rms_norm", mutates_args=(), device_types="cpu")
def _op(hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """The normed sum, the sum, and 1 / rms of each row, for the backward."""
    return kernel.norm_forward(hidden, residual, weight, epsilon)


@_op.register_fake
def _(hidden, residual, weight, epsilon):  # noqa: ARG001 # pyright: ignore
    return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape[:-1])


@torch.library.custom_op("dis::add_rms_norm_backward", mutates_args=(), device_types="cpu")
def _backward_op(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden, which is also that of residual, and of weight."""
    return kernel.norm_backward(grad_normed, grad_total, total, scale, weight)


@_backward_op.register_fake
def _(grad_normed, grad_total, total, scale, weight):  # noqa: ARG001 # pyright: ignore
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, residual, weight, _ = inputs
    _, total, scale = output
    ctx.save_for_backward(total, scale, weight)
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_normed: Tensor | None, grad_total: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    total, scale, weight = ctx.saved_tensors
    if grad_normed is None:
        return grad_total, grad_total if ctx.has_residual else None, None, None
    grad, grad_weight = torch.ops.dis.add_rms_norm_backward(grad_normed, grad_total, total, scale, weight)
    return grad, grad if ctx.has_residual else None, grad_weight, None


_op.register_autograd(_autograd, setup_context=_setup)
