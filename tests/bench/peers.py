"""What DiS is measured against: its mixer on the published scan loop, and two transformers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dis_cli.models.dis.backbone import DiS
from dis_cli.models.dis.mixer import Mixer
from dis_cli.models.embed import PatchEmbed, timestep_embedding, unpatchify


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


class _Attention(nn.Module):
    """Self-attention over all tokens by torch's fused function."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        b, length, width = tokens.shape
        q, k, v = self.qkv(tokens).view(b, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, length, width))


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))


def _modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None], tokens, 1 + scale[:, None])


class _DiTBlock(nn.Module):
    """Attention and MLP, each behind a norm whose shift, scale and gate come from the condition."""

    def __init__(self, width: int, heads: int, *, own_modulation: bool) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = _Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = _mlp(width)
        self.modulation = nn.Linear(width, 6 * width) if own_modulation else None
        self.offset = None if own_modulation else nn.Parameter(torch.zeros(6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """``condition`` is the activated embedding, or the shared modulation where the block has none of its own."""
        modulation = condition + self.offset if self.modulation is None else self.modulation(condition)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=1)
        attended = self.attention(_modulate(self.norm_attention(tokens), shift_a, scale_a))
        tokens = torch.addcmul(tokens, gate_a[:, None], attended)
        mixed = self.mlp(_modulate(self.norm_mlp(tokens), shift_m, scale_m))
        return torch.addcmul(tokens, gate_m[:, None], mixed)


class _Backbone(nn.Module):
    """What both transformers share: patches, positions, the time embedding, and DiS's way of being called."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int,
        width: int,
        num_classes: int,
        extras: int,
        time_ratio: int,
    ) -> None:
        super().__init__()
        self.patch_size, self.channels, self.width = patch_size, channels, width
        self.num_classes = num_classes
        self.patch_embed = PatchEmbed(patch_size, channels, width)
        self.time_embed = nn.Sequential(
            nn.Linear(width, time_ratio * width), nn.SiLU(), nn.Linear(time_ratio * width, width)
        )
        self.label_embed = nn.Embedding(num_classes + 1, width) if num_classes else None
        tokens = extras + (image_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final = nn.Linear(width, patch_size**2 * channels)

    def embedded_time(self, t: Tensor) -> Tensor:
        return self.time_embed(timestep_embedding(t, self.width))

    def embedded_label(self, labels: Tensor, label_drop_uniform: Tensor | None) -> Tensor:
        assert self.label_embed is not None
        if label_drop_uniform is not None:
            labels = torch.where(label_drop_uniform < 0.1, self.num_classes, labels)
        return self.label_embed(labels)


class DiT(_Backbone):
    """A diffusion transformer (arXiv 2212.09748): attention, MLP of four times the width, conditioned by modulation.

    Args:
        image_size: Side of the square grid.
        patch_size: Side of a patch.
        channels: Channels of the grid, in and out.
        width: Width of a token.
        depth: Number of blocks.
        heads: Heads of the attention.
        num_classes: Number of classes; 0 is unconditional.
        own_modulation: Whether every block projects the condition by itself, as published: a third of the block's
            parameters, which cost next to no time. Otherwise one projection serves all blocks, each with an offset
            (arXiv 2310.00426).
        time_ratio: Width of the time embedding's hidden layer, in widths: 1 as published, 4 in DiS.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int = 0,
        *,
        own_modulation: bool = True,
        time_ratio: int = 4,
    ) -> None:
        super().__init__(image_size, patch_size, channels, width, num_classes, extras=0, time_ratio=time_ratio)
        self.blocks = nn.ModuleList(_DiTBlock(width, heads, own_modulation=own_modulation) for _ in range(depth))
        self.shared_modulation = None if own_modulation else nn.Linear(width, 6 * width)
        self.final_modulation = nn.Linear(width, 2 * width)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        label_drop_uniform: Tensor | None = None,
        drop_path_uniform: Tensor | None = None,  # noqa: ARG002  DiS takes it
    ) -> Tensor:
        condition = self.embedded_time(t)
        if labels is not None:
            condition = condition + self.embedded_label(labels, label_drop_uniform)
        condition = F.silu(condition)
        modulation = condition if self.shared_modulation is None else self.shared_modulation(condition)
        tokens = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, modulation)
        shift, scale = self.final_modulation(condition).chunk(2, dim=1)
        return unpatchify(self.final(_modulate(self.norm(tokens), shift, scale)), self.patch_size, self.channels)


class _UViTBlock(nn.Module):
    """Attention and MLP behind norms, after the long skip where there is one."""

    def __init__(self, width: int, heads: int, *, skip: bool) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * width, width) if skip else None
        self.norm_attention = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = _mlp(width)

    def forward(self, tokens: Tensor, skip: Tensor | None) -> Tensor:
        if self.skip_linear is not None and skip is not None:
            tokens = self.skip_linear(torch.cat([tokens, skip], dim=-1))
        tokens = tokens + self.attention(self.norm_attention(tokens))
        return tokens + self.mlp(self.norm_mlp(tokens))


class UViT(_Backbone):
    """A U-ViT (arXiv 2209.12152) without its last convolution: time is a token, and long skips join the blocks.

    Args:
        image_size: Side of the square grid.
        patch_size: Side of a patch.
        channels: Channels of the grid, in and out.
        width: Width of a token.
        depth: Number of blocks, odd: half in, one middle, half out.
        heads: Heads of the attention.
    """

    def __init__(self, image_size: int, patch_size: int, channels: int, width: int, depth: int, heads: int) -> None:
        super().__init__(image_size, patch_size, channels, width, num_classes=0, extras=1, time_ratio=4)
        self.blocks = nn.ModuleList(_UViTBlock(width, heads, skip=index > depth // 2) for index in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = torch.cat([self.embedded_time(t)[:, None], self.patch_embed(x)], dim=1) + self.pos_embed
        skips: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, skips.pop() if index > len(self.blocks) // 2 else None)
            if index < len(self.blocks) // 2:
                skips.append(tokens)
        return unpatchify(self.final(self.norm(tokens[:, 1:])), self.patch_size, self.channels)


def parameter_count(model: nn.Module) -> int:
    """Parameters without the table of positions, whose size is the image's and which costs a sum per token."""
    return sum(math.prod(value.shape) for name, value in model.named_parameters() if name != "pos_embed")
