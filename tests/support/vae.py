"""A small random VAE: it compresses nothing well, but it is the real thing in diffusers' layout, in 0.2 MB."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dis_cli.codecs.vae import VaeCodec

DOWNSAMPLE = 2
LATENT_CHANNELS = 4


def save_tiny_vae(folder: Path, seed: int = 0) -> Path:
    """Write an AutoencoderKL with random weights that depend on ``seed`` only."""
    import torch
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=4,
            sample_size=16,
        ).save_pretrained(folder)
    return folder


def mode(codec: "VaeCodec", images: "Tensor") -> "Tensor":
    """The scaled mode of the posterior of images in [-1, 1]."""
    return codec.scale * (codec.moments(images)[0] - codec.shift)
