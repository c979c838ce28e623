"""The engine of GPUs in Triton's language: nothing has to be built at installation. No Triton is imported here.

Sequences are read and written in their own dtype, float32 or bfloat16; everything computes in float32. Sums have one
order and block sizes never depend on the batch: a sample's outputs do not depend on the others, and the same numbers
give the same bits. With ``TRITON_INTERPRET=1`` in the environment Triton's interpreter computes on the CPU, slowly.
"""

from importlib import import_module
from typing import Any

from torch import Tensor

from dis_cli.scan.contract import ScanGradients, ScanInputs
from dis_cli.scan.engines.triton import requirements

# Tokens between two states that the forward keeps: at 16 states, 1 byte for each token and channel.
CHUNK = 64

# Found now: torch.compile cannot trace a look at the file system.
_missing = requirements.missing()


def why_not() -> str | None:
    """Why the engine cannot be used on this machine; None when it can."""
    return _missing or requirements.no_gpu()


def ends_shape(batch: int, length: int, channels: int, states: int) -> tuple[int, ...]:
    """Shape of the states between chunks that ``scan_forward`` keeps for ``scan_backward``."""
    return batch, max(0, -(-length // CHUNK) - 1), states, channels


def _launch() -> Any:
    return import_module("dis_cli.scan.engines.triton.launch")


def scan_forward(inputs: ScanInputs, *, add_to: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The scan: the result (b, l, d), and the states between chunks."""
    return _launch().scan_forward(inputs, add_to=add_to)


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
    """Gradients of all inputs."""
    return _launch().scan_backward(grad, ends, inputs, grad_B=grad_B, grad_C=grad_C, grad_z=grad_z, add_to_z=add_to_z)


def conv_silu_forward(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
    """The convolution with SiLU: x (b, l, d), weight (d, k), bias (d)."""
    return _launch().conv_silu_forward(x, weight, bias, reverse=reverse)


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
    """Gradients of ``x``, ``weight`` and ``bias``; that of ``x`` is written, or added, to ``grad_x`` where given."""
    return _launch().conv_silu_backward(grad, x, weight, bias, reverse=reverse, grad_x=grad_x, add_to_x=add_to_x)


def norm_forward(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """RMS norm of ``hidden + residual`` (b, l, d); that sum; and 1 / rms (b, l). All float32."""
    return _launch().norm_forward(hidden, residual, weight, epsilon)


def norm_backward(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``hidden`` (and ``residual``), and of ``weight``, from those of the norm and of the sum."""
    return _launch().norm_backward(grad_normed, grad_total, total, scale, weight)
