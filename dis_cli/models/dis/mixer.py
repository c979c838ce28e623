"""The bidirectional Mamba mixer ("bimamba v2", arXiv 2401.09417) that DiS puts in every block.

Glossary: E = expand * embed_dim (inner width), N = d_state, K = d_conv, R = dt_rank. ``x`` is the branch that is
scanned, ``z`` the gate, ``u`` the scan's input after convolution and SiLU; parameters that end in ``_b`` belong to the
direction that runs from the last token to the first.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dis_cli.scan import Direction, bidirectional_scan, causal_conv_silu, choose_engine, selective_scan
from dis_cli.scan.engines.choose import engine_module

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4

T = TypeVar("T")


class Mixer(nn.Module):
    """``out_proj(forward scan + backward scan)`` of one shared ``in_proj``; both directions gate with the same z.

    Args:
        d_state: State size of the scan, per channel.
        d_conv: Taps of the causal convolution.
        expand: Inner width, as a multiple of ``embed_dim``.
        engine: What computes the scan and the convolution (``dis_cli.scan.engines.choose``).
        both: Whether there is a backward scan; its parameters are absent otherwise.
    """

    def __init__(
        self,
        embed_dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        engine: str = "auto",
        *,
        both: bool = True,
    ) -> None:
        super().__init__()
        self.engine = engine
        inner = expand * embed_dim
        self.dt_rank = math.ceil(embed_dim / 16)
        self.d_state = d_state
        self.in_proj = nn.Linear(embed_dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.conv1d_b = nn.Conv1d(inner, inner, d_conv, groups=inner) if both else None
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.x_proj_b = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False) if both else None
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.dt_proj_b = nn.Linear(self.dt_rank, inner) if both else None
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.A_b_log = nn.Parameter(torch.empty(inner, d_state)) if both else None
        self.D = nn.Parameter(torch.empty(inner))
        self.D_b = nn.Parameter(torch.empty(inner)) if both else None
        self.out_proj = nn.Linear(inner, embed_dim, bias=False)

    def forward(self, tokens: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        xz = self.in_proj(tokens)
        engine = choose_engine(self.engine, xz.device.type, xz.dtype).name
        both = self.A_b_log is not None
        if hasattr(engine_module(engine), "scan_forward"):
            backward = self._direction(reverse=True) if both else None
            y = bidirectional_scan(xz, self._direction(reverse=False), backward, engine=engine)
        else:
            y = self.scan(xz, reverse=False)
            y = y + self.scan(xz, reverse=True) if both else y
        return self.out_proj(y)

    def scan(self, xz: Float[Tensor, "b l e2"], *, reverse: bool) -> Float[Tensor, "b l e"]:
        """One direction on ``[x, z]``, in the order of the tokens; ``reverse`` runs from the last to the first."""
        direction = self._direction(reverse=reverse)
        x, z = xz.chunk(2, dim=-1)
        u = causal_conv_silu(x, direction.conv_weight, direction.conv_bias, reverse=reverse, engine=self.engine)
        dt, B, C = F.linear(u, direction.x_proj).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.linear(dt, direction.dt_proj)
        A, D, bias = -torch.exp(direction.A_log), direction.D, direction.dt_bias
        return selective_scan(u, delta, A, B, C, D=D, z=z, delta_bias=bias, reverse=reverse, engine=self.engine)

    def _direction(self, *, reverse: bool) -> Direction:
        end = "_b" if reverse else ""
        conv, x_proj, dt_proj = (
            getattr(self, f"conv1d{end}"),
            getattr(self, f"x_proj{end}"),
            getattr(self, f"dt_proj{end}"),
        )
        return Direction(
            conv_weight=conv.weight.squeeze(1),
            conv_bias=conv.bias,
            x_proj=x_proj.weight,
            dt_proj=dt_proj.weight,
            dt_bias=dt_proj.bias,
            A_log=getattr(self, "A_b_log" if reverse else "A_log"),
            D=getattr(self, f"D{end}"),
        )

    def reset_parameters(self, *, init: str = "corrected") -> None:
        """Initialise as published; the backward direction's time step too, unless ``init`` is "published".

        Differs from the reference: there, a sweep that zeroes the biases of linear layers misses the mark that protects
        ``dt_proj.bias`` on ``dt_proj_b``, so the backward scan starts at delta = softplus(0) = 0.69 instead of
        log-uniform in [1e-3, 1e-1]. ``init="published"`` keeps that.
        """
        for linear in _present(self.in_proj, self.x_proj, self.x_proj_b, self.out_proj):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        for conv in _present(self.conv1d, self.conv1d_b):
            conv.reset_parameters()
        for dt_proj in _present(self.dt_proj, self.dt_proj_b):
            bound = self.dt_rank**-0.5
            nn.init.uniform_(dt_proj.weight, -bound, bound)
            uniform = torch.rand(dt_proj.out_features)
            dt = torch.exp(uniform * (math.log(DT_MAX) - math.log(DT_MIN)) + math.log(DT_MIN)).clamp(min=DT_FLOOR)
            with torch.no_grad():
                dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus(bias) = dt
        if init == "published" and self.dt_proj_b is not None:
            nn.init.zeros_(self.dt_proj_b.bias)
        with torch.no_grad():
            for A_log in _present(self.A_log, self.A_b_log):
                A_log.copy_(torch.arange(1, self.d_state + 1, dtype=torch.float32).log().expand_as(A_log))
        for D in _present(self.D, self.D_b):
            nn.init.ones_(D)


def _present(*parts: T | None) -> list[T]:
    """Those that are there: a mixer of one direction lacks some."""
    return [part for part in parts if part is not None]
