"""The named sizes of U-ViT, and the settings of a model that decide what it costs. No torch."""

from dataclasses import dataclass
from typing import Final

from dis_cli.models.transformers.shape import Size, TransformerShape

# Table 1 of arXiv 2209.12152, without the variants that differ in depth alone.
SIZES: Final[dict[str, Size]] = {
    "s": Size(512, 13, 8),
    "m": Size(768, 17, 12),
    "l": Size(1024, 21, 16),
    "h": Size(1152, 29, 16),
}

# Grids of 1 and 3 channels are images; of others, latents.
_PIXEL_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Shape(TransformerShape):
    """The settings of a U-ViT that decide its parameters, operations and output; names are those of the backbone.

    Args:
        final_conv: Whether a 3x3 convolution comes last; None: on pixels, not on latents.
        time_mlp: Whether two linear layers follow the sinusoids of the time.

    Raises:
        ValueError: A number is out of range, the patches do not fit the grid or the heads the width, or the depth is
            even.
    """

    image_size: int
    patch_size: int
    in_channels: int
    embed_dim: int
    depth: int
    num_heads: int | None = None
    num_classes: int = 0
    learn_sigma: bool = True
    final_conv: bool | None = None
    time_mlp: bool = False

    def __post_init__(self) -> None:
        self.settle(SIZES)
        require_depth(self.depth)
        object.__setattr__(self, "final_conv", has_final_conv(self.in_channels, self.final_conv))

    @property
    def num_extras(self) -> int:
        """Tokens that are no patches: the time and, in a conditional model, the class."""
        return 2 if self.num_classes else 1

    @property
    def num_tokens(self) -> int:
        """Length L of the sequence."""
        return self.num_patches + self.num_extras

    @property
    def size(self) -> str | None:
        """The named size of this width, depth and heads; None when it has no name."""
        return self.size_in(SIZES)


def require_depth(depth: int) -> None:
    """Refuse a depth that has no middle.

    Raises:
        ValueError: It is even, or below 1.
    """
    if depth < 1 or depth % 2 == 0:
        raise ValueError(f"depth must be odd (half in, one middle, half out), got {depth}")


def has_final_conv(in_channels: int, final_conv: bool | None) -> bool:
    """Whether a convolution comes last: as asked for, else as published for so many channels."""
    return in_channels in _PIXEL_CHANNELS if final_conv is None else final_conv
