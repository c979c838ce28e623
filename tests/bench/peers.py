"""What DiS is measured against: its mixer on the published scan loop."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dis_cli.models.dis.backbone import DiS
from dis_cli.models.dis.mixer import Mixer


def published_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """The selective scan by the published code's algorithm, in its own layout: channels before tokens.

    Decay and drive of all tokens are made first, as tensors of (batch, channels, tokens, states); then a loop over the
    tokens takes a slice of both, updates the state and reads it out. Autograd differentiates it, and the gradient of
    every slice is a tensor of the full length: the backward's time grows with the square of the length.

    Args:
        u: Input (b, d, l).
        delta: Time step before bias and softplus (b, d, l).
        A: State matrix (d, n).
        B: Input projection (b, n, l).
        C: Output projection (b, n, l).
        D: Skip (d,).
        z: Gate before its SiLU (b, d, l).
        delta_bias: Added to ``delta`` (d,).
    """
    step = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", step, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", step, B, u)
    h = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + drive[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    y = torch.stack(outputs, dim=2)
    return (y + u * D[:, None]) * F.silu(z)


def conv_silu_by_transposes(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The causal depthwise convolution and SiLU of (b, l, d) through torch's convolution, which wants (b, d, l)."""
    channels, taps = weight.shape
    sequence = x.transpose(1, 2).contiguous()
    result = F.conv1d(sequence, weight[:, None], bias, padding=taps - 1, groups=channels)[..., : x.shape[1]]
    return F.silu(result).transpose(1, 2).contiguous()


class PublishedMixer(nn.Module):
    """A mixer's parameters in the published data flow: channels before tokens, flips for the way back, the loop.

    Args:
        mixer: Whose parameters it uses.
    """

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, tokens: Tensor) -> Tensor:
        xz = self.mixer.in_proj(tokens).transpose(1, 2).contiguous()
        y = self._direction(xz, backward=False) + self._direction(xz.flip(-1), backward=True).flip(-1)
        return self.mixer.out_proj(y.transpose(1, 2))

    def _direction(self, xz: Tensor, *, backward: bool) -> Tensor:
        own = self.mixer
        conv, x_proj, dt_proj, A_log, D = (
            (own.conv1d_b, own.x_proj_b, own.dt_proj_b, own.A_b_log, own.D_b)
            if backward
            else (own.conv1d, own.x_proj, own.dt_proj, own.A_log, own.D)
        )
        x, z = xz.chunk(2, dim=1)
        taps, channels = conv.weight.shape[-1], x.shape[1]
        u = F.silu(F.conv1d(x, conv.weight, conv.bias, padding=taps - 1, groups=channels)[..., : x.shape[2]])
        projected = u.transpose(1, 2) @ x_proj.weight.t()
        dt, B, C = projected.split([own.dt_rank, own.d_state, own.d_state], dim=-1)
        delta = (dt @ dt_proj.weight.t()).transpose(1, 2)
        B, C = B.transpose(1, 2).contiguous(), C.transpose(1, 2).contiguous()
        return published_scan(u, delta, -torch.exp(A_log), B, C, D=D, z=z, delta_bias=dt_proj.bias)


def on_published_loop(model: DiS) -> DiS:
    """The model with every mixer replaced by a ``PublishedMixer`` of the same parameters; changed in place."""
    for block in model.blocks():
        block.mixer = PublishedMixer(block.mixer)
    return model


def parameter_count(model: nn.Module) -> int:
    """Parameters without the table of positions, whose size is the image's and which costs a sum per token."""
    return sum(math.prod(value.shape) for name, value in model.named_parameters() if name != "pos_embed")
