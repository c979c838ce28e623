"""The bidirectional Mamba mixer ("bimamba v2", arXiv 2401.09417) that DiS puts in every block.

Glossary: E = expand * embed_dim (inner width), N = d_state, K = d_conv, R = dt_rank. ``x`` is the branch that is
scanned, ``z`` the gate, ``u`` the scan's input after convolution and SiLU; parameters that end in ``_b`` belong to the
direction that runs from the last token to the first.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dis_cli.scan.torch_engine import conv_silu_backward, conv_silu_forward, scan_backward, scan_forward

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class Mixer(nn.Module):
    """``out_proj(forward scan + backward scan)`` of one shared ``in_proj``; both directions gate with the same z.

    Args:
        embed_dim: Width of a token.
        d_state: State size of the scan, per channel.
        d_conv: Taps of the causal convolution.
        expand: Inner width, as a multiple of ``embed_dim``.
        engine: What computes the scan and the convolution (``dis_cli.scan.engines``).
    """

    def __init__(
        self, embed_dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, engine: str = "auto"
    ) -> None:
        super().__init__()
        self.engine = engine
        inner = expand * embed_dim
        self.dt_rank = math.ceil(embed_dim / 16)
        self.d_state = d_state
        self.in_proj = nn.Linear(embed_dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.conv1d_b = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.x_proj_b = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.dt_proj_b = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.A_b_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.D_b = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, embed_dim, bias=False)

    def forward(self, tokens: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        xz = self.in_proj(tokens)
        y = self.scan(xz, reverse=False) + self.scan(xz, reverse=True)
        return self.out_proj(y)

    def scan(self, xz: Float[Tensor, "b l e2"], *, reverse: bool) -> Float[Tensor, "b l e"]:
        """One direction on ``[x, z]``, in the order of the tokens; ``reverse`` runs from the last to the first."""
        conv, x_proj, dt_proj = (
            (self.conv1d_b, self.x_proj_b, self.dt_proj_b) if reverse else (self.conv1d, self.x_proj, self.dt_proj)
        )
        result: Tensor = _Direction.apply(  # pyright: ignore[reportAssignmentType]
            xz,
            conv.weight,
            conv.bias,
            x_proj.weight,
            dt_proj.weight,
            dt_proj.bias,
            self.A_b_log if reverse else self.A_log,
            self.D_b if reverse else self.D,
            reverse,
        )
        return result

    def reset_parameters(self, *, init: str = "corrected") -> None:
        """Initialise as published; the backward direction's time step too, unless ``init`` is "published".

        Differs from the reference: there, a sweep that zeroes the biases of linear layers misses the mark that protects
        ``dt_proj.bias`` on ``dt_proj_b``, so the backward scan starts at delta = softplus(0) = 0.69 instead of
        log-uniform in [1e-3, 1e-1]. ``init="published"`` keeps that.
        """
        for linear in (self.in_proj, self.x_proj, self.x_proj_b, self.out_proj):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        for conv in (self.conv1d, self.conv1d_b):
            conv.reset_parameters()
        for dt_proj in (self.dt_proj, self.dt_proj_b):
            bound = self.dt_rank**-0.5
            nn.init.uniform_(dt_proj.weight, -bound, bound)
            uniform = torch.rand(dt_proj.out_features)
            dt = torch.exp(uniform * (math.log(DT_MAX) - math.log(DT_MIN)) + math.log(DT_MIN)).clamp(min=DT_FLOOR)
            with torch.no_grad():
                dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus(bias) = dt
        if init == "published":
            nn.init.zeros_(self.dt_proj_b.bias)
        with torch.no_grad():
            for A_log in (self.A_log, self.A_b_log):
                A_log.copy_(torch.arange(1, self.d_state + 1, dtype=torch.float32).log().expand_as(A_log))
        nn.init.ones_(self.D)
        nn.init.ones_(self.D_b)


class _Direction(torch.autograd.Function):
    """One direction between in_proj and out_proj: convolution, projections and scan, differentiated as one.

    Keeps only its input for the backward, and computes u, delta, B and C again there: at 18 tokens, width 96 that saves
    two thirds of a block's activations for 5 % of its time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        xz: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        x_proj: Tensor,
        dt_proj: Tensor,
        dt_bias: Tensor,
        A_log: Tensor,
        D: Tensor,
        reverse: bool,
    ) -> Tensor:
        x, z = xz.chunk(2, dim=-1)
        u, _, B, C, delta = _scan_inputs(x, conv_weight, conv_bias, x_proj, dt_proj, A_log.shape[1], reverse)
        y, ends = scan_forward(u, delta, -torch.exp(A_log), B, C, D, z, dt_bias, delta_softplus=True, reverse=reverse)
        ctx.save_for_backward(ends, xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D)
        ctx.reverse = reverse
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable  # its type hides the argument's name
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ends, xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D = ctx.saved_tensors
        reverse: bool = ctx.reverse
        x, z = xz.chunk(2, dim=-1)
        u, dt, B, C, delta = _scan_inputs(x, conv_weight, conv_bias, x_proj, dt_proj, A_log.shape[1], reverse)
        A = -torch.exp(A_log)
        scan = scan_backward(grads[0], ends, u, delta, A, B, C, D, z, dt_bias, delta_softplus=True, reverse=reverse)
        grad_dbl = torch.cat([scan.delta @ dt_proj, scan.B, scan.C], dim=-1)
        grad_x, grad_conv_weight, grad_conv_bias = conv_silu_backward(
            scan.u + grad_dbl @ x_proj, x, conv_weight[:, 0], conv_bias, reverse=reverse
        )
        return (
            torch.cat([grad_x, *([] if scan.z is None else [scan.z])], dim=-1),
            grad_conv_weight[:, None],
            grad_conv_bias,
            _weight_gradient(grad_dbl, u),
            _weight_gradient(scan.delta, dt),
            scan.delta_bias,
            scan.A * A,
            scan.D,
            None,
        )


def _scan_inputs(
    x: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, d_state: int, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the scan takes: u (b, l, e), dt (b, l, r), B and C (b, l, n), and delta (b, l, e) before its bias."""
    u = conv_silu_forward(x, conv_weight[:, 0], conv_bias, reverse=reverse)
    dt, B, C = (u @ x_proj.t()).split([dt_proj.shape[1], d_state, d_state], dim=-1)
    return u, dt, B, C, dt @ dt_proj.t()


def _weight_gradient(grad_output: Tensor, layer_input: Tensor) -> Tensor:
    """Gradient of a linear layer's weight (out, in), summed over batch and tokens."""
    return grad_output.flatten(0, 1).t() @ layer_input.flatten(0, 1)
