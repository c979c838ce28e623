"""The named sizes of DiT, and the settings of a model that decide what it costs. No torch."""

from dataclasses import dataclass
from typing import Final

from dis_cli.models.transformers.shape import Size, TransformerShape

# Table 1 of arXiv 2212.09748.
SIZES: Final[dict[str, Size]] = {
    "s": Size(384, 12, 6),
    "b": Size(768, 12, 12),
    "l": Size(1024, 24, 16),
    "xl": Size(1152, 28, 16),
}


@dataclass(frozen=True)
class Shape(TransformerShape):
    """The settings of a DiT that decide its parameters, operations and output; names are those of the backbone.

    Raises:
        ValueError: A number is out of range, the patches do not fit the grid, or the heads or the positions the width.
    """

    image_size: int
    patch_size: int
    in_channels: int
    embed_dim: int
    depth: int
    num_heads: int | None = None
    num_classes: int = 0
    learn_sigma: bool = True

    def __post_init__(self) -> None:
        self.settle(SIZES)
        require_width(self.embed_dim)

    @property
    def num_tokens(self) -> int:
        """Length L of the sequence."""
        return self.num_patches

    @property
    def size(self) -> str | None:
        """The named size of this width, depth and heads; None when it has no name."""
        return self.size_in(SIZES)


def require_width(embed_dim: int) -> None:
    """Refuse a width that the sines and cosines of two coordinates do not fill.

    Raises:
        ValueError: It is no multiple of 4.
    """
    if embed_dim % 4:
        raise ValueError(f"embed_dim must be a multiple of 4 (sine and cosine of row and column), got {embed_dim}")
