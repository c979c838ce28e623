"""What the engines take and give, so that they can stand in for each other."""

from typing import NamedTuple

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
