"""The inputs and outputs of every engine, so that engines can stand in for each other."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class ScanInputs(NamedTuple):
    """What a scan reads.

    Args:
        u: Input (b, l, d).
        delta: Time step (b, l, d), before bias and softplus.
        A: State matrix (d, n), negative; its logarithm log(-A) where ``A_is_log``.
        B: Input projection (b, l, n).
        C: Output projection (b, l, n).
        D: Skip weight (d), or None.
        z: Gate (b, l, d) before its SiLU, or None.
        delta_bias: Bias of the time step (d), or None.
        delta_softplus: Whether the time step goes through softplus after its bias.
        reverse: Scan from the last token to the first.
        A_is_log: Whether ``A`` holds log(-A); its gradient is then that of the logarithm.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    reverse: bool
    A_is_log: bool = False


class ScanGradients(NamedTuple):
    """Gradients of the scan's tensors, in the order of its arguments; None where the input was None."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None


class Direction(NamedTuple):
    """The parameters of one direction. E = inner width, N = states, K = taps, R = rank of the time step.

    Args:
        conv_weight: Taps (E, K).
        conv_bias: (E).
        x_proj: (R + 2 N, E): u to the time step's factor, B and C.
        dt_proj: (E, R).
        dt_bias: (E).
        A_log: log(-A) (E, N).
        D: Skip (E).
    """

    conv_weight: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """What the scan computes in: float64 for float64, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class EngineModule(Protocol):
    """The functions of an engine, which its module has.

    Two kinds of engines compute the scan and the convolution. Either with forwards and backwards, which torch's
    autograd knows nothing of (``scan_forward`` and what follows): a mixer then is one operator. Or with functions that
    autograd differentiates (``selective_scan``, ``causal_conv_silu``). A module has one group or the other; the norm
    and the whole mixer are optional, and computed by torch's operators, or from scans and convolutions, where absent.
    """

    def why_not(self) -> str | None:
        """Why the engine cannot be used on this machine; None when it can."""
        ...

    def selective_scan(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        reverse: bool,
    ) -> Tensor:
        """``dis_cli.scan.selective_scan``: tensors of any dtype, the result in that of ``u``."""
        ...

    def causal_conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        """``dis_cli.scan.causal_conv_silu``: tensors of any dtype, the result in that of ``x``."""
        ...

    def ends_shape(self, batch: int, length: int, channels: int, states: int) -> tuple[int, ...]:
        """Shape of the states that ``scan_forward`` keeps for ``scan_backward``."""
        ...

    def scan_forward(self, inputs: ScanInputs, *, add_to: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The result (b, l, d) and the states kept.

        Args:
            inputs: Sequences in the compute dtype, or in bfloat16 where the engine's row in the table says so.
            add_to: Added to the result before the gate, and overwritten with the result if it is of its dtype.

        Returns:
            The result in the dtype of ``u``, but in the compute dtype without a gate: it may be added to.
        """
        ...

    def scan_backward(
        self,
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

        Args:
            grad: Gradient of the result (b, l, d).
            ends: From ``scan_forward``.
            inputs: Those of ``scan_forward``.
            grad_B: Where to write that gradient; None makes a tensor. Channels contiguous.
            grad_C: Likewise.
            grad_z: Likewise.
            add_to_z: Whether to add to ``grad_z`` instead.
        """
        ...

    def conv_silu_forward(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        """The convolution with SiLU: x (b, l, d), weight (d, k), bias (d)."""
        ...

    def conv_silu_backward(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        reverse: bool,
        grad_x: Tensor | None = None,
        add_to_x: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ``x``, ``weight`` and ``bias``; that of ``x`` is written, or added, to ``grad_x``."""
        ...

    def norm_forward(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """RMS norm of ``hidden + residual`` (b, l, d); that sum; and 1 / rms (b, l). All float32."""
        ...

    def norm_backward(
        self, grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, scale: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of ``hidden`` (and ``residual``), and of ``weight``, from those of the norm and of the sum."""
        ...

    def runs_whole_mixer(self, xz: Tensor) -> bool:
        """Whether ``mixer_forward`` takes this input (b, l, 2 e), and is faster than one operation at a time."""
        ...

    def mixer_forward(self, xz: Tensor, *directions: Direction) -> tuple[Tensor, ...]:
        """The result (b, l, e); and, of each direction, [dt, B, C] (b, l, r + 2 n) and the states kept.

        Args:
            xz: What is scanned and the gate, side by side (b, l, 2 e).
            directions: In the order of the tokens, and, if there are two, from the last to the first.
        """
        ...

    def mixer_backward(
        self, grad: Tensor, kept: Sequence[Tensor], xz: Tensor, *directions: Direction
    ) -> tuple[Tensor, ...]:
        """Gradients of xz and of the parameters of the directions, from what ``mixer_forward`` kept."""
        ...
