"""The order in which a scan meets the patches."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def turn(tokens: Float[Tensor, "b l d"], extras: int) -> Float[Tensor, "b l d"]:
    """Row by row becomes column by column, and the other way round; the first ``extras`` tokens stay where they are.

    Args:
        tokens: Extra tokens, and the patches of a square grid.
    """
    return _Turn.apply(tokens, extras)  # pyright: ignore[reportReturnType]


class _Turn(torch.autograd.Function):
    """One copy, and its own gradient: autograd would make four of it. A backward needs nothing of the forward."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, extras: int) -> Tensor:
        ctx.extras = extras
        return _turned(tokens, extras)

    @staticmethod
    @torch.autograd.function.once_differentiable  # its type hides the argument's name
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _turned(grads[0], ctx.extras), None


def _turned(tokens: Tensor, extras: int) -> Tensor:
    side = math.isqrt(tokens.shape[1] - extras)
    result = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    result[:, :extras] = tokens[:, :extras]
    result[:, extras:].unflatten(1, (side, side)).copy_(tokens[:, extras:].unflatten(1, (side, side)).transpose(1, 2))
    return result
