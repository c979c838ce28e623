"""Pixels as they are: the model sees the image itself."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


class PixelCodec:
    """The identity between images and the grid the model sees."""

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The grid itself, not clamped."""
        return latents


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b h w c"]:
    """Turn images in [-1, 1] into 8-bit ones: round((clamp(x, -1, 1) + 1) * 127.5), channels last.

    Args:
        images: Images in [-1, 1]; values outside are clamped.
    """
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
