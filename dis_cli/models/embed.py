"""Turning patches, time and class into tokens, and tokens back into a grid.

Submodules and parameters carry the published names, so published weights load by identity.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


def timestep_embedding(t: Shaped[Tensor, " b"], dim: int) -> Float[Tensor, "b {dim}"]:
    """Sinusoids of the timestep: ``[cos(t w_i), sin(t w_i)]`` with ``w_i = 10000^(-i / (dim // 2))``.

    Args:
        t: Original timestep, 0 to num_timesteps - 1; need not be whole.
        dim: Width of the result; odd widths end in a zero.

    Returns:
        Always float32, whatever the model computes in, as published.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


# Matrix libraries sum products of fewer rows than a few for each thread in another order.
_WHOLE_ROWS = 64


class RowWise(nn.Sequential):
    """Layers on one vector an image; outside training a row has the same bits however many rows there are."""

    def forward(self, input: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:  # noqa: A002 - its base calls it so
        if self.training:
            return super().forward(input)
        return super().forward(F.pad(input, (0, 0, 0, -len(input) % _WHOLE_ROWS)))[: len(input)]


class PatchEmbed(nn.Module):
    """Cut a grid into patches, row by row, and project each to a token."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l d"]:
        """The convolution as one matrix product, which is what it is: its stride is its size."""
        batch, channels, height, width = x.shape
        size = self.proj.kernel_size[0]
        grid = x.reshape(batch, channels, height // size, size, width // size, size)
        patches = grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class LabelEmbed(nn.Module):
    """A table of class vectors; the row after the last class is the null class of classifier-free guidance."""

    def __init__(self, num_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, embed_dim)

    def forward(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return self.embedding_table(labels)


class FinalLayer(nn.Module):
    """LayerNorm, modulation by time and class where there are classes, and projection to patch pixels.

    Differs from DiT: neither the projection nor the modulation starts at zero, and unconditional models have no
    modulation at all.
    """

    def __init__(self, embed_dim: int, patch_size: int, out_channels: int, *, modulated: bool) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(embed_dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(embed_dim, patch_size * patch_size * out_channels)
        self.adaLN_modulation = RowWise(nn.SiLU(), nn.Linear(embed_dim, 2 * embed_dim)) if modulated else None

    def forward(
        self, tokens: Float[Tensor, "b l d"], condition: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b l pixels"]:
        tokens = self.norm_final(tokens)
        if self.adaLN_modulation is not None and condition is not None:
            shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
            tokens = torch.addcmul(shift[:, None], tokens, 1 + scale[:, None])
        return self.linear(tokens)


def unpatchify(
    patches: Float[Tensor, "b l pixels"], patch_size: int, channels: int
) -> Float[Tensor, "b {channels} h w"]:
    """Put patches back on their square grid; inside a patch, rows before columns before channels.

    Args:
        patches: As many as a square grid has, row by row.
        patch_size: Side of a patch, in grid pixels.
        channels: Channels of the result.

    Raises:
        ValueError: The number of patches is not a square, or a patch has the wrong number of values.
    """
    batch, count, values = patches.shape
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"a square grid needs a square number of patches, got {count}")
    if values != patch_size * patch_size * channels:
        raise ValueError(f"a patch must have {patch_size * patch_size * channels} values, got {values}")
    grid = patches.reshape(batch, side, side, patch_size, patch_size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * patch_size, side * patch_size)
